"""InfoNCE by hand, same-image masking, and the parts of the loss."""

import math

import pytest
import torch

from brewclip import losses as losses_module
from brewclip.losses import brewclip_loss, info_nce, loss_of_chance
from brewclip.models.brewclip import Features


def identity(x):
    return x


def make_features(n=4, channels=True):
    torch.manual_seed(0)
    image, acoustic, text = (torch.randn(n, 8, requires_grad=True) for _ in range(3))
    return Features(image, acoustic + text, acoustic, text) if channels else Features(image, text, None, text)


def test_info_nce_by_hand():
    """Cosines are 1 and 0 for the first query, 0.6 and 0.8 for the second; lengths do not matter."""
    queries = torch.tensor([[2.0, 0.0], [3.0, 4.0]])
    keys = torch.tensor([[5.0, 0.0], [0.0, 0.1]])
    loss = info_nce(queries, keys, torch.tensor([0, 1]), torch.ones(2, 2, dtype=torch.bool), torch.tensor(math.log(2)))
    expected = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(1.2 - 1.6))]
    assert loss.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("channels", [True, False])
def test_the_loss_of_chance_is_that_of_features_that_are_all_alike(channels, reduction):
    features = make_features(8, channels)
    alike = Features(*(None if part is None else torch.ones_like(part) for part in features))
    found = brewclip_loss(alike, torch.arange(8), torch.tensor(2.0), 0.1, identity, reduction=reduction)["loss"]
    assert found.item() == pytest.approx(loss_of_chance(8, reduction))


def test_a_dropped_key_leaves_the_denominator():
    queries, keys = torch.randn(1, 4), torch.randn(3, 4)
    scale, target = torch.tensor(1.0), torch.tensor([0])
    masked = info_nce(queries, keys, target, torch.tensor([[True, False, True]]), scale)
    absent = info_nce(queries, keys[[0, 2]], target, torch.ones(1, 2, dtype=torch.bool), scale)
    torch.testing.assert_close(masked, absent)


def test_separate_channels_are_trained_each_alone():
    """Their loss is that of both alone, and the gradient of one does not depend on the other."""
    features, ids, scale = make_features(), torch.arange(4), torch.tensor(2.0)
    alone = [
        brewclip_loss(Features(features.image, part, None, part), ids, scale, 0.1, identity)["loss"]
        for part in (features.acoustic, features.text)
    ]
    losses = brewclip_loss(features, ids, scale, 0.1, identity, separate_channels=True)
    torch.testing.assert_close(losses["loss"], sum(alone))
    assert losses["inner"].item() == 0
    for part, own in zip((features.acoustic, features.text), alone, strict=True):
        (found,) = torch.autograd.grad(losses["loss"], part, retain_graph=True)
        (expected,) = torch.autograd.grad(own, part, retain_graph=True)
        torch.testing.assert_close(found, expected)
    alike = Features(*(torch.ones_like(part) for part in features))
    found = brewclip_loss(alike, ids, scale, 0.1, identity, separate_channels=True)["loss"]
    assert found.item() == pytest.approx(loss_of_chance(4, separate_channels=True))


def test_total_is_alpha_inner_plus_rest_outer():
    features, ids, scale = make_features(), torch.arange(4), torch.tensor(2.0)
    losses = brewclip_loss(features, ids, scale, 0.1, identity)
    everything = torch.ones(4, 4, dtype=torch.bool)

    def both_ways(x, y):
        return sum(info_nce(a, b, ids, everything, scale).mean() for a, b in ((x, y), (y, x)))

    torch.testing.assert_close(losses["outer"], both_ways(features.image, features.speech))
    torch.testing.assert_close(losses["inner"], both_ways(features.acoustic, features.text))
    torch.testing.assert_close(losses["loss"], 0.1 * losses["inner"] + 0.9 * losses["outer"])
    assert losses["effective_negatives"].item() == 3


@pytest.mark.parametrize("logits_at_once", [1, 1 << 24])
def test_the_mean_of_both_directions_is_half_their_sum_with_half_the_gradients(monkeypatch, logits_at_once):
    """As in the authors' code: cross entropy of the logits and of their transpose, their sum divided by two."""
    monkeypatch.setattr(losses_module, "_MAX_LOGITS", logits_at_once)
    found = {}
    for reduction in ("sum", "mean"):
        features, scale = make_features(), torch.tensor(2.0, requires_grad=True)
        losses = brewclip_loss(features, torch.arange(4), scale, 0.0, identity, reduction)
        losses["loss"].backward()
        found[reduction] = (losses["loss"], losses["outer"], features.image.grad, features.text.grad, scale.grad)
    for mean, both in zip(found["mean"], found["sum"], strict=True):
        torch.testing.assert_close(mean, both / 2)

    features, scale = make_features(), torch.tensor(2.0, requires_grad=True)
    image, speech = (x / x.norm(dim=1, keepdim=True) for x in (features.image, features.speech))
    logits = scale.exp() * image @ speech.T
    rows = [-(one.diagonal() - one.exp().sum(1).log()).mean() for one in (logits, logits.T)]
    reference = (rows[0] + rows[1]) / 2
    reference.backward()
    expected = (reference, reference, features.image.grad, features.text.grad, scale.grad)
    for one, other in zip(found["mean"], expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_captions_of_one_image_are_not_negatives_of_each_other():
    features, scale = make_features(), torch.tensor(2.0)
    losses = brewclip_loss(features, torch.tensor([7, 8, 7, 9]), scale, 0.0, identity)
    assert losses["effective_negatives"].item() == (2 + 3 + 2 + 3) / 4
    keep = torch.ones(4, 4, dtype=torch.bool)
    keep[0, 2] = keep[2, 0] = False
    rows = info_nce(features.image, features.speech, torch.arange(4), keep, scale)
    rows = rows + info_nce(features.speech, features.image, torch.arange(4), keep, scale)
    torch.testing.assert_close(losses["loss"], rows.mean())


def test_one_image_only_is_a_loss_of_zero_not_nan():
    losses = brewclip_loss(make_features(), torch.zeros(4, dtype=torch.long), torch.tensor(2.0), 0.1, identity)
    assert losses["loss"].item() == 0 and losses["effective_negatives"].item() == 0


def test_without_both_channels_the_loss_is_the_whole_outer_loss():
    losses = brewclip_loss(make_features(channels=False), torch.arange(4), torch.tensor(2.0), 0.1, identity)
    assert losses["inner"].item() == 0
    torch.testing.assert_close(losses["loss"], losses["outer"])


def test_gradients_reach_features_and_scale():
    features, scale = make_features(), torch.tensor(2.0, requires_grad=True)
    losses = brewclip_loss(features, torch.arange(4), scale, 0.1, identity)
    losses["loss"].backward()
    assert scale.grad.abs() > 0 and features.image.grad.abs().sum() > 0 and features.acoustic.grad.abs().sum() > 0
    assert not losses["outer"].requires_grad


def test_autocast_does_not_round_the_logits():
    features, ids, scale = make_features(), torch.arange(4), torch.tensor(math.log(100.0))
    exact = brewclip_loss(features, ids, scale, 0.1, identity)["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(brewclip_loss(features, ids, scale, 0.1, identity)["loss"], exact)


def loss_and_gradients(image_ids, channels=True):
    """The loss with its parts, and the gradients of features and scale, of which `image` is not the others' length."""
    torch.manual_seed(1)
    n = len(image_ids)
    image, acoustic, text = (torch.randn(n, 16, requires_grad=True) for _ in range(3))
    scale = torch.tensor(2.5, requires_grad=True)
    features = Features(3 * image, acoustic + text, acoustic, text) if channels else Features(image, text, None, text)
    losses = brewclip_loss(features, image_ids, scale, 0.1, identity)
    losses["loss"].backward()
    used = (image, acoustic, text, scale) if channels else (image, text, scale)
    return losses, [part.grad for part in used]


@pytest.mark.parametrize("channels", [True, False])
@pytest.mark.parametrize("logits_at_once", [1, 37 * 5, 37 * 36])
def test_blocks_of_rows_equal_the_plain_formula(monkeypatch, channels, logits_at_once):
    """1, 5 and 36 of 37 rows at a time; some images come more than once."""
    image_ids = torch.arange(37) % 29
    expected, expected_gradients = loss_and_gradients(image_ids, channels)
    monkeypatch.setattr(losses_module, "_MAX_LOGITS", logits_at_once)
    monkeypatch.setattr(losses_module, "info_nce", None)  # the plain formula is out of reach
    losses, gradients = loss_and_gradients(image_ids, channels)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-5, atol=1e-6)
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-6)


def test_blocks_ignore_autocast_and_skip_unneeded_gradients(monkeypatch):
    features, ids, scale = make_features(), torch.arange(4), torch.tensor(math.log(100.0))
    exact = brewclip_loss(features, ids, scale, 0.1, identity)["loss"]
    monkeypatch.setattr(losses_module, "_MAX_LOGITS", 4)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        torch.testing.assert_close(brewclip_loss(features, ids, scale, 0.1, identity)["loss"], exact)
