"""Runner of the recipes in `datasets/`: command line, parallel writing over Ray, resuming, counting.

A recipe lists the samples of a split and builds one of them; everything else is here. The bytes of a shard
are a function of the recipe and its items alone, so that a corpus written twice can be compared by its hashes.
"""

import contextlib
import hashlib
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, Protocol, TypeVar

from brewclip.cluster import connect
from brewclip.config import exit_on_user_error, parse_options
from brewclip.corpora.identical_images import add_digests, check_files, compare_and_save
from brewclip.corpora.options import NOT_IN_A_SAMPLE, SourceOptions, WriteOptions, check_options
from brewclip.corpora.rounds import FileCorpus, Recording
from brewclip.corpora.shard_tasks import ShardTask, divide_into_shards, rejection, run_tasks
from brewclip.data.folder_storage import FolderStorage
from brewclip.data.manifest import open_manifest
from brewclip.data.manifest_writer import ShardRecord
from brewclip.data.schema import BadSample, Sample, pack_sample
from brewclip.data.shards import finish_split, is_finished, remove_stale_shards
from brewclip.data.storage import Storage, check_reachable, open_storage
from brewclip.errors import UserError
from brewclip.progress import ProgressReporter

REJECTED = "rejected.jsonl"
_PROBES = 8  # samples built to estimate the size of all

Form = TypeVar("Form", bound="SourceOptions")


class Recipe(Protocol):
    """One corpus: plain data, so that it can be pickled to workers."""

    corpus: str

    def splits(self) -> Sequence[str]:
        """Return the names of the splits."""

    def rounds(self, split: str) -> list[list[Any]]:
        """Return, for caption k = 0, 1, ..., the items of that round; an image is at most once in a round."""

    def make_sample(self, item: Any) -> Sample:
        """Build the sample of an item; raises `BadSample` if it cannot be used."""


def run_recipe(usage: str | None, form: type[Form], read: Callable[[Form], FileCorpus]) -> None:
    """Run a recipe from its command line: parse the flags, read the lists of the corpus, write, print a table."""
    with exit_on_user_error(), exit_on_interrupt():
        options = parse_options(usage, form)
        check_options(options)
        corpus = read(options)
        if options.dry_run or options.identical_images == "refuse":
            check_files(corpus, refuse=options.identical_images == "refuse")
        summary = write_corpus(corpus, options, options.split)
        if not options.dry_run:
            _write_left_out(corpus, options.dest)
        print_summary(summary)
        for cause, count in sorted(Counter(recording.problem for recording in corpus.left_out).items()):
            print(f"in no split: {count} {cause}", flush=True)
        for line in corpus.remarks:
            print(f"note: {line}", flush=True)
        if options.dry_run:
            _check_known(corpus, summary, options)


@contextlib.contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """Exit with code 130 and one line at Ctrl-C; a second one does not wait for the workers."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted: finished shards are kept, the same command continues", file=sys.stderr, flush=True)
        raise SystemExit(130) from None


def write_corpus(recipe: Recipe, options: WriteOptions, splits: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Write the splits of a corpus; finished shards and splits are reused.

    Args:
        recipe: the corpus.
        options: the flags.
        splits: those to write; none given writes all.

    Returns:
        split -> {"samples": n, "rejected": {cause: n}, ...} for `print_summary`.

    Raises:
        UserError: if there is no such split, the destination cannot be used or holds other data, or too many
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
        plans[split] = storage, list(_divide_into_shards(storage.url, split, rounds, options))
    counts = {split: _count(tasks) for split, (_, tasks) in plans.items()}
    if options.dry_run:
        return counts
    _check_known(recipe, counts, options)
    _check_writable(options.dest)
    _check_space(recipe, options.dest, plans)
    connect()
    return {split: _write_split(recipe, storage, split, tasks, options) for split, (storage, tasks) in plans.items()}


def _divide_into_shards(url: str, split: str, rounds: list[list[Any]], options: WriteOptions) -> Iterator[ShardTask]:
    flags = {name: value for name, value in asdict(options).items() if name not in NOT_IN_A_SAMPLE}
    return divide_into_shards(url, split, rounds, options.samples_per_shard, flags)


def _write_split(
    recipe: Recipe, storage: Storage, split: str, tasks: list[ShardTask], options: WriteOptions
) -> dict[str, Any]:
    plan = hashlib.sha256("".join(task.plan for task in tasks).encode()).hexdigest()[:16]
    if is_finished(storage):
        return _already_written(storage, plan)
    total = sum(len(task.items) for task in tasks)
    label = f"{recipe.corpus}/{split}"
    progress = ProgressReporter(f"write {label}", total, "samples")
    records: list[ShardRecord] = []
    rejected: list[dict[str, str]] = []
    images: dict[str, str] = {}
    image_ids: set[str] = set()
    sums: Counter[str] = Counter()
    for _, record, notes in run_tasks(recipe, tasks, progress.advance):
        records += [record] if record else []
        add_digests(images, notes.images, label)
        image_ids.update(notes.image_ids)
        sums.update(notes.sums)
        rejected += notes.rejected
        _check_rejected(recipe, split, Counter(row["cause"] for row in rejected), total, rejected[:1], options)
    if not records:
        raise UserError(f"{label} has no usable sample: {rejected[:1] or 'its list is empty'}")
    rejected.sort(key=lambda row: (row["key"], row["file"]))
    remove_stale_shards(storage, {record.name for record in records})
    storage.write(REJECTED, _json_lines(rejected))
    counts = dict(sorted(Counter(row["cause"] for row in rejected).items()))
    others = {name: open_storage(f"{options.dest.rstrip('/')}/{name}") for name in recipe.splits() if name != split}
    others = {name: other for name, other in others.items() if is_finished(other)}
    details = {"rejected": counts, "plan": plan, **sums}
    details |= compare_and_save(storage, images, label, others, refuse=options.identical_images == "refuse")
    facts = {"corpus": recipe.corpus, "split": split, "kind": "recordings", "num_images": len(image_ids)}
    written = finish_split(storage, records, **facts, details=details)
    _print_decoder_warnings(label, sums)
    return {"state": "written", "samples": written.num_samples, "images": len(image_ids)} | details


def _print_decoder_warnings(label: str, sums: Counter[str]) -> None:
    if sums["decoder_warnings"]:
        print(
            f"{label}: the MP3 decoder gave {sums['decoder_warnings']} warnings for "
            f"{sums['with_decoder_warnings']} recordings, which are used; see decoder_warnings in their metadata",
            flush=True,
        )


def _json_lines(rows: list[dict[str, str]]) -> bytes:
    """Return rows as lines of JSON with names unchanged; half a surrogate pair is escaped."""
    lines = (json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n" for row in rows)
    return "".join(lines).encode(errors="backslashreplace")


def _is_bad(item: Any) -> bool:
    return isinstance(item, Recording) and bool(item.problem)


def _count(tasks: list[ShardTask]) -> dict[str, Any]:
    """Return the counts that are known before a file is opened."""
    items = [item for task in tasks for item in task.items]
    bad = [item for item in items if _is_bad(item)]
    usable = [item for item in items if not _is_bad(item)]
    images = {item.image_id for item in usable if isinstance(item, Recording)}
    return {
        "state": "dry run",
        "samples": len(usable),
        "rejected": dict(sorted(Counter(item.problem for item in bad).items())),
        "first_rejected": [rejection(item, item.problem, item.image or item.audio) for item in bad[:1]],
    } | ({"images": len(images)} if images else {})


def _already_written(storage: Storage, plan: str) -> dict[str, Any]:
    summary = open_manifest(storage.url).summary
    if summary.details.get("plan", plan) != plan:
        raise UserError(
            f"{storage.url} was written from other files or with other flags: remove it, or name another --dest"
        )
    return {"state": "already there", "samples": summary.num_samples, "images": summary.num_images} | summary.details


def _check_known(recipe: Recipe, counts: dict[str, dict[str, Any]], options: WriteOptions) -> None:
    """Raise, before Ray starts, if the known rejections are already too many."""
    for split, known in counts.items():
        rejected = Counter(known["rejected"])
        total = known["samples"] + rejected.total()
        _check_rejected(recipe, split, rejected, total, known["first_rejected"], options)


def _check_rejected(
    recipe: Recipe,
    split: str,
    rejected: Counter[str],
    total: int,
    first: list[dict[str, str]],
    options: WriteOptions,
) -> None:
    if rejected.total() > options.max_rejected_fraction * total:
        causes = ", ".join(f"{count} {cause}" for cause, count in rejected.most_common())
        raise UserError(
            f"{rejected.total()} of {total} samples of {recipe.corpus}/{split} are rejected ({causes}), more than "
            f"--max-rejected-fraction {options.max_rejected_fraction:g} allows; the first: {first[0]}"
        )


def _check_writable(dest: str) -> None:
    """Write and remove an empty object; raises `StorageError` with the cause."""
    check_reachable(dest)
    storage = open_storage(dest, retry_seconds=3.0)
    storage.write(".writable", b"")
    storage.delete(".writable")


def _check_space(recipe: Recipe, dest: str, plans: dict[str, tuple[Storage, list[ShardTask]]]) -> None:
    """Compare the free space of a local destination with the size estimated from a few samples.

    Synthesised samples are not probed: building one takes seconds.
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


def _write_left_out(corpus: FileCorpus, dest: str) -> None:
    """Write the list of recordings without a split next to the splits."""
    rows = [rejection(recording, recording.problem, recording.image) for recording in corpus.left_out]
    open_storage(dest).write(REJECTED, _json_lines(rows))


def print_summary(summary: dict[str, dict[str, Any]]) -> None:
    """Print a table with a line for each split: samples, images, hours, and rejections by cause."""
    print(f"{'split':<12}{'samples':>10}{'images':>10}{'hours':>9}{'> 30 s':>8}{'damaged':>9}  state, rejected")
    for split, counts in summary.items():
        rejected = ", ".join(f"{count} {cause}" for cause, count in sorted(counts["rejected"].items())) or "none"
        hours = f"{counts['audio_ms'] / 3.6e6:.2f}" if "audio_ms" in counts else "-"
        facts = [counts.get(name, "-") for name in ("longer_than_30_seconds", "damaged")]
        print(
            f"{split:<12}{counts['samples']:>10}{counts.get('images', '-'):>10}{hours:>9}{facts[0]:>8}{facts[1]:>9}"
            f"  {counts['state']}, rejected: {rejected}",
            flush=True,
        )
