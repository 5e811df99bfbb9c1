"""The Localized Narratives recipe on a miniature copy: string ids, 48 kHz stereo Ogg, damage, missing files."""

import functools
import json
from pathlib import Path

import pytest

from brewclip.errors import UserError
from tests.datasets.miniatures import decoded, image, left_out, load_recipe, make_all, sound, write_file

narratives = load_recipe("localized_narratives")

TEXT = "In this image there are group of cows standing and eating th\u00e9 grass."


def row(part: str, image: int, annotator: int) -> dict:
    return {
        "dataset_id": f"mscoco_{part}2017",
        "image_id": str(image),
        "annotator_id": annotator,
        "caption": TEXT,
        "timed_caption": [{"utterance": "In this", "start_time": 0.0, "end_time": 0.4}],
        "traces": [[{"x": 0.2086, "y": -0.0533, "t": 0.022}]],
        "voice_recording": f"coco_{part}/coco_{part}_{image}_{annotator}.ogg",
    }


@functools.cache
def ogg(seconds: float) -> bytes:
    return sound(seconds, rate_hz=48_000, channels=2, form="OGG")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rows = {
        "train": [row("train", number, 7) for number in range(30, 60)],
        "val": [row("val", 137576, 93), row("val", 137576, 94), row("val", 8, 1), row("val", 9, 1)],
    }
    for part, listed in rows.items():
        for item in listed:
            write_file(tmp_path / item["voice_recording"], ogg(0.4))
            write_file(tmp_path / f"{part}2017" / f"{int(item['image_id']):012d}.jpg", image())
    write_file(tmp_path / "coco_val/coco_val_137576_93.ogg", ogg(31.0))
    for part in range(4):
        lines = [json.dumps(item) for item in rows["train"][part::4]]
        write_file(tmp_path / narratives.TRAIN[part], "\n".join(lines) + "\n")
    lines = [json.dumps(item, ensure_ascii=False) for item in rows["val"]]
    write_file(tmp_path / narratives.VAL[0], "\r\n".join([*lines, '{"image_id": "no number"}']))
    return tmp_path


def read(source: Path, dev_fraction: float = 0.2):
    options = narratives.NarrativesOptions(source=str(source), dest="file:///nowhere", dev_fraction=dev_fraction)
    return narratives.read_corpus(options)


def test_recordings_become_16_khz_mono_and_keep_their_words(source: Path) -> None:
    (source / "coco_val/coco_val_8_1.ogg").unlink()
    (source / "val2017/000000000009.jpg").unlink()
    corpus = read(source)
    samples, causes = make_all(corpus, "test")
    assert causes == {"000000000008-0": "missing_recording", "000000000009-0": "missing_image"}
    assert left_out(corpus) == {"{'image_id': 'no number'}": "bad_row"}
    assert dict(samples["000000137576-1"].metadata) == {
        "image_id": "000000137576",
        "caption_id": "coco_val_137576_94",
        "split": "test",
        "text": TEXT,
        "speaker": "94",
        "duration_seconds": 0.4,
    }
    waveform, rate_hz = decoded(samples["000000137576-0"].audio)
    assert (rate_hz, waveform.shape) == (16_000, (31 * 16_000, 1))


def test_dev_is_a_share_of_the_images_of_train(source: Path) -> None:
    corpus = read(source)
    train, dev = (make_all(corpus, split)[0] for split in ("train", "dev"))
    assert len(train) + len(dev) == 30
    assert 1 <= len(dev) <= 15
    assert read(source, 0.0).splits() == ["train", "test"]


def test_a_damaged_recording_keeps_what_decodes(source: Path) -> None:
    name = source / "coco_val/coco_val_137576_93.ogg"
    data = name.read_bytes()
    name.write_bytes(data[: len(data) // 2])
    (source / "coco_val/coco_val_8_1.ogg").write_bytes(b"OggS" + bytes(500))
    (source / "coco_val/coco_val_9_1.ogg").write_bytes(b"")
    samples, causes = make_all(read(source), "test")
    assert 5 < samples["000000137576-0"].metadata["duration_seconds"] < 30
    assert causes == {"000000000008-0": "not_audio", "000000000009-0": "empty"}


def test_val_alone_is_enough_but_half_of_train_is_not(source: Path) -> None:
    (source / narratives.TRAIN[2]).unlink()
    with pytest.raises(UserError, match=r"has no coco_train_localized_narratives-00002-of-00004\.jsonl"):
        read(source)
    for name in narratives.TRAIN:
        (source / name).unlink(missing_ok=True)
    assert read(source).splits() == ["test"]
    (source / narratives.VAL[0]).unlink()
    with pytest.raises(UserError, match=r"has neither coco_train_\S+ nor coco_val_localized_narratives.jsonl"):
        read(source)


def test_a_truncated_line_is_named(source: Path) -> None:
    lines = (source / narratives.TRAIN[1]).read_text().splitlines()
    write_file(source / narratives.TRAIN[1], "\n".join([*lines, '{"dataset_id": "msco']))
    with pytest.raises(UserError, match=rf"line {len(lines) + 1} of .*00001-of-00004.jsonl is not JSON"):
        read(source)
