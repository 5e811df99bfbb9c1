"""Extraction: how a split is divided, what counts as finished, resuming after an interruption."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from whisper.model import ModelDimensions, Whisper

from brewclip.audio import encode_flac
from brewclip.config import Config, DataConfig, ExtractionConfig
from brewclip.corpora.extraction import _is_done, plan_parts, splits_to_extract, task_of
from brewclip.data.manifest import open_manifest
from brewclip.data.schema import Sample
from brewclip.data.shards import finish_split, shard_name, write_shard
from brewclip.data.storage import open_storage
from brewclip.errors import ManifestError, UserError

CHECKOUT = Path(__file__).parents[2]


def write_recordings(url: str, split: str, sizes: list[int], *, seconds: float = 0.1) -> None:
    """Write shards of silence, in one round, with so many recordings each."""
    silence = encode_flac(np.zeros(round(seconds * 16_000), np.float32))
    storage, records = open_storage(f"{url}/{split}"), []
    for number, size in enumerate(sizes):
        samples = [
            Sample(
                f"{split}{number}x{n}-0",
                {"image_id": f"{split}{number}x{n}", "caption_id": f"{n}", "split": split, "duration_seconds": seconds},
                audio=silence,
            )
            for n in range(size)
        ]
        records.append(write_shard(storage, shard_name(split, 0, number), 0, samples))
    finish_split(storage, records, corpus="silence", split=split, kind="recordings", num_images=sum(sizes))


@pytest.mark.parametrize(
    ("sizes", "counts"),
    [
        ([5, 5], [5, 5]),  # small shards stay whole
        ([100], [33, 33, 34]),  # at least 32 samples each
        ([31, 64], [31, 32, 32]),
    ],
)
def test_shards_of_a_small_split_are_divided_evenly(tmp_path, sizes, counts):
    write_recordings(tmp_path.as_uri(), "train", sizes)
    parts = plan_parts(open_manifest(f"{tmp_path.as_uri()}/train"))
    assert [part.extent.count for part in parts] == counts
    covered = [(part.extent.shard, part.extent.first + n) for part in parts for n in range(part.extent.count)]
    assert covered == [(shard, n) for shard, size in enumerate(sizes) for n in range(size)]
    assert [part.name for part in parts] == sorted({part.name for part in parts})


def test_a_large_split_keeps_its_shards(tmp_path):
    write_recordings(tmp_path.as_uri(), "train", [1])
    manifest = open_manifest(f"{tmp_path.as_uri()}/train")
    manifest.num_samples = np.full(40, 1000)
    manifest.rounds = np.repeat([0, 1], 20)
    manifest.summary = replace(manifest.summary, num_samples=40_000)
    assert [(part.extent.count, part.round) for part in plan_parts(manifest)] == [(1000, 0)] * 20 + [(1000, 1)] * 20


def test_existing_splits_are_the_default(tmp_path):
    storage = tmp_path.as_uri()
    for split in ("test", "extra", "train"):
        write_recordings(f"{storage}/mine", split, [1])
    (tmp_path / "mine" / "whisper-base").mkdir()
    config = Config(storage=storage, data=DataConfig(corpus="mine"))
    assert splits_to_extract(config) == ("train", "test", "extra")
    with pytest.raises(ManifestError, match=r"no whole split at .*/mine/dev"):
        splits_to_extract(replace(config, extraction=ExtractionConfig(splits=("train", "dev"))))
    with pytest.raises(ManifestError, match=r"no whole split at .*/nothing: write the corpus first"):
        splits_to_extract(replace(config, data=DataConfig(corpus="nothing")))


def test_features_of_other_settings_or_another_corpus_are_not_reused(tmp_path, capsys):
    storage = tmp_path.as_uri()
    write_recordings(f"{storage}/mine", "train", [2])
    config = Config(storage=storage, data=DataConfig(corpus="mine"))

    def task(side=224, **changes):
        return replace(task_of(config, open_manifest(f"{storage}/mine/train"), side), **changes)

    def write_features(one):
        target = open_storage(one.target_url)
        record = write_shard(target, "a.tar", 0, [Sample("a", _FACTS, features=b"")])
        details = {"whisper": "base", "image_side_pixels": 224, "source_sha256": one.source_sha256, "language": "en"}
        finish_split(target, [record], corpus="mine", split="train", kind="features", num_images=1, details=details)

    assert not _is_done(task(), overwrite=False)
    write_features(task())
    assert _is_done(task(), overwrite=False) and _is_done(task(batch_size=3), overwrite=False)
    with pytest.raises(UserError, match=r"image_side_pixels 224, now 336.*--extraction.overwrite"):
        _is_done(task(side=336), overwrite=False)
    with pytest.raises(UserError, match=r"precision 'float32', now 'bfloat16', retries 5, now 0"):
        _is_done(task(precision="bfloat16", retries=0), overwrite=False)
    write_recordings(f"{storage}/mine", "train", [3])
    assert not _is_done(task(), overwrite=False)
    assert "was rewritten since its extraction" in capsys.readouterr().out
    write_features(task())
    assert not _is_done(task(side=336), overwrite=True)
    assert not _is_done(task(), overwrite=False), "the manifest went first"


_FACTS = {"image_id": "a", "caption_id": "a", "split": "train", "duration_seconds": 1.0}


@pytest.fixture
def tiny_whisper(tmp_path):
    """A checkpoint of an untrained Whisper that encodes a recording in 10 ms; silence is not decoded."""
    torch.manual_seed(0)
    dims = ModelDimensions(80, 1500, 32, 2, 1, 51865, 448, 32, 2, 1)
    path = tmp_path / "tiny.pt"
    torch.save({"dims": dims.__dict__, "model_state_dict": Whisper(dims).state_dict()}, path)
    return path


@pytest.mark.services
def test_an_interrupted_extraction_keeps_its_parts_and_resumes(tmp_path, tiny_whisper, ray_head):
    write_recordings(f"{tmp_path.as_uri()}/mine", "train", [600], seconds=5.0)
    command = [sys.executable, "jobs/extract.py", "scenes", "--storage", tmp_path.as_uri(), "--data.corpus", "mine"]
    command += ["--model.whisper", str(tiny_whisper), "--model.language", "en"]
    process = subprocess.Popen(
        command, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ),
    )  # fmt: skip
    features = open_storage(f"{tmp_path.as_uri()}/mine/whisper-{tiny_whisper}/train")
    deadline = time.monotonic() + 200
    while not features.list_names("parts/") and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    tars = set(Path(tempfile.gettempdir()).glob("*.tar"))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 130, out + err
    assert "interrupted: finished parts are kept, the same command continues" in err
    assert "Traceback" not in out + err
    assert not set(Path(tempfile.gettempdir()).glob("*.tar")) - tars
    before = {name: features.read(name) for name in features.list_names("parts/")}
    assert before and not features.list_names("manifest.json")

    again = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=280, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "extract mine/train: 600/600 recordings" in again.stdout
    manifest = open_manifest(features.url)
    assert len(manifest) == 600 and manifest.summary.num_shards == 15
    assert manifest.summary.details["source_sha256"] == open_manifest(f"{tmp_path.as_uri()}/mine/train").sha256
