"""Benchmark Whisper's extraction against `whisper.transcribe` and faster-whisper, called per recording.

    python jobs/benchmark.py extract
    python jobs/benchmark.py extract --noise-snr-db 0 --num-recordings 24
    python jobs/benchmark.py extract --split s3://bucket/ravdess/train --num-recordings 60

All process the same recordings with the same weights: spoken captions of the scenes world, or those of a split; on the
GPU if there is one (with the encoder in --precision, and without faster-whisper) and else on --num-threads threads, by
processor time. Extraction also returns the encoder's frames; the peers give the transcript only. faster-whisper decodes
greedily without timestamps, as extraction does; `transcribe` has its defaults. Word errors are counted after Whisper's
normalizer. Memory is measured over --memory-rounds rounds of the same recordings.
"""

import functools
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import jiwer
import psutil
import torch
import whisper
import whisper.normalizers

from brewclip.benchmarks.corpus import Recording, load_recordings, make_recordings
from brewclip.benchmarks.faster_whisper import COMPUTE_TYPES, check_peer, load_peer, transcribe_with_peer
from brewclip.benchmarks.measure import (
    BenchmarkOptions,
    Comparison,
    Limit,
    Peer,
    compare_with_peers,
    print_limit,
)
from brewclip.config.ranges import THREADS, Range
from brewclip.config.whisper_names import WHISPER
from brewclip.errors import UserError
from brewclip.models.whisper import SpeechReader
from brewclip.pretrained.whisper import load_whisper

_LEAST_RATIOS = {"whisper.transcribe": 3.0, "faster-whisper float32": 2.0}
_OURS = "extraction"
_MOST_EXTRA_WER = 0.5  # points
_NUM_WARM_UP = 2  # recordings that each peer reads before it is timed
_MOST_GROWTH_MB = 50.0


@dataclass(frozen=True)
class Options(BenchmarkOptions):
    """Recordings, and how they are processed."""

    whisper: Annotated[str, WHISPER] = "base"
    """Name of the Whisper model."""
    num_recordings: Annotated[int, Range(1, 10**6)] = 24
    """Spoken captions of about 3 s, or recordings evenly spaced over the split."""
    split: str = ""
    """URL of a split of recordings whose text is known, as a recipe wrote it; empty uses synthetic captions."""
    noise_snr_db: Annotated[float, Range(-100, 100)] = 99.0
    """Babble mixed into synthetic captions, in dB; none from 60 on."""
    batch_size: Annotated[int, Range(1, 4096)] = 16
    """Chunks per batch of extraction."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of extraction's encoder."""
    faster_whisper: bool = True
    """Compare with faster-whisper, too, in float32 and in int8."""
    num_pairs: Annotated[int, Range(1, 1000)] = 2
    """Measured runs of each side."""
    num_threads: Annotated[int, THREADS] = 1
    """CPU threads of each side."""
    memory_rounds: Annotated[int, Range(0, 1000)] = 3
    """Rounds of extraction over which memory is measured; 0 skips it."""


def run(options: Options) -> dict[str, Any]:
    """Run the benchmark, print the results, and return them for the JSON file.

    Raises:
        UserError: if an option is invalid.
    """
    _check(options)
    torch.set_num_threads(options.num_threads)
    model = load_whisper(options.whisper).to("cuda" if torch.cuda.is_available() else "cpu")
    if options.split:
        recordings = load_recordings(options.split, options.num_recordings)
    else:
        recordings = make_recordings(options.num_recordings, options.noise_snr_db)
    reader = SpeechReader(model, "en", options.batch_size, precision=options.precision)
    transcripts: dict[str, list[str]] = {}
    comparisons = _compare(reader, recordings, transcripts, options)
    errors = {name: word_error_rate(recordings, found) for name, found in transcripts.items()}
    comparisons = [_with_errors(comparison, errors) for comparison in comparisons]
    for comparison in comparisons:
        print(comparison.line(), flush=True)
    extra = errors[_OURS] - errors["whisper.transcribe"]
    limits = [print_limit(Limit("word errors more than whisper.transcribe", (extra,), "points", _MOST_EXTRA_WER))]
    if options.memory_rounds:
        limits.append(print_limit(_growth(reader, recordings, options.memory_rounds)))
    return {
        "comparisons": [comparison.record() for comparison in comparisons],
        "limits": [limit.record() for limit in limits],
        "word_error_rates": errors,
    }


def _compare(
    reader: SpeechReader, recordings: list[Recording], transcripts: dict[str, list[str]], options: Options
) -> list[Comparison]:
    """Compare with each peer; `transcripts` gets the texts of all by name."""
    ways: dict[str, Callable[[list[Recording]], list[str]]] = {
        _OURS: functools.partial(_read, reader),
        "whisper.transcribe": functools.partial(transcribe_each, reader.model),
    }
    if options.faster_whisper and not torch.cuda.is_available():
        for compute_type in COMPUTE_TYPES:
            peer = load_peer(compute_type, options.num_threads)
            ways[f"faster-whisper {compute_type}"] = functools.partial(transcribe_with_peer, peer)
    for name, way in ways.items():
        way(recordings if name == _OURS else recordings[:_NUM_WARM_UP])  # peers take one at a time
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    ours, *peers = (
        Peer(name, functools.partial(_rate, name, way, recordings, transcripts, clock), _LEAST_RATIOS.get(name, 0.0))
        for name, way in ways.items()
    )
    return compare_with_peers(
        f"extraction of {len(recordings)} {_described(options)} by Whisper {options.whisper}",
        ours.run,
        peers,
        num_rounds=options.num_pairs,
        warm_up=False,
        unit="recordings/s" if torch.cuda.is_available() else "recordings/CPU-s",
    )


def _with_errors(comparison: Comparison, errors: dict[str, float]) -> Comparison:
    """Return a comparison whose name has the word errors of both sides."""
    peer = comparison.name.rpartition(", against ")[2]
    return replace(comparison, name=f"{comparison.name} (word errors {errors[_OURS]:.2f} and {errors[peer]:.2f} %)")


def _check(options: Options) -> None:
    if options.split and options.noise_snr_db < 60:
        raise UserError(
            f"--noise-snr-db {options.noise_snr_db:g} has no effect on --split {options.split}: leave it out"
        )
    if options.memory_rounds == 1:
        raise UserError("--memory-rounds 1 compares nothing: 0, or 2 and more")
    if options.faster_whisper and not torch.cuda.is_available():
        check_peer(options.whisper)


def _described(options: Options) -> str:
    if options.split:
        return f"recordings of {'/'.join(options.split.rstrip('/').split('/')[-2:])}"
    return f"captions under babble of {options.noise_snr_db:g} dB" if options.noise_snr_db < 60 else "captions"


def _read(reader: SpeechReader, recordings: list[Recording]) -> list[str]:
    return [speech.transcript for speech in reader.read([recording.waveform for recording in recordings])]


def transcribe_each(model: whisper.Whisper, recordings: list[Recording]) -> list[str]:
    """Return the transcripts of `whisper.transcribe` with its defaults."""
    fp16 = model.device.type == "cuda"
    return [
        str(whisper.transcribe(model, recording.waveform, language="en", fp16=fp16)["text"]) for recording in recordings
    ]


def _rate(
    name: str,
    read: Callable[[list[Recording]], list[str]],
    recordings: list[Recording],
    transcripts: dict[str, list[str]],
    clock: Callable[[], float],
) -> float:
    started = clock()
    transcripts[name] = read(recordings)
    return len(transcripts[name]) / (clock() - started)


def word_error_rate(recordings: list[Recording], transcripts: list[str]) -> float:
    """Return the word error rate over all recordings, in percent."""
    normalise = whisper.normalizers.EnglishTextNormalizer()
    texts = [normalise(re.sub(r"\s+", " ", recording.text)) for recording in recordings]
    return 100 * float(jiwer.wer(texts, [normalise(transcript) for transcript in transcripts]))


def _growth(reader: SpeechReader, recordings: list[Recording], rounds: int) -> Limit:
    """Return the growth of resident memory from the first round to the last."""
    process, resident = psutil.Process(), []
    for _ in range(rounds):
        _read(reader, recordings)
        resident.append(process.memory_info().rss)
    return Limit(f"growth of memory over {rounds} rounds", ((resident[-1] - resident[0]) / 1e6,), "MB", _MOST_GROWTH_MB)
