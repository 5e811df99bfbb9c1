"""Frozen encoders of waveforms that return all their layers, and HuBERT; Whisper's encoder is in `whisper_encoder`.

What they return of a recording does not depend on the other recordings of a batch, so training is the same on any
number of workers.
"""

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SpeechEncoder(nn.Module):
    """A frozen encoder of waveforms at 16 kHz; always in eval mode.

    Attributes:
        width: of its frames.
        num_layers: hidden states of each frame.
    """

    width: int
    num_layers: int

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: HuBERT would drop layers and mask frames."""
        return super().train(False)

    def num_frames(self, lengths: Tensor) -> Tensor:
        """Return the number of frames of recordings of some lengths in samples, at least one each; (B,) int64."""
        raise NotImplementedError

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Encode recordings.

        Args:
            waveforms: (B, S) float32 in [-1, 1], zero where padded.
            lengths: (B,) int64, in samples.

        Returns:
            (B, num_layers, T, width), T the largest of `num_frames`; what is beyond a recording's frames is finite.
        """
        raise NotImplementedError


class HubertEncoder(SpeechEncoder):
    """HuBERT: the input of its transformer, and the output of each layer.

    The waveform is normalised to mean 0 and variance 1 where the model was trained so, as fairseq does: where the
    convolutions have layer norms (large, not base). The group norm of base is computed over a recording's own samples,
    so that a recording in a batch is encoded as it is alone.

    Source: `transformers.HubertModel`, whose `hidden_states` of single recordings these are.

    Args:
        hubert: a `transformers.HubertModel`; frozen in place.
    """

    def __init__(self, hubert: Any) -> None:
        super().__init__()
        config = hubert.config
        self.width, self.num_layers = config.hidden_size, config.num_hidden_layers + 1
        self.normalises = config.feat_extract_norm == "layer"
        self._convolutions = list(zip(config.conv_kernel, config.conv_stride, strict=True))
        self._least_samples = 1
        for kernel, stride in reversed(self._convolutions):
            self._least_samples = (self._least_samples - 1) * stride + kernel
        self.hubert = hubert
        if not self.normalises:
            first = hubert.feature_extractor.conv_layers[0]
            first.layer_norm = RecordingNorm(first.layer_norm)
        self.requires_grad_(False)
        self.eval()

    def num_frames(self, lengths: Tensor) -> Tensor:
        frames = lengths.clamp_min(self._least_samples)
        for kernel, stride in self._convolutions:
            frames = (frames - kernel) // stride + 1
        return frames

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        lengths = lengths.clamp_min(self._least_samples)
        longest = int(lengths.max())
        waveforms = F.pad(waveforms[:, :longest], (0, max(0, longest - waveforms.shape[1])))
        mask = torch.arange(longest, device=waveforms.device) < lengths[:, None]
        if self.normalises:
            waveforms = normalise_waveforms(waveforms, mask)
        else:
            kernel, stride = self._convolutions[0]
            self.hubert.feature_extractor.conv_layers[0].layer_norm.num_steps = (lengths - kernel) // stride + 1
        found = self.hubert(waveforms * mask, attention_mask=mask.long(), output_hidden_states=True)
        return torch.stack(found.hidden_states, dim=1)


class RecordingNorm(nn.GroupNorm):
    """Normalise each channel over a recording's own steps instead of all steps of a padded batch.

    Args:
        norm: with a group for each channel; its weights are taken over.

    Attributes:
        num_steps: (B,) int64, steps of each recording of the next batch; set before it.
    """

    num_steps: Tensor

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__(norm.num_groups, norm.num_channels, eps=norm.eps)
        self.load_state_dict(norm.state_dict())

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, T)."""
        mask = (torch.arange(input.shape[2], device=input.device) < self.num_steps[:, None])[:, None]
        normalised = _standardised(input.float(), mask, self.eps)
        return (normalised * self.weight[:, None] + self.bias[:, None]).to(input.dtype)


def normalise_waveforms(waveforms: Tensor, mask: Tensor) -> Tensor:
    """Bring the samples of each recording to mean 0 and variance 1; padding becomes any finite number.

    Source: `F.layer_norm` over a waveform, as fairseq's HuBERT does.

    Args:
        waveforms: (B, S).
        mask: (B, S) bool, True for a sample of the recording.
    """
    return _standardised(waveforms.float(), mask, eps=1e-5)


def _standardised(x: Tensor, mask: Tensor, eps: float) -> Tensor:
    """Bring the last axis to mean 0 and variance 1 over what the mask keeps."""
    count = mask.sum(dim=-1, keepdim=True).clamp_min(1)
    mean = (x * mask).sum(dim=-1, keepdim=True) / count
    variance = ((x - mean).square() * mask).sum(dim=-1, keepdim=True) / count
    return (x - mean) * (variance + eps).rsqrt()
