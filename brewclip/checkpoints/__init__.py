"""Checkpoints: format, storage, and compatibility with a run."""
