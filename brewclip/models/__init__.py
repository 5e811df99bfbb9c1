"""The networks: frozen Whisper and CLIP, and the layers trained between them."""
