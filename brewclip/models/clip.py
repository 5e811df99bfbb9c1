"""Frozen CLIP with prompt vectors at the input of both towers.

Without prompts the features are those of open_clip; with them, gradients flow through the frozen towers to
the prompts. Features are taken at one position, so the last block computes only that one; attention is computed without
the transposed copies of `nn.MultiheadAttention`. Both are exact, and take 30 % off a step of the scenes CLIP on a CPU.
"""

from typing import Any, Self

import torch
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transformer import ResidualAttentionBlock, TextTransformer, Transformer, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class PromptedCLIP(nn.Module):
    """Any open_clip ViT with a causal text transformer; frozen, and always in eval mode.

    Source: open_clip 3.3 for the towers; BrewCLIP, section 3.3, and its released code for the prompts'
        positions.

    Args:
        clip: the open_clip model; its parameters are frozen in place.
        recompute: keep the input of each block for the backward pass, and compute the rest again there: gradients are
            the same, at the price of a third more operations.

    Raises:
        ValueError: if the architecture cannot take prompts (ResNet or timm vision, Hugging Face,
            bidirectional or class-token text).
    """

    def __init__(self, clip: nn.Module, *, recompute: bool = False) -> None:
        super().__init__()
        problem = why_no_prompts(clip)
        if problem:
            raise ValueError(f"{problem}, or train an adapter: --model.adaptation adapter")
        self.clip: Any = clip
        self.recompute = recompute
        text: Any = self._text
        visual: Any = clip.visual
        self._pool_type = text.pool_type if isinstance(text, TextTransformer) else text.text_pool_type
        self._eos_id = text.eos_id if isinstance(text, TextTransformer) else text.text_eos_id
        self.context_length: int = text.context_length
        self.text_width: int = text.token_embedding.weight.shape[1]
        self.vision_width: int = visual.class_embedding.shape[0]
        self.embed_dim: int = visual.output_dim
        self.image_size: int = visual.image_size[0]
        self.requires_grad_(False)
        self.eval()

    @property
    def _text(self) -> Any:
        """Module that holds the text tower's parts; a property, so that no weight is registered twice."""
        return self.clip.text if isinstance(self.clip, CustomTextCLIP) else self.clip

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: a frozen tower has no dropout and no statistics to learn."""
        return super().train(False)

    def encode_image(self, images: Tensor, prompts: Tensor | None = None) -> Tensor:
        """Encode images, with prompts after the patches.

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
        x = visual.ln_pre(x)
        if visual.attn_pool is None and visual.pool_type == "tok":
            classes_at = torch.zeros(len(x), dtype=torch.long, device=x.device)
            x = _run_to_one_position(visual.transformer, x, classes_at, recompute=self.recompute)
        else:
            x = visual.transformer(x)[:, :num_tokens]
        pooled, _ = visual._pool(x)
        return pooled if visual.proj is None else pooled @ visual.proj

    def encode_text(self, tokens: Tensor, prompts: Tensor | None = None, num_tokens: int = 0) -> Tensor:
        """Encode captions, with prompts at positions 1..M after the start token.

        A caption that no longer fits is truncated and keeps its end token. Positions after the longest caption of
        the batch are not computed: under the causal mask they cannot reach the end token, so this is exact.

        Args:
            tokens: (B, L) int64 from the model's tokenizer, L at most `context_length`.
            prompts: (M, text_width), or None for plain CLIP.
            num_tokens: at least those of the longest caption; 0 reads them from the tokens, for which the host waits.

        Returns:
            (B, embed_dim) features, not normalised.

        Raises:
            ValueError: if the tokens or the prompts are longer than the context.
        """
        text = self._text
        num_prompts = 0 if prompts is None else len(prompts)
        tokens, ends = self._fit(tokens, num_prompts, num_tokens)
        dtype = text.transformer.get_cast_dtype()
        x = text.token_embedding(tokens).to(dtype)  # (B, L', Dt)
        if prompts is not None:
            x = torch.cat([x[:, :1], prompts.to(dtype).expand(len(x), -1, -1), x[:, 1:]], dim=1)
        length = x.shape[1]
        x = x + text.positional_embedding[:length].to(dtype)
        at = ends + num_prompts
        x = _run_to_one_position(text.transformer, x, at, is_causal=True, recompute=self.recompute)
        pooled = text.ln_final(x[:, 0])
        if isinstance(text.text_projection, nn.Linear):
            return text.text_projection(pooled)
        return pooled if text.text_projection is None else pooled @ text.text_projection

    def _fit(self, tokens: Tensor, num_prompts: int, num_tokens: int = 0) -> tuple[Tensor, Tensor]:
        """Truncate captions (B, L) so that prompts fit; return them, trimmed, and the index of each end token."""
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
        return tokens[:, : min(num_tokens, room) or int(ends.max()) + 1], ends


def _run_to_one_position(
    transformer: Transformer, x: Tensor, positions: Tensor, *, is_causal: bool = False, recompute: bool = False
) -> Tensor:
    """Run a tower's blocks, the last one at one position only.

    Source: `open_clip.transformer.Transformer`.

    Args:
        transformer: the tower.
        x: (B, L, D).
        positions: (B,) int64, the position of each row.
        is_causal: whether a position attends to none after it.
        recompute: see `PromptedCLIP`; nothing is computed again where no gradient flows.

    Returns:
        (B, 1, D).
    """
    row, length = (torch.arange(len(x), device=x.device), positions), x.shape[1]
    # Blocks of another kind, and those with a hook, are called as a whole.
    if any(type(block) is not ResidualAttentionBlock or block._forward_hooks for block in transformer.resblocks):
        mask = torch.full((length, length), -torch.inf, device=x.device).triu_(1) if is_causal else None
        return transformer(x, attn_mask=mask)[row][:, None]
    *blocks, last = transformer.resblocks
    for block in blocks:
        if recompute and x.requires_grad:  # there is no dropout whose generator would have to be restored
            x = checkpoint(_run_block, block, x, is_causal, use_reentrant=False, preserve_rng_state=False)
        else:
            x = _run_block(block, x, is_causal)
    keys = last.ln_1(x)
    reachable = (torch.arange(length, device=x.device) <= positions[:, None])[:, None, None] if is_causal else None
    return _add_to(x[row][:, None], last, _attend(last.attn, keys[row][:, None], keys, mask=reachable))


def _run_block(block: ResidualAttentionBlock, x: Tensor, is_causal: bool) -> Tensor:
    keys = block.ln_1(x)
    return _add_to(x, block, _attend(block.attn, keys, keys, is_causal=is_causal))


def _attend(
    attention: nn.MultiheadAttention,
    queries: Tensor,
    keys: Tensor,
    *,
    mask: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    """Attend from queries (B, l, D) to keys (B, L, D); `mask` (B, 1, l, L) is True where attention is allowed."""
    weight, bias, width = attention.in_proj_weight, attention.in_proj_bias, keys.shape[-1]
    if queries is keys:
        projected = F.linear(keys, weight, bias).chunk(3, dim=-1)
    else:
        query = F.linear(queries, weight[:width], bias[:width])
        projected = (query, *F.linear(keys, weight[width:], bias[width:]).chunk(2, dim=-1))
    q, k, v = (part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in projected)  # (B, H, L, d)
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal)
    return attention.out_proj(attended.transpose(1, 2).flatten(2))


def _add_to(x: Tensor, block: ResidualAttentionBlock, attended: Tensor) -> Tensor:
    """Add a block's attention and feed-forward to x."""
    x = x + block.ls_1(attended)
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def why_no_prompts(clip: nn.Module) -> str:
    """Return why a model cannot take prompts and what can, empty if it does."""
    if not isinstance(clip, CLIP | CustomTextCLIP):
        return f"cannot put prompts into a {type(clip).__name__}; give an open_clip CLIP model"
    return _problem_of_vision(clip.visual) or _problem_of_text(clip.text if isinstance(clip, CustomTextCLIP) else clip)


def _problem_of_vision(visual: nn.Module) -> str:
    if not isinstance(visual, VisionTransformer):
        return (
            f"the vision tower {type(visual).__name__} takes no prompts; choose a plain ViT of open_clip, "
            "such as ViT-B-32"
        )
    if visual.image_size[0] != visual.image_size[1]:
        return f"the vision tower wants images of {visual.image_size}; only square ones are supported"
    return ""


def _problem_of_text(text: nn.Module) -> str:
    """Find text towers in which a token after the caption would change the features."""
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
    if problem is None:
        return ""
    return (
        f"the text tower {problem} and takes no prompts; choose one that is causal and pooled at its end token, "
        "such as ViT-B-32"
    )
