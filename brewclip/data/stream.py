"""The training stream: global batches by step number, prefetched, in an order that no worker count changes.

What is read when is decided here; which sample stands where is decided in `order`; no state outlives an iterator,
so starting at any step is the same as having come there.
"""

import heapq
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

import numpy as np

from brewclip.data.order import Extent, SampleOrder
from brewclip.data.reader import Rejections, SplitReader
from brewclip.data.schema import BadSample, Sample, unpack_sample

Decoded = TypeVar("Decoded")
RawWindow = dict[tuple[int, int], memoryview | BadSample]
_FETCH_THREADS = 8
_DECODE_AHEAD_STEPS = 3
_MIN_WINDOWS_AHEAD = 64


@dataclass
class _Window:
    """A window of a lane on its way or in memory, until each of its samples was decoded."""

    content: Future[RawWindow]
    size_bytes: int
    users: int


@dataclass
class _State:
    """What one iterator holds: windows by their key, and when the next window of each lane is needed."""

    windows: dict[tuple[int, int], _Window] = field(default_factory=dict)
    upcoming: list[int] = field(default_factory=list)
    held_bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def hold(self, num_bytes: int) -> int:
        """Account for bytes taken (or, negative, given back); return what is held now."""
        with self.lock:
            self.held_bytes += num_bytes
            return self.held_bytes


class Stream(Generic[Decoded]):
    """One worker's part of the global batches.

    Args:
        reader: the split.
        order: which sample stands at which position.
        decode: turns a sample into what a batch is made of; raises `BadSample` if it cannot.
        rejections: counts the samples that could not be used, and stops above its share.
        rank, world_size: which worker this is.
        memory_bytes: bound of the raw bytes held or on their way.
        num_threads: threads that decode.

    Raises:
        ValueError: if there are fewer samples than a batch, more workers than lanes, or too little memory for
            one window of each lane.
    """

    def __init__(
        self,
        reader: SplitReader,
        order: SampleOrder,
        decode: Callable[[Sample], Decoded],
        rejections: Rejections,
        *,
        rank: int = 0,
        world_size: int = 1,
        memory_bytes: int = 512 * 2**20,
        num_threads: int = 4,
    ) -> None:
        self.slots = order.slots_of(rank, world_size)
        num_lanes = len(np.unique(self.slots % order.num_lanes))
        if num_lanes * order.window_bytes > memory_bytes:
            raise ValueError(
                f"--data.memory-bytes {memory_bytes} cannot hold one window of {order.window_bytes} bytes for each of "
                f"{num_lanes} lanes: at least {num_lanes * order.window_bytes}, or more workers"
            )
        self.reader, self.order, self.decode, self.rejections = reader, order, decode, rejections
        self.memory_bytes, self.num_threads = memory_bytes, num_threads
        self.peak_bytes = 0

    def iter_from(self, step: int) -> Iterator[tuple[int, list[Decoded]]]:
        """Yield (step, decoded samples of this worker in the order of their slots), without end, from a step on."""
        state = self._start(step)
        decoding: list[tuple[int, list[Future[Decoded]]]] = []
        fetchers = ThreadPoolExecutor(_FETCH_THREADS, thread_name_prefix="fetch")
        decoders = ThreadPoolExecutor(self.num_threads, thread_name_prefix="decode")
        submitted, samples_seen = step, 0
        try:
            while True:
                while submitted <= step + _DECODE_AHEAD_STEPS:
                    decoding.append((submitted, self._submit(submitted, state, fetchers, decoders)))
                    submitted += 1
                self._fetch_ahead(state, fetchers)
                step, futures = decoding.pop(0)
                batch = [future.result() for future in futures]
                samples_seen += len(batch)
                self.rejections.check(samples_seen)
                yield step, batch
                step += 1
        finally:
            decoders.shutdown(wait=False, cancel_futures=True)
            fetchers.shutdown(wait=False, cancel_futures=True)

    def _start(self, step: int) -> _State:
        """Queue the window of each own lane that the first batch needs."""
        base = step * self.order.global_batch_size
        own_lanes = np.unique(self.slots % self.order.num_lanes)
        state = _State(upcoming=[int(base + lane) for lane in own_lanes])
        heapq.heapify(state.upcoming)
        return state

    def _submit(
        self, step: int, state: _State, fetchers: ThreadPoolExecutor, decoders: ThreadPoolExecutor
    ) -> list[Future[Decoded]]:
        positions = step * self.order.global_batch_size + self.slots
        while state.upcoming[0] <= positions[-1]:
            self._fetch_next(state, fetchers)
        place = self.order.locate(positions)
        futures = []
        for shard, index, lane, number in zip(place.shard, place.index, place.lane, place.window, strict=True):
            key = (int(lane), int(number))
            window = state.windows[key]
            futures.append(decoders.submit(self._decode_one, window.content, int(shard), int(index)))
            window.users -= 1
            if not window.users:
                del state.windows[key]
                futures[-1].add_done_callback(partial(_release, state, window.size_bytes))
        return futures

    def _fetch_ahead(self, state: _State, fetchers: ThreadPoolExecutor) -> None:
        most = max(2 * len(state.upcoming), _MIN_WINDOWS_AHEAD)
        while len(state.windows) < most and state.held_bytes + self.order.window_bytes <= self.memory_bytes:
            self._fetch_next(state, fetchers)

    def _fetch_next(self, state: _State, fetchers: ThreadPoolExecutor) -> None:
        """Request the window that is needed first among those not yet requested."""
        position = state.upcoming[0]
        end = self.order.window_end(position)
        heapq.heapreplace(state.upcoming, end)
        place = self.order.locate(np.array([position]))
        extents = self.order.extents_of(position)
        size = self.order.window_bytes * sum(extent.count for extent in extents) // self.order.window_rows
        self.peak_bytes = max(self.peak_bytes, state.hold(size))
        users = (end - position) // self.order.num_lanes
        content = fetchers.submit(self._read_window, extents)
        state.windows[int(place.lane[0]), int(place.window[0])] = _Window(content, size, users)

    def _read_window(self, extents: list[Extent]) -> RawWindow:
        window: RawWindow = {}
        for extent in extents:
            for number, data in enumerate(self.reader.read(extent), start=extent.first):
                window[extent.shard, number] = data
        return window

    def _decode_one(self, window: Future[RawWindow], shard: int, index: int) -> Decoded:
        """Decode a sample, or, if it cannot be used, the next one of its shard that can."""
        data = window.result()[shard, index]
        try:
            return self._decode_bytes(data)
        except BadSample as error:
            self.rejections.add(self.reader.manifest.name_of(shard), index, error)
        count = int(self.reader.manifest.num_samples[shard])
        for step in range(1, count):
            (data,) = self.reader.read(Extent(shard, (index + step) % count, 1))
            try:
                return self._decode_bytes(data)
            except BadSample:
                continue
        raise BadSample("shard", f"no sample of {self.reader.manifest.name_of(shard)} can be used")

    def _decode_bytes(self, data: memoryview | BadSample) -> Decoded:
        if isinstance(data, BadSample):
            raise data
        return self.decode(unpack_sample(data))


def _release(state: _State, size_bytes: int, _: Future) -> None:
    """Account for a window whose last sample was decoded."""
    state.hold(-size_bytes)
