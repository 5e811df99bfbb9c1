"""Decoding of good, odd and damaged files, and the flac encoder."""

import io
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile

import brewclip.audio
from brewclip.audio import (
    SAMPLE_RATE_HZ,
    UndecodableAudio,
    decode_audio,
    decode_audio_with_damage,
    encode_flac,
)

SPEECH = Path(__file__).parents[1].parent / "shared" / "speech"


def tone(seconds=2.0, rate_hz=16_000, frequency_hz=440.0):
    return 0.5 * np.sin(2 * np.pi * frequency_hz * np.arange(round(seconds * rate_hz)) / rate_hz)


def write(waveform, rate_hz=16_000, **settings):
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, rate_hz, **({"format": "WAV", "subtype": "PCM_16"} | settings))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "settings",
    [
        {"format": "WAV", "subtype": "PCM_16"},
        {"format": "WAV", "subtype": "FLOAT"},
        {"format": "FLAC", "subtype": "PCM_24"},
        {"format": "OGG", "subtype": "VORBIS"},
        {"format": "MP3", "subtype": "MPEG_LAYER_III"},
    ],
)
@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 44_100])
def test_common_formats_become_16_khz_mono(settings, rate_hz):
    stereo = np.stack([tone(rate_hz=rate_hz), tone(rate_hz=rate_hz)], axis=1)
    waveform = decode_audio(write(stereo, rate_hz, **settings))
    assert waveform.dtype == np.float32 and waveform.ndim == 1
    assert len(waveform) == pytest.approx(2 * SAMPLE_RATE_HZ, abs=1600)
    middle = waveform[8000:24000]
    peak_hz = np.abs(np.fft.rfft(middle)).argmax() * SAMPLE_RATE_HZ / len(middle)
    assert peak_hz == pytest.approx(440, abs=2) and np.abs(middle).max() == pytest.approx(0.5, abs=0.1)


def test_stereo_is_averaged():
    stereo = np.stack([tone(), -tone()], axis=1)
    assert np.abs(decode_audio(write(stereo))).max() < 1e-3


@pytest.mark.parametrize("settings", [{"format": "FLAC"}, {"format": "OGG", "subtype": "VORBIS"}])
def test_a_truncated_file_keeps_what_precedes_the_truncation(settings):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 10 * 16_000)
    data = write(noise, **settings)
    decoded = decode_audio_with_damage(data[: len(data) // 2])
    assert 3.5 < len(decoded.waveform) / SAMPLE_RATE_HZ < 5.5


def test_everything_that_decodes_of_a_truncated_flac_is_kept():
    waveform, rate_hz = real("jfk.flac")
    data = write(waveform, rate_hz, format="FLAC")
    half = decode_audio_with_damage(data[: len(data) // 2])
    assert 5.4 < len(half.waveform) / SAMPLE_RATE_HZ < 5.6
    assert half.missing_seconds == pytest.approx(11 - len(half.waveform) / SAMPLE_RATE_HZ, abs=0.01)


def test_a_truncated_flac_reports_what_is_missing():
    data = write(np.random.default_rng(0).uniform(-0.5, 0.5, 10 * 16_000), format="FLAC")
    decoded = decode_audio_with_damage(data[: len(data) // 2])
    assert decoded.missing_seconds == pytest.approx(10 - len(decoded.waveform) / SAMPLE_RATE_HZ)
    assert decode_audio_with_damage(data).missing_seconds == 0


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "empty"),
        (b"not a sound file at all" * 100, "not_audio"),
        (write(np.zeros(0)), "no_samples"),
        (write(tone(seconds=3.0)), "too_long"),
    ],
)
def test_undecodable_recordings_have_a_cause(data, cause):
    with pytest.raises(UndecodableAudio) as caught:
        decode_audio(data, max_seconds=2.5)
    assert caught.value.cause == cause and "\n" not in str(caught.value)


def test_a_file_with_a_wrong_length_is_stopped(monkeypatch):
    monkeypatch.setattr("brewclip.audio.MAX_BYTES", 1000)
    with pytest.raises(UndecodableAudio, match="limit is 1000") as caught:
        decode_audio(write(tone()))
    assert caught.value.cause == "too_many_bytes"


def test_damaged_bytes_raise_only_undecodable_audio():
    """Random damage to real files decodes or is refused with a cause."""
    rng = np.random.default_rng(0)
    for settings in ({}, {"format": "FLAC"}, {"format": "OGG", "subtype": "VORBIS"}, {"format": "MP3"}):
        subtype = (settings == {"format": "MP3"} and {"subtype": "MPEG_LAYER_III"}) or {}
        whole = write(tone(), **settings, **subtype)
        for _ in range(25):
            damaged = bytearray(whole)
            for position in rng.integers(0, len(damaged), 20):
                damaged[position] = rng.integers(256)
            try:
                waveform = decode_audio(bytes(damaged))
            except UndecodableAudio as error:
                assert error.cause
            else:
                assert np.isfinite(waveform).all() and np.abs(waveform).max() <= 1


def test_samples_that_are_not_finite_become_silence_with_a_warning():
    waveform = tone().astype(np.float32)
    waveform[100] = np.nan
    with pytest.warns(UserWarning, match="not finite"):
        decoded = decode_audio(write(waveform, subtype="FLOAT"))
    assert decoded[100] == 0 and np.isfinite(decoded).all()


def test_flac_round_trip_and_determinism():
    waveform = tone()
    data = encode_flac(waveform)
    assert data == encode_flac(waveform.astype(np.float64))
    np.testing.assert_allclose(decode_audio(data), waveform, atol=1 / 32768)
    np.testing.assert_array_equal(encode_flac(decode_audio(data)), data)
    assert np.abs(decode_audio(encode_flac(np.array([2.0, -2.0])))).max() <= 1


@pytest.mark.parametrize("waveform", [np.zeros(0), np.zeros((2, 2)), np.array([np.nan])])
def test_flac_refuses_invalid_waveforms(waveform):
    with pytest.raises(ValueError, match="finite waveform"):
        encode_flac(waveform)


def test_real_recordings_decode():
    for name, seconds in (("jfk.flac", 11.0), ("digits/0_jackson_0.wav", 0.64)):
        path = SPEECH / name
        if not path.is_file():
            pytest.skip(f"{path} is missing")
        assert len(decode_audio(path.read_bytes())) / SAMPLE_RATE_HZ == pytest.approx(seconds, abs=0.1)


def real(name):
    path = SPEECH / name
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    return soundfile.read(path)


@pytest.mark.parametrize("form", ["WAV", "RF64", "AIFF"])
def test_half_a_file_reports_what_is_missing(form):
    waveform, rate_hz = real("jfk.flac")
    data = write(waveform, rate_hz, format=form)
    half = decode_audio_with_damage(data[: len(data) // 2])
    assert len(half.waveform) / SAMPLE_RATE_HZ == pytest.approx(5.5, abs=0.01)
    assert half.missing_seconds == pytest.approx(5.5, abs=0.01)
    assert decode_audio_with_damage(data).missing_seconds == 0


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_wav_from_a_pipe_is_whole_though_its_header_does_not_know_the_length(size):
    waveform, rate_hz = real("jfk.flac")
    data = bytearray(write(waveform, rate_hz))
    place = data.index(b"data") + 4
    data[place : place + 4] = size.to_bytes(4, "little")
    decoded = decode_audio_with_damage(bytes(data))
    assert len(decoded.waveform) == 11 * SAMPLE_RATE_HZ and decoded.missing_seconds == 0


@pytest.mark.parametrize("size", [0, 2**64 - 1])
def test_a_long_wav_from_a_pipe_is_whole(size):
    waveform, rate_hz = real("jfk.flac")
    data = bytearray(write(waveform, rate_hz, format="RF64"))
    place = data.index(b"ds64") + 16
    data[place : place + 8] = size.to_bytes(8, "little")
    assert len(decode_audio(bytes(data))) == 11 * SAMPLE_RATE_HZ


def test_a_wav_without_sound_and_with_a_comment_has_no_samples():
    with pytest.raises(UndecodableAudio) as caught:
        decode_audio(write(np.zeros(0)) + b"LIST\4\0\0\0abcd")
    assert caught.value.cause == "no_samples"


def test_an_ogg_without_its_end_is_reported_as_truncated():
    waveform, rate_hz = real("jfk.flac")
    data = write(waveform, rate_hz, format="OGG", subtype="VORBIS")
    half = decode_audio_with_damage(data[: len(data) // 2])
    assert half.truncated and 4 < len(half.waveform) / SAMPLE_RATE_HZ < 5.5
    for whole in (data, data + bytes(100)):
        assert not decode_audio_with_damage(whole).truncated


def test_the_mp3_decoder_prints_nothing_and_is_counted(capfd):
    waveform, rate_hz = real("jfk.flac")
    data = write(waveform, rate_hz, format="MP3", subtype="MPEG_LAYER_III")
    assert decode_audio_with_damage(data).decoder_warnings == 0
    half = decode_audio_with_damage(data[: len(data) // 2])
    assert half.missing_seconds == pytest.approx(11 - len(half.waveform) / SAMPLE_RATE_HZ, abs=0.01)
    with pytest.raises(UndecodableAudio):
        decode_audio(data, max_seconds=1)
    assert half.decoder_warnings == 1 and capfd.readouterr().err == ""
    os.write(2, b"as before")
    assert capfd.readouterr().err == "as before"


def test_other_output_during_mp3_decoding_is_kept(capfd, monkeypatch):
    waveform, rate_hz = real("jfk.flac")
    data = write(waveform, rate_hz, format="MP3", subtype="MPEG_LAYER_III")
    whole = brewclip.audio._read_blocks
    monkeypatch.setattr(brewclip.audio, "_read_blocks", lambda *args: os.write(2, b"disk on fire\n") and whole(*args))
    assert decode_audio_with_damage(data[:-3000]).decoder_warnings >= 1
    assert capfd.readouterr().err == "disk on fire\n"


def test_threads_may_decode_mp3_at_once(capfd):
    waveform, rate_hz = real("jfk.flac")
    data = write(waveform[: 2 * rate_hz], rate_hz, format="MP3", subtype="MPEG_LAYER_III")
    with ThreadPoolExecutor(4) as pool:
        counts = list(pool.map(lambda _: decode_audio_with_damage(data[:-2000]).decoder_warnings, range(40)))
    os.write(2, b"as before")
    assert set(counts) == {counts[0]} and counts[0] > 0 and capfd.readouterr().err == "as before"


def flac_that_claims(rate_hz: int, channels: int, num_samples: int) -> bytes:
    """Return a FLAC file of two seconds whose STREAMINFO says something else; no samples mean an unknown number."""
    data = bytearray(write(np.zeros((32_000, channels)), format="FLAC"))
    facts = int.from_bytes(data[18:26], "big")
    bits = (facts >> 36) & 31
    claimed = rate_hz << 44 | (channels - 1) << 41 | bits << 36 | num_samples
    data[18:26] = claimed.to_bytes(8, "big")
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "cause", "message"),
    [
        (write(tone(), 999), "corrupt", "999 Hz and 1 channels"),
        (write(tone(), 384_001), "corrupt", "outside of 1000 to 384000 Hz"),
        (write(np.zeros((100, 33))), "corrupt", "33 channels"),
        (flac_that_claims(500_000, 1, 32_000), "corrupt", "500000 Hz"),
        (flac_that_claims(16_000, 1, 16_000 * 600 + 1), "too_long", "600.0 s, the limit is 600 s"),
        (flac_that_claims(384_000, 1, 2**26 + 1), "too_long", "67108865 samples in each of 1 channels"),
        (flac_that_claims(192_000, 8, 2**25 + 1), "too_long", "the limit is 33554432: store it at a lower rate"),
        (flac_that_claims(16_000, 1, 2**36 - 1), "too_long", "the limit is 600 s"),
    ],
)
def test_too_large_recordings_are_refused_by_their_header(data, cause, message):
    with pytest.raises(UndecodableAudio, match=message) as caught:
        decode_audio(data)
    assert caught.value.cause == cause and "\n" not in str(caught.value)


@pytest.mark.parametrize("settings", [{}, {"format": "FLAC"}, {"format": "AIFF"}])
def test_rates_and_channels_at_the_limits_decode(settings):
    for rate_hz, channels in ((1_000, 1), (384_000, 1), (16_000, 8)):
        waveform = np.repeat(tone(seconds=0.5, rate_hz=rate_hz, frequency_hz=100.0)[:, None], channels, axis=1)
        assert len(decode_audio(write(waveform, rate_hz, **settings))) == pytest.approx(8_000, abs=1)
    assert len(decode_audio(write(np.zeros((8_000, 32))))) == 8_000


def test_a_file_of_unknown_length_is_stopped_while_it_is_decoded(monkeypatch):
    data = flac_that_claims(16_000, 2, 0)
    assert len(decode_audio(data)) >= 31_200
    monkeypatch.setattr("brewclip.audio._MAX_SAMPLES_OF_CHANNELS", 40_000)
    with pytest.raises(UndecodableAudio, match="samples in each of 2 channels, the limit is 20000") as caught:
        decode_audio(data)
    assert caught.value.cause == "too_long"


def test_millions_of_empty_chunks_take_no_time():
    data = write(tone())
    start = time.process_time()
    with pytest.raises(UndecodableAudio):
        decode_audio(data[:36] + b"junk\0\0\0\0" * 2_000_000 + b"junk")
    assert time.process_time() - start < 5
