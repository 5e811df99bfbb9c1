"""The adapter over CLIP's embeddings: zero-shot CLIP at first, and one model over embeddings and over towers."""

import pytest
import torch

from brewclip.models.adapter import EmbeddingAdapter
from brewclip.models.brewclip import BrewCLIP
from brewclip.models.towers import FrozenTowers
from tests.models.test_brewclip import build_clip, make_batch

TRAINED_PARTS = {
    "brewclip": {"clip", "acoustic", "logit_scale"},
    "acoustic": {"acoustic", "logit_scale"},
    "pipeline": {"clip", "logit_scale"},
    "zero_shot": set(),
}


def build(variant: str = "brewclip", *, towers: bool = True, **settings) -> BrewCLIP:
    clip = EmbeddingAdapter(16, FrozenTowers(build_clip()) if towers else None)
    torch.manual_seed(2)
    return BrewCLIP(clip, variant=variant, audio_dim=10, ff_dim=32, prompt_length=0, **settings)


def trained(model: BrewCLIP) -> BrewCLIP:
    """Give the adapter weights, as training does."""
    torch.manual_seed(3)
    with torch.no_grad():
        model.clip.residual.weight.normal_(std=0.1)
        model.clip.residual.bias.normal_(std=0.1)
    return model


def test_untrained_it_is_zero_shot_clip():
    images, tokens, audio, mask = make_batch()
    clip = build_clip()
    features = build().eval()(images, tokens, audio, mask)
    torch.testing.assert_close(features.text, clip.encode_text(tokens), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(features.image, clip.encode_image(images), rtol=1e-5, atol=1e-5)


def test_embeddings_given_and_computed_are_the_same_model():
    images, tokens, audio, mask = make_batch()
    over_towers = trained(build()).eval()
    over_embeddings = trained(build(towers=False)).eval()
    over_embeddings.load_trained_state(over_towers.trained_state())
    towers = FrozenTowers(build_clip())
    expected = over_towers(images, tokens, audio, mask)
    found = over_embeddings(towers.encode_image(images), towers.encode_text(tokens), audio, mask)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_a_text_in_chunks_is_the_mean_of_theirs_before_and_after_the_adapter():
    _, tokens, audio, mask = make_batch()
    model, towers = trained(build("pipeline")).eval(), FrozenTowers(build_clip())
    chunks = torch.stack([tokens, tokens.flip(0)], dim=1)  # (B, 2, L)
    found, _, _ = model.encode_speech(chunks, audio, mask)
    mean = (towers.encode_text(tokens) + towers.encode_text(tokens.flip(0))) / 2
    torch.testing.assert_close(found, mean + model.clip.residual(mean), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", TRAINED_PARTS)
def test_what_is_trained(variant):
    assert {name.partition(".")[0] for name in build(variant).trained_parameters()} == TRAINED_PARTS[variant]


def test_the_strength_counts_after_training_only():
    _, tokens, audio, mask = make_batch()
    model = trained(build("pipeline", fusion="confidence"))
    plain, text, _ = model.encode_channels(tokens, audio, mask)
    model.clip.strength.fill_(0.25)
    torch.testing.assert_close(model.train().encode_speech(tokens, audio, mask)[0], text)
    torch.testing.assert_close(model.eval().encode_speech(tokens, audio, mask)[0], plain + 0.25 * (text - plain))


def test_a_checkpoint_holds_the_weights_that_dev_chose():
    model = build(fusion="confidence")
    model.fusion.weights.copy_(torch.tensor([0.3, 1.4]))
    model.clip.strength.fill_(0.75)
    other = build(fusion="confidence")
    other.load_trained_state(model.trained_state())
    assert other.described_weights() == pytest.approx(
        {"adapter_strength": 0.75, "acoustic_weight": 0.3, "acoustic_weight_of_doubt": 1.4}
    )
    assert not any(name.startswith(("fusion", "clip.strength")) for name in build(fusion="sum").trained_state())
    with pytest.raises(ValueError, match=r"clip\.strength is absent in the checkpoint"):
        other.load_trained_state(build(fusion="sum").trained_state())
