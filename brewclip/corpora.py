"""What the corpora on disk have in common: finding their files, putting recordings in rounds, making samples.

The formats themselves are in `datasets/`; writing is in `brewclip/recipe.py`.
"""

import hashlib
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from brewclip.audio import MAX_BYTES, SAMPLE_RATE_HZ, UndecodableAudio, decode_audio_with_damage, encode_flac
from brewclip.config import UserError
from brewclip.data.pictures import reduce_image
from brewclip.data.schema import BadSample, Sample
from brewclip.data.storage import FolderStorage, ObjectMissing, Storage, StorageError, open_storage

MIN_SECONDS, MAX_SECONDS = 0.1, 600.0
_LONGEST_ID = 100  # characters; longer names end in a hash
_PIECE_BYTES = 8 * 2**20  # of a text file, read at a time
_FIRST_SPLITS = ("train", "dev", "test")


@dataclass(frozen=True, slots=True)
class Recording:
    """One recording of a corpus, and the picture that it describes.

    Attributes:
        split: where it goes; empty leaves it out of the corpus, and `problem` says why.
        image_id: of the picture, or of the recording itself if there is none; as `safe_id` makes it.
        audio: file name below the source, or a URL.
        image: likewise; empty for a recording without a picture.
        text, speaker, emotion: empty if unknown.
        caption_id: the corpus's own name of the recording; empty takes the key.
        problem: why it cannot be used, a short word to count by; empty if nothing is known against it.
        key: set when rounds are made.
    """

    split: str
    image_id: str
    audio: str
    image: str = ""
    text: str = ""
    speaker: str = ""
    emotion: str = ""
    caption_id: str = ""
    problem: str = ""
    key: str = ""


class Source:
    """The files of a corpus in a directory or below a URL; they may lie deeper than the corpus says.

    Args:
        location: path of a directory, `file:///folder` or `s3://bucket/prefix`.

    Raises:
        UserError: if there is no such directory, or the URL is of another form.
    """

    def __init__(self, location: str) -> None:
        if "://" not in location:
            location = str(Path(location).expanduser().absolute())  # workers have another working directory
        self.location = location.rstrip("/") or "/"
        self.storage: Storage = open_storage(location) if "://" in location else FolderStorage(Path(location))
        if isinstance(self.storage, FolderStorage) and not self.storage.folder.is_dir():
            raise UserError(f"--source {location} is not a directory: unpack the corpus and name its folder")

    def __reduce__(self) -> tuple[type["Source"], tuple[str]]:
        return Source, (self.location,)  # workers read files by name and need no listing

    @cached_property
    def names(self) -> list[str]:
        """All file names, sorted, shallow ones first."""
        if isinstance(self.storage, FolderStorage):
            names = list(_walk(self.storage.folder))
        else:
            names = self.storage.list_names()
        return sorted(names, key=lambda name: (name.count("/"), name))

    @cached_property
    def _by_last_part(self) -> dict[str, list[str]]:
        index: dict[str, list[str]] = {}
        for name in self.names:
            index.setdefault(name.rpartition("/")[2], []).append(name)
        return index

    def find(self, tail: str) -> str:
        """Return the file whose name ends in `tail` (whole parts of a path), or an empty string."""
        for name in self._by_last_part.get(tail.rpartition("/")[2], ()):
            if name == tail or name.endswith(f"/{tail}"):
                return name
        return ""

    def require(self, *tails: str) -> str:
        """Return the first of these files that is there.

        Raises:
            UserError: naming all of them, if none is.
        """
        found = next(filter(None, map(self.find, tails)), "")
        if not found:
            raise UserError(f"--source {self.location} has no {' or '.join(tails)}: is it the folder of this corpus?")
        return found

    def text(self, name: str) -> str:
        """Return a text file whole, without byte order mark, its line ends made the same.

        Raises:
            UserError: if it is missing or not UTF-8.
        """
        data = self.storage.read(name)
        try:
            return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
        except UnicodeDecodeError as error:
            raise UserError(f"{self.location}/{name} is not UTF-8 text: {error}") from None

    def lines(self, name: str) -> Iterator[str]:
        """Yield the lines of a text file that are not blank, holding little of it; they end at a line feed only.

        Raises:
            UserError: if it is missing or not UTF-8.
        """
        try:
            for number, line in enumerate(self._byte_lines(name)):
                text = line.decode("utf-8-sig" if number == 0 else "utf-8").rstrip("\r")
                if text.strip():
                    yield text
        except UnicodeDecodeError as error:
            raise UserError(f"{self.location}/{name} is not UTF-8 text: {error}") from None

    def _byte_lines(self, name: str) -> Iterator[bytes]:
        start, rest = 0, b""
        while piece := self.storage.read_range(name, start, start + _PIECE_BYTES):
            start += len(piece)
            *lines, rest = (rest + piece).split(b"\n")
            yield from lines
        yield rest

    def json(self, name: str, text: str | None = None, line: int = 0) -> Any:
        """Parse a JSON file, or one line of it.

        Raises:
            UserError: naming the file and the line.
        """
        try:
            return json.loads(self.text(name) if text is None else text)
        except ValueError as error:
            where = f"line {line} of " if line else ""
            raise UserError(f"{where}{self.location}/{name} is not JSON ({error}): download it again") from None

    def read(self, name: str, kind: str) -> bytes:
        """Read a recording or picture.

        Raises:
            BadSample: with the cause `missing_<kind>` or `unreadable_<kind>`.
        """
        storage, name = _split_url(name) if "://" in name else (self.storage, name)
        try:
            # One byte more than the limit is enough to see that a file is too large.
            return storage.read_range(name, 0, MAX_BYTES + 1)
        except ObjectMissing as error:
            raise BadSample(f"missing_{kind}", str(error)) from error
        except StorageError:
            raise
        except (OSError, ValueError) as error:  # a name with a null byte is a ValueError
            raise BadSample(f"unreadable_{kind}", str(error)) from error


class FileCorpus:
    """A corpus of files: a `Recipe` made from the list of its recordings.

    Pictures come in an order that has nothing to do with their names, the same on every machine.

    Args:
        corpus: its name.
        source: where the files are.
        recordings: in the corpus's own order; the k-th of a picture goes to round k.
        image_side_pixels: short side that pictures are reduced to; 0 keeps their bytes.

    Raises:
        UserError: if no recording is listed, none of them can be used, or a picture lies in two splits.
    """

    def __init__(self, corpus: str, source: Source, recordings: Iterable[Recording], image_side_pixels: int) -> None:
        self.corpus, self.source, self.image_side_pixels = corpus, source, image_side_pixels
        listed = list(recordings)
        self.left_out = [recording for recording in listed if not recording.split]
        used = [recording for recording in listed if recording.split]
        _check_some_are_usable(source, used)
        check_splits(used)
        self._rounds = _in_rounds(used)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"left_out": [], "_rounds": {}}  # a worker gets its items one shard at a time

    def splits(self) -> list[str]:
        first = [split for split in _FIRST_SPLITS if split in self._rounds]
        return first + sorted(set(self._rounds) - set(first))

    def rounds(self, split: str) -> list[list[Recording]]:
        return self._rounds[split]

    def make_sample(self, item: Recording) -> Sample:
        if item.problem:
            raise BadSample(item.problem, item.audio)
        metadata: dict[str, Any] = {
            "image_id": item.image_id,
            "caption_id": item.caption_id or item.key,
            "split": item.split,
        }
        known = {"text": item.text, "speaker": item.speaker, "emotion": item.emotion}
        metadata |= {name: value for name, value in known.items() if value}
        # JSON can hold half of a surrogate pair, UTF-8 cannot.
        metadata = {name: value.encode(errors="replace").decode() for name, value in metadata.items()}
        audio, facts = to_flac(self.source.read(item.audio, "recording"))
        image = self.source.read(item.image, "picture") if item.image else None
        image = image and reduce_image(image, self.image_side_pixels, exact=False)
        return Sample(item.key, metadata | facts, image, audio)


def join(source: Source, recordings: Iterable[Recording]) -> Iterator[Recording]:
    """Yield the recordings with the names of their files as they lie, or marked if one is missing."""
    for recording in recordings:
        audio, image = source.find(recording.audio), recording.image and source.find(recording.image)
        missing = "missing_recording" if not audio else "missing_picture" if recording.image and not image else ""
        yield replace(
            recording,
            audio=audio or recording.audio,
            image=image or recording.image,
            problem=recording.problem or missing,
        )


def check_splits(recordings: Iterable[Recording]) -> None:
    """Prove that no picture, by its name or by its file, lies in two splits.

    Raises:
        UserError: with the number of those that do, and one of them.
    """
    first_split: dict[tuple[str, str], str] = {}
    torn: dict[str, tuple[str, str]] = {}
    for recording in recordings:
        for identity in (("id", recording.image_id), ("file", recording.image)):
            split = first_split.setdefault(identity, recording.split) if identity[1] else recording.split
            if split != recording.split:
                torn[recording.image or recording.image_id] = (split, recording.split)
    if torn:
        name, (one, other) = next(iter(torn.items()))
        count = "one picture lies" if len(torn) == 1 else f"{len(torn)} pictures lie"
        raise UserError(f"{count} in two splits, e.g. {name!r} in {one} and {other}: give every picture one split")


def to_flac(data: bytes) -> tuple[bytes, dict[str, float]]:
    """Decode a recording once and encode it as 16 kHz mono FLAC; of a damaged one, what decodes.

    Returns:
        FLAC bytes, and duration_seconds with, for a damaged one, missing_seconds.

    Raises:
        BadSample: if nothing decodes, or it is not 0.1 s to 10 minutes long.
    """
    try:
        decoded = decode_audio_with_damage(data, max_seconds=MAX_SECONDS)
    except UndecodableAudio as error:
        raise BadSample(error.cause, str(error)) from error
    seconds = len(decoded.waveform) / SAMPLE_RATE_HZ
    if seconds < MIN_SECONDS:
        raise BadSample("too_short", f"the recording lasts {seconds:.3f} s, the least is {MIN_SECONDS} s")
    facts = {"duration_seconds": round(seconds, 3)}
    if decoded.missing_seconds > 0.01:
        facts["missing_seconds"] = round(decoded.missing_seconds, 3)
    return encode_flac(decoded.waveform), facts


def safe_id(name: str) -> str:
    """Return a name that can be a key: letters, digits and -_+=@ as they are, anything else as `_` and a hash.

    Different names give different ids; a file name loses its extension.
    """
    name = unicodedata.normalize("NFC", name)
    if re.fullmatch(r"[^\W_][\w\-+=@]*", name) and len(name) <= _LONGEST_ID:
        return name
    stem = re.sub(r"\.[A-Za-z0-9]{1,5}$", "", name)
    digest = hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=5).hexdigest()
    words = re.sub(r"[^\w\-+=@]+", "_", stem)[-_LONGEST_ID:].strip("_-")
    return f"{words or 'image'}-{digest}"


def place_in_unit_interval(image_id: str, seed: int) -> float:
    """Return a number in 0..1 that depends on picture and seed alone: more pictures move none to another split."""
    digest = hashlib.blake2b(f"{seed}/{image_id}".encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def _in_rounds(recordings: list[Recording]) -> dict[str, list[list[Recording]]]:
    pictures: dict[str, list[Recording]] = {}
    for recording in recordings:
        pictures.setdefault(recording.image_id, []).append(recording)
    rounds: dict[str, list[list[Recording]]] = {}
    for image_id in sorted(pictures, key=lambda name: (place_in_unit_interval(name, 0), name)):
        for number, recording in enumerate(pictures[image_id]):
            of_split = rounds.setdefault(recording.split, [])
            if number == len(of_split):
                of_split.append([])
            of_split[number].append(replace(recording, key=f"{image_id}-{number}"))
    return rounds


def _check_some_are_usable(source: Source, recordings: list[Recording]) -> None:
    if not recordings:
        raise UserError(f"--source {source.location} lists no recording of any split")
    if not all(recording.problem for recording in recordings):
        return
    problems = Counter(recording.problem for recording in recordings).most_common()
    first = next(recording for recording in recordings if recording.problem == problems[0][0])
    name = first.image if first.problem == "missing_picture" else first.audio
    raise UserError(
        f"--source {source.location} has no usable recording among the {len(recordings)} listed "
        f"({', '.join(f'{count} {problem}' for problem, count in problems)}; e.g. {name}): "
        "unpack pictures and recordings there"
    )


def _walk(folder: Path) -> Iterator[str]:
    """Yield the files below a folder; links to folders are followed, each folder once."""
    seen: set[tuple[int, int]] = set()
    for top, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(top)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        prefix = os.path.relpath(top, folder)
        yield from (name if prefix == "." else f"{prefix}/{name}" for name in files)


def _split_url(url: str) -> tuple[Storage, str]:
    """Return the storage of an object's folder and its name; a '#' or '?' in the name is part of it."""
    base, _, name = url.rpartition("/")
    return open_storage(base), unquote(name) if base.startswith("file:") else name
