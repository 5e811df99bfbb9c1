"""The arithmetic of many workers by hand, and a short run of the benchmark on one worker and on two."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from brewclip.benchmarks.gpu_scaling import PAPER, arithmetic_rows, draw_scaling, scaling_tables
from brewclip.benchmarks.scaling import Options, run
from brewclip.benchmarks.traffic import Machine, Tower, Workload, step_time, weak_efficiency
from brewclip.errors import UserError
from brewclip.models.acoustic import AcousticEncoder
from brewclip.models.prompts import SharedPrompts

# A pair of 1,000 operations; features of 2 numbers; 10 trained numbers, 4 of them late; 50 bytes to read.
WORKLOAD = Workload("small", Tower(0, 1, 0), Tower(0, 1, 0), 1000.0, 2, 10, 4, 50)
MACHINE = Machine(flops_per_second=1000.0, bytes_per_second=100.0, latency_seconds=0.01)


def test_a_step_by_hand() -> None:
    """Two workers with 3 pairs each: a gather of 6 * 4 * 2 floats = 192 bytes, of which each sends half."""
    step = step_time(WORKLOAD, MACHINE, 2, 3)
    assert step.compute_seconds == 3.0
    assert step.loss_seconds == pytest.approx(4 * 3 * 2 * 3 * 6 * 2 / 1000)
    assert step.gather_bytes == 96 + 96 and step.reduce_bytes == 40
    assert step.gather_seconds == pytest.approx(1.92 + 0.02)
    assert step.reduce_seconds == pytest.approx(0.16 + 0.02), "the early ones take 0.26 of 1.5 s of backward"
    slow = step_time(WORKLOAD, replace(MACHINE, bytes_per_second=10.0), 2, 3)
    assert slow.reduce_seconds == pytest.approx(2.4 + 0.02 - 1.5 + 1.6 + 0.02), "a slow link is hidden in part"
    assert step.read_bytes_per_second == pytest.approx(6 * 50 / step.seconds)


def test_one_worker_sends_nothing_and_more_are_never_faster_each() -> None:
    alone = step_time(WORKLOAD, MACHINE, 1, 3)
    assert alone.gather_bytes == alone.reduce_bytes == alone.gather_seconds == 0
    shares = [weak_efficiency(WORKLOAD, MACHINE, number, 3) for number in (1, 2, 8, 64)]
    assert shares[0] == 1 and shares == sorted(shares, reverse=True)


def test_a_tower_by_hand() -> None:
    """Width 2, 3 tokens: a block has 12 * 4 weights; the last one keys and values (2 * 4 weights) and one row."""
    block, last = 2 * 48 * 3 + 4 * 9 * 2, 2 * 8 * 3 + 2 * 40 + 4 * 3 * 2
    assert Tower(2, 2, 3).flops() == 2 * (block + last)


def test_trained_parameters_of_the_paper_s_presets() -> None:
    with torch.device("meta"):
        parts = [AcousticEncoder(512, 768, 768), SharedPrompts(4, 768, 1024)]
    counts = [sum(parameter.numel() for parameter in part.parameters()) for part in parts]
    assert {workload.trained_parameters for workload in PAPER} == {1 + sum(counts)}  # and the logit scale
    assert {workload.late_parameters for workload in PAPER} == {counts[1]}


def test_page_and_figure(tmp_path: Path) -> None:
    draw_scaling(str(tmp_path / "scaling.png"))
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
    text = scaling_tables({"one_worker_seconds": 0.1, "bytes_per_second": 3e9})
    assert "| one worker | 100 ms |" in text and "bytes" not in text
    assert text.count("| flickr8k |") == len(arithmetic_rows())


def test_options_without_meaning() -> None:
    with pytest.raises(UserError, match=r"--pairs-per-worker 9 must be 1\.\.8"):
        run(Options(pairs_per_worker=9, num_samples=16))


@pytest.mark.services
def test_figures_of_a_short_run(ray_head) -> None:
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    figures = run(Options(pairs_per_worker=2, num_samples=8, num_steps=1, num_pairs=1, num_runs=1))
    assert os.environ["AWS_ENDPOINT_URL"] == endpoint, "the benchmark has a server of its own, and puts ours back"
    comparisons = figures["comparisons"]
    assert [comparison["target"] for comparison in comparisons] == [0.95, 0.95, 1.8, 0, 0]
    assert min(comparison["ratio"] for comparison in comparisons) > 0
    assert [limit["value"] > 0 for limit in figures["limits"]] == [True] * 3
    assert figures["prediction"]["two_workers_predicted_seconds"] > figures["prediction"]["one_worker_seconds"] / 2
