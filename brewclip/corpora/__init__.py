"""Corpora: reading a download, writing shards, extracting Whisper features."""
