"""Encoders compiled by `torch.compile`, with inputs padded to a few lengths to bound recompilation."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from brewclip.errors import UserError
from brewclip.models.brewclip import BrewCLIP, Encoders

_TOKENS_STEP = 16
_LEAST_FRAMES = 128


def padded_tokens(num_tokens: int) -> int:
    """Return the length that texts of this many tokens are computed at: a multiple of 16, which is five up to 77."""
    return -(-num_tokens // _TOKENS_STEP) * _TOKENS_STEP


def padded_frames(num_frames: int) -> int:
    """Return the length that speech of this many frames is padded to: 128 (2.6 s) or a power of two above it."""
    return max(_LEAST_FRAMES, 1 << (num_frames - 1).bit_length())


def compile_encoders(model: BrewCLIP, backend: str = "inductor") -> None:
    """Let `model.forward` call compiled encoders; the others, for evaluation, stay as they are.

    Each encoder is compiled once for each length of its input, and for the number of rows, which is the same in all
    steps: once for images, five times for texts, seven times for two minutes of speech. Above its limit of eight, torch
    computes a length without compiling it. Padding is masked, so features differ by rounding only.

    Args:
        model: on its device.
        backend: of `torch.compile`.
    """
    text: Any
    text, image, audio = (
        torch.compile(one, backend=backend, dynamic=False)
        for one in (model.encode_text, model.encode_image, model.encode_audio)
    )

    def encode_text(tokens: Tensor, num_tokens: int) -> Tensor:
        return text(tokens, padded_tokens(num_tokens))

    def encode_audio(frames: Tensor, mask: Tensor, seeds: Tensor | None) -> Tensor | None:
        missing = padded_frames(frames.shape[1]) - frames.shape[1]
        return audio(F.pad(frames, (0, 0, 0, missing)), F.pad(mask, (0, missing)), seeds)

    model.encoders = Encoders(_explained(encode_text), _explained(image), _explained(encode_audio))


def _explained(encode):  # type: ignore[no-untyped-def]  # any of the three signatures
    """Return an encoder whose failure to compile is one line for users."""

    def call(*inputs):  # type: ignore[no-untyped-def]
        try:
            return encode(*inputs)
        except torch._dynamo.exc.TorchDynamoException as error:  # such as no C++ compiler
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"--run.compile True: torch.compile fails here ({reason}): train without it") from error

    return call
