"""Publish results: one folder with JSON, tables, figures and HTML report, and one MLflow run with the same files.

Evaluations, studies and the paper's tables all end here.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from brewclip.config import Config
from brewclip.evaluation.folders import ResultFolder
from brewclip.evaluation.pages import Page
from brewclip.evaluation.systems import System
from brewclip.tracking.provenance import record_origin
from brewclip.tracking.tracker import Tracker, supersede

RESULTS, TABLE, REPORT = "results.json", "table.md", "report.html"


@dataclass(frozen=True)
class Publication:
    """What an evaluation, a study or a table of the paper publishes.

    Attributes:
        kind: kind of the MLflow run.
        record: all results as plain JSON.
        page: tables and texts.
        figures: file name -> PNG.
        report: HTML report; empty: the page with its figures.
        files: further files of the folder, not logged to MLflow.
        params: parameters of the MLflow run.
        metrics: metrics of the MLflow run, each group with its step.
    """

    kind: str
    record: Any
    page: Page
    figures: Mapping[str, bytes] = field(default_factory=dict)
    report: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[tuple[Mapping[str, float], int]] = ()


def publish(config: Config, folder: ResultFolder, publication: Publication) -> str:
    """Write results.json, table.md, report.html and figures to a folder, and log them to the folder's MLflow run.

    Args:
        config: settings of the evaluation; an empty tracking URI logs nothing.
        folder: where to write.
        publication: what to write.

    Returns:
        URL of the folder.
    """
    page = publication.page
    texts = {
        RESULTS: json.dumps(publication.record, indent=1),
        TABLE: page.markdown(),
        REPORT: publication.report or page.html(publication.figures),
    }
    files = {name: text.encode() for name, text in texts.items()}
    folder.write({**publication.files, **publication.figures, **files})
    if folder.parent is None:  # another run of the table replaces it; MLflow's parameters would stay those of the first
        supersede(config.tracking.uri, config.tracking.experiment, folder.storage.url)
    tracker = Tracker(config.tracking.uri, config.tracking.experiment, folder.run_name, folder.storage.url)
    record_origin(tracker, config, publication.kind, sha256=folder.manifest_hashes())
    tracker.log_params(publication.params)
    for metrics, step in publication.metrics:
        tracker.log_metrics(metrics, step)
    for name, text in texts.items():
        tracker.log_text(text, name)
    for name, png in publication.figures.items():
        tracker.log_bytes(png, name)
    tracker.finish()
    return folder.storage.url


def log_to_training_run(system: System, metrics: Mapping[str, float]) -> None:
    """Log metrics to the MLflow run of a system's training, at its step; do nothing if it has none.

    The run is the one that its checkpoint names, in whichever experiment; its status stays.
    """
    tracking = system.config.tracking
    if not system.mlflow_run_id or not metrics:
        return
    tracker = Tracker(tracking.uri, tracking.experiment, system.name, system.url, run_id=system.mlflow_run_id)
    tracker.log_metrics(metrics, system.step)
    tracker.finish(status="")
