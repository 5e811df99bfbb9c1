"""Names of CLIPs, `ARCHITECTURE/TAG` or `ARCHITECTURE/FILE`, and what open_clip's tables say of them."""

import difflib
from pathlib import Path
from typing import Any

import open_clip
from open_clip.pretrained import get_pretrained_cfg

RANDOM = "random"
FILE_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
_TRANSFORM = ("mean", "std", "interpolation", "resize_mode")


def split_clip_name(name: str) -> tuple[str, str]:
    """Return the architecture of a name, and its tag or the path of its weights.

    Raises:
        ValueError: if open_clip knows no such architecture or tag. Whether a file exists is not asked here.
    """
    architecture, _, tag = name.partition("/")
    if architecture not in open_clip.list_models():
        near = difflib.get_close_matches(architecture, open_clip.list_models(), n=3)
        raise ValueError(
            f"unknown CLIP {name!r}; choose 'scenes' or ARCHITECTURE/TAG with an architecture of open_clip, such as "
            + _either(near or ["ViT-B-32", "ViT-L-14", "ViT-L-14-336"])
        )
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag not in (RANDOM, *tags) and not weights_file(tag):
        near = [one for one in tags if tag and one.startswith(tag)] or difflib.get_close_matches(tag, tags, n=1)
        listed = f"{architecture}/TAG with one of {', '.join(tags)}, " if tags else ""
        raise ValueError(
            f"CLIP {name!r} names no known weights{f', did you mean {near[0]}' if near else ''}; write {listed}"
            f"{architecture}/{RANDOM} for an untrained model, or {architecture}/FILE for weights of your own "
            f"({', '.join(FILE_SUFFIXES)})"
        )
    return architecture, tag


def weights_file(tag: str) -> Path | None:
    """Return the path if a name gives a file of weights instead of a tag.

    `ViT-B-32/weights/mine.safetensors` is a relative path, `ViT-B-32//data/mine.safetensors` an absolute one.
    """
    return Path(tag) if tag.endswith(FILE_SUFFIXES) else None


def uses_quick_gelu(architecture: str, tag: str) -> bool:
    """Return whether the weights of a tag were trained with QuickGELU, by open_clip's table.

    An architecture such as ViT-L-14 is listed with tags of either activation, and open_clip (3.3) builds the one of
    the architecture, with only a warning.

    Args:
        architecture: of open_clip.
        tag: of its weights; `random` and a file take the architecture's activation.

    Raises:
        ValueError: if the architecture has QuickGELU and the tag does not. No `-quickgelu` is listed with such a
            tag, and no model that takes prompts has one.
    """
    by_architecture = bool(open_clip.get_model_config(architecture).get("quick_gelu", False))
    if tag == RANDOM or weights_file(tag):
        return by_architecture
    by_tag = bool(get_pretrained_cfg(architecture, tag).get("quick_gelu", False))
    if by_architecture and not by_tag:
        raise ValueError(
            f"CLIP '{architecture}/{tag}': the architecture is built with QuickGELU, the weights were trained with "
            "GELU, by open_clip's tables; choose the architecture without -quickgelu, or other weights"
        )
    return by_tag


def image_transform(architecture: str, tag: str) -> dict[str, Any]:
    """Return mean, std, interpolation and resize mode of the images that weights were trained on.

    Those of `random` and of a file are what all tags of the architecture agree on: SigLIP's images are squashed,
    whoever trained it. Where they do not agree, or there are none, the result is empty: open_clip's default, OpenAI's.
    """
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    found: list[dict[str, Any]] = []
    for one in [tag] if tag in tags else tags:
        table = get_pretrained_cfg(architecture, one)
        transform = {key: table[key] for key in _TRANSFORM if key in table}
        found += [transform] if transform not in found else []
    return found[0] if len(found) == 1 else {}


def tokenizer_of_a_hub(architecture: str) -> str:
    """Return the name of a tokenizer that the package transformers loads, empty where open_clip has its own."""
    return str(open_clip.get_model_config(architecture)["text_cfg"].get("hf_tokenizer_name") or "")


def tower_settings(architecture: str) -> dict[str, str]:
    """Return what open_clip's table says of either tower: pooling, mask, activation, norm; not in the weights."""
    config = open_clip.get_model_config(architecture)
    towers = {"image_tower": config["vision_cfg"], "text_tower": config["text_cfg"]}
    return {name: ", ".join(f"{key} {value}" for key, value in sorted(tower.items())) for name, tower in towers.items()}


def _either(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
