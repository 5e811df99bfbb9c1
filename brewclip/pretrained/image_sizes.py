"""Sizes of the images of a CLIP by its name, without its weights; of the scenes CLIP without importing open_clip."""

import json
from pathlib import Path

SCENES_DIR = Path(__file__).parents[1] / "scenes"


def clip_image_size(name: str) -> int:
    """Return the side of a CLIP's square image in pixels, without loading its weights.

    Raises:
        ValueError: if the architecture or the tag is unknown.
    """
    if name == "scenes":
        return int(json.loads((SCENES_DIR / "clip.json").read_text())["vision_cfg"]["image_size"])
    import open_clip

    from brewclip.models.towers import square_side
    from brewclip.pretrained.clip_names import split_clip_name

    architecture, _ = split_clip_name(name)
    return square_side(open_clip.get_model_config(architecture)["vision_cfg"]["image_size"])


def clip_stored_side(name: str) -> int:
    """Return the short side in pixels that images stored for a CLIP are best resized to.

    Most take the center of an image whose short side was resized by bicubic interpolation: stored images have that
    size. For the others it is twice the side, and the image is resized once more as they need it.

    Raises:
        ValueError: as `clip_image_size`.
    """
    side = clip_image_size(name)
    if name == "scenes":
        return side
    from brewclip.pretrained.clip_names import image_transform, split_clip_name

    table = image_transform(*split_clip_name(name))
    usual = (table.get("interpolation", "bicubic"), table.get("resize_mode", "shortest")) == ("bicubic", "shortest")
    return side if usual else 2 * side
