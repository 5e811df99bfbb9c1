"""Word errors: counted by hand, and their effect on recall."""

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from whisper.normalizers import EnglishTextNormalizer

from brewclip.config import Config, DataConfig
from brewclip.data.schema import Sample
from brewclip.errors import UserError
from brewclip.evaluation.ranks import Ranking
from brewclip.metrics import RetrievalResult
from brewclip.studies.logistic import fit_logistic
from brewclip.studies.word_errors.results import band_rows, count_rows, draw_effects, record_of, slope_rows
from brewclip.studies.word_errors.study import (
    Utterance,
    load_utterances,
    make_utterance,
    measure_effect,
    recall_by_band,
    summarise,
)
from tests.data.splits import write_split

NORMALISE = EnglishTextNormalizer()


def utterance(text: str, transcript: str, key: str = "a-0", **facts) -> Utterance:
    found = make_utterance(Sample(key, {"text": text, "transcript": transcript, **facts}), NORMALISE)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("spoken", "heard", "wer"),
    [
        ("Two grey cats, um, sit.", "two gray cats sit", 0.0),  # case, stops, spelling and fillers are no errors
        ("a red car", "a bed car", 1 / 3),
        ("a red car", "a car", 1 / 3),
        ("a red car", "a red car on grass", 2 / 3),
        ("a red car", "", 1.0),
        ("car", "thanks for watching", 3.0),
    ],
)
def test_wer_of_an_utterance(spoken: str, heard: str, wer: float):
    assert utterance(spoken, heard).wer == pytest.approx(wer)


def test_counts_of_a_split():
    silent = {"rejected": "no_speech", "compression_ratio": 0.6, "temperature": 0.0}
    repetitive = {"rejected": "repetitive", "compression_ratio": 9.0, "temperature": 1.0}
    found = summarise(
        [
            utterance("a red car on the grass", "a red car on the grass", rejected=None),
            utterance("a red car on the grass", "a bed car on the glass", compression_ratio=0.8, temperature=0.2),
            utterance("two dogs", "", **silent),
            utterance("two cats", "", **repetitive),
            utterance("a bird", "thank you very much", rejected=""),
            utterance("Hmm.", "thank you"),
            utterance("Hmm.", "", **silent),
        ],
        num_samples=9,
    )
    assert found == {
        "corpus_wer": pytest.approx(100 * (0 + 2 + 2 + 2 + 4) / (6 + 6 + 2 + 2 + 2)),
        "median_wer": pytest.approx(100.0),
        "utterances": 7,
        "without_text": 2,
        "nothing_spoken": 2,
        "exact": 1,
        "silent": 2,
        "rejected": {"no_speech": 2, "repetitive": 1},
        "empty": 2,
        "repetitive": 1,
        "retried": 2,
        "invented": 2,
    }
    rows = dict(map(tuple, count_rows(found)))
    assert rows["transcripts rejected by Whisper's rules"] == "3 (no_speech 2, repetitive 1)"


def test_two_groups_give_the_log_odds_ratio_and_its_known_interval():
    """Of x = 0, 30 of 40 hit; of x = 1, 8 of 20: log(30 * 12 / (10 * 8)), and Woolf's standard error."""
    x = np.repeat([0.0, 1.0], [40, 20])
    yes = np.concatenate([np.arange(40) < 30, np.arange(20) < 8])
    fit = fit_logistic(x, yes)
    error = np.sqrt(1 / 30 + 1 / 10 + 1 / 8 + 1 / 12)
    assert fit.slope == pytest.approx(-np.log(30 * 12 / (10 * 8)), abs=1e-6)
    assert fit.intercept == pytest.approx(np.log(3), abs=1e-6)
    assert (fit.low, fit.high) == pytest.approx((fit.slope - 1.959964 * error, fit.slope + 1.959964 * error), abs=1e-5)
    share, low, high = fit.predict(np.array([0.0, 1.0]))
    np.testing.assert_allclose(share, [0.75, 0.4], atol=1e-6)
    assert (low < share).all() and (share < high).all()


def test_slope_equals_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    x = rng.exponential(0.3, size=300)
    yes = rng.random(300) < 1 / (1 + np.exp(-(1.5 - 4 * x)))
    theirs = LogisticRegression(C=1e10, tol=1e-10, max_iter=1000).fit(x[:, None], yes)
    assert fit_logistic(x, yes).slope == pytest.approx(float(theirs.coef_[0, 0]), rel=1e-4)


@pytest.mark.parametrize(
    ("x", "yes", "message"),
    [
        ([0.0, 0.1, 0.5, 0.9], [1, 1, 0, 0], "no finite slope: the value 0.1 separates every yes from every no"),
        ([0.0, 0.2, 0.2, 0.9], [1, 1, 0, 0], "no finite slope: the value 0.2 separates"),
        ([0.0, 0.1, 0.5, 0.9], [1, 1, 1, 1], "all 4 outcomes are yes"),
        ([0.0, 0.1, 0.5, 0.9], [0, 0, 0, 0], "all 4 outcomes are no"),
        ([0.0, 0.0, 0.0, 0.0], [1, 0, 0, 1], "all 4 values are equal"),
    ],
)
def test_data_without_a_slope(x, yes, message):
    with pytest.raises(ValueError, match=message):
        fit_logistic(np.array(x), np.array(yes, bool))


def test_nearly_separated_data_converge():
    x = np.concatenate([np.linspace(0, 1, 200), [0.52]])
    yes = np.concatenate([np.linspace(0, 1, 200) < 0.5, [True]])
    fit = fit_logistic(x, yes)
    assert np.isfinite([fit.slope, fit.low, fit.high]).all() and fit.high < 0


def test_recall_by_band():
    wer = np.array([0.0, 0.0, 0.05, 0.1, 0.2, 0.6, 0.61, 3.0])
    bands = recall_by_band(wer, np.array([1, 7, 1, 1, 2, 11, 11, 3]))
    assert [band.label for band in bands] == ["0", "up to 10", "10 to 30", "30 to 60", "above 60"]
    assert [band.num_queries for band in bands] == [2, 2, 1, 1, 2]
    assert [band.recall[5][0] for band in bands] == [50.0, 100.0, 100.0, 0.0, 50.0]
    assert bands[0].recall[10] == (100.0, 100.0, 100.0)
    assert bands[0].recall[1][1:] == (0.0, 100.0)
    assert bands[4].mean_wer == pytest.approx(1.805)


def ranking_of(keys: list[str], ranks: np.ndarray, system: str = "one") -> Ranking:
    one = np.ones(1)
    result = RetrievalResult(ranks, one.astype(int), np.ones(len(ranks)), one, np.array(["p"]), 1)
    return Ranking(np.array(keys), result, {"system": system})


def many(count: int = 60) -> list[Utterance]:
    """Utterances of ten words with 0 to 9 of them misheard."""
    words = ["one", "car", "two", "dogs", "three", "birds", "four", "trees", "five", "boats"]
    texts = [" ".join(["wrong"] * (row % 10) + words[row % 10 :]) for row in range(count)]
    return [utterance(" ".join(words), text, key=f"k{row}-0") for row, text in enumerate(texts)]


def test_queries_are_matched_by_key_and_the_effect_has_its_sign():
    spoken = many()
    ranks = np.array([1 if row % 10 < 5 or row % 7 == 0 else 30 for row in range(60)])
    order = np.random.default_rng(0).permutation(60)
    keys = [spoken[row].key for row in order]
    effect = measure_effect(ranking_of([*keys, "unspoken-0"], np.append(ranks[order], 99)), spoken)
    assert len(effect.wer) == 60
    assert effect.fit is not None and effect.fit.high < 0
    again = measure_effect(ranking_of([one.key for one in spoken], ranks), spoken)
    assert again.fit is not None and again.fit.slope == pytest.approx(effect.fit.slope)
    assert record_of(effect)["slope"] == effect.fit.slope
    with pytest.raises(UserError, match="no query of one has a word error rate"):
        measure_effect(ranking_of(["other-0"], np.array([1])), spoken)


def test_tables_and_figure_with_and_without_a_curve():
    spoken = many()
    keys = [one.key for one in spoken]
    ranks = np.array([1 if row % 10 < 5 or row % 7 == 0 else 30 for row in range(60)])
    effects = [
        measure_effect(ranking_of(keys, ranks, "curved"), spoken),
        measure_effect(ranking_of(keys, np.ones(60, int), "perfect"), spoken),
    ]
    assert slope_rows(effects)[2][1] == "no slope: all 60 outcomes are yes"
    assert record_of(effects[1])["slope"] is None
    rows = band_rows(effects)
    assert ["perfect", "30 to 60", "18", *["100.0 [100.0, 100.0]"] * 3] in rows
    assert len({len(row) for row in rows}) == 1
    with Image.open(io.BytesIO(draw_effects(effects, "title"))) as image:
        assert image.format == "PNG" and image.size == (960, 672)


def test_a_split_without_reference_text(tmp_path):
    config = Config(storage=tmp_path.as_uri(), data=DataConfig(corpus="mute"))
    write_split(f"{config.features_url}/test", [[3]])
    with pytest.raises(UserError, match=r"none of the 3 samples .* says what was spoken"):
        load_utterances(config, "test")
