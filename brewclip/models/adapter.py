"""Adapter on CLIP's embeddings: a linear residual on those of texts; those of images stay as they are."""

import torch
from torch import Tensor, nn

from brewclip.models.towers import FrozenTowers


class EmbeddingAdapter(nn.Module):
    """Takes the place of `PromptedCLIP`, over embeddings that a frozen CLIP has computed, or over its towers.

    An adapted text is t + strength * (W t + b). W and b start at zero, so the untrained adapter is zero-shot CLIP;
    `strength` is 1 in training and may be chosen on dev afterwards, from 0 (zero-shot) to 1 (as trained), as weights
    are interpolated by Wortsman et al., "Robust fine-tuning of zero-shot models" (CVPR 2022). Since images are not
    adapted, an index of CLIP's image embeddings serves every adapter over that CLIP.

    Args:
        embed_dim: width E of the embeddings.
        towers: compute the embeddings of images and tokens; None where embeddings are given in their place.
    """

    strength: Tensor

    def __init__(self, embed_dim: int, towers: FrozenTowers | None = None) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.text_width = self.vision_width = embed_dim  # of the acoustic layer, which shares the text's width
        self.context_length = 0  # no prompts fit
        self.towers = towers
        self.residual = nn.Linear(embed_dim, embed_dim)
        nn.init.zeros_(self.residual.weight)
        nn.init.zeros_(self.residual.bias)
        self.register_buffer("strength", torch.ones(()))

    def encode_image(self, images: Tensor, prompts: Tensor | None = None) -> Tensor:
        """Return embeddings of images, (B, E); `prompts` must be None."""
        return images if self.towers is None else self.towers.encode_image(images)

    def encode_text(self, tokens: Tensor, prompts: Tensor | None = None, num_tokens: int = 0) -> Tensor:
        """Return adapted embeddings of texts, (B, E); `prompts` must be None, and `num_tokens` is not used."""
        plain, change = self.encode_text_parts(tokens)
        return plain + (change if self.training else self.strength * change)

    def encode_text_parts(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return CLIP's embeddings of texts, (B, E), and what the whole adapter adds to them."""
        plain = tokens if self.towers is None else self.towers.encode_text(tokens)
        return plain, self.residual(plain)
