"""Parquet files as Hugging Face writes them, with recordings and images as cells of bytes, read one by one.

The driver reads all columns except those of bytes, and names the cells; workers read the bytes, a page of a column at
a time. pyarrow writes pages of up to 1,024 values of any size, so the memory of a worker depends on the row groups:
reading 600 MB of images and recordings took 0.2 GB of memory with groups of 100 rows, which is what Hugging Face
writes, and 1.7 GB with one group of 1,200 rows.
"""

import io
import json
import re
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from brewclip.data.storage import Storage
from brewclip.errors import ObjectMissing, UserError

_CELL = re.compile(r"(.+)#(.+)\[(\d+):(\d+)\]")
_ROWS_AT_ONCE = 8  # of bytes
_LIGHT_ROWS_AT_ONCE = 4096
_BUFFER_BYTES = 2**20  # of a column; without a buffer, pyarrow reads a column of a row group whole
_MOST_OPEN = 4
_LARGE_GROUP_BYTES = 2**28


class Cell(NamedTuple):
    """Position of the bytes of a recording or image: a column of a row group of a file, and the row in that group."""

    file: str
    column: str
    group: int
    row: int

    def __str__(self) -> str:
        return f"{self.file}#{self.column}[{self.group}:{self.row}]"


class Blob(NamedTuple):
    """A value of a column of bytes: their position, if there are any, and the path stored with them."""

    cell: Cell | None
    path: str


def parse_cell(name: str) -> Cell | None:
    """Return the cell that a string names, or None if it is another kind of name."""
    match = _CELL.fullmatch(name) if name.endswith("]") else None
    return Cell(match[1], match[2], int(match[3]), int(match[4])) if match else None


class ParquetTable:
    """A Parquet file, read row by row without the columns of bytes.

    Raises:
        UserError: if it is no Parquet file.
        ObjectMissing: if it is not there.
    """

    def __init__(self, storage: Storage, name: str) -> None:
        self.name = name
        self._file = _open(storage, name)
        self._schema = self._file.schema_arrow
        self._labels = _class_labels(self._schema.metadata or {})

    @property
    def warning(self) -> str:
        """A line about row groups that cost the workers much memory; empty if they do not."""
        facts = self._file.metadata
        largest = max((facts.row_group(group).total_byte_size for group in range(facts.num_row_groups)), default=0)
        if largest < _LARGE_GROUP_BYTES:
            return ""
        return (
            f"{self.name} has a row group of {largest / 1e9:.2g} GB: each worker may need three times as much memory; "
            "write it again with row_group_size=100"
        )

    @property
    def columns(self) -> list[str]:
        """Names of the columns; of a column of several fields, those with a dot, too."""
        return [name for field in self._schema for name in (field.name, *_nested(field.name, field.type))]

    def rows(self, wanted: dict[str, str]) -> Iterator[dict[str, Any]]:
        """Yield the wanted columns of each row: a `Blob` from a column of bytes, a plain value from another.

        Args:
            wanted: name in the result -> one of `columns`.
        """
        blobs = {name: column for name, column in wanted.items() if self._bytes_column(column)}
        light = {name: column for name, column in wanted.items() if name not in blobs}
        light |= {f"{name}/path": f"{column}.path" for name, column in blobs.items() if self._has_path(column)}
        for group in range(self._file.num_row_groups):
            there = {name: self._present(group, self._bytes_column(column)) for name, column in blobs.items()}
            for number, row in enumerate(self._light_rows(group, light)):
                for name, column in blobs.items():
                    cell = Cell(self.name, self._bytes_column(column), group, number) if there[name][number] else None
                    row[name] = Blob(cell, row.pop(f"{name}/path", None) or "")
                yield row

    def _light_rows(self, group: int, light: dict[str, str]) -> Iterator[dict[str, Any]]:
        if not light:
            yield from ({} for _ in range(self._file.metadata.row_group(group).num_rows))
            return
        columns = list(dict.fromkeys(light.values()))
        for batch in self._file.iter_batches(_LIGHT_ROWS_AT_ONCE, [group], columns):
            values = {name: self._named(column, _column(batch, column).to_pylist()) for name, column in light.items()}
            yield from ({name: of_row[row] for name, of_row in values.items()} for row in range(batch.num_rows))

    def _named(self, column: str, values: list[Any]) -> list[Any]:
        """Return classes by their names, where the file has them."""
        names = self._labels.get(column)
        if not names:
            return values
        return [names[value] if isinstance(value, int) and 0 <= value < len(names) else None for value in values]

    def _present(self, group: int, column: str) -> list[bool]:
        """Return which rows of a group have bytes; known from the footer where all or none have."""
        facts = self._file.metadata.row_group(group)
        chunks = (facts.column(number) for number in range(facts.num_columns))
        statistics = next((chunk.statistics for chunk in chunks if chunk.path_in_schema == column), None)
        if statistics is not None and statistics.has_null_count and statistics.null_count in (0, facts.num_rows):
            return [statistics.null_count == 0] * facts.num_rows
        batches = self._file.iter_batches(_ROWS_AT_ONCE, [group], [column], use_threads=False)
        return [valid for batch in batches for valid in _column(batch, column).is_valid().to_pylist()]

    def _bytes_column(self, column: str) -> str:
        """Return the column of bytes of a column or of its field `bytes`; empty if it has none."""
        kind = _type_of(self._schema, column)
        if _is_binary(kind):
            return column
        has = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type)
        return f"{column}.bytes" if has else ""

    def _has_path(self, column: str) -> bool:
        kind = _type_of(self._schema, column)
        return pa.types.is_struct(kind) and kind.get_field_index("path") >= 0


class ParquetCells:
    """Reader of cells; those of one column and row group, requested in order, are read in one pass."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._scans: OrderedDict[tuple[str, str], _Scan] = OrderedDict()

    def read(self, cell: Cell) -> bytes:
        """Return the bytes of a cell.

        Raises:
            ObjectMissing: if there is no such file, or the cell is empty.
        """
        scan = self._scans.pop((cell.file, cell.column), None)
        if scan is None or scan.group != cell.group or cell.row < scan.first_row:
            scan = _Scan(_open(self._storage, cell.file), cell.column, cell.group)
        self._scans[cell.file, cell.column] = scan
        while len(self._scans) > _MOST_OPEN:
            self._scans.popitem(last=False)
        data = scan.read(cell.row)
        if data is None:
            raise ObjectMissing(f"{self._storage.url}/{cell} is empty")
        return data


class _Scan:
    """A pass over one column of one row group."""

    def __init__(self, file: pq.ParquetFile, column: str, group: int) -> None:
        self.group, self.first_row = group, 0
        self._column = column
        self._batches = file.iter_batches(_ROWS_AT_ONCE, [group], [column], use_threads=False)
        self._values: Any = []

    def read(self, row: int) -> bytes | None:
        while row >= self.first_row + len(self._values):
            self.first_row += len(self._values)
            self._values = _column(next(self._batches), self._column)
        return self._values[row - self.first_row].as_py()


class _StorageFile(io.RawIOBase):
    """An object as a seekable file."""

    def __init__(self, storage: Storage, name: str) -> None:
        super().__init__()
        self._storage, self._name = storage, name
        self._size, self._position = storage.size(name), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        stop = self._size if size < 0 else min(self._size, self._position + size)
        if stop <= self._position:
            return b""
        data = self._storage.read_range(self._name, self._position, stop)
        self._position += len(data)
        return data


def _open(storage: Storage, name: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(pa.PythonFile(_StorageFile(storage, name), mode="r"), buffer_size=_BUFFER_BYTES)
    except pa.ArrowException as error:
        raise UserError(f"{storage.url}/{name} is no Parquet file: {str(error).splitlines()[0]}") from None


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _nested(prefix: str, kind: pa.DataType) -> Iterator[str]:
    for field in kind if pa.types.is_struct(kind) else ():
        yield f"{prefix}.{field.name}"
        yield from _nested(f"{prefix}.{field.name}", field.type)


def _type_of(schema: pa.Schema, column: str) -> pa.DataType:
    if schema.get_field_index(column) >= 0:
        return schema.field(column).type
    kind = schema.field(column.split(".")[0]).type
    for part in column.split(".")[1:]:
        kind = kind.field(part).type
    return kind


def _column(batch: pa.RecordBatch, column: str) -> pa.Array:
    """Return a column of a batch; of a nested one, the field behind the dots."""
    import pyarrow.compute as pc

    if batch.schema.get_field_index(column) >= 0:
        return batch.column(column)
    first, *rest = column.split(".")
    return pc.struct_field(batch.column(first), rest)


def _class_labels(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Return column -> names of its classes, which Hugging Face stores as numbers."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        labels = {column: facts for column, facts in features.items() if isinstance(facts, dict)}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
    return {column: facts["names"] for column, facts in labels.items() if isinstance(facts.get("names"), list)}
