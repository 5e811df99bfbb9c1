"""Weights of a CLIP from a file of one's own: safetensors, or a torch file of nothing but tensors.

Nothing is unpickled: torch files are read with `weights_only`. Long-CLIP's text of 248 tokens is known by its position
embeddings.
"""

import hashlib
import pickle
from pathlib import Path

import torch
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

_TEXT_POSITIONS = ("positional_embedding", "text.positional_embedding")
# Long-CLIP, section 3.1: the first 20 position embeddings stay CLIP's, those behind them are stored under another name.
_LONG_POSITIONS, _KEPT_POSITIONS = "positional_embedding_res", 20
# Of OpenAI's archives and of older versions of open_clip and transformers.
_NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "text.transformer.embeddings.position_ids")
_OF_DAMAGED_FILES = (ValueError, KeyError, IndexError, TypeError, AttributeError)  # from within torch.load
_NO_FEATURES = {"logit_scale", "logit_bias"}  # features do not depend on them


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the weights of a file by name, with Long-CLIP's position embeddings put together.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no weights.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of weights {str(path)!r}")
    try:
        is_safe = path.suffix == ".safetensors"
        content = load_file(path) if is_safe else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, OSError, EOFError, *_OF_DAMAGED_FILES) as error:
        reason = " ".join(str(error).split())[:150]
        raise ValueError(f"cannot read weights from {str(path)!r}, a file of tensors by name: {reason}") from error
    weights = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(weights, dict) or not weights or not all(isinstance(one, Tensor) for one in weights.values()):
        raise ValueError(f"{str(path)!r} holds no tensors by name")
    return _join_long_positions({key.removeprefix("module."): value for key, value in weights.items()})


def text_length(weights: dict[str, Tensor]) -> int | None:
    """Return the number of tokens that weights have position embeddings for, None if they do not tell."""
    rows = next((len(weights[key]) for key in _TEXT_POSITIONS if key in weights), None)
    return rows - 1 if rows and "text.cls_emb" in weights else rows  # CoCa's class token has a position, too


def load_weights(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Load weights into an open_clip model.

    Source: `open_clip.factory.load_checkpoint`, which converts formats alike. Position embeddings of text are not
    resized.

    Raises:
        ValueError: if they are not those of the architecture.
    """
    weights = convert_state_dict(model, weights)
    if _TEXT_POSITIONS[0] in weights and not hasattr(model, _TEXT_POSITIONS[0]):
        weights = convert_to_custom_text_state_dict(weights)
    own = model.state_dict()
    weights = {key: value for key, value in weights.items() if key not in _NO_WEIGHTS}
    weights = {key: value.reshape(own[key].shape) if key in _NO_FEATURES & own.keys() else value
               for key, value in weights.items()}  # fmt: skip
    try:
        resize_pos_embed(weights, model)
        found = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"the weights in {str(path)!r} do not fit the architecture: {reason}") from error
    wrong = [f"{key} is missing" for key in found.missing_keys if key not in _NO_FEATURES]
    wrong += [f"{key} is unknown" for key in found.unexpected_keys if key not in _NO_FEATURES]
    if wrong:
        raise ValueError(f"the weights in {str(path)!r} are of another architecture: {wrong[0]} (1 of {len(wrong)})")


def sha256_of_file(path: Path) -> str:
    """Return the hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _join_long_positions(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put the position embeddings of Long-CLIP together; others are returned as they are."""
    if _LONG_POSITIONS not in weights:
        return weights
    first, rest = weights[_TEXT_POSITIONS[0]], weights[_LONG_POSITIONS]
    joined = torch.cat([first[:_KEPT_POSITIONS], rest[_KEPT_POSITIONS:]])
    return {key: value for key, value in weights.items() if key != _LONG_POSITIONS} | {_TEXT_POSITIONS[0]: joined}
