"""All layers of Whisper's encoder over waveforms, as another speech encoder for SpeechCLIP's head."""

from typing import Any

import torch
from torch import Tensor
from whisper.model import Whisper

from brewclip.models.audio_chunks import (
    FRAME_SAMPLES,
    MAX_SAMPLES,
    MAX_SECONDS,
    Chunk,
    compute_mel,
    split_into_chunks,
)
from brewclip.models.encoder_layers import encode_layers
from brewclip.models.speech_encoders import SpeechEncoder

# And multiples. Captions of 1.7 to 3.9 s took 0.13 CPU-s at 4 s, 0.27 at 8 s, 1.55 at 30 s; the states of the layers
# have a mean cosine with those at 30 s of 0.99 (first) to 0.96 (last) at 4 s, and of 1.00 to 0.98 at 8 s.
_PADDED_TO_SECONDS = 4


class WhisperEncoder(SpeechEncoder):
    """The layers of Whisper's encoder over a whole recording, in chunks of at most 30 s.

    Args:
        whisper: its encoder is used, and frozen in place.
    """

    def __init__(self, whisper: Whisper) -> None:
        super().__init__()
        self.width, self.num_layers = whisper.dims.n_audio_state, whisper.dims.n_audio_layer
        self._num_mels = whisper.dims.n_mels
        self.encoder = whisper.encoder
        self.requires_grad_(False)
        self.eval()

    def num_frames(self, lengths: Tensor) -> Tensor:
        return ((lengths + FRAME_SAMPLES - 1) // FRAME_SAMPLES).clamp_min(1)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        counts = self.num_frames(lengths)
        encoded = waveforms.new_zeros(len(waveforms), self.num_layers, int(counts.max()), self.width)
        chunks = self._chunks_of(waveforms, lengths)
        for seconds in sorted({_padded_seconds(chunk) for _, chunk, _ in chunks}):
            group = [one for one in chunks if _padded_seconds(one[1]) == seconds]
            layers = encode_layers(self.encoder, self._mels_of(group, seconds, waveforms.device)).to(encoded.dtype)
            for (row, chunk, _), found in zip(group, layers, strict=True):
                first = chunk.start // FRAME_SAMPLES
                encoded[row, :, first : first + chunk.num_frames] = found[:, : chunk.num_frames]
        return encoded

    def _mels_of(self, group: list[tuple[int, Chunk, Any]], seconds: int, device: torch.device) -> Tensor:
        with torch.autocast(device.type, enabled=False):  # as in the extraction
            return torch.stack([compute_mel(samples, seconds, self._num_mels, device) for _, _, samples in group])

    def _chunks_of(self, waveforms: Tensor, lengths: Tensor) -> list[tuple[int, Chunk, Any]]:
        """Return row, chunk and samples of each chunk of the recordings."""
        found = []
        for row, length in enumerate(lengths.tolist()):
            waveform = waveforms[row, : max(1, length)].float().cpu().numpy()
            found += [(row, chunk, waveform[chunk.start : chunk.stop]) for chunk in split_into_chunks(waveform)]
        return found


def _padded_seconds(chunk: Chunk) -> int:
    """Return the seconds that a chunk is padded to, as few as its own length allows."""
    pieces = -(-(chunk.stop - chunk.start) * MAX_SECONDS // (MAX_SAMPLES * _PADDED_TO_SECONDS))
    return min(MAX_SECONDS, pieces * _PADDED_TO_SECONDS)
