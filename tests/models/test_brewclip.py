"""The five variants: what they read, what they train, what a checkpoint of theirs holds."""

import math

import open_clip
import pytest
import torch

from brewclip.models.brewclip import VARIANTS, BrewCLIP
from brewclip.models.clip import PromptedCLIP
from brewclip.models.whisper_encoder import WhisperEncoder
from tests.models.tiny_encoders import tiny_whisper

TRAINED_PARTS = {
    "brewclip": {"prompts", "acoustic", "logit_scale"},
    "acoustic": {"prompts", "acoustic", "logit_scale"},
    "pipeline": {"prompts", "logit_scale"},
    "zero_shot": set(),
    "speechclip": {"acoustic", "logit_scale"},
}


def build_clip():
    torch.manual_seed(0)
    return open_clip.CLIP(
        embed_dim=16,
        vision_cfg={"image_size": 16, "layers": 1, "width": 24, "head_width": 8, "patch_size": 8},
        text_cfg={"context_length": 12, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1},
    )


def build(variant, **settings):
    clip = build_clip()
    if variant == "speechclip":
        settings["speech_encoder"] = WhisperEncoder(tiny_whisper())
    return BrewCLIP(PromptedCLIP(clip), variant=variant, audio_dim=10, ff_dim=32, **settings)


def make_batch(variant="brewclip"):
    torch.manual_seed(1)
    tokens = torch.randint(1, 48, (3, 12))
    tokens[:, 5] = 49
    images = torch.randn(3, 3, 16, 16)
    if variant == "speechclip":
        return images, tokens, 0.1 * torch.randn(3, 3200), torch.ones(3, 3200, dtype=torch.bool)
    return images, tokens, torch.randn(3, 9, 10), torch.ones(3, 9, dtype=torch.bool)


def test_full_model_adds_both_channels():
    features = build("brewclip").eval()(*make_batch())
    torch.testing.assert_close(features.speech, features.acoustic + features.text)
    assert features.image.shape == features.speech.shape == (3, 16)


def test_zero_shot_is_plain_clip():
    model, (images, tokens, audio, mask) = build("zero_shot"), make_batch()
    features = model(images, tokens, audio, mask)
    torch.testing.assert_close(features.image, model.clip.clip.encode_image(images), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(features.speech, model.clip.clip.encode_text(tokens), rtol=1e-5, atol=1e-5)
    assert features.acoustic is None


@pytest.mark.parametrize("variant", VARIANTS)
def test_reads_only_its_own_input(variant):
    model = build(variant).eval()
    images, tokens, audio, mask = make_batch(variant)
    features = model(images, tokens, audio, mask)
    other_text = model(images, tokens.flip(0), audio, mask)
    other_sound = model(images, tokens, audio.flip(0), mask)
    assert torch.equal(features.speech, other_text.speech) == (variant in ("acoustic", "speechclip"))
    assert torch.equal(features.speech, other_sound.speech) == (variant in ("pipeline", "zero_shot"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_trains_prompts_projections_layer_and_scale_only(variant):
    model = build(variant)
    trained = model.trained_parameters().keys()
    assert {name.split(".")[0] for name in trained} == TRAINED_PARTS[variant]
    frozen = {name: value.clone() for name, value in model.state_dict().items() if name not in trained}
    parameters = list(model.trained_parameters().values())
    if parameters:
        optimizer = torch.optim.Adam(parameters, lr=0.1)
        features = model.train()(*make_batch(variant))
        (model.logit_scale * (features.image * features.speech).sum()).backward()
        assert all(parameter.grad is not None for parameter in parameters)
        optimizer.step()
    assert {name.split(".")[0] for name in frozen} >= {"clip"}
    assert all(torch.equal(model.state_dict()[name], value) for name, value in frozen.items())


def test_speechclip_needs_its_encoder_and_compares_images_of_plain_clip():
    with pytest.raises(ValueError, match="speechclip takes a speech encoder"):
        BrewCLIP(PromptedCLIP(build_clip()), variant="speechclip", audio_dim=10)
    model, (images, *_) = build("speechclip"), make_batch()
    torch.testing.assert_close(model.encode_image(images), model.clip.clip.encode_image(images))
    assert not model.reads_text and not any(".speech_encoder." in name for name in model.trained_state())


def test_prompts_are_shared_by_text_audio_and_vision():
    model = build("brewclip", prompt_length=2)
    for feature in ("image", "acoustic", "text"):
        features = model.eval()(*make_batch())
        (gradient,) = torch.autograd.grad(getattr(features, feature).square().sum(), [model.prompts.text])
        assert gradient.abs().sum() > 0, feature


def test_trained_state_makes_the_round_trip():
    model, other = build("brewclip").eval(), build("brewclip").eval()
    with torch.no_grad():
        for parameter in model.trained_parameters().values():
            parameter.add_(0.1)
    other.load_trained_state(model.trained_state())
    torch.testing.assert_close(model(*make_batch()).speech, other(*make_batch()).speech)
    assert not any(name.startswith("clip.") for name in model.trained_state())


def test_a_state_that_does_not_fit_names_key_and_shapes():
    state = build("brewclip", prompt_length=4).trained_state()
    with pytest.raises(ValueError, match=r"prompts\.text is \(4, 16\) in the checkpoint and \(2, 16\) in the model"):
        build("brewclip", prompt_length=2).load_trained_state(state)
    with pytest.raises(ValueError, match=r"acoustic\.\S+ is \(.*\) in the checkpoint and absent in the model"):
        build("pipeline").load_trained_state(state)


def test_logit_scale_is_clamped_at_100_and_can_be_fixed():
    model = build("pipeline", init_logit_scale=6.0)
    model.clamp_logit_scale()
    assert model.logit_scale.exp().item() == pytest.approx(100.0)
    fixed = build("pipeline", learn_logit_scale=False)
    assert "logit_scale" not in fixed.trained_parameters()
    assert fixed.logit_scale.item() == pytest.approx(math.log(1 / 0.07))


def test_prompt_length_0_trains_without_prompts():
    model = build("brewclip", prompt_length=0)
    assert not any(name.startswith("prompts") for name in model.trained_parameters())
    images = make_batch()[0]
    torch.testing.assert_close(model.encode_image(images), model.clip.clip.encode_image(images))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "both"}, "choose one of brewclip, acoustic, pipeline, zero_shot, speechclip"),
        ({"variant": "acoustic", "speech_encoder": WhisperEncoder(tiny_whisper())}, "no other does"),
        ({"variant": "pipeline", "prompt_length": 11}, "at most 10"),
        ({"variant": "pipeline", "prompt_length": -1}, "0 .* or more"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)


@pytest.mark.parametrize("variant", ["brewclip", "pipeline", "zero_shot"])
def test_a_text_in_chunks_is_their_mean(variant):
    model = build(variant).eval()
    _, tokens, audio, mask = make_batch()
    chunks = torch.stack([tokens, tokens.flip(0)], dim=1)  # (3, 2, 12)
    chunks[0, 1] = 0  # the first text has one chunk
    _, _, text = model.encode_speech(chunks, audio, mask)
    _, _, front = model.encode_speech(tokens, audio, mask)
    _, _, back = model.encode_speech(tokens.flip(0), audio, mask)
    torch.testing.assert_close(text[0], front[0])
    torch.testing.assert_close(text[1:], (front[1:] + back[1:]) / 2)
