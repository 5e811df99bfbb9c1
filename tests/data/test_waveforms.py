"""Waveforms in the stream: decoded from a corpus, cropped by seed and position alone, truncated, rejected."""

import itertools

import numpy as np
import pytest
import torch

from brewclip.audio import encode_flac
from brewclip.data.batches import Pair, collate
from brewclip.data.manifest import open_manifest
from brewclip.data.order import SampleOrder
from brewclip.data.reader import Rejections, SplitReader
from brewclip.data.schema import BadSample, Sample
from brewclip.data.stream import Stream
from brewclip.data.waveforms import RandomCrop, WaveformDecoder
from tests.training.recordings import write_recordings

BLANK = np.zeros((3, 4, 4), np.uint8)
CROP = RandomCrop(4000, seed=3)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    url = tmp_path_factory.mktemp("corpus").as_uri()
    write_recordings(url, "train", 12, broken=5)
    return open_manifest(f"{url}/train")


def decode_with(max_audio_frames=0):
    return WaveformDecoder(lambda sample: BLANK, max_audio_frames)


def crops_of(manifest, world_size=1, first=0, steps=9):
    """Return the crops of some global batches by position, put together from all workers."""
    found = {}
    for rank in range(world_size):
        order, rejections = SampleOrder(manifest, seed=1, global_batch_size=6), Rejections(manifest.url)
        stream = Stream(SplitReader(manifest), order, decode_with(), rejections, rank=rank, world_size=world_size,
                        at_position=CROP)  # fmt: skip
        for step, pairs in itertools.islice(stream.iter_from(first), steps - first):
            found |= dict(zip((step * 6 + stream.slots).tolist(), pairs, strict=True))
    return {position: (pair.key, pair.audio.tobytes()) for position, pair in sorted(found.items())}


@pytest.mark.slow
def test_crops_depend_on_the_position_alone(manifest):
    """On any number of workers and from any step, over more than two epochs; a second epoch has others."""
    alone = crops_of(manifest)
    assert crops_of(manifest, world_size=3) == alone
    late = crops_of(manifest, world_size=2, first=5)
    assert late == {position: alone[position] for position in range(30, 54)}
    by_key = {}
    for key, audio in alone.values():
        by_key.setdefault(key, set()).add(audio)
    assert all(len(audio) <= 4 * CROP.num_samples for _, audio in alone.values())
    assert sum(len(audios) > 1 for audios in by_key.values()) > 10


def test_every_start_of_a_crop_is_possible_and_short_recordings_stay_whole():
    audio = np.arange(4003, dtype=np.float32)
    pair = Pair("a-0", "a", BLANK, torch.zeros(1), audio, "")
    crops = [CROP(pair, position).audio for position in range(60)]
    assert {int(one[0]) for one in crops} == {0, 1, 2, 3}
    assert all(len(one) == 4000 and np.array_equal(np.diff(one), np.ones(3999)) for one in crops)
    assert CROP(pair, 7).audio.tolist() == crops[7].tolist() != RandomCrop(4000, seed=4)(pair, 7).audio.tolist()
    for whole in (RandomCrop(4003, 0), RandomCrop(0, 0)):
        assert whole(pair, 1) is pair


def test_crops_with_few_starts_repeat_and_reach_the_end():
    pair = Pair("a-0", "a", BLANK, torch.zeros(1), np.arange(9500, dtype=np.float32), "")
    starts = [int(RandomCrop(4000, seed=3, step=2000)(pair, position).audio[0]) for position in range(200)]
    assert {start: starts.count(start) > 30 for start in starts} == {0: True, 2000: True, 4000: True, 5500: True}


def test_a_recording_is_decoded_and_truncated_to_two_minutes_or_what_is_set():
    sound = np.linspace(-0.5, 0.5, 1000, dtype=np.float32)
    facts = {"image_id": "a", "text": "a line"}
    sample = Sample("a-0", facts, audio=memoryview(encode_flac(sound)))
    whole, truncated = decode_with()(sample), decode_with(max_audio_frames=2)(sample)
    np.testing.assert_allclose(whole.audio, sound, atol=1e-4)
    assert (whole.lengths.frames, whole.lengths.truncated_frames, whole.text) == (4, 0, "a line")
    np.testing.assert_array_equal(truncated.audio, whole.audio[:640])
    assert (truncated.lengths.frames, truncated.lengths.truncated_frames) == (4, 2)


@pytest.mark.parametrize(("audio", "cause"), [(None, "audio"), (b"no sound", "not_audio"), (b"", "empty")])
def test_what_is_no_recording_is_rejected_with_its_cause(audio, cause):
    with pytest.raises(BadSample, match="sample 'a-0'") as caught:
        decode_with()(Sample("a-0", {"image_id": "a"}, audio=audio))
    assert caught.value.cause == cause


def test_waveforms_are_padded_with_zeros_and_masked():
    pairs = [Pair(f"{n}-0", str(n), BLANK, torch.zeros(1), np.ones(n, np.float32), "") for n in (3, 0, 2)]
    batch = collate(pairs, (0, 0, 0), (1, 1, 1), torch.device("cpu"))
    expected = [[1, 1, 1], [0, 0, 0], [1, 1, 0]]
    assert batch.audio.tolist() == expected and batch.audio_mask.int().tolist() == expected
