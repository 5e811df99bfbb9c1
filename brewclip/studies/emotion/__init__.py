"""Emotion in the features: a probe on frozen features, and finetuning."""
