"""A query whose caller has gone leaves the queue at once, with the recording that it holds."""

import asyncio
import threading

from brewclip.service.batching import Batcher


def test_an_item_whose_caller_has_gone_is_let_go() -> None:
    started, release = threading.Event(), threading.Event()

    def work(items: list[str]) -> list[str]:
        started.set()
        release.wait(10)
        return items

    async def cancel_the_second() -> list[object]:
        batcher = Batcher(work, 1)
        first = asyncio.create_task(batcher.submit("first"))
        await asyncio.to_thread(started.wait, 10)
        second = asyncio.create_task(batcher.submit("second"))
        await asyncio.sleep(0)
        assert batcher.num_waiting == 1
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        held = list(batcher._waiting)
        release.set()
        assert (await first).result == "first"
        return held

    assert asyncio.run(cancel_the_second()) == []
