"""InfoNCE between pictures and speech (outer) and between sound and text (inner), over the global batch."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from brewclip.distributed import world_rank
from brewclip.models.brewclip import Features


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
) -> dict[str, Tensor]:
    """Compute alpha * inner + (1 - alpha) * outer of this worker's rows.

    Each value is this worker's share, a sum over its rows divided by the number of rows of all workers:
    shares, and the gradients of their parameters, are summed over workers. Without both channels there is
    nothing to keep
    together: `inner` is 0 and `loss` is the whole of `outer`, as (1 - alpha) would only shrink the step.

    Source: BrewCLIP, equation 2.

    Args:
        features: of this worker's n rows.
        image_ids: (n,) int64; two rows of one picture are never each other's negatives.
        logit_scale: log(1 / tau).
        alpha: weight of the inner loss, in [0, 1].
        gather: rows of this worker -> rows of all workers, in an order common to all, such as
            `distributed.gather_rows`; the identity for one worker.

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

    is_target = torch.arange(len(all_ids), device=image_ids.device) == targets[:, None]
    keep = (image_ids[:, None] != all_ids) | is_target
    num_rows = len(all_ids)

    def both_ways(one: Tensor, all_one: Tensor, other: Tensor, all_other: Tensor) -> Tensor:
        there = info_nce(one, all_other, targets, keep, logit_scale)
        back = info_nce(other, all_one, targets, keep, logit_scale)
        return (there + back).sum() / num_rows

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
        "effective_negatives": (keep.sum() - len(targets)).float() / num_rows,
    }
