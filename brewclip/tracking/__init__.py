"""MLflow records of a run, its provenance, and the model registry."""
