"""Relevance maps: high on named objects and on informative frames; None without an acoustic channel."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from brewclip.config import preset
from brewclip.evaluation.systems import load_system
from brewclip.scenes.drawing import draw_scene
from brewclip.scenes.world import THINGS, Item, Scene
from brewclip.studies.attention import frame_relevance, patch_relevance
from tests.evaluation.results import system_of

AUDIO_DIM = 16


def image_of(clip, top_left: str, bottom_right: str) -> torch.Tensor:
    items = tuple(
        Item(next(thing for thing in THINGS if thing.name == name), None, "large", 1, row, row, ((0.0, 0.0),))
        for name, row in ((top_left, 0), (bottom_right, 2))
    )
    pixels = np.asarray(draw_scene(Scene(items, "snow"), clip.image_size), np.float32) / 255
    return torch.from_numpy((pixels - np.float32(clip.mean)) / np.float32(clip.std)).permute(2, 0, 1)


def model_of(variant):
    return load_system(system_of(preset("scenes"), variant), AUDIO_DIM)


@pytest.mark.parametrize(("spoken", "corner"), [("a picture of a tiger", 0), ("a picture of an airplane", 1)])
def test_patch_relevance_is_highest_on_the_named_object(spoken, corner):
    model, clip = model_of("zero_shot")
    image = image_of(clip, "tiger", "airplane")
    with torch.no_grad():
        speech = model.encode_speech(clip.tokenize([spoken]), torch.zeros(1, 1, AUDIO_DIM), torch.ones(1, 1) > 0)[0][0]
    patches = patch_relevance(model, image, speech)
    assert patches.shape == (6, 6)
    assert patches.min() >= 0
    assert patches.max() == 1
    corners = (patches[:3, :3].sum(), patches[3:, 3:].sum())
    assert corners[corner] > 3 * corners[1 - corner]


def test_the_model_is_unchanged():
    model, clip = model_of("brewclip")
    image = image_of(clip, "tiger", "airplane")
    before = model.encode_image(image[None])
    patch_relevance(model, image, torch.randn(model.clip.embed_dim))
    assert torch.equal(model.encode_image(image[None]), before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.clip.clip.visual.transformer.resblocks[-2].ln_1._forward_hooks


@pytest.mark.parametrize("variant", ["brewclip", "acoustic"])
def test_frame_relevance_is_highest_on_informative_frames(variant):
    """Without the most relevant frames the similarity falls; frames that are all alike are all as relevant."""
    model, clip = model_of(variant)
    tokens = clip.tokenize(["an image"])[0]
    generator = torch.Generator().manual_seed(0)
    audio = torch.randn(1, AUDIO_DIM, generator=generator).repeat(20, 1)
    audio[7:10] += torch.randn(3, AUDIO_DIM, generator=generator)
    image = torch.randn(model.clip.embed_dim, generator=generator)
    relevance = frame_relevance(model, tokens, audio, image)
    assert relevance.shape == (20,)
    assert relevance.max() == 1
    alike = np.delete(relevance, [7, 8, 9])
    assert np.ptp(alike) < 1e-5
    step = audio.clone()
    step[relevance == 1] -= 1e-2 * (audio - audio.mean(0))[relevance == 1]
    assert similarity(model, tokens, step, image) < similarity(model, tokens, audio, image)


def similarity(model, tokens, audio, image) -> float:
    with torch.no_grad():
        speech, _, _ = model.encode_speech(tokens[None], audio[None], torch.ones(1, len(audio)) > 0)
        return float(F.cosine_similarity(speech.double(), image[None].double()))


@pytest.mark.parametrize("variant", ["zero_shot", "pipeline"])
def test_without_an_acoustic_channel_there_is_no_frame_relevance(variant):
    model, clip = model_of(variant)
    image = torch.ones(model.clip.embed_dim)
    assert frame_relevance(model, clip.tokenize(["x"])[0], torch.ones(4, AUDIO_DIM), image) is None


def test_no_frames():
    model, clip = model_of("acoustic")
    image = torch.ones(model.clip.embed_dim)
    assert frame_relevance(model, clip.tokenize(["x"])[0], torch.ones(0, AUDIO_DIM), image) is None


def test_a_tower_of_one_block_has_no_penultimate_block():
    model, clip = model_of("zero_shot")
    transformer = model.clip.clip.visual.transformer
    transformer.resblocks = transformer.resblocks[:1]
    with pytest.raises(ValueError, match="1 block"):
        patch_relevance(model, image_of(clip, "tiger", "airplane"), torch.ones(model.clip.embed_dim))
