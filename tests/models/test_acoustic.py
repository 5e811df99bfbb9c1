"""The acoustic encoder against torch's own transformer, and dropout that belongs to the sample."""

import pytest
import torch
from torch import nn

from brewclip.models.acoustic import AcousticEncoder
from brewclip.models.dropout import SampleDropout

LENGTHS = (7, 0, 12)


def build(num_layers=1, **settings):
    torch.manual_seed(0)
    encoder = AcousticEncoder(10, 16, 6, num_layers=num_layers, num_heads=4, ff_dim=32, **settings)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.5)  # biases too, which start at zero
    return encoder


def make_batch(lengths=LENGTHS, padded_to=12):
    generator = torch.Generator().manual_seed(3)
    features = torch.full((len(lengths), padded_to, 10), 7.0)  # padding is not zero in Whisper's output
    mask = torch.arange(padded_to) < torch.tensor(lengths)[:, None]
    for row, length in zip(features, lengths, strict=True):
        row[:length] = torch.randn(max(LENGTHS), 10, generator=generator)[:length]
    return features, mask


def reference(encoder, features, mask, prompts):
    """The same weights in torch.nn.TransformerEncoder, computing every position."""
    layer = nn.TransformerEncoderLayer(16, 4, 32, activation="gelu", batch_first=True)
    torch_encoder = nn.TransformerEncoder(layer, len(encoder.layers), norm=nn.LayerNorm(16))
    names = torch_encoder.state_dict().keys()
    torch_encoder.load_state_dict({name: encoder.state_dict()[name] for name in names})
    prefix = encoder.cls[None] if prompts is None else torch.cat([encoder.cls[None], prompts])
    tokens = torch.cat([prefix.expand(len(features), -1, -1), encoder.input(features)], dim=1)
    padding = torch.cat([mask.new_zeros(len(features), len(prefix)), ~mask], dim=1)
    return encoder.output(torch_encoder.eval()(tokens, src_key_padding_mask=padding)[:, 0])


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("num_prompts", [0, 4])
def test_equals_torch_transformer_encoder(num_layers, num_prompts):
    encoder = build(num_layers).eval()
    prompts = torch.randn(num_prompts, 16) if num_prompts else None
    features, mask = make_batch()
    expected = reference(encoder, features, mask, prompts)
    torch.testing.assert_close(encoder(features, mask, prompts), expected, rtol=1e-5, atol=1e-5)


def test_gradients_equal_those_of_torch_transformer_encoder():
    encoder = build().eval()
    features, mask = make_batch()
    prompts = torch.randn(4, 16, requires_grad=True)
    leaves = [prompts, encoder.cls, encoder.input.weight, encoder.input.bias]
    actual = torch.autograd.grad(encoder(features, mask, prompts).square().sum(), leaves)
    expected = torch.autograd.grad(reference(encoder, features, mask, prompts).square().sum(), leaves)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_dropout_belongs_to_the_sample(num_layers):
    """The same sample and seed give the same output in any batch, order and padding."""
    encoder = build(num_layers, dropout=0.3).train()
    features, mask = make_batch()
    prompts, seeds = torch.randn(2, 16), torch.tensor([5, -9, 2**40])
    together = encoder(features, mask, prompts, seeds)
    order = torch.tensor([2, 0, 1])
    shuffled = encoder(features[order], mask[order], prompts, seeds[order])
    torch.testing.assert_close(shuffled, together[order], rtol=1e-5, atol=1e-5)
    longer, longer_mask = make_batch(padded_to=20)
    torch.testing.assert_close(encoder(longer, longer_mask, prompts, seeds), together, rtol=1e-5, atol=1e-5)
    alone = encoder(features[:1, :7], mask[:1, :7], prompts, seeds[:1])
    torch.testing.assert_close(alone, together[:1], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(encoder(features, mask, prompts, seeds + 1), together, atol=1e-3)
    assert not torch.allclose(encoder.eval()(features, mask, prompts, seeds), together, atol=1e-3)


def test_without_seeds_dropout_follows_torch():
    encoder = build(dropout=0.3).train()
    features, mask = make_batch()
    torch.manual_seed(1)
    first, second = encoder(features, mask), encoder(features, mask)
    torch.manual_seed(1)
    assert not torch.allclose(first, second)
    torch.testing.assert_close(encoder(features, mask), first)


def test_dropout_masks_are_random_enough():
    scale = SampleDropout(torch.arange(4000), 0.25).scale(3, torch.arange(50))
    assert scale.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert scale.mean().item() == pytest.approx(1.0, abs=0.01)
    # neither neighbours in a sample, nor samples of neighbouring seeds, nor sites are alike
    centred = scale - scale.mean()
    variance = centred.square().mean()
    assert abs((centred[:, 1:] * centred[:, :-1]).mean() / variance) < 0.01
    assert abs((centred[1:] * centred[:-1]).mean() / variance) < 0.01
    other_site = SampleDropout(torch.arange(4000), 0.25).scale(4, torch.arange(50)) - 1
    assert abs((centred * other_site).mean() / variance) < 0.01


def test_a_batch_without_any_frame_is_finite():
    encoder = build().train()
    output = encoder(torch.zeros(2, 0, 10), torch.zeros(2, 0, dtype=torch.bool), None, torch.tensor([1, 2]))
    assert output.shape == (2, 6) and output.isfinite().all()
    output.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())


def test_half_precision_features_are_taken():
    encoder = build().eval()
    features, mask = make_batch()
    torch.testing.assert_close(encoder(features.half(), mask), encoder(features, mask), rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"num_heads": 3}, "do not divide"), ({"num_layers": 0}, "at least 1"), ({"dropout": 1.0}, r"\[0, 1\)")],
)
def test_impossible_sizes_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AcousticEncoder(10, 16, 6, **settings)


@pytest.mark.parametrize("num_layers", [1, 3])
def test_pooled_frames_are_weighted_by_the_attention_of_the_last_layer(num_layers):
    encoder = build(num_layers).eval()
    features, mask = make_batch()
    prompts = torch.randn(4, 16)
    x = torch.cat([encoder.cls[None], prompts]).expand(len(features), -1, -1)
    x = torch.cat([x, encoder.input(features)], dim=1)
    keys = torch.cat([mask.new_ones(len(features), 5), mask], dim=1)
    for layer in encoder.layers[:-1]:
        x = layer(x, keys, None)
    _, weights = encoder.layers[-1].self_attn(x[:, :1], x, x, key_padding_mask=~keys)  # mean over heads
    weights = weights[:, 0, 5:]
    expected = (weights / weights.sum(dim=1, keepdim=True).clamp_min(1e-20)).unsqueeze(1) @ features
    found = encoder.pool_frames(features, mask, prompts)
    torch.testing.assert_close(found, expected[:, 0], rtol=1e-4, atol=1e-4)
    assert (found[LENGTHS.index(0)] == 0).all()


def test_frames_that_are_attended_to_equally_are_averaged():
    encoder = build().eval()
    nn.init.zeros_(encoder.layers[0].self_attn.in_proj_weight)
    features, mask = make_batch()
    torch.testing.assert_close(encoder.pool_frames(features, mask)[0], features[0, : LENGTHS[0]].mean(dim=0))
