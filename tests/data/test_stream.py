"""The stream: the same global batches on any number of workers and from any step; bad samples replaced."""

import itertools

import pytest

from brewclip.data.order import SampleOrder
from brewclip.data.reader import Rejections, SplitReader, iter_split
from brewclip.data.schema import BadSample
from brewclip.data.stream import Stream, one_ahead
from brewclip.errors import ManifestError, TooManyBadSamples, UserError
from tests.data.splits import write_split

ROUNDS = [[37, 5, 61, 1], [30, 40]]


@pytest.fixture
def manifest(tmp_path):
    return write_split((tmp_path / "split").as_uri(), ROUNDS)


def stream_of(manifest, *, rank=0, world_size=1, batch_size=8, decode=lambda sample: sample.key, **options):
    order = SampleOrder(manifest, seed=5, global_batch_size=batch_size)
    rejections = Rejections(manifest.url, options.pop("max_bad_fraction", 1.0))
    reader = SplitReader(manifest, options.pop("cache_directory", ""))
    return Stream(reader, order, decode, rejections, rank=rank, world_size=world_size, **options)


def batches_of(manifest, steps, *, world_size=1, start=0, **options):
    """Return the global batches as sets, put together from all workers."""
    parts = [
        [set(batch) for _, batch in itertools.islice(stream.iter_from(start), steps)]
        for stream in (stream_of(manifest, rank=r, world_size=world_size, **options) for r in range(world_size))
    ]
    return [set().union(*workers) for workers in zip(*parts, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3, 4, 7])
def test_global_batches_do_not_depend_on_the_number_of_workers(manifest, world_size):
    steps = 3 * len(manifest) // 8
    alone = batches_of(manifest, steps, num_threads=1)
    assert batches_of(manifest, steps, world_size=world_size, num_threads=3) == alone


def test_every_sample_comes_once_per_epoch(manifest):
    keys = [key for _, batch in itertools.islice(stream_of(manifest, batch_size=6).iter_from(0), 87) for key in batch]
    assert len(manifest) == 174
    for epoch in range(3):
        assert len(set(keys[epoch * 174 : (epoch + 1) * 174])) == 174


@pytest.mark.slow
@pytest.mark.parametrize("start", [1, 13, 22, 40])
def test_starting_at_a_step_equals_coming_there(manifest, start):
    straight = batches_of(manifest, 45)
    assert batches_of(manifest, 45 - start, start=start, world_size=3) == straight[start:]


def test_memory_stays_within_its_bound(tmp_path):
    manifest = write_split((tmp_path / "large").as_uri(), [[400, 400]], size_bytes=20_000)
    stream = stream_of(manifest, memory_bytes=6_000_000)
    for _ in itertools.islice(stream.iter_from(0), 300):
        pass
    assert 0 < stream.peak_bytes <= 6_000_000


def test_too_little_memory_is_refused(manifest):
    with pytest.raises(UserError, match=r"--data\.memory-bytes 10 cannot hold one shuffle window"):
        stream_of(manifest, memory_bytes=10)


def test_fewer_samples_than_a_batch_is_refused(manifest):
    with pytest.raises(ValueError, match="174 samples, fewer than one global batch of 200"):
        stream_of(manifest, batch_size=200)


def test_an_unusable_sample_is_replaced_by_the_next_of_its_shard_on_any_number_of_workers(manifest):
    def decode(sample):
        if sample.key in ("image3-0", "image4-0", "image42-0"):
            raise BadSample("image", f"{sample.key} is broken")
        return sample.key

    def as_lists(world_size):
        workers = [stream_of(manifest, rank=r, world_size=world_size, decode=decode) for r in range(world_size)]
        taken = [[sorted(b) for _, b in itertools.islice(w.iter_from(0), 21)] for w in workers]
        return [sorted(itertools.chain(*batch)) for batch in zip(*taken, strict=True)], workers

    alone, (stream,) = as_lists(1)
    shared, _ = as_lists(3)
    assert alone == shared
    keys = [key for batch in alone for key in batch]
    assert keys.count("image5-0") >= 3 - (8 * 21 < 174)
    assert stream.rejections.counts == {"image": 3}
    assert {row["index"] for row in stream.rejections.listed} >= {3, 4}


def test_a_share_of_bad_samples_above_the_limit_stops_with_their_list(manifest):
    def decode(sample):
        if int(sample.key[5:-2]) % 2:
            raise BadSample("image", f"{sample.key} is broken")

    with pytest.raises(TooManyBadSamples, match=r"train-0.*image\d+-\d is broken"):
        for _ in itertools.islice(stream_of(manifest, decode=decode, max_bad_fraction=0.02).iter_from(0), 100):
            pass


def test_flipped_bytes_are_noticed_and_replaced(manifest, tmp_path):
    path = tmp_path / "split" / "train-00-000002.tar"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    stream = stream_of(manifest)
    keys = [key for _, batch in itertools.islice(stream.iter_from(0), 22) for key in batch]
    assert stream.rejections.counts == {"checksum": 1}
    assert len(keys) == 22 * 8


@pytest.mark.parametrize("damage", ["cut", "longer", "missing"])
def test_a_shard_that_disagrees_with_its_manifest_is_named(manifest, tmp_path, damage):
    path = tmp_path / "split" / "train-00-000002.tar"
    whole = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(whole[:-512] if damage == "cut" else whole + b"\0" * 512)
    with pytest.raises(ManifestError, match=r"train-00-000002\.tar .*manifest\.json"):
        for _ in itertools.islice(stream_of(manifest).iter_from(0), 22):
            pass


def test_a_cache_of_whole_shards_gives_the_same_batches(manifest, tmp_path):
    cached = batches_of(manifest, 30, cache_directory=str(tmp_path / "cache"))
    assert cached == batches_of(manifest, 30)
    assert len(list((tmp_path / "cache").rglob("*.tar"))) == 6


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_a_whole_split_is_read_once_in_stored_order(manifest, world_size):
    keys = []
    for rank in range(world_size):
        rejections = Rejections(manifest.url)
        share = iter_split(SplitReader(manifest), lambda s: s.key, rejections, rank=rank, world_size=world_size)
        keys += [key for _, key in share]
    assert len(keys) == len(set(keys)) == len(manifest)
    assert keys[:3] == ["image0-0", "image1-0", "image2-0"]


def test_one_ahead_yields_the_same_and_raises_where_it_belongs():
    made = []

    def items():
        for number in range(3):
            made.append(number)
            yield number
        raise ValueError("after three")

    ahead = one_ahead(items())
    assert made == [], "nothing is made before it is asked for"
    assert [next(ahead) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="after three"):
        next(ahead)
    assert list(one_ahead(iter([]))) == []
    endless = one_ahead(itertools.count())
    assert next(endless) == 0
    endless.close()
