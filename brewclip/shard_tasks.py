"""The shards of a recipe as tasks over Ray: how a split is cut in shards, how one is written, how far all of them are.

A task is plain data, and its result a function of it alone: a task that is repeated writes the same bytes.
"""

import contextlib
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
from brewclip.config import UserError
from brewclip.corpora import Recording
from brewclip.data.manifest import ShardRecord
from brewclip.data.schema import BadSample, Sample
from brewclip.data.shards import finished_shard, shard_name, write_shard
from brewclip.data.storage import open_storage

# Shards of a split, unless they would be smaller or larger than below: four for each of sixteen workers.
_AUTOMATIC_SHARDS = 64
_AUTOMATIC_SAMPLES = (16, 1000)
_LONG_SECONDS = 30.0  # Whisper reads this much at a time
_REPORT_EVERY_SECONDS = 1.0
_STOP_SECONDS = 20.0


class SampleMaker(Protocol):
    """What a worker needs of a recipe."""

    def make_sample(self, item: Any) -> Sample:
        """Make the sample of an item; raises `BadSample` if it cannot be used."""


@dataclass(frozen=True)
class ShardTask:
    """One shard to be written; `plan` is a hash of all that decides its bytes."""

    url: str
    name: str
    round: int
    items: list[Any]
    plan: str


@dataclass
class ShardNotes:
    """What a worker noticed of the samples of a shard.

    Attributes:
        plan: of the task.
        rejected: lines of rejected.jsonl.
        images: image_id -> digest of the bytes that are stored, hexadecimal; of samples with an image.
        image_ids: of all samples, in their order.
        sums: over the samples: audio_ms, and how many are damaged, long, or made the decoder speak.
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


def cut_in_shards(
    url: str, split: str, rounds: list[list[Any]], samples_per_shard: int, flags: dict[str, Any]
) -> Iterator[ShardTask]:
    """Yield the tasks of a split.

    Args:
        url: folder of the split.
        rounds: the items of each round.
        samples_per_shard: 0 follows the size of the split, and of nothing else.
        flags: all that decides, beside the items, what a sample holds.
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
        recipe: travels to the workers once.
        tasks: of one split.
        advance: told, about once a second, how many more samples are done.
    """
    import ray

    remote = ray.remote(write_task).options(max_retries=3)
    counter: Any = ray.remote(_Counter).options(num_cpus=0, max_restarts=-1).remote()
    reference, pending, at_once = ray.put(recipe), iter(tasks), 2 * max(1, available("CPU"))
    waiting: dict[Any, ShardTask] = {}
    seen: dict[str, int] = {}
    try:
        while True:
            new = {remote.remote(reference, task, counter): task for task in islice(pending, at_once - len(waiting))}
            waiting |= new
            if not waiting:
                return
            ready, _ = ray.wait(list(waiting), num_returns=1, timeout=_REPORT_EVERY_SECONDS)
            if not ready:
                _tell(counter, waiting, seen, advance)
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
        _stop(counter, list(waiting))


def write_task(recipe: SampleMaker, task: ShardTask, counter: Any = None) -> tuple[ShardRecord | None, ShardNotes]:
    """Write one shard on a worker, unless an earlier run did; return its record and notes."""
    storage = open_storage(task.url)
    known = finished_shard(storage, task.name)
    if known is not None and known.notes.get("plan") == task.plan:
        return known, ShardNotes(**known.notes)
    notes = ShardNotes(task.plan)
    try:
        samples = _samples(recipe, task, notes, counter)
        return write_shard(storage, task.name, task.round, samples, notes.__dict__), notes
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise UserError(f"no space is left in {tempfile.gettempdir()}, where a shard is made: set TMPDIR") from None


def rejection(item: Any, cause: str, detail: str) -> dict[str, str]:
    """Return a line of rejected.jsonl; the same in every run."""
    detail = re.sub(r"<[^<>]* at 0x[0-9a-f]+>", "the file", detail)  # soundfile and PIL print addresses
    if isinstance(item, Recording):
        return {"key": item.key or item.image_id, "file": item.audio, "cause": cause, "detail": detail}
    return {"key": str(item), "file": "", "cause": cause, "detail": detail}


class _Stopped(Exception):
    """The driver wants no more of a task."""


class _Counter:
    """Holds how many samples of each shard are done, and whether the workers are to go on; a Ray actor."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.stopped = False

    def set(self, name: str, count: int) -> bool:
        """Note how far a shard is; return whether to stop."""
        self.counts[name] = count
        return self.stopped

    def get(self, names: list[str]) -> list[int]:
        return [self.counts.get(name, 0) for name in names]

    def stop(self) -> None:
        self.stopped = True


def _samples(recipe: SampleMaker, task: ShardTask, notes: ShardNotes, counter: Any) -> Iterator[Sample]:
    reported = -math.inf
    for number, item in enumerate(task.items):
        if counter is not None and time.monotonic() - reported >= _REPORT_EVERY_SECONDS:
            _report(counter, task.name, number)
            reported = time.monotonic()
        try:
            sample = recipe.make_sample(item)
        except BadSample as error:
            notes.rejected.append(rejection(item, error.cause, str(error)))
            continue
        notes.add(sample)
        yield sample


def _report(counter: Any, name: str, count: int) -> None:
    """Tell the counter how far a shard is; raises `_Stopped` if the driver wants no more of it."""
    import ray

    with contextlib.suppress(ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
        if ray.get(counter.set.remote(name, count), timeout=_REPORT_EVERY_SECONDS):
            raise _Stopped


def _tell(counter: Any, waiting: dict[Any, ShardTask], seen: dict[str, int], advance: Callable[[int], None]) -> None:
    """Ask the counter how far the tasks are that run; one that was repeated counts from its start again."""
    import ray

    names = [task.name for task in waiting.values()]
    try:
        counts = ray.get(counter.get.remote(names), timeout=_REPORT_EVERY_SECONDS)
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
        return
    advance(sum(counts) - sum(seen.get(name, 0) for name in names))
    seen.update(zip(names, counts, strict=True))


def _stop(counter: Any, references: list[Any]) -> None:
    """Let the workers end their tasks and remove their temporary files, which one that is killed would leave.

    `ray.cancel` would raise KeyboardInterrupt anywhere on the worker: within a callback of libsndfile it is printed
    and forgotten, and the recording is cut short without a word.
    """
    import ray

    if references:
        counter.stop.remote()
        ray.wait(references, num_returns=len(references), timeout=_STOP_SECONDS)
    ray.kill(counter)
