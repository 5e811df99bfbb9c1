"""Identity of a frozen CLIP: a hash of its weights, and the settings that the weights do not contain."""

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from open_clip.transformer import QuickGELU
from torch import nn

from brewclip.pretrained.load import LoadedClip

_ACTIVATIONS = ("torch.nn.modules.activation", "timm.layers.activations", "transformers.activations")


@dataclass(frozen=True)
class ClipIdentity:
    """Everything that the features of a frozen CLIP depend on.

    Attributes:
        name: the name it was loaded by.
        weights_sha256: hash of its weights.
        settings: what the weights do not contain: activation, image normalisation, size and resizing, tokenizer; of
            towers that take no prompts also pooling, mask and norms. JSON.
        unrecorded: the settings to assume for a checkpoint that recorded none.
    """

    name: str
    weights_sha256: str
    settings: dict[str, Any]
    unrecorded: dict[str, Any]


def identify_clip(clip: LoadedClip) -> ClipIdentity:
    """Return the identity of a CLIP; hashes all its weights."""
    settings = {
        "activation": _activation_of(clip.model),
        "image_mean": list(clip.mean),
        "image_std": list(clip.std),
        "image_size": clip.image_size,
        "interpolation": clip.interpolation,
        "resize_mode": clip.resize_mode,
        "tokenizer": clip.tokenizer,
        "context_length": clip.context_length,
    }
    if clip.towers:
        settings |= clip.towers | {"norm_eps": _norm_eps_of(clip.model)}
    return ClipIdentity(clip.name, weights_sha256(clip.model), settings, settings | clip.unrecorded)


def weights_sha256(module: nn.Module) -> str:
    """Hash all weights and buffers of a module, sorted by name: name, type, shape and bytes."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _activation_of(model: nn.Module) -> str:
    """Return the activations of a model's blocks, such as `QuickGELU`; those of timm and Transformers, too."""
    found = {module for module in model.modules() if _is_activation(module)}
    names = {
        f"GELU({module.approximate})" if getattr(module, "approximate", "none") != "none" else type(module).__name__
        for module in found
    }
    return " and ".join(sorted(names))


def _is_activation(module: nn.Module) -> bool:
    of_a_library = type(module).__module__ in _ACTIVATIONS and not isinstance(module, nn.MultiheadAttention)
    return isinstance(module, QuickGELU) or of_a_library


def _norm_eps_of(model: nn.Module) -> list[float]:
    """Return the different eps of a model's norms."""
    found = {getattr(module, "eps", None) for module in model.modules()}
    return sorted(eps for eps in found if isinstance(eps, float))
