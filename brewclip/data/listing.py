"""What a listing of storage says of an object."""

from typing import NamedTuple


class StoredObject(NamedTuple):
    """An object's name below the storage's URL, its size, and when it was written, in nanoseconds since 1970."""

    name: str
    size_bytes: int
    modified_ns: int
