"""Expansion of --source to tars: braces and wildcards, on S3 or on disk, with their splits."""

import fnmatch
import glob
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from brewclip.data.folder_storage import FolderStorage
from brewclip.data.storage import Storage, open_storage
from brewclip.errors import UserError

_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# Other people's names of the split that chooses the best checkpoint.
_SPLIT_NAMES = {"val": "dev", "valid": "dev", "validation": "dev", "development": "dev"}
_THREADS = 16


@dataclass(frozen=True)
class SourceTar:
    """One tar to import.

    Attributes:
        url: absolute.
        size_bytes: as it is stored.
        label: its unique name: the path below the common folder of all, without `.tar`.
        split: given by the user; empty if none.
    """

    url: str
    size_bytes: int
    label: str
    split: str


def split_name(name: str) -> str:
    """Return our name of a split.

    Raises:
        UserError: if it has other characters than letters, digits and underscores.
    """
    name = name.strip().lower()
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise UserError(f"the split {name!r} must be letters, digits and underscores")
    return _SPLIT_NAMES.get(name, name)


def open_object(url: str) -> tuple[Storage, str]:
    """Return the storage of an object's folder, and the object's name in it."""
    folder, _, name = url.rpartition("/")
    storage = open_storage(folder)
    return storage, unquote(name) if isinstance(storage, FolderStorage) else name


def find_tars(words: Sequence[str]) -> list[SourceTar]:
    """Return the tars that --source names, in its order.

    Args:
        words: URLs or paths of tars with braces and wildcards, or folders of tars, each with `SPLIT=` before it or not.

    Raises:
        UserError: if a word names no tar, one is missing, one is named twice, or only some have a split.
    """
    named: dict[str, str] = {}
    for word in words:
        match = re.fullmatch(r"(\w+)=(.+)", word)
        split = split_name(match[1]) if match else ""
        urls = list(_expand(match[2] if match else word))
        if not urls:
            raise UserError(f"--source {word} names no tar: give tars with {{000..099}} or *, or their folder")
        for url in urls:
            if url in named:
                raise UserError(f"--source names {url} twice")
            named[url] = split
    if not named:
        raise UserError("--source names no tar")
    if len({bool(split) for split in named.values()}) > 1:
        raise UserError("--source gives some tars to a split and others to none: write SPLIT= before all or none")
    with ThreadPoolExecutor(_THREADS) as pool:
        sizes = list(pool.map(_size_of, named))
    return [
        SourceTar(url, size, label, split)
        for (url, split), size, label in zip(named.items(), sizes, _labels(list(named)), strict=True)
    ]


def _labels(urls: list[str]) -> list[str]:
    """Return the paths of tars below their common folder, without their extensions where they stay unique."""
    folders = [url.split("/")[:-1] for url in urls]
    common = 0
    while all(len(folder) > common and folder[common] == folders[0][common] for folder in folders):
        common += 1
    whole = [unquote("/".join(url.split("/")[common:])) for url in urls]
    short = [re.sub(r"(\.tar(\.\w+)?|\.tgz)$", "", path) for path in whole]
    return short if len(set(short)) == len(short) else whole


def _size_of(url: str) -> int:
    storage, name = open_object(url)
    return storage.size(name)


def _expand(word: str) -> Iterator[str]:
    """Yield absolute URLs."""
    from webdataset.shardlists import expand_urls

    try:
        patterns = expand_urls(word)
    except (ValueError, AssertionError) as error:  # braces that do not close, a variable that is not set
        raise UserError(f"--source {word} cannot be expanded: {error}") from None
    for pattern in patterns:
        if pattern.startswith("s3://"):
            yield from _expand_object(pattern)
        elif "://" in pattern and not pattern.startswith("file://"):
            raise UserError(f"--source {pattern} must be s3://bucket/..., file:///... or a path: copy the tars there")
        else:
            path = unquote(urlsplit(pattern).path) if pattern.startswith("file://") else pattern
            yield from (Path(name).as_uri() for name in _expand_path(Path(path).expanduser().absolute()))


def _expand_path(path: Path) -> list[str]:
    if path.is_dir():
        return sorted(str(file) for file in path.iterdir() if file.name.endswith(_SUFFIXES))
    if path.exists() or not glob.has_magic(str(path)):
        return [str(path)]
    return sorted(glob.glob(str(path)))  # noqa: PTH207 - the pattern may begin anywhere


def _expand_object(url: str) -> list[str]:
    folder = url.endswith("/")
    if not folder and not glob.has_magic(url):
        return [url]
    parts = url.split("/")
    fixed = next((number for number, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    storage, patterns = open_storage("/".join(parts[:fixed])), parts[fixed:]
    names = [name for name in storage.list_names() if name.count("/") == len(patterns) - 1]
    if folder:
        return [f"{storage.url}/{name}" for name in names if name.endswith(_SUFFIXES)]
    return [
        f"{storage.url}/{name}"
        for name in names
        if all(fnmatch.fnmatchcase(part, pattern) for part, pattern in zip(name.split("/"), patterns, strict=True))
    ]
