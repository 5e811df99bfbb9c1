"""Inference with a trained system: embeddings and image search; the entry point is `brewclip.load`."""
