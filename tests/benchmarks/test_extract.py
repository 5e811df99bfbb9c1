"""The benchmark of extraction counts word errors by hand-made cases, and both ways hear what was said."""

from pathlib import Path

import numpy as np
import pytest

from brewclip.benchmarks.corpus import Recording, load_recordings, make_recordings
from brewclip.benchmarks.extract import Options, run, word_error_rate
from brewclip.data.schema import Sample
from brewclip.data.shards import finish_split, write_shard
from brewclip.data.storage import open_storage
from brewclip.errors import UserError
from brewclip.pretrained.whisper import load_whisper


def test_word_errors_by_hand() -> None:
    """One of seven words is wrong; spelling and punctuation do not count."""
    silence = np.zeros(0, np.float32)
    recordings = [Recording("A grey dog.", silence), Recording("Two cats on grass", silence)]
    assert word_error_rate(recordings, ["a gray dog", "two cats, on trees"]) == pytest.approx(100 / 7)


def test_recordings_are_the_same_every_time_and_noise_is_in_them() -> None:
    (first,), (again,), (noisy,) = make_recordings(1), make_recordings(1), make_recordings(1, 0.0)
    assert first.text == again.text == noisy.text and np.array_equal(first.waveform, again.waveform)
    assert 1 < len(first.waveform) / 16_000 < 10 and first.waveform.dtype == np.float32
    assert not np.array_equal(first.waveform, noisy.waveform)


def test_real_recordings_of_a_split(tmp_path: Path, shared_directory: Path) -> None:
    names = ["01-01", "01-02", "02-01", "02-02"]
    samples = []
    for number, name in enumerate(names):
        audio = (shared_directory / f"speech/ravdess/Actor_01/03-01-01-01-{name}-01.flac").read_bytes()
        facts = {"image_id": name, "caption_id": name, "split": "train", "duration_seconds": 3.5}
        samples.append(Sample(name, facts | ({"text": f"text {number}"} if number else {}), audio=audio))
    storage = open_storage(f"{tmp_path.as_uri()}/real/train")
    record = write_shard(storage, "a.tar", 0, samples)
    assert record is not None
    finish_split(storage, [record], corpus="real", split="train", kind="recordings", num_images=4)
    loaded = load_recordings(storage.url, 2)
    assert [one.text for one in loaded] == ["text 2"], "every other one, without the one that has no text"
    assert 3 < len(loaded[0].waveform) / 16_000 < 4
    with pytest.raises(UserError, match="--noise-snr-db 2 has no effect on --split"):
        run(Options(split=storage.url, noise_snr_db=2))


@pytest.mark.slow
def test_figures_of_a_short_run(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        load_whisper("base")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    figures = run(Options(num_recordings=2, num_pairs=1, memory_rounds=2))
    (comparison,) = figures["comparisons"]
    assert comparison["target"] == 3 and comparison["ratio"] > 1
    assert set(figures["word_error_rates"]) == {"reader", "transcribe"}
    assert max(figures["word_error_rates"].values()) < 50
    assert [limit["unit"] for limit in figures["limits"]] == ["points", "MB"]
    assert "word errors: reader" in capsys.readouterr().out


def test_options_without_meaning() -> None:
    with pytest.raises(UserError, match="--memory-rounds 1 compares nothing"):
        run(Options(memory_rounds=1))
