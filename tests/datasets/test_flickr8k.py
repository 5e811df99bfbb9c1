"""The Flickr8k recipe on a miniature copy with the traps of the real one."""

from pathlib import Path

import pytest

from brewclip.data.storage import open_storage
from brewclip.errors import UserError
from tests.datasets.miniatures import (
    field_of,
    image,
    left_out,
    load_recipe,
    make_all,
    sound,
    write_file,
)

flickr8k = load_recipe("flickr8k")

A, B, C = "1000268201_693b08cb0e", "1001773457_577c3a7d70", "1002674143_1b742ab4b8"
DEV, TEST = "1003163366_44323f5815", "1007129816_e794419615"
COPY, UNLISTED = "2258277193_586949ec62", "3000000000_aaaaaaaaaa"
NO_FILE, NO_LINES = "1007320043_627395c3d8", "1009434119_febe49276a"
# (image, number, text)
CAPTIONS = [
    (A, 0, "A child in a pink dress is climbing up stairs ."),
    (A, 1, "A girl , number #1 , goes into a wooden building ."),
    (B, 0, 'A dog called "Rex" and a black dog .'),
    (C, 0, "A little girl covered in paint ."),
    (C, 1, "There is no recording of this one ."),
    (DEV, 0, "A man lays on a bench ."),
    (TEST, 0, "A man in an orange hat ."),
    (NO_FILE, 0, "The image of this one is missing ."),
    (UNLISTED, 0, "An image that no list names ."),
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Nine images, with Windows line ends."""
    for stem in (A, B, C, DEV, TEST, COPY, UNLISTED, NO_LINES):
        write_file(tmp_path / "Images" / f"{stem}.jpg", image())
    lines = [f"{stem}.jpg#{number}\t{text}" for stem, number, text in CAPTIONS]
    lines.append(f"{COPY}.jpg.1#0\tA man and a woman .")
    write_file(tmp_path / "Flickr8k.token.txt", "\r\n".join(lines) + "\r\n")
    lists = {"train": [A, B, C, NO_FILE, NO_LINES], "dev": [DEV], "test": [TEST]}
    for split, stems in lists.items():
        names = "".join(f"{stem}.jpg\r\n" for stem in stems)
        write_file(tmp_path / f"Flickr_8k.{split}Images.txt", names)
    wavs = [(A, 0), (A, 1), (A, 2), (B, 0), (C, 0), (DEV, 0), (TEST, 0), (NO_FILE, 0), (UNLISTED, 0), (COPY, 0)]
    for stem, number in wavs:
        write_file(tmp_path / "flickr_audio/wavs" / f"{stem}_{number}.wav", sound())
    rows = [f"{stem}_{number}.wav {stem}.jpg #{number}\n" for stem, number in [*wavs, (C, 1)]]
    write_file(tmp_path / "flickr_audio/wav2capt.txt", "".join(rows))
    write_file(tmp_path / "flickr_audio/wav2spk.txt", f"{A}_0.wav 17\r\n{A}_1.wav 4\r\n")
    return tmp_path


def read(source: Path):
    return flickr8k.read_corpus(flickr8k.Flickr8kOptions(source=str(source), dest="file:///nowhere"))


def test_splits_follow_the_lists_and_every_rejection_has_a_cause(source: Path) -> None:
    corpus = read(source)
    assert corpus.splits() == ["train", "dev", "test"]
    samples, causes = make_all(corpus, "train")
    assert set(samples) == {f"{A}-0", f"{A}-1", f"{B}-0", f"{C}-0"}
    assert causes == {
        f"{A}-2": "missing_caption",
        f"{C}-1": "missing_recording",
        f"{NO_FILE}-0": "missing_image",
        f"{NO_LINES}-0": "missing_caption",
    }
    assert list(make_all(corpus, "dev")[0]) == [f"{DEV}-0"]
    assert list(make_all(corpus, "test")[0]) == [f"{TEST}-0"]
    assert left_out(corpus) == {
        f"flickr_audio/wavs/{UNLISTED}_0.wav": "no_split",
        f"flickr_audio/wavs/{COPY}_0.wav": "no_split",
    }


def test_texts_speakers_and_names_are_those_of_the_corpus(source: Path) -> None:
    samples, _ = make_all(read(source), "train")
    assert field_of(samples, "text")[f"{A}-1"] == "A girl , number #1 , goes into a wooden building ."
    assert dict(samples[f"{A}-0"].metadata) == {
        "image_id": A,
        "caption_id": f"{A}_0",
        "split": "train",
        "text": "A child in a pink dress is climbing up stairs .",
        "speaker": "17",
        "duration_seconds": 0.5,
    }
    assert samples[f"{A}-0"].image == image()  # small enough: the same bytes


def test_a_copy_number_is_removed_from_the_image_name(source: Path) -> None:
    write_file(source / "Flickr_8k.devImages.txt", f"{DEV}.jpg\n{COPY}.jpg\n")
    samples, causes = make_all(read(source), "dev")
    assert field_of(samples, "text")[f"{COPY}-0"] == "A man and a woman ."
    assert causes == {}


def test_captions_of_kaggle_give_the_same_texts(source: Path) -> None:
    original = field_of(make_all(read(source), "train")[0], "text")
    (source / "Flickr8k.token.txt").unlink()
    rows = ["image,caption"]
    for stem, _, text in CAPTIONS:
        rows.append(
            f'{stem}.jpg,"{text.replace(chr(34), chr(34) * 2)}"' if "," in text or '"' in text else f"{stem}.jpg,{text}"
        )
    write_file(source / "captions.txt", "\n".join(rows))
    assert field_of(make_all(read(source), "train")[0], "text") == original


def test_an_image_in_two_lists_is_refused(source: Path) -> None:
    write_file(source / "Flickr_8k.devImages.txt", f"{A}.jpg\n")
    with pytest.raises(UserError, match=rf"{A}.jpg is in Flickr_8k.trainImages.txt and in Flickr_8k.devImages.txt"):
        read(source)


@pytest.mark.parametrize("name", ["Flickr_8k.devImages.txt", "Flickr8k.token.txt", "flickr_audio/wav2capt.txt"])
def test_a_missing_list_is_named(source: Path, name: str) -> None:
    (source / name).unlink()
    with pytest.raises(UserError, match=f"has no {name.rpartition('/')[2]}"):
        read(source)


def test_recordings_that_are_not_there_at_all_are_named(source: Path) -> None:
    for wav in (source / "flickr_audio/wavs").iterdir():
        wav.unlink()
    with pytest.raises(UserError, match=rf"no usable recording .*8 missing_recording, .*; e.g. wavs/{A}_0.wav"):
        read(source)


def read_everywhere(location: str) -> dict[str, tuple[dict[str, bytes], dict[str, str]]]:
    """Return split -> members of the samples, and causes, of the copy at a URL or path."""
    corpus = flickr8k.read_corpus(flickr8k.Flickr8kOptions(source=location, dest="file:///nowhere"))
    made = {split: make_all(corpus, split) for split in corpus.splits()}
    return {
        split: ({key: s.members() for key, s in samples.items()}, causes) for split, (samples, causes) in made.items()
    }


def test_a_copy_at_a_file_url_gives_the_same_samples(source: Path) -> None:
    assert read_everywhere(source.as_uri()) == read_everywhere(str(source))


@pytest.mark.services
def test_a_copy_on_object_storage_gives_the_same_samples(source: Path, bucket: str) -> None:
    storage = open_storage(f"{bucket}/raw")
    for path in source.rglob("*"):
        if path.is_file():
            storage.upload(path, path.relative_to(source).as_posix())
    assert read_everywhere(f"{bucket}/raw/") == read_everywhere(str(source))


def test_all_missing_lists_are_named_at_once(source: Path) -> None:
    for name in ("Flickr8k.token.txt", "Flickr_8k.devImages.txt", "flickr_audio/wav2capt.txt"):
        (source / name).unlink()
    with pytest.raises(
        UserError,
        match=r"has no Flickr_8k\.devImages\.txt, no Flickr8k\.token\.txt or captions\.txt, no wav2capt\.txt: is it",
    ):
        read(source)
