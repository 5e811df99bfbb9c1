"""Evaluation of systems on a split: embeddings, ranks, recall tables and the HTML report."""
