"""Emotion recognition: linear probes on frozen features, and finetuning."""
