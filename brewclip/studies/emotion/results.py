"""Format and save emotion results: tables, confusion matrices, JSON, MLflow."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from brewclip.config import Config
from brewclip.config.probe import ProbeConfig
from brewclip.evaluation.columns import align
from brewclip.evaluation.folders import file_name, open_folder
from brewclip.evaluation.recall_tables import markdown_table
from brewclip.evaluation.systems import System
from brewclip.studies.emotion.clips import splits_of
from brewclip.studies.emotion.study import EmotionResult
from brewclip.tracking.provenance import record_origin
from brewclip.tracking.tracker import Tracker


def emotion_rows(results: list[EmotionResult]) -> list[list[str]]:
    """Return a header and one row per result: accuracy with interval, and the majority baseline."""
    header = ["system", "features", "method", "accuracy in % [95 %]", "majority in %"]
    return [header] + [
        [
            one.system,
            one.channel,
            one.method,
            f"{one.accuracy:.1f} [{one.low:.1f}, {one.high:.1f}]",
            f"{one.majority:.1f}",
        ]
        for one in results
    ]


def speaker_rows(results: list[EmotionResult]) -> list[list[str]]:
    """Return a header and one row per result: accuracy on each test speaker."""
    speakers = results[0].test_speakers
    return [["system", "features", "method", *speakers]] + [
        [one.system, one.channel, one.method, *(f"{one.by_speaker[name]:.1f}" for name in speakers)] for one in results
    ]


def confusion_rows(result: EmotionResult) -> list[list[str]]:
    """Return the confusion matrix as a header and one row per true emotion."""
    header = ["true \\ predicted", *result.labels]
    return [header] + [[label, *map(str, row)] for label, row in zip(result.labels, result.confusion, strict=True)]


def emotion_text(results: list[EmotionResult], *, markdown: bool = False) -> str:
    """Format tables, confusion matrices and the division of speakers."""
    layout = markdown_table if markdown else align
    first = results[0]
    about = (
        f"{first.num_train} clips learned from, {first.num_test} clips of {len(first.test_speakers)} other speakers "
        f"tested: {first.split}. The interval is over clips, not over speakers."
    )
    parts = [about, layout(emotion_rows(results)), "Accuracy on each speaker, in %:", layout(speaker_rows(results))]
    for one in results:
        chosen = f"C {_listed(one.inverse_regularisation)}"
        chosen += f", {_listed(one.num_epochs)} epochs at {_listed(one.lr)}" if one.method == "finetune" else ""
        parts.append(f"{one.system}, {one.channel}, {one.method} ({chosen}):")
        parts.append(layout(confusion_rows(one)))
    return "\n\n".join(parts) + "\n"


def _listed(values: Sequence[float]) -> str:
    """Format the choices of all folds; a single one if all are equal."""
    return ", ".join(f"{value:g}" for value in (values if len(set(values)) > 1 else values[:1]))


def record_emotion(
    config: Config, systems: list[System], results: list[EmotionResult], probe: ProbeConfig, methods: Sequence[str]
) -> str:
    """Write emotion.json and emotion.md, and log accuracies to MLflow.

    Args:
        config: settings of the evaluation.
        systems: evaluated systems; metrics are also logged to their training runs in MLflow.
        results: results of the systems and the baseline.
        probe, methods: settings of the classifiers.

    Returns:
        URL of the folder; see `open_folder`.
    """
    folder = open_folder(
        config,
        f"{config.data.corpus}-emotion",
        systems,
        splits_of(config, probe),
        probe=asdict(probe),
        methods=list(methods),
    )
    files = {
        "emotion.json": json.dumps([one.record() for one in results], indent=1),
        "emotion.md": emotion_text(results, markdown=True),
    }
    folder.write({name: text.encode() for name, text in files.items()})
    tracking = config.tracking
    for system in systems:
        own = {k: v for one in results if one.system == system.name for k, v in _metrics(one).items()}
        if system.mlflow_run_id and own:
            tracker = Tracker(tracking.uri, tracking.experiment, system.name, system.url.partition("/checkpoints/")[0])
            tracker.log_metrics({f"emotion/{name}": value for name, value in own.items()}, system.step)
            tracker.finish()
    tracker = Tracker(tracking.uri, tracking.experiment, folder.run_name, folder.storage.url)
    record_origin(tracker, config, "emotion")
    tracker.log_params({"systems": ", ".join(system.name for system in systems), "speakers": results[0].split})
    steps = {system.name: system.step for system in systems}
    for one in results:
        metrics = {f"{file_name(one.system)}/{name}": value for name, value in _metrics(one).items()}
        tracker.log_metrics(metrics, steps.get(one.system, 0))
    for name, text in files.items():
        tracker.log_text(text, name)
    tracker.finish()
    return folder.storage.url


def _metrics(one: EmotionResult) -> dict[str, float]:
    prefix = f"{one.method}/{one.channel.replace(' ', '_')}"
    values = {"accuracy": one.accuracy, "accuracy_low": one.low, "accuracy_high": one.high, "majority": one.majority}
    return {f"{prefix}/{name}": value for name, value in values.items()}
