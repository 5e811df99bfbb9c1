"""How much emotion features carry: a classifier on them, tested on speakers that it never heard."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from brewclip.analysis.clips import Clip, ClipSplit, load_clip_split
from brewclip.analysis.probing import Learner, choose_regularisation, fit_probe, targets_of, views_of
from brewclip.analysis.systems import System, load_system
from brewclip.config import Config, UserError
from brewclip.config.probe import ProbeConfig
from brewclip.metrics import bootstrap_interval
from brewclip.models.emotion import EmotionClassifier, channels_of

WHISPER = "whisper"


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
        num_train: clips learned from, without changed copies.
        test_speakers: who was tested on.
        split: how speakers were divided.
        inverse_regularisation: C of the probe, chosen on training speakers.
        lr, num_epochs: of finetuning, chosen on training speakers; 0 epochs are the probe itself.
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
    test_speakers: tuple[str, ...]
    split: str
    inverse_regularisation: float
    lr: float
    num_epochs: int

    @property
    def num_test(self) -> int:
        """Clips tested on."""
        return sum(map(sum, self.confusion))

    def record(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return asdict(self) | {"num_test": self.num_test}


def probe_system(
    config: Config,
    system: System,
    *,
    channel: str = "",
    method: str = "probe",
    probe: ProbeConfig | None = None,
    clips: ClipSplit | None = None,
) -> EmotionResult:
    """Train an emotion classifier on a system and test it on other speakers.

    Args:
        config: names the corpus: storage, data and Whisper.
        system: from `describe_system`.
        channel: `acoustic`, `speech` or `text`; empty takes the sound where the system hears, else the text.
        method: `probe` leaves the model as it is, `finetune` trains prompts and last acoustic layer with the head.
        probe: settings; those of `ProbeConfig` by default.
        clips: from `load_clip_split`, if they are at hand; read from storage by default.

    Raises:
        UserError: if corpus, checkpoint and channel do not fit, or there is nothing to finetune.
    """
    probe = probe or ProbeConfig()
    clips = clips or load_clip_split(config, probe.test_split, probe.transcript)
    model, clip_model = load_system(system, clips.train[0].audio.shape[1])
    try:
        classifier = EmotionClassifier(model, channel or channels_of(model)[0], len(clips.labels))
    except ValueError as error:
        raise UserError(f"{system.name}: {error}") from error
    if method == "finetune" and not classifier.finetuned_parameters():
        raise UserError(f"{system.name} has neither prompts nor an acoustic layer to finetune: use the method probe")
    classifier.to("cuda" if torch.cuda.is_available() else "cpu")
    learner = Learner(classifier, clip_model.tokenize, clips.labels, probe)
    features = learner.embed_views(clips.train)
    targets, speakers = targets_of(clips.train, clips.labels)
    strength = choose_regularisation(features, targets, speakers)
    linear = fit_probe(features, targets, strength)
    names = (system.name, classifier.channel, method)
    if method == "probe":
        return _result(names, clips, linear.predict(learner.embed(clips.test)), strength)
    lr, num_epochs = learner.choose_schedule(clips.train, strength)
    learner.finetune(clips.train, linear, lr, num_epochs)
    return _result(names, clips, learner.predict(clips.test), strength, lr, num_epochs)


def probe_whisper(clips: ClipSplit, probe: ProbeConfig) -> EmotionResult:
    """Train the plain baseline: logistic regression on the mean of Whisper's frames."""
    features = np.stack([_mean_frames(view) for view in views_of(clips.train, probe)])
    targets, speakers = targets_of(clips.train, clips.labels)
    strength = choose_regularisation(features, targets, speakers)
    predicted = fit_probe(features, targets, strength).predict(_mean_frames(clips.test))
    return _result((WHISPER, "mean frame", "probe"), clips, predicted, strength)


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


def _result(
    names: tuple[str, str, str],
    clips: ClipSplit,
    predicted: NDArray[np.int64],
    strength: float,
    lr: float = 0.0,
    num_epochs: int = 0,
) -> EmotionResult:
    targets, speakers = targets_of(clips.test, clips.labels)
    confusion = np.zeros((len(clips.labels), len(clips.labels)), np.int64)
    np.add.at(confusion, (targets, predicted), 1)
    low, high = bootstrap_interval(targets == predicted)
    return EmotionResult(
        *names,
        accuracy=100.0 * float(np.mean(targets == predicted)),
        low=100.0 * low,
        high=100.0 * high,
        majority=100.0 * float(confusion.sum(axis=1).max() / confusion.sum()),
        labels=clips.labels,
        confusion=confusion.tolist(),
        num_train=len(clips.train),
        test_speakers=tuple(sorted(set(speakers.tolist()))),
        split=clips.how,
        inverse_regularisation=strength,
        lr=lr,
        num_epochs=num_epochs,
    )
