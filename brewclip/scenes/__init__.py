"""The scenes world: images, captions and voices from a seed, and the small CLIP that was trained on it.

`world` says what is in a scene, `drawing` draws it, `captions` tells it, `voices` speaks. No torch, no Ray.
The model configuration `clip.json` and the weights `clip.safetensors` are made by
`jobs/train_scenes_clip.py`; whose drawings and voice these are is in CREDITS.md.
"""
