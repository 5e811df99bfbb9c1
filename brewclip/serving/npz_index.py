"""Image index: one .npz file, searched by cosine similarity, bound to the system that built it."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brewclip.data.storage import open_storage
from brewclip.errors import StorageError, UserError

_QUERIES_AT_ONCE = 64
_LENGTH_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Match:
    """A retrieved image: its 1-based rank, its cosine similarity, and its name in the index."""

    rank: int
    score: float
    name: str


@dataclass(frozen=True)
class Index:
    """An index of embedded images.

    Attributes:
        names: one per image.
        features: (G, E) float32, unit length.
        identity: identity of the system that embedded them, see `Embedder.identity`.
        checkpoint: name or URL that this system was loaded by.
    """

    names: list[str]
    features: NDArray[np.float32]
    identity: dict[str, Any]
    checkpoint: str

    def save(self, path: Path) -> None:
        """Write an .npz file atomically: an existing file is replaced only by a complete one.

        Raises:
            UserError: if it cannot be written.
        """
        facts = json.dumps({"identity": self.identity, "checkpoint": self.checkpoint})
        buffer = io.BytesIO()
        np.savez(buffer, names=np.array(self.names, np.str_), features=self.features, facts=np.array(facts))
        try:
            open_storage(path.absolute().parent.as_uri()).write(path.name, buffer.getvalue())
        except StorageError as error:
            raise UserError(f"index {path} cannot be written: {error}") from None

    @staticmethod
    def load(path: Path) -> "Index":
        """Read a file written by `save`, without pickle.

        Raises:
            UserError: if the file is missing or not an index.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                facts = json.loads(str(arrays["facts"]))
                names, features = arrays["names"].tolist(), arrays["features"]
            if features.dtype != np.float32 or features.ndim != 2 or len(features) != len(names):
                raise ValueError(f"{len(names)} names for features of {features.dtype} {features.shape}")
            lengths = np.linalg.norm(features, axis=1)
            if not (np.abs(lengths - 1) < _LENGTH_TOLERANCE).all():  # also rejects NaN
                bad = int(np.flatnonzero(~(np.abs(lengths - 1) < _LENGTH_TOLERANCE))[0])
                raise ValueError(f"the features of {names[bad]!r} are not of unit length")
            return Index(names, features, facts["identity"], facts["checkpoint"])
        except FileNotFoundError:
            raise UserError(f"index {path} does not exist: make it with python -m brewclip index") from None
        except Exception as error:  # a damaged zip file can raise any exception
            raise UserError(f"{path} is not an index that can be read ({error}): make it again") from None

    def check_made_by(self, identity: dict[str, Any], checkpoint: str) -> None:
        """Check that a system is the one that built the index.

        Raises:
            UserError: if it is another one.
        """
        if self.identity != identity:
            raise UserError(
                f"the index was made by {_describe(self.identity, self.checkpoint)}, this is "
                f"{_describe(identity, checkpoint)}: make it again with python -m brewclip index"
            )

    def nearest(self, queries: NDArray[np.float32], k: int) -> list[list[Match]]:
        """Return the k nearest images of each query (n, E) of unit length, nearest first; ties in index order.

        Raises:
            ValueError: if k is less than 1, or the widths differ.
        """
        if k < 1:
            raise ValueError(f"k is {k}; it must be 1 or more")
        if queries.shape[1:] != self.features.shape[1:]:
            raise ValueError(f"queries have shape {queries.shape}, the index has {self.features.shape[1]} dimensions")
        found = []
        for at in range(0, len(queries), _QUERIES_AT_ONCE):
            for scores in queries[at : at + _QUERIES_AT_ONCE] @ self.features.T:
                rows = _largest(scores, k)
                found.append([Match(n, float(scores[i]), self.names[i]) for n, i in enumerate(rows, start=1)])
        return found


def _largest(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Return the indices of the k largest scores, largest first."""
    if k < len(scores):
        limit = np.partition(scores, len(scores) - k)[len(scores) - k]
        candidates = np.flatnonzero(scores >= limit)
    else:
        candidates = np.arange(len(scores))
    return candidates[np.argsort(-scores[candidates], kind="stable")][:k]


def _describe(identity: dict[str, Any], checkpoint: str) -> str:
    """Return a readable description of the system that built an index."""
    settings = identity.get("frozen_settings", {})
    frozen = ", ".join(
        f"{name} {sha256[:8]} with {settings[name]['activation'] if name in settings else 'settings unknown'}"
        for name, sha256 in identity.get("frozen_sha256", {}).items()
    )
    weights = str(identity.get("weights_sha256", ""))[:8]
    return f"{checkpoint} (step {identity.get('step')}, weights {weights or 'none'}, CLIP {frozen})"
