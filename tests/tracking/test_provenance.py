"""What is recorded of a run is enough to do it again, and holds no secret."""

import json
import shlex
import shutil
import subprocess
from dataclasses import replace

import pytest

from brewclip.config import PRESETS, flatten, parse_command_line, preset
from brewclip.config.masking import without_secrets
from brewclip.tracking.provenance import (
    installed_packages,
    measure_system,
    record_origin,
    repeat_command,
)
from brewclip.tracking.sources import git_commit, source_root, source_sha256


@pytest.mark.parametrize("name", PRESETS)
def test_the_command_gives_the_settings_of_the_run(name):
    start = preset(name)
    config = replace(
        start,
        storage="s3://somewhere",
        optim=replace(start.optim, peak_lr=0.00021296808772217693),
        loss=replace(start.loss, alpha=0, learn_temperature=not start.loss.learn_temperature),
        data=replace(start.data, cache_directory="/two words"),
        extraction=replace(start.extraction, splits=("train", "dev")),
        run=replace(start.run, name="first", fresh=True),
    )
    words = shlex.split(repeat_command(config))
    assert words[:2] == ["python", "jobs/train.py"]
    again = flatten(parse_command_line(None, arguments=words[2:]))
    assert again.pop("run.name") == "first-again"
    assert not again.pop("run.fresh")
    for key, value in again.items():
        if key != "storage":
            assert value == flatten(config)[key], key


class Record:
    """Takes what would go to MLflow."""

    uri = "sqlite:///mlflow.db"

    def __init__(self):
        self.tags, self.files = {}, {}

    def set_tags(self, tags):
        self.tags |= tags

    def log_text(self, text, name):
        self.files[name] = text


def test_the_origin_names_code_settings_data_and_packages():
    record = Record()
    record_origin(record, preset("scenes"), "train", repeat="python jobs/train.py scenes", sha256={"manifest": "abc"})
    assert record.tags["brewclip.kind"] == "train"
    assert record.tags["brewclip.sha256.manifest"] == "abc"
    assert record.tags["brewclip.repeat"] == "python jobs/train.py scenes"
    assert record.tags["brewclip.source_sha256"] == source_sha256()
    assert {"brewclip.git_commit", "brewclip.command"} < set(record.tags)
    assert json.loads(record.files["origin/config.json"])["model.clip"] == "scenes"
    assert "\ntorch==" in record.files["origin/packages.txt"] == installed_packages()


def test_code_that_was_submitted_is_not_taken_for_that_of_the_image(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no checkout
    monkeypatch.setenv("BREWCLIP_GIT_COMMIT", "abc")
    monkeypatch.delenv("BREWCLIP_GIT_FOLDER", raising=False)
    assert git_commit() == "abc"
    image = tmp_path / "app"
    for name in ("brewclip", "datasets", "jobs", "tune"):
        shutil.copytree(source_root() / name, image / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setenv("BREWCLIP_GIT_FOLDER", str(image))
    assert git_commit() == "abc", "the same code in another folder"
    (image / "jobs" / "train.py").write_text("print('another job')\n")
    assert source_sha256(image) != source_sha256()
    assert git_commit() == "abc+"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("http://me:secret@host:5000/x", "http://host:5000/x"),
        ("--tracking.uri https://me:s3cr%20et@host 'and more'", "--tracking.uri https://host 'and more'"),
        ("models:/brewclip@best", "models:/brewclip@best"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
    ],
)
def test_passwords_are_taken_out(text, clean):
    assert without_secrets(text) == clean


def test_the_machine_is_measured_with_its_gpus(monkeypatch):
    answer = subprocess.CompletedProcess([], 0, stdout="0, 87, 10240\n1, [N/A], 12\n")
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    metrics = measure_system(lambda *words, **options: answer)
    assert metrics["system/gpu_0_utilization_percentage"] == 87
    assert metrics["system/gpu_0_memory_usage_megabytes"] == 10240
    assert "system/gpu_1_utilization_percentage" not in metrics
    assert metrics["system/gpu_1_memory_usage_megabytes"] == 12
    assert 0 < metrics["system/system_memory_usage_percentage"] < 100
