"""Whisper's encoder layers: equal to the model's own, pooled over the frames of speech."""

from pathlib import Path

import numpy as np
import pytest
import torch
from whisper.audio import SAMPLE_RATE

from brewclip.audio import decode_audio
from brewclip.models.audio_chunks import compute_mel, encode_mel, split_into_chunks
from brewclip.models.encoder_layers import encode_layers, is_speech, pool_layers
from brewclip.pretrained.whisper import load_whisper


@pytest.fixture(scope="module")
def whisper():
    return load_whisper("base")


@pytest.fixture(scope="module")
def clip(shared_directory: Path):
    """A real clip: about a second of silence, a sentence, silence."""
    return decode_audio((shared_directory / "speech/ravdess/Actor_01/03-01-05-02-01-01-01.flac").read_bytes())


def test_the_last_layer_is_the_features_before_their_norm(whisper, clip):
    mel = compute_mel(clip, 12, 80, torch.device("cpu"))[None]
    with torch.inference_mode():
        layers = encode_layers(whisper.encoder, mel)
        torch.testing.assert_close(whisper.encoder.ln_post(layers[:, -1]), encode_mel(whisper.encoder, mel))
    assert layers.shape == (1, 6, 600, 512)


def test_pooled_layers_are_mean_and_deviation_of_the_recordings_frames(whisper, clip):
    num_frames = -(-len(clip) // 320)
    with torch.inference_mode():
        layers = encode_layers(whisper.encoder, compute_mel(clip, 12, 80, torch.device("cpu"))[None])[0]
    for frames, chosen in (("all", np.ones(num_frames, bool)), ("speech", is_speech(clip))):
        hidden = layers[:, :num_frames].numpy()[:, chosen]
        expected = np.stack([hidden.mean(axis=1), hidden.std(axis=1)], axis=1)
        np.testing.assert_allclose(pool_layers(whisper, clip, frames), expected, rtol=1e-3, atol=1e-3)
    truncated = pool_layers(whisper, clip, "all", max_frames=50)
    np.testing.assert_array_equal(truncated, pool_layers(whisper, clip[: 50 * 320], "all"))


def test_silence_around_a_sentence_is_no_speech(clip):
    speech = is_speech(clip)
    assert not speech[:10].any() and not speech[-10:].any()
    assert 0.2 < speech.mean() < 0.8
    spoken = np.flatnonzero(speech)
    longer = np.pad(clip, SAMPLE_RATE)
    np.testing.assert_array_equal(np.flatnonzero(is_speech(longer)), spoken + 50)
    np.testing.assert_array_equal(is_speech(0.01 * clip), speech)  # however loud it is


def test_noise_and_silence_are_kept_whole():
    noise = np.random.default_rng(0).normal(size=SAMPLE_RATE).astype(np.float32)
    assert is_speech(noise).all() and len(is_speech(noise)) == 50
    assert is_speech(np.zeros(1000, np.float32)).tolist() == [True] * 4
    assert is_speech(np.zeros(0, np.float32)).shape == (0,)


def test_a_recording_without_samples_has_zeros(whisper):
    assert (pool_layers(whisper, np.zeros(0, np.float32)) == np.zeros((6, 2, 512))).all()
    with pytest.raises(ValueError, match="frames 'loud' must be one of speech, all"):
        pool_layers(whisper, np.zeros(0, np.float32), "loud")


@pytest.mark.slow
def test_a_long_recording_is_encoded_in_chunks(whisper, clip):
    long = np.tile(clip, 31 * SAMPLE_RATE // len(clip) + 1)
    chunks = split_into_chunks(long)
    assert len(chunks) == 2
    parts = [pool_layers(whisper, long[chunk.start : chunk.stop], "all")[:, 0] for chunk in chunks]
    weights = [chunk.num_frames for chunk in chunks]
    expected = np.average(parts, axis=0, weights=weights)
    np.testing.assert_allclose(pool_layers(whisper, long, "all")[:, 0], expected, rtol=1e-3, atol=1e-3)
    assert np.isfinite(pool_layers(whisper, long)).all()
