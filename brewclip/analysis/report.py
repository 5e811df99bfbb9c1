"""One self-contained HTML page for an evaluation: tables, and queries with what each system answered.

Pictures and recordings are inside the page, so it opens anywhere without a network.
"""

import base64
import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2

from brewclip.analysis.systems import SystemResult, top_pictures
from brewclip.analysis.tables import DIRECTIONS, RECALL_AT, TITLES
from brewclip.config import Config
from brewclip.data.manifest import ManifestError, open_manifest
from brewclip.data.order import Extent
from brewclip.data.reader import SplitReader
from brewclip.data.schema import BadSample, Sample

TOP = 5


@dataclass(frozen=True)
class Query:
    """One recording of the report.

    Attributes:
        key: of the sample.
        text: what was spoken, if known.
        transcript: what Whisper heard.
        audio: base64 of its FLAC, or empty.
        image_id: of the right picture.
        answers: for each system, its name, the rank of the right picture, and the nearest pictures.
    """

    key: str
    text: str
    transcript: str
    audio: str
    image_id: str
    answers: list[dict[str, Any]]


def build_report(config: Config, split: str, results: list[SystemResult], num_queries: int = 24) -> str:
    """Build the page.

    Args:
        config: settings of the evaluation.
        split: split that was evaluated.
        results: one for each system, over the same recordings.
        num_queries: queries shown, evenly spaced over the split, not chosen by hand.
    """
    first = results[0].embeddings
    count = min(num_queries, len(first.keys))
    chosen = [row * len(first.keys) // count for row in range(count)]
    reader = SplitReader(open_manifest(f"{config.features_url}/{split}"))
    queries = _queries(config, split, results, chosen, reader)
    shown = {query.image_id for query in queries}
    shown |= {name for query in queries for answer in query.answers for name in answer["pictures"]}
    page = jinja2.Environment(autoescape=True).from_string(
        resources.files("brewclip.analysis").joinpath("report.html").read_text()
    )
    return page.render(
        corpus=config.data.corpus,
        split=split,
        num_recordings=len(first.keys),
        num_pictures=len(first.image_ids),
        transcript={"asr": "Whisper's transcripts", "ground_truth": "ground-truth text"}[config.data.transcript],
        directions=[(TITLES[direction], direction) for direction in DIRECTIONS],
        recall_at=RECALL_AT,
        systems=[
            {
                "name": one.system.name,
                "metrics": one.metrics,
                "url": one.system.url or "frozen CLIP, nothing trained",
                "step": one.system.step,
                "bad": sum(one.bad_samples.values()),
            }
            for one in results
        ],
        best={
            f"{direction}/R{k}": max(one.metrics[f"{direction}/R{k}"] for one in results)
            for direction in DIRECTIONS
            for k in RECALL_AT
        },
        queries=queries,
        pictures=json.dumps(_pictures(first, shown, reader)),
    )


def _queries(
    config: Config, split: str, results: list[SystemResult], chosen: list[int], reader: SplitReader
) -> list[Query]:
    first = results[0].embeddings
    tops = [top_pictures(one.embeddings, chosen, TOP) for one in results]
    recordings = _Recordings(f"{config.corpus_url}/{split}")
    queries = []
    for number, row in enumerate(chosen):
        shard, index = first.places[row]
        (_, sample), *_ = reader.load(Extent(shard, index, 1))
        assert isinstance(sample, Sample)
        answers = [
            {
                "system": one.system.name,
                "rank": int(one.result.speech_to_image_rank[row]),
                "pictures": tops[place][number],
            }
            for place, one in enumerate(results)
        ]
        queries.append(
            Query(
                key=sample.key,
                text=str(sample.metadata.get("text", "")),
                transcript=str(sample.metadata.get("transcript", "")),
                audio=recordings.find(reader.manifest.name_of(shard), sample.key),
                image_id=first.speech_image_ids[row],
                answers=answers,
            )
        )
    return queries


class _Recordings:
    """The split before extraction, for the sound of a query; silent if it is no longer there."""

    def __init__(self, url: str) -> None:
        try:
            self.reader: SplitReader | None = SplitReader(open_manifest(url, retry_seconds=10))
        except ManifestError:
            self.reader = None
        self._shards: dict[str, dict[str, bytes]] = {}

    def find(self, shard_name: str, key: str) -> str:
        """Return base64 of a recording, or nothing."""
        if self.reader is None:
            return ""
        if shard_name not in self._shards:
            self._shards[shard_name] = self._load(shard_name)
        return base64.b64encode(self._shards[shard_name].get(key, b"")).decode()

    def _load(self, shard_name: str) -> dict[str, bytes]:
        assert self.reader is not None
        manifest = self.reader.manifest
        for shard in range(manifest.summary.num_shards):
            if manifest.name_of(shard) == shard_name:
                samples = self.reader.load(Extent(shard, 0, int(manifest.num_samples[shard])))
                return {s.key: s.audio for _, s in samples if isinstance(s, Sample) and s.audio is not None}
        return {}


def _pictures(embeddings: Any, shown: set[str], reader: SplitReader) -> dict[str, str]:
    """Return image_id -> base64 of the JPEG, of the pictures that are shown."""
    found: dict[str, str] = {}
    for image_id, (shard, index) in zip(embeddings.speech_image_ids, embeddings.places, strict=True):
        if image_id in shown and image_id not in found:
            (_, sample), *_ = reader.load(Extent(shard, index, 1))
            if not isinstance(sample, BadSample) and sample.image is not None:
                found[image_id] = base64.b64encode(sample.image).decode()
    return found
