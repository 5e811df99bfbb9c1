"""Table 3 of the paper: emotion recognition with trained systems, compared with the majority baseline."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Final

from brewclip.config import Config
from brewclip.config.probe import ProbeConfig
from brewclip.evaluation.identity import ResultCache, identify
from brewclip.evaluation.intervals_figure import Panel, Value, draw_intervals
from brewclip.evaluation.pages import Page, Section
from brewclip.evaluation.publish import Publication
from brewclip.evaluation.published import EMOTION
from brewclip.evaluation.ranks import Difference
from brewclip.evaluation.systems import System, describe_system
from brewclip.paper.cells import Cell, plan_cells, train_cell
from brewclip.paper.claims import FAILS, HOLDS, NOT_RUN, Verdict
from brewclip.paper.page import claims_section, publish_table
from brewclip.studies.emotion.clips import ClipSplit, load_folds, splits_of
from brewclip.studies.emotion.study import EmotionResult, probe_system, probe_whisper

TITLE: Final = "Table 3: emotion"
_ROWS: Final = (("brewclip", "acoustic", "probe"), ("brewclip", "acoustic", "finetune"),
                ("pipeline", "text", "probe"), ("pipeline", "text", "finetune"))  # fmt: skip
_TITLES: Final = {"brewclip": "BrewCLIP, acoustic channel", "pipeline": "prompted pipeline", "probe": "linear probe",
                  "finetune": "finetuned"}  # fmt: skip
_METHODS: Final = {"probe": "probe", "finetune": "finetuned"}  # keys of `published.EMOTION`
Results = dict[tuple[str, str, str], list[EmotionResult]]


def reproduce_emotion(
    configs: Mapping[str, Config], emotion_corpus: str, seeds: Sequence[int], command: str, *, only_cached: bool = False
) -> Page:
    """Train missing systems, probe them, and publish the table in STORAGE/experiments/table3.

    Args:
        configs: settings of each training corpus.
        emotion_corpus: recordings with emotions and speakers.
        seeds: seeds of the runs.
        command: command shown on the page.
        only_cached: run nothing and log nothing to MLflow, show cached results only.
    """
    sections, panels, verdicts, records = [], [], [], []
    for corpus, config in configs.items():
        own = replace(config, data=replace(config.data, corpus=emotion_corpus))
        baseline, results = _results(config, own, seeds, only_cached)
        title = f"Trained on {corpus}, probed on {emotion_corpus}"
        sections.append(Section(title, _describe(baseline), emotion_rows(baseline, results)))
        panels.append(emotion_panel(title, baseline, results))
        verdicts += judge_emotion(corpus, results)
        records += [one.record() | {"trained_on": corpus} for many in results.values() for one in many]
    page = Page(TITLE, sections=[*sections, claims_section(verdicts)], command=command)
    publication = Publication(
        "table",
        records,
        page,
        figures={"table3.png": draw_intervals(TITLE, panels)} if records else {},
        params={"corpora": ", ".join(configs), "emotions": emotion_corpus, "seeds": ", ".join(map(str, seeds))},
    )
    publish_table(next(iter(configs.values())), "table3", publication, verdicts, only_cached=only_cached)
    return page


def emotion_panel(title: str, baseline: EmotionResult | None, results: Results) -> Panel:
    """Return the accuracy of each row: its interval for one seed, else lowest to highest seed."""
    rows = {f"{_TITLES[variant]}, {_TITLES[method]}": results.get((variant, channel, method), [])
            for variant, channel, method in _ROWS}  # fmt: skip
    rows["logistic regression on Whisper's mean frame"] = [baseline] if baseline is not None else []
    values = [Value(label, *_spread(many)) for label, many in rows.items() if many]
    return Panel(f"{title}: accuracy in %", values, reference=baseline.majority if baseline is not None else None)


def emotion_rows(baseline: EmotionResult | None, results: Results) -> list[list[str]]:
    """Return a header and rows: accuracy over the seeds, majority baseline, published accuracy."""
    rows = [["system", "method", "accuracy", "majority class", "published, RAVDESS"]]
    for key in _ROWS:
        variant, _, method = key
        many = results.get(key, [])
        majority = f"{many[0].majority:.1f}" if many else "-"
        published = f"{EMOTION[variant, _METHODS[method]]:.0f}"
        rows.append([_TITLES[variant], _TITLES[method], _accuracy(many), majority, published])
    if baseline is not None:
        cells = [_accuracy([baseline]), f"{baseline.majority:.1f}", ""]
        rows.append(["logistic regression on Whisper's mean frame", "", *cells])
    return rows


def judge_emotion(corpus: str, results: Results) -> list[Verdict]:
    """Return the verdicts on the claims; the interval over clips spans those of all seeds."""
    full, tuned, text = (results.get(key, []) for key in _ROWS[:3])
    cases = [
        ("a linear probe on the acoustic channel is above the majority class", full, _above_majority(full), False),
        ("the pipeline alone is at the majority class", text, _above_majority(text), True),
        ("finetuning is above the linear probe", tuned, _above(tuned, full), False),
        ("the acoustic channel is above the pipeline alone", full, _above(full, text), False),
    ]
    verdicts = []
    for claim, many, found, level in cases:
        if found is None:
            verdicts.append(Verdict(f"{claim} (section 5, emotion)", corpus, "", "", "", "", NOT_RUN))
            continue
        holds = found.low <= 0 <= found.high if level else found.low > 0
        each = ", ".join(f"{one.accuracy:.1f}" for one in many)
        cells = ("accuracy", str(found), each, "", HOLDS if holds else FAILS)
        verdicts.append(Verdict(f"{claim} (section 5, emotion)", corpus, *cells))
    return verdicts


def _results(
    config: Config, own: Config, seeds: Sequence[int], only_cached: bool
) -> tuple[EmotionResult | None, Results]:
    """Return the baseline and the results of every row; a row is empty if any seed is missing."""
    probe, results = ProbeConfig(), Results()
    folds = [] if only_cached else load_folds(own, probe)
    baseline = _cached_or_run(own, "whisper", [], folds, lambda: probe_whisper(folds, probe))
    for variant, channel, method in _ROWS:
        cells = plan_cells(config, own, variant, "asr", "asr", seeds, probe.test_split)  # type: ignore[arg-type]
        found = [_run(cell, own, channel, method, folds) for cell in cells]
        results[variant, channel, method] = [one for one in found if one is not None] if all(found) else []
    return baseline, results


def _run(cell: Cell, own: Config, channel: str, method: str, folds: list[ClipSplit]) -> EmotionResult | None:
    name, systems = f"{cell.train.run_name}-{channel}-{method}", []
    if folds:
        train_cell(cell)
        systems = [describe_system(own, cell.train.run_url)]
    return _cached_or_run(
        own, name, systems, folds, lambda: probe_system(own, systems[0], channel=channel, method=method, folds=folds)
    )


def _cached_or_run(
    own: Config, name: str, systems: list[System], folds: list[ClipSplit], run: Callable[[], EmotionResult]
) -> EmotionResult | None:
    """Return the cached result of the same identity, else run and cache it; without folds, any cached result."""
    cache, probe = ResultCache(own, f"emotion/{own.data.corpus}"), ProbeConfig()
    if not folds:
        cached = cache.load(name, identity=None)
        return _from_record(json.loads(cached)) if cached is not None else None
    inputs = {"max_audio_frames": own.data.max_audio_frames, "max_bad_fraction": own.data.max_bad_fraction}
    identity = identify(own, systems, splits_of(own, probe), probe=asdict(probe), name=name, **inputs)
    cached = cache.load(name, identity)
    if cached is not None:
        return _from_record(json.loads(cached))
    result = run()
    cache.save(name, identity, json.dumps(result.record()).encode())
    print(f"emotion {name}: {result.accuracy:.1f} %, majority class {result.majority:.1f} %", flush=True)
    return result


def _from_record(record: dict[str, Any]) -> EmotionResult:
    fields: dict[str, Any] = {name: value for name, value in record.items() if name != "num_test"}
    for name in ("labels", "hits", "inverse_regularisation", "lr", "num_epochs"):
        fields[name] = tuple(fields[name])
    return EmotionResult(**fields)


def _describe(baseline: EmotionResult | None) -> str:
    if baseline is None:
        return "Not run."
    return (
        f"{baseline.num_train} clips learned from, {baseline.num_test} of {len(baseline.test_speakers)} other speakers "
        f"tested ({baseline.split}). Accuracy in %, with the 95 % interval over clips for one seed, else lowest to "
        f"highest seed."
    )


def _accuracy(many: Sequence[EmotionResult]) -> str:
    if not many:
        return "-"
    mean, low, high = _spread(many)
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]" if len(many) == 1 else f"{mean:.1f} ({low:.1f} to {high:.1f})"


def _spread(many: Sequence[EmotionResult]) -> tuple[float, float, float]:
    """Return accuracy and its interval for one seed, else the mean, the lowest and the highest accuracy."""
    if len(many) == 1:
        return many[0].accuracy, many[0].low, many[0].high
    values = [one.accuracy for one in many]
    return sum(values) / len(values), min(values), max(values)


def _above_majority(many: Sequence[EmotionResult]) -> Difference | None:
    """Return mean accuracy above the majority baseline; the interval spans those of all seeds."""
    if not many:
        return None
    base = many[0].majority
    mean = sum(one.accuracy for one in many) / len(many)
    low, high = min(one.low for one in many), max(one.high for one in many)
    return Difference(mean - base, low - base, high - base, many[0].num_test)


def _above(ours: Sequence[EmotionResult], theirs: Sequence[EmotionResult]) -> Difference | None:
    """Return the difference of two mean accuracies with an unpaired interval, wider than a paired one."""
    if not ours or not theirs:
        return None
    means = [sum(one.accuracy for one in many) / len(many) / 100 for many in (ours, theirs)]
    counts = [many[0].num_test for many in (ours, theirs)]
    half = 196 * math.sqrt(sum(mean * (1 - mean) / count for mean, count in zip(means, counts, strict=True)))
    difference = 100 * (means[0] - means[1])
    return Difference(difference, difference - half, difference + half, counts[0])
