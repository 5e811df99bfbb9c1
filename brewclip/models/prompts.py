"""Prompts shared by text, audio and vision: one learned table, and its linear projection for vision."""

import torch
from torch import Tensor, nn

_INIT_STD = 0.02  # as CLIP draws its token embeddings


class SharedPrompts(nn.Module):
    """Learned prompt vectors P_T and their projection P_V = Linear(P_T).

    Source: BrewCLIP, section 3.3 "Shared Prompting".

    Args:
        length: number M of prompt vectors; 0 switches prompting off and leaves nothing to train.
        text_width: width of the text tower, which the acoustic layer shares.
        vision_width: width of the vision tower.

    Raises:
        ValueError: if `length` is negative.
    """

    def __init__(self, length: int, text_width: int, vision_width: int) -> None:
        super().__init__()
        if length < 0:
            raise ValueError(f"prompt length is {length}; it must be 0 (no prompts) or more")
        self.length = length
        if length:
            self.text = nn.Parameter(torch.randn(length, text_width) * _INIT_STD)
            self.to_vision = nn.Linear(text_width, vision_width)

    @property
    def text_prompts(self) -> Tensor | None:
        """Prompts of text and audio, (M, text_width), or None."""
        return self.text if self.length else None

    def forward(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the text prompts (M, text_width) and vision prompts (M, vision_width), or two Nones."""
        if not self.length:
            return None, None
        return self.text, self.to_vision(self.text)
