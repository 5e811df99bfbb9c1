"""Where an index is: a folder of this machine, or a prefix of a bucket with a copy in the user's cache."""

import contextlib
import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from brewclip.data.folder_storage import FolderStorage
from brewclip.data.storage import Storage, open_storage
from brewclip.errors import ObjectMissing, UserError
from brewclip.serving.index.image_index import ImageIndex
from brewclip.serving.index.layout import FACTS, REMEDY, IndexFacts, parse_facts

# Names that `VersionWriter` gives; nothing else is removed from a folder.
_OURS = re.compile(r"(vectors|images|thumbnails|unusable|nearby)-[0-9a-f]{8}\.(npy|arrow|bin|json|faiss)")


def open_index(location: str | Path) -> ImageIndex:
    """Open an index of this machine or of a bucket; the latter is copied into the cache, as far as it changed.

    Raises:
        UserError: if it is missing, damaged or of another format, or storage cannot be reached.
    """
    place = IndexPlace(location)
    place.fetch()
    return ImageIndex.open(place.folder)


class IndexPlace:
    """A place of an index.

    Args:
        location: a folder, `file:///folder` or `s3://bucket/prefix`.

    Attributes:
        folder: of the files on this machine: the index itself, or its copy.
        url: of the index.
        storage: where the index is.
    """

    def __init__(self, location: str | Path) -> None:
        text = str(location)
        url = text.rstrip("/") if "://" in text else Path(text).expanduser().absolute().as_uri()
        self.location, self.url, self.remote = text, url, not url.startswith("file:")
        self.storage: Storage = open_storage(url, retry_seconds=30.0)
        if self.remote:
            cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "brewclip" / "indexes"
            self.folder = cache / hashlib.sha256(url.encode()).hexdigest()[:16]
        else:
            self.folder = Path(text.removeprefix("file://")).expanduser().absolute()
        self._copy = FolderStorage(self.folder)

    def read_facts(self) -> IndexFacts | None:
        """Return what index.json says; None if no index was saved here.

        Raises:
            UserError: if it cannot be read, or is of another format.
        """
        if self.folder.is_file():
            raise UserError(
                f"{self.location} is a file, an index is a folder: {REMEDY} (before 2026-11-27 it was a file)"
            )
        try:
            return parse_facts(self.storage.read(FACTS), self.location)
        except ObjectMissing:
            return None

    def fetch(self) -> None:
        """Copy what a bucket's index has and the cache has not; nothing for a folder.

        Files of earlier versions are removed from the cache, unless a build of this machine works in it.

        Raises:
            UserError: if there is no index, or storage cannot be reached.
        """
        if not self.remote:
            return
        try:
            facts = self._download()
        except ObjectMissing:  # it was replaced meanwhile
            facts = self._download()
        self._copy.write(FACTS, facts.to_json())
        with contextlib.suppress(BlockingIOError), self._holding_lock():  # else they may be a running build's
            _remove_others(self.folder, facts)

    def publish(self, facts: IndexFacts) -> None:
        """Make the files that were written to the folder the index, and remove those of earlier versions.

        Raises:
            StorageError: if storage cannot be written; the index stays as it was.
        """
        if self.remote:
            there = set(self.storage.list_names())
            for name in facts.files():
                if name not in there:
                    self.storage.upload(self.folder / name, name)
        self.storage.write(FACTS, facts.to_json())
        if self.remote:
            self._copy.write(FACTS, facts.to_json())
            for name in self.storage.list_names():
                if _OURS.fullmatch(name) and name not in facts.files():
                    self.storage.delete(name)
        _remove_others(self.folder, facts)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other builds of this machine from the same index.

        Raises:
            UserError: if there is one, or the folder cannot be written.
        """
        self._refuse_file()
        with contextlib.ExitStack() as held:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(self._holding_lock())
            except BlockingIOError:
                raise UserError(f"another program is writing the index {self.location}: wait for it") from None
            except OSError as error:
                raise UserError(f"index {self.location} cannot be written: {error.strerror}") from None
            yield

    @contextmanager
    def _holding_lock(self) -> Iterator[None]:
        """Hold the folder's lock; raise BlockingIOError if another program does."""
        file = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            os.close(file)

    def _refuse_file(self) -> None:
        if self.folder.is_file():
            raise UserError(f"{self.location} is a file, an index is a folder since 2026-11-27: {REMEDY}")

    def _download(self) -> IndexFacts:
        """Copy the files that the cache lacks, and return what index.json says."""
        facts = self.read_facts()
        if facts is None:
            raise UserError(f"index {self.location} does not exist: make it with brewclip index")
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, size in facts.file_bytes.items():
            path = self.folder / name
            if not path.exists() or path.stat().st_size != size:
                self.storage.download(name, path)
        return facts


def _remove_others(folder: Path, facts: IndexFacts) -> None:
    for path in folder.iterdir():
        if _OURS.fullmatch(path.name) and path.name not in facts.files():
            path.unlink(missing_ok=True)
