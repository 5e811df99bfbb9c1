"""Summary of a scanned tar for the plan of a corpus: counts, hashes, obstacles; small enough for many tars."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from brewclip.containers.sources import SourceTar

_LONG_SECONDS = 30.0  # Whisper reads this much at a time


@dataclass(frozen=True)
class Digest:
    """Summary of one scanned tar.

    Attributes:
        url: where the tar is, without compression.
        size_bytes, sha256: of the uncompressed tar.
        obstacle: why it cannot be adopted, in words; empty if it can.
        damage: where and how it is damaged; empty if it is not.
        num_lost: samples lost after the damaged one, estimated from the bytes that follow.
        num_others: members of none of the expected kinds.
        splits: those that its metadata name.
        rejected: rows of rejected.jsonl.
        sums: over the samples that can be used, as recipes count them.
        keys: (k,) uint64 hashes of the keys of these, each once.
        ids, images: (n,) uint64 hashes of the name (0: none) and the bytes (0: none) of the image of each.
    """

    url: str
    size_bytes: int
    sha256: str
    obstacle: str
    damage: str
    num_lost: int
    num_others: int
    splits: tuple[str, ...]
    rejected: list[dict[str, str]]
    sums: dict[str, int]
    keys: np.ndarray
    ids: np.ndarray
    images: np.ndarray

    @property
    def num_samples(self) -> int:
        """Number of samples that can be used."""
        return len(self.images)


def make_digest(tar: SourceTar, header: dict[str, Any], rows: list[dict[str, Any]]) -> Digest:
    """Build the digest of a scanned tar."""
    good = [row for row in rows if "problem" not in row]
    sums = dict.fromkeys(("audio_ms", "damaged", "longer_than_30_seconds", "without_text", "with_decoder_warnings"), 0)
    for row in good:
        metadata = row["metadata"]
        sums["audio_ms"] += round(1000 * metadata["duration_seconds"])
        sums["damaged"] += "missing_seconds" in metadata or "truncated" in metadata
        sums["longer_than_30_seconds"] += metadata["duration_seconds"] > _LONG_SECONDS
        sums["without_text"] += "text" not in metadata
        sums["with_decoder_warnings"] += "decoder_warnings" in metadata
    return Digest(
        **header,
        splits=tuple(sorted({row["split"] for row in good if "split" in row})),
        rejected=[_rejection(tar, row) for row in rows if "problem" in row],
        sums=sums,
        keys=_hashes(list(dict.fromkeys(row["key"] for row in good))),
        ids=_hashes([row.get("id", "") for row in good]),
        images=np.array([int(row.get("image_hash", "0"), 16) for row in good], np.uint64),
    )


def _rejection(tar: SourceTar, row: dict[str, Any]) -> dict[str, str]:
    return {"key": row["key"], "file": tar.url, "cause": row["problem"], "detail": row["detail"]}


def _hashes(texts: list[str]) -> np.ndarray:
    """Return 64 bits of the hash of each text; 0 for an empty one."""
    digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() if text else bytes(8) for text in texts)
    return np.array([int.from_bytes(digest, "little") for digest in digests], np.uint64)
