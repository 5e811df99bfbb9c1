"""Benchmark the training step: against open_clip's, with cached inputs, FLOP rate, candidate optimizations.

    python jobs/benchmark.py train
    python jobs/benchmark.py train --switches bfloat16 math_attention --num-pairs 9

The model is the one of the preset `scenes`; images and features are synthetic and in memory (the data path through
S3 and Ray is measured by `scaling`). Each switch is one change to the step, on against off; "kept" marks those that the
project uses.
"""

import functools
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from brewclip.benchmarks.corpus import make_recordings, write_features
from brewclip.benchmarks.measure import BenchmarkOptions, Comparison, Limit, compare_in_turn, print_limit, show
from brewclip.benchmarks.open_clip_step import OpenClipStep
from brewclip.benchmarks.steps import (
    Trainee,
    build_config,
    build_trainee,
    cached_batches,
    changed,
    compute_loss,
    count_flops,
    forward_and_backward,
    make_batches,
    read_pairs,
)
from brewclip.config.presets import by_confidence
from brewclip.config.ranges import THREADS, Range
from brewclip.config.settings import Precision
from brewclip.data.batches import Batch
from brewclip.errors import UserError
from brewclip.models.whisper import SpeechReader
from brewclip.pretrained.precision import resolve_precision
from brewclip.pretrained.whisper import load_whisper
from brewclip.training.compiled import compile_encoders
from brewclip.training.cost import kept_bytes

_LEAST_CACHED_RATIO = 20.0
_LEAST_ADAPTER_RATIO = 10.0
_LEAST_PEER_RATIO = 1.3
_WHISPER_FRAMES = 1500  # of a 30 s chunk
_NUM_TOP_OPERATIONS = 8
_MATRIX_SIDE = 2048


@dataclass(frozen=True)
class Options(BenchmarkOptions):
    """Sizes and number of runs."""

    global_batch_size: Annotated[int, Range(2, 2**20)] = 64
    """Pairs per step."""
    num_steps: Annotated[int, Range(1, 10**6)] = 8
    """Steps per run."""
    num_pairs: Annotated[int, Range(1, 1000)] = 3
    """Measured runs of each side."""
    num_threads: Annotated[int, THREADS] = 1
    """CPU threads of torch."""
    whisper_batch_size: Annotated[int, Range(0, 4096)] = 16
    """Pairs per step with Whisper in the loop, and of its cached counterpart; 0 skips it."""
    switches: tuple[str, ...] = ("trimmed_text", "real_frames", "bfloat16", "math_attention", "compile")
    """Changes to the step to compare."""


@dataclass(frozen=True)
class Switch:
    """One change to the step.

    Attributes:
        kept: whether the project uses it.
        off: undoes it in a batch; None if it is not a property of batches.
        context: context of the step with it.
        precision: of the step with it.
        compiled: whether the encoders are compiled, as by `--run.compile`.
    """

    kept: bool
    off: Callable[[Batch], Batch] | None = None
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    precision: Precision = "float32"
    compiled: bool = False


def _with_longest_text(batch: Batch) -> Batch:
    """Extend one caption to the full context, so that no position can be skipped."""
    tokens = F.pad(batch.tokens, (0, 77 - batch.tokens.shape[1]))
    start, end = tokens[0, 0], tokens.max()
    tokens[0] = torch.cat([start[None], tokens[0, 1:2].expand(75), end[None]])
    return replace(batch, tokens=tokens, num_tokens=tokens.shape[1])


def _with_all_frames(batch: Batch) -> Batch:
    missing = _WHISPER_FRAMES - batch.audio.shape[1]
    return replace(
        batch, audio=F.pad(batch.audio, (0, 0, 0, missing)), audio_mask=F.pad(batch.audio_mask, (0, missing))
    )


SWITCHES = {
    "trimmed_text": Switch(kept=True, off=_with_longest_text),
    "real_frames": Switch(kept=True, off=_with_all_frames),
    "bfloat16": Switch(kept=False, precision="bfloat16"),
    "math_attention": Switch(kept=False, context=lambda: sdpa_kernel(SDPBackend.MATH)),
    "compile": Switch(kept=False, compiled=True),
}


def run(options: Options) -> dict[str, Any]:
    """Run the benchmark, print the results, and return them for the JSON file.

    Raises:
        UserError: if an option is invalid.
    """
    _check(options)
    torch.set_num_threads(options.num_threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory(prefix="brewclip-benchmark-") as folder:
        storage = Path(folder).as_uri()
        config = build_config(storage, options.global_batch_size, options.num_steps)
        write_features(config.features_url, "train", max(2 * options.global_batch_size, options.whisper_batch_size))
        trainee = build_trainee(config, device)
        pairs = read_pairs(trainee, "train", 2 * options.global_batch_size)
        batches = make_batches(trainee, pairs, device)
        arithmetic = _arithmetic(trainee, batches, options)
        found = [_compare_switch(name, trainee, batches, options) for name in options.switches]
        comparisons = [comparison for comparison in found if comparison is not None]
        comparisons.append(_compare_cached(trainee, batches, options))
        of_open_clip, limits = _compare_open_clip(trainee, batches, options)
        comparisons.append(of_open_clip)
        if options.whisper_batch_size:
            comparisons.append(_compare_whisper(storage, options, device))
    return {
        "comparisons": [comparison.record() for comparison in comparisons],
        "limits": [limit.record() for limit in limits],
        "arithmetic": arithmetic,
    }


def _check(options: Options) -> None:
    unknown = set(options.switches) - set(SWITCHES)
    if unknown:
        raise UserError(f"--switches has {sorted(unknown)}: allowed are {', '.join(SWITCHES)}")


# ------------------------------------------------------------------ switches


def _compare_switch(name: str, trainee: Trainee, batches: list[Batch], options: Options) -> Comparison | None:
    switch, changed_trainee, device = SWITCHES[name], trainee, batches[0].images.device
    if switch.precision != "float32" and resolve_precision("auto", device) == "float32":
        print(f"step with {name}: not measured, as this processor does not multiply in it", flush=True)
        return None
    if switch.compiled:
        changed_trainee = build_trainee(trainee.config, device)
        compile_encoders(changed_trainee.model)
    off = changed(batches, switch.off)

    def rate_with() -> float:
        with switch.context():
            return changed_trainee.rate(itertools.cycle(batches), precision=switch.precision)

    try:
        return compare_in_turn(
            f"step with {name} against without ({'kept' if switch.kept else 'not used'})",
            rate_with,
            lambda: trainee.rate(itertools.cycle(off)),
            num_pairs=options.num_pairs,
            unit="pairs/s",
        )
    except UserError as error:  # such as no C++ compiler
        print(f"step with {name}: cannot be measured here: {error}", flush=True)
        return None


def _compare_cached(trainee: Trainee, batches: list[Batch], options: Options) -> Comparison:
    """Compare a step of the adapter, whose images and texts are embedded once, with one that has prompts."""
    cached = build_trainee(by_confidence(trainee.config), batches[0].images.device)
    inputs = cached_batches(cached, batches)
    return compare_in_turn(
        "step of the adapter on cached embeddings against prompts in both towers",
        lambda: cached.rate(itertools.cycle(inputs)),
        lambda: trainee.rate(itertools.cycle(batches)),
        num_pairs=options.num_pairs,
        unit="pairs/s",
        target=_LEAST_ADAPTER_RATIO,
    )


def _compare_open_clip(
    trainee: Trainee, batches: list[Batch], options: Options
) -> tuple[Comparison, tuple[Limit, Limit]]:
    """Compare a step of the variant `pipeline` with open_clip's, of the same model and prompts, in time and memory."""
    config = replace(trainee.config, model=replace(trainee.config.model, variant="pipeline"))
    own = build_trainee(config, batches[0].images.device)
    peer = OpenClipStep(own)
    theirs = peer.kept_bytes(batches[0])
    ours = kept_bytes(lambda: compute_loss(config, own.model, batches[0]), own.model)
    comparison = compare_in_turn(
        "step with prompts in both towers against open_clip's model, ClipLoss and AdamW",
        lambda: own.rate(itertools.cycle(batches)),
        lambda: peer.rate(batches),
        num_pairs=options.num_pairs,
        unit="pairs/s",
        target=_LEAST_PEER_RATIO,
    )
    name = "memory for the backward pass of that step"
    return comparison, (
        print_limit(Limit(name, (ours / 1e6,), "MB", theirs / 1e6)),
        print_limit(Limit(f"{name}, open_clip", (theirs / 1e6,), "MB")),
    )


def _compare_whisper(storage: str, options: Options, device: torch.device) -> Comparison:
    """Compare a step on cached features with one that runs Whisper on its recordings first."""
    trainee = build_trainee(build_config(storage, options.whisper_batch_size, 1), device)
    pairs = read_pairs(trainee, "train", options.whisper_batch_size)
    reader = SpeechReader(load_whisper("base").to(device), "en", options.whisper_batch_size)
    waveforms = [recording.waveform for recording in make_recordings(options.whisper_batch_size)]

    def transcribed_batches() -> Iterator[Batch]:
        speeches = reader.read(waveforms)
        tokens = trainee.clip.tokenize([speech.transcript for speech in speeches])
        read = [
            replace(pair, audio=speech.features, tokens=words, text=speech.transcript)
            for pair, speech, words in zip(pairs, speeches, tokens, strict=True)
        ]
        yield from make_batches(trainee, read, device)

    cached = make_batches(trainee, pairs, device)
    return compare_in_turn(
        "step on cached features against Whisper base in the loop",
        lambda: trainee.rate(iter(cached)),
        lambda: trainee.rate(transcribed_batches()),
        num_pairs=min(2, options.num_pairs),
        unit="pairs/s",
        target=_LEAST_CACHED_RATIO,
    )


# ------------------------------------------------------------------ FLOP rate


def _arithmetic(trainee: Trainee, batches: Sequence[Batch], options: Options) -> dict[str, Any]:
    """Count the step's operations, compare its rate with a plain matrix product, and list the slowest operations."""
    flops = count_flops(trainee.config, trainee.model, batches[0])
    rates = compare_in_turn(
        "step's arithmetic against a plain matrix product",
        lambda: flops * trainee.rate(itertools.cycle(batches)) / options.global_batch_size / 1e9,
        functools.partial(_matrix_product_rate, batches[0].images.device),
        num_pairs=options.num_pairs,
        unit="GFLOP/s",
    )
    operations = _top_operations(trainee, batches[0])
    print(f"a step of {options.global_batch_size} pairs: {show(flops / 1e9)} GFLOP; its time by operation: ", end="")
    print(", ".join(f"{name} {100 * share:.0f} %" for name, share in operations.items()), flush=True)
    return {"gflop_of_a_step": flops / 1e9, "comparison": rates.record(), "operations": operations}


def _matrix_product_rate(device: torch.device) -> float:
    """Return GFLOP/s of a large float32 matrix product."""
    a: Tensor = torch.randn(_MATRIX_SIDE, _MATRIX_SIDE, device=device)
    started = time.perf_counter()
    float((a @ a)[0, 0])  # waits for a GPU
    return 2 * _MATRIX_SIDE**3 / (time.perf_counter() - started) / 1e9


def _top_operations(trainee: Trainee, batch: Batch) -> dict[str, float]:
    """Return the most expensive operations with their share of the step's time."""
    from torch.profiler import profile

    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # else it reports a missing GPU as an error

    with profile() as profiler:
        forward_and_backward(trainee.config, trainee.model, batch)
    on_device = batch.images.is_cuda
    times = {
        event.key: event.self_device_time_total if on_device else event.self_cpu_time_total
        for event in profiler.key_averages()
    }
    top = sorted(times, key=lambda name: -times[name])[:_NUM_TOP_OPERATIONS]
    return {name.removeprefix("aten::"): times[name] / max(1e-9, sum(times.values())) for name in top}
