"""Sequential reader of foreign tars: members, checksums, and damage.

It reads untrusted tars: whatever a header claims, memory holds no more than a member that the caller wants and 1 MiB
of names. `tarfile` would read an extended header of any size.
"""

import bz2
import gzip
import hashlib
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

_BLOCK_BYTES = 512
_PIECE_BYTES = 8 * 2**20
_MOST_NAME_BYTES = 2**20
_MOST_LENGTH_DIGITS = 7  # of a record of an extended header
_EXTENDED = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE)
_NO_BODY = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
_OPENERS: dict[bytes, Callable[[BinaryIO], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}


class DamagedTar(ValueError):
    """A tar that cannot be read from some byte on.

    Attributes:
        position: of that byte.
    """

    def __init__(self, position: int, what: str) -> None:
        super().__init__(f"byte {position}: {what}")
        self.position = position


@dataclass(frozen=True)
class TarMember:
    """A regular file within a tar.

    Attributes:
        name: as stored; bytes that are not UTF-8 are surrogates.
        start: its first byte within the tar.
        size: in bytes.
        data: its bytes, or None if they were not wanted.
    """

    name: str
    start: int
    size: int
    data: bytes | None


class TarBytes:
    """The bytes of a tar in order, hashed as they are read, in consecutive ranges.

    Args:
        pieces: the bytes, in pieces of any size.

    Attributes:
        position: bytes read so far.
        sha256: of these.
    """

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, memoryview(b"")
        self.position, self.sha256 = 0, hashlib.sha256()
        self._crc32 = self._crc32_after_mark = 0  # since the last end_range, and since the last mark
        self._marked = (0, 0)

    def read(self, size: int) -> bytes:
        """Return the next bytes, fewer only at the end."""
        parts = list(self._take(size))
        return parts[0].tobytes() if len(parts) == 1 else b"".join(parts)

    def skip(self, size: int) -> int:
        """Skip the next bytes; return how many there were."""
        return sum(len(part) for part in self._take(size))

    def drain(self) -> None:
        """Skip all remaining bytes."""
        while self.skip(_PIECE_BYTES):
            pass

    def mark(self) -> None:
        """Mark this position as the possible end of the open range."""
        self._marked, self._crc32_after_mark = (self.position, self._crc32), 0

    def end_range(self) -> tuple[int, int]:
        """End the range at the last mark, where the next one begins; return its end and its crc32."""
        self._crc32 = self._crc32_after_mark
        return self._marked

    def _take(self, size: int) -> Iterator[memoryview]:
        while size > 0:
            if not self._rest:
                self._rest = memoryview(next(self._pieces, b""))
                if not self._rest:
                    return
            part, self._rest = self._rest[:size], self._rest[size:]
            size -= len(part)
            self.position += len(part)
            self.sha256.update(part)
            self._crc32 = zlib.crc32(part, self._crc32)
            self._crc32_after_mark = zlib.crc32(part, self._crc32_after_mark)
            yield part


def iter_tar(tar: TarBytes, wanted: Callable[[str, int], bool]) -> Iterator[TarMember]:
    """Yield the regular files of a tar, each when all of its bytes are read; hash what follows them.

    Source: the formats that Python's `tarfile` reads (ustar, GNU, pax), less sparse files.

    Args:
        tar: at its first byte.
        wanted: returns by name and size whether the bytes of a file are needed.

    Raises:
        DamagedTar: where it is damaged; the members before were yielded.
    """
    name, size = "", -1  # from an extended header, for the file after it
    while True:
        start = tar.position
        block = tar.read(_BLOCK_BYTES)
        if not block.strip(b"\0") and (start or len(block) == _BLOCK_BYTES):
            tar.drain()
            return
        info = _parse_header(block, start)
        if info.type in _EXTENDED or info.type == tarfile.GNUTYPE_LONGNAME:
            body = _read_extended(tar, info, start)
            if info.type == tarfile.GNUTYPE_LONGNAME:
                name = body.partition(b"\0")[0].decode(errors="surrogateescape")
            elif info.type != tarfile.XGLTYPE:
                name, size = _parse_pax(body, name, start)
            continue
        if info.type == tarfile.GNUTYPE_SPARSE:
            raise DamagedTar(start, f"{info.name!r} is a sparse file, which WebDataset's tars do not have")
        name, size = name or info.name, 0 if info.type in _NO_BODY else info.size if size < 0 else size
        body_start = tar.position
        is_file = info.type in tarfile.REGULAR_TYPES
        data = tar.read(size) if is_file and wanted(name, size) else None
        end = body_start + size + -size % _BLOCK_BYTES
        tar.skip(end - tar.position)
        if tar.position != end:
            raise DamagedTar(tar.position, f"the tar ends within {name!r}")
        if is_file:
            yield TarMember(name, body_start, size, data)
        name, size = "", -1


def _parse_header(block: bytes, start: int) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        raise DamagedTar(start, f"no tar header ({error})") from error
    if info.size < 0:
        raise DamagedTar(start, f"{info.name!r} claims {info.size} bytes")
    return info


def _read_extended(tar: TarBytes, info: tarfile.TarInfo, start: int) -> bytes:
    if info.size > _MOST_NAME_BYTES:
        raise DamagedTar(start, f"an extended header of {info.size} bytes; names and the like have {_MOST_NAME_BYTES}")
    body = tar.read(info.size)
    if len(body) < info.size or tar.skip(-info.size % _BLOCK_BYTES) != -info.size % _BLOCK_BYTES:
        raise DamagedTar(tar.position, "the tar ends within an extended header")
    return body


def _parse_pax(body: bytes, name: str, start: int) -> tuple[str, int]:
    """Return name and size of the next file from a pax header; a size of -1 if it gives none."""
    size, position = -1, 0
    body = body.rstrip(b"\0")
    while position < len(body):
        space = body.find(b" ", position, position + _MOST_LENGTH_DIGITS + 1)
        digits = body[position : max(position, space)]
        end = position + (int(digits) if digits.isdigit() else 0)
        equals = body.find(b"=", space, end)
        if equals < 0 or end > len(body) or body[end - 1 : end] != b"\n":
            raise DamagedTar(start, f"an extended header that cannot be read: {body[position : position + 20]!r}")
        key, value = body[space + 1 : equals], body[equals + 1 : end - 1]
        if key == b"path":
            name = value.decode(errors="surrogateescape")
        elif key == b"size" and value.isdigit() and len(value) < 20:
            size = int(value)
        elif key.startswith(b"GNU.sparse"):
            raise DamagedTar(start, "a sparse file, which WebDataset's tars do not have")
        position = end
    return name, size


def is_compressed(beginning: bytes) -> bool:
    """Return whether a file is compressed by gzip, bzip2 or xz, by its first bytes."""
    return any(beginning.startswith(magic) for magic in _OPENERS)


def iter_decompressed(pieces: Iterator[bytes], beginning: bytes) -> Iterator[bytes]:
    """Yield the decompressed bytes of a file in pieces of 8 MiB at most.

    Args:
        pieces: the bytes of the file, the first of which decide how it is compressed.
        beginning: these first bytes; they are part of `pieces`.

    Raises:
        DamagedTar: where they cannot be decompressed.
    """
    opener = next(opener for magic, opener in _OPENERS.items() if beginning.startswith(magic))
    position = 0
    try:
        with opener(io.BufferedReader(_PieceFile(pieces), _PIECE_BYTES)) as file:
            while piece := file.read1(_PIECE_BYTES):  # `read` would lose what comes before damage
                yield piece
                position += len(piece)
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise DamagedTar(position, f"cannot be decompressed ({error})") from error


class _PieceFile(io.RawIOBase):
    """A readable file over an iterator of pieces."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        if not self._rest:
            self._rest = memoryview(next(self._pieces, b""))
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
