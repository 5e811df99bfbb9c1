"""Grouping of tar members to samples as WebDataset groups them, each decoded once, with its problems.

Consecutive members of one key are a sample; the name after its first dot gives the kind of a member.
A recording `KEY.0.wav` belongs to `KEY.0.jpg` if there is one, and else to the only image of `KEY`.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from brewclip.audio import MAX_BYTES
from brewclip.containers.sources import split_name
from brewclip.corpora.rounds import decode_recording
from brewclip.data.adopted import Span
from brewclip.data.images import open_image
from brewclip.data.schema import BadSample
from brewclip.data.tars import TarBytes, TarMember
from brewclip.errors import UserError

_META = re.compile(r"__[^/]*__($|/)")  # names that WebDataset skips
_MOST_TEXT_BYTES = 2**24
_MOST_RANGE_BYTES = 2 * MAX_BYTES  # read at once for a sample of an adopted tar, with the bytes before it


@dataclass(frozen=True)
class Rules:
    """Naming rules of the members of a sample.

    Attributes:
        image_ext, audio_ext: extensions; of several members of one sample that differ in them alone, the first counts.
        text_ext: extensions of members that are texts; each is a field of that name, in addition to those of the json.
        text_field: fields that may hold the text; the first present is used.
        id_field: field that names the image; empty takes the key.
        split_field: field that names the split; empty if there is none.
        speaker_field, emotion_field: likewise.
        without_images: samples are recordings alone.
    """

    image_ext: tuple[str, ...] = ("jpg", "jpeg", "png", "webp")
    audio_ext: tuple[str, ...] = ("flac", "wav", "ogg", "mp3")
    text_ext: tuple[str, ...] = ("txt", "cls")
    text_field: tuple[str, ...] = ("text", "caption", "txt")
    id_field: str = ""
    split_field: str = ""
    speaker_field: str = "speaker"
    emotion_field: str = "emotion"
    without_images: bool = False

    def kind_of(self, suffix: str) -> tuple[str, str, int, str] | None:
        """Return kind, what precedes the extension, its rank among those of its kind, and the extension itself."""
        kinds = {"image": self.image_ext, "audio": self.audio_ext, "json": ("json",), "text": self.text_ext}
        for kind, extensions in kinds.items():
            for rank, extension in enumerate(extensions):
                if suffix == extension or suffix.endswith(f".{extension}"):
                    return kind, suffix[: -len(extension)].rstrip("."), rank, extension
        return None

    @property
    def fields(self) -> set[str]:
        """All fields that are read."""
        names = (*self.text_field, self.id_field, self.split_field, self.speaker_field, self.emotion_field)
        return set(names) - {""}


@dataclass(frozen=True)
class _Part:
    """An image or a recording: its position, and the results of decoding it."""

    span: Span
    rank: int
    facts: dict[str, Any]
    problem: tuple[str, str] | None


@dataclass
class _Group:
    """Members of one key; `fields` and parts by what precedes their extension."""

    key: str
    images: dict[str, _Part] = field(default_factory=dict)
    recordings: dict[str, _Part] = field(default_factory=dict)
    fields: dict[str, dict[str, Any]] = field(default_factory=dict)
    suffixes: set[str] = field(default_factory=set)
    problem: tuple[str, str] | None = None


class SampleFinder:
    """Collect samples from the members of a tar in their order, without holding images or recordings.

    Attributes:
        obstacle: why the tar cannot be adopted, in words; empty if it can.
        num_others: members of none of the expected kinds.
    """

    def __init__(self, rules: Rules, tar: TarBytes) -> None:
        self.rules, self._tar = rules, tar
        self._groups: dict[str, _Group] = {}
        self._ranges: dict[str, tuple[int, int]] = {}
        self._end = (0, 0)
        self._open: _Group | None = None
        self._last_key = ""
        self.obstacle = ""
        self.num_others = 0

    def wanted(self, name: str, size: int) -> bool:
        """Return whether the bytes of a member are needed."""
        kind = self._kind_of(name)[2]
        return bool(kind) and size <= (MAX_BYTES if kind in ("image", "audio") else _MOST_TEXT_BYTES)

    def add(self, member: TarMember) -> None:
        """Add the next member, whose bytes were all read."""
        key, suffix, kind = self._kind_of(member.name)
        if key is None:
            return
        if key != self._last_key:
            self.close()
            self._last_key = key
        if not kind:
            self.num_others += 1
            return
        if self._open is None:
            self._open = self._groups.setdefault(key, _Group(key))
            if self._open.suffixes:
                self._object(f"the members of {key!r} are not contiguous")
        self._fill(self._open, member, suffix)
        self._tar.mark()

    def close(self, damage: str = "") -> None:
        """End the current sample; if the tar is damaged after it, some of its members may be lost."""
        group, self._open = self._open, None
        if group is None:
            return
        if damage:
            group.problem = "damaged_tar", damage
        rows = list(self._rows_of(group))
        if len(rows) > 1:
            self._object(f"{group.key!r} holds {len(rows)} recordings")
        elif "problem" not in rows[0]:
            start, self._end = self._end, self._tar.end_range()
            self._ranges[group.key] = self._end
            if self._end[0] - start[0] > _MOST_RANGE_BYTES:
                self._object(f"{self._end[0] - start[0]} bytes are between {group.key!r} and the sample before it")

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield a row for each recording; one with `problem` and `detail` cannot be used."""
        for group in self._groups.values():
            for row in self._rows_of(group):
                yield row | ({"range": self._ranges[group.key]} if group.key in self._ranges else {})

    def _object(self, obstacle: str) -> None:
        self.obstacle = self.obstacle or obstacle

    def _kind_of(self, name: str) -> tuple[str | None, str, str]:
        """Return key, suffix and kind of a member; no key for one that WebDataset skips."""
        from webdataset.tariterators import base_plus_ext  # with torch, which --help does not need

        key, suffix = (None, None) if _META.match(name) else base_plus_ext(name)
        if key is None or suffix is None:
            return None, "", ""
        kind = self.rules.kind_of(suffix.lower())
        return key.encode(errors="replace").decode(), suffix.lower(), kind[0] if kind else ""

    def _fill(self, group: _Group, member: TarMember, suffix: str) -> None:
        kind = self.rules.kind_of(suffix)
        assert kind is not None
        what, prefix, rank, extension = kind
        if suffix in group.suffixes:
            group.problem = group.problem or ("duplicate_member", f"there are two members {suffix!r}")
            return
        group.suffixes.add(suffix)
        if what in ("json", "text"):
            try:
                found = _read_fields(member, what, extension, self.rules)
            except BadSample as error:
                group.problem = group.problem or (error.cause, str(error))
            else:
                group.fields.setdefault(prefix, {}).update(found)
            return
        parts = group.images if what == "image" else group.recordings
        if prefix not in parts or rank < parts[prefix].rank:
            parts[prefix] = _read_part(member, what, rank, extension)

    def _rows_of(self, group: _Group) -> Iterator[dict[str, Any]]:
        common: dict[str, Any] = {}
        for prefix, fields in group.fields.items():
            if prefix not in group.recordings:
                common |= fields
        for number, prefix in enumerate(group.recordings or {"": None}):
            row: dict[str, Any] = {"key": group.key.removeprefix("./")} | ({"part": prefix} if prefix else {})
            try:
                row |= self._content(group, prefix, number, common | group.fields.get(prefix, {}))
            except BadSample as error:
                row |= {"problem": error.cause, "detail": str(error)}
            yield row

    def _content(self, group: _Group, prefix: str, number: int, fields: dict[str, Any]) -> dict[str, Any]:
        """Return the rest of a row.

        Raises:
            BadSample: if the sample cannot be used.
        """
        if group.problem:
            raise BadSample(*group.problem)
        if not group.recordings:
            raise BadSample("no_audio", f"no {'|'.join(self.rules.audio_ext)} among {sorted(group.suffixes)}")
        recording, image = group.recordings[prefix], self._image_of(group, prefix)
        for part in (recording, image):
            if part and part.problem:
                raise BadSample(*part.problem)
        known = {name: _text(fields.get(name), number, len(group.recordings)) for name in self.rules.fields}
        metadata: dict[str, Any] = {
            "text": next((known[name] for name in self.rules.text_field if known[name]), ""),
            "speaker": known.get(self.rules.speaker_field, ""),
            "emotion": known.get(self.rules.emotion_field, ""),
        }
        metadata = {name: text for name, text in metadata.items() if text} | recording.facts
        row: dict[str, Any] = {"audio": recording.span, "metadata": metadata}
        if image:
            row |= {"image": image.span} | image.facts
        if prefix and (image is None or prefix in group.images):
            row["image_part"] = prefix
        if self.rules.id_field:
            if not known[self.rules.id_field]:
                raise BadSample("no_id", f"there is no field {self.rules.id_field!r}")
            row["id"] = known[self.rules.id_field]
        if self.rules.split_field:
            row["split"] = _split(known[self.rules.split_field], self.rules.split_field)
        return row

    def _image_of(self, group: _Group, prefix: str) -> _Part | None:
        if self.rules.without_images:
            return None
        if not group.images:
            raise BadSample("no_image", f"no {'|'.join(self.rules.image_ext)} among {sorted(group.suffixes)}")
        found = group.images.get(prefix) or group.images.get("")
        if found is None and len(group.images) > 1:
            raise BadSample("several_images", f"none of {len(group.images)} images is named like a recording")
        return found or next(iter(group.images.values()))


def _read_part(member: TarMember, what: str, rank: int, extension: str) -> _Part:
    """Decode an image or a recording, and return its facts."""
    facts: dict[str, Any] = {}
    problem = None
    try:
        if member.data is None:
            raise BadSample("too_many_bytes", f"{member.name!r} has {member.size} bytes, the limit is {MAX_BYTES}")
        if what == "image":
            open_image(member.data)
            facts["image_hash"] = hashlib.blake2b(member.data, digest_size=8).hexdigest()
        else:
            facts = decode_recording(member.data)[1]
    except BadSample as error:
        problem = error.cause, re.sub(r"<[^<>]* at 0x[0-9a-f]+>", "the file", str(error))
    return _Part((member.start, member.start + member.size, extension), rank, facts, problem)


def _read_fields(member: TarMember, what: str, extension: str, rules: Rules) -> dict[str, Any]:
    """Return the fields of a json or text that are needed."""
    if member.data is None:
        raise BadSample(what, f"{member.name!r} has {member.size} bytes, the limit is {_MOST_TEXT_BYTES}")
    if what == "text":
        try:
            return {extension: member.data.decode("utf-8-sig").strip()} if extension in rules.fields else {}
        except UnicodeDecodeError as error:
            raise BadSample("text", f"{member.name!r} is not UTF-8: {error}") from error
    try:
        fields = orjson.loads(member.data)
    except orjson.JSONDecodeError as error:
        raise BadSample("json", f"{member.name!r}: {error}") from error
    if not isinstance(fields, dict):
        fields = {"text": fields}  # a caption, or a list of them
    return {name: fields[name] for name in rules.fields & fields.keys()}


def _text(value: Any, number: int, count: int) -> str:
    """Return a field as text; of a list with an entry for each recording, the one of this recording."""
    if isinstance(value, list):
        value = value[number] if len(value) == count else ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None or isinstance(value, list | dict) else str(value).strip()


def _split(name: str, field_name: str) -> str:
    if not name:
        raise BadSample("no_split", f"there is no field {field_name!r}")
    try:
        return split_name(name)
    except UserError as error:
        raise BadSample("no_split", str(error)) from error
