"""Copies of batches to a GPU: from pinned memory, in a stream of their own, while the device computes.

A copy from memory that the system may move is done piece by piece while the host waits, whatever `non_blocking` says.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to a device, in the current stream; the host does not wait."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@dataclass(frozen=True)
class Copying(Generic[Item]):
    """What `CopyStream.start` built, and the event after its last copy; None on a CPU."""

    item: Item
    done: torch.cuda.Event | None


class CopyStream:
    """A stream for the copies of coming batches; on a CPU there is none, and nothing is copied.

    Args:
        device: that the batches go to.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def start(self, build: Callable[[], Item]) -> Copying[Item]:
        """Build an item whose copies and conversions run in this stream; in any thread."""
        if self._stream is None:
            return Copying(build(), None)
        with torch.cuda.stream(self._stream):
            return Copying(build(), self._stream.record_event())

    def finish(self, copying: Copying[Item]) -> Item:
        """Let the current stream wait for an item, and return it; the host does not wait."""
        if self._stream is not None and copying.done is not None:
            current = torch.cuda.current_stream(self._stream.device)
            current.wait_event(copying.done)
            for tensor in _iter_tensors(copying.item):
                tensor.record_stream(current)  # its memory is not reused before this stream is done with it
        return copying.item


def _iter_tensors(item: Any) -> Iterator[Tensor]:
    """Yield the tensors of tuples and dataclasses."""
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, tuple):
        for part in item:
            yield from _iter_tensors(part)
    elif dataclasses.is_dataclass(item):
        for field in dataclasses.fields(item):
            yield from _iter_tensors(getattr(item, field.name))
