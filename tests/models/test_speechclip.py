"""SpeechCLIP's parallel branch against a plain reference: weighted layers, transformer layer, padding, gradients."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from brewclip.models import speechclip
from brewclip.models.speech_encoders import HubertEncoder
from brewclip.models.speechclip import SpeechCLIPEncoder
from tests.models.tiny_encoders import FORMS, make_waveforms, tiny_hubert

LENGTHS = (4000, 1501, 90, 2777)


def build(form="large", **settings):
    encoder = HubertEncoder(tiny_hubert(form))
    torch.manual_seed(1)
    model = SpeechCLIPEncoder(encoder, 6, num_heads=4, ff_dim=48, **settings)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.5), name
    return model


def reference(model, waveforms, mask):
    """The same weights in plain torch, one recording after the other, all positions computed."""
    layer = nn.TransformerEncoderLayer(32, 4, 48, activation="gelu", batch_first=True)
    transformer = nn.TransformerEncoder(layer, 1, norm=nn.LayerNorm(32))
    transformer.load_state_dict({name: model.state_dict()[name] for name in transformer.state_dict()})
    rows = []
    for waveform, kept in zip(waveforms, mask, strict=True):
        hidden = model.speech_encoder(waveform[kept][None], kept.sum()[None])[0]
        weights = torch.softmax(model.layer_weights, dim=0)
        frames = sum(w * F.layer_norm(h, (32,)) for w, h in zip(weights, hidden, strict=True))
        rows.append(model.output(transformer.eval()(torch.cat([model.cls[None], frames])[None])[0, 0]))
    return torch.stack(rows)


@pytest.mark.parametrize("form", FORMS)
def test_output_and_gradients_equal_a_plain_reference(form):
    model, (waveforms, mask) = build(form).eval(), make_waveforms(LENGTHS)
    found, expected = model(waveforms, mask), reference(model, waveforms, mask)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    leaves = [model.layer_weights, model.cls]
    for one, other in zip(
        torch.autograd.grad(found.square().sum(), leaves),
        torch.autograd.grad(expected.square().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_the_layers_weigh_the_same_at_first_and_the_encoder_is_not_trained():
    model = SpeechCLIPEncoder(HubertEncoder(tiny_hubert("base")), 6, num_heads=4, ff_dim=48)
    waveforms, mask = make_waveforms((4000,))
    hidden = model.speech_encoder(waveforms, mask.sum(dim=1))
    expected = F.layer_norm(hidden, (32,)).mean(dim=1)
    torch.testing.assert_close(model.weigh_layers(waveforms, mask.sum(dim=1)), expected)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert "layer_weights" in trained and not any(name.startswith("speech_encoder.") for name in trained)
    assert not model.train().speech_encoder.training


def test_memory_bounds_what_is_encoded_together_and_changes_nothing(monkeypatch):
    model, (waveforms, mask) = build().eval(), make_waveforms(LENGTHS)
    together, seen, encode = model(waveforms, mask), [], model.speech_encoder.forward
    monkeypatch.setattr(speechclip, "_SAMPLES_AT_ONCE", 2 * max(LENGTHS))
    monkeypatch.setattr(model.speech_encoder, "forward", lambda w, n: (seen.append(n.tolist()), encode(w, n))[1])
    torch.testing.assert_close(model(waveforms, mask), together, rtol=1e-5, atol=1e-5)
    assert seen == [[90, 1501], [2777, 4000]]


class Cache:
    """Layers by waveform, in memory."""

    def __init__(self):
        self.stored = {}

    def get(self, waveform):
        return self.stored.get(waveform.tobytes())

    def put(self, waveform, layers):
        self.stored[waveform.tobytes()] = layers.copy()


@pytest.mark.parametrize("form", FORMS)
def test_cached_layers_are_those_computed_to_the_bit_and_are_computed_once(form, monkeypatch):
    model, (waveforms, mask) = build(form).eval(), make_waveforms(LENGTHS)
    plain, seen, encode = model(waveforms, mask), [], model.speech_encoder.forward
    monkeypatch.setattr(model.speech_encoder, "forward", lambda w, n: (seen.append(n.tolist()), encode(w, n))[1])
    model.layer_cache = cache = Cache()
    computed = model(waveforms, mask)
    torch.testing.assert_close(computed, plain, rtol=2e-3, atol=2e-3)  # float16
    alone = [[length] for length in sorted(LENGTHS)]
    assert torch.equal(model(waveforms, mask), computed) and seen == alone
    frames = model.speech_encoder.num_frames(torch.tensor(LENGTHS)).tolist()
    assert [len(layers[0]) for layers in cache.stored.values()] == sorted(frames)
    torch.testing.assert_close(model(waveforms[2:], mask[2:]), computed[2:], rtol=1e-5, atol=1e-5)
    cache.stored = {key: layers[:, :0] for key, layers in cache.stored.items()}  # of another encoder, or damaged
    assert torch.equal(model(waveforms, mask), computed) and seen == alone * 2


@pytest.mark.parametrize("form", FORMS)
def test_what_is_cached_does_not_depend_on_the_batch(form):
    """Nor on its padding; in bfloat16, where products differ most."""
    model, (waveforms, mask) = build(form).eval(), make_waveforms(LENGTHS)
    stored = []
    for batches in ([[0, 1, 2, 3]], [[3, 1], [2], [0]]):
        model.layer_cache = Cache()
        with torch.autocast("cpu", torch.bfloat16):
            for rows in batches:
                model(waveforms[rows], mask[rows])
        stored.append(model.layer_cache.stored)
    one, other = stored
    assert one.keys() == other.keys() and len(one) == len(LENGTHS)
    assert all(np.array_equal(one[key], other[key]) for key in one)


def test_dropout_belongs_to_the_sample():
    model, (waveforms, mask) = build(dropout=0.3).train(), make_waveforms(LENGTHS)
    seeds, order = torch.tensor([5, -9, 2**40, 7]), torch.tensor([2, 0, 3, 1])
    together = model(waveforms, mask, sample_seeds=seeds)
    shuffled = model(waveforms[order], mask[order], sample_seeds=seeds[order])
    torch.testing.assert_close(shuffled, together[order], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(model(waveforms, mask, sample_seeds=seeds + 1), together, atol=1e-3)
