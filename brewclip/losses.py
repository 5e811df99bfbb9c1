"""InfoNCE between images and speech (outer) and between sound and text (inner), over the global batch.

A worker computes its own rows of the logits. The logits of a large batch are computed in blocks of rows and never
stored as a whole: their gradients are computed in the forward pass, together with the loss.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from brewclip.models.brewclip import Features

_MAX_LOGITS = 1 << 24  # in memory at once, 64 MiB; a batch with at most as many uses the plain formula


def info_nce(queries: Tensor, keys: Tensor, targets: Tensor, keep: Tensor, logit_scale: Tensor) -> Tensor:
    """Compute InfoNCE of each query against all keys, by cosine similarity.

    Source: BrewCLIP, equation 1.

    Args:
        queries: (n, D), not necessarily normalised.
        keys: (N, D), not necessarily normalised.
        targets: (n,) int64, index of each query's match among the keys.
        keep: (n, N) bool; False excludes a key from the denominator. True at every target.
        logit_scale: log(1 / tau).

    Returns:
        (n,) loss per row, float32.
    """
    # At a scale of 100, bfloat16 would round logits by up to 0.5.
    with torch.autocast(queries.device.type, enabled=False):
        similarity = F.normalize(queries.float(), dim=-1) @ F.normalize(keys.float(), dim=-1).T
        logits = (logit_scale.float().exp() * similarity).masked_fill(~keep, -torch.inf)
        return F.cross_entropy(logits, targets, reduction="none")


def brewclip_loss(
    features: Features,
    image_ids: Tensor,
    logit_scale: Tensor,
    alpha: float,
    gather: Callable[[Tensor], Tensor],
    reduction: str = "sum",
    *,
    separate_channels: bool = False,
    all_ids: Tensor | None = None,
    first_row: int = 0,
) -> dict[str, Tensor]:
    """Compute alpha * inner + (1 - alpha) * outer of this worker's rows.

    Each value is this worker's share, a sum over its rows divided by the number of rows of all workers;
    shares, and the gradients of their parameters, are summed over workers. With only one channel there is
    no inner loss: `inner` is 0 and `loss` equals `outer`, as (1 - alpha) would only scale down the step. Separate
    channels are trained each alone: `loss` and `outer` are the sum of the outer losses of text and sound, F_L is not
    used, and there is no inner loss.

    Source: BrewCLIP, equation 2; the mean of the two directions follows the authors' released code.

    Args:
        features: features of this worker's n rows.
        image_ids: (n,) int64; rows of the same image are never each other's negatives.
        logit_scale: log(1 / tau).
        alpha: weight of the inner loss, in [0, 1].
        gather: rows of this worker -> rows of all workers, in the same order on all, such as a
            `distributed.RowGather`; the identity for one worker.
        reduction: `sum` or `mean` of the losses of the two directions.
        separate_channels: train each channel against the images, for a fusion whose weights are chosen afterwards.
        all_ids: (N,) image_ids of all workers' rows; None for one worker.
        first_row: place of this worker's rows among all.

    Returns:
        Scalars: "loss" with gradient; "outer" and "inner"; "effective_negatives", the mean number of
            negatives per row.
    """
    # One collective for all features.
    parts = [part.float() for part in features if part is not None]
    gathered = iter(gather(torch.stack(parts, dim=1)).unbind(1))
    everyone = Features._make(None if part is None else next(gathered) for part in features)
    all_ids = image_ids if all_ids is None else all_ids
    targets = torch.arange(first_row, first_row + len(image_ids), device=image_ids.device)

    num_rows = len(all_ids)
    is_small = len(targets) * num_rows <= _MAX_LOGITS
    keep = _keep_mask(image_ids, all_ids, targets) if is_small else None
    num_keys = keep.sum() if keep is not None else _count_keys(image_ids, all_ids, targets)

    def rows(queries: Tensor, keys: Tensor) -> Tensor:
        if keep is not None:
            return info_nce(queries, keys, targets, keep, logit_scale)
        return _sum_by_blocks(queries, keys, logit_scale, image_ids, all_ids, targets)

    def both_ways(one: Tensor, all_one: Tensor, other: Tensor, all_other: Tensor) -> Tensor:
        both = (rows(one, all_other) + rows(other, all_one)).sum() / num_rows
        return both / 2 if reduction == "mean" else both

    if features.acoustic is None or features.text is None:
        loss = outer = both_ways(features.image, everyone.image, features.speech, everyone.speech)
        inner = torch.zeros_like(outer)
    else:
        assert everyone.acoustic is not None and everyone.text is not None
        if separate_channels:
            of_sound = both_ways(features.image, everyone.image, features.acoustic, everyone.acoustic)
            loss = outer = of_sound + both_ways(features.image, everyone.image, features.text, everyone.text)
            inner = torch.zeros_like(outer)
        else:
            outer = both_ways(features.image, everyone.image, features.speech, everyone.speech)
            inner = both_ways(features.acoustic, everyone.acoustic, features.text, everyone.text)
            loss = alpha * inner + (1 - alpha) * outer
    return {
        "loss": loss,
        "outer": outer.detach(),
        "inner": inner.detach(),
        "effective_negatives": (num_keys - len(targets)).float() / num_rows,
    }


def loss_of_chance(num_rows: int, reduction: str = "sum", *, separate_channels: bool = False) -> float:
    """Return `brewclip_loss` at chance level: all keys equally likely, and no two rows of the same image.

    Inner and outer loss each consist of two cross-entropies over all rows, and their weights add up to one.

    Args:
        num_rows: number of pairs of all workers.
        reduction: `sum` or `mean` of the losses of the two directions.
        separate_channels: whether both channels are trained, each alone.
    """
    return (1 if reduction == "mean" else 2) * math.log(num_rows) * (2 if separate_channels else 1)


def _keep_mask(image_ids: Tensor, all_ids: Tensor, targets: Tensor) -> Tensor:
    """Return (n, N) bool: each row's match and the keys of other images."""
    is_target = torch.arange(len(all_ids), device=image_ids.device) == targets[:, None]
    return (image_ids[:, None] != all_ids) | is_target


def _iter_blocks(image_ids: Tensor, all_ids: Tensor, targets: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield blocks of rows, each with its mask of keys in the denominator."""
    size = max(1, _MAX_LOGITS // len(all_ids))
    for start in range(0, len(targets), size):
        rows = slice(start, start + size)
        yield rows, _keep_mask(image_ids[rows], all_ids, targets[rows])


def _count_keys(image_ids: Tensor, all_ids: Tensor, targets: Tensor) -> Tensor:
    return torch.stack([keep.sum() for _, keep in _iter_blocks(image_ids, all_ids, targets)]).sum()


def _sum_by_blocks(
    queries: Tensor, keys: Tensor, logit_scale: Tensor, image_ids: Tensor, all_ids: Tensor, targets: Tensor
) -> Tensor:
    """Return the sum of `info_nce` over all rows, a scalar; memory grows with n + N, not with n * N."""
    with torch.autocast(queries.device.type, enabled=False):
        unit_queries, unit_keys = F.normalize(queries.float(), dim=-1), F.normalize(keys.float(), dim=-1)
        return _InfoNCESum.apply(unit_queries, unit_keys, logit_scale.float(), image_ids, all_ids, targets)


class _InfoNCESum(torch.autograd.Function):
    """InfoNCE of unit vectors, summed over rows; gradients are computed with the loss and saved for backward."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        logit_scale: Tensor,
        image_ids: Tensor,
        all_ids: Tensor,
        targets: Tensor,
    ) -> Tensor:
        scale, total = logit_scale.exp(), torch.zeros_like(logit_scale)
        to_queries, to_keys = torch.empty_like(queries), torch.zeros_like(keys)
        for rows, keep in _iter_blocks(image_ids, all_ids, targets):
            scaled = queries[rows] * scale
            logits = (scaled @ keys.T).masked_fill_(~keep, -torch.inf)
            log_sums, matches = logits.logsumexp(dim=1, keepdim=True), targets[rows, None]
            total += (log_sums - logits.gather(1, matches)).sum()
            if any(ctx.needs_input_grad):  # of the logits: softmax minus 1 at the match
                gradient = logits.sub_(log_sums).exp_().scatter_add_(1, matches, torch.full_like(log_sums, -1.0))
                to_queries[rows] = (gradient @ keys) * scale
                to_keys.addmm_(gradient.T, scaled)
        # A logit is scale * cosine, so the gradient of log(scale) is the sum of queries times their gradient.
        ctx.save_for_backward(to_queries, to_keys, (to_queries * queries).sum())
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        to_queries, to_keys, to_scale = ctx.saved_tensors
        return gradient * to_queries, gradient * to_keys, gradient * to_scale, None, None, None
