"""An evaluation from systems to what is kept of it: metrics in MLflow, JSON, tables, the report."""

import json

from brewclip.analysis.report import build_report
from brewclip.analysis.systems import System, SystemResult, evaluate_system
from brewclip.analysis.tables import markdown_table, recall_rows, text_table
from brewclip.config import Config, flatten
from brewclip.data.storage import open_storage
from brewclip.tracking import Tracker, describe_environment


def evaluate_and_record(config: Config, systems: list[System], split: str, num_report_queries: int) -> str:
    """Evaluate systems on a split, print the table, and keep results, table and report.

    Returns:
        The URL of the folder that holds results.json, table.md and report.html.
    """
    results = []
    for number, system in enumerate(systems, start=1):
        result = evaluate_system(system, split)
        print(f"evaluate {system.name} on {split}: system {number} of {len(systems)} done", flush=True)
        if result.bad_samples:
            print(f"evaluate {system.name}: left out {result.bad_samples}", flush=True)
        results.append(result)
    by_name = {one.system.name: one.metrics for one in results}
    storage = open_storage(evaluation_url(config, split))
    files = {
        "results.json": json.dumps([_record(one, split) for one in results], indent=1),
        "table.md": markdown_table(recall_rows(by_name)),
        "report.html": build_report(config, split, results, num_report_queries),
    }
    for name, text in files.items():
        storage.write(name, text.encode())
    _record_in_mlflow(config, split, results, files)
    print(f"\n{text_table(by_name)}\nreport: {storage.url}/report.html", flush=True)
    return storage.url


def evaluation_url(config: Config, split: str) -> str:
    """Return where the evaluation of a split is kept."""
    return f"{config.storage.rstrip('/')}/evaluations/{config.data.corpus}-{split}-{config.data.transcript}"


def _record(one: SystemResult, split: str) -> dict:
    return {
        "system": one.system.name,
        "url": one.system.url,
        "step": one.system.step,
        "split": split,
        "num_recordings": len(one.embeddings.keys),
        "num_pictures": len(one.embeddings.image_ids),
        "bad_samples": one.bad_samples,
        "metrics": one.metrics,
        "config": flatten(one.system.config),
    }


def _record_in_mlflow(config: Config, split: str, results: list[SystemResult], files: dict[str, str]) -> None:
    """Give each system's run its metrics, and the evaluation a run of its own with table and report."""
    tracking = config.tracking
    suffix = "" if config.data.transcript == "asr" else "_ground_truth"
    for one in results:
        if one.system.mlflow_run_id:
            tracker = Tracker(tracking.uri, tracking.experiment, one.system.name, one.system.url)
            tracker.log_metrics({f"{split}{suffix}/{k}": v for k, v in one.metrics.items()}, one.system.step)
            tracker.finish()
    url = evaluation_url(config, split)
    tracker = Tracker(tracking.uri, tracking.experiment, url.rpartition("/")[2], url)
    tracker.set_tags(describe_environment() | {"brewclip.kind": "evaluation"})
    tracker.log_params({"systems": ", ".join(one.system.name for one in results), "split": split})
    for one in results:
        metrics = {f"{one.system.name}/{name}": value for name, value in one.metrics.items()}
        tracker.log_metrics(metrics, one.system.step)
    for name, text in files.items():
        tracker.log_text(text, name)
    tracker.finish()
