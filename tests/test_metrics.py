"""Ranks, recall and nDCG against a slow reference and by hand."""

import numpy as np
import pytest
import torch

from brewclip.metrics import retrieval


def slow_ranks(scores, correct):
    """Best rank of a correct item, wrong ones first among equals; and nDCG@10."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], correct[i]))
    relevant = [bool(correct[i]) for i in order]
    gain = sum(1 / np.log2(place + 2) for place, hit in enumerate(relevant[:10]) if hit)
    ideal = sum(1 / np.log2(place + 2) for place in range(min(10, sum(relevant))))
    return relevant.index(True) + 1, gain / ideal


def slow_retrieval(speech, speech_ids, images, image_ids):
    # Rounded, so that equal vectors tie whatever the order of the sums.
    scores = np.round(
        (speech / np.linalg.norm(speech, axis=1, keepdims=True))
        @ (images / np.linalg.norm(images, axis=1, keepdims=True)).T,
        9,
    )
    to_image = [slow_ranks(row, image_ids == own) for row, own in zip(scores, speech_ids, strict=True)]
    asked = [own for own in image_ids if own in speech_ids]
    to_speech = [slow_ranks(scores[:, list(image_ids).index(own)], speech_ids == own) for own in asked]
    return to_image, to_speech, asked


@pytest.mark.parametrize("seed", range(12))
def test_equals_the_slow_reference_with_ties_and_several_captions(seed):
    rng = np.random.default_rng(seed)
    num_images, num_captions = int(rng.integers(1, 300)), int(rng.integers(1, 120))
    # Few distinct vectors make many ties.
    images = rng.integers(-1, 2, (num_images, 3)) + np.array([0.0, 0.0, 1.5])
    speech = rng.integers(-1, 2, (num_captions, 3)) + np.array([0.0, 0.0, 1.5])
    image_ids = rng.permutation(1000)[:num_images]
    speech_ids = rng.choice(image_ids[: max(1, num_images // 2)], num_captions)  # half the images have no caption
    result = retrieval(speech, speech_ids, images, image_ids)
    to_image, to_speech, asked = slow_retrieval(speech, speech_ids, images, image_ids)
    by_id = {own: index for index, own in enumerate(result.query_image_ids)}
    rows = [by_id[own] for own in asked]
    assert result.speech_to_image_rank.tolist() == [rank for rank, _ in to_image]
    assert result.speech_to_image_ndcg.tolist() == pytest.approx([ndcg for _, ndcg in to_image])
    assert result.image_to_speech_rank[rows].tolist() == [rank for rank, _ in to_speech]
    assert result.image_to_speech_ndcg[rows].tolist() == pytest.approx([ndcg for _, ndcg in to_speech])


def test_many_recordings_of_one_image_equal_the_slow_reference():
    rng = np.random.default_rng(0)
    images, speech = rng.normal(size=(3, 4)), rng.normal(size=(400, 4))
    speech_ids = rng.integers(0, 3, 400)
    result = retrieval(speech, speech_ids, images, np.arange(3))
    _, to_speech, _ = slow_retrieval(speech, speech_ids, images, np.arange(3))
    assert result.image_to_speech_rank.tolist() == [rank for rank, _ in to_speech]
    assert result.image_to_speech_ndcg.tolist() == pytest.approx([ndcg for _, ndcg in to_speech])


def test_by_hand():
    """Three images on the axes; the recording of "b" points at "a" first, then at "b"."""
    images = torch.eye(3)
    speech = torch.tensor([[1.0, 0.1, 0.0], [0.9, 0.5, 0.1], [0.0, 0.2, 1.0]])
    result = retrieval(speech, ["a", "b", "c"], images, ["a", "b", "c"])
    assert result.speech_to_image_rank.tolist() == [1, 2, 1]
    assert result.image_to_speech_rank.tolist() == [1, 1, 1]
    summary = result.summary()
    assert summary["speech_to_image/R1"] == pytest.approx(200 / 3)
    assert summary["speech_to_image/R5"] == summary["image_to_speech/R1"] == 100
    assert summary["speech_to_image/ndcg10"] == pytest.approx(100 * (2 + 1 / np.log2(3)) / 3)
    assert summary["speech_to_image/median_rank"] == 1
    assert summary["speech_to_image/R1_low"] <= summary["speech_to_image/R1"] <= summary["speech_to_image/R1_high"]


def test_a_repeated_image_is_in_the_gallery_once():
    images = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    result = retrieval(torch.tensor([[1.0, 0.1]]), [7], images, [7, 7, 8])
    assert result.num_images == 2 and result.speech_to_image_rank.tolist() == [1]


def test_constant_embeddings_earn_nothing():
    rng = np.random.default_rng(0)
    constant = rng.normal(size=(1, 768))
    result = retrieval(constant.repeat(300, 0), np.arange(300), constant.repeat(300, 0), np.arange(300))
    assert set(result.speech_to_image_rank) == set(result.image_to_speech_rank) == {300}
    assert result.summary()["speech_to_image/R10"] == 0


def test_one_image_is_always_found():
    result = retrieval(torch.randn(3, 4), [5, 5, 5], torch.randn(1, 4), [5])
    assert result.summary()["speech_to_image/R1"] == result.summary()["image_to_speech/ndcg10"] == 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"speech_features": torch.full((2, 4), torch.nan)}, "2 speech features are zero or not finite"),
        (
            {"image_features": torch.zeros(2, 4)},
            "2 image features are zero or not finite, the first in row 0",
        ),
        ({"speech_features": torch.zeros(0, 4), "speech_image_ids": []}, "speech features have shape"),
        ({"speech_features": torch.ones(2, 5)}, "5 dimensions, image features 4"),
        ({"speech_image_ids": [1]}, "for 2 rows"),
        ({"speech_image_ids": [1, 9]}, "image_id 9"),
    ],
)
def test_bad_input_is_one_clear_error(change, message):
    good = {
        "speech_features": torch.ones(2, 4),
        "speech_image_ids": [1, 2],
        "image_features": torch.ones(2, 4),
        "image_ids": [1, 2],
    }
    with pytest.raises(ValueError, match=message):
        retrieval(**(good | change))
