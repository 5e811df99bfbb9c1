"""Self-contained HTML report of an evaluation: recall tables, and queries with the nearest images of each system.

Images and recordings are embedded, so the page opens without a network; its Content-Security-Policy forbids requests
and all other scripts. report.js builds twenty queries at a time, so that 5,000 open as fast as 20. Texts are passed as
JSON and shown as text, never as markup.
"""

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from itertools import pairwise
from typing import Any

import jinja2
import numpy as np
import whisper.normalizers
from PIL import Image

from brewclip.config import Config
from brewclip.data.images import open_image
from brewclip.data.schema import BadSample, Sample
from brewclip.evaluation.pages import source_hash
from brewclip.evaluation.queries import Place, QuerySamples, evenly_spaced, image_places, nearest_images
from brewclip.evaluation.ranks import compare_all
from brewclip.evaluation.recall_tables import TITLES
from brewclip.evaluation.systems import SystemResult
from brewclip.evaluation.wer import BAND_EDGES, make_utterance
from brewclip.metrics import DIRECTIONS, RECALL_AT

TOP = 5
# Size limits of the page: sound as recorded, 15 kB/s, for as many queries as fit; thumbnails of about 6 kB, smaller if
# there are thousands. 5,000 queries with 5,000 images stay below 70 MB.
SOUND_BYTES = 24 * 2**20
_TEXTS = {
    "asr": "Whisper's transcripts",
    "asr_unfiltered": "Whisper's transcripts with what its checks reject",
    "asr_greedy": "Whisper's greedy transcripts, with what its checks reject",
    "asr_mean": "the mean of Whisper's alternative transcripts",
    "ground_truth": "ground-truth text",
}
_THUMBNAIL_PIXELS, _SMALL_THUMBNAIL_PIXELS, _MANY_IMAGES = 192, 112, 1_000


def build_report(
    config: Config, split: str, results: list[SystemResult], num_queries: int = 24, *, baseline: str = ""
) -> str:
    """Build the report as HTML.

    Args:
        config: settings of the evaluation.
        split: evaluated split.
        results: one per system.
        num_queries: queries shown, evenly spaced over the recordings of the first system.
        baseline: system to compare the others with; empty compares none.
    """
    first, read_by = results[0].embeddings, results[0].system.config
    source = replace(config, model=replace(config.model, variant=read_by.model.variant))
    samples = QuerySamples(source, split)
    chosen = evenly_spaced(len(first.keys), num_queries)
    answers = [_Answers(one, [first.keys[row] for row in chosen]) for one in results]
    shown = {first.speech_image_ids[row] for row in chosen} | {name for one in answers for name in one.shown}
    places = {name: place for name, place in image_places(first).items() if name in shown}
    alike = [one for one in results if one.system.config.splits_url == read_by.splits_url]  # places of the same split
    places |= {n: p for one in alike for n, p in image_places(one.embeddings).items() if n in shown - places.keys()}
    images = {name: number for number, name in enumerate(sorted(places))}
    facts, thumbnails = _read(samples, {first.places[row] for row in chosen}, places)
    queries = [
        {
            "key": first.keys[row],
            "image": images[first.speech_image_ids[row]],
            "ranks": [one.ranks[number] for one in answers],
            "margins": [one.margins[number] for one in answers],
            "top": [[images[name] for name in one.top[number] if name in images] for one in answers],
        }
        | facts.get(first.places[row], {"said": None, "heard": None, "wer": None})
        for number, row in enumerate(chosen)
    ]
    sounds = dict(_sounds(samples, [(first.places[row], first.keys[row]) for row in chosen]))
    rankings = {one.system.name: one.ranking for one in results}
    data = {
        "systems": list(rankings),
        "bands": [edge for edge in BAND_EDGES if np.isfinite(edge)],
        "images": list(images),
        "queries": queries,
    }
    return _render(
        corpus=config.data.corpus,
        split=split,
        num_recordings=len(first.keys),
        num_images=len(first.image_ids),
        transcript=_TEXTS[config.data.transcript],
        systems=[_facts_of_system(one) for one in results],
        best={
            f"{direction}/R{k}": max(one.metrics[f"{direction}/R{k}"] for one in results)
            for direction in DIRECTIONS
            for k in RECALL_AT
        },
        baseline=baseline,
        differences=compare_all(rankings, baseline, DIRECTIONS, RECALL_AT) if baseline else {},
        num_queries=len(chosen),
        num_sounds=len(sounds),
        band_labels=_band_labels(),
        data=script_json(data),
        images=[(images[name], thumbnails[place]) for name, place in places.items() if place in thumbnails],
        sounds=sorted(sounds.items()),
    )


def script_json(value: Any) -> str:
    """Serialize to JSON that is safe inside a script element: ASCII only, without `<`, `>` and `&`."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


class _Answers:
    """Rank, margin and nearest images of the chosen recordings; None and [] for recordings left out."""

    def __init__(self, one: SystemResult, keys: list[str]) -> None:
        row_of = {key: row for row, key in enumerate(one.embeddings.keys)}
        rows = [row_of[key] for key in keys if key in row_of]
        nearest, margins = nearest_images(one.embeddings, rows, TOP)
        found = dict(zip(rows, zip(nearest, margins, strict=True), strict=True))
        places = [row_of.get(key) for key in keys]
        ranks = one.result.speech_to_image_rank
        self.ranks = [None if row is None else int(ranks[row]) for row in places]
        self.margins = [None if row is None else round(float(found[row][1]), 4) for row in places]
        self.top = [[] if row is None else found[row][0] for row in places]
        self.shown = {name for names in nearest for name in names}


def _read(
    samples: QuerySamples, queries: set[Place], images: dict[str, Place]
) -> tuple[dict[Place, dict[str, Any]], dict[Place, str]]:
    """Return the texts of the queries and the thumbnails in base64, by place."""
    normalise = whisper.normalizers.EnglishTextNormalizer()
    side = _THUMBNAIL_PIXELS if len(images) <= _MANY_IMAGES else _SMALL_THUMBNAIL_PIXELS
    of_images = set(images.values())
    facts, thumbnails = {}, {}
    for place, sample in samples.iter_samples(queries | of_images):
        if place in queries:
            facts[place] = _texts(sample, normalise)
        if place in of_images:
            image = _thumbnail(sample.image, side)
            if image:
                thumbnails[place] = base64.b64encode(image).decode()
    return facts, thumbnails


def _texts(sample: Sample, normalise: whisper.normalizers.EnglishTextNormalizer) -> dict[str, Any]:
    said, heard = sample.metadata.get("text"), sample.metadata.get("transcript")
    utterance = make_utterance(sample, normalise) if isinstance(heard, str) else None
    wer = round(utterance.wer, 4) if utterance is not None and utterance.num_words else None
    return {"said": said, "heard": heard, "wer": wer}


def _thumbnail(data: bytes | None, side_pixels: int) -> bytes:
    """Return a JPEG whose longer side has at most `side_pixels`; b"" if the image cannot be decoded."""
    try:
        image = open_image(data)
    except BadSample:
        return b""
    image.thumbnail((side_pixels, side_pixels), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80, optimize=True)
    return buffer.getvalue()


def _sounds(samples: QuerySamples, queries: list[tuple[Place, str]]) -> Iterator[tuple[int, str]]:
    """Yield number and base64 of as many recordings as fit, evenly spaced over the queries."""
    order, room = _spread(len(queries)), SOUND_BYTES
    for number in order:
        sound = samples.sound(*queries[number])
        room -= len(sound)
        if room < 0:
            return
        if sound:
            yield number, base64.b64encode(sound).decode()


def _spread(count: int) -> list[int]:
    """Return 0..count-1 in van der Corput order: every prefix is spread evenly."""
    bits = max(1, (count - 1).bit_length())
    numbers = (int(f"{number:0{bits}b}"[::-1], 2) for number in range(2**bits))
    return [number for number in numbers if number < count]


def _band_labels() -> list[str]:
    percent = [f"{100 * edge:.0f}" for edge in BAND_EDGES[:-1]]
    between = [f"{low} to {high} %" for low, high in pairwise(percent)]
    return ["none", *between, f"above {percent[-1]} %"]


def _facts_of_system(one: SystemResult) -> dict[str, Any]:
    return {
        "name": one.system.name,
        "metrics": one.metrics,
        "url": one.system.url or "frozen CLIP, nothing trained",
        "step": one.system.step,
        "bad": sum(one.bad_samples.values()),
        "truncation": one.truncation,
    }


def _render(**values: Any) -> str:
    folder = resources.files("brewclip.evaluation")
    page, style, script = (folder.joinpath(f"report.{kind}").read_text() for kind in ("html", "css", "js"))
    return (
        jinja2.Environment(autoescape=True)
        .from_string(page)
        .render(
            style=style,
            style_hash=source_hash(style),
            script=script,
            script_hash=source_hash(script),
            directions=[(TITLES[direction], direction) for direction in DIRECTIONS],
            recall_at=RECALL_AT,
            sound_megabytes=SOUND_BYTES // 2**20,
            **values,
        )
    )
