"""Feature extraction over Ray: splits of recordings to splits of Whisper features and transcripts.

This is the driver's side: planning, scheduling, progress, the manifest. Workers run `extraction_worker`. A shard of
features is written atomically, and reused after an interruption. The keys stay the same.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import pairwise
from typing import Any

from brewclip.config import Config
from brewclip.corpora.actors import CONTROL, num_places, run_on_actors, start_actor
from brewclip.corpora.extraction_worker import ExtractionTask, Extractor, Part
from brewclip.data.images import CLIP_SIDES
from brewclip.data.manifest import MANIFEST, Manifest, open_manifest
from brewclip.data.manifest_writer import ShardRecord
from brewclip.data.order import Extent
from brewclip.data.shards import finish_split, is_finished, remove_stale_shards, shard_name
from brewclip.data.storage import open_storage
from brewclip.errors import ManifestError, UserError
from brewclip.progress import ProgressReporter

_USUAL_SPLITS = ("train", "dev", "test")
_POLL_SECONDS = 2.0
_END_SECONDS = 20.0  # how long workers may take to end an interrupted part

# A split of a few shards is divided further, so that there is work for several workers, and an interruption costs
# little. The parts follow from the corpus alone: the order of training is a function of the shards.
_LEAST_PARTS = 16
_LEAST_SAMPLES = 32  # two batches of Whisper

# What splits were extracted with whose manifests do not say it.
_EARLIER_SETTINGS = {"task": "transcribe", "precision": "float32", "retries": 5, "alternatives": 0}


def extract_splits(config: Config, image_side_pixels: int) -> dict[str, dict[str, Any]]:
    """Extract the splits of a corpus over all CPUs or GPUs of the cluster; each worker loads Whisper once.

    Returns:
        split -> samples, rejected {cause: n}, and unheard {reason: n}: recordings stored without a transcript.

    Raises:
        UserError: if there is no such split, or its features were made with other settings.
        KeyboardInterrupt: after the workers have ended their parts; finished parts are reused.
    """
    import ray

    tasks = _unfinished_tasks(config, image_side_pixels)
    parts = {split: plan_parts(source) for split, (_, source) in tasks.items()}
    most = max((len(planned) for planned in parts.values()), default=0)
    actors = [start_actor(Extractor, config) for _ in range(min(most, num_places(config)))]
    if actors:
        print(f"extract {config.data.corpus}: {len(actors)} workers load Whisper {config.model.whisper}", flush=True)
    summaries = {}
    try:
        for split, (task, source) in tasks.items():
            done = list(run_parts(f"extract {config.data.corpus}/{split}", task, parts[split], actors))
            summaries[split] = _finish(config, task, source, done)
    except KeyboardInterrupt:
        _interrupt(actors)
        raise
    finally:
        for actor in actors:
            ray.kill(actor)
    return summaries


def splits_to_extract(config: Config) -> tuple[str, ...]:
    """Return the splits in the settings, or else those of the corpus, the usual ones first.

    Raises:
        ManifestError: if one that is set is not there, or there is none.
    """
    if config.extraction.splits:
        for split in config.extraction.splits:
            open_manifest(f"{config.corpus_url}/{split}", retry_seconds=10)
        return config.extraction.splits
    corpus = open_storage(config.corpus_url, retry_seconds=10)
    folders = [name for name in corpus.list_folders() if is_finished(open_storage(f"{config.corpus_url}/{name}"))]
    if not folders:
        raise ManifestError(f"no whole split at {config.corpus_url}: write the corpus first (datasets/)")
    usual = [split for split in _USUAL_SPLITS if split in folders]
    return (*usual, *sorted(set(folders) - set(usual)))


def plan_parts(source: Manifest) -> list[Part]:
    """Divide a split into parts, one for each shard of features, in the order of the source.

    Shards of a large split are not divided. Those of a small one are divided evenly, into parts of at least 32 samples.
    """
    most = max(_LEAST_SAMPLES, -(-len(source) // _LEAST_PARTS))
    parts: list[Part] = []
    numbers: Counter[int] = Counter()
    for shard, (round_number, total) in enumerate(
        zip(source.rounds.tolist(), source.num_samples.tolist(), strict=True)
    ):
        count = max(1, total // most)
        bounds = [total * n // count for n in range(count + 1)]
        for first, stop in pairwise(bounds):
            name = shard_name(source.summary.split, round_number, numbers[round_number])
            parts.append(Part(name, round_number, Extent(shard, first, stop - first)))
            numbers[round_number] += 1
    return parts


def image_side(config: Config) -> int:
    """Return the short side of stored images in pixels: the one set, or the one for the CLIP model.

    Letterboxed images are reduced by their long side, so those stored have twice the side that the model takes.
    """
    if config.extraction.image_side_pixels:
        return config.extraction.image_side_pixels
    from brewclip.pretrained.image_sizes import clip_image_size, clip_stored_side

    if config.data.image_transform == "letterbox":
        return 2 * clip_image_size(config.model.clip)
    return clip_stored_side(config.model.clip)


def _unfinished_tasks(config: Config, image_side_pixels: int) -> dict[str, tuple[ExtractionTask, Manifest]]:
    tasks = {}
    for split in splits_to_extract(config):
        source = open_manifest(f"{config.corpus_url}/{split}")
        task = task_of(config, source, image_side_pixels)
        if _is_done(task, overwrite=config.extraction.overwrite):
            print(f"extract {config.data.corpus}/{split}: already done at {task.target_url}", flush=True)
        else:
            tasks[split] = task, source
    return tasks


def task_of(config: Config, source: Manifest, image_side_pixels: int) -> ExtractionTask:
    """Return what workers are given of the settings to extract a split."""
    return ExtractionTask(
        source_url=source.url,
        source_sha256=source.sha256,
        target_url=f"{config.features_url}/{source.summary.split}",
        whisper=config.model.whisper,
        language=config.model.language,
        task=config.model.task,
        frames=config.extraction.frames,
        batch_size=config.extraction.batch_size,
        image_side_pixels=0 if config.extraction.keep_original_images else image_side_pixels,
        exact_images=image_side_pixels in CLIP_SIDES and config.data.image_transform == "crop",
        precision=config.extraction.precision,
        retries=config.extraction.retries,
        alternatives=config.num_alternatives,
    )


def _is_done(task: ExtractionTask, *, overwrite: bool) -> bool:
    """Return whether the features exist; those of an earlier version of the corpus are removed.

    Raises:
        UserError: if they were made with other settings, and are not to be overwritten.
    """
    storage = open_storage(task.target_url)
    if not is_finished(storage):
        return False
    found, wanted = open_manifest(task.target_url).summary.details, _settings(task)
    found = _EARLIER_SETTINGS | found
    different = [name for name, value in wanted.items() if found.get(name, value) != value]
    if not different:
        return True
    if different == ["source_sha256"]:
        print(f"extract: {task.source_url} was rewritten since its extraction: extracting it again", flush=True)
    elif not overwrite:
        changes = ", ".join(f"{name} {found[name]!r}, now {wanted[name]!r}" for name in different)
        raise UserError(
            f"{task.target_url} was extracted with other settings ({changes}): take those, or extract it again with "
            "--extraction.overwrite"
        )
    storage.delete(MANIFEST)  # first: from here on the split is incomplete
    return False


def _settings(task: ExtractionTask) -> dict[str, Any]:
    """Return the settings of a task that are stored in the manifest and compared with those of a finished split."""
    left_out = ("source_url", "target_url", "batch_size")
    return {name: value for name, value in asdict(task).items() if name not in left_out}


def run_parts(
    label: str, task: ExtractionTask, parts: list[Part], actors: list[Any]
) -> Iterator[tuple[ShardRecord | None, dict[str, Any]]]:
    """Schedule parts one by one on free workers, and yield their results."""
    progress = ProgressReporter(label, sum(part.extent.count for part in parts), "recordings")
    num_done = 0
    for finished, busy in run_on_actors(actors, parts, lambda actor, part: actor.extract.remote(task, part)):
        for part, result in finished:
            num_done += part.extent.count
            yield result
        progress.advance(max(0, num_done + _count_in_parts(busy) - progress.done))


def _count_in_parts(actors: Iterable[Any]) -> int:
    """Return how many recordings of running parts were read; a worker that does not answer counts none."""
    import ray

    references = [actor.num_done.options(concurrency_group=CONTROL).remote() for actor in actors]
    ready, _ = ray.wait(references, num_returns=len(references), timeout=_POLL_SECONDS) if references else ([], [])
    total = 0
    for reference in ready:
        try:
            total += ray.get(reference)
        except ray.exceptions.RayError:
            continue  # it is being restarted
    return total


def _interrupt(actors: list[Any]) -> None:
    """Ask the workers to end their parts, so that they remove their temporary files."""
    import ray

    references = [actor.interrupt.options(concurrency_group=CONTROL).remote() for actor in actors]
    if references:
        ray.wait(references, num_returns=len(references), timeout=_END_SECONDS)


def _finish(
    config: Config,
    task: ExtractionTask,
    source: Manifest,
    done: list[tuple[ShardRecord | None, dict[str, Any]]],
) -> dict[str, Any]:
    storage = open_storage(task.target_url)
    records = [record for record, _ in done if record is not None]
    rejected = [row for _, notes in done for row in notes["rejected"]]
    unheard: Counter[str] = sum((Counter(notes["unheard"]) for _, notes in done), Counter())
    counts = {"rejected": dict(Counter(row["cause"] for row in rejected)), "unheard": dict(unheard)}
    rows = [
        json.dumps(row, sort_keys=True, ensure_ascii=False) for row in sorted(rejected, key=lambda row: row["item"])
    ]
    storage.write("rejected.jsonl", "".join(f"{row}\n" for row in rows).encode(errors="backslashreplace"))
    if not records:
        raise UserError(f"no recording of {task.source_url} can be used ({counts['rejected']}): see rejected.jsonl")
    remove_stale_shards(storage, {record.name for record in records})
    summary = finish_split(
        storage,
        records,
        corpus=config.data.corpus,
        split=source.summary.split,
        kind="features",
        num_images=source.summary.num_images,
        details=counts | _settings(task),
    )
    return {"samples": summary.num_samples} | counts
