"""Choice of the weights of a fusion on dev: how much of the adapter, and how much of the acoustic channel.

Both are chosen by the mean of R@1 and R@10 in both directions. Of equal ones the smaller is taken; 0 is always a
candidate, so a channel that does not help on dev is left out, and the result is the text alone.
"""

from dataclasses import replace
from itertools import product

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from brewclip.evaluation.embed import Embeddings
from brewclip.metrics import DIRECTIONS
from brewclip.models.fusion import fuse

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)
_MOST_IMAGES = 1000  # of dev that the choice looks at: 5,000 recordings of them take seconds
_LIMITS = (1, 10)


def choose_weights(dev: Embeddings) -> dict[str, Tensor]:
    """Choose the weights of a model by its channels on dev.

    First the strength of the adapter, by the text alone; then, with that text, both weights of the acoustic channel.

    Args:
        dev: with channels.

    Returns:
        Values of `BrewCLIP.chosen_weights`: `clip.strength`, a scalar, and `fusion.weights`, (2,).
    """
    assert dev.channels is not None
    task = _Task(dev)
    strength = max(STRENGTHS, key=lambda value: (task.score(task.text(value)), -value))
    weights = (0.0, 0.0)
    if dev.channels.acoustic.shape[1]:
        text = task.text(strength)
        weights = max(product(WEIGHTS, WEIGHTS), key=lambda pair: (task.score(text, pair), -sum(pair), -pair[0]))
    return {"clip.strength": torch.tensor(strength), "fusion.weights": torch.tensor(weights)}


def fuse_channels(dev: Embeddings, chosen: dict[str, Tensor]) -> Embeddings:
    """Return the embeddings with the recordings' as the model gives them under the chosen weights."""
    assert dev.channels is not None
    plain, text, acoustic, confidence = (torch.from_numpy(part) for part in dev.channels)
    speech = plain + chosen["clip.strength"] * (text - plain)
    if acoustic.shape[1]:
        speech = fuse(speech, acoustic, confidence, chosen["fusion.weights"])
    return replace(dev, speech=speech.numpy())


def mean_recall(summary: dict[str, float]) -> float:
    """Return the mean of R@1 and R@10 in both directions, in percent."""
    return float(np.mean([summary[f"{way}/R{k}"] for way in DIRECTIONS for k in _LIMITS]))


class _Task:
    """Recall of the recordings of dev and its images under different weights; cosines are computed once."""

    def __init__(self, dev: Embeddings) -> None:
        assert dev.channels is not None
        ids = dev.image_ids[:_MOST_IMAGES]
        row_of = {name: row for row, name in enumerate(ids)}
        chosen = [number for number, name in enumerate(dev.speech_image_ids) if name in row_of]
        self.answers = torch.tensor([row_of[dev.speech_image_ids[number]] for number in chosen])
        self.images = F.normalize(torch.from_numpy(dev.images[: len(ids)]), dim=1)
        self.plain, text, acoustic, confidence = (torch.from_numpy(part[chosen]) for part in dev.channels)
        self.change, self.doubt = text - self.plain, 1 - confidence
        self.acoustic = F.normalize(acoustic, dim=1)
        self.heard = self.acoustic @ self.images.T if acoustic.shape[1] else None  # (Q, G)

    def text(self, strength: float) -> tuple[Tensor, Tensor]:
        """Return the normalised texts, (Q, E), and their cosines with the images, (Q, G)."""
        text = F.normalize(self.plain + strength * self.change, dim=1)
        return text, text @ self.images.T

    def score(self, text: tuple[Tensor, Tensor], weights: tuple[float, float] = (0.0, 0.0)) -> float:
        """Return the mean recall, in 0..1, of a text with the acoustic channel."""
        vectors, scores = text
        if any(weights):
            assert self.heard is not None
            weight = weights[0] + weights[1] * self.doubt
            length = (1 + 2 * weight * (vectors * self.acoustic).sum(1) + weight**2).clamp(min=1e-12).sqrt()
            scores = (scores + weight[:, None] * self.heard) / length[:, None]
        return self._recall(scores)

    def _recall(self, scores: Tensor) -> float:
        own = scores[torch.arange(len(scores)), self.answers]  # (Q,) of each recording with its image
        wrong_images = (scores >= own[:, None]).sum(1) - 1
        best = torch.full((scores.shape[1],), -torch.inf).scatter_reduce(0, self.answers, own, "amax")
        is_own = self.answers[:, None] == torch.arange(scores.shape[1])
        wrong_speech = ((scores >= best) & ~is_own).sum(0)[best > -torch.inf]
        found = [(wrong < k).double().mean() for wrong in (wrong_images, wrong_speech) for k in _LIMITS]
        return float(torch.stack(found).mean())
