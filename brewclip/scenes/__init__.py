"""The scenes world: images, captions and speech generated from a seed, and the small CLIP trained on it.

`world` samples scenes, `drawing` renders them, `captions` describes them, `voices` synthesizes speech. No torch, no
Ray. The model configuration `clip.json` and the weights `clip.safetensors` are made by `jobs/train_scenes_clip.py`;
CREDITS.md names the authors of the drawings and the voice.
"""
