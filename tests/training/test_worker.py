"""What one worker of a group raises ends the group, with that worker's message."""

import contextlib
import json
from dataclasses import asdict

import pytest

from brewclip.config import Config, RunConfig, flatten
from brewclip.data.storage import open_storage
from brewclip.errors import StorageError
from brewclip.training import worker
from brewclip.training.assignment import RESULT, Assignment
from brewclip.training.worker import run_worker


@pytest.fixture
def config(tmp_path) -> Config:
    return Config(storage=tmp_path.as_uri(), run=RunConfig(name="one"))


@pytest.fixture
def settings(config) -> dict:
    return asdict(Assignment(flatten(config), environment={}))


def raising(error: Exception):
    @contextlib.contextmanager
    def built(config, assignment):
        raise error
        yield

    return built


@pytest.mark.parametrize(
    ("error", "problem", "is_bug"),
    [
        (KeyError("lost"), "worker 1: KeyError: 'lost'", True),
        (StorageError("s3://bucket does not answer"), "worker 1: s3://bucket does not answer", False),
    ],
)
def test_what_one_rank_raises_is_the_result_and_ends_the_group(monkeypatch, config, settings, error, problem, is_bug):
    monkeypatch.setattr(worker, "world_rank", lambda: 1)
    monkeypatch.setattr(worker, "world_size", lambda: 2)
    monkeypatch.setattr(worker, "_built_worker", raising(error))
    with pytest.raises(type(error)):  # Ray ends the other workers of the group
        run_worker(settings)
    result = json.loads(open_storage(config.run_url).read(RESULT))
    assert (result["problem"], result["is_bug"]) == (problem, is_bug)
    monkeypatch.setattr(worker, "_built_worker", raising(AssertionError("built again")))
    run_worker(settings)  # of the group that Ray starts next


def test_what_all_workers_agree_on_is_no_exception(monkeypatch, config, settings):
    @contextlib.contextmanager
    def built(config, assignment):
        yield None, "the data does not fit"

    monkeypatch.setattr(worker, "world_size", lambda: 2)
    monkeypatch.setattr(worker, "_built_worker", built)
    run_worker(settings)
    assert json.loads(open_storage(config.run_url).read(RESULT))["problem"] == "the data does not fit"
