"""Run an evaluation and save its results: metrics in MLflow, JSON, tables, ranks, HTML report."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from brewclip.checkpoints.locate import ZERO_SHOT
from brewclip.config import Config, flatten
from brewclip.errors import UserError
from brewclip.evaluation.folders import EvaluationFolder, file_name, open_folder, study_name
from brewclip.evaluation.ranks import Difference, compare_all
from brewclip.evaluation.recall_tables import difference_lines, evaluation_page, text_table
from brewclip.evaluation.report import build_report
from brewclip.evaluation.systems import System, SystemResult, evaluate_system
from brewclip.metrics import DIRECTIONS, RECALL_AT
from brewclip.tracking.provenance import record_origin
from brewclip.tracking.tracker import Tracker

Differences = Mapping[str, Mapping[str, Difference]]


def choose_baseline(systems: list[System], name: str) -> str:
    """Return the system to compare the others with: the named one, else zero-shot, else the first.

    Raises:
        UserError: if no system has this name.
    """
    names = [system.name for system in systems]
    if name and name not in names:
        raise UserError(f"--baseline {name!r} is not evaluated: choose one of {', '.join(names)}")
    return name or (ZERO_SHOT if ZERO_SHOT in names else names[0])


def evaluate_and_record(
    config: Config, systems: list[System], split: str, num_report_queries: int, baseline: str = ""
) -> str:
    """Evaluate systems on a split, print the tables, and save results, ranks, tables and report.

    Args:
        config: settings of the evaluation.
        systems: systems with distinct names.
        split: split to evaluate on.
        num_report_queries: queries shown in the report.
        baseline: system to compare the others with; see `choose_baseline`.

    Returns:
        URL of the folder with results.json, table.md, report.html and ranks/SYSTEM.npz; see `open_folder`.
    """
    baseline = choose_baseline(systems, baseline)
    settings = {"baseline": baseline, "num_report_queries": num_report_queries}
    folder = open_folder(config, study_name(config, split), systems, [split], **settings)
    results = []
    for number, system in enumerate(systems, start=1):
        result = evaluate_system(system, split)
        print(f"evaluate {system.name} on {split}: system {number} of {len(systems)} done", flush=True)
        if result.truncation.truncated_tokens or result.truncation.truncated_frames:
            print(f"evaluate {system.name}: {result.truncation}", flush=True)
        results.append(result)
    rankings = {one.system.name: one.ranking for one in results}
    differences = compare_all(rankings, baseline, DIRECTIONS, RECALL_AT)
    records = [_record(one, split, baseline, differences) for one in results]
    files = {
        "results.json": json.dumps(records, indent=1),
        "table.md": evaluation_page(results, config.data.corpus, split, baseline, differences),
        "report.html": build_report(config, split, results, num_report_queries, baseline=baseline),
    }
    ranks = {f"ranks/{file_name(name)}.npz": ranking.to_bytes() for name, ranking in rankings.items()}
    folder.write(ranks | {name: text.encode() for name, text in files.items()})
    for one in results:
        record_metrics(one, split)
    _record_evaluation(config, folder, results, differences, baseline, files)
    print(f"\n{text_table({one.system.name: one.metrics for one in results})}", flush=True)
    print(f"{difference_lines(differences, baseline)}\n\nreport: {folder.storage.url}/report.html", flush=True)
    return folder.storage.url


def record_metrics(one: SystemResult, split: str) -> None:
    """Log metrics to a system's training run in MLflow, prefixed by the split, and by the corpus if it differs."""
    system, tracking = one.system, one.system.config.tracking
    if not system.mlflow_run_id:
        return
    data = system.config.data
    prefix = split if data.corpus == system.trained_on else f"{data.corpus}_{split}"
    prefix += "" if data.transcript == "asr" else f"_{data.transcript}"
    tracker = Tracker(tracking.uri, tracking.experiment, system.name, _run_url(system))
    tracker.log_metrics({f"{prefix}/{name}": value for name, value in one.metrics.items()}, system.step)
    tracker.finish()


def _run_url(system: System) -> str:
    """Return the URL of a checkpoint's run, which identifies it in MLflow."""
    return system.url.rstrip("/").partition("/checkpoints/")[0]


def _record(one: SystemResult, split: str, baseline: str, differences: Differences) -> dict[str, Any]:
    own = differences.get(one.system.name, {})
    return {
        "system": one.system.name,
        "url": one.system.url,
        "step": one.system.step,
        "split": split,
        "num_recordings": len(one.embeddings.keys),
        "num_images": len(one.embeddings.image_ids),
        "bad_samples": one.bad_samples,
        "truncation": asdict(one.truncation),
        "metrics": one.metrics,
        "baseline": baseline,
        "above_baseline": {name: [value.mean, value.low, value.high] for name, value in own.items()},
        "config": flatten(one.system.config),
    }


def _record_evaluation(
    config: Config,
    folder: EvaluationFolder,
    results: list[SystemResult],
    differences: Differences,
    baseline: str,
    files: dict[str, str],
) -> None:
    """Log the evaluation as its own MLflow run, with table and report."""
    tracking = config.tracking
    tracker = Tracker(tracking.uri, tracking.experiment, folder.run_name, folder.storage.url)
    ((split, sha256),) = folder.identity["splits"].items()
    record_origin(tracker, config, "evaluation", sha256={"manifest": sha256})
    names = ", ".join(one.system.name for one in results)
    tracker.log_params({"systems": names, "split": split, "baseline": baseline})
    for one in results:
        name = file_name(one.system.name)
        own = differences.get(one.system.name, {})
        tracker.log_metrics({f"{name}/{metric}": value for metric, value in one.metrics.items()}, one.system.step)
        tracker.log_metrics({f"{name}/above_baseline/{k}": value.mean for k, value in own.items()}, one.system.step)
    for file, text in files.items():
        tracker.log_text(text, file)
    tracker.finish()
