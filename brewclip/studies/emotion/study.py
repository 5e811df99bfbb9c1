"""Emotion recognition study: train classifiers on the features of a system and test them on held-out speakers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from brewclip.config import Config
from brewclip.config.probe import ProbeConfig
from brewclip.errors import UserError
from brewclip.evaluation.systems import System, load_system
from brewclip.intervals import bootstrap_interval
from brewclip.models.emotion import EmotionClassifier, channels_of
from brewclip.studies.emotion.clips import Clip, ClipSplit, load_folds
from brewclip.studies.emotion.layers import LayerFeatures
from brewclip.studies.emotion.linear import choose_regularisation, fit_probe
from brewclip.studies.emotion.probing import Learner, targets_of, views_of

WHISPER = "whisper"
_DEFAULT_C = 1.0  # of scikit-learn


@dataclass(frozen=True)
class EmotionResult:
    """Accuracy and predictions of a classifier on the test clips; shares in percent.

    Attributes:
        system: name of the system, or `whisper`.
        channel: `acoustic` F_A, `speech` F_L, `text` F_T, `pooled` (see `channels_of`), `mean frame` or encoder layers
            of Whisper.
        method: `probe` or `finetune`.
        accuracy, low, high: share of correct predictions with its 95 % bootstrap interval over clips.
        majority: share of the most frequent emotion of the test clips, the accuracy of the best constant prediction.
        labels: the emotions.
        confusion: counts of clips, one row per true emotion, one column per predicted emotion.
        num_train: training clips without augmented copies, of the smallest fold.
        by_speaker: accuracy on each test speaker.
        hits: 1 for each correctly classified test clip, else 0, in their order.
        split: how speakers were divided.
        inverse_regularisation: C of the probe in each fold, chosen on its training speakers.
        lr, num_epochs: schedule of finetuning, chosen likewise; 0 epochs is the probe itself.
    """

    system: str
    channel: str
    method: str
    accuracy: float
    low: float
    high: float
    majority: float
    labels: tuple[str, ...]
    confusion: list[list[int]]
    num_train: int
    by_speaker: dict[str, float]
    hits: tuple[int, ...]
    split: str
    inverse_regularisation: tuple[float, ...]
    lr: tuple[float, ...]
    num_epochs: tuple[int, ...]

    @property
    def num_test(self) -> int:
        """Number of test clips."""
        return sum(map(sum, self.confusion))

    @property
    def test_speakers(self) -> tuple[str, ...]:
        """Names of the test speakers."""
        return tuple(self.by_speaker)

    def record(self) -> dict[str, Any]:
        """Return all fields as plain JSON."""
        return asdict(self) | {"num_test": self.num_test}


@dataclass(frozen=True)
class _Fold:
    """Predictions on the test clips of one fold, and the chosen hyperparameters."""

    predicted: NDArray[np.int64]
    strength: float
    lr: float = 0.0
    num_epochs: int = 0


def probe_system(
    config: Config,
    system: System,
    *,
    channel: str = "",
    method: str = "probe",
    probe: ProbeConfig | None = None,
    folds: Sequence[ClipSplit] = (),
    beside: LayerFeatures | None = None,
) -> EmotionResult:
    """Train an emotion classifier on a system and test it on other speakers, in each fold.

    Args:
        config: storage, data and Whisper settings of the emotion corpus.
        system: from `describe_system`.
        channel: one of `channels_of`; empty is `acoustic` if the system has that channel, else `text`.
        method: `probe` freezes the model, `finetune` trains prompts and last acoustic layer with the head.
        probe: settings; default `ProbeConfig()`.
        folds: from `load_folds`; loaded from storage if empty.
        beside: encoder layers that a probe is given beside the features of the channel.

    Raises:
        UserError: if corpus, checkpoint and channel do not match, or there is nothing to finetune.
    """
    probe = probe or ProbeConfig()
    folds = folds or load_folds(config, probe)
    found = []
    for clips in folds:
        learner = _load_learner(system, channel, method, probe, clips)
        if method == "finetune":
            found.append(_finetune(learner, clips))
        elif beside is None:
            found.append(_probe(clips, learner.embed_views(clips.train), learner.embed))
        else:
            embed = _beside(learner, beside)
            found.append(_probe(clips, embed(clips.train)[None], embed))
    suffix = f" beside {beside.name}" if beside is not None else ""
    return _result((system.name, learner.classifier.channel + suffix, method), folds, found)


def _beside(learner: Learner, layers: LayerFeatures) -> Callable[[list[Clip]], NDArray[Any]]:
    return lambda clips: np.concatenate([learner.embed(clips), layers.embed(clips)], axis=1)


def probe_layers(folds: Sequence[ClipSplit], layers: LayerFeatures) -> EmotionResult:
    """Train a probe on Whisper's encoder layers; they are not augmented."""
    return probe_features(WHISPER, layers.name, folds, ProbeConfig(), layers.embed)


def probe_whisper(folds: Sequence[ClipSplit], probe: ProbeConfig) -> EmotionResult:
    """Train the baseline probe: logistic regression on the mean of Whisper's frames."""
    return probe_features(WHISPER, "mean frame", folds, probe, _mean_frames)


def probe_features(
    system: str,
    channel: str,
    folds: Sequence[ClipSplit],
    probe: ProbeConfig,
    embed: Callable[[list[Clip]], NDArray[Any]],
) -> EmotionResult:
    """Train a probe on arbitrary features.

    Args:
        system, channel: labels in tables.
        folds: from `load_folds`.
        probe: settings.
        embed: n clips -> (n, D).
    """
    found = [_probe(clips, np.stack([embed(view) for view in views_of(clips.train, probe)]), embed) for clips in folds]
    return _result((system, channel, "probe"), folds, found)


def probe_plainly(folds: Sequence[ClipSplit]) -> EmotionResult:
    """Train scikit-learn's logistic regression with default settings on the standardised mean frame."""
    found = []
    for clips in folds:
        targets, _ = targets_of(clips.train, clips.labels)
        linear = fit_probe(_mean_frames(clips.train)[None], targets, _DEFAULT_C)
        found.append(_Fold(linear.predict(_mean_frames(clips.test)), _DEFAULT_C))
    return _result((WHISPER, "mean frame", "scikit-learn's default"), folds, found)


def _load_learner(system: System, channel: str, method: str, probe: ProbeConfig, clips: ClipSplit) -> Learner:
    """Build a classifier on a trained system."""
    model, clip_model = load_system(system, clips.train[0].audio.shape[1])
    try:
        classifier = EmotionClassifier(model, channel or channels_of(model)[0], len(clips.labels))
    except ValueError as error:
        raise UserError(f"{system.name}: {error}") from error
    if method == "finetune" and not classifier.finetuned_parameters():
        raise UserError(f"{system.name} has neither prompts nor an acoustic layer to finetune: use the method probe")
    classifier.to("cuda" if torch.cuda.is_available() else "cpu")
    return Learner(classifier, clip_model.tokenize, clips.labels, probe)


def _probe(clips: ClipSplit, features: NDArray[Any], embed: Callable[[list[Clip]], NDArray[Any]]) -> _Fold:
    """Train on the features (views, n, D) of the training clips and predict on the embedded test clips."""
    targets, speakers = targets_of(clips.train, clips.labels)
    strength = choose_regularisation(features, targets, speakers)
    return _Fold(fit_probe(features, targets, strength).predict(embed(clips.test)), strength)


def _finetune(learner: Learner, clips: ClipSplit) -> _Fold:
    features = learner.embed_views(clips.train)
    targets, speakers = targets_of(clips.train, clips.labels)
    strength = choose_regularisation(features, targets, speakers)
    lr, num_epochs = learner.choose_schedule(clips.train, strength)
    learner.finetune(clips.train, fit_probe(features, targets, strength), lr, num_epochs)
    return _Fold(learner.predict(clips.test), strength, lr, num_epochs)


def channels_to_probe(system: System) -> tuple[str, ...]:
    """Return the channels of a system to probe or to finetune; F_L only where it is the sum F_A + F_T."""
    model = system.config.model
    if model.variant == "brewclip":
        return ("acoustic", "speech") if model.fusion == "sum" else ("acoustic",)
    return ("acoustic",) if model.variant == "acoustic" else ("text",)


def hears(system: System) -> bool:
    """Return whether a system has an acoustic channel."""
    return system.config.model.variant in ("brewclip", "acoustic")


def iter_results(
    config: Config,
    systems: Sequence[System],
    folds: Sequence[ClipSplit],
    layers: LayerFeatures | None,
    probe: ProbeConfig,
    methods: Sequence[str],
) -> Iterator[EmotionResult]:
    """Yield the results of Whisper and of each system: every channel by every method, and more of those that hear.

    Args:
        config: settings of the evaluation.
        systems: to test.
        folds: from `load_folds`.
        layers: from `load_layers`, or None: no encoder layers.
        probe: settings.
        methods: `probe`, `finetune`.
    """
    yield probe_whisper(folds, probe)
    if layers is not None:
        yield probe_layers(folds, layers)
    for system in systems:
        for method in methods:
            if method == "finetune" and not can_finetune(system):
                print(f"emotion {system.name}: nothing to finetune, left out", flush=True)
                continue
            for channel in channels_to_probe(system):
                yield probe_system(config, system, channel=channel, method=method, probe=probe, folds=folds)
        if "probe" in methods and hears(system):
            yield probe_system(config, system, channel="pooled", probe=probe, folds=folds)
            if layers is not None:
                yield probe_system(config, system, channel="acoustic", probe=probe, folds=folds, beside=layers)


def can_finetune(system: System) -> bool:
    """Return whether a system has prompts or an acoustic layer to finetune."""
    model = system.config.model
    return hears(system) or (model.variant == "pipeline" and model.prompt_length > 0)


def _mean_frames(clips: list[Clip]) -> NDArray[np.float32]:
    """Return the mean frame of each clip, (n, dim); zero for a clip without frames."""
    return np.stack([clip.audio.astype(np.float32).sum(axis=0) / max(1, len(clip.audio)) for clip in clips])


def _result(names: tuple[str, str, str], folds: Sequence[ClipSplit], found: Sequence[_Fold]) -> EmotionResult:
    """Combine the predictions of all folds."""
    labels = tuple(sorted({label for clips in folds for label in clips.labels}))
    targets, speakers = targets_of([clip for clips in folds for clip in clips.test], labels)
    named = [clips.labels[number] for clips, fold in zip(folds, found, strict=True) for number in fold.predicted]
    predicted = np.array([labels.index(name) for name in named])
    confusion = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(confusion, (targets, predicted), 1)
    right = targets == predicted
    low, high = bootstrap_interval(right)
    return EmotionResult(
        *names,
        accuracy=100.0 * float(np.mean(right)),
        low=100.0 * low,
        high=100.0 * high,
        majority=100.0 * float(confusion.sum(axis=1).max() / confusion.sum()),
        labels=labels,
        confusion=confusion.tolist(),
        num_train=min(len(clips.train) for clips in folds),
        by_speaker={str(name): 100.0 * float(right[speakers == name].mean()) for name in np.unique(speakers)},
        hits=tuple(right.astype(int).tolist()),
        split=folds[0].how,
        inverse_regularisation=tuple(fold.strength for fold in found),
        lr=tuple(fold.lr for fold in found),
        num_epochs=tuple(fold.num_epochs for fold in found),
    )
