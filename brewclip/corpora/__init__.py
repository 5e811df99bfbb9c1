"""Corpora: read a download, write shards, extract Whisper features."""
