"""The RAVDESS recipe on a miniature copy: all 1,440 names of the corpus, with very short clips."""

from collections import Counter
from pathlib import Path

import pytest

from brewclip.errors import UserError
from tests.datasets.miniatures import decoded, items_of, left_out, load_recipe, make_all, sound, write_file

ravdess = load_recipe("ravdess")


def clip_names() -> list[str]:
    """All names: neutral has no strong intensity."""
    return [
        f"Actor_{actor:02d}/03-01-{emotion:02d}-{intensity:02d}-{statement:02d}-{repetition:02d}-{actor:02d}.wav"
        for actor in range(1, 25)
        for emotion in range(1, 9)
        for intensity in ((1,) if emotion == 1 else (1, 2))
        for statement in (1, 2)
        for repetition in (1, 2)
    ]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ravdess")
    mono = sound(0.15, rate_hz=48_000)
    names = clip_names()
    assert len(names) == 1440
    for name in names:
        write_file(folder / name, mono[:-2] + name[-8:-6].encode())  # like real ones, no two are the same
    write_file(folder / "Actor_12/03-01-05-01-02-01-12.wav", sound(0.3, rate_hz=48_000, channels=2))
    same = (folder / "Actor_07/03-01-03-01-02-01-07.wav").read_bytes()
    write_file(folder / "Actor_07/03-01-03-01-02-02-07.wav", same)
    write_file(folder / "again/Actor_01/03-01-01-01-01-01-01.wav", mono)
    write_file(folder / "Actor_02/03-02-01-01-01-01-02.wav", mono)
    write_file(folder / "Actor_02/noise.wav", mono)
    return folder


def read(source: Path, **flags):
    return ravdess.read_corpus(ravdess.RavdessOptions(source=str(source), dest="file:///nowhere", **flags))


def test_four_classes_split_by_actor_as_published(source: Path) -> None:
    corpus = read(source)
    train, test = items_of(corpus, "train"), items_of(corpus, "test")
    assert (corpus.splits(), len(train), len(test)) == (["train", "test"], 648, 216)
    assert {item.speaker for item in train} == {f"{actor:02d}" for actor in range(1, 19)}
    assert {item.speaker for item in test} == {f"{actor:02d}" for actor in range(19, 25)}
    assert Counter(item.emotion for item in test) == {"neutral": 72, "happy": 48, "sad": 48, "angry": 48}
    assert Counter(left_out(corpus).values()) == {
        "other_emotion": 24 * 24,
        "copy_of_file": 1,
        "not_a_clip": 1,
        "not_speech": 1,
    }


def test_calm_can_be_kept_out(source: Path) -> None:
    corpus = read(source, keep_calm_out=True)
    assert (len(items_of(corpus, "train")), len(items_of(corpus, "test"))) == (18 * 28, 6 * 28)
    assert Counter(left_out(corpus).values())["calm"] == 24 * 8


def test_samples_have_no_image_and_stereo_becomes_mono(source: Path) -> None:
    samples, causes = make_all(read(source), "train")
    assert (len(samples), causes) == (648, {})
    sample = samples["03-01-05-01-02-01-12-0"]
    assert dict(sample.metadata) == {
        "image_id": "03-01-05-01-02-01-12",
        "caption_id": "03-01-05-01-02-01-12",
        "split": "train",
        "text": "Dogs are sitting by the door",
        "speaker": "12",
        "emotion": "angry",
        "duration_seconds": 0.3,
    }
    assert sample.image is None
    waveform, rate_hz = decoded(sample.audio)
    assert (rate_hz, waveform.shape) == (16_000, (4800, 1))


def test_the_identical_pair_counts_twice_unless_asked_for(source: Path) -> None:
    corpus = read(source, drop_duplicates=True)
    rejected = {item.key: item.problem for item in items_of(corpus, "train") if item.problem}
    assert rejected == {"03-01-03-01-02-02-07-0": "duplicate"}


def test_a_folder_without_clips_is_an_error_that_names_what_is_expected(tmp_path: Path) -> None:
    write_file(tmp_path / "Actor_01/a.wav", sound())
    with pytest.raises(UserError, match=r"has no Actor_01/03-01-01-01-01-01-01\.wav"):
        read(tmp_path)


def test_real_clips_as_flac_of_four_actors(shared_directory: Path) -> None:
    corpus = read(shared_directory / "speech/ravdess")
    assert corpus.splits() == ["train"]
    assert corpus.remarks == [
        "there is no split test: none of its actors 19, 20, 21, 22, 23, 24 is among those found, 1, 2, 3, 4; "
        "--test-actors 4 takes one of them"
    ]
    corpus = read(shared_directory / "speech/ravdess", test_actors=(4,), dev_actors=(3,))
    actors = {split: {item.speaker for item in items_of(corpus, split)} for split in corpus.splits()}
    assert actors == {"train": {"01", "02"}, "dev": {"03"}, "test": {"04"}}
    assert corpus.remarks == []
    sample = corpus.make_sample(items_of(corpus, "test")[0])
    assert 2.9 < sample.metadata["duration_seconds"] < 5.3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"dev_actors": (19,)}, "actor 19 is in --test-actors and in --dev-actors"),
        ({"dev_actors": (5,)}, r"ravdess has no clip of actor 5, only of 1, 2, 3, 4"),
    ],
)
def test_invalid_actors_give_one_line(shared_directory: Path, flags: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(shared_directory / "speech/ravdess", **flags)
