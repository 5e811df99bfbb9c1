"""The order of samples: every sample once per epoch, rounds kept apart, nothing but arithmetic."""

from types import SimpleNamespace

import numpy as np
import pytest

from brewclip.data.order import SampleOrder, permute

SHAPES = {
    "two uneven rounds": ([37, 11, 53, 7, 20], [0, 0, 0, 1, 1]),
    "one sample": ([1], [0]),
    "three rounds of one shard": ([1000, 999, 500], [0, 1, 2]),
    "many small shards": ([10] * 50, [0] * 50),
}


class CountsOnly(SimpleNamespace):
    """What the order reads of a manifest."""

    def __len__(self) -> int:
        return int(self.first_sample[-1])


def counts_only(counts, rounds, mean_bytes=50_000) -> CountsOnly:
    first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    return CountsOnly(
        url="file:///counts",
        rounds=np.array(rounds),
        first_sample=first,
        summary=SimpleNamespace(size_bytes=mean_bytes * int(first[-1])),
    )


@pytest.mark.parametrize("size", [1, 2, 3, 10, 63, 64, 65, 1000])
def test_permute_is_a_permutation(size):
    sent = permute(np.arange(size), size, np.uint64(7))
    assert sorted(sent) == list(range(size))


def test_permute_moves_almost_everything_and_depends_on_the_key():
    one, other = (permute(np.arange(10_000), 10_000, np.uint64(key)) for key in (1, 2))
    assert (one == np.arange(10_000)).mean() < 0.01
    assert (one == other).mean() < 0.01
    assert abs(np.corrcoef(one, np.arange(10_000))[0, 1]) < 0.05


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch_size", [2, 6, 7, 32])
def test_every_sample_once_per_epoch_and_rounds_in_order(shape, batch_size):
    counts, rounds = SHAPES[shape]
    order = SampleOrder(counts_only(counts, rounds), seed=3, global_batch_size=batch_size)
    total = sum(counts)
    place = order.locate(np.arange(3 * total))
    for epoch in range(3):
        here = slice(epoch * total, (epoch + 1) * total)
        assert len(set(zip(place.shard[here], place.index[here], strict=True))) == total
        assert (np.diff(np.array(rounds)[place.shard[here]]) >= 0).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_extents_hold_exactly_the_samples_of_a_shuffle_window(shape):
    order = SampleOrder(counts_only(*SHAPES[shape]), seed=0, global_batch_size=6)
    place = order.locate(np.arange(2 * order.num_samples))
    shuffle_windows: dict[tuple[int, int], set[tuple[int, int]]] = {}
    for row in zip(place.lane, place.shuffle_window, place.shard, place.index, strict=True):
        shuffle_windows.setdefault(row[:2], set()).add(row[2:])
    for position in range(0, 2 * order.num_samples, 11):
        extents = order.extents_of(position)
        read = {(extent.shard, extent.first + i) for extent in extents for i in range(extent.count)}
        assert read == shuffle_windows[place.lane[position], place.shuffle_window[position]]


def test_epochs_and_seeds_give_other_orders():
    manifest = counts_only([500] * 4, [0] * 4)
    order = SampleOrder(manifest, seed=0, global_batch_size=10)
    first, second = (order.locate(np.arange(2000) + 2000 * epoch) for epoch in (0, 1))
    other = SampleOrder(manifest, seed=1, global_batch_size=10).locate(np.arange(2000))
    assert (first.index == second.index).mean() < 0.05
    assert (first.index == other.index).mean() < 0.05


def test_shuffling_spreads_the_samples_of_a_shard():
    """With 50 shards, the next sample of the same shard is 50 samples away on average, as at random."""
    order = SampleOrder(counts_only([1000] * 50, [0] * 50), seed=0, global_batch_size=32)
    shard = order.locate(np.arange(50_000)).shard
    gaps = np.concatenate([np.diff(np.flatnonzero(shard == one)) for one in range(50)])
    assert gaps.mean() == pytest.approx(50, rel=0.05)
    assert (gaps == 1).mean() < 0.04


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
def test_workers_share_every_batch_without_overlap(world_size):
    order = SampleOrder(counts_only([100], [0]), seed=0, global_batch_size=32)
    shares = [order.slots_of(rank, world_size) for rank in range(world_size)]
    assert sorted(np.concatenate(shares)) == list(range(32))


def test_more_workers_than_lanes_is_refused():
    order = SampleOrder(counts_only([100], [0]), seed=0, global_batch_size=7)
    with pytest.raises(ValueError, match="at most 7 workers"):
        order.slots_of(0, 8)


def test_a_billion_samples_in_a_million_shards_need_no_table():
    order = SampleOrder(counts_only(np.full(1_000_000, 1000), np.zeros(1_000_000, int)), 0, 4096)
    place = order.locate(order.batch_positions(123_456))
    assert order.num_lanes == 256
    assert len(set(zip(place.shard, place.index, strict=True))) == 4096
    assert len(np.unique(place.shard)) > 1000  # 256 lanes, each in a shuffle window of four blocks
