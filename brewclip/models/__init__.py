"""The networks: frozen Whisper and CLIP, and the few layers that are trained between them."""
