"""The table of a sweep names the best trial first and says why the others ended; the figures are whole."""

import csv
import io

import numpy as np
import pytest
from PIL import Image

from tune.figures import draw_figures
from tune.results import TrialRow, best_trial, markdown_table, table_files, text_table
from tune.spaces import SPACES

METRIC = "dev/speech_to_image/R1"


def row(name, outcome, step, best, alpha=0.1, prompts=4, lr=1e-3, problem=""):
    params = {"loss.alpha": alpha, "model.prompt_length": prompts, "optim.peak_lr": lr}
    curve = {} if best is None else {at: best * at / step for at in range(20, step + 1, 20)}
    return TrialRow(name, params, outcome, step, best, problem, curve)


ROWS = [
    row("s-1", "stopped_early", 20, 30.0, alpha=0, prompts=8),
    row("s-2", "finished", 80, 62.0, lr=0.00123456),
    row("s-3", "failed", 0, None, problem="the gradient is nan at step 4: lower --optim.peak-lr"),
    row("s-4", "finished", 80, 62.0, alpha=0.5, prompts=0, lr=3e-5),
]


def test_the_best_comes_first_and_failures_last_with_their_cause():
    lines = text_table(ROWS, METRIC).splitlines()
    assert [line.split()[0] for line in lines] == ["trial", "s-2", "s-4", "s-1", "s-3"]
    assert lines[1].split()[1:] == ["0.1", "4", "0.00123", "62.0", "80", "finished"]
    assert lines[4].endswith("failed: the gradient is nan at step 4: lower --optim.peak-lr")
    assert best_trial(ROWS).name == "s-2"  # the first of equal ones
    assert best_trial(ROWS[2:3]) is None


def test_the_files_say_the_same():
    files = table_files(ROWS, METRIC)
    rows = list(csv.DictReader(io.StringIO(files["trials.csv"])))
    assert [one["trial"] for one in rows] == ["s-2", "s-4", "s-1", "s-3"]
    assert float(rows[0]["optim.peak_lr"]) == 0.00123456
    assert rows[3][METRIC] == ""
    assert markdown_table(ROWS, METRIC).splitlines()[2].startswith("| s-2 | 0.1 | 4 | 0.00123 | 62.0 |")


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1]], ids=["four", "one"])
def test_nothing_is_clipped_in_the_figures(rows):
    figures = draw_figures(rows, SPACES["quick"], METRIC)
    assert set(figures) == {"parallel_coordinates.png", "recall_by_parameter.png", "early_stopping.png"}
    for name, data in figures.items():
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
        border = np.concatenate(
            [pixels[:3].ravel(), pixels[-3:].ravel(), pixels[:, :3].ravel(), pixels[:, -3:].ravel()]
        )
        assert border.min() == 255, name
        assert pixels.min() < 100, name


def test_without_an_evaluation_there_is_no_figure():
    assert draw_figures(ROWS[2:3], SPACES["quick"], METRIC) == {}
