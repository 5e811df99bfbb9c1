"""The benchmark of the loss compares like with like, and a worker's share is what it says."""

import pytest
import torch

from brewclip import losses
from brewclip.benchmarks.loss import Options, run, step
from brewclip.errors import UserError


def test_both_ways_compute_the_same() -> None:
    for ours, theirs in zip(step(40, 40, 8, plain=False), step(40, 40, 8, plain=True), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_plain_way_is_plain_and_the_other_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    plain_formula = losses.info_nce
    monkeypatch.setattr(losses, "info_nce", lambda *parts: seen.append(parts[3].shape) or plain_formula(*parts))
    step(6, 10, 4, plain=False)
    assert not seen
    step(6, 10, 4, plain=True)
    assert seen == [(6, 10)] * 4


@pytest.mark.slow
def test_figures_of_a_short_run() -> None:
    figures = run(Options(num_rows=64, num_dimensions=8, num_pairs=1, large_own_rows=16, large_all_rows=128))
    (comparison,) = figures["comparisons"]
    assert comparison["unit"] == "rows/s" and comparison["ratio"] > 0
    difference, plain, chunks, large = figures["limits"]
    assert difference["value"] <= 1e-5 == difference["most"]
    assert min(plain["value"], chunks["value"], large["value"]) > 0.05
    assert "16 of 128 rows" in large["name"]


def test_options_without_meaning() -> None:
    with pytest.raises(UserError, match="--large-own-rows 300"):
        run(Options(large_own_rows=300, large_all_rows=200))
