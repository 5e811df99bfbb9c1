"""Fusion of the two channels of speech, transcript and sound, to one vector."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FUSIONS = ("sum", "confidence", "gate")


class Fusion(nn.Module):
    """F_L of F_T and F_A.

    - `sum`: F_A + F_T, as in the paper (section 3.3).
    - `confidence`: normalize(t + (w0 + w1 (1 - p)) a), with t and a of unit length and p the confidence of the
      transcript, 0 where there is none. Both weights are 0 at first and chosen on dev (`choose_weights`), so that a
      channel that does not help is left out: the result is then the text alone. It stays one vector for a recording.
    - `gate`: F_T + (w0 + w1 (1 - p)) F_A, with both weights trained jointly with the channels, from 0: the first step
      has the text alone.

    Args:
        kind: one of `FUSIONS`.

    Raises:
        ValueError: if the kind is unknown.
    """

    weights: Tensor

    def __init__(self, kind: str = "sum") -> None:
        super().__init__()
        if kind not in FUSIONS:
            raise ValueError(f"unknown fusion {kind!r}; choose one of {', '.join(FUSIONS)}")
        self.kind = kind
        if kind == "confidence":
            self.register_buffer("weights", torch.zeros(2))
        elif kind == "gate":
            self.weights = nn.Parameter(torch.zeros(2))

    def forward(self, text: Tensor, acoustic: Tensor, confidence: Tensor | None = None) -> Tensor:
        """Fuse both channels.

        Args:
            text: (B, E), F_T, not necessarily normalised.
            acoustic: (B, E), F_A, likewise.
            confidence: (B,) of the transcripts, in 0..1; unused by `sum`.

        Returns:
            (B, E) F_L.

        Raises:
            ValueError: if the fusion needs confidences and there are none.
        """
        if self.kind == "sum":
            return acoustic + text
        if confidence is None:
            raise ValueError(f"fusion {self.kind!r} needs the confidence of each transcript")
        if self.kind == "gate":
            return text + _weight(self.weights, confidence, text)[:, None] * acoustic
        return fuse(text, acoustic, confidence, self.weights)

    def acoustic_weight(self, text: Tensor, acoustic: Tensor, confidence: Tensor) -> Tensor:
        """Return the weight w (B,) with which `forward` has the direction of t + w a, t and a of unit length."""
        if self.kind == "confidence":
            return _weight(self.weights, confidence, text)
        longer = acoustic.norm(dim=-1) / text.norm(dim=-1)
        return longer if self.kind == "sum" else longer * _weight(self.weights, confidence, text)


def fuse(text: Tensor, acoustic: Tensor, confidence: Tensor, weights: Tensor) -> Tensor:
    """Return normalize(t + (w0 + w1 (1 - p)) a), see `Fusion`; `weights` are w0 and w1."""
    weight = _weight(weights, confidence, text)
    return F.normalize(F.normalize(text, dim=-1) + weight[:, None] * F.normalize(acoustic, dim=-1), dim=-1)


def _weight(weights: Tensor, confidence: Tensor, text: Tensor) -> Tensor:
    return weights[0] + weights[1] * (1 - confidence.to(text.dtype))
