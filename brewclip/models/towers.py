"""Frozen image and text towers of any open_clip model, for training on their embeddings.

Nothing is put inside the towers (`models/clip.py` does that, for the few that have a place for prompts), so ResNets,
towers of timm and of Transformers, CoCa and bidirectional text are as good as CLIP's own.
"""

from typing import Any, Self

from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP
from torch import Tensor, nn

from brewclip.models.clip import PromptedCLIP, why_no_prompts


class FrozenTowers(nn.Module):
    """Image and text tower of an open_clip model; frozen, and always in eval mode.

    Towers that take prompts are computed by `PromptedCLIP` without prompts: bit-identical to it, within 1e-6 of
    open_clip relative to the length of the features, and captions of ten tokens in a seventh of the time, since the
    padding is not computed. Others are computed by open_clip.

    Source: `encode_image` and `encode_text` of open_clip 3.3.

    Args:
        clip: the open_clip model; its parameters are frozen in place.

    Attributes:
        embed_dim: width E of the features, the same for both towers.
        context_length: number of tokens of a text, with start and end token.
        image_size: side of the square image in pixels.

    Raises:
        ValueError: if it is no model of open_clip with both towers, or its images are not square.
    """

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        if not isinstance(clip, CLIP | CustomTextCLIP | CoCa):
            raise ValueError(f"a {type(clip).__name__} has no image and text tower; give an open_clip model")
        self.embed_dim = _embed_dim_of(clip)
        self.context_length: int = clip.context_length
        self.image_size = square_side(clip.visual.image_size)
        self.towers = clip if why_no_prompts(clip) else PromptedCLIP(clip)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: frozen towers have no dropout and no statistics to learn."""
        return super().train(False)

    def encode_image(self, images: Tensor) -> Tensor:
        """Encode images.

        Args:
            images: (B, 3, H, W), normalised with the model's mean and standard deviation, H and W `image_size`.

        Returns:
            (B, embed_dim) features, not normalised.
        """
        if isinstance(self.towers, PromptedCLIP):
            return self.towers.encode_image(images)
        return _features(self.towers.encode_image(images, normalize=False))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Encode captions.

        Args:
            tokens: (B, context_length) int64 from the model's tokenizer, padded as it pads.

        Returns:
            (B, embed_dim) features, not normalised.

        Raises:
            ValueError: if the tokens have another length. Some towers attend to the padding or pool at the last
                position, so that its number changes their features.
        """
        if tokens.ndim != 2 or tokens.shape[1] != self.context_length:
            raise ValueError(f"tokens have shape {tuple(tokens.shape)}, must be (batch, {self.context_length})")
        if isinstance(self.towers, PromptedCLIP):
            return self.towers.encode_text(tokens)
        return _features(self.towers.encode_text(tokens, normalize=False))


def square_side(image_size: int | tuple[int, int]) -> int:
    """Return the side of the square images of an image tower.

    Raises:
        ValueError: if they are not square.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if height != width:
        raise ValueError(
            f"the image tower takes {height} x {width} pixels; images are made square, choose another model"
        )
    return height


def _embed_dim_of(clip: nn.Module) -> int:
    """Return the width of the features; image towers of timm do not state it, text towers do."""
    text: Any = clip if isinstance(clip, CLIP) else clip.text
    projection = getattr(text, "text_projection", None)
    if isinstance(projection, nn.Linear):
        return projection.out_features
    if isinstance(projection, Tensor):
        return projection.shape[1]
    # Without projection: Transformers' tower states its output, open_clip's own gives its width.
    return text.output_dim if not hasattr(text, "text_projection") else text.ln_final.normalized_shape[0]


def _features(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Return the pooled features of a tower that may return its tokens as well."""
    return output[0] if isinstance(output, tuple) else output
