"""The benchmark of the recipes compares like with like: both ways write the same images and recordings."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from brewclip.benchmarks.recipes import Options, make_corpus, run, write_plainly, write_with_recipe
from brewclip.errors import UserError


def members(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                found[member.name] = file.read()
    return found


def test_both_ways_write_the_same(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "source", 3)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    theirs.mkdir()
    assert write_with_recipe(corpus, ours, 2) == write_plainly(corpus, theirs, 2) == 3
    assert [path.name for path in sorted(theirs.glob("*"))] == [path.name for path in sorted(ours.glob("*.tar"))]
    made, expected = members(ours), members(theirs)
    assert len(made) == 9 and made.keys() == expected.keys()
    for name in made:
        if name.endswith(".jpg"):
            assert made[name] == expected[name]
            assert Image.open(io.BytesIO(made[name])).size == (448, 336)
        elif name.endswith(".flac"):
            (one, one_hz), (other, other_hz) = (soundfile.read(io.BytesIO(data[name])) for data in (made, expected))
            assert one_hz == other_hz == 16_000
            # the scale of 16-bit samples is 32768 with us, 32767 in libsndfile
            np.testing.assert_allclose(one, other, rtol=0, atol=2.5 / 32768)


def test_figures_of_a_short_run(capsys: pytest.CaptureFixture[str]) -> None:
    figures = run(Options(num_samples=4, num_pairs=1, memory_samples=40, memory_samples_per_shard=2))
    (comparison,) = figures["comparisons"]
    assert comparison["target"] == 0.9 and comparison["ratio"] > 0
    assert figures["memory"]["samples"] == 40
    assert [line.split(":")[0].split(" ")[0] for line in capsys.readouterr().out.splitlines()] == ["writing", "memory"]


def test_options_without_meaning() -> None:
    with pytest.raises(UserError, match="--memory-samples 30 compares nothing"):
        run(Options(memory_samples=30))
