"""A small system and a small index, for what does not depend on models; importable by Ray's workers."""

import io
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from brewclip.service.current_index import CurrentIndex
from brewclip.service.searcher import Searcher
from brewclip.serving.hearing import Heard, fuse

WIDTH = 64


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def vector_of(seed: int) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=WIDTH))


class Match(NamedTuple):
    rank: int
    score: float
    row: int
    image_id: str


class Entry(NamedTuple):
    width: int
    height: int


@dataclass
class MemoryIndex:
    """Images number 0 to n - 1; image number k has the vector of seed k."""

    count: int = 30
    version: str = "v1"

    def __post_init__(self) -> None:
        self.vectors = np.stack([vector_of(number) for number in range(self.count)])

    def __len__(self) -> int:
        return self.count

    def check_made_by(self, identity, checkpoint) -> None:
        pass

    def nearest(self, queries, top, offset=0):
        found = []
        for scores in queries @ self.vectors.T:
            rows = np.argsort(-scores, kind="stable")[offset : offset + top]
            found.append([Match(n, float(scores[row]), int(row), f"{row:016x}") for n, row in enumerate(rows, 1)])
        return found

    def row_of(self, image_id: str) -> int:
        row = int(image_id, 16)
        if row >= self.count:
            raise LookupError(image_id)
        return row

    def vector(self, row: int):
        return self.vectors[row]

    def entry(self, row: int) -> Entry:
        return Entry(640, 480)

    def thumbnail(self, row: int) -> bytes:
        return jpeg(row)

    def read_image(self, row: int) -> bytes:
        if row == self.count - 1:
            raise LookupError("it was deleted")
        return jpeg(row)


def jpeg(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 12), (8 * number, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


class SmallSystem:
    """Hears the number of a recording in its loudness: 0.5 at number 0, and 0.01 more for each; loud ones are noise.

    Args:
        name: of the checkpoint.
        seconds: that a batch takes.
    """

    task, language, reads_text, hears_sound = "transcribe", "en", True, True

    def __init__(self, name: str = "small", seconds: float = 0.0) -> None:
        self.name, self.seconds, self.identity = name, seconds, {"step": 1}
        self.batches: list[int] = []

    def listen(self, recordings, *, task="", language=None):
        self.batches.append(len(recordings))
        time.sleep(self.seconds)
        return [self._hear(np.asarray(one), language) for one in recordings]

    def _hear(self, waveform: np.ndarray, language: str | None) -> Heard:
        number = round((float(np.abs(waveform).max()) - 0.5) * 100)
        if not 0 <= number < 30:
            return Heard("", "en", 0.0, "no_speech", vector_of(0), vector_of(0), vector_of(1), 0.5)
        text, sound = vector_of(number), vector_of(number + 1)
        timings = {"whisper": 0.01, "clip": 0.001}
        return Heard(f"image {number}", language or "en", 0.9, "", fuse(text, sound, 0.5), text, sound, 0.5, timings)

    def embed_text(self, texts):
        return np.stack([vector_of(int(text.split()[-1]) if text.split()[-1].isdigit() else 99) for text in texts])

    def embed_images(self, images):
        return np.stack([vector_of(round(int(np.asarray(image)[0, 0, 0]) / 8)) for image in images])


class MarkedIndex:
    """An index whose version and size are in a file: what is on disk decides."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def open(self) -> MemoryIndex:
        return MemoryIndex(**json.loads(self.file.read_text()))

    def mark(self) -> int:
        return self.file.stat().st_mtime_ns


def small_searcher(name: str = "small", seconds: float = 0.0, file: Path | None = None) -> Searcher:
    """Return a searcher over the index of a file, or over a fixed one."""
    marked = MarkedIndex(file) if file else None
    index = CurrentIndex(marked.open, marked.mark) if marked else CurrentIndex(MemoryIndex, lambda: 0)
    return Searcher(SmallSystem(name, seconds), index, threshold=0.6)
