"""SpeechCLIP's parallel branch: one transformer layer over a weighted sum of the layers of a frozen speech encoder."""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from brewclip.models.acoustic import AcousticEncoder
from brewclip.models.speech_encoders import SpeechEncoder

# Encoded together; 40 crops of 6.4 s. The first convolution of HuBERT large then takes 1.7 GB in float32.
_SAMPLES_AT_ONCE = 2**22


class LayerCache(Protocol):
    """Stored layers of waveforms (samples,), normalised: (layers, frames, width)."""

    def get(self, waveform: NDArray[np.float32]) -> NDArray[np.float16] | None:
        """Return the layers of a waveform, or None."""

    def put(self, waveform: NDArray[np.float32], layers: NDArray[np.float16]) -> None:
        """Store the layers of a waveform."""


class SpeechCLIPEncoder(AcousticEncoder):
    """Acoustic channel that hears waveforms: layers of a frozen encoder, normalised and weighed, then [CLS, frames].

    Each hidden state of a frame is normalised over its width, without weights of its own; the weights of the layers are
    a softmax, equal at first. The transformer layer has the encoder's width, so nothing projects the frames.

    Source: SpeechCLIP (Shih et al. 2023), section 3.2 (parallel), and the settings of its large models: hidden states
        normalised, CLS of N(0, 1), post-norm layer with GELU, norm behind it.

    Args:
        speech_encoder: frozen.
        embed_dim: of the output, CLIP's.
        num_layers, num_heads, ff_dim, dropout, cls_std: as in `AcousticEncoder`.

    Attributes:
        layer_cache: where the normalised layers are looked up and stored, as float16, so that those read and those just
            computed are equal to the bit; None computes all of them.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self,
        speech_encoder: SpeechEncoder,
        embed_dim: int,
        num_layers: int = 1,
        num_heads: int = 8,
        ff_dim: int = 4096,
        dropout: float = 0.1,
        cls_std: float = 1.0,
    ) -> None:
        width = speech_encoder.width
        super().__init__(width, width, embed_dim, num_layers, num_heads, ff_dim, dropout, cls_std, projects=False)
        self.layer_weights = nn.Parameter(torch.zeros(speech_encoder.num_layers))
        self.speech_encoder = speech_encoder
        self.layer_cache: LayerCache | None = None

    def forward(
        self,
        features: Tensor,
        mask: Tensor,
        prompts: Tensor | None = None,
        sample_seeds: Tensor | None = None,
    ) -> Tensor:
        """Encode recordings.

        Args:
            features: (B, S) float32 waveforms at 16 kHz, zero where padded.
            mask: (B, S) bool, True for a sample of the recording.
            prompts: None; a frozen image tower takes none either.
            sample_seeds: as in `AcousticEncoder.forward`.

        Returns:
            (B, embed_dim) features, not normalised.
        """
        lengths = mask.sum(dim=1)
        frames = self.weigh_layers(features, lengths)
        frame_mask = (
            torch.arange(frames.shape[1], device=frames.device) < self.speech_encoder.num_frames(lengths)[:, None]
        )
        return super().forward(frames, frame_mask, prompts, sample_seeds)

    def weigh_layers(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Return the weighted sum of the normalised layers, (B, T, width); the encoder has no gradient.

        Recordings of similar length are encoded together, as many as memory allows.

        Args:
            waveforms: (B, S); B may be 0, on a worker without a row.
            lengths: (B,) int64, in samples.
        """
        if not len(waveforms):
            return waveforms.new_zeros(0, 0, self.audio_dim)
        num_frames = int(self.speech_encoder.num_frames(lengths).max())
        order = torch.argsort(lengths, stable=True)
        parts = []
        for rows in order.split(max(1, _SAMPLES_AT_ONCE // max(1, int(lengths.max())))):
            hidden = self._normalised_layers(waveforms[rows], lengths[rows])  # (b, L, t, D)
            frames = torch.einsum("l,bltd->btd", self.layer_weights.softmax(dim=0), hidden)
            parts.append(F.pad(frames, (0, 0, 0, num_frames - frames.shape[1])))
        return torch.cat(parts)[torch.argsort(order)]

    @torch.no_grad()
    def _normalised_layers(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Return the hidden states normalised over their width, (b, L, t, D) float32, from the cache if there."""
        if self.layer_cache is None:
            return self._encode(waveforms, lengths)
        counts, on_host = self.speech_encoder.num_frames(lengths).tolist(), waveforms.float().cpu().numpy()
        num_layers, width = self.speech_encoder.num_layers, self.audio_dim
        padded = torch.zeros(len(counts), num_layers, max(counts), width, dtype=torch.float16)
        for n, (count, length) in enumerate(zip(counts, lengths.tolist(), strict=True)):
            layers = self.layer_cache.get(on_host[n, :length])
            if layers is None or layers.shape != (num_layers, count, width):
                # Alone, so that what is stored does not depend on the batch: products differ in their last bits.
                encoded = self._encode(waveforms[n : n + 1, : max(1, length)], lengths[n : n + 1])
                layers = encoded[0, :, :count].half().cpu().numpy()
                self.layer_cache.put(on_host[n, :length], layers)
            padded[n, :, :count] = torch.from_numpy(layers)
        return padded.to(waveforms.device).float()

    def _encode(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        hidden = self.speech_encoder(waveforms, lengths)
        return F.layer_norm(hidden.float(), hidden.shape[-1:])
