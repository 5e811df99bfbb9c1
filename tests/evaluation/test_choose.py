"""Weights chosen on dev: nothing of a channel that does not help, and the recall that the metrics give."""

import numpy as np
import pytest
import torch

from brewclip.evaluation.choose import STRENGTHS, WEIGHTS, _Task, choose_weights, fuse_channels, mean_recall
from brewclip.evaluation.embed import Channels, Embeddings

NUM_IMAGES, DIM = 60, 16
RNG = np.random.default_rng(0)


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def dev(text_noise: float, adapted_noise: float, acoustic_noise: float | None, confidence: np.ndarray) -> Embeddings:
    """Two recordings of each image, whose channels are its vector and noise of these lengths."""
    rng = np.random.default_rng(1)
    images = unit(rng.normal(size=(NUM_IMAGES, DIM)))
    own = np.repeat(images, 2, axis=0)

    def noisy(length: float | np.ndarray) -> np.ndarray:
        return (own + np.reshape(length, (-1, 1)) * unit(rng.normal(size=own.shape))).astype(np.float32)

    plain, text = noisy(text_noise), noisy(adapted_noise)
    acoustic = own[:, :0] if acoustic_noise is None else noisy(acoustic_noise)
    ids = [f"image{number}" for number in range(NUM_IMAGES)]
    channels = Channels(plain, text, acoustic, confidence.astype(np.float32))
    keys = [f"r{number}" for number in range(2 * NUM_IMAGES)]
    return Embeddings(
        keys, keys, [one for one in ids for _ in range(2)], [(0, 0)] * len(keys), plain, ids, images, channels
    )


CERTAIN = np.ones(2 * NUM_IMAGES)


def chosen(embeddings: Embeddings) -> tuple[float, list[float]]:
    found = choose_weights(embeddings)
    return found["clip.strength"].item(), found["fusion.weights"].tolist()


def test_channels_that_do_not_help_are_left_out():
    """Right texts, an adapter that spoils them, sound that is noise: the text alone, as CLIP gives it."""
    assert chosen(dev(0.3, 4.0, 40.0, CERTAIN)) == (0.0, [0.0, 0.0])


def test_an_adapter_and_a_sound_that_help_are_taken():
    strength, weights = chosen(dev(3.0, 1.2, 1.2, CERTAIN))
    assert strength > 0
    assert weights[0] > 0
    assert weights[1] == 0, "of weights that do the same the smaller ones are taken; all transcripts are certain"


def test_sound_is_added_where_the_transcript_is_doubtful():
    doubtful = np.arange(2 * NUM_IMAGES) % 2 == 0
    embeddings = dev(0.5, 0.5, 1.5, np.where(doubtful, 0.0, 1.0))
    plain = embeddings.channels.plain.copy()
    plain[doubtful] = unit(RNG.normal(size=(doubtful.sum(), DIM)))  # as of empty transcripts
    channels = embeddings.channels._replace(plain=plain, text=plain)
    _, weights = chosen(Embeddings(**(embeddings.__dict__ | {"channels": channels})))
    assert weights[1] > weights[0]


def test_a_model_without_sound_chooses_the_adapter_alone():
    strength, weights = chosen(dev(3.0, 1.2, None, CERTAIN))
    assert strength > 0
    assert weights == [0.0, 0.0]


@pytest.mark.parametrize("strength", [STRENGTHS[0], STRENGTHS[2]])
@pytest.mark.parametrize("weights", [(WEIGHTS[0], WEIGHTS[0]), (WEIGHTS[3], WEIGHTS[7])])
def test_the_score_is_the_mean_recall_of_what_the_model_gives(strength, weights):
    embeddings = dev(2.0, 1.5, 2.5, RNG.uniform(size=2 * NUM_IMAGES))
    task = _Task(embeddings)
    fused = fuse_channels(
        embeddings, {"clip.strength": torch.tensor(strength), "fusion.weights": torch.tensor(weights)}
    )
    assert 100 * task.score(task.text(strength), weights) == pytest.approx(mean_recall(fused.rank().summary()))
