"""Saved ranks of an evaluation, and comparisons computed from them."""

import numpy as np
import pytest

from brewclip.errors import UserError
from brewclip.evaluation.ranks import Ranking, compare, compare_all, compare_with_number
from brewclip.metrics import RetrievalResult
from tests.paper.results import make_ranking


def ranking(ranks: list[int], keys: list[str] | None = None) -> Ranking:
    array = np.array(ranks)
    names = np.array(keys or [f"q{number}" for number in range(len(ranks))])
    return Ranking(names, RetrievalResult(array, array, 1.0 / array, 1.0 / array, names, 50), {"system": "x"})


def test_bytes_round_trip():
    before = ranking([1, 7, 12])
    after = Ranking.from_bytes(before.to_bytes())
    assert after.facts == {"system": "x"} and after.result.num_images == 50
    assert after.keys.tolist() == ["q0", "q1", "q2"]
    assert after.result.summary() == before.result.summary()


def test_queries_are_paired_by_name_whatever_their_order():
    ours, theirs = ranking([1, 20, 1, 20], list("abcd")), ranking([20, 1, 20, 20], list("bcad"))
    found = compare([ours], [theirs], "speech_to_image", 1)
    assert found.mean == pytest.approx(25)  # a is ours alone, c is both
    assert found.num_queries == 4


def test_a_query_that_one_of_them_left_out_is_left_out():
    found = compare([ranking([1, 1, 20], list("abc"))], [ranking([20, 20], list("ac"))], "speech_to_image", 1)
    assert (found.mean, found.num_queries) == (50, 2)
    with pytest.raises(UserError, match="no query in common"):
        compare([ranking([1], ["a"])], [ranking([1], ["b"])], "speech_to_image", 1)


def test_seeds_are_pooled_query_by_query():
    ours = [ranking([1, 20]), ranking([1, 1])]
    found = compare(ours, [ranking([20, 20])], "speech_to_image", 1)
    assert found.mean == pytest.approx(75)
    assert found.low >= 50 - 1e-9, "each query is right with one seed at least"


def test_a_paired_interval_detects_a_small_steady_gain():
    rng = np.random.default_rng(0)
    base = rng.integers(1, 20, 1000)
    better = np.where(rng.random(1000) < 0.05, 1, base)
    found = compare([ranking(better.tolist())], [ranking(base.tolist())], "speech_to_image", 1)
    assert 0 < found.low < found.mean < found.high
    assert str(found).startswith("+")


def test_against_a_published_number():
    found = compare_with_number([make_ranking(100)], 30.0, "speech_to_image", 10)
    assert found.mean == pytest.approx(20) and found.low < 20 < found.high


def test_every_system_but_the_baseline():
    found = compare_all({"a": make_ranking(10), "b": make_ranking(50)}, "a", ("speech_to_image",), (1, 10))
    assert list(found) == ["b"] and set(found["b"]) == {"speech_to_image/R1", "speech_to_image/R10"}
    assert found["b"]["speech_to_image/R1"].mean == pytest.approx(20)
