"""The benchmark of recall: both ways give the same ranks, and the tiles theirs in any number of them."""

import numpy as np
import pytest
import torch

from brewclip import metrics
from brewclip.benchmarks.recall import Options, make_features, ranks_by_sorting, run
from brewclip.errors import UserError


def test_sorting_gives_the_ranks_that_the_metrics_give() -> None:
    speech, answers, images = make_features(60, 12, 16)
    result = metrics.retrieval(speech, answers, images, np.arange(12))
    expected = [*result.speech_to_image_rank, *result.image_to_speech_rank]
    assert ranks_by_sorting(speech, answers, images).tolist() == expected
    assert len(set(expected)) > 3, "an easy case shows nothing"


@pytest.mark.slow
def test_figures_of_a_short_run(capsys: pytest.CaptureFixture[str]) -> None:
    figures = run(Options(num_speech=300, num_images=50, num_pairs=1, large_speech=400, large_images=40))
    (comparison,) = figures["comparisons"]
    assert comparison["target"] == 10 and comparison["ratio"] > 0 and figures["ranks_that_differ"] == 0
    seconds, memory = figures["limits"]
    assert 0 < seconds["value"] < 60 and 0.05 < memory["value"] < 8
    assert "(all of it)" in capsys.readouterr().out


def test_the_large_case_is_ended_at_its_time() -> None:
    figures = run(
        Options(num_speech=20, num_images=5, num_pairs=1, large_speech=10**6, large_images=10, large_seconds=1)
    )
    assert "(its first 1 s)" in figures["limits"][1]["name"]


def test_options_without_meaning() -> None:
    with pytest.raises(UserError, match=r"--num-images 30 must be 1\.\.20"):
        run(Options(num_speech=20, num_images=30))


@pytest.mark.parametrize("by_numpy", [True, False])
def test_any_tiling_equals_one_tile(monkeypatch: pytest.MonkeyPatch, by_numpy: bool) -> None:
    """Also where features are on a device that numpy cannot see: the counts are torch's then."""
    rng = np.random.default_rng(0)
    images = rng.integers(-1, 2, (37, 3)) + np.array([0.0, 0.0, 1.5])
    answers = np.concatenate([rng.integers(0, 30, 90), np.full(70, 3)])  # 7 without a recording, one with over 64
    speech = rng.integers(-1, 2, (160, 3)) + np.array([0.0, 0.0, 1.5])
    expected = metrics.retrieval(speech, answers, images, np.arange(37))
    monkeypatch.setattr(metrics, "_TILE_SPEECH", 23)
    monkeypatch.setattr(metrics, "_TILE_IMAGES", 5)
    if not by_numpy:
        monkeypatch.setattr(torch.Tensor, "is_cpu", False)
    result = metrics.retrieval(torch.from_numpy(speech).half(), answers, images, np.arange(37))
    for name in ("speech_to_image_rank", "image_to_speech_rank", "image_to_speech_ndcg", "query_image_ids"):
        np.testing.assert_array_equal(getattr(result, name), getattr(expected, name))
