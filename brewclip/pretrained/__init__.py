"""Frozen Whisper and CLIP weights by name, and the identity of what was loaded."""
