"""The benchmark of the index: both searches find the same, and both ways of indexing give the same vectors."""

import numpy as np
import pytest

from brewclip import load
from brewclip.benchmarks.index import Options, make_index, make_photographs, plain_encoder, run

pytestmark = pytest.mark.slow


def test_figures_of_a_short_run() -> None:
    pytest.importorskip("faiss")
    figures = run(Options(num_images=300, num_dimensions=16, queries=(1, 5), num_files=2, clip="scenes", num_pairs=1))
    assert [comparison["target"] for comparison in figures["comparisons"]] == [1, 1, 1.5]
    assert all(comparison["ratio"] > 0 for comparison in figures["comparisons"])
    assert figures["results_that_differ"] == 0
    seconds, memory = figures["limits"]
    assert 0 < seconds["value"] < 60 and 0.05 < memory["value"] < 8


def test_the_plain_way_gives_the_vectors_of_the_index(tmp_path) -> None:
    paths = make_photographs(tmp_path / "images", 2)
    index, report = load("zero_shot", clip="scenes").build_index(paths, tmp_path / "index")
    assert report.num_added == 2
    encode = plain_encoder("scenes")
    names = [index.entry(row).name for row in range(2)]
    for path in paths:
        assert index.vector(names.index(str(path))) @ encode(path) == pytest.approx(1, abs=2e-3)


def test_rows_are_of_unit_length(tmp_path) -> None:
    index = make_index(tmp_path / "index", 20, 8)
    assert np.linalg.norm(np.asarray(index.vectors, np.float32), axis=1) == pytest.approx(np.ones(20), abs=2e-3)
    assert index.entry(7).name == "/photos/0000/IMG_0007.jpg"
