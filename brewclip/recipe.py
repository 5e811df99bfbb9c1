"""What all recipes of `datasets/` share: the command line, writing in parallel over Ray, resuming, counting.

A recipe says which samples a split has and makes one of them; everything else happens here. The bytes of a shard
are a function of the recipe and its items alone, so that a corpus written twice can be compared by its hashes.
"""

import errno
import hashlib
import json
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Protocol, TypeVar

from brewclip.cluster import available, connect
from brewclip.config import UserError, exit_on_user_error, parse_options
from brewclip.corpora import FileCorpus, Recording
from brewclip.data.manifest import ShardRecord, open_manifest
from brewclip.data.schema import BadSample, Sample, pack_sample
from brewclip.data.shards import finish_split, finished_shard, is_finished, shard_name, write_shard
from brewclip.data.storage import FolderStorage, Storage, check_reachable, open_storage
from brewclip.progress import Progress

REJECTED = "rejected.jsonl"
# Flags that say where, how much and how strictly, but not what a sample holds.
_NOT_IN_A_SAMPLE = {"dest", "source", "split", "limit", "dry_run", "max_rejected_fraction", "samples_per_shard"}
_PROBES = 8  # samples made to guess the size of all
_LONG_SECONDS = 30.0  # Whisper reads this much at a time

Form = TypeVar("Form", bound="SourceOptions")


class Recipe(Protocol):
    """One corpus: plain data, so that it travels to the workers."""

    corpus: str

    def splits(self) -> Sequence[str]:
        """Return the names of the splits."""

    def rounds(self, split: str) -> list[list[Any]]:
        """Return, for caption k = 0, 1, ..., the items of that round: pictures at most once in each."""

    def make_sample(self, item: Any) -> Sample:
        """Make the sample of an item; raises `BadSample` if it cannot be used."""


@dataclass(frozen=True)
class WriteOptions:
    """Flags that every recipe has."""

    dest: str
    """URL of the corpus, s3://bucket/corpus or file:///folder: splits lie below it."""
    samples_per_shard: int = 1000
    """Samples of one shard, the last of a round excepted."""
    limit: int = 0
    """Samples of each round at most; 0 takes all."""
    dry_run: bool = False
    """Count what would be written, and write nothing."""
    max_rejected_fraction: float = 0.05
    """Largest share of samples that may be rejected, in 0..1."""


@dataclass(frozen=True, kw_only=True)
class SourceOptions(WriteOptions):
    """Flags of the recipes that read a corpus from files."""

    source: str
    """Directory of the corpus as it is distributed, or s3://bucket/prefix or file:///folder. On a cluster, all
    machines must see it."""
    split: tuple[str, ...] = ()
    """Splits to write; none given writes all."""
    image_side_pixels: int = 336
    """Pictures are reduced to this short side; the default is what the largest CLIP (ViT-L-14-336) needs."""
    keep_original_images: bool = False
    """Keep the bytes of JPEG pictures instead of reducing them."""

    @property
    def stored_side_pixels(self) -> int:
        """The short side of stored pictures; 0 keeps them."""
        return 0 if self.keep_original_images else self.image_side_pixels


@dataclass(frozen=True)
class _Task:
    """One shard to be written; `plan` is a hash of all that decides its bytes."""

    url: str
    name: str
    round: int
    items: list[Any]
    plan: str


def run_recipe(usage: str | None, form: type[Form], read: Callable[[Form], FileCorpus]) -> None:
    """Run a recipe from its command line: parse the flags, read the lists of the corpus, write, print a table."""
    with exit_on_user_error():
        options = parse_options(usage, form)
        check_options(options)
        corpus = read(options)
        try:
            summary = write_corpus(corpus, options, options.split)
        except KeyboardInterrupt:
            print("interrupted: finished shards are kept, the same command continues", file=sys.stderr, flush=True)
            raise SystemExit(130) from None
        if not options.dry_run:
            _write_left_out(corpus, options.dest)
        print_summary(summary)
        for cause, count in sorted(Counter(recording.problem for recording in corpus.left_out).items()):
            print(f"in no split: {count} {cause}", flush=True)


def check_options(options: WriteOptions) -> None:
    """Find flags with impossible values.

    Raises:
        UserError: one line that names the flag.
    """
    rules = [
        (options.samples_per_shard < 1, f"--samples-per-shard {options.samples_per_shard} must be 1 or more"),
        (options.limit < 0, f"--limit {options.limit} must be 0 (all) or more"),
        (
            not 0 <= options.max_rejected_fraction <= 1,
            f"--max-rejected-fraction {options.max_rejected_fraction} must be in 0..1",
        ),
        (
            isinstance(options, SourceOptions) and options.image_side_pixels < 1,
            "--image-side-pixels must be 1 or more; --keep-original-images reduces nothing",
        ),
    ]
    for wrong, message in rules:
        if wrong:
            raise UserError(message)


def write_corpus(recipe: Recipe, options: WriteOptions, splits: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Write the splits of a corpus; finished shards and splits are kept.

    Args:
        recipe: what is written.
        options: the flags.
        splits: those to write; none given writes all.

    Returns:
        split -> {"samples": n, "rejected": {cause: n}, ...} for `print_summary`.

    Raises:
        UserError: if there is no such split, the destination cannot be used or holds something else, or too many
            samples are rejected.
    """
    check_options(options)
    for split in splits:
        if split not in recipe.splits():
            raise UserError(f"--split {split!r}: {recipe.corpus} has the splits {', '.join(recipe.splits())}")
    plans = {}
    for split in splits or recipe.splits():
        storage = open_storage(f"{options.dest.rstrip('/')}/{split}")
        rounds = [items[: options.limit or None] for items in recipe.rounds(split)]
        plans[split] = storage, list(_cut_in_shards(storage.url, split, rounds, options))
    if options.dry_run:
        return {split: _count(tasks) for split, (_, tasks) in plans.items()}
    _check_writable(options.dest)
    _check_space(recipe, options.dest, plans)
    connect()
    return {split: _write_split(recipe, storage, split, tasks, options) for split, (storage, tasks) in plans.items()}


def _write_split(
    recipe: Recipe, storage: Storage, split: str, tasks: list[_Task], options: WriteOptions
) -> dict[str, Any]:
    plan = hashlib.sha256("".join(task.plan for task in tasks).encode()).hexdigest()[:16]
    if is_finished(storage):
        return _already_written(storage, plan)
    total = sum(len(task.items) for task in tasks)
    known = [_row(item, item.problem, item.audio) for task in tasks for item in task.items if _is_bad(item)]
    _check_rejected(recipe, split, known, total, options)
    progress = Progress(f"write {recipe.corpus}/{split}", total, "samples")
    records: list[ShardRecord] = []
    rejected: list[dict[str, str]] = []
    images: set[str] = set()
    sums: Counter[str] = Counter()
    for task, record, notes in _run_tasks(recipe, tasks):
        progress.advance(len(task.items))
        records += [record] if record else []
        images.update(notes["image_ids"])
        sums.update(notes["sums"])
        rejected += notes["rejected"]
        _check_rejected(recipe, split, rejected, total, options)
    if not records:
        raise UserError(f"{recipe.corpus}/{split} has no usable sample: {rejected[:1] or 'its list is empty'}")
    rejected.sort(key=lambda row: (row["key"], row["file"]))
    _remove_stale(storage, {record.name for record in records})
    storage.write(REJECTED, "".join(json.dumps(row, sort_keys=True) + "\n" for row in rejected).encode())
    counts = dict(sorted(Counter(row["cause"] for row in rejected).items()))
    details = {"rejected": counts, "plan": plan, **sums}
    facts = {"corpus": recipe.corpus, "split": split, "kind": "recordings", "num_images": len(images)}
    written = finish_split(storage, records, **facts, details=details)
    return {"state": "written", "samples": written.num_samples, "pictures": len(images)} | details


def _cut_in_shards(url: str, split: str, rounds: list[list[Any]], options: WriteOptions) -> Iterator[_Task]:
    flags = {name: value for name, value in asdict(options).items() if name not in _NOT_IN_A_SAMPLE}
    for number, items in enumerate(rounds):
        for shard, start in enumerate(range(0, len(items), options.samples_per_shard)):
            part = items[start : start + options.samples_per_shard]
            plan = hashlib.sha256(repr((flags, part)).encode(errors="surrogatepass")).hexdigest()[:16]
            yield _Task(url, shard_name(split, number, shard), number, part, plan)


def _run_tasks(recipe: Recipe, tasks: list[_Task]) -> Iterator[tuple[_Task, ShardRecord | None, dict[str, Any]]]:
    """Yield each task with its result as it is done; a few more are submitted than there are CPUs."""
    import ray

    remote = ray.remote(_write_task).options(max_retries=3)
    reference, pending, at_once = ray.put(recipe), iter(tasks), 2 * max(1, available("CPU"))
    waiting: dict[Any, _Task] = {}
    while True:
        waiting |= {remote.remote(reference, task): task for task in islice(pending, at_once - len(waiting))}
        if not waiting:
            return
        (done,), _ = ray.wait(list(waiting), num_returns=1)
        try:
            record, notes = ray.get(done)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise
        yield waiting.pop(done), record, notes


def _write_task(recipe: Recipe, task: _Task) -> tuple[ShardRecord | None, dict[str, Any]]:
    """Write one shard on a worker, unless an earlier run did; return its record and notes.

    The notes are the rejected rows, the pictures, and sums over the samples.
    """
    storage = open_storage(task.url)
    known = finished_shard(storage, task.name)
    if known is not None and known.notes.get("plan") == task.plan:
        return known, known.notes
    sums = {"audio_ms": 0, "damaged": 0, "longer_than_30_seconds": 0}
    notes: dict[str, Any] = {"plan": task.plan, "rejected": [], "image_ids": [], "sums": sums}

    def samples() -> Iterator[Sample]:
        for item in task.items:
            try:
                sample = recipe.make_sample(item)
            except BadSample as error:
                notes["rejected"].append(_row(item, error.cause, str(error)))
                continue
            notes["image_ids"].append(sample.metadata["image_id"])
            sums["audio_ms"] += round(1000 * sample.metadata["duration_seconds"])
            sums["damaged"] += "missing_seconds" in sample.metadata
            sums["longer_than_30_seconds"] += sample.metadata["duration_seconds"] > _LONG_SECONDS
            yield sample

    try:
        return write_shard(storage, task.name, task.round, samples(), notes), notes
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise UserError(f"no space is left in {tempfile.gettempdir()}, where a shard is made: set TMPDIR") from None


def _row(item: Any, cause: str, detail: str) -> dict[str, str]:
    """Return a line of rejected.jsonl; the same in every run."""
    detail = re.sub(r"<[^<>]* at 0x[0-9a-f]+>", "the file", detail)  # soundfile and PIL print addresses
    if isinstance(item, Recording):
        return {"key": item.key or item.image_id, "file": item.audio, "cause": cause, "detail": detail}
    return {"key": str(item), "file": "", "cause": cause, "detail": detail}


def _is_bad(item: Any) -> bool:
    return isinstance(item, Recording) and bool(item.problem)


def _count(tasks: list[_Task]) -> dict[str, Any]:
    """Return what is known before a file is opened."""
    items = [item for task in tasks for item in task.items]
    rejected = Counter(item.problem for item in items if _is_bad(item))
    usable = [item for item in items if not _is_bad(item)]
    images = {item.image_id for item in usable if isinstance(item, Recording)}
    counts = {"samples": len(usable), "rejected": dict(sorted(rejected.items()))}
    return {"state": "dry run"} | counts | ({"pictures": len(images)} if images else {})


def _already_written(storage: Storage, plan: str) -> dict[str, Any]:
    summary = open_manifest(storage.url).summary
    if summary.details.get("plan", plan) != plan:
        raise UserError(
            f"{storage.url} was written from other files or with other flags: remove it, or name another --dest"
        )
    return {"state": "already there", "samples": summary.num_samples, "pictures": summary.num_images} | summary.details


def _check_rejected(
    recipe: Recipe, split: str, rejected: list[dict[str, str]], total: int, options: WriteOptions
) -> None:
    if len(rejected) > options.max_rejected_fraction * total:
        causes = ", ".join(f"{count} {cause}" for cause, count in Counter(r["cause"] for r in rejected).most_common())
        raise UserError(
            f"{len(rejected)} of {total} samples of {recipe.corpus}/{split} are rejected ({causes}), more than "
            f"--max-rejected-fraction {options.max_rejected_fraction:g} allows; the first: {rejected[0]}"
        )


def _check_writable(dest: str) -> None:
    """Write and remove an empty object; raises `StorageError` with the cause."""
    check_reachable(dest)
    storage = open_storage(dest, retry_seconds=3.0)
    storage.write(".writable", b"")
    storage.delete(".writable")


def _check_space(recipe: Recipe, dest: str, plans: dict[str, tuple[Storage, list[_Task]]]) -> None:
    """Compare the free space of a local destination with the size of a few samples times their number.

    Samples that are synthesised are not probed: making one takes seconds.
    """
    storage = open_storage(dest)
    items = [item for _, tasks in plans.values() for task in tasks for item in task.items if not _is_bad(item)]
    if not isinstance(storage, FolderStorage) or not items or not isinstance(items[0], Recording):
        return
    sizes = []
    for item in items[:: -(-len(items) // _PROBES)]:
        try:
            sizes.append(len(pack_sample(recipe.make_sample(item))))
        except BadSample:
            continue
    written = sum(storage.size(name) for name in storage.list_names() if name.endswith(".tar"))
    needed = sum(sizes) / max(1, len(sizes)) * len(items) - written
    free = shutil.disk_usage(storage.folder).free
    if needed > free:
        raise UserError(
            f"--dest {dest} needs about {needed / 1e9:.3g} GB more, {free / 1e9:.3g} GB are free there: "
            "make room, choose another --dest, or take less with --limit"
        )


def _remove_stale(storage: Storage, names: set[str]) -> None:
    """Remove shards that an interrupted run with other flags left."""
    for name in storage.list_names():
        if name.endswith(".tar") and "/" not in name and name not in names:
            storage.delete(name)


def _write_left_out(corpus: FileCorpus, dest: str) -> None:
    """List, beside the splits, what the corpus has in none of them."""
    rows = [_row(recording, recording.problem, recording.image) for recording in corpus.left_out]
    lines = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
    open_storage(dest).write(REJECTED, lines.encode(errors="backslashreplace"))


def print_summary(summary: dict[str, dict[str, Any]]) -> None:
    """Print a table with a line for each split: samples, pictures, hours, and rejections by cause."""
    print(f"{'split':<12}{'samples':>10}{'pictures':>10}{'hours':>9}{'> 30 s':>8}{'damaged':>9}  state, rejected")
    for split, counts in summary.items():
        rejected = ", ".join(f"{count} {cause}" for cause, count in sorted(counts["rejected"].items())) or "none"
        hours = f"{counts['audio_ms'] / 3.6e6:.2f}" if "audio_ms" in counts else "-"
        facts = [counts.get(name, "-") for name in ("longer_than_30_seconds", "damaged")]
        print(
            f"{split:<12}{counts['samples']:>10}{counts.get('pictures', '-'):>10}{hours:>9}{facts[0]:>8}{facts[1]:>9}"
            f"  {counts['state']}, rejected: {rejected}",
            flush=True,
        )
