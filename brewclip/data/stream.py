"""Training stream: prefetched global batches by step number, in an order independent of the number of workers.

`order` decides which sample is at which position, `prefetch` what is read when; no state outlives an iterator, so
starting at a step equals having reached it.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Generic, TypeVar, cast

import numpy as np

from brewclip.data.order import Extent, Place, SampleOrder
from brewclip.data.prefetch import RawSamples, RawSource, open_source
from brewclip.data.reader import RawSample, Rejections, SplitReader
from brewclip.data.schema import BadSample, Sample
from brewclip.errors import UserError

Decoded = TypeVar("Decoded")
Item = TypeVar("Item")
Task = tuple[Future[RawSamples], int, int, int]
"""Future that holds a sample, its shard and its index, and its position in the order."""
_FETCH_THREADS = 4  # eight take turns on Python's lock and cost twice the time of two
_DECODE_AHEAD_STEPS = 3
_SAMPLES_OF_TASK = 64  # a task for each sample costs more than unpacking it
_POSITIONS_LOCATED_AT_ONCE = 4096  # 1 us each; in batches of 128 it is 25 us


def one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yield the items, each computed in a thread while the previous one is used; errors are raised in their place."""
    none = object()
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        coming = thread.submit(next, items, none)
        while (item := coming.result()) is not none:
            coming = thread.submit(next, items, none)
            yield cast(Item, item)


class Stream(Generic[Decoded]):
    """One worker's part of the global batches.

    Args:
        reader: the split.
        order: which sample is at which position.
        decode: turns a sample, whose parts are views of what was read, into what a batch is made of; raises
            `BadSample` if it cannot.
        rejections: counts the samples that could not be used, and stops above its share.
        rank, world_size: which worker this is.
        memory_bytes: bound of the raw bytes held or being read; a split that is no larger is read only once.
        num_threads: threads that decode.
        at_position: makes of a decoded sample and its position in the order, counted from the start of training, what
            a batch is made of, such as a random crop; where it is decoded, and the same on any worker.

    Raises:
        UserError: if there is too little memory for one shuffle window of each lane.
        ValueError: if there are fewer samples than a batch, or more workers than lanes.
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
        at_position: Callable[[Decoded, int], Decoded] = lambda decoded, position: decoded,
    ) -> None:
        self.slots = order.slots_of(rank, world_size)
        num_lanes = len(np.unique(self.slots % order.num_lanes))
        if num_lanes * order.shuffle_window_bytes > memory_bytes:
            raise UserError(
                f"--data.memory-bytes {memory_bytes} cannot hold one shuffle window of {order.shuffle_window_bytes} "
                f"bytes for each of {num_lanes} lanes: at least {num_lanes * order.shuffle_window_bytes}, "
                "or more workers"
            )
        self.reader, self.order, self.decode, self.rejections = reader, order, decode, rejections
        self.memory_bytes, self.num_threads, self.at_position = memory_bytes, num_threads, at_position
        self.peak_bytes = 0

    def iter_from(self, step: int) -> Iterator[tuple[int, list[Decoded]]]:
        """Yield (step, decoded samples of this worker in the order of their slots) from a step on, without end."""
        fetchers = ThreadPoolExecutor(_FETCH_THREADS, thread_name_prefix="fetch")
        decoders = ThreadPoolExecutor(self.num_threads, thread_name_prefix="decode")
        source = open_source(self.reader, self.order, self._positions(step), self.memory_bytes, fetchers)
        steps = self._iter_decoding(step, source, decoders)
        samples_seen = 0
        try:
            decoding = deque(itertools.islice(steps, 1 + _DECODE_AHEAD_STEPS))
            while True:
                source.prefetch()
                self.peak_bytes = max(self.peak_bytes, source.peak_bytes)
                batch = [sample for future in decoding.popleft() for sample in future.result()]
                source.give_back()
                samples_seen += len(batch)
                self.rejections.check(samples_seen)
                yield step, batch
                step += 1
                decoding.append(next(steps))
        finally:
            decoders.shutdown(wait=False, cancel_futures=True)
            fetchers.shutdown(wait=False, cancel_futures=True)

    def _positions(self, step: int) -> np.ndarray:
        return step * self.order.global_batch_size + self.slots

    def _iter_decoding(self, step: int, source: RawSource, decoders: Executor) -> Iterator[list[Future[list[Decoded]]]]:
        """Start decoding step after step: for each, its tasks in the order of their slots."""
        size = min(_SAMPLES_OF_TASK, -(-len(self.slots) // self.num_threads))
        for positions, place in self._iter_places(step):
            contents = source.take(positions, place)
            tasks = list(zip(contents, place.shard.tolist(), place.index.tolist(), positions.tolist(), strict=True))
            yield [
                decoders.submit(self._decode_some, tasks[first : first + size]) for first in range(0, len(tasks), size)
            ]

    def _iter_places(self, step: int) -> Iterator[tuple[np.ndarray, Place]]:
        """Yield positions of this worker and where their samples are stored, step after step."""
        at_once = max(1, _POSITIONS_LOCATED_AT_ONCE // len(self.slots))
        while True:
            positions = np.stack([self._positions(step + ahead) for ahead in range(at_once)])
            place = self.order.locate(positions.ravel())
            rows = [
                part.reshape(positions.shape) for part in (place.shard, place.index, place.lane, place.shuffle_window)
            ]
            for ahead in range(at_once):
                yield positions[ahead], Place(*(part[ahead] for part in rows))
            step += at_once

    def _decode_some(self, tasks: list[Task]) -> list[Decoded]:
        arrived: dict[Future[RawSamples], RawSamples] = {}  # asking a future takes its lock: once, not for each sample
        decoded = []
        for content, shard, index, position in tasks:
            if content not in arrived:
                arrived[content] = content.result()
            decoded.append(self.at_position(self._decode_one(arrived[content][shard, index], shard, index), position))
        return decoded

    def _decode_one(self, data: RawSample, shard: int, index: int) -> Decoded:
        """Decode a sample, or, if it cannot be used, the next one of its shard that can.

        Raises:
            ManifestError: if no sample of the shard can be used.
        """
        try:
            return self._decode_bytes(data, shard, index)
        except BadSample as error:
            self.rejections.add(self.reader.manifest.label_of(shard), index, error)
            cause = error
        count = int(self.reader.manifest.num_samples[shard])
        for step in range(1, count):
            other = (index + step) % count
            (data,) = self.reader.read(Extent(shard, other, 1))
            try:
                return self._decode_bytes(data, shard, other)
            except BadSample:
                continue
        raise self.reader.manifest.disagreement(shard, f"has no sample that can be used ({cause})")

    def _decode_bytes(self, data: RawSample, shard: int, index: int) -> Decoded:
        if isinstance(data, BadSample):
            raise data
        return self.decode(self.reader.parse(data, shard, index, copy=False))
