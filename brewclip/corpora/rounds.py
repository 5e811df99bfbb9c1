"""Corpora of files as rounds of recordings, and the samples built from them.

The formats are in `datasets/`; `source.py` finds and reads files, `recipe.py` writes shards.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brewclip.audio import SAMPLE_RATE_HZ, UndecodableAudio, decode_audio_with_damage, encode_flac
from brewclip.corpora.source import Source
from brewclip.data.images import reduce_image
from brewclip.data.schema import BadSample, Sample
from brewclip.errors import UserError

MIN_SECONDS, MAX_SECONDS = 0.1, 600.0
_LONGEST_ID = 100  # characters; longer names end in a hash
_FIRST_SPLITS = ("train", "dev", "test")


@dataclass(frozen=True, slots=True)
class Recording:
    """One recording of a corpus, and the image that it describes.

    Attributes:
        split: its split; empty leaves it out of the corpus, and `problem` gives the cause.
        image_id: of the image, or of the recording itself if there is none; as `safe_id` makes it.
        audio: file name below the source, or a URL.
        image: likewise; empty for a recording without an image.
        text, speaker, emotion: empty if unknown.
        caption_id: the corpus's own name of the recording; empty takes the key.
        problem: why it cannot be used, a short word for counting; empty if no problem is known.
        key: set when rounds are built.
        group: recordings that are read together (a row group of a Parquet file); empty for separate files.
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
    group: str = field(default="", repr=False)  # location does not change the content of a sample


class FileCorpus:
    """A corpus of files: a `Recipe` built from the list of its recordings.

    Images are in an order independent of their names, the same on every machine; those of one group stay together.

    Args:
        corpus: its name.
        source: where the files are.
        recordings: in the corpus's own order; the k-th of an image goes to round k.
        image_side_pixels: short side that images are reduced to; 0 keeps their bytes.
        remarks: notes on the splits for the user, a line each, printed at the end.

    Raises:
        UserError: if no recording is listed, none of them can be used, or an image is in two splits.
    """

    def __init__(
        self,
        corpus: str,
        source: Source,
        recordings: Iterable[Recording],
        image_side_pixels: int,
        remarks: Sequence[str] = (),
    ) -> None:
        self.corpus, self.source, self.image_side_pixels = corpus, source, image_side_pixels
        self.remarks = list(remarks)
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
        image = self.source.read(item.image, "image") if item.image else None
        image = image and reduce_image(image, self.image_side_pixels, exact=False)
        return Sample(item.key, metadata | facts, image, audio)


def join(source: Source, recordings: Iterable[Recording]) -> Iterator[Recording]:
    """Yield the recordings with the full names of their files, or marked if one is missing."""
    for recording in recordings:
        audio, image = source.find(recording.audio), recording.image and source.find(recording.image)
        missing = "missing_recording" if not audio else "missing_image" if recording.image and not image else ""
        yield replace(
            recording,
            audio=audio or recording.audio,
            image=image or recording.image,
            problem=recording.problem or missing,
        )


def check_splits(recordings: Iterable[Recording]) -> None:
    """Check that no image, by its name or by its file, is in two splits.

    Raises:
        UserError: with the number of those that do, and one of them.
    """
    first_split: dict[tuple[str, str], str] = {}
    conflicts: dict[str, tuple[str, str]] = {}
    for recording in recordings:
        for identity in (("id", recording.image_id), ("file", recording.image)):
            split = first_split.setdefault(identity, recording.split) if identity[1] else recording.split
            if split != recording.split:
                conflicts[recording.image or recording.image_id] = (split, recording.split)
    if conflicts:
        name, (one, other) = next(iter(conflicts.items()))
        count = "one image is" if len(conflicts) == 1 else f"{len(conflicts)} images are"
        raise UserError(f"{count} in two splits, e.g. {name!r} in {one} and {other}: give every image one split")


def to_flac(data: bytes) -> tuple[bytes, dict[str, Any]]:
    """Decode a recording once and encode it as 16 kHz mono FLAC; of a damaged one, the part that decodes.

    Returns:
        FLAC bytes, and duration_seconds with, for a damaged one, missing_seconds, or truncated if the missing length
        is unknown; decoder_warnings, the number of warning lines of the MP3 decoder.

    Raises:
        BadSample: if nothing decodes, or it is not 0.1 s to 10 minutes long.
    """
    waveform, facts = decode_recording(data)
    return encode_flac(waveform), facts


def decode_recording(data: bytes) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Decode a recording as `to_flac` does; return its waveform and the same facts."""
    try:
        decoded = decode_audio_with_damage(data, max_seconds=MAX_SECONDS)
    except UndecodableAudio as error:
        raise BadSample(error.cause, str(error)) from error
    seconds = len(decoded.waveform) / SAMPLE_RATE_HZ
    if seconds < MIN_SECONDS:
        raise BadSample("too_short", f"the recording lasts {seconds:.3f} s, the least is {MIN_SECONDS} s")
    facts: dict[str, Any] = {"duration_seconds": round(seconds, 3)}
    if decoded.missing_seconds > 0.01:
        facts["missing_seconds"] = round(decoded.missing_seconds, 3)
    elif decoded.truncated:
        facts["truncated"] = True
    if decoded.decoder_warnings:
        facts["decoder_warnings"] = decoded.decoder_warnings
    return decoded.waveform, facts


def safe_id(name: str) -> str:
    """Return a name that can be a key: letters, digits and -_+=@ unchanged, anything else as `_` and a hash.

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
    """Return a number in 0..1 that depends on image and seed alone, so that new images move none to another split."""
    digest = hashlib.blake2b(f"{seed}/{image_id}".encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def _in_rounds(recordings: list[Recording]) -> dict[str, list[list[Recording]]]:
    images: dict[str, list[Recording]] = {}
    for recording in recordings:
        images.setdefault(recording.image_id, []).append(recording)
    rounds: dict[str, list[list[Recording]]] = {}

    def place(image_id: str) -> tuple[float, str]:  # rows of one group share a place and keep their order
        together = images[image_id][0].group or image_id
        return place_in_unit_interval(together, 0), together

    for image_id in sorted(images, key=place):
        for number, recording in enumerate(images[image_id]):
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
    name = first.image if first.problem == "missing_image" else first.audio
    raise UserError(
        f"--source {source.location} has no usable recording among the {len(recordings)} listed "
        f"({', '.join(f'{count} {problem}' for problem, count in problems)}; e.g. {name}): "
        "unpack images and recordings there"
    )
