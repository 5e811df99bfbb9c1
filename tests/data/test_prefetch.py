"""Raw samples by shuffle window or as a whole split: the same batches, within the bound, read once if they fit."""

import itertools

import pytest

from brewclip.data.order import SampleOrder
from brewclip.data.reader import Rejections, SplitReader
from brewclip.data.stream import Stream
from tests.data.splits import write_split

BATCH_SIZE = 6


class CountingReader(SplitReader):
    """Counts the samples that are read from storage."""

    num_read = 0

    def read(self, extent):
        self.num_read += extent.count
        return super().read(extent)


@pytest.fixture
def manifest(tmp_path):
    return write_split((tmp_path / "split").as_uri(), [[37, 5, 61, 1], [30, 40]], size_bytes=20_000)


def read(manifest, memory_bytes, *, start=0, steps=87):
    reader = CountingReader(manifest)
    order = SampleOrder(manifest, seed=5, global_batch_size=BATCH_SIZE)
    stream = Stream(reader, order, lambda s: s.key, Rejections(manifest.url), memory_bytes=memory_bytes)
    batches = [batch for _, batch in itertools.islice(stream.iter_from(start), steps)]
    return batches, stream.peak_bytes, reader.num_read


def test_a_split_that_fits_is_read_once_and_gives_the_same_batches(manifest):
    size = manifest.summary.size_bytes
    whole, peak_bytes, num_read = read(manifest, size)
    by_windows, peak_bytes_of_windows, num_read_by_windows = read(manifest, size - 1)
    assert whole == by_windows
    assert num_read == len(manifest)
    assert num_read_by_windows >= 3 * len(manifest)
    assert peak_bytes == size
    assert 0 < peak_bytes_of_windows < size


@pytest.mark.parametrize("start", [1, 28, 30, 58])
def test_shuffle_windows_begin_at_any_step(manifest, start):
    straight, _, _ = read(manifest, manifest.summary.size_bytes)
    continued, _, _ = read(manifest, manifest.summary.size_bytes - 1, start=start, steps=87 - start)
    assert continued == straight[start:]
