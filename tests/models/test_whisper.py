"""Whisper base on real speech, silence and noise."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import whisper
import whisper.normalizers

from brewclip.audio import decode_audio
from brewclip.models.audio_chunks import compute_mel, encode_mel
from brewclip.models.decoding import Alternative, join_alternatives
from brewclip.models.whisper import SpeechReader
from brewclip.pretrained.whisper import load_whisper

pytestmark = pytest.mark.slow

SPEECH = Path(__file__).parents[2].parent / "shared" / "speech"
JFK = "and so my fellow americans ask not what your country can do for you ask what you can do for your country"
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]

normalise = whisper.normalizers.EnglishTextNormalizer()


@pytest.fixture(scope="module")
def model():
    try:
        return load_whisper("base")
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def reader(model):
    return SpeechReader(model)


def load_speech(name):
    path = SPEECH / name
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    return decode_audio(path.read_bytes())


@pytest.fixture(scope="module")
def jfk():
    return load_speech("jfk.flac")


@pytest.fixture(scope="module")
def digits():
    """Clips of one voice that Whisper understands without noise, by digit."""
    return {digit: load_speech(f"digits/{digit}_jackson_0.wav") for digit in (0, 2, 4, 6)}


def make_noise(seconds, kind, level, seed=0):
    num_samples = round(seconds * 16_000)
    noise = np.random.default_rng(seed).normal(size=num_samples)
    if kind == "pink":
        spectrum = np.fft.rfft(noise)
        noise = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 1)), num_samples)
    return (level * noise / noise.std()).clip(-1, 1).astype(np.float32)


def is_digit(transcript, digit):
    return normalise(transcript).strip() in (str(digit), NAMES[digit])


@torch.no_grad()
def test_encoder_output_equals_whisper_s_own(model, jfk):
    mel = compute_mel(jfk, 30, 80, torch.device("cpu"))
    expected = model.encoder(whisper.log_mel_spectrogram(whisper.pad_or_trim(jfk))[None])
    torch.testing.assert_close(encode_mel(model.encoder, mel[None]), expected, rtol=1e-5, atol=1e-5)


def test_a_real_sentence_is_understood(reader, jfk):
    (speech,) = reader.read([jfk])
    assert normalise(speech.transcript) == JFK
    assert (speech.language, speech.rejected, speech.temperature) == ("en", None, 0.0)
    assert speech.features.shape == (550, 512) and speech.features.dtype == np.float16


def test_shorter_chunks_understand_what_30_seconds_do(model, jfk, digits):
    waveforms = [jfk, *digits.values()]
    short = SpeechReader(model).read(waveforms)
    full = SpeechReader(model, first_30_seconds=True).read(waveforms)
    assert normalise(short[0].transcript) == normalise(full[0].transcript) == JFK
    right = [is_digit(speech.transcript, digit) for digit, speech in zip(digits, short[1:], strict=True)]
    right_in_full = [is_digit(speech.transcript, digit) for digit, speech in zip(digits, full[1:], strict=True)]
    assert sum(right) >= sum(right_in_full) and sum(right) >= 3


def test_emphatic_speech_is_understood_and_what_fails_is_read_again_at_30_seconds(reader):
    """Clips that were invented or repeated when padded to 8 s; the first one also when padded to 12 s."""
    names = ["01/03-01-07-01-02-01-01", "01/03-01-02-02-02-01-01", "01/03-01-05-02-02-01-01", "01/03-01-06-02-02-02-01"]
    waveforms = [load_speech(f"ravdess/Actor_{name}.flac") for name in names]
    speeches = reader.read(waveforms)
    assert [normalise(speech.transcript) for speech in speeches] == ["dogs are sitting by the door"] * 4
    assert {(speech.temperature, speech.rejected) for speech in speeches} == {(0.0, None)}


def test_a_rejected_word_is_stored_as_unfiltered_with_an_empty_transcript(reader):
    speeches = reader.read(
        [load_speech(f"digits/{name}.wav") for name in ("2_nicolas_2", "4_nicolas_1", "0_jackson_0")]
    )
    rejected = [speech for speech in speeches if speech.rejected]
    assert rejected and all(not speech.transcript for speech in rejected)
    assert all(speech.unfiltered_transcript for speech in rejected if speech.rejected != "no_speech")
    heard = [speech for speech in speeches if not speech.rejected]
    assert all(speech.unfiltered_transcript == speech.transcript for speech in heard)
    assert all(speech.greedy_transcript == speech.transcript for speech in heard if not speech.temperature)
    assert {"transcript", "unfiltered_transcript", "greedy_transcript", "rejected"} <= set(rejected[0].metadata())


def test_the_greedy_text_of_a_rejected_recording_is_that_of_decoding_without_retries(reader):
    """What it says the last time, sampled at temperature 1, is another text."""
    waveforms = [load_speech(f"digits/{name}.wav") for name in ("2_nicolas_2", "4_nicolas_1")]
    speeches = reader.read(waveforms)
    once = SpeechReader(reader.model, retries=0).read(waveforms)
    assert {speech.temperature for speech in speeches} == {1.0} and {speech.temperature for speech in once} == {0.0}
    texts = [speech.greedy_transcript for speech in speeches]
    assert texts == [speech.greedy_transcript for speech in once] == [speech.unfiltered_transcript for speech in once]
    assert all(speech.unfiltered_transcript not in texts for speech in speeches)


def test_reading_ends_where_the_check_says_so(reader, jfk):
    class EndError(Exception):
        pass

    def end():
        raise EndError

    with pytest.raises(EndError):
        reader.read([jfk], check=end)


def test_a_recording_reads_the_same_in_any_batch(model, jfk, digits):
    waveforms = [jfk, *digits.values(), make_noise(2, "white", 0.1), np.zeros(8000, np.float32)]
    together = SpeechReader(model, batch_size=4).read(waveforms)
    alone = [SpeechReader(model).read([waveform])[0] for waveform in waveforms]
    for one, other in zip(together, alone, strict=True):
        assert (one.transcript, one.rejected, one.temperature) == (
            other.transcript,
            other.rejected,
            other.temperature,
        )
        np.testing.assert_allclose(one.features.astype(float), other.features.astype(float), atol=0.05)


@pytest.mark.parametrize("kind", ["white", "pink"])
@pytest.mark.parametrize("level", [0.0002, 0.003, 0.03, 0.3])
def test_noise_is_no_sentence(reader, kind, level):
    speeches = reader.read([make_noise(seconds, kind, level) for seconds in (0.5, 2.0, 6.0)])
    assert [speech.transcript for speech in speeches] == ["", "", ""]
    assert {speech.rejected for speech in speeches} == {"no_speech"}


def test_long_noise_that_passes_for_speech_is_rejected_after_all_temperatures(reader):
    noise = make_noise(25.0, "white", 0.1)
    state = torch.get_rng_state()
    first, second = reader.read([noise])[0], reader.read([noise])[0]
    assert first.transcript == "" and first.rejected in ("no_speech", "repetitive", "low_confidence")
    assert first.avg_logprob == second.avg_logprob, "sampling follows the recording"
    assert torch.equal(torch.get_rng_state(), state), "and leaves torch's generator alone"


def test_silence_and_nothing_are_no_speech(reader):
    hum = 0.1 * np.sin(2 * np.pi * 100 * np.arange(48_000) / 16_000)
    speeches = reader.read([np.zeros(0, np.float32), np.zeros(48_000, np.float32), hum.astype(np.float32)])
    assert [(speech.transcript, speech.rejected) for speech in speeches] == [("", "no_speech")] * 3
    assert [speech.features.shape for speech in speeches] == [(0, 512), (150, 512), (150, 512)]
    assert all(np.isfinite(speech.features).all() for speech in speeches)


def test_digits_stay_right_down_to_10_db_of_noise(reader, digits):
    right = 0
    for snr_db in (20, 10):
        noisy = []
        for digit, waveform in digits.items():
            noise = make_noise(len(waveform) / 16_000, "pink", waveform.std() / 10 ** (snr_db / 20), seed=digit)
            noisy.append((waveform + noise[: len(waveform)]).clip(-1, 1))
        for digit, speech in zip(digits, reader.read(noisy), strict=True):
            right += is_digit(speech.transcript, digit)
            assert (speech.rejected is None) == bool(speech.transcript)
    assert right >= 5


def test_a_long_recording_is_read_to_its_end_in_the_language_of_its_beginning(model, jfk):
    """Three times the sentence with pauses: 36 s in two chunks, split between words."""
    pause = np.zeros(8000, np.float32)
    waveform = np.concatenate([jfk, pause, jfk, pause, jfk, pause, pause])
    (speech,) = SpeechReader(model, language=None).read([waveform])
    assert normalise(speech.transcript).split().count("country") == 6
    assert "ask what you can do for your country" in normalise(speech.transcript)
    assert len(speech.features) == -(-len(waveform) // 320)
    assert (speech.language, speech.rejected) == ("en", None)


def test_alternatives_of_an_unsure_text_are_sampled(reader, jfk):
    """Beside the greedy text; they do not depend on the batch, nor on how often the transcript is decoded again."""
    noise = np.random.default_rng(0).normal(0, 0.2, 48_000).astype(np.float32)
    unclear = [load_speech("digits/4_nicolas_1.wav"), jfk[:48_000] + noise]
    silence = np.zeros(16_000, np.float32)
    asked = SpeechReader(reader.model, alternatives=2)
    certain, *unsure, silent = asked.read([jfk, *unclear, silence])
    assert [len(speech.alternatives) for speech in (certain, *unsure, silent)] == [1, 3, 3, 1]
    plain = reader.read([jfk, *unclear, silence])
    for speech, without in zip((certain, *unsure, silent), plain, strict=True):
        assert speech.alternatives[0][0] == without.greedy_transcript
        assert replace(speech, alternatives=(), features=without.features) == without and not without.alternatives
        assert np.array_equal(speech.features, without.features)
    assert certain.alternatives[0][1] == certain.avg_logprob and silent.alternatives == (("", 0.0),)
    assert len({text for text, _ in unsure[1].alternatives}) > 1
    alone = SpeechReader(reader.model, alternatives=2, retries=0, batch_size=1)
    for waveform, speech in zip(unclear, unsure, strict=True):
        (again,) = alone.read([waveform])
        assert [text for text, _ in again.alternatives] == [text for text, _ in speech.alternatives]
        assert all(score < 0 for _, score in speech.alternatives)
        assert [text for text, _ in again.metadata()["alternatives"]] == [text for text, _ in again.alternatives]


def test_alternatives_of_chunks_are_joined_in_order():
    certain, unsure = (Alternative("one", -0.1, 1),), (Alternative("to", -1.0, 3), Alternative("two", -0.7, 3))
    assert join_alternatives([certain, unsure]) == (
        ("one to", pytest.approx(-0.7)),
        ("one two", pytest.approx(-0.5)),
    )
    assert join_alternatives([certain]) == (("one", pytest.approx(-0.1)),)


def test_bfloat16_keeps_the_words(model, jfk):
    exact, rounded = (SpeechReader(model, precision=p).read([jfk])[0] for p in ("float32", "bfloat16"))
    assert normalise(exact.transcript) == normalise(rounded.transcript)
    one, other = exact.features.astype(np.float64).ravel(), rounded.features.astype(np.float64).ravel()
    assert one @ other / np.linalg.norm(one) / np.linalg.norm(other) > 0.999


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"language": "english please"}, "give a code such as 'en'"),
        ({"precision": "int8"}, "choose one of float32, bfloat16, float16"),
        ({"batch_size": 0}, "1 or more"),
        ({"retries": 6}, "0 to 5 are possible"),
    ],
)
def test_impossible_settings_are_refused(model, settings, message):
    with pytest.raises(ValueError, match=message):
        SpeechReader(model, **settings)


def test_waveforms_that_are_not_finite_are_refused(reader):
    with pytest.raises(ValueError, match="waveform 1"):
        reader.read([np.zeros(10, np.float32), np.full(10, np.nan, np.float32)])


def test_the_released_frames_are_of_the_first_30_seconds_and_the_transcript_of_all(model, jfk):
    """The first 30 s with their padding, as the paper's authors released it: 1,500 frames whatever was said."""
    pause = np.zeros(8000, np.float32)
    long = np.concatenate([jfk, pause, jfk, pause, jfk])
    for waveform, times in ((jfk, 1), (long, 3)):
        (speech,) = SpeechReader(model, first_30_seconds=True).read([waveform])
        mel = whisper.log_mel_spectrogram(whisper.pad_or_trim(torch.from_numpy(waveform)))
        with torch.no_grad():
            expected = model.encoder(mel[None])[0]
        assert speech.features.shape == (1500, model.dims.n_audio_state)
        torch.testing.assert_close(torch.from_numpy(speech.features).float(), expected, atol=2e-2, rtol=2e-2)
        assert normalise(speech.unfiltered_transcript).split().count("americans") == times
