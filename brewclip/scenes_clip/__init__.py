"""The training of the scenes world's own small CLIP; the weights it made lie in brewclip/scenes."""
