"""Pooled hidden states of all layers of Whisper's encoder.

Middle layers encode more about the voice than the last one (docs/LOG.md).
"""

from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from whisper.model import AudioEncoder, Whisper

from brewclip.models.audio_chunks import FRAME_SAMPLES, compute_mel, split_into_chunks

Frames = Literal["speech", "all"]
"""Frames that are pooled: those of speech by `is_speech`, or all of the recording."""
_SPEECH_ABOVE_PEAK_DB = -30.0


def encode_layers(encoder: AudioEncoder, mel: Tensor) -> Tensor:
    """Run Whisper's encoder and keep what each of its layers returns.

    Source: `whisper.model.AudioEncoder.forward`; its `ln_post` of the last layer is `audio_chunks.encode_mel`.

    Args:
        encoder: `whisper.model.Whisper.encoder`.
        mel: (B, num_mels, 2 * T), of at most 30 s.

    Returns:
        (B, layers, T, audio_dim).
    """
    x = F.gelu(encoder.conv1(mel))
    x = F.gelu(encoder.conv2(x)).transpose(1, 2)
    x = (x + encoder.positional_embedding[: x.shape[1]]).to(x.dtype)
    layers = []
    for block in encoder.blocks:
        x = block(x)
        layers.append(x)
    return torch.stack(layers, dim=1)


def is_speech(waveform: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return for each frame of 20 ms whether its energy is within 30 dB of the loudest one's.

    In noise louder than that, as in silence alone, all frames are.

    Args:
        waveform: (samples,).

    Returns:
        (frames,), the last of which may be shorter.
    """
    num_frames = -(-len(waveform) // FRAME_SAMPLES)
    padded = np.pad(waveform.astype(np.float64), (0, num_frames * FRAME_SAMPLES - len(waveform)))
    energy = np.square(padded).reshape(num_frames, FRAME_SAMPLES).sum(axis=1)
    return energy >= 10 ** (_SPEECH_ABOVE_PEAK_DB / 10) * energy.max(initial=0.0)


@torch.no_grad()
def pool_layers(
    model: Whisper, waveform: NDArray[np.float32], frames: Frames = "speech", max_frames: int | None = None
) -> NDArray[np.float32]:
    """Return mean and standard deviation over the frames of each encoder layer.

    Args:
        model: Whisper, on the device to compute on.
        waveform: float32 mono at 16 kHz, (samples,); a recording of over 30 s is encoded in chunks, as in `whisper`.
        frames: see `Frames`.
        max_frames: number of frames to which the recording is truncated; None: not.

    Returns:
        (layers, 2, audio_dim); zero for a recording without samples.

    Raises:
        ValueError: if `frames` is none of `Frames`.
    """
    if frames not in get_args(Frames):
        raise ValueError(f"frames {frames!r} must be one of {', '.join(get_args(Frames))}")
    waveform = waveform[: None if max_frames is None else max_frames * FRAME_SAMPLES]
    if not len(waveform):
        return np.zeros((model.dims.n_audio_layer, 2, model.dims.n_audio_state), np.float32)
    parts = []
    for chunk in split_into_chunks(waveform):
        samples = waveform[chunk.start : chunk.stop]
        mel = compute_mel(samples, chunk.padded_seconds[0], model.dims.n_mels, model.device)
        parts.append(encode_layers(model.encoder, mel[None])[0, :, : chunk.num_frames].float())
    hidden = torch.cat(parts, dim=1)  # (layers, frames, audio_dim)
    if frames == "speech":
        hidden = hidden[:, torch.from_numpy(is_speech(waveform)).to(hidden.device)]
    return torch.stack([hidden.mean(dim=1), hidden.std(dim=1, correction=0)], dim=1).cpu().numpy()
