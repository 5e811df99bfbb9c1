"""Shards of a recipe as Ray tasks: division of a split into shards, writing of one, progress of all.

A task is plain data, and its result a function of it alone: a repeated task writes the same bytes.
"""

import errno
import hashlib
import math
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

from brewclip.cluster import available
from brewclip.corpora.rounds import Recording
from brewclip.corpora.task_meter import TaskMeter
from brewclip.data.manifest_writer import ShardRecord
from brewclip.data.schema import BadSample, Sample
from brewclip.data.shards import finished_shard, shard_name, write_shard
from brewclip.data.storage import open_storage
from brewclip.errors import UserError

# Shards of a split, unless they would be smaller or larger than below: four for each of sixteen workers.
_AUTOMATIC_SHARDS = 64
_AUTOMATIC_SAMPLES = (16, 1000)
_LONG_SECONDS = 30.0  # Whisper reads this much at a time
_REPORT_EVERY_SECONDS = 1.0


class SampleMaker(Protocol):
    """The part of a recipe that a worker uses."""

    def make_sample(self, item: Any) -> Sample:
        """Build the sample of an item; raises `BadSample` if it cannot be used."""


@dataclass(frozen=True)
class ShardTask:
    """One shard to be written; `plan` is a hash of all that determines its bytes."""

    url: str
    name: str
    round: int
    items: list[Any]
    plan: str


@dataclass
class ShardNotes:
    """Statistics of the samples of a shard.

    Attributes:
        plan: of the task.
        rejected: lines of rejected.jsonl.
        images: image_id -> digest of the bytes that are stored, hexadecimal; of samples with an image.
        image_ids: of all samples, in their order.
        sums: over the samples: audio_ms, and how many are damaged, long, or have decoder warnings.
    """

    plan: str
    rejected: list[dict[str, str]] = field(default_factory=list)
    images: dict[str, str] = field(default_factory=dict)
    image_ids: list[str] = field(default_factory=list)
    sums: dict[str, int] = field(
        default_factory=lambda: {
            "audio_ms": 0,
            "damaged": 0,
            "longer_than_30_seconds": 0,
            "decoder_warnings": 0,
            "with_decoder_warnings": 0,
        }
    )

    def add(self, sample: Sample) -> None:
        """Count a sample."""
        metadata, sums = sample.metadata, self.sums
        self.image_ids.append(metadata["image_id"])
        if sample.image is not None:
            self.images[metadata["image_id"]] = hashlib.blake2b(sample.image, digest_size=16).hexdigest()
        sums["audio_ms"] += round(1000 * metadata["duration_seconds"])
        sums["damaged"] += "missing_seconds" in metadata or "truncated" in metadata
        sums["longer_than_30_seconds"] += metadata["duration_seconds"] > _LONG_SECONDS
        sums["decoder_warnings"] += metadata.get("decoder_warnings", 0)
        sums["with_decoder_warnings"] += "decoder_warnings" in metadata


def divide_into_shards(
    url: str, split: str, rounds: list[list[Any]], samples_per_shard: int, flags: dict[str, Any]
) -> Iterator[ShardTask]:
    """Yield the tasks of a split.

    Args:
        url: folder of the split.
        rounds: the items of each round.
        samples_per_shard: 0 derives it from the size of the split alone.
        flags: all settings, besides the items, that determine the content of a sample.
    """
    most = samples_per_shard or automatic_samples_per_shard(sum(map(len, rounds)))
    for number, items in enumerate(rounds):
        # All shards of a round are of one size, rather than the last one small.
        size = most if samples_per_shard else -(-len(items) // max(1, -(-len(items) // most)))
        for shard, start in enumerate(range(0, len(items), max(1, size))):
            part = items[start : start + size]
            plan = hashlib.sha256(repr((flags, part)).encode(errors="surrogatepass")).hexdigest()[:16]
            yield ShardTask(url, shard_name(split, number, shard), number, part, plan)


def automatic_samples_per_shard(num_samples: int) -> int:
    """Return the most samples of a shard of a split: several shards for each of many workers, none of them tiny."""
    least, most = _AUTOMATIC_SAMPLES
    return min(max(-(-num_samples // _AUTOMATIC_SHARDS), least), most)


def run_tasks(
    recipe: SampleMaker, tasks: list[ShardTask], advance: Callable[[int], None]
) -> Iterator[tuple[ShardTask, ShardRecord | None, ShardNotes]]:
    """Yield each task with its result as it is done; a few more are submitted than there are CPUs.

    Args:
        recipe: sent to the workers once.
        tasks: of one split.
        advance: called about once a second with the number of further samples done.
    """
    import ray

    remote: Any = ray.remote(write_task).options(max_retries=3)
    meter = TaskMeter()
    reference, pending, at_once = ray.put(recipe), iter(tasks), 2 * max(1, available("CPU"))
    waiting: dict[Any, ShardTask] = {}
    seen: dict[str, int] = {}
    try:
        while True:
            new = {remote.remote(reference, task, meter): task for task in islice(pending, at_once - len(waiting))}
            waiting |= new
            if not waiting:
                return
            ready, _ = ray.wait(list(waiting), num_returns=1, timeout=_REPORT_EVERY_SECONDS)
            if not ready:
                _advance(meter, waiting, seen, advance)
                continue
            try:
                record, notes = ray.get(ready[0])
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, UserError):
                    raise error.cause from None
                raise
            task = waiting.pop(ready[0])
            advance(len(task.items) - seen.pop(task.name, 0))
            yield task, record, notes
    finally:
        meter.end(list(waiting))


def write_task(
    recipe: SampleMaker, task: ShardTask, meter: TaskMeter | None = None
) -> tuple[ShardRecord | None, ShardNotes]:
    """Write one shard on a worker, unless an earlier run did; return its record and notes."""
    storage = open_storage(task.url)
    known = finished_shard(storage, task.name)
    if known is not None and known.notes.get("plan") == task.plan:
        return known, ShardNotes(**known.notes)
    notes = ShardNotes(task.plan)
    try:
        samples = _samples(recipe, task, notes, meter)
        return write_shard(storage, task.name, task.round, samples, notes.__dict__), notes
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise UserError(f"no space is left in {tempfile.gettempdir()}, where a shard is made: set TMPDIR") from None


def rejection(item: Any, cause: str, detail: str) -> dict[str, str]:
    """Return a row of rejected.jsonl, identical in every run."""
    detail = re.sub(r"<[^<>]* at 0x[0-9a-f]+>", "the file", detail)  # soundfile and PIL print addresses
    if isinstance(item, Recording):
        return {"key": item.key or item.image_id, "file": item.audio, "cause": cause, "detail": detail}
    return {"key": str(item), "file": "", "cause": cause, "detail": detail}


def _samples(recipe: SampleMaker, task: ShardTask, notes: ShardNotes, meter: TaskMeter | None) -> Iterator[Sample]:
    reported = -math.inf
    for number, item in enumerate(task.items):
        if meter is not None and time.monotonic() - reported >= _REPORT_EVERY_SECONDS:
            meter.report(task.name, number)
            reported = time.monotonic()
        try:
            sample = recipe.make_sample(item)
        except BadSample as error:
            notes.rejected.append(rejection(item, error.cause, str(error)))
            continue
        notes.add(sample)
        yield sample


def _advance(
    meter: TaskMeter, waiting: dict[Any, ShardTask], seen: dict[str, int], advance: Callable[[int], None]
) -> None:
    """Report the progress of running tasks; a repeated task counts from its start again."""
    names = [task.name for task in waiting.values()]
    counts = meter.counts(names)
    if counts is not None:
        advance(sum(counts) - sum(seen.get(name, 0) for name in names))
        seen.update(zip(names, counts, strict=True))
