"""Finished work of an interrupted or distributed build: embedded images in Arrow files below `parts/` of the index.

A part is written whole or not at all and names in its file name the system that made it, so that the next build of the
same system takes over what is there. A save of the index removes all parts.
"""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from brewclip.data.folder_storage import FolderStorage
from brewclip.data.storage import Storage
from brewclip.errors import UserError
from brewclip.serving.index.sources import ImageFile

FOLDER = "parts"
PART = pa.schema(
    [
        ("name", pa.large_string()),
        ("size_bytes", pa.int64()),
        ("modified_ns", pa.int64()),
        ("problem", pa.large_string()),  # why it is no usable image; empty, and all that follows is there
        ("sha256", pa.binary()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("thumbnail", pa.large_binary()),
        ("vector", pa.large_binary()),  # (E,) float16
    ]
)


@dataclass(frozen=True, slots=True)
class EmbeddedImage:
    """An image file with what an index holds of it, or with the reason why it holds nothing; the columns of `PART`."""

    file: ImageFile
    problem: str = ""
    sha256: bytes = b""
    width: int = 0
    height: int = 0
    thumbnail: bytes = b""
    vector: bytes = b""


def identity_digest(identity: dict[str, Any]) -> str:
    """Return 16 hexadecimal digits that name a system."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def write_part(storage: Storage, identity: dict[str, Any], images: Sequence[EmbeddedImage]) -> None:
    """Write a part of at least one image; the same images give the same name."""
    columns = {name: [getattr(one, name) for one in images] for name in PART.names[3:]}
    columns |= {name: [getattr(one.file, name) for one in images] for name in PART.names[:3]}
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, PART) as writer:
        writer.write_table(pa.table(columns, schema=PART))
    names = hashlib.sha256("\0".join(columns["name"]).encode()).hexdigest()[:16]
    storage.write(f"{FOLDER}/{identity_digest(identity)}-{names}.arrow", sink.getvalue().to_pybytes())


def read_parts(storage: Storage, identity: dict[str, Any], scratch: Path) -> pa.Table:
    """Map all parts of a system into memory, those of a bucket from copies in a scratch folder.

    Raises:
        UserError: if one is damaged.
    """
    tables = [PART.empty_table()]
    for name in storage.list_names(f"{FOLDER}/{identity_digest(identity)}-"):
        path = storage.folder / name if isinstance(storage, FolderStorage) else scratch / Path(name).name
        if not path.exists():
            storage.download(name, path)
        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{storage.url}/{name} is damaged ({error}): remove it and start again") from None
        if not table.schema.equals(PART):
            raise UserError(f"{storage.url}/{name} is no part of an index of this version: remove it")
        tables.append(table)
    return pa.concat_tables(tables)


def remove_parts(storage: Storage) -> None:
    """Remove all parts, those of other systems too: whoever made them has given up or started over."""
    for name in storage.list_names(f"{FOLDER}/"):
        storage.delete(name)
    if isinstance(storage, FolderStorage):
        with contextlib.suppress(OSError):  # there is none, or something else is in it
            (storage.folder / FOLDER).rmdir()
