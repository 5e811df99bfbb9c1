"""Cache of the layers of a frozen speech encoder in a local folder, one file per recording or crop."""

import hashlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brewclip.data.folder_storage import FolderStorage
from brewclip.errors import ObjectMissing, StorageError


class LayerFolder:
    """Layers by the content of their waveform; workers of a machine may share the folder.

    A damaged file counts as missing. A folder that cannot be written (a full disk) is read only, after one line.

    Args:
        folder: made with mode 0700 if it does not exist.
        encoder: everything that the layers depend on besides the waveform; each has its own folder inside.
    """

    def __init__(self, folder: Path, encoder: Sequence[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._storage = FolderStorage(folder.resolve() / _digest("\n".join(encoder).encode()))
        self._can_write = True

    def get(self, waveform: NDArray[np.float32]) -> NDArray[np.float16] | None:
        """Return the layers of a waveform, (L, T, D); None if they are not stored."""
        try:
            found = np.load(io.BytesIO(self._storage.read(_name_of(waveform))), allow_pickle=False)
        except (ObjectMissing, StorageError, ValueError, EOFError):
            return None
        return found if isinstance(found, np.ndarray) and found.dtype == np.float16 else None

    def put(self, waveform: NDArray[np.float32], layers: NDArray[np.float16]) -> None:
        """Store the layers of a waveform, (L, T, D)."""
        if not self._can_write:
            return
        data = io.BytesIO()
        np.save(data, layers, allow_pickle=False)
        try:
            self._storage.write(_name_of(waveform), data.getvalue())
        except StorageError as error:
            self._can_write = False
            print(f"layers are not cached any more, training goes on without: {error}", file=sys.stderr, flush=True)


def _name_of(waveform: NDArray[np.float32]) -> str:
    name = _digest(np.ascontiguousarray(waveform, np.float32).tobytes())
    return f"{name[:2]}/{name[2:]}.npy"


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
