"""Collectives over workers: rows, gradients, sums, objects; each works on one worker without a process group."""

import functools
from collections.abc import Sequence
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


class RowGather:
    """Rows of all workers in rank order; each worker has the same number of them in every step.

    The numbers are exchanged once, here, so that no step waits for them. All workers must build it together, and call
    each of its methods together.

    Args:
        num_rows: of this worker, may be 0.
        device: of the tensors that are gathered.

    Attributes:
        counts: rows of each worker.
        first_row: of this worker among all.
    """

    def __init__(self, num_rows: int, device: torch.device) -> None:
        self.counts = _all_counts(num_rows, device) if _is_distributed() else [num_rows]
        self.first_row = sum(self.counts[: world_rank()])

    def __call__(self, x: Tensor) -> Tensor:
        """Concatenate the rows of all workers, with gradient.

        A worker's gradient of its rows is the sum of the gradients of all workers' losses, so all workers must run
        the backward together.

        Args:
            x: (n, ...), n as at the start; the other dimensions and the dtype are equal on all workers.

        Returns:
            (N, ...), N the sum of all n.
        """
        return _GatherRows.apply(x, self.counts) if _is_distributed() else x

    def start(self, numbers: Tensor, raised: bool) -> "SharedNumbers":
        """Start to gather one number of each row, and whether any worker raised its flag, in one transfer.

        Args:
            numbers: (n,) int64.
            raised: the flag of this worker.
        """
        if not _is_distributed():
            return SharedNumbers(numbers[None], [len(numbers)], None, raised)
        row = numbers.new_full((max(self.counts) + 1,), int(raised))
        row[: len(numbers)] = numbers
        gathered = row.new_empty(len(self.counts) * len(row))
        work = dist.all_gather_into_tensor(gathered, row, async_op=True)
        return SharedNumbers(gathered.view(len(self.counts), -1), self.counts, work)


class SharedNumbers:
    """What `RowGather.start` gathers, on its way.

    On a GPU the flags are copied to the host in a stream of their own: reading them waits for the transfer alone, while
    the device is busy with what was started behind it.
    """

    def __init__(self, gathered: Tensor, counts: list[int], work: dist.Work | None, raised: bool = False) -> None:
        self._gathered, self._counts, self._work, self._raised = gathered, counts, work, raised
        self._flags, self._copied = gathered[:, -1], None
        if work is not None and gathered.is_cuda:
            with torch.cuda.stream(torch.cuda.Stream(gathered.device)):
                work.wait()
                self._flags = torch.empty(len(counts), dtype=gathered.dtype, pin_memory=True)
                self._flags.copy_(gathered[:, -1], non_blocking=True)
                self._copied = torch.cuda.current_stream().record_event()

    def numbers(self) -> Tensor:
        """Return the numbers of all workers in rank order, (N,) on the device."""
        if self._work is not None:
            self._work.wait()
        return torch.cat([row[:count] for row, count in zip(self._gathered, self._counts, strict=True)])

    def anyone_raised(self) -> bool:
        """Return whether any worker raised its flag; the same on all of them."""
        if self._work is None:
            return self._raised
        if self._copied is not None:
            self._copied.synchronize()
        else:
            self._work.wait()
        return bool(self._flags.any())


class GradientSum:
    """Sums gradients over all workers, each group as soon as the backward pass has computed it.

    A group is one all-reduce, in the background of the rest of the backward pass. A parameter without gradient counts
    as zero and has one afterwards, so that workers agree whatever part of the model each of them used.

    Args:
        groups: parameters in the order in which the backward pass completes them; the same on all workers, on one
            device.
    """

    def __init__(self, groups: Sequence[Sequence[nn.Parameter]]) -> None:
        self._groups = [list(group) for group in groups if group] if _is_distributed() else []
        self._missing = [len(group) for group in self._groups]
        self._started: list[tuple[Tensor, dist.Work]] = []
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(functools.partial(self._arrived, number))
            for number, group in enumerate(self._groups)
            for parameter in group
        ]

    def finish(self) -> None:
        """Wait for the sums, after each backward pass; they are then the gradients."""
        self._start_groups(all_of_them=True)
        for group, (flat, work) in zip(self._groups, self._started, strict=True):
            work.wait()
            for parameter, total in zip(group, flat.split([one.numel() for one in group]), strict=True):
                parameter.grad = total.view_as(parameter).to(parameter.dtype)
        self._started, self._missing = [], [len(group) for group in self._groups]

    def close(self) -> None:
        """Leave the gradients of later backward passes alone."""
        for hook in self._hooks:
            hook.remove()

    def _arrived(self, number: int, parameter: Tensor) -> None:
        self._missing[number] -= 1
        self._start_groups()

    def _start_groups(self, all_of_them: bool = False) -> None:
        """Start the transfers of complete groups, in their order: workers may complete them in different ones."""
        for number in range(len(self._started), len(self._groups)):
            if self._missing[number] and not all_of_them:
                return
            gradients = [one.grad if one.grad is not None else torch.zeros_like(one) for one in self._groups[number]]
            flat = torch.cat([gradient.float().flatten() for gradient in gradients])
            work = dist.all_reduce(flat, async_op=True)
            assert work is not None
            self._started.append((flat, work))


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
    def forward(ctx: Any, x: Tensor, counts: list[int]) -> Tensor:
        padded = _pad_rows(x, max(counts)).contiguous()
        gathered = padded.new_empty(len(counts) * len(padded), *x.shape[1:])
        dist.all_gather_into_tensor(gathered, padded)
        ctx.counts = counts
        return _without_padding(gathered, counts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # gloo computes a reduce-scatter as a sum of everything and a copy.
        return sum_own_rows(gradient.contiguous(), ctx.counts, scatter=dist.get_backend() != "gloo"), None


def sum_own_rows(x: Tensor, counts: list[int], *, scatter: bool) -> Tensor:
    """Return the sum over all workers of this worker's rows.

    Args:
        x: (N, ...), the rows of all workers, in rank order.
        counts: rows of each worker.
        scatter: reduce-scatter, which sends half the bytes of an all-reduce.
    """
    rank = dist.get_rank()
    if not scatter:
        total = x.clone()
        dist.all_reduce(total)
        return total.split(counts)[rank]
    blocks = torch.cat([_pad_rows(rows, max(counts)) for rows in x.split(counts)])
    own = x.new_empty(max(counts), *x.shape[1:])
    dist.reduce_scatter_tensor(own, blocks)
    return own[: counts[rank]]


def _pad_rows(x: Tensor, num_rows: int) -> Tensor:
    return x if len(x) == num_rows else torch.cat([x, x.new_zeros(num_rows - len(x), *x.shape[1:])])


def _without_padding(gathered: Tensor, counts: list[int]) -> Tensor:
    """Return the rows of all workers, (N, ...), of blocks of equal length."""
    longest = max(counts)
    if min(counts) == longest:
        return gathered
    return torch.cat([block[:count] for block, count in zip(gathered.split(longest), counts, strict=True)])


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
