"""Schema of a sample: one pair of image and recording, as the members `<key>.jpg`, `<key>.flac`, `<key>.json`.

After extraction the same key holds `<key>.jpg`, `<key>.npy` (Whisper features) and a json with more fields.
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
HEARD_FIELDS = ("transcript", "unfiltered_transcript", "greedy_transcript")
"""Whisper's transcripts: without what its checks reject, with it as last decoded, and as first; all may be empty."""
ALTERNATIVES = "alternatives"
"""Whisper's greedy transcript and sampled ones, as lists of a text and its mean log probability."""
TEXT_FIELDS = {
    "asr": "transcript",
    "asr_unfiltered": "unfiltered_transcript",
    "asr_greedy": "greedy_transcript",
    "asr_mean": "greedy_transcript",
    "ground_truth": "text",
}
"""Setting `data.transcript` -> field of the metadata that holds this text; `asr_mean` reads the alternatives too."""
_BLOCK_BYTES = 512
_HEADER = struct.Struct("100s24x11s21x1s100x5s")  # name, size in octal digits, kind of member, magic
_MOST_EXTENDED_BYTES, _MOST_LENGTH_DIGITS = 2**20, 7  # of a header before a member, and of the length of its records
_NPY_VERSION_1 = b"\x93NUMPY\x01\x00"
_NPY_PREFIX_BYTES = len(_NPY_VERSION_1) + 2  # and the length of the header
_EXTENSIONS = frozenset({"jpg", "flac", "npy", "json"})
_MOST_METADATA_BYTES = 2**20  # an hour of speech is 60,000 letters
_MAX_DEPTH = 200  # levels of objects and lists in metadata; Python's json cannot write a thousand of them
_MOST_DIMENSIONS, _LONGEST_SIDE = 4, 2**40  # of an array; an empty one may claim any length for its other sides
_MOST_LETTERS = 200  # of another library's message
_NUMBERS = "fiub"  # kinds of numpy's types that hold one number
_NOTHING: Mapping[str, Any] = MappingProxyType({})


def heard_text(text: str) -> dict[str, Any]:
    """Return the metadata of a recording of which Whisper read a text and is certain of it."""
    return dict.fromkeys(HEARD_FIELDS, text) | {ALTERNATIVES: [[text, 0.0]]}


class BadSample(ValueError):
    """A sample that cannot be used; `cause` is a short word for counting."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause, self.detail = cause, detail


class Sample(NamedTuple):  # made five times faster than a frozen dataclass, and one is made for each sample read
    """One pair of image and recording.

    Attributes:
        key: `<image_id>-<k>` for caption k of an image; no dot, no slash.
        metadata: the json: image_id, caption_id, split, duration_seconds; text, speaker, emotion if known.
        image: JPEG bytes, or None for a recording without an image.
        audio: FLAC bytes (16 kHz mono), or None after extraction. Those of an adopted shard are of any format.
        features: npy bytes of Whisper features, float16 of shape (frames, dim), or None before extraction.
        embeddings: cached embeddings of text and image, float32 of shape (E,) each, where a reader adds them.
    """

    key: str
    metadata: Mapping[str, Any] = _NOTHING
    image: bytes | None = None
    audio: bytes | None = None
    features: bytes | None = None
    embeddings: tuple[np.ndarray, np.ndarray] | None = None

    def copied(self) -> "Sample":
        """Return a copy of the sample that owns its bytes instead of viewing what was read, to store or send."""
        image, audio, features = (part and bytes(part) for part in (self.image, self.audio, self.features))
        return self._replace(image=image, audio=audio, features=features)

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
    """Read .npy bytes; never unpickles, and allocates only for the numbers that are there.

    Raises:
        BadSample: if the bytes are not just one array of numbers.
    """
    start = bytes(data[:_NPY_PREFIX_BYTES])
    if not start.startswith(_NPY_VERSION_1):
        raise BadSample("features", _what_else(start))
    end = _NPY_PREFIX_BYTES + int.from_bytes(start[-2:], "little")
    shape, order, dtype, size = _parse_npy_header(bytes(data[:end]))
    if len(data) - end != size:
        raise BadSample("features", f"{dtype} {shape} has {size} bytes of numbers, there are {len(data) - end}")
    # np.load would copy the array twice on its way through a file object
    return np.frombuffer(data, dtype, offset=end).reshape(shape, order=order).copy()


def read_features(data: bytes | memoryview, audio_dim: int = 0) -> np.ndarray:
    """Read Whisper features.

    Args:
        data: of an .npy file.
        audio_dim: width that they must have; 0 takes any from 2 on.

    Returns:
        (frames, dim) float16, all of them finite.

    Raises:
        BadSample: if they are something else.
    """
    features = npy_to_array(data)
    if features.ndim != 2 or features.dtype != np.float16 or features.shape[1] < 2:
        raise BadSample("features", f"{features.dtype} {features.shape}, not float16 (frames, dim)")
    if audio_dim and features.shape[1] != audio_dim:
        raise BadSample("features", f"a width of {features.shape[1]}, those of this split have {audio_dim}")
    if not _is_finite(features):
        raise BadSample("features", "numbers that are not finite: extract it again")
    return features


def _is_finite(array: np.ndarray) -> bool:
    """Return whether every float16 is a finite number, in a fifth of the time of `np.isfinite`, which converts each."""
    return not array.size or int((array.view(np.uint16) & 0x7FFF).max()) < 0x7C00


def _what_else(start: bytes) -> str:
    """Describe bytes that are no .npy file of version 1.0, the one that numpy writes for plain numbers."""
    if start.startswith(_NPY_VERSION_1[:-2]):
        return f"an .npy file of version {start[6:7].hex()}.{start[7:8].hex()}, which plain numbers do not need"
    return f"no .npy file but {'an .npz or other zip archive' if start[:2] == b'PK' else repr(start)}"


@functools.lru_cache(maxsize=4096)  # a few shapes come again and again, and parsing is slower than decoding an image
def _parse_npy_header(header: bytes) -> tuple[tuple[int, ...], Literal["C", "F"], np.dtype, int]:
    """Return shape, order, type and size in bytes of an array, from the beginning of its .npy file of version 1.0."""
    file = io.BytesIO(header)
    try:
        np.lib.format.read_magic(file)
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    except Exception as error:  # numpy evaluates the header as Python: anything can come of it
        raise BadSample("features", f"the header cannot be read: {first_line(error)}") from error
    possible = len(shape) <= _MOST_DIMENSIONS and all(type(side) is int and 0 <= side < _LONGEST_SIDE for side in shape)
    if dtype.kind not in _NUMBERS or not possible:
        raise BadSample("features", f"an array of {str(dtype)[:40]} {str(shape)[:40]}, not of numbers")
    return shape, "F" if fortran_order else "C", dtype, math.prod(shape) * dtype.itemsize


def first_line(error: object) -> str:
    """Return the first line of an error's message, of at most 200 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:_MOST_LETTERS]


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
        copy: False leaves image, recording and features as views of `data`: for decoding at once, where copying
            costs more than all the rest, not for storing or sending.

    Raises:
        BadSample: if the bytes are not whole members of one sample.
    """
    view, position, key = memoryview(data), 0, ""
    parts: dict[str, Any] = {}
    while position < len(view):
        name, size, start = _read_header(view, position)
        member_key, _, extension = name.rpartition("/")[2].partition(".")
        if extension not in _EXTENSIONS or extension in parts or (key and member_key != key):
            raise BadSample("tar", f"unexpected member {name!r} next to {key!r}")
        if start + size > len(view):
            raise BadSample("tar", f"member {name!r} is truncated")
        body = view[start : start + size]
        key, parts[extension] = member_key, bytes(body) if copy else body
        position = start + size + -size % _BLOCK_BYTES
    if "json" not in parts:
        raise BadSample("tar", f"sample {key!r} has no json")
    return Sample(key, _read_metadata(key, parts["json"]), parts.get("jpg"), parts.get("flac"), parts.get("npy"))


def _read_header(view: memoryview, position: int, after_extended: bool = False) -> tuple[str, int, int]:
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
    if after_extended or size > _MOST_EXTENDED_BYTES:
        raise BadSample("tar", f"an extended header of {size} bytes at byte {position}, or one after another")
    records = bytes(view[start : start + size])
    name, size, body = _read_header(view, start + size + -size % _BLOCK_BYTES, after_extended=True)
    return _pax_path(records) or name, size, body


def _pax_path(records: bytes) -> str | None:
    """Return the path of a pax header: records of length, key, equals sign, value and line feed."""
    position = 0
    while position < len(records):
        digits = records[position : position + _MOST_LENGTH_DIGITS + 1].partition(b" ")[0]
        end = position + (int(digits) if digits.isdigit() else 0)
        if not position + len(digits) < end <= len(records):
            raise BadSample("tar", f"no length in the extended header {records[position : position + 20]!r}")
        start = position + len(digits) + 1
        if records.startswith(b"path=", start):
            return records[start + len(b"path=") : end].rstrip(b"\n").decode(errors="replace")
        position = end
    return None


def is_deeper(value: Any, max_depth: int) -> bool:
    """Return whether parsed JSON has objects and lists within each other on more than `max_depth` levels."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(max_depth):
        if not level:
            return False
        parts = (part.values() if isinstance(part, dict) else part for part in level)
        level = [one for part in parts for one in part if isinstance(one, dict | list)]
    return bool(level)


def _read_metadata(key: str, data: bytes | memoryview) -> dict[str, Any]:
    if len(data) > _MOST_METADATA_BYTES:
        raise BadSample(
            "json", f"sample {key!r} has {len(data)} bytes of metadata, the limit is {_MOST_METADATA_BYTES}"
        )
    try:
        metadata = orjson.loads(data)  # a tenth of the time of json, which was a third of unpacking
    except orjson.JSONDecodeError as error:
        raise BadSample("json", f"sample {key!r}: {error}") from error
    if not isinstance(metadata, dict):
        raise BadSample("json", f"sample {key!r} has {type(metadata).__name__} for metadata, not an object")
    if len(data) > 2 * _MAX_DEPTH and is_deeper(metadata, _MAX_DEPTH):  # each level takes two bytes or more
        raise BadSample("json", f"sample {key!r} has metadata nested deeper than {_MAX_DEPTH} levels")
    missing = [name for name, kind in REQUIRED_FIELDS.items() if not isinstance(metadata.get(name), kind)]
    if missing:
        raise BadSample("json", f"sample {key!r} lacks {', '.join(missing)}")
    return metadata
