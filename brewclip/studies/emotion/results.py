"""Format and publish emotion results: accuracy, accuracy by speaker, confusion matrices."""

from collections.abc import Sequence
from dataclasses import asdict

from brewclip.config import Config
from brewclip.config.probe import ProbeConfig
from brewclip.evaluation.folders import file_name, open_folder
from brewclip.evaluation.intervals_figure import Panel, Value, draw_intervals
from brewclip.evaluation.pages import Page, Section
from brewclip.evaluation.publish import Publication, log_to_training_run, publish
from brewclip.evaluation.systems import System
from brewclip.studies.emotion.clips import splits_of
from brewclip.studies.emotion.study import EmotionResult


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


def emotion_page(corpus: str, results: list[EmotionResult]) -> Page:
    """Return the page with tables, confusion matrices and the division of speakers."""
    first = results[0]
    about = (
        f"{first.num_train} clips learned from, {first.num_test} clips of {len(first.test_speakers)} other speakers "
        f"tested: {first.split}. The interval is over clips, not over speakers."
    )
    sections = [
        Section(rows=emotion_rows(results)),
        Section(text="Accuracy on each speaker, in %:", rows=speaker_rows(results)),
    ]
    for one in results:
        chosen = f"C {_listed(one.inverse_regularisation)}"
        chosen += f", {_listed(one.num_epochs)} epochs at {_listed(one.lr)}" if one.method == "finetune" else ""
        text = f"{one.system}, {one.channel}, {one.method} ({chosen}):"
        sections.append(Section(text=text, rows=confusion_rows(one)))
    return Page(f"Emotions of {corpus}", about, sections)


def accuracy_panel(title: str, results: list[EmotionResult]) -> Panel:
    """Return the accuracy of each result with its interval, and a line at the majority baseline."""
    values = [Value(f"{one.system}, {one.channel}, {one.method}", one.accuracy, one.low, one.high) for one in results]
    return Panel(title, values, reference=results[0].majority)


def draw_accuracy(corpus: str, results: list[EmotionResult]) -> bytes:
    """Draw the accuracy of each result; return a PNG."""
    return draw_intervals(f"Emotions of {corpus}", [accuracy_panel("accuracy in %", results)])


def _listed(values: Sequence[float]) -> str:
    """Format the choices of all folds; a single one if all are equal."""
    return ", ".join(f"{value:g}" for value in (values if len(set(values)) > 1 else values[:1]))


def record_emotion(
    config: Config, systems: list[System], results: list[EmotionResult], probe: ProbeConfig, methods: Sequence[str]
) -> str:
    """Print the tables and publish them; accuracies are also logged to the training runs of the systems.

    Args:
        config: settings of the evaluation.
        systems: evaluated systems.
        results: results of the systems and the baseline.
        probe, methods: settings of the classifiers.

    Returns:
        URL of the folder, see `publish`.
    """
    corpus, splits = config.data.corpus, splits_of(config, probe)
    features = [one.channel for one in results]  # without the corpus's recordings there are fewer
    folder = open_folder(
        config, f"{corpus}-emotion", systems, splits, probe=asdict(probe), methods=list(methods), features=features
    )
    steps = {system.name: system.step for system in systems}
    page = emotion_page(corpus, results)
    publication = Publication(
        "emotion",
        [one.record() for one in results],
        page,
        figures={"accuracy.png": draw_accuracy(corpus, results)},
        params={"systems": ", ".join(steps), "speakers": results[0].split},
        metrics=[
            (
                {f"{file_name(one.system)}/{name}": value for name, value in _metrics(one).items()},
                steps.get(one.system, 0),
            )
            for one in results
        ],
    )
    url = publish(config, folder, publication)
    for system in systems:
        own = {name: value for one in results if one.system == system.name for name, value in _metrics(one).items()}
        log_to_training_run(system, {f"emotion/{name}": value for name, value in own.items()})
    print(f"\n{page.terminal()}\n\nwritten: {url}", flush=True)
    return url


def _metrics(one: EmotionResult) -> dict[str, float]:
    prefix = f"{one.method}/{file_name(one.channel)}"
    values = {"accuracy": one.accuracy, "accuracy_low": one.low, "accuracy_high": one.high, "majority": one.majority}
    return {f"{prefix}/{name}": value for name, value in values.items()}
