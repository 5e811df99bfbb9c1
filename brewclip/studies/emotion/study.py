"""How much emotion features carry: a classifier on them, tested on speakers that it never heard."""

from collections.abc import Callable, Sequence
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
from brewclip.studies.emotion.probing import Learner, choose_regularisation, fit_probe, targets_of, views_of

WHISPER = "whisper"
_USUAL_STRENGTH = 1.0  # of scikit-learn


@dataclass(frozen=True)
class EmotionResult:
    """What a classifier made of the test clips; shares are in percent.

    Attributes:
        system: name of the system, or `whisper`.
        channel: `acoustic` F_A, `speech` F_L, `text` F_T, or `mean frame` of Whisper.
        method: `probe` or `finetune`.
        accuracy, low, high: share of right answers with its 95 % bootstrap interval over clips.
        majority: share of the most frequent emotion of the test clips, the best that a constant answer can do.
        labels: the emotions.
        confusion: a row for each true emotion, a column for each predicted one; counts of clips.
        num_train: clips learned from, without changed copies; of several divisions, in the smallest.
        by_speaker: accuracy on each of the speakers tested on.
        hits: 1 for each test clip that was told right, else 0, in their order.
        split: how speakers were divided.
        inverse_regularisation: C of the probe in each division, chosen on its training speakers.
        lr, num_epochs: of finetuning, chosen likewise; 0 epochs are the probe itself.
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
        """Clips tested on."""
        return sum(map(sum, self.confusion))

    @property
    def test_speakers(self) -> tuple[str, ...]:
        """Who was tested on."""
        return tuple(self.by_speaker)

    def record(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return asdict(self) | {"num_test": self.num_test}


@dataclass(frozen=True)
class _Fold:
    """What was predicted for the test clips of one division, and with which choices."""

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
) -> EmotionResult:
    """Train an emotion classifier on a system and test it on other speakers, in each division anew.

    Args:
        config: names the corpus: storage, data and Whisper.
        system: from `describe_system`.
        channel: `acoustic`, `speech` or `text`; empty takes the sound where the system hears, else the text.
        method: `probe` leaves the model as it is, `finetune` trains prompts and last acoustic layer with the head.
        probe: settings; those of `ProbeConfig` by default.
        folds: from `load_folds`, if they are at hand; read from storage by default.

    Raises:
        UserError: if corpus, checkpoint and channel do not fit, or there is nothing to finetune.
    """
    probe = probe or ProbeConfig()
    folds = folds or load_folds(config, probe)
    found = []
    for clips in folds:
        learner = _load_learner(system, channel, method, probe, clips)
        if method == "probe":
            found.append(_probe(clips, learner.embed_views(clips.train), learner.embed))
        else:
            found.append(_finetune(learner, clips))
    return _result((system.name, learner.classifier.channel, method), folds, found)


def probe_whisper(folds: Sequence[ClipSplit], probe: ProbeConfig) -> EmotionResult:
    """Train the plain baseline: logistic regression on the mean of Whisper's frames."""
    return probe_features(WHISPER, "mean frame", folds, probe, _mean_frames)


def probe_features(
    system: str,
    channel: str,
    folds: Sequence[ClipSplit],
    probe: ProbeConfig,
    embed: Callable[[list[Clip]], NDArray[Any]],
) -> EmotionResult:
    """Train a probe on any features.

    Args:
        system, channel: what tables call them.
        folds: from `load_folds`.
        probe: settings.
        embed: n clips -> (n, D).
    """
    found = [_probe(clips, np.stack([embed(view) for view in views_of(clips.train, probe)]), embed) for clips in folds]
    return _result((system, channel, "probe"), folds, found)


def probe_plainly(folds: Sequence[ClipSplit]) -> EmotionResult:
    """Train what anyone would type: scikit-learn's logistic regression as it comes, on the standardised mean frame."""
    found = []
    for clips in folds:
        targets, _ = targets_of(clips.train, clips.labels)
        linear = fit_probe(_mean_frames(clips.train)[None], targets, _USUAL_STRENGTH)
        found.append(_Fold(linear.predict(_mean_frames(clips.test)), _USUAL_STRENGTH))
    return _result((WHISPER, "mean frame", "scikit-learn's default"), folds, found)


def _load_learner(system: System, channel: str, method: str, probe: ProbeConfig, clips: ClipSplit) -> Learner:
    """Return a classifier on the system as it was trained."""
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
    """Learn from the features (views, n, D) of the training clips, and predict what is embedded of the test clips."""
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
    """Return what of a system is worth probing: the sound, and its sum with the text; or the text alone."""
    return {"brewclip": ("acoustic", "speech"), "acoustic": ("acoustic",)}.get(system.config.model.variant, ("text",))


def can_finetune(system: System) -> bool:
    """Return whether a system has prompts or an acoustic layer."""
    model = system.config.model
    return model.variant in ("brewclip", "acoustic") or (model.variant == "pipeline" and model.prompt_length > 0)


def _mean_frames(clips: list[Clip]) -> NDArray[np.float32]:
    """Return the mean frame of each clip (n, dim); zero for a clip without frames."""
    return np.stack([clip.audio.astype(np.float32).sum(axis=0) / max(1, len(clip.audio)) for clip in clips])


def _result(names: tuple[str, str, str], folds: Sequence[ClipSplit], found: Sequence[_Fold]) -> EmotionResult:
    """Put the test clips of all divisions together."""
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
