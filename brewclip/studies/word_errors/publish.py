"""Run a study of word errors on rankings and publish it: counts, slopes, recall by band, a figure, all utterances."""

from dataclasses import asdict

from brewclip.config import Config
from brewclip.evaluation.folders import file_name, open_folder, study_name
from brewclip.evaluation.pages import Page, Section
from brewclip.evaluation.publish import Publication, publish
from brewclip.evaluation.ranks import Ranking
from brewclip.evaluation.systems import System
from brewclip.evaluation.wer import Utterance
from brewclip.studies.word_errors.results import band_rows, count_rows, draw_effects, record_of, slope_rows
from brewclip.studies.word_errors.study import WordErrorEffect, measure_effect, summarise


def study_word_errors(
    config: Config,
    split: str,
    utterances: list[Utterance],
    num_samples: int,
    systems: list[System],
    rankings: list[Ranking],
) -> str:
    """Relate systems' ranks to word errors, print the tables, and publish them.

    Args:
        config: settings of the evaluation.
        split: evaluated split.
        utterances: from `load_utterances`.
        num_samples: samples of the split.
        systems: evaluated systems.
        rankings: one per system.

    Returns:
        URL of the folder, see `publish`; results.json lists all utterances.
    """
    summary = summarise(utterances, num_samples)
    effects = [measure_effect(ranking, utterances) for ranking in rankings]
    title = f"{config.data.corpus}, {split}: hits against word errors"
    page = Page(
        title, sections=[Section(rows=rows) for rows in (count_rows(summary), slope_rows(effects), band_rows(effects))]
    )
    record = {
        "split": split,
        "counts": summary,
        "systems": [record_of(one) for one in effects],
        "utterances": [asdict(one) for one in utterances],
    }
    counts = {key: float(value) for key, value in summary.items() if isinstance(value, int | float)}
    publication = Publication(
        "word_errors",
        record,
        page,
        figures={"word_errors.png": draw_effects(effects, title)},
        params={"systems": ", ".join(one.system for one in effects)},
        metrics=[(counts, 0), *((_slopes(one), 0) for one in effects)],
    )
    url = publish(config, open_folder(config, study_name(config, split, "word_errors"), systems, [split]), publication)
    print(f"\n{page.terminal()}\n\nwritten: {url}", flush=True)
    return url


def _slopes(one: WordErrorEffect) -> dict[str, float]:
    """Return the slope and its interval as metrics; none if there is no slope."""
    if one.fit is None:
        return {}
    prefix = f"{file_name(one.system)}/wer_slope"
    return {prefix: one.fit.slope, f"{prefix}_low": one.fit.low, f"{prefix}_high": one.fit.high}
