"""From stored samples to tensors: CLIP's own image transform, padding that says so, causes for what is broken."""

import io
import math

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from brewclip.data.batches import InputLengths, Pair, PairDecoder, collate, number_of
from brewclip.data.images import decode_image
from brewclip.data.schema import BadSample, Sample, array_to_npy
from brewclip.data.truncation import TruncationCounts


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
            "unfiltered_transcript": "guessed",
            "greedy_transcript": "misheard",
            "alternatives": [["misheard", -0.1]],
        },
        "image": jpeg(40, 30),
        "features": array_to_npy(np.ones((5, 8), np.float16)),
    }
    return Sample(**(parts | changes))


def decoder(transcript: str = "asr", max_audio_frames: int = 100) -> PairDecoder:
    return PairDecoder(lambda texts: torch.zeros(len(texts), 4, dtype=torch.int64), 16, transcript, max_audio_frames)


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (33, 97), (32, 32), (20, 31)])
def test_images_equal_open_clips_own_transform(size):
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


@pytest.mark.parametrize(
    ("transcript", "text"),
    [
        ("asr", "heard"),
        ("asr_unfiltered", "guessed"),
        ("asr_greedy", "misheard"),
        ("asr_mean", "misheard"),
        ("ground_truth", "said"),
    ],
)
def test_the_requested_transcript_is_read(transcript, text):
    assert decoder(transcript)(sample()).text == text


@pytest.mark.parametrize(
    ("transcript", "changes", "confidence"),
    [
        ("asr", {}, 0.5),
        ("asr", {"temperature": 0.4}, 0.5),
        ("asr", {"rejected": "low_confidence"}, 0.0),
        ("asr", {"transcript": ""}, 0.0),
        ("asr", {"avg_logprob": float("nan")}, 0.0),
        ("asr", {"avg_logprob": 3.0}, 1.0),
        ("asr_greedy", {}, 0.5),
        ("asr_greedy", {"temperature": 0.4}, 0.0),  # avg_logprob is that of another text
        ("asr_mean", {}, 0.5),
        ("asr_mean", {"temperature": 0.4}, 0.0),
        ("ground_truth", {"rejected": "no_speech"}, 1.0),
    ],
)
def test_confidence_is_that_of_the_text_that_is_read(transcript, changes, confidence):
    heard = {"avg_logprob": math.log(0.5), "temperature": 0.0, "rejected": None}
    one = sample()
    metadata = {**one.metadata, **heard, **changes}
    assert decoder(transcript)(one._replace(metadata=metadata)).confidence == pytest.approx(confidence)


def with_metadata(**changes: object) -> Sample:
    one = sample()
    return one._replace(metadata={**one.metadata, **changes})


def test_alternatives_are_read_as_chunks():
    texts = ["misheard", "a red apple", "two red apples"]
    read, read_greedy = (
        PairDecoder(open_clip.tokenize, 16, transcript, 0, text_room_tokens=77)
        for transcript in ("asr_mean", "asr_greedy")
    )
    pair = read(with_metadata(alternatives=[[text, -0.5] for text in texts]))
    each = [read_greedy(with_metadata(greedy_transcript=text)) for text in texts]
    assert torch.equal(pair.tokens, torch.stack([one.tokens for one in each]))
    assert pair.lengths == each[0].lengths
    alone = read(with_metadata(alternatives=[["misheard", -0.1]]))
    assert torch.equal(alone.tokens, each[0].tokens)  # a certain text is no chunk
    batch = collate([pair, alone], (0.5,) * 3, (0.5,) * 3, torch.device("cpu"))
    assert batch.tokens.any(2).sum(1).tolist() == [3, 1]


@pytest.mark.parametrize("alternatives", [None, [], "misheard", [["misheard"], 3], [[1, -0.5]], [[]]])
def test_samples_without_alternatives_are_bad(alternatives):
    with pytest.raises(BadSample, match="alternatives") as caught:
        decoder("asr_mean")(with_metadata(alternatives=alternatives))
    assert caught.value.cause == "text"


def test_long_speech_is_truncated():
    assert decoder(max_audio_frames=2)(sample()).audio.shape == (2, 8)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"image": None}, "image"),
        ({"image": b""}, "image"),
        ({"image": jpeg(40, 30)[:200]}, "image"),
        ({"features": None}, "features"),
        ({"features": b"no array"}, "features"),
        ({"features": array_to_npy(np.ones((5, 8), np.float32))}, "features"),
        ({"features": array_to_npy(np.full((5, 8), np.nan, np.float16))}, "features"),
        ({"features": array_to_npy(np.full((5, 8), -np.inf, np.float16))}, "features"),
        ({"metadata": {"image_id": "a", "caption_id": "a-0", "split": "train", "duration_seconds": 1.0}}, "text"),
    ],
)
def test_what_cannot_be_used_has_a_cause(changes, cause):
    with pytest.raises(BadSample) as caught:
        decoder()(sample(**changes))
    assert caught.value.cause == cause


def test_the_largest_finite_features_are_taken():
    largest = np.array([[np.finfo(np.float16).max, np.finfo(np.float16).min, -0.0]], np.float16)
    assert (decoder()(sample(features=array_to_npy(largest))).audio == largest).all()


def test_images_are_decoded_once_as_far_as_memory_allows(monkeypatch):
    decoded = []

    def counted(data, *rest):
        decoded.append(data)
        return decode_image(data, *rest)

    monkeypatch.setattr("brewclip.data.batches.decode_image", counted)
    images = [jpeg(40, 30, seed) for seed in range(3)]
    room_for_two = PairDecoder(decoder().tokenize, 16, "asr", 100, cache_bytes=2 * 3 * 16 * 16 + 1)
    for _ in range(2):
        for image in images:
            assert (room_for_two(sample(image=image)).image == decode_image(image, 16)).all()
    assert decoded == [*images, images[2]], "the third finds no room"

    for _ in range(2):
        with pytest.raises(BadSample, match="image"):
            room_for_two(sample(image=images[0][:200]))


def test_features_are_never_unpickled():
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"code": "any"}], dtype=object), allow_pickle=True)
    with pytest.raises(BadSample, match="features"):
        decoder()(sample(features=buffer.getvalue()))


def test_a_letterboxed_image_is_whole_between_bars():
    wide = Image.new("RGB", (64, 32), (250, 10, 10))
    wide.paste((10, 10, 250), (0, 0, 8, 32))  # the crop of the middle loses it
    buffer = io.BytesIO()
    wide.save(buffer, "JPEG", quality=95)
    square = decode_image(buffer.getvalue(), 32, "letterbox", (1, 2, 3))
    assert square.shape == (3, 32, 32)
    assert square[:, :8].reshape(3, -1).T.tolist() == square[:, 24:].reshape(3, -1).T.tolist() == [[1, 2, 3]] * 256
    assert square[2, 16, 1] > 200 > 60 > square[2, 16, 16]
    assert decode_image(buffer.getvalue(), 32)[2].max() < 60


def counting_tokenizer(texts: list[str], length: int = 8) -> torch.Tensor:
    """Give each word its number: 98, words, 99, then zeros; a text too long keeps its 99."""
    rows = torch.zeros(len(texts), length, dtype=torch.int64)
    for row, text in zip(rows, texts, strict=True):
        tokens = [98, *map(int, text.split()), 99]
        tokens = [*tokens[: length - 1], 99] if len(tokens) > length else tokens
        row[: len(tokens)] = torch.tensor(tokens)
    return rows


def read(text: str, **changes) -> Pair:
    own = sample(metadata={**sample().metadata, "transcript": text})
    return PairDecoder(counting_tokenizer, 16, "asr", 100, **changes)(own)


@pytest.mark.parametrize(("num_words", "truncated_tokens"), [(0, 0), (4, 0), (5, 1), (6, 2), (20, 16)])
def test_truncated_tokens_are_counted(num_words, truncated_tokens):
    """Six tokens fit next to two prompts: four words between start and end."""
    text = " ".join(str(number) for number in range(1, num_words + 1))
    pair = read(text, text_room_tokens=6)
    assert pair.lengths[:2] == (num_words + 2, truncated_tokens)
    assert torch.equal(pair.tokens, counting_tokenizer([text])[0])  # as before: the model cuts what does not fit
    assert read(text).lengths[:2] == (0, 0)  # no text is read


def test_chunks_cover_a_long_text():
    pair = read("1 2 3 4 5 6 7 8 9", text_room_tokens=6, long_text="chunks")
    assert pair.tokens.tolist() == [
        [98, 1, 2, 3, 99, 0, 0, 0],
        [98, 4, 5, 6, 99, 0, 0, 0],
        [98, 7, 8, 9, 99, 0, 0, 0],
    ]
    assert pair.lengths[:2] == (11, 0)
    short = read("1 2", text_room_tokens=6, long_text="chunks")
    assert torch.equal(short.tokens, read("1 2").tokens)


def test_chunks_and_a_short_text_in_one_batch():
    short, long = (read(text, text_room_tokens=6, long_text="chunks") for text in ("1 2", "1 2 3 4 5"))
    numbers = ((0.5,) * 3, (0.5,) * 3, torch.device("cpu"))
    assert collate([short, short], *numbers).tokens.shape == (2, 8)
    tokens = collate([short, long], *numbers).tokens
    assert tokens.shape == (2, 2, 8)
    assert tokens[0].tolist() == [[98, 1, 2, 99, 0, 0, 0, 0], [0] * 8]
    assert tokens[1].tolist() == [[98, 1, 2, 3, 99, 0, 0, 0], [98, 4, 5, 99, 0, 0, 0, 0]]


def test_a_chunk_without_room_for_words_is_refused():
    with pytest.raises(ValueError, match="2 tokens leave no room for words"):
        read("1", text_room_tokens=2, long_text="chunks")


def test_a_long_recording_is_not_truncated_with_a_limit_of_0():
    kept, whole = decoder(max_audio_frames=2)(sample()), decoder(max_audio_frames=0)(sample())
    assert (len(kept.audio), kept.lengths[2:]) == (2, (5, 3))
    assert (len(whole.audio), whole.lengths[2:]) == (5, (5, 0))


def test_truncation_counts_add_up():
    one, other = TruncationCounts(), TruncationCounts()
    one.add([InputLengths(10, 4, 100, 0), InputLengths(5, 0, 50, 25)])
    other.add([InputLengths(0, 0, 50, 25)])
    both = one + other
    assert both == TruncationCounts(2, 1, 15, 4, 3, 2, 200, 50)
    assert both.shares() == {"texts": 0.5, "tokens": 4 / 15, "recordings": 2 / 3, "frames": 0.25}
    recordings = "2 of 3 recordings truncated, 50 of 200 frames (25.0 %)"
    assert str(both) == f"1 of 2 texts truncated, 4 of 15 tokens (26.7 %); {recordings}"
    assert str(other) == "no text is read; 1 of 1 recordings truncated, 25 of 50 frames (50.0 %)"
