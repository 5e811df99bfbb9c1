"""Embedding of clips by a trained model, and finetuning that starts from a probe.

Test clips are not used here: learning rate and number of epochs are chosen by cross-validation over training speakers.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from brewclip.config.probe import ProbeConfig
from brewclip.models.emotion import EmotionClassifier
from brewclip.studies.emotion.clips import Clip, augment
from brewclip.studies.emotion.linear import LinearProbe, fit_probe, iter_folds

_EMBED_BATCH = 64
_ABSENT_BIAS = -30.0  # of an emotion without training clips: never predicted, but finite


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
        for learn, validate in iter_folds(targets, speakers):
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

    def finetune(self, clips: list[Clip], linear: LinearProbe, lr: float, num_epochs: int) -> None:
        """Run `iter_finetuning` to its end."""
        for _ in self.iter_finetuning(clips, linear, lr, num_epochs):
            pass

    def iter_finetuning(self, clips: list[Clip], linear: LinearProbe, lr: float, num_epochs: int) -> Iterator[int]:
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

    def _load_head(self, linear: LinearProbe) -> None:
        """Load the weights of a probe into the head."""
        head = self.classifier.head
        with torch.no_grad():
            head.weight.zero_()
            head.bias.fill_(_ABSENT_BIAS)
            head.weight[linear.classes] = torch.from_numpy(linear.weight).to(head.weight)
            head.bias[linear.classes] = torch.from_numpy(linear.bias).to(head.bias)

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
