"""Run a study of word errors on rankings and save its results: tables, figure, JSON, MLflow."""

import json
from dataclasses import asdict
from typing import Any

from brewclip.config import Config
from brewclip.evaluation.columns import align
from brewclip.evaluation.folders import EvaluationFolder, file_name, open_folder, study_name
from brewclip.evaluation.ranks import Ranking
from brewclip.evaluation.recall_tables import markdown_table
from brewclip.evaluation.systems import System
from brewclip.evaluation.wer import Utterance
from brewclip.studies.word_errors.results import band_rows, count_rows, draw_effects, record_of, slope_rows
from brewclip.studies.word_errors.study import WordErrorEffect, measure_effect, summarise
from brewclip.tracking.provenance import record_origin
from brewclip.tracking.tracker import Tracker


def study_word_errors(
    config: Config,
    split: str,
    utterances: list[Utterance],
    num_samples: int,
    systems: list[System],
    rankings: list[Ranking],
) -> str:
    """Relate systems' ranks to word errors, print the tables, and save tables, figure and all utterances.

    Args:
        config: settings of the evaluation.
        split: evaluated split.
        utterances: from `load_utterances`.
        num_samples: samples of the split.
        systems: evaluated systems.
        rankings: one per system.

    Returns:
        URL of the folder with word_errors.json, word_errors.md and word_errors.png.
    """
    summary = summarise(utterances, num_samples)
    effects = [measure_effect(ranking, utterances) for ranking in rankings]
    tables = [count_rows(summary), slope_rows(effects), band_rows(effects)]
    record = {
        "split": split,
        "counts": summary,
        "systems": [record_of(one) for one in effects],
        "utterances": [asdict(one) for one in utterances],
    }
    texts = {
        "word_errors.json": json.dumps(record, indent=1),
        "word_errors.md": "\n".join(markdown_table(rows) for rows in tables),
    }
    title = f"{config.data.corpus}, {split}: hits against word errors"
    figure = draw_effects(effects, title)
    folder = open_folder(config, study_name(config, split, "word_errors"), systems, [split])
    folder.write({name: text.encode() for name, text in texts.items()} | {"word_errors.png": figure})
    _record_in_mlflow(config, folder, summary, effects, texts, figure)
    print("\n" + "\n\n".join(align(rows) for rows in tables))
    print(f"\nwritten: {folder.storage.url}/word_errors.{{md,json,png}}", flush=True)
    return folder.storage.url


def _record_in_mlflow(
    config: Config,
    folder: EvaluationFolder,
    summary: dict[str, Any],
    effects: list[WordErrorEffect],
    texts: dict[str, str],
    figure: bytes,
) -> None:
    """Log the study as its own MLflow run."""
    tracking = config.tracking
    tracker = Tracker(tracking.uri, tracking.experiment, folder.run_name, folder.storage.url)
    record_origin(tracker, config, "word_errors")
    tracker.log_params({"systems": ", ".join(one.system for one in effects)})
    tracker.log_metrics({key: value for key, value in summary.items() if isinstance(value, int | float)}, 0)
    for one in effects:
        if one.fit is not None:
            numbers = {"slope": one.fit.slope, "slope_low": one.fit.low, "slope_high": one.fit.high}
            prefix = f"{file_name(one.system)}/wer"
            tracker.log_metrics({f"{prefix}_{key}": value for key, value in numbers.items()}, 0)
    for file, text in texts.items():
        tracker.log_text(text, file)
    tracker.log_bytes(figure, "word_errors.png")
    tracker.finish()
