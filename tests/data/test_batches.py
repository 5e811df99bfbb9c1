"""From stored samples to tensors: CLIP's own picture transform, padding that says so, causes for what is broken."""

import io

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from brewclip.data.batches import PairDecoder, collate, decode_image, number_of
from brewclip.data.schema import BadSample, Sample, array_to_npy


def jpeg(width: int, height: int, seed: int = 0) -> bytes:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (7, 9, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize((width, height), Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def sample(**changes) -> Sample:
    parts = {
        "key": "a-0",
        "metadata": {
            "image_id": "a",
            "caption_id": "a-0",
            "split": "train",
            "duration_seconds": 1.0,
            "text": "said",
            "transcript": "heard",
        },
        "image": jpeg(40, 30),
        "features": array_to_npy(np.ones((5, 8), np.float16)),
    }
    return Sample(**(parts | changes))


def decoder(transcript: str = "asr", max_audio_frames: int = 100) -> PairDecoder:
    return PairDecoder(lambda texts: torch.zeros(len(texts), 4, dtype=torch.int64), 16, transcript, max_audio_frames)


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (33, 97), (32, 32), (20, 31)])
def test_pictures_equal_open_clips_own_transform(size):
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    theirs = open_clip.image_transform(32, is_train=False, mean=mean, std=std)(Image.open(io.BytesIO(jpeg(*size))))
    pixels = torch.from_numpy(decode_image(jpeg(*size), 32)).float() / 255
    ours = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_collate_pads_and_says_what_is_real():
    pairs = [
        decoder()(sample(key=f"{n}-0", features=array_to_npy(np.full((n, 8), n, np.float16)))) for n in (3, 1, 0, 2)
    ]
    batch = collate(pairs, (0.5,) * 3, (0.5,) * 3, torch.device("cpu"))
    assert batch.audio.shape == (4, 3, 8)
    assert batch.audio_mask.sum(1).tolist() == [3, 1, 0, 2]
    assert (batch.audio[~batch.audio_mask] == 0).all()
    assert batch.images.shape == (4, 3, 16, 16)
    assert batch.images.abs().max() <= 1
    assert batch.image_ids.unique().tolist() == [number_of("a")]


@pytest.mark.parametrize(("transcript", "text"), [("asr", "heard"), ("ground_truth", "said")])
def test_the_text_that_was_asked_for(transcript, text):
    assert decoder(transcript)(sample()).text == text


def test_long_speech_is_cut():
    assert decoder(max_audio_frames=2)(sample()).audio.shape == (2, 8)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"image": None}, "picture"),
        ({"image": b""}, "picture"),
        ({"image": jpeg(40, 30)[:200]}, "picture"),
        ({"features": None}, "features"),
        ({"features": b"no array"}, "features"),
        ({"features": array_to_npy(np.ones((5, 8), np.float32))}, "features"),
        ({"features": array_to_npy(np.full((5, 8), np.nan, np.float16))}, "features"),
        ({"metadata": {"image_id": "a", "caption_id": "a-0", "split": "train", "duration_seconds": 1.0}}, "text"),
    ],
)
def test_what_cannot_be_used_has_a_cause(changes, cause):
    with pytest.raises(BadSample) as caught:
        decoder()(sample(**changes))
    assert caught.value.cause == cause


def test_features_are_never_unpickled():
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"code": "any"}], dtype=object), allow_pickle=True)
    with pytest.raises(BadSample, match="features"):
        decoder()(sample(features=buffer.getvalue()))
