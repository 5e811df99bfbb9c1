"""What one worker of a group raises, or cannot build, ends the group with that worker's message."""

import contextlib
import json
from dataclasses import asdict
from datetime import timedelta

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from brewclip.config import Config, RunConfig, flatten
from brewclip.data.storage import open_storage
from brewclip.errors import StorageError
from brewclip.training import entry
from brewclip.training.assignment import RESULT, Assignment
from brewclip.training.entry import run_worker


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
    monkeypatch.setattr(entry, "world_rank", lambda: 1)
    monkeypatch.setattr(entry, "world_size", lambda: 2)
    monkeypatch.setattr(entry, "_built_worker", raising(error))
    with pytest.raises(type(error)):  # Ray ends the other workers of the group
        run_worker(settings)
    result = json.loads(open_storage(config.run_url).read(RESULT))
    assert (result["problem"], result["is_bug"]) == (problem, is_bug)
    monkeypatch.setattr(entry, "_built_worker", raising(AssertionError("built again")))
    run_worker(settings)  # of the group that Ray starts next


def test_what_all_workers_agree_on_is_no_exception(monkeypatch, config, settings):
    @contextlib.contextmanager
    def built(config, assignment):
        yield None, "the data does not fit"

    monkeypatch.setattr(entry, "world_size", lambda: 2)
    monkeypatch.setattr(entry, "_built_worker", built)
    run_worker(settings)
    assert json.loads(open_storage(config.run_url).read(RESULT))["problem"] == "the data does not fit"


def build_beside_one_without_parts(rank, folder):
    """Run as one of two workers, of which the second finds no weights; writes what it was given instead of a worker."""

    def build_parts(config, device):
        if rank == 1:
            raise FileNotFoundError("no weights on this machine")
        return object()

    def refuse(*parts):
        raise AssertionError("a worker was built, whose resuming waits for the other")

    entry.build_parts, entry.Worker, entry.worker_device = build_parts, refuse, lambda config: None
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    with entry._built_worker(Config(), Assignment({}, environment={})) as (worker, problem):
        (folder / f"problem-{rank}").write_text(f"{worker}: {problem}")
    dist.destroy_process_group()


@pytest.mark.slow
def test_one_rank_that_cannot_be_built_does_not_leave_the_others_waiting(tmp_path):
    mp.spawn(build_beside_one_without_parts, (tmp_path,), nprocs=2)
    for rank in range(2):
        assert (tmp_path / f"problem-{rank}").read_text() == "None: no weights on this machine"
