"""Files of a corpus on disk or object storage: found by name, read as text, JSON or bytes."""

import json
import os
import stat
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from brewclip.audio import MAX_BYTES
from brewclip.data.folder_storage import FolderStorage
from brewclip.data.parquet import ParquetCells, parse_cell
from brewclip.data.schema import BadSample
from brewclip.data.storage import Storage, open_storage
from brewclip.errors import ObjectMissing, StorageError, UserError

_PIECE_BYTES = 8 * 2**20  # of a text file, read at a time
_LONGEST_LINE_BYTES = 64 * 2**20
_SPECIAL_FILES = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class Source:
    """Files of a corpus in a directory or below a URL, at any depth.

    Args:
        location: path of a directory, `file:///folder` or `s3://bucket/prefix`.

    Raises:
        UserError: if there is no such directory, or the URL is of another form.
    """

    def __init__(self, location: str) -> None:
        if "://" not in location:
            location = str(Path(location).expanduser().absolute())  # workers have another working directory
        self.location = location.rstrip("/") or "/"
        self.storage: Storage = open_storage(location) if "://" in location else FolderStorage(Path(location))
        if isinstance(self.storage, FolderStorage) and not self.storage.folder.is_dir():
            what = "is a file, not a directory" if self.storage.folder.exists() else "does not exist"
            raise UserError(f"--source {self.location} {what}: unpack the corpus and name its folder")

    def __reduce__(self) -> tuple[type["Source"], tuple[str]]:
        return Source, (self.location,)  # workers read files by name and need no listing

    @cached_property
    def names(self) -> list[str]:
        """All file names, sorted, shallow ones first."""
        if isinstance(self.storage, FolderStorage):
            names = list(_walk(self.storage.folder))
        else:
            names = self.storage.list_names()
        return sorted(names, key=lambda name: (name.count("/"), name))

    def local_size(self, name: str) -> int:
        """Return the size in bytes of a file on disk; 0 for one that is missing, empty, or on object storage."""
        storage, name = _split_url(name) if "://" in name else (self.storage, name)
        if not isinstance(storage, FolderStorage) or parse_cell(name):
            return 0
        try:
            return storage.size(name)
        except (OSError, ValueError, StorageError):
            return 0

    def is_missing(self, name: str, *, list_objects: bool) -> bool:
        """Return whether a file is known to be missing.

        Args:
            name: as `read` takes it.
            list_objects: whether to list the source if it is on object storage; nothing is known there otherwise.
        """
        storage, rest = _split_url(name) if "://" in name else (self.storage, name)
        if parse_cell(rest):
            return False
        if isinstance(storage, FolderStorage):
            return not (storage.folder / rest).is_file()
        return list_objects and storage is self.storage and not rest.startswith("../") and rest not in self._all_names

    @cached_property
    def _all_names(self) -> frozenset[str]:
        return frozenset(self.names)

    @cached_property
    def _cells(self) -> ParquetCells:
        return ParquetCells(self.storage)

    @cached_property
    def _by_last_part(self) -> dict[str, list[str]]:
        index: dict[str, list[str]] = {}
        for name in self.names:
            index.setdefault(name.rpartition("/")[2], []).append(name)
        return index

    def find(self, tail: str) -> str:
        """Return the file whose name ends in `tail` (whole parts of a path), or an empty string."""
        for name in self._by_last_part.get(tail.rpartition("/")[2], ()):
            if name == tail or name.endswith(f"/{tail}"):
                return name
        return ""

    def require(self, *tails: str) -> str:
        """Return the first of these files that exists.

        Raises:
            UserError: naming all of them, if none is.
        """
        return self.require_all(tails)[0]

    def require_all(self, *alternatives: Sequence[str]) -> list[str]:
        """Return, of each group of alternatives, the first file that exists.

        Raises:
            UserError: naming all groups of which no file exists.
        """
        found = [next(filter(None, map(self.find, tails)), "") for tails in alternatives]
        missing = [" or ".join(tails) for tails, name in zip(alternatives, found, strict=True) if not name]
        if missing:
            raise UserError(
                f"--source {self.location} has no {', no '.join(missing)}: is it the folder of this corpus?"
            )
        return found

    def text(self, name: str) -> str:
        """Return a whole text file, without byte order mark, with uniform line ends.

        Raises:
            UserError: if it is missing or not UTF-8.
        """
        self._require_regular(name)
        data = self.storage.read(name)
        try:
            return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
        except UnicodeDecodeError as error:
            raise UserError(f"{self.location}/{name} is not UTF-8 text: {error}") from None

    def lines(self, name: str) -> Iterator[str]:
        """Yield the lines of a text file that are not blank, read piecewise; they end at a line feed only.

        Raises:
            UserError: if it is missing, not a file or not UTF-8, or a line is longer than 64 MiB.
        """
        try:
            for number, line in enumerate(self._byte_lines(name)):
                text = line.decode("utf-8-sig" if number == 0 else "utf-8").rstrip("\r")
                if text.strip():
                    yield text
        except UnicodeDecodeError as error:
            raise UserError(f"{self.location}/{name} is not UTF-8 text: {error}") from None

    def _byte_lines(self, name: str) -> Iterator[bytes]:
        self._require_regular(name)
        start, rest = 0, b""
        while piece := self.storage.read_range(name, start, start + _PIECE_BYTES):
            start += len(piece)
            *lines, rest = (rest + piece).split(b"\n")
            if len(rest) > _LONGEST_LINE_BYTES:
                raise UserError(f"{self.location}/{name} has a line of more than {_LONGEST_LINE_BYTES} bytes")
            yield from lines
        yield rest

    def _require_regular(self, name: str) -> None:
        problem = _special_file(self.storage, name)
        if problem:
            raise UserError(f"{self.location}/{name} {problem}")

    def json(self, name: str, text: str | None = None, line: int = 0) -> Any:
        """Parse a JSON file, or one line of it.

        Raises:
            UserError: naming the file and the line.
        """
        try:
            return json.loads(self.text(name) if text is None else text)
        except (ValueError, RecursionError) as error:
            where = f"line {line} of " if line else ""
            raise UserError(f"{where}{self.location}/{name} is not JSON ({error}): download it again") from None

    def read(self, name: str, kind: str) -> bytes:
        """Read a recording or image: a file by its name, or a cell of a Parquet file by its reference.

        Raises:
            BadSample: with the cause `missing_<kind>` or `unreadable_<kind>`.
        """
        storage, name = _split_url(name) if "://" in name else (self.storage, name)
        cell = parse_cell(name) if storage is self.storage else None
        try:
            if cell is not None:
                return self._cells.read(cell)
            problem = _special_file(storage, name)
            if problem:
                raise BadSample(f"unreadable_{kind}", f"{storage.url}/{name} {problem}")
            # One byte more than the limit is enough to see that a file is too large.
            return storage.read_range(name, 0, MAX_BYTES + 1)
        except ObjectMissing as error:
            raise BadSample(f"missing_{kind}", str(error)) from error
        except (StorageError, BadSample):
            raise
        except (OSError, ValueError) as error:  # a name with a null byte is a ValueError
            raise BadSample(f"unreadable_{kind}", str(error)) from error


def _special_file(storage: Storage, name: str) -> str:
    """Describe a name on disk that is neither a file nor missing; opening a pipe could block forever."""
    if not isinstance(storage, FolderStorage):
        return ""
    try:
        mode = (storage.folder / name).stat().st_mode
    except OSError:  # reading it reports the cause
        return ""
    if stat.S_ISREG(mode):
        return ""
    kind = next((kind for is_kind, kind in _SPECIAL_FILES if is_kind(mode)), "something else")
    return f"is {kind}, not a file: only files are read"


def _walk(folder: Path) -> Iterator[str]:
    """Yield the files below a folder; links to folders are followed, each folder once."""
    seen: set[tuple[int, int]] = set()
    for top, folders, files in os.walk(folder, followlinks=True):
        status = Path(top).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        prefix = os.path.relpath(top, folder)
        yield from (name if prefix == "." else f"{prefix}/{name}" for name in files)


def _split_url(url: str) -> tuple[Storage, str]:
    """Return the storage of an object's folder and its name; a '#' or '?' in the name is part of it."""
    base, _, name = url.rpartition("/")
    return open_storage(base), unquote(name) if base.startswith("file:") else name
