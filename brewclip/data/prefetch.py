"""Prefetching of raw samples for the decoders: by shuffle window, or a whole split once where memory holds it.

Both read in threads, ahead of the steps that need the samples, within a bound in bytes.
"""

import heapq
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from brewclip.data.order import Extent, Place, SampleOrder
from brewclip.data.reader import RawSample, SplitReader

RawSamples = dict[tuple[int, int], RawSample]
"""(shard, index) -> bytes of a sample."""
_MIN_PREFETCHED_SHUFFLE_WINDOWS = 64
_PIECE_BYTES = 2**21


class RawSource(Protocol):
    """Source of the raw samples of a worker's steps, used step after step by one thread."""

    peak_bytes: int

    def take(self, positions: np.ndarray, place: Place) -> list[Future[RawSamples]]:
        """Return, for each position of the next step, the future that holds its sample."""

    def give_back(self) -> None:
        """Release the samples of the earliest step taken: they are decoded."""

    def prefetch(self) -> None:
        """Request what later steps need, as far as memory allows."""


def open_source(
    reader: SplitReader, order: SampleOrder, first_positions: np.ndarray, memory_bytes: int, fetchers: Executor
) -> RawSource:
    """Return the source that needs fewer requests within a memory bound.

    Args:
        reader: the split.
        order: which sample is at which position.
        first_positions: of this worker in the step that it begins with, ascending.
        memory_bytes: bound of the raw bytes held or being read.
        fetchers: threads that read.
    """
    if reader.manifest.summary.size_bytes <= memory_bytes:
        return WholeSplit(reader, fetchers)
    return Prefetcher(reader, order, first_positions, memory_bytes, fetchers)


class WholeSplit:
    """A split that fits in memory: read in pieces of about 2 MiB when they are first needed, and cached.

    A small split in many lanes has shuffle windows of a few samples, and a request for each costs more than its bytes.
    """

    def __init__(self, reader: SplitReader, fetchers: Executor) -> None:
        self._reader, self._fetchers = reader, fetchers
        manifest = reader.manifest
        self.peak_bytes = manifest.summary.size_bytes
        num_pieces = np.maximum(1, np.rint(manifest.size_bytes / _PIECE_BYTES)).astype(np.int64)
        self._samples_of_piece = -(-manifest.num_samples // num_pieces)  # (num_shards,): pieces of about one size
        self._pieces: dict[tuple[int, int], Future[RawSamples]] = {}

    def take(self, positions: np.ndarray, place: Place) -> list[Future[RawSamples]]:
        numbers = (place.index // self._samples_of_piece[place.shard]).tolist()
        return [self._piece(shard, number) for shard, number in zip(place.shard.tolist(), numbers, strict=True)]

    def give_back(self) -> None:
        """Do nothing: the next epoch needs every piece again."""

    def prefetch(self) -> None:
        """Do nothing: the steps that are decoded ahead request their pieces, and soon all are in memory."""

    def _piece(self, shard: int, number: int) -> Future[RawSamples]:
        piece = self._pieces.get((shard, number))
        if piece is None:
            most = int(self._samples_of_piece[shard])
            first = number * most
            count = min(most, int(self._reader.manifest.num_samples[shard]) - first)
            piece = self._fetchers.submit(_read, self._reader, [Extent(shard, first, count)])
            self._pieces[shard, number] = piece
        return piece


@dataclass
class _PrefetchedShuffleWindow:
    """A shuffle window that is being read or in memory, until each of its samples was taken."""

    content: Future[RawSamples]
    size_bytes: int
    users: int


class Prefetcher:
    """Prefetch the shuffle windows of a worker's lanes in the order in which they are needed; drop them after use."""

    def __init__(
        self,
        reader: SplitReader,
        order: SampleOrder,
        first_positions: np.ndarray,
        memory_bytes: int,
        fetchers: Executor,
    ) -> None:
        self._reader, self._order, self._memory_bytes, self._fetchers = reader, order, memory_bytes, fetchers
        self._shuffle_windows: dict[tuple[int, int], _PrefetchedShuffleWindow] = {}
        lanes = first_positions % order.global_batch_size % order.num_lanes
        # the first position of each own lane; from then on, where its next shuffle window begins
        self._upcoming = [int(first_positions[np.argmax(lanes == lane)]) for lane in np.unique(lanes)]
        heapq.heapify(self._upcoming)
        self._used_bytes: list[int] = []
        self._held_bytes = self.peak_bytes = 0

    def take(self, positions: np.ndarray, place: Place) -> list[Future[RawSamples]]:
        while self._upcoming[0] <= positions[-1]:
            self._fetch_next()
        contents, used_bytes = [], 0
        for key in zip(place.lane.tolist(), place.shuffle_window.tolist(), strict=True):
            shuffle_window = self._shuffle_windows[key]
            contents.append(shuffle_window.content)
            shuffle_window.users -= 1
            if not shuffle_window.users:
                del self._shuffle_windows[key]
                used_bytes += shuffle_window.size_bytes
        self._used_bytes.append(used_bytes)
        return contents

    def give_back(self) -> None:
        self._held_bytes -= self._used_bytes.pop(0)

    def prefetch(self) -> None:
        most = max(2 * len(self._upcoming), _MIN_PREFETCHED_SHUFFLE_WINDOWS)
        while (
            len(self._shuffle_windows) < most
            and self._held_bytes + self._order.shuffle_window_bytes <= self._memory_bytes
        ):
            self._fetch_next()

    def _fetch_next(self) -> None:
        """Request the shuffle window that is needed first among those not yet requested."""
        position = self._upcoming[0]
        shuffle_window = self._order.shuffle_window_of(position)
        heapq.heapreplace(self._upcoming, shuffle_window.end)
        count = sum(extent.count for extent in shuffle_window.extents)
        size = self._order.shuffle_window_bytes * count // self._order.shuffle_window_rows
        self._held_bytes += size
        self.peak_bytes = max(self.peak_bytes, self._held_bytes)
        users = (shuffle_window.end - position) // self._order.num_lanes
        content = self._fetchers.submit(_read, self._reader, shuffle_window.extents)
        self._shuffle_windows[shuffle_window.lane, shuffle_window.number] = _PrefetchedShuffleWindow(
            content, size, users
        )


def _read(reader: SplitReader, extents: list[Extent]) -> RawSamples:
    """Read extents one after the other."""
    samples: RawSamples = {}
    for extent in extents:
        for number, data in enumerate(reader.read(extent), start=extent.first):
            samples[extent.shard, number] = data
    return samples
