"""What a sample is: one pair of picture and recording, as the members `<key>.jpg`, `<key>.flac`, `<key>.json`.

After extraction the same key holds `<key>.jpg`, `<key>.npy` (Whisper features) and a json that says more.
"""

import functools
import io
import json
import math
import struct
import tarfile
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
import orjson

SCHEMA_VERSION = 1
REQUIRED_FIELDS: dict[str, type | tuple[type, ...]] = {
    "image_id": str,
    "caption_id": str,
    "split": str,
    "duration_seconds": (int, float),
}
HEARD_FIELDS = ("transcript", "unfiltered_transcript")
"""What Whisper heard, without and with what its checks reject; both may be empty."""
TEXT_FIELDS = dict(zip(("asr", "asr_unfiltered", "ground_truth"), (*HEARD_FIELDS, "text"), strict=True))
"""Where the metadata have the text that a setting `data.transcript` names."""
_BLOCK_BYTES = 512
_HEADER = struct.Struct("100s24x11s21x1s100x5s")  # name, size in octal digits, kind of member, magic
_NPY_VERSION_1 = b"\x93NUMPY\x01\x00"
_NPY_PREFIX_BYTES = len(_NPY_VERSION_1) + 2  # and the length of the header
_EXTENSIONS = frozenset({"jpg", "flac", "npy", "json"})
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class BadSample(ValueError):
    """A sample that cannot be used; `cause` is a short word to count by."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause, self.detail = cause, detail


class Sample(NamedTuple):  # made five times faster than a frozen dataclass, and one is made for each sample read
    """One pair of picture and recording.

    Attributes:
        key: `<image_id>-<k>` for caption k of a picture; no dot, no slash.
        metadata: the json: image_id, caption_id, split, duration_seconds; text, speaker, emotion if known.
        image: JPEG bytes, or None for a recording without a picture.
        audio: FLAC bytes (16 kHz mono), or None after extraction. Those of an adopted shard are of any format.
        features: npy bytes of Whisper features, float16 of shape (frames, dim), or None before extraction.
    """

    key: str
    metadata: Mapping[str, Any] = _NOTHING
    image: bytes | None = None
    audio: bytes | None = None
    features: bytes | None = None

    def copied(self) -> "Sample":
        """Return the sample with bytes of its own, to keep or send, in place of views of what was read."""
        parts = (part if part is None else bytes(part) for part in (self.image, self.audio, self.features))
        return Sample(self.key, self.metadata, *parts)

    def members(self) -> dict[str, bytes]:
        """Return file extension -> bytes, in the order in which they are stored."""
        text = json.dumps(dict(self.metadata), ensure_ascii=False, sort_keys=True).encode()
        parts = {"jpg": self.image, "flac": self.audio, "npy": self.features, "json": text}
        return {extension: data for extension, data in parts.items() if data is not None}


def check_sample(sample: Sample) -> None:
    """Check key and metadata before they are written.

    Raises:
        ValueError: naming the key and what is wrong.
    """
    if not sample.key or set(sample.key) & set("./\\") or sample.key.startswith("_"):
        raise ValueError(f"key {sample.key!r} must be a file name without dots, slashes or a leading underscore")
    for name, kind in REQUIRED_FIELDS.items():
        if not isinstance(sample.metadata.get(name), kind):
            raise ValueError(f"sample {sample.key!r}: {name} is {sample.metadata.get(name)!r}, which is no {kind}")


def array_to_npy(array: np.ndarray) -> bytes:
    """Return the array as the bytes of an .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def npy_to_array(data: bytes | memoryview) -> np.ndarray:
    """Read .npy bytes; never unpickles.

    Raises:
        BadSample: if the bytes are not an array of numbers.
    """
    try:
        start = bytes(data[:_NPY_PREFIX_BYTES])
        if start[:-2] != _NPY_VERSION_1:
            return np.load(io.BytesIO(data), allow_pickle=False)
        end = _NPY_PREFIX_BYTES + int.from_bytes(start[-2:], "little")
        shape, order, dtype = _parse_npy_header(bytes(data[:end]))
        # np.load would copy the array twice on its way through a file object
        return np.frombuffer(data, dtype, count=math.prod(shape), offset=end).reshape(shape, order=order).copy()
    except (ValueError, EOFError, OSError) as error:
        raise BadSample("features", str(error)) from error


@functools.lru_cache(maxsize=4096)  # a few shapes come again and again, and parsing is slower than decoding a picture
def _parse_npy_header(header: bytes) -> tuple[tuple[int, ...], Literal["C", "F"], np.dtype]:
    """Return shape, order and type of an array from the beginning of its .npy file of version 1.0."""
    file = io.BytesIO(header)
    np.lib.format.read_magic(file)
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject:
        raise ValueError("an array of objects, not of numbers")
    return shape, "F" if fortran_order else "C", dtype


def pack_sample(sample: Sample) -> bytes:
    """Return the tar members of a sample: headers without owner or time, so equal samples give equal bytes."""
    parts = []
    for extension, data in sample.members().items():
        header = tarfile.TarInfo(f"{sample.key}.{extension}")
        header.size = len(data)
        parts += [header.tobuf(tarfile.PAX_FORMAT), data, b"\0" * (-len(data) % _BLOCK_BYTES)]
    return b"".join(parts)


def unpack_sample(data: bytes | memoryview, *, copy: bool = True) -> Sample:
    """Read the tar members of one sample from its own bytes of a shard.

    Args:
        data: exactly the bytes of the members of one sample, as `pack_sample` wrote them.
        copy: False leaves picture, recording and features as views of `data`: for decoding at once, where copying
            costs more than all the rest, not for keeping or sending.

    Raises:
        BadSample: if the bytes are not whole members of one sample.
    """
    view, position, key = memoryview(data), 0, ""
    parts: dict[str, Any] = {}
    while position < len(view):
        name, size, start = _read_header(view, position)
        member_key, _, extension = name.rpartition("/")[2].partition(".")
        if extension not in _EXTENSIONS or extension in parts or (key and member_key != key):
            raise BadSample("tar", f"unexpected member {name!r} beside {key!r}")
        if start + size > len(view):
            raise BadSample("tar", f"member {name!r} is cut short")
        body = view[start : start + size]
        key, parts[extension] = member_key, bytes(body) if copy else body
        position = start + size + -size % _BLOCK_BYTES
    if "json" not in parts:
        raise BadSample("tar", f"sample {key!r} has no json")
    return Sample(key, _read_metadata(key, parts["json"]), parts.get("jpg"), parts.get("flac"), parts.get("npy"))


def _read_header(view: memoryview, position: int) -> tuple[str, int, int]:
    """Return name, size and start of the body of the member at a position (ustar, or pax for the name).

    Ten times faster than `tarfile`, which parses owners and times that a shard does not have.
    """
    start = position + _BLOCK_BYTES
    try:
        field, digits, kind, magic = _HEADER.unpack_from(view, position)
        name = field.partition(b"\0")[0].decode(errors="replace")
        size = int(digits, 8)
    except (ValueError, struct.error) as error:
        raise BadSample("tar", f"no header at byte {position}") from error
    if magic != b"ustar" or size < 0:
        raise BadSample("tar", f"no header at byte {position}")
    if kind != tarfile.XHDTYPE:
        return name, size, start
    records = bytes(view[start : start + size])
    name, size, body = _read_header(view, start + size + -size % _BLOCK_BYTES)
    return _pax_path(records) or name, size, body


def _pax_path(records: bytes) -> str | None:
    """Return the path of a pax header: records of length, key, equals sign, value and line feed."""
    while records:
        digits = records.partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        if not length:
            raise BadSample("tar", f"no length in the extended header {records[:20]!r}")
        key, _, value = records[:length].partition(b" ")[2].partition(b"=")
        if key == b"path":
            return value.rstrip(b"\n").decode()
        records = records[length:]
    return None


def _read_metadata(key: str, data: bytes | memoryview) -> dict[str, Any]:
    try:
        metadata = orjson.loads(data)  # a tenth of the time of json, which was a third of unpacking
    except orjson.JSONDecodeError as error:
        raise BadSample("json", f"sample {key!r}: {error}") from error
    if not isinstance(metadata, dict):
        raise BadSample("json", f"sample {key!r} has {type(metadata).__name__} for metadata, not an object")
    missing = [name for name, kind in REQUIRED_FIELDS.items() if not isinstance(metadata.get(name), kind)]
    if missing:
        raise BadSample("json", f"sample {key!r} lacks {', '.join(missing)}")
    return metadata
