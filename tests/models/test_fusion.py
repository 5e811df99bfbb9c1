"""Fusion of text and sound: the paper's sum, and sound where the transcript is doubtful."""

import pytest
import torch
from torch.nn import functional as F

from brewclip.models.brewclip import BrewCLIP
from brewclip.models.clip import PromptedCLIP
from brewclip.models.fusion import Fusion
from tests.models.test_brewclip import build_clip, make_batch


@pytest.fixture
def channels():
    torch.manual_seed(0)
    return 3 * torch.randn(4, 8), 0.1 * torch.randn(4, 8)


def fusion(*weights: float) -> Fusion:
    made = Fusion("confidence")
    made.weights.copy_(torch.tensor(weights))
    return made


def test_the_sum_is_the_paper_s_to_the_bit(channels):
    text, acoustic = channels
    assert torch.equal(Fusion("sum")(text, acoustic), acoustic + text)


def test_without_weights_it_is_the_text(channels):
    text, acoustic = channels
    torch.testing.assert_close(Fusion("confidence")(text, acoustic, torch.zeros(4)), F.normalize(text, dim=1))


def test_the_formula_row_by_row(channels):
    text, acoustic = channels
    confidence = torch.tensor([0.0, 0.25, 0.9, 1.0])
    found = fusion(0.3, 1.4)(text, acoustic, confidence)
    for row, p in enumerate(confidence.tolist()):
        t, a = text[row] / text[row].norm(), acoustic[row] / acoustic[row].norm()
        expected = t + (0.3 + 1.4 * (1 - p)) * a
        torch.testing.assert_close(found[row], expected / expected.norm())


def test_a_certain_transcript_is_left_alone_by_the_weight_of_doubt(channels):
    text, acoustic = channels
    torch.testing.assert_close(fusion(0.0, 4.0)(text, acoustic, torch.ones(4)), F.normalize(text, dim=1))


def test_a_gate_starts_with_the_text_and_is_trained(channels):
    text, acoustic = channels
    gate, confidence = Fusion("gate"), torch.tensor([0.0, 0.25, 0.9, 1.0])
    assert torch.equal(gate(text, acoustic, confidence), text)
    gate(text, acoustic, confidence).sum().backward()
    of_sound = acoustic.sum(dim=1)
    torch.testing.assert_close(gate.weights.grad, torch.stack([of_sound.sum(), (of_sound * (1 - confidence)).sum()]))
    with torch.no_grad():
        gate.weights.copy_(torch.tensor([0.5, 2.0]))
    torch.testing.assert_close(gate(text, acoustic, confidence)[1], text[1] + 2.0 * acoustic[1])
    weight = gate.acoustic_weight(text, acoustic, confidence)
    torch.testing.assert_close(weight[1], 2.0 * acoustic[1].norm() / text[1].norm())


def test_only_a_model_of_both_channels_trains_a_gate():
    trained = {}
    for variant in ("brewclip", "pipeline", "acoustic"):
        model = BrewCLIP(PromptedCLIP(build_clip()), variant=variant, audio_dim=10, ff_dim=32, fusion="gate")
        trained[variant] = "fusion.weights" in model.trained_parameters(), sorted(model.described_weights())
    named = ["acoustic_weight", "acoustic_weight_of_doubt"]
    assert trained == {"brewclip": (True, named), "pipeline": (False, []), "acoustic": (False, [])}


@pytest.mark.parametrize("channel", ["acoustic", "text"])
def test_one_channel_of_a_model_alone(channel):
    model = BrewCLIP(PromptedCLIP(build_clip()), variant="brewclip", audio_dim=10, ff_dim=32, fusion="confidence")
    _, *speech = make_batch()
    model.eval().channel = channel
    found, acoustic, text = model.encode_speech(*speech, confidence=torch.ones(3))
    assert torch.equal(found, {"acoustic": acoustic, "text": text}[channel])


def test_mistakes(channels):
    with pytest.raises(ValueError, match="unknown fusion 'mean'; choose one of sum, confidence, gate"):
        Fusion("mean")
    with pytest.raises(ValueError, match="needs the confidence of each transcript"):
        Fusion("confidence")(*channels)
