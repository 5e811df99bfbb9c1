"""Frozen CLIP whose two towers take prompt vectors at their input.

Without prompts the features are those of open_clip; with them, gradients flow through the frozen towers to
the prompts.
"""

from typing import Any, Self

import torch
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transformer import TextTransformer, VisionTransformer
from torch import Tensor, nn


class PromptedCLIP(nn.Module):
    """Any open_clip ViT with a causal text transformer; frozen, and always in eval mode.

    Source: open_clip 3.3 for the towers; BrewCLIP, section 3.3, and its released behaviour for the prompts'
        places.

    Args:
        clip: the open_clip model; its parameters are frozen in place.

    Raises:
        ValueError: if the architecture has no place for prompts (ResNet or timm vision, Hugging Face,
            bidirectional or class-token text).
    """

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        if not isinstance(clip, CLIP | CustomTextCLIP):
            raise ValueError(f"cannot put prompts into a {type(clip).__name__}; give an open_clip CLIP model")
        text = clip.text if isinstance(clip, CustomTextCLIP) else clip
        _check_vision(clip.visual)
        _check_text(text)
        self.clip = clip
        self._pool_type = text.pool_type if isinstance(text, TextTransformer) else clip.text_pool_type
        self._eos_id = text.eos_id if isinstance(text, TextTransformer) else clip.text_eos_id
        self.context_length: int = clip.context_length
        self.text_width: int = text.token_embedding.weight.shape[1]
        self.vision_width: int = clip.visual.class_embedding.shape[0]
        self.embed_dim: int = clip.visual.output_dim
        self.image_size: int = clip.visual.image_size[0]
        self.requires_grad_(False)
        self.eval()

    @property
    def _text(self) -> Any:
        """The module that holds the text tower's parts; a property, so that no weight is registered twice."""
        return self.clip.text if isinstance(self.clip, CustomTextCLIP) else self.clip

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: a frozen tower has no dropout and no statistics to learn."""
        return super().train(False)

    def encode_image(self, images: Tensor, prompts: Tensor | None = None) -> Tensor:
        """Encode pictures, with prompts after the patches.

        Prompts come after the position embeddings were added (they get none) and before the first norm; the
        features are pooled from the same tokens as without prompts.

        Args:
            images: (B, 3, H, W), normalised with CLIP's mean and standard deviation.
            prompts: (M, vision_width), or None for plain CLIP.

        Returns:
            (B, embed_dim) features, not normalised.
        """
        visual = self.clip.visual
        x = visual.conv1(images).flatten(2).transpose(1, 2)  # (B, patches, Dv)
        classes = visual.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        x = torch.cat([classes, x], dim=1) + visual.positional_embedding.to(x.dtype)
        num_tokens = x.shape[1]
        if prompts is not None:
            x = torch.cat([x, prompts.to(x.dtype).expand(len(x), -1, -1)], dim=1)
        x = visual.transformer(visual.ln_pre(x))
        pooled, _ = visual._pool(x[:, :num_tokens])
        return pooled if visual.proj is None else pooled @ visual.proj

    def encode_text(self, tokens: Tensor, prompts: Tensor | None = None) -> Tensor:
        """Encode captions, with prompts at positions 1..M after the start token.

        A caption that no longer fits is cut and keeps its end token. Positions behind the longest caption of
        the batch are not computed: under the causal mask they cannot reach the end token, so this is exact.

        Args:
            tokens: (B, L) int64 from the model's tokenizer, L at most `context_length`.
            prompts: (M, text_width), or None for plain CLIP.

        Returns:
            (B, embed_dim) features, not normalised.

        Raises:
            ValueError: if the tokens or the prompts are longer than the context.
        """
        text = self._text
        num_prompts = 0 if prompts is None else len(prompts)
        tokens, ends = self._fit(tokens, num_prompts)
        dtype = text.transformer.get_cast_dtype()
        x = text.token_embedding(tokens).to(dtype)  # (B, L', Dt)
        if prompts is not None:
            x = torch.cat([x[:, :1], prompts.to(dtype).expand(len(x), -1, -1), x[:, 1:]], dim=1)
        length = x.shape[1]
        x = x + text.positional_embedding[:length].to(dtype)
        x = text.transformer(x, attn_mask=text.attn_mask[:length, :length])
        pooled = text.ln_final(x[torch.arange(len(x), device=x.device), ends + num_prompts])
        if isinstance(text.text_projection, nn.Linear):
            return text.text_projection(pooled)
        return pooled if text.text_projection is None else pooled @ text.text_projection

    def _fit(self, tokens: Tensor, num_prompts: int) -> tuple[Tensor, Tensor]:
        """Cut captions (B, L) so that prompts fit; return them, trimmed, and the place of each end token."""
        room = self.context_length - num_prompts
        if tokens.ndim != 2 or tokens.shape[1] > self.context_length:
            raise ValueError(f"tokens have shape {tuple(tokens.shape)}; (batch, at most {self.context_length}) fits")
        if room < 2:
            raise ValueError(f"{num_prompts} prompts leave no room for text; {self.context_length - 2} at most fit")
        if not len(tokens):
            return tokens[:, :1], tokens.new_zeros(0)
        is_end = tokens == self._eos_id if self._pool_type == "eos" else tokens
        ends = is_end.long().argmax(dim=1)
        end_tokens = tokens.gather(1, ends[:, None])
        ends = ends.clamp(max=room - 1)
        tokens = tokens.scatter(1, ends[:, None], end_tokens)
        return tokens[:, : int(ends.max()) + 1], ends


def _check_vision(visual: nn.Module) -> None:
    if not isinstance(visual, VisionTransformer):
        raise ValueError(
            f"the vision tower {type(visual).__name__} takes no prompts; choose a plain ViT of open_clip, "
            "such as ViT-B-32"
        )
    if visual.image_size[0] != visual.image_size[1]:
        raise ValueError(f"the vision tower wants pictures of {visual.image_size}; only square ones are supported")


def _check_text(text: nn.Module) -> None:
    """Refuse text towers in which a token behind the caption would change the features."""
    pool_type = getattr(text, "pool_type", getattr(text, "text_pool_type", None))
    problem = None
    if not isinstance(text, CLIP | TextTransformer):
        problem = f"is a {type(text).__name__}"
    elif text.attn_mask is None:
        problem = "attends in both directions"
    elif getattr(text, "cls_emb", None) is not None:
        problem = "pools from a class token"
    elif pool_type not in ("argmax", "eos"):
        problem = f"pools by {pool_type!r}"
    if problem:
        raise ValueError(
            f"the text tower {problem} and takes no prompts; choose one that is causal and pooled at its end "
            "token, such as ViT-B-32"
        )
