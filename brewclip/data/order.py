"""Order of the training samples: a pure function from position to sample, computed on demand, never replayed.

Positions count samples from the start of training: global batch n holds the positions n*B .. n*B + B - 1, and an
epoch follows the last one without a gap. The order within an epoch consists of keyed permutations that are
evaluated for single positions, so that a billion samples need no table:

    round           the rounds of an epoch follow one another, so no image occurs twice in one
    block           consecutive samples, one range request; the blocks of a round are permuted
    lane            one of S equal parts of the permuted round, read in parallel
    shuffle window  a few blocks of a lane, within which samples are permuted
    position q      lane q mod S, row q div S: a batch takes equally from all lanes

Nothing depends on the number of workers; a worker owns the slots i of a batch with i mod S in its share of lanes.
"""

from dataclasses import dataclass

import numpy as np

from brewclip.data.manifest import Manifest

_FEISTEL_ROUNDS = 5
_MAX_LANES = 256
_ALWAYS_ALLOWED_LANES = 8
_ROWS_OF_LANE = 32
_BYTES_OF_LANE = 2**23
_BLOCK_BYTES = 2**21
_BYTES_OF_ALL_SHUFFLE_WINDOWS = 2**28  # half of the default of --data.memory-bytes: the other half fetches ahead
_SHUFFLE_WINDOW_BLOCKS = 4
_MIN_BLOCKS_OF_LANE = 8


@dataclass(frozen=True)
class Place:
    """Where the samples of some positions are stored; arrays of one shape, int64.

    Attributes:
        shard: row of the manifest.
        index: number of the sample within its shard.
        lane: part of the round that it is read from.
        shuffle_window: number of the shuffle window of that lane, unique over the whole run.
    """

    shard: np.ndarray
    index: np.ndarray
    lane: np.ndarray
    shuffle_window: np.ndarray


@dataclass(frozen=True)
class Extent:
    """Consecutive samples of one shard: what one range request reads."""

    shard: int
    first: int
    count: int


@dataclass(frozen=True)
class ShuffleWindow:
    """A few blocks of a lane, within which samples are permuted.

    Attributes:
        lane: part of the round that it is read from.
        number: `shuffle_window` of `Place`.
        end: first position of the same lane after it.
        extents: what must be read for all of it, in ascending order.
    """

    lane: int
    number: int
    end: int
    extents: list[Extent]


class SampleOrder:
    """Order of the samples of a split, for one seed and one global batch size.

    Args:
        manifest: the split; only its counts are used.
        seed: another seed gives another order.
        global_batch_size: pairs in one step over all workers.

    Attributes:
        num_lanes: largest divisor of the global batch size that gives each lane 32 rows and 8 MiB of the shortest
            round (a shorter lane has small blocks, and each costs a request), at most 256, but 8 are always allowed;
            also the largest number of workers.
        block_samples: samples of a block: about 2 MiB, less where a lane would have too few blocks to shuffle, or
            where the shuffle windows of all lanes would hold more than 256 MiB.
    """

    def __init__(self, manifest: Manifest, seed: int, global_batch_size: int) -> None:
        self.url = manifest.url
        self.seed = seed
        self.global_batch_size = global_batch_size
        self.num_samples = len(manifest)
        rounds, starts = np.unique(manifest.rounds, return_index=True)
        self._shard_starts = np.append(starts, len(manifest.rounds))
        self._round_starts = manifest.first_sample[self._shard_starts]
        self._first_sample = manifest.first_sample
        mean_bytes = max(1, manifest.summary.size_bytes // max(1, self.num_samples))
        shortest_round = int(np.diff(self._round_starts).min())
        long_enough = min(shortest_round // _ROWS_OF_LANE, shortest_round * mean_bytes // _BYTES_OF_LANE)
        most = min(global_batch_size, _MAX_LANES, max(_ALWAYS_ALLOWED_LANES, long_enough))
        self.num_lanes = max(n for n in range(1, most + 1) if global_batch_size % n == 0)
        shortest_lane = max(1, shortest_round // self.num_lanes)
        block_bytes = min(_BLOCK_BYTES, _BYTES_OF_ALL_SHUFFLE_WINDOWS // (self.num_lanes * _SHUFFLE_WINDOW_BLOCKS))
        self.block_samples = max(1, min(block_bytes // mean_bytes, shortest_lane // _MIN_BLOCKS_OF_LANE))
        self.shuffle_window_rows = self.block_samples * _SHUFFLE_WINDOW_BLOCKS
        self.shuffle_window_bytes = self.shuffle_window_rows * mean_bytes
        self._shuffle_windows_of_turn = self.num_samples // self.shuffle_window_rows + 2
        self.num_rounds = len(rounds)

    def batch_positions(self, step: int) -> np.ndarray:
        """Return the positions of global batch `step` (0-based), int64 of shape (B,)."""
        start = step * self.global_batch_size
        return np.arange(start, start + self.global_batch_size, dtype=np.int64)

    def check(self, world_size: int) -> None:
        """Check that there is a global batch, and a lane for each worker.

        Raises:
            ValueError: if there are fewer samples than a batch, or more workers than lanes.
        """
        if self.num_samples < self.global_batch_size:
            raise ValueError(
                f"{self.url} has {self.num_samples} samples, fewer than one global batch of "
                f"{self.global_batch_size}: lower --run.global-batch-size or write more samples"
            )
        if world_size > self.num_lanes:
            raise ValueError(
                f"{world_size} workers but {self.num_lanes} lanes in a global batch of {self.global_batch_size}: "
                f"use at most {self.num_lanes} workers, or a batch size with a larger divisor"
            )

    def slots_of(self, rank: int, world_size: int) -> np.ndarray:
        """Return which slots of every global batch a worker fills, ascending.

        Raises:
            ValueError: as `check`.
        """
        self.check(world_size)
        slots = np.arange(self.global_batch_size)
        return slots[(slots % self.num_lanes) % world_size == rank]

    def epoch_of(self, step: int) -> float:
        """Return how many epochs precede a step."""
        return step * self.global_batch_size / self.num_samples

    def locate(self, positions: np.ndarray) -> Place:
        """Return where the samples of these positions are stored.

        Args:
            positions: int64 of any length, 0 or more.
        """
        positions = np.asarray(positions, dtype=np.int64)
        parts = np.zeros((4, len(positions)), dtype=np.int64)
        turn, within = np.divmod(positions, self.num_samples)
        number = np.searchsorted(self._round_starts, within, side="right") - 1
        turns = turn * self.num_rounds + number
        for one in np.unique(turns):
            here = turns == one
            parts[:, here] = self._locate_in_round(int(one), within[here])
        return Place(*parts)

    def _locate_in_round(self, turn: int, within: np.ndarray) -> np.ndarray:
        """Locate positions of one round of one epoch; `turn` counts the rounds of all epochs."""
        number = turn % self.num_rounds
        offset, count = int(self._round_starts[number]), self._round_size(number)
        row, lane = np.divmod(within - offset, self.num_lanes)
        lane_start, lane_rows = self._lane(count, lane)
        shuffle_window, start, size = self._shuffle_window(lane, row, lane_rows)
        shuffle_window_key = lane.astype(np.uint64) << np.uint64(40) ^ shuffle_window.astype(np.uint64)
        key = _mix(_key(self.seed, turn, 1) ^ _mix(shuffle_window_key))
        shuffled = lane_start + start + permute(row - start, size, key)
        shard, index = self._resolve(turn, shuffled)
        return np.stack([shard, index, lane, turn * self._shuffle_windows_of_turn + shuffle_window])

    def shuffle_window_of(self, position: int) -> ShuffleWindow:
        """Return the shuffle window that holds a position."""
        turn, row, lane, lane_start, number, start, size = self._shuffle_window_at(position)
        shard, index = self._resolve(turn, np.arange(lane_start + start, lane_start + start + size))
        end = position + (start + size - row) * self.num_lanes
        return ShuffleWindow(lane, turn * self._shuffle_windows_of_turn + number, end, _merge(shard, index))

    def extents_of(self, position: int) -> list[Extent]:
        """Return what must be read for the whole shuffle window that holds a position, in ascending order."""
        return self.shuffle_window_of(position).extents

    def _shuffle_window_at(self, position: int) -> tuple[int, int, int, int, int, int, int]:
        """Return turn, row, lane and lane start of a position, and number, start and rows of its shuffle window."""
        turn, number, within = self._turn_of(position)
        row, lane = divmod(within, self.num_lanes)
        lane_start, lane_rows = self._lane(self._round_size(number), np.array([lane]))
        shuffle_window, start, size = self._shuffle_window(np.array([lane]), np.array([row]), lane_rows)
        return turn, row, lane, int(lane_start[0]), int(shuffle_window[0]), int(start[0]), int(size[0])

    def _turn_of(self, position: int) -> tuple[int, int, int]:
        """Return the turn, its round, and the position within that round."""
        epoch, within = divmod(position, self.num_samples)
        number = int(np.searchsorted(self._round_starts, within, side="right")) - 1
        return epoch * self.num_rounds + number, number, within - int(self._round_starts[number])

    def _round_size(self, number: int) -> int:
        return int(self._round_starts[number + 1] - self._round_starts[number])

    def _lane(self, count: int, lane: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return where lanes begin in a round of `count` samples, and their rows; lengths differ by one at most."""
        short, longer = divmod(count, self.num_lanes)
        return lane * short + np.minimum(lane, longer), short + (lane < longer)

    def _shuffle_window(
        self, lane: np.ndarray, row: np.ndarray, lane_rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return number, first row and rows of shuffle windows; the first of a lane is shorter, to stagger lanes."""
        phase = (lane * self.shuffle_window_rows) // self.num_lanes
        shuffle_window = (row + phase) // self.shuffle_window_rows
        start = np.maximum(shuffle_window * self.shuffle_window_rows - phase, 0)
        stop = np.minimum((shuffle_window + 1) * self.shuffle_window_rows - phase, lane_rows)
        return shuffle_window, start, stop - start

    def _resolve(self, turn: int, shuffled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Map places in the permuted round to shard and index; the short last block is at a random place."""
        number = turn % self.num_rounds
        count, width = self._round_size(number), self.block_samples
        blocks = count // width
        turned = (shuffled + int(_key(self.seed, turn, 2)) % count) % count
        slot, inside = np.divmod(turned, width)
        full = slot < blocks
        block = np.where(full, permute(np.minimum(slot, max(blocks - 1, 0)), blocks, _key(self.seed, turn, 3)), blocks)
        sample = block * width + inside + int(self._round_starts[number])
        shard = np.searchsorted(self._first_sample, sample, side="right") - 1
        return shard, sample - self._first_sample[shard]


def permute(index: np.ndarray, size: np.ndarray | int, key: np.ndarray | np.uint64) -> np.ndarray:
    """Return where a keyed permutation of 0..size-1 sends each index, without a table.

    A Feistel network over the next power of four, walked until it falls inside (Black and Rogaway 2002, "Ciphers
    with arbitrary finite domains").

    Args:
        index: int64 of shape (n,), each within 0..size-1.
        size: length of the permutation, one for all or one for each.
        key: which permutation, one for all or one for each; uint64.
    """
    size = np.maximum(np.broadcast_to(np.asarray(size, dtype=np.uint64), index.shape), np.uint64(1))
    key = np.broadcast_to(np.asarray(key, dtype=np.uint64), index.shape)
    bits = np.ceil(np.log2(np.maximum(size, np.uint64(2)).astype(np.float64)) / 2).astype(np.uint64)
    value = _feistel(index.astype(np.uint64), bits, key)
    outside = np.flatnonzero(value >= size)
    while len(outside):
        value[outside] = _feistel(value[outside], bits[outside], key[outside])
        outside = outside[value[outside] >= size[outside]]
    return value.astype(np.int64)


def _feistel(value: np.ndarray, bits: np.ndarray, key: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << bits) - np.uint64(1)
    left, right = value >> bits, value & mask
    for number in range(_FEISTEL_ROUNDS):
        left, right = right, left ^ (_mix(right ^ _mix(key + np.uint64(number))) & mask)
    return (left << bits) | right


def _mix(value: np.ndarray | np.uint64) -> np.ndarray:
    """Scramble 64 bits (the finaliser of splitmix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        value = np.asarray(value, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(value ^ (value >> np.uint64(31)))


def _key(seed: int, turn: int, purpose: int) -> np.uint64:
    """Return a key for one purpose in one round of one epoch."""
    mixed = _mix(np.uint64(seed % 2**64))
    mixed = _mix(mixed ^ np.uint64(turn))
    return np.uint64(_mix(mixed ^ np.uint64(purpose)))


def _merge(shard: np.ndarray, index: np.ndarray) -> list[Extent]:
    """Join samples to runs of neighbours within a shard."""
    order = np.lexsort((index, shard))
    shard, index = shard[order], index[order]
    breaks = np.flatnonzero((np.diff(shard) != 0) | (np.diff(index) != 1)) + 1
    starts = np.concatenate([[0], breaks])
    counts = np.diff(np.append(starts, len(shard)))
    return [Extent(int(shard[s]), int(index[s]), int(n)) for s, n in zip(starts, counts, strict=True)]
