"""Recall tables as text and Markdown."""

from dataclasses import replace

import pytest

from brewclip.config import preset
from brewclip.errors import UserError
from brewclip.evaluation.embed import Embeddings
from brewclip.evaluation.pages import markdown_table
from brewclip.evaluation.ranks import compare_all
from brewclip.evaluation.recall_tables import difference_lines, evaluation_page, recall_rows, text_table
from brewclip.evaluation.run import choose_baseline
from brewclip.evaluation.systems import System, SystemResult
from brewclip.metrics import DIRECTIONS, RECALL_AT
from tests.paper.results import make_ranking


def metrics(value: float) -> dict[str, float]:
    names = [f"{d}/R{k}" for d in ("speech_to_image", "image_to_speech") for k in (1, 5, 10)]
    return {n + end: value + shift for n in names for end, shift in (("", 0.0), ("_low", -1.5), ("_high", 1.5))}


def system_result(corpus: str, variant: str, hits: int) -> SystemResult:
    config = preset(corpus)
    config = replace(config, model=replace(config.model, variant=variant))
    ranking = make_ranking(hits)
    keys = ranking.keys.tolist()
    embeddings = Embeddings(keys, keys, keys, [], ranking.result.speech_to_image_ndcg, keys, ranking.result.ndcg)
    return SystemResult(System(variant, "", config), embeddings, ranking.result, ranking.result.summary(), {})


def page(corpus: str) -> str:
    results = [system_result(corpus, "zero_shot", 20), system_result(corpus, "brewclip", 60)]
    rankings = {one.system.name: one.ranking for one in results}
    differences = compare_all(rankings, "zero_shot", DIRECTIONS, RECALL_AT)
    return evaluation_page(results, corpus, "test", "zero_shot", differences).markdown()


def test_rows_have_recall_with_its_interval():
    header, row = recall_rows({"brewclip": metrics(40.26)})
    assert header == ["system"] + [f"{d} R@{k}" for d in ("speech -> image", "image -> speech") for k in (1, 5, 10)]
    assert row == ["brewclip"] + ["40.3 [38.8, 41.8]"] * 6


def test_markdown():
    assert markdown_table([["a", "b"], ["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |\n"


def test_the_terminal_table_fits_80_columns():
    text = text_table({"zero_shot": metrics(100.0), "brewclip": metrics(5.0)})
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("brewclip") == 2


def test_published_numbers_are_shown_with_ours():
    text = page("spoken_coco")
    row = next(line for line in text.splitlines() if line.startswith("| brewclip"))
    assert row.startswith("| brewclip | 30.0 [") and row.endswith("| 40.7/67.1/77.5 | 54.2/79.6/87.8 |")
    assert "| SpeechCLIP-P (published) | 35.8 | 66.5 | 78.0 | 50.6 | 80.9 | 89.1 |" in text
    assert "other data" not in text


def test_numbers_for_the_scenes_world_are_marked_as_other_data():
    text = page("scenes")
    assert "published, SpokenCOCO (other data), speech -> image R@1/5/10" in text
    assert "SpeechCLIP" not in text


def test_the_page_reports_ranks_and_differences():
    text = page("flickr8k")
    assert "| brewclip | 30.0 [" in text and "median rank" in text and "| 1000 |" in text
    assert "## Difference from zero_shot" in text and "| brewclip | +20.0 [" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert widths == {10, 6, 8}, "rows are as wide as their headers"


def test_differences_for_a_terminal():
    rankings = {"zero_shot": make_ranking(20), "brewclip": make_ranking(60)}
    text = difference_lines(compare_all(rankings, "zero_shot", DIRECTIONS, RECALL_AT), "zero_shot")
    assert "above zero_shot" in text and text.count("+20.0 [") == 4
    assert max(map(len, text.splitlines())) <= 80
    assert difference_lines({}, "zero_shot") == ""


def test_the_baseline_is_zero_shot_where_there_is_one():
    config = preset("scenes")
    systems = [System("a", "", config), System("zero_shot", "", config)]
    assert choose_baseline(systems, "") == "zero_shot"
    assert choose_baseline(systems[:1], "") == "a"
    assert choose_baseline(systems, "a") == "a"
    with pytest.raises(UserError, match="--baseline 'b' is not evaluated: choose one of a, zero_shot"):
        choose_baseline(systems, "b")
