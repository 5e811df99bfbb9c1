"""The SpokenCOCO recipe on miniature copies of its three forms."""

import json
from pathlib import Path

import pytest

from brewclip.errors import UserError
from tests.datasets.miniatures import field_of, image, left_out, load_recipe, make_all, sound, write_file

spoken_coco = load_recipe("spoken_coco")

SPEAKER = "m071506418gb9vo0w5xq3"
TEXT = "A URINAL IN A PUBLIC RESTROOM NEAR A WOODEN TABLE"


def caption(image: int, number: int, part: str = "val") -> dict[str, str]:
    name = f"{SPEAKER}-3LUY{number}_{image}_62929{number}"
    return {"text": TEXT, "speaker": SPEAKER, "uttid": name, "wav": f"wavs/{part}/0/{name}.wav"}


def row(image: int, captions: int, part: str = "val") -> dict:
    return {
        "image": f"{part}2014/COCO_{part}2014_{image:012d}.jpg",
        "captions": [caption(image, number, part) for number in range(captions)],
    }


def write_files(source: Path, rows: list[dict]) -> None:
    for item in rows:
        write_file(source / item["image"], image())
        for spoken in item["captions"]:
            write_file(source / spoken["wav"], sound(1.3))


def write_json(source: Path, name: str, rows: list[dict]) -> None:
    write_file(source / name, json.dumps({"data": rows}))


def read(source: Path, variant: str = "auto"):
    options = spoken_coco.SpokenCocoOptions(source=str(source), dest="file:///nowhere", variant=variant)
    return spoken_coco.read_corpus(options)


@pytest.fixture
def original(tmp_path: Path) -> Path:
    train, val = [row(9, 2, "train"), row(25, 6, "train")], [row(325114, 5)]
    write_files(tmp_path, train + val)
    write_json(tmp_path, "SpokenCOCO_train.json", train)
    write_json(tmp_path, "SpokenCOCO_val.json", val)
    return tmp_path


def test_original_lists(original: Path) -> None:
    missing = caption(325114, 3)
    (original / missing["wav"]).unlink()
    corpus = read(original)
    assert corpus.splits() == ["train", "dev"]
    assert [len(items) for items in corpus.rounds("train")] == [2, 2, 1, 1, 1, 1]
    samples, causes = make_all(corpus, "dev")
    image_id = "COCO_val2014_000000325114"
    assert causes == {f"{image_id}-3": "missing_recording"}
    assert dict(samples[f"{image_id}-0"].metadata) == {
        "image_id": image_id,
        "caption_id": f"{SPEAKER}-3LUY0_325114_629290",
        "split": "dev",
        "text": TEXT.lower(),
        "speaker": SPEAKER,
        "duration_seconds": 1.3,
    }


def test_karpathys_split_is_preferred_and_both_of_its_forms_agree(original: Path) -> None:
    parts = {"train": [row(9, 2, "train")], "val": [row(25, 6, "train")], "test": [row(325114, 5)]}
    for part, rows in parts.items():
        numbered = [item | {"reassign_id": number} for number, item in enumerate(rows)]
        write_json(original, f"SpokenCOCO_ksplit_{part}.json", numbered)
        unrolled = [{"image": item["image"], "caption": spoken} for item in rows for spoken in item["captions"]]
        write_json(original, f"SpokenCOCO_{part}_unrolled_karpathy.json", unrolled)
    corpus = read(original)
    assert corpus.splits() == ["train", "dev", "test"]
    for split, count in {"train": 2, "dev": 6, "test": 5}.items():
        samples, causes = make_all(corpus, split)
        assert (len(samples), causes) == (count, {})
        unrolled, _ = make_all(read(original, "unrolled"), split)
        assert field_of(unrolled, "caption_id") == field_of(samples, "caption_id")


def test_an_image_in_two_splits_is_refused(original: Path) -> None:
    for part in ("train", "val", "test"):
        write_json(original, f"SpokenCOCO_ksplit_{part}.json", [row(9, 1, "train")])
    with pytest.raises(UserError, match=r"one image is in two splits, e.g. 'train2014/COCO.*9.jpg' in train and"):
        read(original)


def test_a_row_without_captions_is_counted(original: Path) -> None:
    write_json(original, "SpokenCOCO_val.json", [row(325114, 1), {"image": "val2014/x.jpg"}])
    corpus = read(original)
    assert list(left_out(corpus).values()) == ["bad_row"]
    assert len(make_all(corpus, "dev")[0]) == 1


def test_wrong_layouts_are_named(tmp_path: Path, original: Path) -> None:
    with pytest.raises(UserError, match=r"has none of SpokenCOCO_ksplit_train.json$|has none of SpokenCOCO_ksplit"):
        read(original, "ksplit")
    write_json(original, "SpokenCOCO_ksplit_train.json", [row(9, 1, "train")])
    with pytest.raises(UserError, match=r"has no SpokenCOCO_ksplit_val.json, SpokenCOCO_ksplit_test.json"):
        read(original)
    write_file(original / "SpokenCOCO_ksplit_train.json", '{"data": [')
    write_json(original, "SpokenCOCO_ksplit_val.json", [])
    write_json(original, "SpokenCOCO_ksplit_test.json", [])
    with pytest.raises(UserError, match=r"SpokenCOCO_ksplit_train.json is not JSON .*: download it again"):
        read(original)


def test_images_behind_a_link_are_found(original: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("coco") / "train2014"
    (original / "train2014").rename(elsewhere)
    (original / "train2014").symlink_to(elsewhere)
    samples, causes = make_all(read(original), "train")
    assert (len(samples), causes) == (8, {})
