"""The table recipe: four formats with commas, quotes, unicode and rows that cannot be used."""

import csv
import io
import json
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from brewclip.config import UserError
from tests.datasets.miniatures import (
    field_of,
    items_of,
    left_out,
    load_recipe,
    make_all,
    picture,
    sound,
    write_file,
)

table = load_recipe("table")

TEXTS = {
    "one": 'He said, "a dog", twice',
    "two": "tab\tand #1",
    "three": "\u0411\u0430\u0431\u0443\u0448\u043a\u0430 \U0001f436",
}
CAT = "pictures/K\u00e4tzchen 1.jpg"


def rows() -> list[dict]:
    return [
        {"image": CAT, "audio": "a/1.wav", "text": TEXTS["one"], "speaker": "eva", "split": "train"},
        {"image": CAT, "audio": "a/2.wav", "text": TEXTS["two"], "speaker": "7", "split": "train"},
        {"image": "dog.png", "audio": "a/3.wav", "text": TEXTS["three"], "speaker": "", "split": "val"},
        {"image": "./dog2.jpg", "audio": "a/4.wav", "text": "", "speaker": "", "split": "test"},
    ]


def write_table(folder: Path, name: str, listed: list[dict]) -> Path:
    """Write the table and short files of all pictures and recordings that it names."""
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
            write_file(folder / row["image"], picture(form="PNG" if row["image"].endswith("png") else "JPEG"))
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
    assert cat.startswith("pictures_K\u00e4tzchen_1-")
    dog, dog2 = table.safe_id("dog.png"), table.safe_id("dog2.jpg")
    keys = [f"{cat}-0", f"{cat}-1", f"{dog}-0", f"{dog2}-0"]
    assert field_of(samples, "text") == dict(zip(keys, [*TEXTS.values(), None], strict=True))
    assert field_of(samples, "speaker") == dict(zip(keys, ["eva", "7", None, None], strict=True))
    with Image.open(io.BytesIO(samples[f"{dog}-0"].image or b"")) as image:
        assert (image.format, image.size) == ("JPEG", (40, 30))


def test_rows_that_cannot_be_used_are_rejected_with_a_cause(tmp_path: Path) -> None:
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
    write_file(tmp_path / "22.jpg", picture(400, 400)[:-300])
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
        "20-0": "missing_picture",
        "21-0": "missing_recording",
        "22-0": "picture",
        "23-0": "too_short",
        "24-0": "too_long",
        "25-0": "not_audio",
    }
    assert left_out(corpus) == {"4.wav": "no_split"}


def test_a_comma_without_quotes_spoils_its_own_row_only(tmp_path: Path) -> None:
    write_table(tmp_path, "t.csv", rows())
    lines = ["image,audio,text", f"{CAT},a/1.wav,a cat, sleeping", "dog2.jpg,a/4.wav,a dog"]
    write_file(tmp_path / "t.csv", "\n".join(lines))
    corpus = read(tmp_path / "t.csv", dev_fraction=0.0, test_fraction=0.0)
    samples, causes = make_all(corpus, "train")
    assert (list(field_of(samples, "text").values()), list(causes.values())) == (["a dog"], ["more_cells_than_columns"])


def test_without_a_split_column_pictures_are_split_by_the_seed(tmp_path: Path) -> None:
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
    assert splits("half.jsonl", 0).items() < whole.items()  # new rows move no picture
    assert splits("t.jsonl", 1) != whole
    rounds = read(tmp_path / "t.jsonl").rounds("train")
    assert [item.image_id for item in rounds[0]] == [item.image_id for item in rounds[1]]


def test_a_picture_in_two_splits_is_refused(tmp_path: Path) -> None:
    listed = rows()
    listed[1]["split"] = "test"
    with pytest.raises(UserError, match=r"one picture lies in two splits, e\.g\. 'pictures/K.*' in train and test"):
        read(write_table(tmp_path, "t.csv", listed))
    by_file = [row | {"image_id": str(number)} for number, row in enumerate(listed)]  # two ids hide one file
    with pytest.raises(UserError, match="one picture lies in two splits"):
        read(write_table(tmp_path, "t.csv", by_file))


def test_files_may_be_named_by_url(tmp_path: Path) -> None:
    write_file(tmp_path / "far/a #1.jpg", picture())
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
        ("t.csv", "picture,audio\na,b\n", "has no column image, only: audio, picture"),
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
def test_a_wrong_table_gets_one_line(tmp_path: Path, name: str, content: bytes | str, message: str) -> None:
    write_file(tmp_path / name, content)
    with pytest.raises(UserError, match=message):
        read(tmp_path / name)


def test_a_missing_table_gets_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"t\.csv does not exist"):
        read(tmp_path / "t.csv")
    with pytest.raises(UserError, match="gone does not exist"):
        read(tmp_path / "gone/t.csv")


def test_a_field_of_any_length_is_read(tmp_path: Path) -> None:
    buffer = io.StringIO()
    csv.writer(buffer).writerows([["image", "audio", "text"], ["a.jpg", "b.wav", "long " * 40_000]])
    write_file(tmp_path / "t.csv", buffer.getvalue())
    write_file(tmp_path / "a.jpg", picture())
    write_file(tmp_path / "b.wav", sound())
    corpus = read(tmp_path / "t.csv", dev_fraction=0, test_fraction=0)
    assert len(items_of(corpus, "train")[0].text) == 199_999
