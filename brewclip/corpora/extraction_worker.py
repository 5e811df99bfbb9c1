"""Feature extraction on a worker: one part of a split through frozen Whisper, written as one shard.

The driver's side, which plans and schedules the parts, is `extraction`.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brewclip.audio import UndecodableAudio, decode_audio
from brewclip.data.images import open_image, reduce_image
from brewclip.data.manifest import open_manifest
from brewclip.data.manifest_writer import ShardRecord
from brewclip.data.order import Extent
from brewclip.data.reader import SplitReader
from brewclip.data.schema import BadSample, Sample, array_to_npy
from brewclip.data.shards import finished_shard, write_shard
from brewclip.data.storage import open_storage
from brewclip.errors import UserError

_BATCHES_AT_ONCE = 4  # of several batches, recordings of one length are decoded together
# Part of a shard's identity: shards of another version are not reused.
_READER_VERSION = 3
# Settings that came later, with the value of all shards whose identity does not name them.
_UNNAMED_SETTINGS = (("task", "transcribe"), ("alternatives", 0))


class Interrupted(Exception):
    """The driver interrupted extraction; the current part is not written."""


@dataclass(frozen=True)
class ExtractionTask:
    """Settings that determine the features of one split.

    Attributes:
        source_url: split of recordings.
        source_sha256: hash of its manifest.
        target_url: split of features.
        whisper: name of the model.
        language: code such as "en"; empty detects it for each recording.
        task: `transcribe`, or `translate` to English.
        frames: `speech` stores the frames of the whole recording, `first_30_seconds` those the released code used.
        batch_size: chunks decoded together; does not change what is read.
        image_side_pixels: short side that images are reduced to; 0 keeps the original bytes.
        exact_images: that side is the result of a CLIP's own transform, see `reduce_image`.
        precision: `float32`, `bfloat16`, or `auto`.
        retries: see `SpeechReader`.
        alternatives: likewise.
    """

    source_url: str
    source_sha256: str
    target_url: str
    whisper: str
    language: str
    task: str
    frames: str
    batch_size: int
    image_side_pixels: int
    exact_images: bool
    precision: str
    retries: int
    alternatives: int


@dataclass(frozen=True)
class Part:
    """Consecutive samples of a source shard, and the shard of their features."""

    name: str
    round: int
    extent: Extent

    def identity(self, task: ExtractionTask) -> str:
        """Return a hash of all that determines the bytes of the shard."""
        left_out = ("source_url", "target_url", "batch_size")
        settings = {
            name: value
            for name, value in asdict(task).items()
            if name not in left_out and (name, value) not in _UNNAMED_SETTINGS
        }
        content = json.dumps([_READER_VERSION, settings, asdict(self)], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


class Extractor:
    """Ray actor that holds Whisper and extracts part after part.

    `num_done` and `interrupt` answer while a part is being extracted: run them in a separate thread.
    """

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        self._reader: Any = None
        self._num_done = 0
        self._interrupted, self._idle = threading.Event(), threading.Event()
        self._idle.set()

    def num_done(self) -> int:
        """Return the number of recordings read of the current part."""
        return self._num_done

    def interrupt(self) -> None:
        """End the current part after its batch, and return when it has ended; `extract` raises `Interrupted`."""
        self._interrupted.set()
        self._idle.wait()

    def extract(self, task: ExtractionTask, part: Part) -> tuple[ShardRecord | None, dict[str, Any]]:
        """Extract one part, unless it exists; return its record, and notes on rejections and missing transcripts.

        Raises:
            UserError: if Whisper's weights cannot be loaded, or storage refuses.
            Interrupted: after `interrupt`.
        """
        self._num_done = 0
        target, identity = open_storage(task.target_url), part.identity(task)
        known = finished_shard(target, part.name)
        if known is not None and known.notes.get("identity") == identity:
            return known, known.notes
        notes: dict[str, Any] = {"identity": identity, "rejected": [], "unheard": {}}
        self._idle.clear()
        try:
            return write_shard(target, part.name, part.round, self._iter_samples(task, part, notes), notes), notes
        finally:
            self._idle.set()

    def _iter_samples(self, task: ExtractionTask, part: Part, notes: dict[str, Any]) -> Iterator[Sample]:
        source, extent = SplitReader(open_manifest(task.source_url)), part.extent
        reader = self._prepared_reader(task)
        width = task.batch_size * _BATCHES_AT_ONCE
        for first in range(extent.first, extent.first + extent.count, width):
            count = min(width, extent.first + extent.count - first)
            pairs = list(_prepared(task, source, Extent(extent.shard, first, count), notes))
            speeches = reader.read([waveform for _, waveform in pairs], check=self._check)
            self._num_done += count
            for (sample, _), speech in zip(pairs, speeches, strict=True):
                if speech.rejected:
                    notes["unheard"][speech.rejected] = notes["unheard"].get(speech.rejected, 0) + 1
                metadata = dict(sample.metadata) | speech.metadata()
                yield Sample(sample.key, metadata, sample.image, features=array_to_npy(speech.features))

    def _check(self) -> None:
        if self._interrupted.is_set():
            raise Interrupted

    def _prepared_reader(self, task: ExtractionTask) -> Any:
        """Return the reader of this worker, with weights loaded at the first part."""
        import torch

        from brewclip.models.whisper import SpeechReader
        from brewclip.pretrained.precision import resolve_precision
        from brewclip.pretrained.whisper import load_whisper

        torch.set_num_threads(self._num_threads)  # holds for the thread that calls, so not in __init__
        if self._reader is None:
            try:
                device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
                model = load_whisper(task.whisper).to(device)
                self._reader = SpeechReader(
                    model,
                    task.language or None,
                    task.batch_size,
                    task=task.task,
                    first_30_seconds=task.frames == "first_30_seconds",
                    precision=resolve_precision(task.precision, device),
                    retries=task.retries,
                    alternatives=task.alternatives,
                )
            except (ValueError, FileNotFoundError) as error:
                raise UserError(str(error)) from error
        return self._reader


def _prepared(
    task: ExtractionTask, source: SplitReader, extent: Extent, notes: dict[str, Any]
) -> Iterator[tuple[Sample, NDArray[np.float32]]]:
    """Yield the samples of an extent with a small image, and their waveforms."""
    name = source.manifest.label_of(extent.shard)
    for number, sample in source.load(extent):
        try:
            if isinstance(sample, BadSample):
                raise sample
            if sample.audio is None:
                raise BadSample("audio", f"sample {sample.key!r} has no recording")
            image = sample.image and shrink_image(sample.image, task.image_side_pixels, exact=task.exact_images)
            yield Sample(sample.key, sample.metadata, image), decode_audio(sample.audio)
        except (BadSample, UndecodableAudio) as error:
            item = sample.key if isinstance(sample, Sample) else f"{name} #{number}"
            notes["rejected"].append({"item": item, "cause": error.cause, "detail": str(error)})


def shrink_image(data: bytes, side_pixels: int, *, exact: bool) -> bytes:
    """Reduce an image to the size stored with features.

    Args:
        data: an encoded image.
        side_pixels: short side; 0 checks the image and returns its bytes.
        exact: see `reduce_image`.

    Raises:
        BadSample: if it cannot be decoded or is larger than 100 megapixels.
    """
    if not side_pixels:
        open_image(data)
        return data
    return reduce_image(data, side_pixels, exact=exact)
