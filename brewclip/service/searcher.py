"""Queries in a batch through one system and one index; what a replica holds. Knows neither HTTP nor Ray."""

import hashlib
import io
import json
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from brewclip.audio import SAMPLE_RATE_HZ
from brewclip.service.current_index import CurrentIndex, row_of
from brewclip.service.engine import TOP_OF_CHANNELS, Answer, Facts, Hit, Query, ServedIndex, Transcription
from brewclip.service.problems import Problem, internal_error
from brewclip.serving.hearing import Heard

Vector = NDArray[np.float32]
_REMEMBERED = 256  # recordings: paging and the slider of the weights send the same one again
_REJECTIONS = {
    "no_speech": "no speech was heard in the recording",
    "repetitive": "the speech could not be understood: what was heard repeats itself",
    "low_confidence": "the speech could not be understood with any confidence",
}


class SearchSystem(Protocol):
    """What is used of an `Embedder`."""

    name: str
    identity: dict[str, Any]

    @property
    def reads_text(self) -> bool:
        """Whether it embeds texts."""
        ...

    @property
    def hears_sound(self) -> bool:
        """Whether it has an acoustic channel."""
        ...

    @property
    def task(self) -> str:
        """What Whisper writes unless asked otherwise."""
        ...

    @property
    def language(self) -> str:
        """Language of recordings unless one is given; empty if it is detected."""
        ...

    def listen(self, recordings: Sequence[Any], *, task: str = "", language: str | None = None) -> list[Heard]:
        """Transcribe and embed recordings."""
        ...

    def embed_text(self, texts: Sequence[str]) -> Vector:
        """Embed texts, (n, E)."""
        ...

    def embed_images(self, images: Sequence[Any]) -> Vector:
        """Embed images, (n, E)."""
        ...


class _QueryVectors:
    """Embeddings of one query: the one that is searched with, and each channel's."""

    def __init__(self, vector: Vector, heard: Heard | None = None, without_row: int | None = None) -> None:
        self.vector, self.heard, self.without_row = vector, heard, without_row


class Searcher:
    """Answers batches of queries.

    Args:
        system: embeds.
        index: is searched.
        threshold: best score below which nothing is close to a recording or text; None: never said.
    """

    def __init__(self, system: SearchSystem, index: CurrentIndex, threshold: float | None = None) -> None:
        self.system, self.index, self.threshold = system, index, threshold
        self._remembered: OrderedDict[bytes, Heard] = OrderedDict()

    def warm_up(self) -> None:
        """Load what is loaded on first use, Whisper above all, by a query of each kind."""
        noise = np.random.default_rng(0).normal(0, 0.01, SAMPLE_RATE_HZ).astype(np.float32)
        self.answer([Query("audio", waveform=noise)])
        if self.system.reads_text:
            self.answer([Query("text", text="a photo")])

    def facts(self, index: ServedIndex | None = None) -> Facts:
        """Return which system answers, over which index."""
        index, system = index or self.index.get(), self.system
        digest = hashlib.sha256(json.dumps(system.identity, sort_keys=True).encode()).hexdigest()
        return Facts(
            checkpoint=shown_name(system.name),
            identity_digest=digest[:16],
            index_version=index.version,
            num_images=len(index),
            reads_text=system.reads_text,
            hears_sound=system.hears_sound,
            task=system.task,
            language=system.language,
            threshold=self.threshold,
        )

    def answer(self, queries: list[Query]) -> list[Answer | Problem]:
        """Answer queries; one that cannot be answered gets its problem and does not disturb the others."""
        index = self.index.get()  # one index for the batch, whatever happens on disk meanwhile
        results: list[Answer | Problem | None] = [None] * len(queries)
        vectors_of: dict[int, _QueryVectors] = {}
        timings: dict[str, float] = {}
        for place, found in enumerate(self._embed(queries, index, timings)):
            if isinstance(found, Problem):
                results[place] = found
            else:
                vectors_of[place] = found
        start = time.perf_counter()
        matches = self._nearest(index, [queries[place] for place in vectors_of], list(vectors_of.values()))
        timings["search"] = time.perf_counter() - start
        facts = self.facts(index)
        for (place, one), found_of_one in zip(vectors_of.items(), matches, strict=True):
            results[place] = self._compose(queries[place], one, found_of_one, index, facts, timings)
        return [result for result in results if result is not None]

    # ------------------------------------------------------------------ embeddings

    def _embed(
        self, queries: list[Query], index: ServedIndex, timings: dict[str, float]
    ) -> list[_QueryVectors | Problem]:
        heard = self._listen(queries, timings)
        start = time.perf_counter()
        found: list[_QueryVectors | Problem] = []
        for place, query in enumerate(queries):
            try:
                found.append(self._embed_one(query, heard.get(place), index))
            except Problem as problem:
                found.append(problem)
        timings["clip"] = timings.get("clip", 0.0) + time.perf_counter() - start
        return found

    def _embed_one(self, query: Query, heard: Heard | Problem | None, index: ServedIndex) -> _QueryVectors:
        if isinstance(heard, Problem):
            raise heard
        if heard is not None:
            lost = heard.rejection and (heard.rejection == "no_speech" or heard.sound is None)
            if lost:
                raise Problem(422, heard.rejection, _REJECTIONS.get(heard.rejection, "the speech was not understood"))
            return _QueryVectors(heard.fused_with(query.sound_weight), heard)
        try:
            if query.kind == "image":
                with Image.open(io.BytesIO(query.image)) as image:
                    return _QueryVectors(self.system.embed_images([image.convert("RGB")])[0])
            return self._embed_words(query, index)
        except ValueError as error:
            raise Problem(422, "unusable_query", str(error)) from None

    def _embed_words(self, query: Query, index: ServedIndex) -> _QueryVectors:
        if query.text and not self.system.reads_text:
            raise Problem(422, "no_text_channel", "this system reads no text: search with a recording or an image")
        text = self.system.embed_text([query.text])[0] if query.text else None
        if not query.like:
            assert text is not None
            return _QueryVectors(text)
        row = row_of(index, query.like)
        vector = np.asarray(index.vector(row), np.float32)
        if text is not None:
            vector = query.like_weight * vector + query.text_weight * text
        length = np.linalg.norm(vector)
        if not length:
            raise Problem(422, "zero_weights", "text and image cancel each other out: give other weights")
        return _QueryVectors((vector / length).astype(np.float32), None, row)

    def _listen(self, queries: list[Query], timings: dict[str, float]) -> dict[int, Heard | Problem]:
        """Hear the recordings among the queries, those of one task and language together."""
        heard: dict[int, Heard | Problem] = {}
        groups: dict[tuple[str, str | None], dict[bytes, list[int]]] = {}
        for place, query in enumerate(queries):
            if query.waveform is None:
                continue
            key = _key_of(query)
            if key in self._remembered:
                self._remembered.move_to_end(key)
                heard[place] = self._remembered[key]
            else:
                groups.setdefault((query.task, query.language), {}).setdefault(key, []).append(place)
        for (task, language), places in groups.items():
            waveforms = [queries[same[0]].waveform for same in places.values()]
            found = self._listen_to(waveforms, task, language)
            for (key, same), one in zip(places.items(), found, strict=True):
                heard |= dict.fromkeys(same, one)
                if isinstance(one, Heard):
                    self._remember(key, one)
                    for stage, seconds in one.timings_seconds.items():
                        timings[stage] = max(timings.get(stage, 0.0), seconds)
        return heard

    def _listen_to(self, waveforms: list[Any], task: str, language: str | None) -> Sequence[Heard | Problem]:
        try:
            return self.system.listen(waveforms, task=task, language=language)
        except ValueError as error:
            if len(waveforms) == 1:
                return [Problem(422, "unusable_query", str(error))]
        return [one for waveform in waveforms for one in self._listen_to([waveform], task, language)]

    def _remember(self, key: bytes, heard: Heard) -> None:
        self._remembered[key] = heard
        while len(self._remembered) > _REMEMBERED:
            self._remembered.popitem(last=False)

    # ------------------------------------------------------------------ results

    def _nearest(self, index: ServedIndex, queries: list[Query], found: list[_QueryVectors]) -> list[list[list[Any]]]:
        """Return for each query the matches of its embedding and of each channel, from one pass over the index."""
        if not queries:
            return []
        vectors = [[one.vector, *_channels(one)] for one in found]
        most = max(query.offset + query.top for query in queries) + any(one.without_row is not None for one in found)
        matches = iter(index.nearest(np.stack([row for rows in vectors for row in rows]), max(most, TOP_OF_CHANNELS)))
        return [[next(matches) for _ in rows] for rows in vectors]

    def _compose(
        self,
        query: Query,
        one: _QueryVectors,
        matches: list[list[Any]],
        index: ServedIndex,
        facts: Facts,
        timings: dict[str, float],
    ) -> Answer:
        own, *channels = matches
        best = own[0].score if own else -1.0
        others = [match for match in own if match.row != one.without_row]
        hits = _hits(index, others[query.offset : query.offset + query.top], query.offset)
        fitted = query.kind in ("audio", "text") and self.threshold is not None
        heard, named = one.heard, iter(channels)
        sides = {"heard": heard.text, "sounded_like": heard.sound} if heard else {}
        return Answer(
            hits=hits,
            total=len(index) - (one.without_row is not None),
            facts=facts,
            transcription=_transcription(query, heard, facts) if heard else None,
            channels={
                side: None if vector is None else _hits(index, next(named)[:TOP_OF_CHANNELS], 0)
                for side, vector in sides.items()
            },
            sound_weight=0.0 if heard is None else _weight(query, heard),
            nothing_close=bool(fitted and best < (self.threshold or 0.0)),
            timings_seconds=dict(timings),
        )


def _channels(one: _QueryVectors) -> list[Vector]:
    return [] if one.heard is None else [row for row in (one.heard.text, one.heard.sound) if row is not None]


def _weight(query: Query, heard: Heard) -> float:
    return heard.weight if query.sound_weight is None else query.sound_weight


def _transcription(query: Query, heard: Heard, facts: Facts) -> Transcription:
    task = query.task or facts.task
    return Transcription(heard.transcript, heard.language, heard.confidence, heard.rejection, task)


def _hits(index: ServedIndex, matches: Sequence[Any], offset: int) -> list[Hit]:
    hits = []
    for rank, match in enumerate(matches, start=offset + 1):
        entry = index.entry(match.row)
        hits.append(Hit(match.image_id, rank, float(match.score), int(entry.width), int(entry.height)))
    return hits


def _key_of(query: Query) -> bytes:
    waveform = np.ascontiguousarray(query.waveform, np.float32)
    settings = repr((query.task, query.language)).encode()
    return hashlib.blake2b(waveform.tobytes() + settings, digest_size=16).digest()


def shown_name(checkpoint: str) -> str:
    """Return the name of a checkpoint without the place of its storage, which clients must not learn."""
    if checkpoint.startswith("models:/"):
        return checkpoint
    parts = [part for part in checkpoint.split("/") if part]
    if "checkpoints" in parts:
        parts = parts[: parts.index("checkpoints")]
    return parts[-1] if parts else checkpoint


def answered(result: Answer | Problem) -> Answer:
    """Return an answer; raise the problem that came in its place."""
    if isinstance(result, Problem):
        raise result
    if not isinstance(result, Answer):
        raise internal_error()
    return result
