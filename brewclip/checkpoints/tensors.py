"""Tensors of a checkpoint as safetensors bytes: the header is checked before the file is read."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from brewclip.checkpoints.facts import MODEL, OPTIMIZER, is_int, json_of, one_line, short
from brewclip.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_LARGEST_HEADER_BYTES = 2**24
_LARGEST_SIZE = 2**31
_MOMENTS = frozenset({"exp_avg", "exp_avg_sq", "step"})


def check_header(head: bytes, size: int, url: str) -> dict[str, tuple[int, ...]]:
    """Compare what a safetensors file says of itself with its size, before it is read.

    Args:
        head: its first bytes, all of the header if that is not longer than `_LARGEST_HEADER_BYTES`.
        size: of the whole file, in bytes.
        url: of it, for messages.

    Returns:
        The shape of each tensor; all are float32.

    Raises:
        CheckpointError: if it is no safetensors file of float32 tensors that fill it exactly.
    """
    length = int.from_bytes(head[:8], "little")
    if size < 8 or length > min(size - 8, _LARGEST_HEADER_BYTES):
        raise CheckpointError(f"{url} is damaged: it is no safetensors file of {size} bytes")
    header = json_of(head[8 : 8 + length], f"the header of {url}")
    if not isinstance(header, dict):
        raise CheckpointError(f"{url} is damaged: its header is a {type(header).__name__}")
    header.pop("__metadata__", None)
    shapes, spans = {}, []
    for name, entry in header.items():
        shapes[name], span = _checked_entry(entry, f"{url}: tensor {name[:80]!r}")
        spans.append(span)
    ends = [0, *(end for _, end in sorted(spans))]
    if [begin for begin, _ in sorted(spans)] != ends[:-1] or ends[-1] != size - 8 - length:
        raise CheckpointError(f"{url} is damaged: its tensors do not fill its {size} bytes exactly")
    return shapes


def header_bytes(head: bytes) -> int:
    """Return how many bytes of a safetensors file its header ends at, by its first eight; never above a bound."""
    return 8 + min(int.from_bytes(head[:8], "little"), _LARGEST_HEADER_BYTES)


def tensors_from_bytes(data: bytes, url: str) -> "dict[str, Tensor]":
    """Read a safetensors file whose header was checked.

    Raises:
        CheckpointError: if it cannot be read all the same.
    """
    from safetensors.torch import load

    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{url} is damaged: {one_line(error)}") from None


def check_optimizer(model: Mapping[str, tuple[int, ...]], optimizer: Mapping[str, tuple[int, ...]], url: str) -> None:
    """Check that the shapes of Adam's state match the model's tensors; an empty state is accepted.

    Names of the state are in the order of the model's tensors, the state itself in that of Adam's groups (prompts,
    scale, the rest), so a name may have the shape of another tensor; all shapes together are the model's.

    Raises:
        CheckpointError: if they belong to different models.
    """
    for entry, shape in optimizer.items():
        name, _, moment = entry.rpartition("|")
        if name not in model or moment not in _MOMENTS:
            raise CheckpointError(f"{url}: {OPTIMIZER} holds {entry[:80]!r}, which is nothing of {MODEL}")
        wanted = () if moment == "step" else optimizer.get(f"{name}|exp_avg", shape)
        if shape != wanted:
            raise CheckpointError(f"{url}: {OPTIMIZER} holds {entry[:80]!r} of shape {shape}, not {wanted}")
        missing = next((other for other in sorted(_MOMENTS) if f"{name}|{other}" not in optimizer), None)
        if missing:
            raise CheckpointError(f"{url}: {OPTIMIZER} lacks '{name[:80]}|{missing}'")
    foreign = Counter(shape for entry, shape in optimizer.items() if entry.endswith("|exp_avg"))
    foreign -= Counter(model.values())
    if foreign:
        shape = next(iter(foreign))
        raise CheckpointError(f"{url}: {OPTIMIZER} holds state of shape {shape}, which {MODEL} has no tensor for")


def _checked_entry(entry: Any, what: str) -> tuple[tuple[int, ...], tuple[int, int]]:
    """Return shape and span in bytes of one tensor of a safetensors header."""
    known = entry if isinstance(entry, dict) else {}
    shape, span = _sizes_of(known.get("shape")), _sizes_of(known.get("data_offsets"))
    if shape is None or span is None or len(span) != 2 or len(shape) > 8 or any(n > _LARGEST_SIZE for n in shape):
        raise CheckpointError(f"{what} is damaged: {short(entry)} describes no tensor")
    if entry.get("dtype") != "F32":
        raise CheckpointError(f"{what} is of type {short(entry.get('dtype'))}: a checkpoint holds F32 only")
    if span[1] - span[0] != 4 * math.prod(shape):
        raise CheckpointError(f"{what} is damaged: shape {shape} does not take bytes {span[0]} to {span[1]}")
    return tuple(shape), (span[0], span[1])


def _sizes_of(value: Any) -> list[int] | None:
    return value if isinstance(value, list) and all(is_int(n) and n >= 0 for n in value) else None
