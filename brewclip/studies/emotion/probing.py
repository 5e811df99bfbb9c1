"""Training of emotion classifiers: logistic regression on features, and finetuning that starts from it.

Test clips are not used here: regularisation, learning rate and number of epochs are chosen by cross-validation over
training speakers.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional as F

from brewclip.config.probe import ProbeConfig
from brewclip.models.emotion import EmotionClassifier
from brewclip.studies.emotion.clips import Clip, augment

INVERSE_REGULARISATION = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
_NUM_FOLDS = 5
_MAX_ITERATIONS = 2_000
_EMBED_BATCH = 64
_ABSENT_BIAS = -30.0  # of an emotion without training clips: never predicted, but finite


def choose_regularisation(features: NDArray[Any], targets: NDArray[np.int64], speakers: NDArray[Any]) -> float:
    """Choose the regularisation by cross-validation over speakers.

    Source: the rule of one standard error (Breiman et al. 1984, "Classification and Regression Trees", section 3.4.3).

    Args:
        features: (views, n, D); view 0 holds the original clips, the only ones used for validation.
        targets: (n,) class indices.
        speakers: (n,) names.

    Returns:
        C from `INVERSE_REGULARISATION`: the strongest regularisation with an accuracy within one standard error of the
        best, as folds by speaker hardly distinguish neighbouring values.
    """
    accuracies = np.array(
        [
            [_accuracy(features, targets, learn, validate, strength) for strength in INVERSE_REGULARISATION]
            for learn, validate in _folds(targets, speakers)
        ]
    ).reshape(-1, len(INVERSE_REGULARISATION))
    if not len(accuracies):  # no fold to validate on
        return INVERSE_REGULARISATION[0]
    return INVERSE_REGULARISATION[_simplest(accuracies)]


def _accuracy(
    features: NDArray[Any], targets: NDArray[Any], learn: NDArray[Any], validate: NDArray[Any], strength: float
) -> float:
    linear = fit_probe(features[:, learn], targets[learn], strength)
    return float((linear.predict(features[0, validate]) == targets[validate]).mean())


def _simplest(accuracies: NDArray[np.float64]) -> int:
    """Return the first column (folds, choices) whose mean is within one standard error of the best mean."""
    mean = accuracies.mean(axis=0)
    best = int(mean.argmax())
    error = accuracies[:, best].std(ddof=1) / np.sqrt(len(accuracies)) if len(accuracies) > 1 else 0.0
    return int(np.argmax(mean >= mean[best] - error))


def fit_probe(features: NDArray[Any], targets: NDArray[np.int64], strength: float) -> Pipeline:
    """Fit multinomial logistic regression on standardised features (views, n, D); each view has the targets (n,)."""
    linear = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=_MAX_ITERATIONS))
    return linear.fit(np.concatenate(list(features)), np.tile(targets, len(features)))


def _folds(targets: NDArray[np.int64], speakers: NDArray[Any]) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Yield training rows and validation rows of other speakers, for folds with at least two emotions."""
    folds = GroupKFold(min(_NUM_FOLDS, len(np.unique(speakers))))
    for learn, validate in folds.split(targets, groups=speakers):
        if len(np.unique(targets[learn])) > 1:
            yield learn, validate


def targets_of(clips: list[Clip], labels: tuple[str, ...]) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Return the class index and the speaker of each clip."""
    targets = np.array([labels.index(clip.emotion) for clip in clips], np.int64)
    return targets, np.array([clip.speaker for clip in clips])


def views_of(clips: list[Clip], probe: ProbeConfig) -> Iterator[list[Clip]]:
    """Yield the original clips, then their augmented copies."""
    yield clips
    rng = np.random.default_rng(probe.seed)
    for _ in range(probe.augmented_copies):
        yield _augmented(clips, probe, rng)


class Learner:
    """Train and apply an emotion classifier on clips.

    Args:
        classifier: on the device to compute on.
        tokenize: list of n texts -> (n, L) int64.
        labels: the emotions, in the order of the classifier's outputs.
        probe: settings.
    """

    def __init__(
        self,
        classifier: EmotionClassifier,
        tokenize: Callable[[list[str]], Tensor],
        labels: tuple[str, ...],
        probe: ProbeConfig,
    ) -> None:
        self.classifier, self.tokenize, self.labels, self.probe = classifier.eval(), tokenize, labels, probe

    def embed(self, clips: list[Clip]) -> NDArray[np.float32]:
        """Return the features of the channel, (n, D), with the current weights."""
        return self._run(self.classifier.features, clips)

    def embed_views(self, clips: list[Clip]) -> NDArray[np.float32]:
        """Return the features (views, n, D) of training clips and their augmented copies."""
        return np.stack([self.embed(view) for view in views_of(clips, self.probe)])

    def predict(self, clips: list[Clip]) -> NDArray[np.int64]:
        """Return the predicted class index of each clip."""
        return self._run(self.classifier, clips).argmax(axis=1)

    def choose_schedule(self, clips: list[Clip], strength: float) -> tuple[float, int]:
        """Choose learning rate and number of epochs by accuracy in cross-validation over speakers.

        Ties go to the fewest epochs; zero epochs is the probe itself. The weights are restored afterwards.
        """
        targets, speakers = targets_of(clips, self.labels)
        start = {name: value.detach().clone() for name, value in self.classifier.finetuned_parameters().items()}
        features = self.embed_views(clips)
        right = np.zeros((self.probe.max_epochs + 1, len(self.probe.lrs)), np.int64)
        for learn, validate in _folds(targets, speakers):
            linear = fit_probe(features[:, learn], targets[learn], strength)
            for number, lr in enumerate(self.probe.lrs):
                learned = [clips[row] for row in learn]
                for num_epochs in self.iter_finetuning(learned, linear, lr, self.probe.max_epochs):
                    predicted = self.predict([clips[row] for row in validate])
                    right[num_epochs, number] += (predicted == targets[validate]).sum()
                self._restore(start)
        best_epochs, best_lr = np.unravel_index(right.argmax(), right.shape)
        return self.probe.lrs[int(best_lr)], int(best_epochs)

    def _restore(self, start: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in self.classifier.finetuned_parameters().items():
                value.copy_(start[name])

    def finetune(self, clips: list[Clip], linear: Pipeline, lr: float, num_epochs: int) -> None:
        """Run `iter_finetuning` to its end."""
        for _ in self.iter_finetuning(clips, linear, lr, num_epochs):
            pass

    def iter_finetuning(self, clips: list[Clip], linear: Pipeline, lr: float, num_epochs: int) -> Iterator[int]:
        """Train head, prompts and last acoustic layer, starting from a probe; yield the number of epochs done, from 0.

        Source: Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features": first the head alone, then all.

        Args:
            clips: training clips.
            linear: probe that initialises the head.
            lr: learning rate of Adam.
            num_epochs: passes over the clips.
        """
        self._load_head(linear)
        classifier, probe = self.classifier, self.probe
        learning = [*classifier.head.parameters(), *classifier.finetuned_parameters().values()]
        optimizer = torch.optim.Adam(learning, lr=lr)
        rng = np.random.default_rng(probe.seed)
        yield 0
        for epoch in range(1, num_epochs + 1):
            seen = _augmented(clips, probe, rng) if probe.augmented_copies else clips
            classifier.train()
            for rows in np.array_split(rng.permutation(len(clips)), -(-len(clips) // probe.batch_size)):
                batch = [seen[row] for row in rows]
                targets = torch.from_numpy(targets_of(batch, self.labels)[0])
                seeds = torch.from_numpy(rng.integers(2**62, size=len(batch)))
                optimizer.zero_grad()
                logits = classifier(*self._tensors(batch), seeds.to(classifier.head.weight.device))
                F.cross_entropy(logits, targets.to(logits.device)).backward()
                optimizer.step()
            classifier.eval()
            yield epoch

    def _load_head(self, linear: Pipeline) -> None:
        """Load the weights of a probe into the head, with the standardisation folded in."""
        scaler, regression = linear[0], linear[1]
        weight = regression.coef_ / scaler.scale_
        bias = regression.intercept_ - weight @ scaler.mean_
        if len(weight) == 1:  # two emotions: the second against the first
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        head = self.classifier.head
        with torch.no_grad():
            head.weight.zero_()
            head.bias.fill_(_ABSENT_BIAS)
            head.weight[regression.classes_] = torch.from_numpy(weight).to(head.weight)
            head.bias[regression.classes_] = torch.from_numpy(bias).to(head.bias)

    def _run(self, function: Callable[..., Tensor], clips: list[Clip]) -> NDArray[Any]:
        parts = []
        with torch.no_grad():
            for start in range(0, len(clips), _EMBED_BATCH):
                parts.append(function(*self._tensors(clips[start : start + _EMBED_BATCH])))
        return torch.cat(parts).float().cpu().numpy()

    def _tensors(self, clips: list[Clip]) -> tuple[Tensor, Tensor, Tensor]:
        """Return tokens (n, L), frames (n, T, dim) and their mask (n, T) on the classifier's device."""
        device = self.classifier.head.weight.device
        lengths = torch.tensor([len(clip.audio) for clip in clips])
        audio = torch.zeros(len(clips), max(1, int(lengths.max())), clips[0].audio.shape[1])
        for row, clip in enumerate(clips):
            audio[row, : len(clip.audio)] = torch.from_numpy(clip.audio)
        mask = torch.arange(audio.shape[1]) < lengths[:, None]
        return self.tokenize([clip.text for clip in clips]).to(device), audio.to(device), mask.to(device)


def _augmented(clips: list[Clip], probe: ProbeConfig, rng: np.random.Generator) -> list[Clip]:
    return [replace(clip, audio=augment(clip.audio, probe.mask_fraction, probe.noise_level, rng)) for clip in clips]
