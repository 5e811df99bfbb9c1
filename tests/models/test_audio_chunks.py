"""Where recordings are split, how far chunks are padded, and the encoder over chunks of less than 30 s."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import whisper
from whisper.model import AudioEncoder

from brewclip.models.audio_chunks import FRAME_SAMPLES, compute_mel, encode_mel, split_into_chunks

RATE = 16_000


@pytest.mark.parametrize(
    ("seconds", "padded_seconds"),
    [
        (0.01, (8,)),
        (1.4, (8,)),
        (1.5, (12, 30)),
        (8, (12, 30)),
        (8.01, (16, 30)),
        (16, (20, 30)),
        (20, (24, 30)),
        (20.1, (30,)),
        (30, (30,)),
    ],
)
def test_up_to_30_seconds_are_one_chunk_with_4_seconds_of_silence_behind(seconds, padded_seconds):
    waveform = np.zeros(round(seconds * RATE), np.float32)
    assert split_into_chunks(waveform) == [(0, len(waveform), padded_seconds)]
    assert split_into_chunks(waveform, always_30_seconds=True) == [(0, len(waveform), (30,))]


@pytest.mark.parametrize("seconds", [30.0001, 59.9, 75, 200])
def test_chunks_cover_every_sample_once_and_frames_add_up(seconds):
    waveform = np.random.default_rng(0).normal(size=round(seconds * RATE)).astype(np.float32)
    chunks = split_into_chunks(waveform)
    assert chunks[0].start == 0 and chunks[-1].stop == len(waveform)
    assert all(one.stop == other.start for one, other in pairwise(chunks))
    assert all(28 * RATE <= chunk.stop - chunk.start <= 30 * RATE for chunk in chunks[:-1])
    assert sum(chunk.num_frames for chunk in chunks) == -(-len(waveform) // FRAME_SAMPLES)


def test_a_long_recording_is_split_in_the_pause():
    waveform = np.random.default_rng(0).normal(size=40 * RATE).astype(np.float32)
    waveform[int(28.7 * RATE) : int(28.9 * RATE)] *= 0.001
    assert 28.7 < split_into_chunks(waveform)[0].stop / RATE < 28.9


def test_no_samples_are_no_chunk():
    assert split_into_chunks(np.zeros(0, np.float32)) == []


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return AudioEncoder(n_mels=80, n_ctx=1500, n_state=64, n_head=4, n_layer=2).eval()


@torch.no_grad()
def test_encoder_equals_whisper_s_at_30_seconds(encoder):
    waveform = np.random.default_rng(0).normal(size=10 * RATE).astype(np.float32)
    mel = compute_mel(waveform, 30, 80, torch.device("cpu"))
    expected = whisper.log_mel_spectrogram(whisper.pad_or_trim(waveform))
    torch.testing.assert_close(mel, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(encode_mel(encoder, mel[None]), encoder(expected[None]), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_shorter_chunks_give_their_frames(encoder):
    mel = compute_mel(np.ones(RATE, np.float32), 8, 80, torch.device("cpu"))
    assert mel.shape == (80, 800)
    assert encode_mel(encoder, mel[None]).shape == (1, 400, 64)
