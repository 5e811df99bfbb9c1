"""Adopted tars: which samples a foreign tar holds, and at which bytes, so that it is read unchanged.

For a shard `train-00-000007.tar` of the table, `members/train-00-000007.jsonl` has a line for each of its samples:

    {"key": "000071-0", "image": [1536, 9021, "png"], "audio": [9728, 52012, "wav"], "metadata": {"image_id": ...}}

The numbers are the first byte and the one after the last within the tar. The required fields of our own samples
(image_id, caption_id, split, duration_seconds) are stored here, as such tars lack them.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import orjson

from brewclip.data.schema import BadSample, Sample

Span = tuple[int, int, str]
"""First byte, the byte after the last, both within the tar, and the extension of the member."""


class AdoptedSample(NamedTuple):
    """One sample of an adopted tar.

    Attributes:
        key: ours, not the tar's: no dot, no slash.
        metadata: as in `Sample`.
        image: position of the image, or None for a recording alone.
        audio: position of the recording.
    """

    key: str
    metadata: dict[str, Any]
    image: Span | None
    audio: Span


def members_name(shard: str) -> str:
    """Return the name of the object that lists the members of a shard."""
    return f"members/{shard.removesuffix('.tar')}.jsonl"


def pack_members(samples: Iterable[AdoptedSample]) -> bytes:
    """Return the list of members as it is stored; equal samples give equal bytes."""
    rows = (orjson.dumps(sample._asdict(), option=orjson.OPT_SORT_KEYS) for sample in samples)
    return b"".join(row + b"\n" for row in rows)


def parse_members(data: bytes) -> list[AdoptedSample]:
    """Return the list of members that `pack_members` stored."""
    rows = (orjson.loads(line) for line in data.splitlines())
    return [
        AdoptedSample(row["key"], row["metadata"], row["image"] and tuple(row["image"]), tuple(row["audio"]))
        for row in rows
    ]


def slice_samples(
    parts: Iterable[memoryview | BadSample], members: Sequence[AdoptedSample], starts: Sequence[int]
) -> Iterator[Sample | BadSample]:
    """Yield the samples in some bytes of an adopted tar, as views of these bytes.

    Args:
        parts: the bytes of each sample, or the error of one that is damaged.
        members: content of each of them.
        starts: where the bytes of each begin within the tar.
    """
    for part, member, start in zip(parts, members, starts, strict=False):
        if isinstance(part, BadSample):
            yield part
        else:
            yield Sample(
                member.key, member.metadata, _slice(part, member.image, start), _slice(part, member.audio, start)
            )


def _slice(part: memoryview, span: Span | None, start: int) -> Any:
    return None if span is None else part[span[0] - start : span[1] - start]
