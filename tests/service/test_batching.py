"""Batches of what waits: composed when the thread is free, without those whose caller has gone."""

import asyncio
import threading
import time

import pytest

from brewclip.service.batching import Batched, Batcher


class Work:
    """Doubles numbers; a batch takes until it is let go."""

    def __init__(self, batch_size: int = 4) -> None:
        self.go = threading.Event()
        self.batches: list[list[int]] = []
        self.batcher = Batcher(self.run, batch_size)

    def run(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        self.go.wait(10)
        if 13 in items:
            raise ValueError("thirteen")
        return [2 * item for item in items]


async def started(work: Work, count: int = 1) -> None:
    while len(work.batches) < count:
        await asyncio.sleep(0.001)


def test_what_arrives_meanwhile_shares_the_next_batch_in_its_order() -> None:
    work = Work()

    async def ask() -> list[Batched[int]]:
        tasks = [asyncio.create_task(work.batcher.submit(0))]
        await started(work)
        for number in range(1, 7):  # one by one, as clients come
            tasks.append(asyncio.create_task(work.batcher.submit(number)))
            await asyncio.sleep(0.002)
        assert work.batcher.num_waiting == 6 and work.batcher.busy_seconds > 0
        work.go.set()
        return await asyncio.gather(*tasks)

    results = asyncio.run(ask())
    assert [one.result for one in results] == [0, 2, 4, 6, 8, 10, 12]
    assert [one.batch_size for one in results] == [1, 4, 4, 4, 4, 2, 2]
    assert work.batches == [[0], [1, 2, 3, 4], [5, 6]] and results[1].waited_seconds > 0


def test_who_has_gone_is_in_no_batch_and_an_error_hits_its_own_batch_only() -> None:
    work = Work()

    async def ask() -> list[Batched[int] | BaseException]:
        first = asyncio.create_task(work.batcher.submit(13))
        await started(work)
        gone = [asyncio.create_task(work.batcher.submit(number)) for number in range(100)]
        await asyncio.sleep(0)
        for task in gone:
            task.cancel()
        last = asyncio.create_task(work.batcher.submit(7))
        await asyncio.sleep(0)
        work.go.set()
        return await asyncio.gather(first, last, return_exceptions=True)

    error, seven = asyncio.run(ask())
    assert isinstance(error, ValueError) and isinstance(seven, Batched) and seven.result == 14
    assert work.batches == [[13], [7]] and work.batcher.num_waiting == 0 and work.batcher.busy_seconds == 0


def test_the_event_loop_is_free_while_a_batch_is_worked_on() -> None:
    work = Work()

    async def ask() -> float:
        task = asyncio.create_task(work.batcher.submit(1))
        await started(work)
        start = time.monotonic()
        await asyncio.sleep(0.01)  # what a health check waits for
        waited = time.monotonic() - start
        work.go.set()
        await task
        return waited

    assert asyncio.run(ask()) < 5
    assert work.batches == [[1]]


@pytest.mark.parametrize("size", [1, 3])
def test_no_batch_is_larger_than_allowed(size: int) -> None:
    work = Work(size)
    work.go.set()

    async def ask() -> None:
        await asyncio.gather(*(work.batcher.submit(number) for number in range(7)))

    asyncio.run(ask())
    assert max(map(len, work.batches)) == size
