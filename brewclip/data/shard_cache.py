"""Cache of whole shards on a local disk, filled at their first use."""

import hashlib
import os
import sys
import tempfile
import threading
from pathlib import Path

from brewclip.data.folder_storage import FolderStorage
from brewclip.data.manifest import Manifest
from brewclip.errors import ObjectMissing


class ShardCache:
    """Copies of the shards of one split, by their sha256. Thread-safe; processes may share the directory.

    Training does not depend on it: if the disk is full or cannot be written, that is reported in one line, and shards
    are cached no more.

    Args:
        manifest: the split.
        directory: of the copies of all splits, made with mode 0700 if it does not exist.
    """

    def __init__(self, manifest: Manifest, directory: Path) -> None:
        self.manifest, self.directory = manifest, directory.expanduser().absolute()
        self._locks: dict[int, threading.Lock] = {}
        self._lock = threading.Lock()
        self._refused = False

    def copy_of(self, shard: int) -> tuple[FolderStorage, str] | None:
        """Return the storage and name of the copy of a shard, after making it if needed; None if it cannot be written.

        Raises:
            ManifestError: if the stored shard is missing or is not the one of the manifest.
        """
        path = self._path_of(shard)
        with self._lock:
            lock = self._locks.setdefault(shard, threading.Lock())
        try:
            with lock:
                if not path.exists():
                    if self._refused:
                        return None
                    self._copy(shard, path)
        except OSError as error:
            self._refuse(error)
            return None
        return FolderStorage(path.parent), path.name

    def remove(self, shard: int) -> None:
        """Remove the copy of a shard, which is damaged or cannot be read; the next use of the shard makes another."""
        path = self._path_of(shard)
        print(f"cached shard {path} is damaged: removed, to be copied again", file=sys.stderr, flush=True)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            self._refuse(error)

    def _path_of(self, shard: int) -> Path:
        sha256 = self.manifest.sha256_of(shard)
        return self.directory / sha256[:2] / sha256 / self.manifest.name_of(shard)

    def _copy(self, shard: int, target: Path) -> None:
        storage, name = self.manifest.place_of(shard)
        try:
            self.manifest.check_size(shard, storage.size(name))
        except ObjectMissing:
            raise self.manifest.disagreement(shard, "is missing") from None
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(dir=target.parent)
        os.close(descriptor)
        try:
            storage.download(name, Path(partial))
            with open(partial, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != self.manifest.sha256_of(shard):
                    raise self.manifest.disagreement(shard, "has another sha256")
            Path(partial).replace(target)
        finally:
            Path(partial).unlink(missing_ok=True)

    def _refuse(self, error: OSError) -> None:
        if not self._refused:
            reason = f"--data.cache-directory {self.directory}: {error.strerror or error}"
            print(f"shards are not cached any more: {reason}", file=sys.stderr, flush=True)
        self._refused = True
