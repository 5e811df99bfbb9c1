"""Batches of whatever waits while the last batch is worked on, in a thread, so that the event loop stays free.

`ray.serve.batch` composes a batch before it takes the permit to run it: requests that arrive one by one while a
batch of Whisper takes its seconds become batches of one each, and a lone request always waits for company. Here a
batch is composed when the thread is free, of all that wait by then: one client never waits, and sixteen share a pass.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Batched(Generic[Result]):
    """A result, how long its item waited before the work began, and how many items shared the batch."""

    result: Result
    waited_seconds: float
    batch_size: int


class Batcher(Generic[Item, Result]):
    """Gives items in batches to one thread.

    Args:
        work: called in the thread with one to `batch_size` items; returns as many results. If it raises, all items of
            the batch fail with that error.
        batch_size: most items of a batch.
        prepare: called once in the thread, before all else.
    """

    def __init__(
        self, work: Callable[[list[Item]], list[Result]], batch_size: int, prepare: Callable[[], None] = lambda: None
    ) -> None:
        self._work, self._batch_size = work, batch_size
        self._waiting: deque[tuple[Item, float, asyncio.Future[Batched[Result]]]] = deque()
        self._thread = ThreadPoolExecutor(1, "batch", prepare)
        self._task: asyncio.Task[None] | None = None
        self._started_at: float | None = None

    @property
    def num_waiting(self) -> int:
        """Items that no batch has taken yet and that somebody still waits for."""
        return sum(not future.done() for _, _, future in self._waiting)

    @property
    def busy_seconds(self) -> float:
        """How long the present batch has been worked on; 0 if there is none."""
        return 0.0 if self._started_at is None else time.monotonic() - self._started_at

    async def submit(self, item: Item) -> Batched[Result]:
        """Return the result of an item; one whose caller is cancelled before its batch begins is dropped."""
        future: asyncio.Future[Batched[Result]] = asyncio.get_running_loop().create_future()
        entry = (item, time.monotonic(), future)
        self._waiting.append(entry)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        try:
            return await future
        except asyncio.CancelledError:  # an item may hold a recording of several MB
            self._waiting = deque(one for one in self._waiting if one is not entry)
            raise

    async def _run(self) -> None:
        while batch := self._take():
            self._started_at = started = time.monotonic()
            futures = [future for _, _, future in batch]
            try:
                items = [item for item, _, _ in batch]
                results = await asyncio.get_running_loop().run_in_executor(self._thread, self._work, items)
            except Exception as error:
                for future in futures:
                    if not future.done():
                        future.set_exception(error)
                continue
            finally:
                self._started_at = None
            for (_, arrived, future), result in zip(batch, results, strict=True):
                if not future.done():  # its caller may have gone
                    future.set_result(Batched(result, started - arrived, len(batch)))

    def _take(self) -> list[tuple[Item, float, asyncio.Future[Batched[Result]]]]:
        batch: list[tuple[Item, float, asyncio.Future[Batched[Result]]]] = []
        while self._waiting and len(batch) < self._batch_size:
            one = self._waiting.popleft()
            if not one[2].done():
                batch.append(one)
        return batch
