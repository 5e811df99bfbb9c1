"""Run an evaluation and publish its results: recall tables, ranks, and an HTML report with queries."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from brewclip.checkpoints.locate import ZERO_SHOT
from brewclip.config import Config, flatten
from brewclip.errors import UserError
from brewclip.evaluation.folders import file_name, open_folder, study_name
from brewclip.evaluation.intervals_figure import Panel, Value, draw_intervals
from brewclip.evaluation.publish import Publication, log_to_training_run, publish
from brewclip.evaluation.ranks import Difference, compare_all
from brewclip.evaluation.recall_tables import TITLES, difference_lines, evaluation_page, text_table
from brewclip.evaluation.report import build_report
from brewclip.evaluation.shares import evaluate_system
from brewclip.evaluation.systems import System, SystemResult
from brewclip.metrics import DIRECTIONS, RECALL_AT

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
    """Evaluate systems on a split, print the tables, and publish results, ranks, tables and report.

    Args:
        config: settings of the evaluation.
        systems: systems with distinct names.
        split: split to evaluate on.
        num_report_queries: queries shown in the report.
        baseline: system to compare the others with; see `choose_baseline`.

    Returns:
        URL of the folder, see `publish`; it also holds ranks/SYSTEM.npz.
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
    publication = Publication(
        "evaluation",
        [_record(one, split, baseline, differences) for one in results],
        evaluation_page(results, config.data.corpus, split, baseline, differences),
        figures={"recall.png": draw_recall(f"{config.data.corpus}, {split}", results, differences, baseline)},
        report=build_report(config, split, results, num_report_queries, baseline=baseline),
        files={f"ranks/{file_name(name)}.npz": ranking.to_bytes() for name, ranking in rankings.items()},
        params={"systems": ", ".join(rankings), "split": split, "baseline": baseline},
        metrics=[(_metrics(one, differences.get(one.system.name, {})), one.system.step) for one in results],
    )
    url = publish(config, folder, publication)
    for one in results:
        record_metrics(one, split)
    print(f"\n{text_table({one.system.name: one.metrics for one in results})}", flush=True)
    print(f"{difference_lines(differences, baseline)}\n\nreport: {url}/report.html", flush=True)
    return url


def record_metrics(one: SystemResult, split: str) -> None:
    """Log metrics to a system's training run in MLflow.

    Their prefix is the split, with the corpus, the transcript and the channel where they are not those of training.
    """
    data = one.system.config.data
    prefix = split if data.corpus == one.system.trained_on else f"{data.corpus}_{split}"
    prefix += "" if data.transcript == "asr" else f"_{data.transcript}"
    prefix += f"_{one.system.channel}" if one.system.channel else ""
    log_to_training_run(one.system, {f"{prefix}/{name}": value for name, value in one.metrics.items()})


def draw_recall(title: str, results: list[SystemResult], differences: Differences, baseline: str) -> bytes:
    """Draw R@10 of each system in both directions, and the differences from the baseline; return a PNG."""
    k = RECALL_AT[-1]
    panels = []
    for direction in DIRECTIONS:
        name = f"{direction}/R{k}"
        values = [
            Value(one.system.name, *(one.metrics[f"{name}{end}"] for end in ("", "_low", "_high"))) for one in results
        ]
        panels.append(Panel(f"{TITLES[direction]}, R@{k} in %", values))
        points = [
            Value(system, cells[name].mean, cells[name].low, cells[name].high) for system, cells in differences.items()
        ]
        panels.append(Panel(f"{TITLES[direction]}, points of R@{k} above {baseline}, paired", points, reference=0.0))
    return draw_intervals(title, panels)


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


def _metrics(one: SystemResult, differences: Mapping[str, Difference]) -> dict[str, float]:
    name = file_name(one.system.name)
    metrics = {f"{name}/{metric}": value for metric, value in one.metrics.items()}
    return metrics | {f"{name}/above_baseline/{metric}": value.mean for metric, value in differences.items()}
