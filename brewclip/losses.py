"""InfoNCE between images and speech (outer) and between sound and text (inner), over the global batch.

A worker computes its own rows of the logits. Those of a large batch are computed some rows at a time and never held
as a whole: their gradients are found beside the loss, while the logits are there.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from brewclip.distributed import world_rank
from brewclip.models.brewclip import Features

_MAX_LOGITS = 1 << 24  # held at once, 64 MiB; a batch that has no more takes the plain formula


def info_nce(queries: Tensor, keys: Tensor, targets: Tensor, keep: Tensor, logit_scale: Tensor) -> Tensor:
    """Compute InfoNCE of each query against all keys, by cosine similarity.

    Source: BrewCLIP, equation 1.

    Args:
        queries: (n, D), of any length.
        keys: (N, D), of any length.
        targets: (n,) int64, the place of each query's match among the keys.
        keep: (n, N) bool; False takes a key out of the denominator. True at every target.
        logit_scale: log(1 / tau).

    Returns:
        (n,) the loss of each row, float32.
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
) -> dict[str, Tensor]:
    """Compute alpha * inner + (1 - alpha) * outer of this worker's rows.

    Each value is this worker's share, a sum over its rows divided by the number of rows of all workers:
    shares, and the gradients of their parameters, are summed over workers. Without both channels there is
    nothing to keep
    together: `inner` is 0 and `loss` is the whole of `outer`, as (1 - alpha) would only shrink the step.

    Source: BrewCLIP, equation 2; the mean of the two directions as its authors released it.

    Args:
        features: of this worker's n rows.
        image_ids: (n,) int64; two rows of one image are never each other's negatives.
        logit_scale: log(1 / tau).
        alpha: weight of the inner loss, in [0, 1].
        gather: rows of this worker -> rows of all workers, in an order common to all, such as
            `distributed.gather_rows`; the identity for one worker.
        reduction: `sum` or `mean` of the losses of the two directions.

    Returns:
        Scalars: "loss" with gradient; "outer" and "inner"; "effective_negatives", the mean number of
            negatives of a row.
    """
    # One transfer for all features and one for all whole numbers.
    parts = [part.float() for part in features if part is not None]
    gathered = iter(gather(torch.stack(parts, dim=1)).unbind(1))
    everyone = Features._make(None if part is None else next(gathered) for part in features)
    ranks = torch.full_like(image_ids, world_rank())
    all_ids, all_ranks = gather(torch.stack([image_ids, ranks], dim=1)).unbind(1)
    first_own = (all_ranks < ranks[:1]).sum() if len(ranks) else 0
    targets = torch.arange(len(image_ids), device=image_ids.device) + first_own

    num_rows = len(all_ids)
    is_small = len(targets) * num_rows <= _MAX_LOGITS
    keep = _kept(image_ids, all_ids, targets) if is_small else None
    num_kept = keep.sum() if keep is not None else _count_kept(image_ids, all_ids, targets)

    def rows(queries: Tensor, keys: Tensor) -> Tensor:
        if keep is not None:
            return info_nce(queries, keys, targets, keep, logit_scale)
        return _sum_by_chunks(queries, keys, logit_scale, image_ids, all_ids, targets)

    def both_ways(one: Tensor, all_one: Tensor, other: Tensor, all_other: Tensor) -> Tensor:
        both = (rows(one, all_other) + rows(other, all_one)).sum() / num_rows
        return both / 2 if reduction == "mean" else both

    outer = both_ways(features.image, everyone.image, features.speech, everyone.speech)
    inner = torch.zeros_like(outer)
    loss = outer
    if features.acoustic is not None and features.text is not None:
        assert everyone.acoustic is not None and everyone.text is not None
        inner = both_ways(features.acoustic, everyone.acoustic, features.text, everyone.text)
        loss = alpha * inner + (1 - alpha) * outer
    return {
        "loss": loss,
        "outer": outer.detach(),
        "inner": inner.detach(),
        "effective_negatives": (num_kept - len(targets)).float() / num_rows,
    }


def loss_of_chance(num_rows: int, reduction: str = "sum") -> float:
    """Return what `brewclip_loss` is where every key is as likely as the match, and no two rows share an image.

    Inner and outer loss are two cross-entropies over all rows each, and their weights add up to one.

    Args:
        num_rows: pairs of all workers.
        reduction: `sum` or `mean` of the losses of the two directions.
    """
    return (1 if reduction == "mean" else 2) * math.log(num_rows)


def _kept(image_ids: Tensor, all_ids: Tensor, targets: Tensor) -> Tensor:
    """Return (n, N) bool: each row's match and the keys of other images."""
    is_target = torch.arange(len(all_ids), device=image_ids.device) == targets[:, None]
    return (image_ids[:, None] != all_ids) | is_target


def _iter_chunks(image_ids: Tensor, all_ids: Tensor, targets: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield some rows at a time, and which keys they keep."""
    size = max(1, _MAX_LOGITS // len(all_ids))
    for start in range(0, len(targets), size):
        rows = slice(start, start + size)
        yield rows, _kept(image_ids[rows], all_ids, targets[rows])


def _count_kept(image_ids: Tensor, all_ids: Tensor, targets: Tensor) -> Tensor:
    return torch.stack([keep.sum() for _, keep in _iter_chunks(image_ids, all_ids, targets)]).sum()


def _sum_by_chunks(
    queries: Tensor, keys: Tensor, logit_scale: Tensor, image_ids: Tensor, all_ids: Tensor, targets: Tensor
) -> Tensor:
    """Return the sum of `info_nce` over all rows, a scalar; memory grows with n + N, not with n * N."""
    with torch.autocast(queries.device.type, enabled=False):
        unit_queries, unit_keys = F.normalize(queries.float(), dim=-1), F.normalize(keys.float(), dim=-1)
        return _InfoNCESum.apply(unit_queries, unit_keys, logit_scale.float(), image_ids, all_ids, targets)


class _InfoNCESum(torch.autograd.Function):
    """InfoNCE of unit vectors, summed over rows; the gradients are computed with the loss and kept for the backward."""

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
        for rows, keep in _iter_chunks(image_ids, all_ids, targets):
            scaled = queries[rows] * scale
            logits = (scaled @ keys.T).masked_fill_(~keep, -torch.inf)
            log_sums, matches = logits.logsumexp(dim=1, keepdim=True), targets[rows, None]
            total += (log_sums - logits.gather(1, matches)).sum()
            if any(ctx.needs_input_grad):  # of the logits: softmax, less 1 at the match
                gradient = logits.sub_(log_sums).exp_().scatter_add_(1, matches, torch.full_like(log_sums, -1.0))
                to_queries[rows] = (gradient @ keys) * scale
                to_keys.addmm_(gradient.T, scaled)
        # A logit is its scale times a cosine, so the gradient of the scale's log is what moves along the queries.
        ctx.save_for_backward(to_queries, to_keys, (to_queries * queries).sum())
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        to_queries, to_keys, to_scale = ctx.saved_tensors
        return gradient * to_queries, gradient * to_keys, gradient * to_scale, None, None, None
