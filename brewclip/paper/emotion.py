"""Table 3 of the paper: emotion recognition with trained systems, compared with the majority baseline."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Final

from brewclip.config import Config
from brewclip.config.probe import ProbeConfig
from brewclip.data.manifest import open_manifest
from brewclip.data.storage import open_storage
from brewclip.errors import ManifestError, ObjectMissing
from brewclip.evaluation.published import EMOTION
from brewclip.evaluation.ranks import Difference
from brewclip.evaluation.recall_tables import markdown_table
from brewclip.evaluation.systems import describe_system
from brewclip.paper.cells import Cell, plan_cells, train_cell
from brewclip.paper.claims import FAILS, HEADER, HOLDS, NOT_RUN, Verdict
from brewclip.paper.reproduce import count_verdicts
from brewclip.studies.emotion.clips import ClipSplit, load_folds
from brewclip.studies.emotion.study import EmotionResult, probe_system, probe_whisper

TITLE: Final = "Table 3: emotion"
_ROWS: Final = (("brewclip", "acoustic", "probe"), ("brewclip", "acoustic", "finetune"),
                ("pipeline", "text", "probe"), ("pipeline", "text", "finetune"))  # fmt: skip
_TITLES: Final = {"brewclip": "BrewCLIP, acoustic channel", "pipeline": "prompted pipeline", "probe": "linear probe",
                  "finetune": "finetuned"}  # fmt: skip
_METHODS: Final = {"probe": "probe", "finetune": "finetuned"}  # keys of `published.EMOTION`
Results = dict[tuple[str, str, str], list[EmotionResult]]


def reproduce_emotion(
    configs: Mapping[str, Config], emotion_corpus: str, seeds: Sequence[int], command: str, *, keeps_only: bool = False
) -> str:
    """Train missing systems, probe them, and write the page to STORAGE/experiments/table3.

    Args:
        configs: settings of each training corpus.
        emotion_corpus: recordings with emotions and speakers.
        seeds: seeds of the runs.
        command: command shown on the page.
        keeps_only: run nothing, show cached results only.

    Returns:
        The section of the table as Markdown.
    """
    parts, verdicts, records = [f"## {TITLE}\n\n```\n{command}\n```\n"], [], []
    for corpus, config in configs.items():
        own = replace(config, data=replace(config.data, corpus=emotion_corpus))
        baseline, results = _results(config, own, seeds, keeps_only)
        parts.append(f"### Trained on {corpus}, probed on {emotion_corpus}\n\n{_describe(baseline)}\n")
        parts.append(markdown_table(emotion_rows(baseline, results)))
        verdicts += judge_emotion(corpus, results)
        records += [one.record() | {"trained_on": corpus} for many in results.values() for one in many]
    parts += ["### Claims\n", markdown_table([HEADER, *(verdict.cells() for verdict in verdicts)])]
    text = "\n".join(parts)
    storage = open_storage(f"{next(iter(configs.values())).storage.rstrip('/')}/experiments/table3")
    storage.write("results.json", json.dumps(records, indent=1).encode())
    storage.write("table.md", text.encode())
    print(f"\n{text}\ntable3: {count_verdicts(verdicts)}; written to {storage.url}", flush=True)
    return text


def emotion_rows(baseline: EmotionResult | None, results: Results) -> list[list[str]]:
    """Return a header and rows: accuracy over the seeds, majority baseline, published accuracy."""
    rows = [["system", "method", "accuracy", "commonest answer", "published, RAVDESS"]]
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
        ("a linear probe on the acoustic channel is above the commonest answer", full, _above_majority(full), False),
        ("the pipeline alone is at the commonest answer", text, _above_majority(text), True),
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
    config: Config, own: Config, seeds: Sequence[int], keeps_only: bool
) -> tuple[EmotionResult | None, Results]:
    """Return the baseline and the results of every row; a row is empty if any seed is missing."""
    probe, results = ProbeConfig(), Results()
    folds = [] if keeps_only else load_folds(own, probe)
    baseline = _cached_or_run(
        own, "whisper", None if keeps_only else {}, lambda: probe_whisper(folds, probe) if folds else None
    )
    for variant, channel, method in _ROWS:
        cells = plan_cells(config, own, variant, "asr", "asr", seeds, probe.test_split)  # type: ignore[arg-type]
        found = [_run(cell, own, channel, method, folds) for cell in cells]
        results[variant, channel, method] = [one for one in found if one is not None] if all(found) else []
    return baseline, results


def _run(cell: Cell, own: Config, channel: str, method: str, folds: list[ClipSplit]) -> EmotionResult | None:
    if not folds:
        return _cached_or_run(own, f"{cell.train.run_name}-{channel}-{method}", None, lambda: None)
    train_cell(cell)
    system = describe_system(own, cell.train.run_url)
    return _cached_or_run(
        own,
        f"{cell.train.run_name}-{channel}-{method}",
        {"weights_sha256": system.weights_sha256},
        lambda: probe_system(own, system, channel=channel, method=method, folds=folds),
    )


def _cached_or_run(own: Config, name: str, identity: dict[str, Any] | None, run: Any) -> EmotionResult | None:
    """Return the cached result of the same identity, else run and cache it; identity None accepts any cached result."""
    storage = open_storage(f"{own.storage.rstrip('/')}/experiments/emotion/{own.data.corpus}")
    try:
        cached = json.loads(storage.read(f"{name}.json"))
    except ObjectMissing:
        cached = {}
    if cached and "hits" not in cached["result"]:  # written by a version without `hits`
        cached = {}
    if identity is not None:
        # `choice` is how regularisation is chosen, so that results of an earlier rule are not reused.
        identity = identity | {"clips": _clips_sha256(own), "probe": asdict(ProbeConfig()), "choice": "one_error"}
        identity = json.loads(json.dumps(identity))  # as read from storage
    if cached and identity in (None, cached["identity"]):
        return _from_record(cached["result"])
    result = run()
    if result is not None:
        storage.write(f"{name}.json", json.dumps({"identity": identity, "result": result.record()}).encode())
        print(f"emotion {name}: {result.accuracy:.1f} %, commonest answer {result.majority:.1f} %", flush=True)
    return result


def _clips_sha256(own: Config) -> list[str]:
    """Return the hashes of the splits with the clips."""
    hashes = []
    for split in (own.data.train_split, ProbeConfig().test_split):
        try:
            hashes.append(open_manifest(f"{own.features_url}/{split}", retry_seconds=10).sha256)
        except ManifestError:
            continue
    return hashes


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
    if len(many) == 1:
        return f"{many[0].accuracy:.1f} [{many[0].low:.1f}, {many[0].high:.1f}]"
    values = [one.accuracy for one in many]
    return f"{sum(values) / len(values):.1f} ({min(values):.1f} to {max(values):.1f})"


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
