"""The table recipe: four formats with commas, quotes, unicode and unusable rows."""

import csv
import dataclasses
import io
import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image

import brewclip.data.parquet
from brewclip.audio import decode_audio
from brewclip.data.schema import BadSample
from brewclip.data.storage import open_storage
from brewclip.errors import UserError
from tests.datasets.miniatures import (
    field_of,
    image,
    items_of,
    left_out,
    load_recipe,
    make_all,
    sound,
    write_file,
)

table = load_recipe("table")
table_open = brewclip.data.parquet._open

TEXTS = {
    "one": 'He said, "a dog", twice',
    "two": "tab\tand #1",
    "three": "\u0411\u0430\u0431\u0443\u0448\u043a\u0430 \U0001f436",
}
CAT = "images/K\u00e4tzchen 1.jpg"


def rows() -> list[dict]:
    return [
        {"image": CAT, "audio": "a/1.wav", "text": TEXTS["one"], "speaker": "eva", "split": "train"},
        {"image": CAT, "audio": "a/2.wav", "text": TEXTS["two"], "speaker": "7", "split": "train"},
        {"image": "dog.png", "audio": "a/3.wav", "text": TEXTS["three"], "speaker": "", "split": "val"},
        {"image": "./dog2.jpg", "audio": "a/4.wav", "text": "", "speaker": "", "split": "test"},
    ]


def write_table(folder: Path, name: str, listed: list[dict]) -> Path:
    """Write the table and small files for all images and recordings it references."""
    path = folder / name
    frame = pd.DataFrame(listed)
    if name.endswith("parquet"):
        frame.to_parquet(path)
    elif name.endswith("jsonl"):
        write_file(path, "".join(json.dumps(row) + "\n" for row in listed))
    else:
        text = frame.to_csv(index=False, sep="," if name.endswith("csv") else "\t", lineterminator="\r\n")
        write_file(path, text.encode("utf-8-sig"))
    for row in listed:
        if row["image"]:
            write_file(folder / row["image"], image(form="PNG" if row["image"].endswith("png") else "JPEG"))
        if row["audio"]:
            write_file(folder / row["audio"], sound(0.2))
    return path


def read(path: Path, **flags):
    return table.read_corpus(table.TableOptions(source=str(path), dest="s3://bucket/mine/", **flags))


@pytest.mark.parametrize("name", ["t.csv", "t.TSV", "t.jsonl", "t.parquet"])
def test_all_formats_give_the_same_samples(tmp_path: Path, name: str) -> None:
    corpus = read(write_table(tmp_path, name.lower(), rows()))
    assert (corpus.corpus, corpus.splits()) == ("mine", ["train", "dev", "test"])
    made = [make_all(corpus, split) for split in corpus.splits()]
    samples = {key: sample for part, _ in made for key, sample in part.items()}
    assert [causes for _, causes in made] == [{}, {}, {}]
    cat = table.safe_id(CAT)
    assert cat.startswith("images_K\u00e4tzchen_1-")
    dog, dog2 = table.safe_id("dog.png"), table.safe_id("dog2.jpg")
    keys = [f"{cat}-0", f"{cat}-1", f"{dog}-0", f"{dog2}-0"]
    assert field_of(samples, "text") == dict(zip(keys, [*TEXTS.values(), None], strict=True))
    assert field_of(samples, "speaker") == dict(zip(keys, ["eva", "7", None, None], strict=True))
    with Image.open(io.BytesIO(samples[f"{dog}-0"].image or b"")) as image:
        assert (image.format, image.size) == ("JPEG", (40, 30))


def test_unusable_rows_are_rejected_with_a_cause(tmp_path: Path) -> None:
    listed = [
        {"image": "a.jpg", "audio": "1.wav", "image_id": "7", "split": "train"},
        {"image": "a.jpg", "audio": "1.wav", "image_id": "7", "split": "train"},
        {"image": "b.jpg", "audio": "2.wav", "image_id": "7", "split": "train"},
        {"image": "", "audio": "3.wav", "image_id": "8", "split": "train"},
        {"image": "c.jpg", "audio": "", "image_id": "9", "split": "train"},
        {"image": "d.jpg", "audio": "4.wav", "image_id": "10", "split": ""},
        *({"image": f"{n}.jpg", "audio": f"{n}.wav", "image_id": f"{n}", "split": "train"} for n in range(20, 26)),
    ]
    path = write_table(tmp_path, "t.csv", listed)
    (tmp_path / "20.jpg").unlink()
    (tmp_path / "21.wav").unlink()
    write_file(tmp_path / "22.jpg", image(400, 400)[:-300])
    write_file(tmp_path / "23.wav", sound(0.09))
    write_file(tmp_path / "24.wav", sound(601, rate_hz=1000))
    write_file(tmp_path / "25.wav", b"<html>not found</html>")
    corpus = read(path)
    samples, causes = make_all(corpus, "train")
    assert list(samples) == ["7-0"]
    assert causes == {
        "7-1": "duplicate",
        "7-2": "image_id_of_another_image",
        "8-0": "no_image",
        "9-0": "no_audio",
        "20-0": "missing_image",
        "21-0": "missing_recording",
        "22-0": "image",
        "23-0": "too_short",
        "24-0": "too_long",
        "25-0": "not_audio",
    }
    assert left_out(corpus) == {"4.wav": "no_split"}


def test_an_unquoted_comma_rejects_only_its_row(tmp_path: Path) -> None:
    write_table(tmp_path, "t.csv", rows())
    lines = ["image,audio,text", f"{CAT},a/1.wav,a cat, sleeping", "dog2.jpg,a/4.wav,a dog"]
    write_file(tmp_path / "t.csv", "\n".join(lines))
    corpus = read(tmp_path / "t.csv", dev_fraction=0.0, test_fraction=0.0)
    samples, causes = make_all(corpus, "train")
    assert (list(field_of(samples, "text").values()), list(causes.values())) == (["a dog"], ["more_cells_than_columns"])


def test_without_a_split_column_images_are_split_by_the_seed(tmp_path: Path) -> None:
    names = [{"image": f"{n}.jpg", "audio": f"{n}-{k}.wav"} for n in range(200) for k in range(2)]
    for name in {file for row in names for file in row.values()}:
        (tmp_path / name).touch()
    write_file(tmp_path / "t.jsonl", "\n".join(map(json.dumps, names)))
    write_file(tmp_path / "half.jsonl", "\n".join(map(json.dumps, names[:200])))

    def splits(name: str, seed: int) -> dict[str, str]:
        corpus = read(tmp_path / name, seed=seed)
        return {item.image: item.split for split in corpus.splits() for item in items_of(corpus, split)}

    whole = splits("t.jsonl", 0)
    assert 140 < Counter(whole.values())["train"] < 180
    assert splits("half.jsonl", 0).items() < whole.items()  # new rows move no image
    assert splits("t.jsonl", 1) != whole
    rounds = read(tmp_path / "t.jsonl").rounds("train")
    assert [item.image_id for item in rounds[0]] == [item.image_id for item in rounds[1]]


def test_an_image_in_two_splits_is_refused(tmp_path: Path) -> None:
    listed = rows()
    listed[1]["split"] = "test"
    with pytest.raises(UserError, match=r"one image is in two splits, e\.g\. 'images/K.*' in train and test"):
        read(write_table(tmp_path, "t.csv", listed))
    by_file = [row | {"image_id": str(number)} for number, row in enumerate(listed)]  # two ids hide one file
    with pytest.raises(UserError, match="one image is in two splits"):
        read(write_table(tmp_path, "t.csv", by_file))


def test_files_may_be_named_by_url(tmp_path: Path) -> None:
    write_file(tmp_path / "far/a #1.jpg", image())
    write_file(tmp_path / "far/a #1.wav", sound())
    url = (tmp_path / "far/a #1").as_uri()
    write_file(tmp_path / "near/t.jsonl", json.dumps({"image": f"{url}.jpg", "audio": f"{url}.wav", "image_id": 7.0}))
    corpus = table.read_corpus(
        table.TableOptions(
            source=f"file://{tmp_path}/near/t.jsonl", dest="file:///x", test_fraction=0.999, dev_fraction=0
        )
    )
    samples, causes = make_all(corpus, "test")
    assert (list(samples), causes) == (["7-0"], {})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "photo,audio\na,b\n", "has no column image, only: audio, photo"),
        ("t.csv", "", "has no column image and no column audio"),
        ("t.csv", 'image,audio\n"a,b\n', "cannot be read as CSV"),
        ("t.csv", b"image,audio\n\xff\xfe,b\n", "is not UTF-8 text"),
        ("t.jsonl", '{"image": "a", "audio": "b"}\n{"image', "line 2 of .* is not JSON"),
        ("t.jsonl", "[1, 2]\n", "line 1 is no JSON object"),
        ("t.parquet", b"PAR1 nothing", "is no Parquet file"),
        ("t.xlsx", b"", "is no table: name a file that ends in .csv, .tsv, .jsonl, .parquet"),
        ("t.csv", "image,audio,split\na,b,../up\n", "row 1 of t.csv has the split '../up'"),
        ("t.csv", "image,audio\n", "has no column image|lists no recording"),
    ],
)
def test_an_invalid_table_gives_one_line(tmp_path: Path, name: str, content: bytes | str, message: str) -> None:
    write_file(tmp_path / name, content)
    with pytest.raises(UserError, match=message):
        read(tmp_path / name)


def test_a_missing_table_gives_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"t\.csv does not exist"):
        read(tmp_path / "t.csv")
    with pytest.raises(UserError, match="gone does not exist"):
        read(tmp_path / "gone/t.csv")


def test_a_field_of_any_length_is_read(tmp_path: Path) -> None:
    buffer = io.StringIO()
    csv.writer(buffer).writerows([["image", "audio", "text"], ["a.jpg", "b.wav", "long " * 40_000]])
    write_file(tmp_path / "t.csv", buffer.getvalue())
    write_file(tmp_path / "a.jpg", image())
    write_file(tmp_path / "b.wav", sound())
    corpus = read(tmp_path / "t.csv", dev_fraction=0, test_fraction=0)
    assert len(items_of(corpus, "train")[0].text) == 199_999


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_a_csv_with_another_delimiter_is_read(tmp_path: Path, delimiter: str) -> None:
    path = write_table(tmp_path, "t.csv", rows())
    pd.DataFrame(rows()).to_csv(path, index=False, sep=delimiter)
    assert set(read(path).splits()) == {"train", "dev", "test"}


def test_columns_of_other_names_are_named_by_flags(tmp_path: Path) -> None:
    write_file(tmp_path / "a.jpg", image())
    write_file(tmp_path / "a.wav", sound())
    row = {"photo": {"file": "a.jpg"}, "Clip": {"path": "a.wav"}, "who": 7, "said": "hello", "part": "test"}
    write_file(tmp_path / "t.jsonl", json.dumps(row))
    names = {"image_column": "photo.file", "audio_column": "clip", "text_column": "said", "speaker_column": "who"}
    samples, causes = make_all(read(tmp_path / "t.jsonl", split_column="part", **names), "test")
    assert (causes, list(field_of(samples, "speaker").values())) == ({}, ["7"])
    with pytest.raises(UserError, match=r"has no column saying, only: Clip.* --text-column can name another"):
        read(tmp_path / "t.jsonl", **names | {"text_column": "saying"})


def test_recordings_without_images(tmp_path: Path) -> None:
    write_file(tmp_path / "a.wav", sound())
    write_file(tmp_path / "t.csv", "audio,emotion,speaker,split\na.wav,sad,eva,train")
    samples, causes = make_all(read(tmp_path / "t.csv", image_column=""), "train")
    (sample,) = samples.values()
    assert (causes, sample.image, sample.metadata["emotion"]) == ({}, None, "sad")
    with pytest.raises(UserError, match=r"has no column image, only: audio, .* --image-column can name another"):
        read(tmp_path / "t.csv")


# ------------------------------------------------------------------ Hugging Face Parquet

BLOB = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
FEATURES = {"info": {"features": {"feeling": {"names": ["calm", "sad", "happy"], "_type": "ClassLabel"}}}}


def noise(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def hugging_face_rows(clips: list[Path]) -> list[dict]:
    """Return rows with embedded images and recordings; the last has only the path of its recording."""
    rows = [
        {
            "image": {"bytes": noise(number), "path": f"{path.stem}.jpg"},
            "speech": {"audio": {"bytes": path.read_bytes(), "path": path.name}, "sentence": f"take {number}"},
            "feeling": number % 3,
        }
        for number, path in enumerate(clips)
    ]
    rows[-1]["speech"]["audio"] = {"bytes": None, "path": "extra/last.wav"}
    return rows


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, shared_directory: Path) -> Path:
    """The folder of a downloaded dataset repository: 24 real recordings in two files of train and one of test."""
    folder = tmp_path_factory.mktemp("repository")
    clips = sorted((shared_directory / "speech/digits").glob("*_jackson_*.wav"))[:24]
    (folder / "data/extra").mkdir(parents=True)
    (folder / "README.md").write_text("a dataset")
    write_file(folder / "data/extra/last.wav", clips[-1].read_bytes())
    speech = pa.struct([("audio", BLOB), ("sentence", pa.string())])
    schema = pa.schema([("image", BLOB), ("speech", speech), ("feeling", pa.int64())])
    schema = schema.with_metadata({"huggingface": json.dumps(FEATURES)})
    listed = hugging_face_rows(clips)
    for name, part in (
        ("train-00000-of-00002", listed[:10]),
        ("train-00001-of-00002", listed[10:20]),
        ("test-00000-of-00001", listed[20:]),
    ):
        pq.write_table(pa.Table.from_pylist(part, schema), folder / f"data/{name}.parquet", row_group_size=4)
    return folder


def read_repository(folder: Path, pattern: str = "data/*.parquet", **flags):
    names = {"audio_column": "speech.audio", "text_column": "speech.sentence", "emotion_column": "feeling"}
    return read(folder / pattern, **names | flags)


def test_a_dataset_repository_is_a_corpus(repository: Path, shared_directory: Path) -> None:
    corpus = read_repository(repository)
    assert corpus.splits() == ["train", "test"]
    assert [len(items_of(corpus, split)) for split in corpus.splits()] == [20, 4]
    assert corpus.remarks == [
        "the names of the files say the splits test, train, there is no dev; "
        "--no-split-from-file-name draws all three by --seed"
    ]
    for split in corpus.splits():
        samples, causes = make_all(corpus, split)
        assert causes == {}
        for sample in samples.values():
            number = int(sample.metadata["text"].split()[1])
            path = sorted((shared_directory / "speech/digits").glob("*_jackson_*.wav"))[number]
            np.testing.assert_allclose(
                soundfile.read(io.BytesIO(sample.audio or b""))[0], decode_audio(path.read_bytes()), atol=1 / 32768
            )
            assert sample.metadata["emotion"] == ["calm", "sad", "happy"][number % 3]
            assert sample.image == noise(number)
    drawn = read_repository(repository, split_from_file_name=False, dev_fraction=0.3, test_fraction=0.3)
    assert drawn.splits() == ["train", "dev", "test"]


@pytest.mark.services
def test_a_dataset_repository_is_read_from_object_storage(repository: Path, bucket: str) -> None:
    storage = open_storage(f"{bucket}/raw")
    for path in filter(Path.is_file, (repository / "data").rglob("*")):
        storage.upload(path, path.relative_to(repository).as_posix())
    names = {"audio_column": "speech.audio", "text_column": "speech.sentence"}
    flags = table.TableOptions(source=f"{bucket}/raw/data/*.parquet", dest=f"{bucket}/mine", **names)
    ours, local = table.read_corpus(flags), read_repository(repository)
    for split in ("train", "test"):
        samples, causes = make_all(ours, split)
        assert causes == {}
        assert {one.audio for one in samples.values()} == {one.audio for one in make_all(local, split)[0].values()}
    storage.delete("data/extra/last.wav")
    dry = table.read_corpus(dataclasses.replace(flags, dry_run=True))
    assert [item.problem for item in items_of(dry, "test") if item.problem] == ["missing_recording"]


def test_cells_of_a_row_group_are_read_consecutively(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = read_repository(repository)
    order = [item.image.partition("#")[0::2] for item in items_of(corpus, "train")]
    groups = [(name, cell.split("[")[1].split(":")[0]) for name, cell in order]
    assert sum(one != other for one, other in itertools.pairwise(groups)) == len(set(groups)) - 1 == 5
    opened = []
    monkeypatch.setattr(
        "brewclip.data.parquet._open", lambda *args, real=table_open: opened.append(args) or real(*args)
    )
    make_all(corpus, "train")
    assert len(opened) == 2 * 6  # recordings and images of each row group


def test_patterns_in_file_names(repository: Path) -> None:
    assert len(items_of(read_repository(repository, "data/train-*.parquet"), "train")) == 20
    assert read_repository(repository, "**/*.parquet").splits() == ["train", "test"]
    assert read_repository(repository, "d*/test-?????-of-00001.parquet").splits() == ["test"]
    with pytest.raises(UserError, match=r"fits no file below .*repository\d*$"):
        read_repository(repository, "*.parquet")
    with pytest.raises(UserError, match=r"data is a folder: name its table, or several as '.*data/\*\.parquet'"):
        read_repository(repository, "data")
    with pytest.raises(UserError, match=r"README.md is no table"):
        read_repository(repository, "*")


def test_rows_without_image_or_recording_are_rejected(tmp_path: Path) -> None:
    rows = [
        {"image": {"bytes": noise(1), "path": None}, "audio": {"bytes": sound(), "path": None}},
        {"image": None, "audio": {"bytes": sound(), "path": None}},
        {"image": {"bytes": noise(2), "path": None}, "audio": {"bytes": None, "path": "gone.wav"}},
        {"image": {"bytes": b"no image", "path": None}, "audio": {"bytes": sound(), "path": None}},
    ]
    pq.write_table(pa.Table.from_pylist(rows, pa.schema([("image", BLOB), ("audio", BLOB)])), tmp_path / "t.parquet")
    samples, causes = make_all(read(tmp_path / "t.parquet", dev_fraction=0, test_fraction=0), "train")
    assert sorted(causes.values()) == ["image", "missing_recording", "no_image"]
    assert len(samples) == 1


def test_a_file_deleted_after_listing_is_rejected(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "test-00000-of-00001.parquet").write_bytes(
        (repository / "data/test-00000-of-00001.parquet").read_bytes()
    )
    write_file(tmp_path / "extra/last.wav", sound())
    corpus = read_repository(tmp_path, "*.parquet")
    (tmp_path / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(BadSample, match=r"missing_image: .*00001\.parquet does not exist"):
        corpus.make_sample(items_of(corpus, "test")[0])
