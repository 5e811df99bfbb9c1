"""Verdicts on claims: holds, fails (and in which direction), not tested."""

import pytest

from brewclip.paper.claims import READ, Claim, judge, judge_against_earlier, judge_larger_gap
from brewclip.paper.retrieval_tables import (
    ACOUSTIC,
    FULL,
    PIPELINE,
    SPEECHCLIP,
    TABLES,
    ZERO,
    ZERO_TRUTH,
    judge_table,
    trained_on,
)
from tests.paper.results import make_ranking

ABOVE = Claim("a is above b", "a", "b", (READ,), (1,))
LEVEL = Claim("a and b do not differ", "a", "b", (READ,), (1,), level=True)
NOT_BELOW = Claim("a is not below b", "a", "b", (READ,), (1,), not_below=True)


def verdict_of(claim: Claim, ours: list, theirs: list) -> str:
    (first, second) = judge(claim, "scenes", {"a": ours, "b": theirs}, {})
    assert first.verdict == second.verdict, "both directions hold the same ranks"
    return first.verdict


@pytest.mark.parametrize(
    ("hits", "above", "level", "not_below"),
    [
        (150, "holds", "fails", "holds"),
        (100, "fails: no difference seen", "holds", "holds"),
        (50, "fails: the opposite", "fails", "fails"),
    ],
)
def test_a_claim_holds_by_its_interval(hits, above, level, not_below):
    assert verdict_of(ABOVE, [make_ranking(hits)], [make_ranking(100, seed=1)]) == above
    assert verdict_of(LEVEL, [make_ranking(hits)], [make_ranking(100, seed=1)]) == level
    assert verdict_of(NOT_BELOW, [make_ranking(hits)], [make_ranking(100, seed=1)]) == not_below


def test_each_seed_and_the_paper_are_shown_with_the_pooled_difference():
    ours, theirs = [make_ranking(60), make_ranking(80, seed=1)], [make_ranking(40), make_ranking(50, seed=1)]
    published = {"a": (40.0, 0, 0, 50.0, 0, 0), "b": (30.5, 0, 0, None, 0, 0)}
    first, second = judge(ABOVE, "scenes", {"a": ours, "b": theirs}, published)
    assert first.by_seed == "+10.0, +15.0"
    assert first.difference.startswith("+12.5 [")
    assert (first.published, second.published) == ("+9.5", "")
    assert (first.measure, second.measure) == ("speech -> image R@1", "image -> speech R@1")


def test_a_system_without_seeds_is_compared_with_each():
    (first, _) = judge(ABOVE, "scenes", {"a": [make_ranking(60), make_ranking(80)], "b": [make_ranking(40)]}, {})
    assert first.by_seed == "+10.0, +20.0"


def test_rows_that_were_not_run_give_the_verdict_not_run():
    (only,) = judge(ABOVE, "scenes", {"a": [make_ranking(60)], "b": []}, {})
    assert only.verdict == "not run"


def test_earlier_systems_are_compared_on_their_own_corpora_only():
    text, ours = "zero-shot surpasses them", [make_ranking(100)]
    first, second = judge_against_earlier(text, "flickr8k", ours)  # the best earlier R@1: 39.1 and 54.5
    assert first.difference.startswith("+10.9 [") and first.verdict == "holds"
    assert second.difference.startswith("-4.5 [") and second.verdict.startswith("fails")
    (other,) = judge_against_earlier(text, "scenes", ours)
    assert other.verdict == "not tested: earlier systems were not run on this corpus"


def test_a_larger_gap_is_found_between_corpora():
    wide = ("scenes_narratives", {"a": [make_ranking(1600, 2000)], "b": [make_ranking(800, 2000)]})
    narrow = ("scenes", {"a": [make_ranking(900, 2000)], "b": [make_ranking(800, 2000)]})
    first, _ = judge_larger_gap("gap", wide, narrow, "a", "b", 10)
    assert first.difference.startswith("+35.0 [") and first.verdict == "holds"
    back, _ = judge_larger_gap("gap", narrow, wide, "a", "b", 10)
    assert back.verdict == "fails: the opposite"


def rankings_of(corpora: dict[str, dict[str, int]]) -> dict:
    return {corpus: {title: [make_ranking(hits)] for title, hits in rows.items()} for corpus, rows in corpora.items()}


def test_every_claim_of_a_table_is_listed_for_the_corpora_that_it_is_about():
    rows = {row.title: 100 for row in TABLES["table2"].rows}
    rankings = rankings_of({"scenes": rows, "scenes_noisy": rows | {FULL.title: 140, ACOUSTIC.title: 40}})
    verdicts = judge_table("table2", rankings)
    assert {one.claim for one in verdicts} == {claim.text for claim in TABLES["table2"].claims}
    remedy = [one for one in verdicts if "remedy" in one.claim]
    assert [(one.corpus, one.verdict) for one in remedy] == [("scenes_noisy", "holds")] * 4
    alike = [one for one in verdicts if "do not differ" in one.claim]
    assert {(one.corpus, one.verdict) for one in alike} == {("scenes", "holds")}
    free = [one for one in verdicts if one.claim.startswith("on free speech")]
    assert [one.verdict for one in free] == ["not tested: no corpus for it was asked for"]


def test_prompts_on_narratives_against_zero_shot():
    rows = {ZERO.title: 60, PIPELINE.title: 120, FULL.title: 130}
    verdicts = judge_table("table1", rankings_of({"scenes_narratives": rows}))
    lifted = [one for one in verdicts if one.claim.startswith("prompts lift")]
    assert len(lifted) == 4 and {one.verdict for one in lifted} == {"holds"}
    assert lifted[0].published == "+22.8", "39.1 - 16.3 on LN-COCO"
    assert any(one.verdict.startswith("not tested: earlier systems") for one in verdicts)


def test_the_trained_baseline_is_compared_query_by_query():
    rows = {ZERO.title: 60, PIPELINE.title: 120, FULL.title: 130, SPEECHCLIP.title: 40}
    verdicts = judge_table("table1", rankings_of({"scenes_noisy": rows}))
    above = [one for one in verdicts if one.claim.startswith("BrewCLIP is far above SpeechCLIP-P, trained here")]
    assert len(above) == 4 and {one.verdict for one in above} == {"holds"}
    assert above[0].published == "+34.4", "40.3 - 5.9 on LN-COCO"


def test_ground_truth_matters_more_on_free_speech():
    read, free = {ZERO.title: 500, ZERO_TRUTH.title: 520}, {ZERO.title: 300, ZERO_TRUTH.title: 600}
    rankings = {
        corpus: {title: [make_ranking(hits, 1000)] for title, hits in rows.items()}
        for corpus, rows in (("scenes", read), ("scenes_narratives", free))
    }
    gap = [one for one in judge_table("table4", rankings) if one.claim.startswith("the gap")]
    assert [one.verdict for one in gap] == ["holds", "holds"]


def test_table5_claims_are_about_other_corpora_only():
    rows = {ZERO.title: 100, trained_on("scenes"): 120, trained_on("scenes_narratives"): 50}
    verdicts = judge_table("table5", rankings_of({"scenes": rows, "scenes_narratives": rows}))
    adapts = [one for one in verdicts if "other read captions" in one.claim]
    assert [one.verdict for one in adapts] == ["not tested: no corpus for it was asked for"]
    falls = [one for one in verdicts if "falls below" in one.claim]
    assert [(one.corpus, one.verdict) for one in falls] == [("scenes", "holds")] * 2
    rows = {ZERO.title: 50, trained_on("flickr8k"): 60, trained_on("spoken_coco"): 70}
    both = judge_table("table5", rankings_of({"flickr8k": rows, "spoken_coco": rows}))
    assert {one.corpus for one in both if "other read captions" in one.claim} == {"flickr8k", "spoken_coco"}
