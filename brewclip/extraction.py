"""Whisper reads a corpus once: shards of recordings in, shards of features and transcripts out, over Ray.

An output shard is written whole or not at all, and skipped when it is already there. The keys stay the same.
"""

import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from brewclip.audio import UndecodableAudio, decode_audio
from brewclip.config import Config
from brewclip.data.manifest import Manifest, ShardRecord, open_manifest
from brewclip.data.order import Extent
from brewclip.data.pictures import open_picture
from brewclip.data.reader import SplitReader
from brewclip.data.schema import BadSample, Sample, array_to_npy
from brewclip.data.shards import finish_split, finished_shard, is_finished, write_shard
from brewclip.data.storage import open_storage
from brewclip.progress import Progress

_BATCHES_AT_ONCE = 4


@dataclass(frozen=True)
class ExtractionTask:
    """What a worker needs to know to extract shards of one split.

    Attributes:
        source_url: split of recordings.
        target_url: split of features.
        whisper: name of the model, for the record.
        window: `speech` keeps the frames of the whole recording, `first_30_seconds` what the released code used.
        batch_size: recordings decoded together.
        image_side_pixels: short side that pictures are reduced to; 0 keeps the original bytes.
    """

    source_url: str
    target_url: str
    whisper: str
    window: str
    batch_size: int
    image_side_pixels: int


def extract_splits(config: Config, image_side_pixels: int) -> dict[str, dict[str, Any]]:
    """Extract the splits of a corpus over all CPUs or GPUs of the cluster; each worker loads Whisper once.

    Returns:
        split -> samples, rejected {cause: n}, and unheard {reason: n}: recordings kept without a transcript.
    """
    import ray

    sources = {}
    for split in config.extraction.splits:
        target = open_storage(f"{config.features_url}/{split}")
        if is_finished(target):
            print(f"extract {config.data.corpus}/{split}: already done at {target.url}", flush=True)
        else:
            sources[split] = open_manifest(f"{config.corpus_url}/{split}")
    most = max((source.summary.num_shards for source in sources.values()), default=0)
    actors = [_start_actor(config) for _ in range(min(most, _num_places(config)))]
    if actors:
        print(f"extract {config.data.corpus}: {len(actors)} workers load Whisper {config.model.whisper}", flush=True)
    summaries = {}
    for split, source in sources.items():
        task = _task(config, split, image_side_pixels)
        summaries[split] = _finish(config, task, source, _extract_shards(config, task, source, actors))
    for actor in actors:
        ray.kill(actor)
    return summaries


def _task(config: Config, split: str, image_side_pixels: int) -> ExtractionTask:
    return ExtractionTask(
        source_url=f"{config.corpus_url}/{split}",
        target_url=f"{config.features_url}/{split}",
        whisper=config.model.whisper,
        window=config.extraction.window,
        batch_size=config.extraction.batch_size,
        image_side_pixels=0 if config.extraction.keep_original_images else image_side_pixels,
    )


def _extract_shards(
    config: Config, task: ExtractionTask, source: Manifest, actors: list[Any]
) -> list[tuple[ShardRecord | None, dict[str, Any]]]:
    """Hand out shards one by one to whichever worker is free."""
    import ray

    progress = Progress(f"extract {config.data.corpus}/{source.summary.split}", len(source), "recordings")
    shards = iter(range(source.summary.num_shards))
    waiting = {actor.extract.remote(task, shard): (actor, shard) for actor, shard in zip(actors, shards, strict=False)}
    done = []
    while waiting:
        (ready,), _ = ray.wait(list(waiting), num_returns=1)
        actor, shard = waiting.pop(ready)
        done.append(ray.get(ready))
        progress.advance(int(source.num_samples[shard]))
        for following in islice(shards, 1):
            waiting[actor.extract.remote(task, following)] = (actor, following)
    return done


def _num_places(config: Config) -> int:
    """Return how many workers the cluster has room for."""
    from brewclip.cluster import available

    if config.cluster.use_gpu:
        return max(1, available("GPU"))
    return max(1, int(available("CPU") / config.cluster.cpus_per_worker))


def _start_actor(config: Config) -> Any:
    import ray

    options: dict[str, Any] = {"max_restarts": -1, "max_task_retries": 3, "num_cpus": config.cluster.cpus_per_worker}
    if config.cluster.use_gpu:
        options["num_gpus"] = 1
    threads = max(1, int(config.cluster.cpus_per_worker))
    return ray.remote(Extractor).options(**options).remote(config.model.whisper, config.model.language, threads)


def _finish(
    config: Config,
    task: ExtractionTask,
    source: Manifest,
    done: list[tuple[ShardRecord | None, dict[str, Any]]],
) -> dict[str, Any]:
    storage = open_storage(task.target_url)
    rejected = [row for _, notes in done for row in notes["rejected"]]
    unheard: Counter[str] = sum((Counter(notes["unheard"]) for _, notes in done), Counter())
    counts = {
        "rejected": dict(Counter(row["cause"] for row in rejected)),
        "unheard": dict(unheard),
    }
    rows = "".join(json.dumps(row, sort_keys=True) + "\n" for row in sorted(rejected, key=lambda row: row["item"]))
    storage.write("rejected.jsonl", rows.encode())
    summary = finish_split(
        storage,
        [record for record, _ in done if record is not None],
        corpus=config.data.corpus,
        split=source.summary.split,
        kind="features",
        num_images=source.summary.num_images,
        details=counts
        | {
            "whisper": task.whisper,
            "window": task.window,
            "image_side_pixels": task.image_side_pixels,
            "source_sha256": source.sha256,
        },
    )
    return {"samples": summary.num_samples} | counts


class Extractor:
    """Holds Whisper on one worker and extracts shard after shard."""

    def __init__(self, whisper: str, language: str, num_threads: int) -> None:
        import torch

        from brewclip.models.whisper import SpeechReader
        from brewclip.pretrained import load_whisper

        torch.set_num_threads(num_threads)
        model = load_whisper(whisper).to("cuda" if torch.cuda.is_available() else "cpu")
        self.speech_reader = SpeechReader(model, language or None)

    def extract(self, task: ExtractionTask, shard: int) -> tuple[ShardRecord | None, dict[str, Any]]:
        """Extract one shard, unless it was; return its record and what was rejected or not heard."""
        source = SplitReader(open_manifest(task.source_url))
        target, name = open_storage(task.target_url), source.manifest.name_of(shard)
        known = finished_shard(target, name)
        if known is not None:
            return known, known.notes
        notes: dict[str, Any] = {"rejected": [], "unheard": {}}
        samples = self._extracted(task, source, shard, notes)
        return write_shard(target, name, int(source.manifest.rounds[shard]), samples, notes), notes

    def _extracted(
        self, task: ExtractionTask, source: SplitReader, shard: int, notes: dict[str, Any]
    ) -> Iterator[Sample]:
        count, width = int(source.manifest.num_samples[shard]), task.batch_size * _BATCHES_AT_ONCE
        self.speech_reader.batch_size = task.batch_size
        self.speech_reader.whole_window = task.window == "first_30_seconds"
        for first in range(0, count, width):
            prepared = list(_prepared(task, source, Extent(shard, first, min(width, count - first)), notes))
            speeches = self.speech_reader.read([waveform for _, waveform in prepared])
            for (sample, _), speech in zip(prepared, speeches, strict=True):
                if speech.rejected:
                    notes["unheard"][speech.rejected] = notes["unheard"].get(speech.rejected, 0) + 1
                metadata = dict(sample.metadata) | {
                    "transcript": speech.transcript,
                    "language": speech.language,
                    "avg_logprob": round(speech.avg_logprob, 4),
                    "no_speech_prob": round(speech.no_speech_prob, 4),
                    "compression_ratio": round(speech.compression_ratio, 4),
                    "temperature": speech.temperature,
                    "rejected": speech.rejected,
                }
                yield Sample(sample.key, metadata, sample.image, features=array_to_npy(speech.features))


def _prepared(
    task: ExtractionTask, source: SplitReader, extent: Extent, notes: dict[str, Any]
) -> Iterator[tuple[Sample, NDArray[np.float32]]]:
    """Yield the samples of an extent with a small picture, and their waveforms."""
    name = source.manifest.label_of(extent.shard)
    for number, sample in source.load(extent):
        try:
            if isinstance(sample, BadSample):
                raise sample
            if sample.audio is None:
                raise BadSample("audio", f"sample {sample.key!r} has no recording")
            image = sample.image and shrink_image(sample.image, task.image_side_pixels)
            yield Sample(sample.key, sample.metadata, image), decode_audio(sample.audio)
        except (BadSample, UndecodableAudio) as error:
            item = sample.key if isinstance(sample, Sample) else f"{name} #{number}"
            notes["rejected"].append({"item": item, "cause": error.cause, "detail": str(error)})


def shrink_image(data: bytes, side_pixels: int) -> bytes:
    """Reduce a JPEG so that its short side has at most `side_pixels`; quality 95.

    Args:
        data: an encoded picture.
        side_pixels: short side; 0 checks the picture and returns the bytes as they are.

    Raises:
        BadSample: if it cannot be decoded or is larger than 100 megapixels.
    """
    picture = open_picture(data)
    scale = side_pixels / min(picture.size)
    if not side_pixels or scale >= 1:
        return data
    size = (max(side_pixels, round(picture.width * scale)), max(side_pixels, round(picture.height * scale)))
    buffer = io.BytesIO()
    picture.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def image_side(config: Config) -> int:
    """Return the short side that stored pictures need, in pixels: the one set, or the one of the CLIP model."""
    if config.extraction.image_side_pixels:
        return config.extraction.image_side_pixels
    from brewclip.pretrained import clip_image_size

    return clip_image_size(config.model.clip)
