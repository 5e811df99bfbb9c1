"""Collectives over workers: rows, gradients, sums, objects; each works on one worker without a process group."""

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

Item = TypeVar("Item")


def world_rank() -> int:
    """Return this worker's rank, 0 without a process group."""
    return dist.get_rank() if _is_distributed() else 0


def world_size() -> int:
    """Return the number of workers, 1 without a process group."""
    return dist.get_world_size() if _is_distributed() else 1


def gather_rows(x: Tensor) -> Tensor:
    """Concatenate the rows of all workers in rank order, with gradient.

    A worker's gradient of its rows is the sum of the gradients of all workers' losses. All workers must call this
    together, and run its backward together.

    Args:
        x: (n, ...); n may differ between workers and be 0, the other dimensions and the dtype are equal on all.

    Returns:
        (N, ...), N the sum of all n.
    """
    return _GatherRows.apply(x) if _is_distributed() else x


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum every parameter's gradient over all workers, in one all-reduce.

    A parameter without gradient counts as zero and has one afterwards, so that workers agree whatever part of the model
    each of them used.

    Args:
        parameters: in the same order on all workers; on one device.
    """
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    if not _is_distributed() or not parameters:
        return
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flat = torch.cat([gradient.float().flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for parameter, total in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = total.view_as(parameter).to(parameter.dtype)


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _all_counts(num_rows: int, device: torch.device) -> list[int]:
    counts = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=device)
    counts[dist.get_rank()] = num_rows
    dist.all_reduce(counts)
    return counts.tolist()


class _GatherRows(torch.autograd.Function):
    """all_gather of tensors of unequal length, padded to the longest, as the backends need equal shapes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        counts = _all_counts(len(x), x.device)
        padded = x.new_zeros(max(counts), *x.shape[1:])
        padded[: len(x)] = x
        pieces = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(pieces, padded)
        ctx.start = sum(counts[: dist.get_rank()])
        ctx.stop = ctx.start + len(x)
        return torch.cat([piece[:count] for piece, count in zip(pieces, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.start : ctx.stop]


def agree_on_problem(problem: str) -> str:
    """Return the problem of the lowest rank that has one, the same on all workers; empty if none has one.

    Costs one small all-reduce if there is none. All workers must call this together.
    """
    if not _is_distributed():
        return problem
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    flag = torch.tensor(int(bool(problem)), device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    if not flag.item():
        return ""
    problems: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    return next(text for text in problems if text)


def sum_over_workers(values: Tensor) -> Tensor:
    """Return the elementwise sum over all workers; all must call this together."""
    total = values.detach().clone()
    if _is_distributed():
        dist.all_reduce(total)
    return total


def gather_to_first(item: Item) -> list[Item]:
    """Return the items of all workers in rank order on rank 0, and an empty list elsewhere.

    All workers must call this together; items are pickled, between workers of one run only.
    """
    if not _is_distributed():
        return [item]
    items: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(item, items, dst=0)
    return items or []
