"""Benchmark the writing of a corpus against a plain loop of soundfile, soxr, PIL and tarfile; then measure memory.

    python jobs/benchmark.py recipes
    python jobs/benchmark.py recipes --num-samples 100 --memory-samples 0 --json recipes.json

One process each, without Ray: tasks of a recipe share nothing, so the ratio of one task holds for any number. Ours is
what a task of `datasets/table.py` runs, `FileCorpus.make_sample` and `write_shard`, with the manifest; it checks,
hashes, copies and syncs its output. The loop does none of this: it decodes the same files once, makes images of the
same size and quality and recordings of the same rate and format, and adds them to tars.
It averages channels by `mean(axis=1)`, as such loops do; the recipe adds whole channels, which saves the time that its
checks cost.
"""

import functools
import io
import itertools
import json
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import soundfile
import soxr
from PIL import Image

from brewclip.audio import SAMPLE_RATE_HZ
from brewclip.benchmarks.measure import BenchmarkOptions, compare_in_turn
from brewclip.config.ranges import Range
from brewclip.corpora.rounds import FileCorpus, Recording
from brewclip.corpora.source import Source
from brewclip.data.folder_storage import FolderStorage
from brewclip.data.shards import finish_split, shard_name, write_shard
from brewclip.errors import UserError

_TARGET = 0.9
_SPLIT = "train"
_SIDE_PIXELS = 336  # of stored images, the recipes' default
_IMAGE_PIXELS = 640, 480
_RECORDING_HZ = 44_100
_TINY_FILES = 16  # shared by the samples of the memory measurement
_MIB = 2**20


@dataclass(frozen=True)
class Options(BenchmarkOptions):
    """Sizes and number of runs."""

    num_samples: Annotated[int, Range(0, 10**6)] = 300
    """Images (640 x 480 JPEG) and recordings (3 to 4 s, WAV, 44.1 kHz stereo) of the miniature corpus."""
    samples_per_shard: Annotated[int, Range(1, 10**6)] = 100
    """Samples per tar, for both sides."""
    num_pairs: Annotated[int, Range(1, 1000)] = 3
    """Measured runs of each side."""
    memory_samples: Annotated[int, Range(0, 10**8)] = 30_000
    """Tiny samples written in sequence to see whether memory grows; 0 skips it."""
    memory_samples_per_shard: Annotated[int, Range(1, 10**6)] = 1000
    """Samples per tar of these."""


def run(options: Options) -> dict[str, Any]:
    """Run the benchmark, print the results, and return them for the JSON file.

    Raises:
        UserError: if an option is invalid.
    """
    _check(options)
    comparisons = []
    with tempfile.TemporaryDirectory(prefix="brewclip-benchmark-") as name:
        folder = Path(name)
        if options.num_samples:
            corpus = make_corpus(folder / "source", options.num_samples)
            sides = (
                functools.partial(_rate, write, corpus, folder, options.samples_per_shard)
                for write in (write_with_recipe, write_plainly)
            )
            title = "writing 640 x 480 JPEG with 3 to 4 s of 44.1 kHz WAV, against soundfile, PIL and tarfile"
            comparisons.append(
                compare_in_turn(title, *sides, num_pairs=options.num_pairs, unit="samples/s", target=_TARGET)
            )
        memory = _measure_memory(folder, options) if options.memory_samples else {}
    if memory:
        print(_memory_line(memory), flush=True)
    return {"comparisons": [comparison.record() for comparison in comparisons], "memory": memory}


def _check(options: Options) -> None:
    least = 20 * options.memory_samples_per_shard
    if options.memory_samples and options.memory_samples < least:
        raise UserError(
            f"--memory-samples {options.memory_samples} compares nothing: 0, or {least} and more with "
            f"--memory-samples-per-shard {options.memory_samples_per_shard}"
        )


# ------------------------------------------------------------------ the corpus


def make_corpus(folder: Path, num_samples: int) -> FileCorpus:
    """Write deterministic images and recordings to a folder, and return their corpus."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    recordings = []
    for number in range(num_samples):
        image_id = f"{number:08d}"
        _save_image(folder / f"{image_id}.jpg", rng, _IMAGE_PIXELS)
        _save_recording(folder / f"{image_id}.wav", rng, rng.uniform(3.0, 4.0), _RECORDING_HZ, num_channels=2)
        text = "a red circle above two small green squares"
        recordings.append(Recording(_SPLIT, image_id, f"{image_id}.wav", f"{image_id}.jpg", text))
    return FileCorpus("benchmark", Source(str(folder)), recordings, _SIDE_PIXELS)


def _save_image(path: Path, rng: np.random.Generator, size: tuple[int, int]) -> None:
    """Save smooth noise with a little grain: file size and decoding time are those of a photograph."""
    blobs = rng.integers(0, 256, (size[1] // 16, size[0] // 16, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(blobs).resize(size, Image.Resampling.BICUBIC), np.float32)
    grain = rng.standard_normal((size[1], size[0], 1), np.float32) * 6
    Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(path, quality=90)


def _save_recording(path: Path, rng: np.random.Generator, seconds: float, rate_hz: int, num_channels: int) -> None:
    """Save a gliding tone modulated like syllables, with independent noise in each channel."""
    times = np.arange(round(seconds * rate_hz)) / rate_hz
    voice = np.sin(2 * np.pi * (140 + 20 * times) * times) * np.abs(np.sin(2 * np.pi * 2 * times))
    noise = rng.standard_normal((len(times), num_channels)) * 0.02
    soundfile.write(path, 0.5 * voice[:, None] + noise, rate_hz, subtype="PCM_16")


# ------------------------------------------------------------------ the two sides


def _rate(
    write: Callable[[FileCorpus, Path, int], int], corpus: FileCorpus, folder: Path, samples_per_shard: int
) -> float:
    """Return the samples per second of one side, written to a new folder."""
    with tempfile.TemporaryDirectory(dir=folder) as dest:
        start = time.perf_counter()
        count = write(corpus, Path(dest), samples_per_shard)
        seconds = time.perf_counter() - start
    assert count == len(corpus.rounds(_SPLIT)[0])
    return count / seconds


def write_with_recipe(corpus: FileCorpus, dest: Path, samples_per_shard: int) -> int:
    """Write the first round of a corpus as the tasks of its recipe do; return the number of samples."""
    storage, items = FolderStorage(dest), corpus.rounds(_SPLIT)[0]
    records = []
    for name, part in _shards(items, samples_per_shard):
        record = write_shard(storage, name, 0, map(corpus.make_sample, part))
        assert record is not None
        records.append(record)
    facts = {"corpus": corpus.corpus, "split": _SPLIT, "kind": "recordings", "num_images": len(items)}
    return finish_split(storage, records, **facts).num_samples


def write_plainly(corpus: FileCorpus, dest: Path, samples_per_shard: int) -> int:
    """Write the same in a plain loop; return the number of samples."""
    count, folder = 0, Path(corpus.source.location)
    for name, part in _shards(corpus.rounds(_SPLIT)[0], samples_per_shard):
        with tarfile.open(dest / name, "w") as tar:
            for item in part:
                audio, seconds = _plain_flac(folder / item.audio)
                _add(tar, f"{item.key}.jpg", _plain_jpeg(folder / item.image))
                _add(tar, f"{item.key}.flac", audio)
                facts = {"image_id": item.image_id, "caption_id": item.key, "split": item.split, "text": item.text}
                _add(tar, f"{item.key}.json", json.dumps(facts | {"duration_seconds": seconds}).encode())
                count += 1
    return count


def _shards(items: list[Recording], samples_per_shard: int) -> Iterator[tuple[str, list[Recording]]]:
    for number, start in enumerate(range(0, len(items), samples_per_shard)):
        yield shard_name(_SPLIT, 0, number), items[start : start + samples_per_shard]


def _plain_flac(path: Path) -> tuple[bytes, float]:
    samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    waveform = soxr.resample(samples.mean(axis=1), rate_hz, SAMPLE_RATE_HZ, quality="HQ")
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    return buffer.getvalue(), len(waveform) / SAMPLE_RATE_HZ


def _plain_jpeg(path: Path) -> bytes:
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    scale = _SIDE_PIXELS / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    buffer = io.BytesIO()
    image.resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


# ------------------------------------------------------------------ memory


def _measure_memory(folder: Path, options: Options) -> dict[str, float]:
    """Return the resident memory of a worker after a tenth of the shards and at the end, in bytes.

    Each sample is read, decoded, checked and written under its own key; only the files are shared. As on a worker, the
    items come one shard at a time; shards are removed at once, to save disk space. Most of the level is the import of
    torch; growth is what counts.
    """
    corpus = _make_tiny_corpus(folder / "tiny")
    files, storage = corpus.rounds(_SPLIT)[0], FolderStorage(folder / "memory")
    per_shard, process = options.memory_samples_per_shard, psutil.Process()
    num_shards, count, start = options.memory_samples // per_shard, 0, time.perf_counter()
    resident: list[int] = []
    for shard in range(num_shards):
        items = _items(files, range(shard * per_shard, (shard + 1) * per_shard))
        record = write_shard(storage, shard_name(_SPLIT, 0, shard), 0, map(corpus.make_sample, items))
        assert record is not None
        count += record.num_samples
        for name in storage.list_names():
            storage.delete(name)
        resident.append(process.memory_info().rss)
    return {
        "samples": count,
        "seconds": time.perf_counter() - start,
        "after_a_tenth_bytes": resident[num_shards // 10 - 1],
        "after_all_bytes": resident[-1],
        "highest_after_a_tenth_bytes": max(resident[num_shards // 10 - 1 :]),
    }


def _make_tiny_corpus(folder: Path) -> FileCorpus:
    folder.mkdir()
    rng = np.random.default_rng(0)
    recordings = []
    for number in range(_TINY_FILES):
        _save_image(folder / f"{number}.jpg", rng, (32, 32))
        _save_recording(folder / f"{number}.wav", rng, 0.12, 8_000, num_channels=1)
        recordings.append(Recording(_SPLIT, str(number), f"{number}.wav", f"{number}.jpg", "seven"))
    return FileCorpus("tiny", Source(str(folder)), recordings, _SIDE_PIXELS)


def _items(files: list[Recording], numbers: range) -> Iterator[Recording]:
    for number, file in zip(numbers, itertools.cycle(files), strict=False):
        image_id = f"{number:08d}"
        yield Recording(_SPLIT, image_id, file.audio, file.image, file.text, key=f"{image_id}-0")


def _memory_line(memory: dict[str, float]) -> str:
    early, late = memory["after_a_tenth_bytes"] / _MIB, memory["after_all_bytes"] / _MIB
    return (
        f"memory of one process: {early:.1f} MiB after a tenth of {memory['samples']:,.0f} tiny samples, "
        f"{late:.1f} MiB after all ({late - early:+.1f} MiB), {memory['samples'] / memory['seconds']:,.0f} samples/s"
    )
