"""Miniature files in the forms that corpora have, and ways to run a recipe on them within the test's process."""

import functools
import importlib.util
import io
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from brewclip.corpora.rounds import FileCorpus, Recording
from brewclip.data.schema import BadSample, Sample

CHECKOUT = Path(__file__).parents[2]


@functools.cache
def load_recipe(name: str) -> ModuleType:
    """Return the file datasets/NAME.py as a module; the folder is no package."""
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", CHECKOUT / "datasets" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def write_file(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def sound(seconds: float = 0.5, *, rate_hz: int = 16_000, channels: int = 1, form: str = "WAV", hz: float = 440.0):
    """Return a sound file with a tone."""
    tone = 0.3 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.stack([tone] * channels, axis=1), rate_hz, format=form)
    return buffer.getvalue()


def image(width: int = 40, height: int = 30, *, form: str = "JPEG", shade: int = 100) -> bytes:
    """Return an image of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (shade, 50, 200)).save(buffer, form)
    return buffer.getvalue()


def items_of(corpus: FileCorpus, split: str) -> list[Recording]:
    """Return the items of all rounds of a split."""
    return [item for items in corpus.rounds(split) for item in items]


def make_all(corpus: FileCorpus, split: str) -> tuple[dict[str, Sample], dict[str, str]]:
    """Make the samples of a split; return key -> sample, and key -> cause of those rejected."""
    samples, causes = {}, {}
    for item in items_of(corpus, split):
        try:
            samples[item.key] = corpus.make_sample(item)
        except BadSample as error:
            causes[item.key] = error.cause
    return samples, causes


def left_out(corpus: FileCorpus) -> dict[str, str]:
    """Return file -> problem of what is in no split."""
    return {recording.audio: recording.problem for recording in corpus.left_out}


def field_of(samples: dict[str, Sample], name: str) -> dict[str, Any]:
    """Return key -> one field of the metadata."""
    return {key: sample.metadata.get(name) for key, sample in samples.items()}


def decoded(data: bytes | None) -> tuple[np.ndarray, int]:
    """Return the samples and the rate of a sound file."""
    assert data is not None
    return soundfile.read(io.BytesIO(data), always_2d=True)
