"""A search engine within this process: a searcher behind a batcher, without Ray."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

from brewclip.errors import UserError
from brewclip.service.batching import Batcher
from brewclip.service.current_index import CurrentIndex
from brewclip.service.engine import Answer, Facts, ImageFile, Query, ServedIndex
from brewclip.service.problems import Problem, busy
from brewclip.service.searcher import Searcher, answered
from brewclip.service.settings import ServiceSettings

_LOOK_INTO_FOLDER_SECONDS, _LOOK_INTO_BUCKET_SECONDS = 1.0, 30.0


class LocalEngine:
    """Answers queries in one thread of this process.

    Args:
        searcher: answers them in batches.
        batch_size: most queries of a batch.
        max_queued: queries that may wait; more are refused.
    """

    def __init__(self, searcher: Searcher, batch_size: int = 16, max_queued: int = 64) -> None:
        self.searcher, self.max_queued = searcher, max_queued
        self.batcher: Batcher[Query, Answer | Problem] = Batcher(searcher.answer, batch_size)

    async def search(self, query: Query) -> Answer:
        """Answer a query; raises `Problem` 429 if too many wait."""
        if self.batcher.num_waiting >= self.max_queued:
            raise busy(f"{self.max_queued} queries wait already: come again")
        return await batched_answer(self.batcher, query)

    async def facts(self) -> Facts:
        """Return which system answers."""
        return self.searcher.facts()

    async def original(self, image_id: str) -> ImageFile:
        """Return an indexed image as it is stored."""
        return await asyncio.to_thread(self.searcher.index.original, image_id)

    async def thumbnail(self, image_id: str) -> ImageFile:
        """Return a small JPEG of an indexed image."""
        return await asyncio.to_thread(self.searcher.index.thumbnail, image_id)


async def batched_answer(batcher: Batcher[Query, Answer | Problem], query: Query) -> Answer:
    """Return the answer to a query with how long it waited and how many were answered with it."""
    batched = await batcher.submit(query)
    answer = answered(batched.result)
    timings = {"queue": batched.waited_seconds} | answer.timings_seconds
    return replace(answer, timings_seconds=timings, batch_size=batched.batch_size)


def load_searcher(settings: ServiceSettings) -> Searcher:
    """Load the system that made the index, and open the index.

    Raises:
        UserError: if there is no such index or checkpoint, or they do not belong together.
    """
    from brewclip.serving.index.place import IndexPlace
    from brewclip.serving.loading import load_embedder

    facts = IndexPlace(settings.index).read_facts()
    if facts is None:
        raise UserError(f"index {settings.index} does not exist: make it with brewclip index")
    name, clip = facts.system(settings.checkpoint)
    try:
        system = load_embedder(
            name,
            clip=clip,
            device=settings.device,
            task=settings.task,
            language=settings.language,
            precision=settings.precision,
        )
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from error
    index = open_current(settings.index, lambda one: one.check_made_by(system.identity, system.name))
    return Searcher(system, index, system.near_cosine if settings.threshold is None else settings.threshold)


def open_current(location: str, check: Callable[[ServedIndex], None]) -> CurrentIndex:
    """Open a saved index and follow its replacement; `check` raises `UserError` for one that must not be served.

    Raises:
        UserError: if there is none.
    """
    from brewclip.serving.index.layout import FACTS
    from brewclip.serving.index.place import IndexPlace, open_index

    place = IndexPlace(location)

    def mark() -> object:
        if place.remote:
            facts = place.read_facts()
            return facts and facts.version
        status = (place.folder / FACTS).stat()
        return status.st_ino, status.st_mtime_ns, status.st_size

    every = _LOOK_INTO_BUCKET_SECONDS if place.remote else _LOOK_INTO_FOLDER_SECONDS
    return CurrentIndex(lambda: open_index(location), mark, check, every)
