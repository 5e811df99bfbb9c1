"""Cache of the layers of a frozen speech encoder in a local folder, one file per recording or crop."""

import hashlib
import struct
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brewclip.data.folder_storage import FolderStorage
from brewclip.errors import ObjectMissing, StorageError

_HEADER = struct.Struct("<4I")  # crc32 of what follows; layers, frames, width


class LayerFolder:
    """Layers by the content of their waveform; workers of a machine may share the folder.

    A damaged file counts as missing. A folder that cannot be written (a full disk) is read only, after one line.

    Args:
        folder: made with mode 0700 if it does not exist.
        encoder: everything that the layers depend on besides the waveform; each has its own folder inside.

    Raises:
        StorageError: if the folder cannot be made.
    """

    def __init__(self, folder: Path, encoder: Sequence[str]) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StorageError(f"the folder of cached layers {folder} cannot be made: {error.strerror}") from None
        self._storage = FolderStorage(folder.resolve() / _digest("\n".join(encoder).encode()))
        self._can_write = True

    def get(self, waveform: NDArray[np.float32]) -> NDArray[np.float16] | None:
        """Return the layers of a waveform, (L, T, D); None if they are not stored."""
        try:
            data = self._storage.read(_name_of(waveform))
        except (ObjectMissing, StorageError, OSError):
            return None
        if len(data) < _HEADER.size:
            return None
        crc, *shape = _HEADER.unpack_from(data)
        if zlib.crc32(memoryview(data)[4:]) != crc or len(data) != _HEADER.size + 2 * int(np.prod(shape, dtype=object)):
            return None
        return np.frombuffer(data, np.float16, offset=_HEADER.size).reshape(shape).copy()

    def put(self, waveform: NDArray[np.float32], layers: NDArray[np.float16]) -> None:
        """Store the layers of a waveform, (L, T, D)."""
        if not self._can_write:
            return
        content = _HEADER.pack(0, *layers.shape)[4:] + np.ascontiguousarray(layers, np.float16).tobytes()
        try:
            self._storage.write(_name_of(waveform), struct.pack("<I", zlib.crc32(content)) + content)
        except StorageError as error:
            self._can_write = False
            print(f"layers are not cached any more, training goes on without: {error}", file=sys.stderr, flush=True)


def _name_of(waveform: NDArray[np.float32]) -> str:
    name = _digest(np.ascontiguousarray(waveform, np.float32).tobytes())
    return f"{name[:2]}/{name[2:]}.layers"


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
