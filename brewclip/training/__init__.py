"""Training: the loop, its optimiser, its checkpoints, and what runs on a worker."""
