"""Validation of manifest.json and shards.parquet, whoever wrote them, before their numbers are used.

The functions raise `ValueError` with one line; `manifest` adds which split it is.
"""

import io
import json
import re
from typing import Any

import numpy as np

from brewclip.data.schema import first_line, is_deeper

MAX_MANIFEST_BYTES = 2**24
_MOST_DEPTH = 32  # of objects and lists in details
_MOST_BYTES_OF_A_ROW = 4096  # of shards.parquet, plus a megabyte for its schema
_MOST_LETTERS = 2048  # of a name or URL
_BLOCK_BYTES = 512  # no sample of a tar takes fewer
_SHA256 = re.compile(r"[0-9a-f]{64}")
_KINDS = ("recordings", "features")
_TEXT, _HASH, _COUNT = "a text", "64 hexadecimal digits", "a whole number from 0 to 2^62"
_FIELDS = {
    **dict.fromkeys(("corpus", "split", "kind"), _TEXT),
    **dict.fromkeys(("schema_version", "num_samples", "num_shards", "num_rounds", "num_images", "size_bytes"), _COUNT),
    **dict.fromkeys(("shards_sha256", "index_sha256"), _HASH),
}
_COLUMNS = {  # least and most of numbers; None for texts
    "name": None,
    "round": (0, 2**31 - 1),
    "num_samples": (1, 2**40),
    "size_bytes": (_BLOCK_BYTES, 2**60),
    "sha256": None,
    "index_crc32": (0, 2**32 - 1),
}
_COLUMNS_OF_ADOPTED = {"url": None, "members_crc32": (0, 2**32 - 1)}


def parse_fields(data: bytes) -> dict[str, Any]:
    """Parse manifest.json as a JSON object, without validating its fields.

    Raises:
        ValueError: if it is something else.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise ValueError(f"it has more than {MAX_MANIFEST_BYTES} bytes")
    try:
        fields = json.loads(data)
    except RecursionError:
        raise ValueError("its JSON is nested too deep") from None
    if not isinstance(fields, dict):
        raise ValueError(f"it holds a {type(fields).__name__} of JSON, not an object")
    if is_deeper(fields, _MOST_DEPTH):
        raise ValueError(f"its JSON is nested deeper than {_MOST_DEPTH} levels")
    return fields


def check_fields(fields: dict[str, Any]) -> None:
    """Check the fields of this schema version.

    Raises:
        ValueError: naming a field that is missing, unknown or of another type.
    """
    unknown = fields.keys() - _FIELDS.keys() - {"details"}
    if unknown:
        raise ValueError(f"unknown field {_shown(min(unknown))}")
    for name, kind in _FIELDS.items():
        if name not in fields:
            raise ValueError(f"it has no {name}")
        if not _is_of(fields[name], kind):
            raise ValueError(f"{name} is {_shown(fields[name])}, not {kind}")
    if fields["kind"] not in _KINDS:
        raise ValueError(f"kind is {_shown(fields['kind'])}, not one of {', '.join(_KINDS)}")
    details = fields.get("details", {})
    if not isinstance(details, dict):
        raise ValueError(f"details are {_shown(details)}, not an object")
    if not _is_of(details.get("image_side_pixels", 0), _COUNT):
        raise ValueError(f"image_side_pixels is {_shown(details['image_side_pixels'])}, not {_COUNT}")


def _is_of(value: Any, kind: str) -> bool:
    if kind == _COUNT:
        return type(value) is int and 0 <= value < 2**62
    return isinstance(value, str) and (kind == _TEXT or bool(_SHA256.fullmatch(value)))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def largest_table(num_shards: int) -> int:
    """Return the most bytes that a table of so many shards may have."""
    return min(2**62, _MOST_BYTES_OF_A_ROW * num_shards + 2**20)


def read_table(parquet: bytes, num_shards: int) -> dict[str, Any]:
    """Return the columns of shards.parquet: numbers as arrays, text as arrow (a million names are no Python objects).

    Args:
        parquet: its bytes.
        num_shards: rows that it must have.

    Raises:
        ValueError: if it is no Parquet file, or not a table of shards.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if len(parquet) > largest_table(num_shards):
        raise ValueError(f"it has more than {largest_table(num_shards)} bytes for {num_shards} shards")
    try:
        file = pq.ParquetFile(io.BytesIO(parquet))
        schema, num_rows = file.schema_arrow, file.metadata.num_rows
        columns = _check_schema(schema)
        if num_rows != num_shards or num_rows > len(parquet):
            raise ValueError(f"it claims {num_rows} rows in {len(parquet)} bytes, for {num_shards} shards")
        # Without threads: a program that ended right after they were started was aborted now and then.
        table = file.read(columns=list(columns), use_threads=False)
        table.validate(full=True)
    except (pa.ArrowException, OSError, KeyError, MemoryError) as error:  # some of arrow's are ValueErrors, some not
        raise ValueError(first_line(error)) from error
    if len(table) != num_shards:
        raise ValueError(f"it has {len(table)} rows for {num_shards} shards")
    for name in columns:
        if table.column(name).null_count:
            raise ValueError(f"its column {name} has nulls")
    return _check_values(table, columns)


def _check_schema(schema: Any) -> dict[str, tuple[int, int] | None]:
    """Return the columns to read, each with its least and most, or None for a text."""
    import pyarrow as pa

    adopted = any(name in schema.names for name in _COLUMNS_OF_ADOPTED)
    columns = {**_COLUMNS, **(_COLUMNS_OF_ADOPTED if adopted else {})}
    for name, limits in columns.items():
        if schema.names.count(name) != 1:
            raise ValueError(f"it has {schema.names.count(name)} columns of the name {name}")
        kind = schema.field(name).type
        if not (pa.types.is_integer(kind) if limits else pa.types.is_string(kind)):
            raise ValueError(
                f"its column {name} is of {str(kind)[:60]}, not of {'whole numbers' if limits else 'text'}"
            )
    return columns


def _check_values(table: Any, columns: dict[str, tuple[int, int] | None]) -> dict[str, Any]:
    import pyarrow.compute as pc

    found: dict[str, Any] = {}
    for name, limits in columns.items():
        found[name] = table.column(name).to_numpy() if limits else table.column(name).combine_chunks()
        if not limits and (pc.max(pc.utf8_length(found[name])).as_py() or 0) > _MOST_LETTERS:
            raise ValueError(f"its column {name} has a text of more than {_MOST_LETTERS} letters")
        if limits and len(table) and not limits[0] <= int(found[name].min()) <= int(found[name].max()) <= limits[1]:
            raise ValueError(f"its column {name} has numbers that are not in {limits[0]}..{limits[1]}")
    if any(found[name].sum(dtype=float) >= 2**62 for name in ("num_samples", "size_bytes")):
        raise ValueError("its sizes together are larger than any split")
    if (found["size_bytes"] // _BLOCK_BYTES < found["num_samples"]).any():
        raise ValueError("it has a shard of more samples than its bytes can hold")
    if not pc.all(pc.match_substring_regex(found["sha256"], "^[0-9a-f]{64}$")).as_py():
        raise ValueError(f"its column sha256 has something else than {_HASH}")
    if pc.count_distinct(found["name"]).as_py() != len(table):
        raise ValueError("it has a shard twice")
    if "url" in found and pc.any(pc.match_substring_regex(found["url"], "[\\x00-\\x1f\\x7f]")).as_py():
        raise ValueError("its column url has control characters")
    return found


def check_index(offsets: np.ndarray, size_bytes: int) -> None:
    """Check the offsets of the samples of a shard.

    Args:
        offsets: (n + 1,) int64, the first is zero.
        size_bytes: of the shard.

    Raises:
        ValueError: if they do not follow one another within the shard.
    """
    if (np.diff(offsets) <= 0).any() or offsets[-1] > size_bytes:
        raise ValueError(f"its samples do not follow one another within {size_bytes} bytes")
