"""Training of the small CLIP for the scenes world; its weights are stored in brewclip/scenes."""
