"""Table sections, and the page that contains them."""

import re
from dataclasses import replace

import pytest

from brewclip.config import preset
from brewclip.errors import UserError
from brewclip.evaluation.pages import Page, markdown_table
from brewclip.paper.emotion import emotion_rows, judge_emotion
from brewclip.paper.page import (
    corpus_rows,
    count_verdicts,
    draw_table,
    put_section,
    recall_cells,
    recall_metrics,
    table_page,
)
from brewclip.paper.reproduce import write_page
from brewclip.paper.retrieval_tables import SPEECHCLIP, TABLES, judge_table, shown_title
from brewclip.studies.emotion.study import EmotionResult
from tests.paper.results import make_ranking


def test_one_seed_has_its_interval_and_several_their_spread():
    assert re.fullmatch(r"30\.0 \[2\d\.\d, 3\d\.\d\]", recall_cells([make_ranking(60)])[0])
    assert recall_cells([make_ranking(60), make_ranking(80)])[0] == "35.0 (30.0 to 40.0)"
    assert recall_cells([]) == ["-"] * 6


@pytest.mark.parametrize("name", list(TABLES))
def test_a_page_has_tables_claims_and_the_command(name, tmp_path):
    config = preset("scenes_noisy")
    rankings = {"scenes_noisy": {row.title: [make_ranking(60), make_ranking(70)] for row in TABLES[name].rows}}
    config = type(config)(storage=tmp_path.as_uri(), data=config.data, model=config.model)
    verdicts = judge_table(name, rankings)
    page = table_page(name, "python jobs/reproduce.py x", {"scenes_noisy": config}, rankings, verdicts, "test")
    text = page.markdown(level=2)
    assert text.startswith(f"## {TABLES[name].title}\n") and "\n### Claims\n" in text
    assert "```\npython jobs/reproduce.py x\n```" in text
    assert "32.5 (30.0 to 35.0)" in text and "LN-COCO (other data)" in text
    for block in text.split("\n\n"):
        widths = {line.count("|") for line in block.splitlines() if line.startswith("|")}
        assert len(widths) <= 1, "rows are as wide as their header"
    assert text.count("|---") >= 2 and all(one.claim in text for one in verdicts)
    assert draw_table(name, rankings, {"scenes_noisy": config}).startswith(b"\x89PNG")
    metrics = recall_metrics(rankings)
    assert len(metrics) == 6 * len(TABLES[name].rows)
    assert {value for key, value in metrics.items() if key.endswith("speech_to_image/R1")} == {32.5}


def test_the_baseline_says_what_it_hears_with_where_that_is_no_hubert():
    rows = {SPEECHCLIP.title: [make_ranking(60)]}
    for name, title in (("scenes", "SpeechCLIP-P over Whisper's layers"), ("flickr8k", "SpeechCLIP-P")):
        assert corpus_rows("table1", [name], name, rows, preset(name))[1][0] == title
    config = preset("flickr8k")
    config = replace(config, model=replace(config.model, speech_encoder="hubert_base_ls960"))
    assert shown_title(SPEECHCLIP.title, config) == "SpeechCLIP-P over hubert_base_ls960's layers"


def test_published_numbers_and_earlier_systems_are_in_table1():
    rows = {row.title: [make_ranking(60)] for row in TABLES["table1"].rows}
    text = markdown_table(corpus_rows("table1", ["flickr8k"], "flickr8k", rows, preset("flickr8k")))
    assert "| SpeechCLIP-P |" in text and "| 39.1/72.0/83.0 | 54.5/84.5/93.2 |" in text
    assert "| 66.5/89.1/94.6 | 79.3/95.9/98.6 |" in text and "| MILAN (published) | 33.2 |" in text


def test_a_section_is_replaced_and_the_others_stay(tmp_path):
    path = tmp_path / "docs" / "RESULTS.md"
    for name, text in (("table2", ("Two", "first text")), ("table1", ("One",)), ("table2", ("Two", "new"))):
        write_page(path, name, Page(*text))
    page = path.read_text()
    assert page.startswith("# The paper's tables")
    assert page.index("## One") < page.index("## Two") and "first text" not in page and page.count("## Two") == 1
    assert put_section(page, "table1", "## One") == page, "writing the same again changes nothing"
    with pytest.raises(UserError, match="cannot be written"):
        write_page(tmp_path, "table1", Page("x"))


def emotion(accuracy: float, half: float = 4.0) -> EmotionResult:
    return EmotionResult(
        system="x", channel="acoustic", method="probe", accuracy=accuracy, low=accuracy - half, high=accuracy + half,
        majority=50.0, labels=("sad", "calm"), confusion=[[25, 25], [25, 25]], num_train=80,
        by_speaker={"ann": accuracy}, hits=(), split="by speaker",
        inverse_regularisation=(1.0,), lr=(0.0,), num_epochs=(0,),
    )  # fmt: skip


def test_emotion_is_shown_with_the_majority_baseline():
    results = {
        ("brewclip", "acoustic", "probe"): [emotion(80), emotion(90)],
        ("brewclip", "acoustic", "finetune"): [emotion(86), emotion(86)],
        ("pipeline", "text", "probe"): [emotion(50), emotion(51)],
        ("pipeline", "text", "finetune"): [],
    }
    rows = emotion_rows(emotion(75), results)
    assert rows[1] == ["BrewCLIP, acoustic channel", "linear probe", "85.0 (80.0 to 90.0)", "50.0", "56"]
    assert rows[4][2] == "-" and rows[5][2] == "75.0 [71.0, 79.0]"
    found = {one.claim.partition(" (")[0]: one for one in judge_emotion("scenes", results)}
    assert found["a linear probe on the acoustic channel is above the majority class"].verdict == "holds"
    assert found["the pipeline alone is at the majority class"].verdict == "holds"
    assert found["finetuning is above the linear probe"].verdict == "fails"
    assert found["the acoustic channel is above the pipeline alone"].difference.startswith("+34.5 [")
    assert count_verdicts(list(found.values())) == {"holds": 3, "fails": 1}
    assert {one.verdict for one in judge_emotion("scenes", {})} == {"not run"}
