"""Identity of a system for indexes: everything that its embeddings of images depend on."""

from typing import Any

from brewclip.checkpoints.facts import Checkpoint
from brewclip.config import Config
from brewclip.pretrained.clip_identity import ClipIdentity


def identity_of_images(config: Config, clip: ClipIdentity, checkpoint: Checkpoint | None) -> dict[str, Any]:
    """Return the identity of a system; systems of one identity share an index.

    Args:
        config: settings of the system.
        clip: its frozen CLIP, which embeds the images of an adapter and of `speechclip` as it is.
        checkpoint: its trained weights; None for zero-shot CLIP.
    """
    identity: dict[str, Any] = {
        "frozen_sha256": {clip.name: clip.weights_sha256},
        "frozen_settings": {clip.name: clip.settings},
        "weights_sha256": "",
        "step": 0,
    }
    if checkpoint is None:
        return identity
    if config.model.adaptation == "prompts" and config.model.variant != "speechclip":
        return identity | {
            "weights_sha256": checkpoint.facts.files["model.safetensors"],
            "step": checkpoint.facts.step,
        }
    if config.data.image_transform != "crop":
        return identity | {"image_transform": config.data.image_transform}
    return identity
