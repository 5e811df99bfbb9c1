"""Where recordings are cut, how far they are padded, and the encoder over shorter windows."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import whisper
from whisper.model import AudioEncoder

from brewclip.models.windows import FRAME_SAMPLES, compute_mel, cut_windows, encode_mel

RATE = 16_000


@pytest.mark.parametrize(
    ("seconds", "padded_seconds"),
    [(0.01, 8), (4.0, 8), (4.01, 12), (8, 12), (11, 16), (16, 20), (20, 24), (20.1, 30), (26, 30), (30, 30)],
)
def test_up_to_30_seconds_are_one_window_with_4_seconds_of_silence_behind(seconds, padded_seconds):
    (window,) = cut_windows(np.zeros(round(seconds * RATE), np.float32))
    assert (window.start, window.stop, window.padded_seconds) == (0, round(seconds * RATE), padded_seconds)


@pytest.mark.parametrize("seconds", [30.0001, 59.9, 75, 200])
def test_windows_cover_every_sample_once_and_frames_add_up(seconds):
    waveform = np.random.default_rng(0).normal(size=round(seconds * RATE)).astype(np.float32)
    windows = cut_windows(waveform)
    assert windows[0].start == 0 and windows[-1].stop == len(waveform)
    assert all(one.stop == other.start for one, other in pairwise(windows))
    assert all(28 * RATE <= window.stop - window.start <= 30 * RATE for window in windows[:-1])
    assert sum(window.num_frames for window in windows) == -(-len(waveform) // FRAME_SAMPLES)


def test_a_long_recording_is_cut_in_the_pause():
    waveform = np.random.default_rng(0).normal(size=40 * RATE).astype(np.float32)
    waveform[int(28.7 * RATE) : int(28.9 * RATE)] *= 0.001
    assert 28.7 < cut_windows(waveform)[0].stop / RATE < 28.9


def test_no_samples_are_no_window():
    assert cut_windows(np.zeros(0, np.float32)) == []


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
def test_shorter_windows_give_their_frames(encoder):
    mel = compute_mel(np.ones(RATE, np.float32), 8, 80, torch.device("cpu"))
    assert mel.shape == (80, 800)
    assert encode_mel(encoder, mel[None]).shape == (1, 400, 64)
