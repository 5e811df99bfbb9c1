"""MLflow tracking of runs, their provenance, and the model registry."""
