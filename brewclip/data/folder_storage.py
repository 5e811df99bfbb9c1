"""Storage in a local folder (file://)."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from brewclip.data.listing import StoredObject
from brewclip.errors import ObjectMissing, StorageError


class FolderStorage:
    """Objects as files below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = folder.as_uri()

    def read(self, name: str) -> bytes:
        with self._named(name):
            return (self.folder / name).read_bytes()

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        return self.read_part(name, start, stop)[0]

    def read_part(self, name: str, start: int, stop: int) -> tuple[bytes, int]:
        with self._named(name), open(self.folder / name, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(start)
            # Python would allocate all requested bytes first, even beyond the end of the file.
            return file.read(max(0, min(stop, size) - start)), size

    def size(self, name: str) -> int:
        with self._named(name):
            return (self.folder / name).stat().st_size

    def write(self, name: str, data: bytes) -> None:
        with self._replacing(name) as file:
            file.write(data)

    def create(self, name: str, data: bytes) -> bool:
        try:
            with self._replacing(name, put=os.link) as file:
                file.write(data)
        except FileExistsError:
            return False
        return True

    def upload(self, path: Path, name: str) -> None:
        with self._replacing(name) as target, open(path, "rb") as source:
            shutil.copyfileobj(source, target, 2**20)

    def download(self, name: str, path: Path) -> None:
        with self._named(name):
            shutil.copyfile(self.folder / name, path)

    def list_names(self, prefix: str = "") -> list[str]:
        top = self.folder / prefix.rpartition("/")[0]
        files = (path for path in top.rglob("*") if path.is_file() and not path.name.startswith(".partial-"))
        names = (path.relative_to(self.folder).as_posix() for path in files)
        return sorted(name for name in names if name.startswith(prefix))

    def list_objects(self, prefix: str = "") -> list[StoredObject]:
        found = ((name, (self.folder / name).stat()) for name in self.list_names(prefix))
        return [StoredObject(name, status.st_size, status.st_mtime_ns) for name, status in found]

    def list_folders(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path.is_dir()) if self.folder.is_dir() else []

    def delete(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _named(self, name: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise ObjectMissing(f"{self.url}/{name} does not exist") from None
        except PermissionError as error:
            raise StorageError(f"{self.url}/{name}: {error.strerror}") from None

    @contextlib.contextmanager
    def _replacing(self, name: str, put: Callable[[str, Path], None] = os.replace) -> Iterator[BinaryIO]:
        path = self.folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=".partial-")
        except OSError as error:
            raise StorageError(f"{self.url}/{name} cannot be written: {error.strerror}") from None
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            put(partial, path)
        except FileExistsError:
            raise
        except OSError as error:
            raise StorageError(f"{self.url}/{name} cannot be written: {error.strerror}") from None
        finally:
            Path(partial).unlink(missing_ok=True)
