"""The emotion classifier: which features it reads, and what of the model learns with its head."""

import pytest
import torch

from brewclip.models.brewclip import BrewCLIP
from brewclip.models.emotion import EmotionClassifier, channels_of
from tests.models.test_brewclip import build, make_batch

LAST_LAYER = "acoustic.layers.1."


@pytest.mark.parametrize("channel", ["acoustic", "speech", "text"])
def test_features_are_those_of_the_model(channel: str):
    model, (images, tokens, audio, mask) = build("brewclip").eval(), make_batch()
    tokens[2] = tokens[0]  # a sentence that two recordings say
    expected = getattr(model(images, tokens, audio, mask), channel)
    found = EmotionClassifier(model, channel, 4).eval().features(tokens, audio, mask)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("variant", "channels"),
    [
        ("brewclip", ("acoustic", "speech", "text", "pooled")),
        ("acoustic", ("acoustic", "pooled")),
        ("pipeline", ("text",)),
        ("zero_shot", ("text",)),
    ],
)
def test_a_variant_has_the_channels_that_it_computes(variant: str, channels: tuple[str, ...]):
    assert channels_of(build(variant)) == channels


def test_pooled_frames_keep_the_width_of_whisper():
    model, (_, tokens, audio, mask) = build("brewclip").eval(), make_batch()
    classifier = EmotionClassifier(model, "pooled", 4).eval()
    assert classifier.features(tokens, audio, mask).shape == (len(audio), audio.shape[2])
    assert classifier(tokens, audio, mask).shape == (len(audio), 4)


def parts_that_learn(model: BrewCLIP, channel: str) -> set[str]:
    """Take a step on random targets, and return the names of what changed."""
    classifier = EmotionClassifier(model, channel, 3)
    before = {name: value.clone() for name, value in model.named_parameters()}
    _, tokens, audio, mask = make_batch()
    optimizer = torch.optim.Adam([p for p in classifier.parameters() if p.requires_grad], lr=0.1)
    torch.nn.functional.cross_entropy(classifier.train()(tokens, audio, mask), torch.arange(3)).backward()
    optimizer.step()
    return {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}


def test_prompts_and_last_acoustic_layer_learn_and_nothing_else():
    changed = parts_that_learn(build("brewclip", num_layers=2), "acoustic")
    assert "prompts.text" in changed
    assert {name for name in changed if name.startswith(LAST_LAYER)} == changed - {"prompts.text"}
    assert f"{LAST_LAYER}self_attn.in_proj_weight" in changed


def test_a_text_channel_learns_its_prompts_alone():
    assert parts_that_learn(build("pipeline"), "text") == {"prompts.text"}


def test_zero_shot_has_nothing_to_finetune():
    assert EmotionClassifier(build("zero_shot"), "text", 4).finetuned_parameters() == {}


def test_mistakes():
    with pytest.raises(ValueError, match="a pipeline model has no channel 'acoustic'; it has text"):
        EmotionClassifier(build("pipeline"), "acoustic", 4)
    with pytest.raises(ValueError, match="1 emotions cannot be classified"):
        EmotionClassifier(build("pipeline"), "text", 1)
