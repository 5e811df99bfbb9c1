"""Two programs start the same run, some seconds apart: one holds it, the other is refused, with the lease's own times.

They are processes of their own that claim the run as `jobs/train.py` does, before Ray starts; the holder then writes
checkpoints behind the fence as a worker does. All pairs run side by side.
"""

import itertools
import multiprocessing
import os
import sys
import time
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from brewclip.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from brewclip.config import Config, exit_on_user_error, flatten, preset
from brewclip.data.storage import open_storage
from brewclip.training.launch import claim_run
from tests.training.features import write_features
from tests.training.test_checkpoint import checkpoint_at

GAPS_SECONDS = (0, 1, 2, 4, 6, 8)
# Forked from a process that has imported all this: twelve imports of torch would take longer than the drill.
PROCESSES = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Driver:
    """One program of a pair; its steps begin at `first_step`, and it trains until the file `end` is there."""

    config: Config
    wait_seconds: float
    first_step: int
    log: Path
    go: Path
    end: Path
    environment: dict[str, str]

    def run(self) -> None:
        """Be `jobs/train.py` from its parsed settings on, some time after the file `go` is there."""
        with open(self.log, "w") as output:
            os.dup2(output.fileno(), sys.stdout.fileno())
            os.dup2(output.fileno(), sys.stderr.fileno())
        os.environ.update(self.environment)
        while not self.go.exists():
            time.sleep(0.01)
        time.sleep(self.wait_seconds)
        with exit_on_user_error(), claim_run(self.config) as fence:
            print(f"holds epoch {fence.epoch}", flush=True)
            storage, step = open_storage(self.config.run_url), self.first_step
            while step == self.first_step or not self.end.exists():  # the other may have been refused before
                checkpoint = checkpoint_at(step)
                facts = replace(checkpoint.facts, config=flatten(self.config))
                save_checkpoint(
                    storage, replace(checkpoint, facts=facts), best=False, keep=99, fence=lambda: fence.check(storage)
                )
                step += 1
                time.sleep(0.5)


Pair = list[tuple[Driver, BaseProcess]]


def start_pairs(storage: str, folder: Path) -> list[Pair]:
    """Start two drivers of one run for each gap."""
    PROCESSES.set_forkserver_preload([__name__, "tests.training.test_checkpoint", "brewclip.training.launch"])
    base, go = preset("scenes"), folder / "go"
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    pairs = []
    for gap in GAPS_SECONDS:
        config = replace(base, storage=storage, run=replace(base.run, name=f"gap{gap}"))
        logs = [folder / f"gap{gap}-{number}.log" for number in (0, 1)]
        drivers = [
            Driver(config, gap * number, 1 + 1000 * number, log, go, folder / f"gap{gap}.end", environment)
            for number, log in enumerate(logs)
        ]
        processes = [PROCESSES.Process(target=driver.run, name=driver.log.stem) for driver in drivers]
        for process in processes:
            process.start()
        pairs.append(list(zip(drivers, processes, strict=True)))
    return pairs


def drive(pairs: list[Pair], seconds: float = 120.0) -> None:
    """Let all go when all are ready; end the holder of each run after one of its two drivers has ended."""
    deadline = time.monotonic() + seconds
    while not all(driver.log.exists() for pair in pairs for driver, _ in pair):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    pairs[0][0][0].go.touch()
    while any(process.is_alive() for pair in pairs for _, process in pair):
        assert time.monotonic() < deadline, [
            (driver.log, driver.log.read_text()) for pair in pairs for driver, _ in pair
        ]
        for pair in pairs:
            if not all(process.is_alive() for _, process in pair):
                pair[0][0].end.touch()
        time.sleep(0.2)


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.services)])
def storage(request, tmp_path) -> str:
    """A store with features to train on: a folder, and rclone's server, which ignores conditions."""
    url = (tmp_path / "store").as_uri() if request.param == "file" else request.getfixturevalue("bucket")
    for split, num_images in (("train", 40), ("dev", 4)):
        write_features(f"{url}/scenes/whisper-base", split, num_images)
    return url


@pytest.mark.slow
def test_of_two_drivers_exactly_one_trains_at_every_gap(storage, tmp_path):
    pairs = start_pairs(storage, tmp_path)
    try:
        drive(pairs)
    finally:
        for _, process in itertools.chain(*pairs):
            process.kill()
    for pair in pairs:
        (holder, held), (refused, other) = sorted(pair, key=lambda item: item[1].exitcode)
        logs = holder.log.read_text(), refused.log.read_text()
        assert (held.exitcode, other.exitcode) == (0, 2), logs
        assert logs[0].splitlines()[-1] == "holds epoch 1", logs
        assert_refused_in_one_line(refused, logs[1])
        assert_only_steps_of(holder)


def assert_refused_in_one_line(driver: Driver, log: str) -> None:
    """After notes on a lease and a checkpoint that are just being written, if it saw them, there is the error alone."""
    *notes, error = log.splitlines()
    assert f"error: run {driver.config.run_name!r} is being trained by another program" in error
    assert all("checking whether its program is alive" in note or note.startswith("note: ") for note in notes), log


def assert_only_steps_of(driver: Driver) -> None:
    """The pointer and all checkpoints are of one driver, and its lease is gone."""
    storage = open_storage(driver.config.run_url)
    steps = {int(name.split("/")[1].removeprefix("step-")) for name in storage.list_names("checkpoints/step-")}
    latest = load_checkpoint(storage)
    assert latest is not None
    assert latest.facts.step == max(steps) >= driver.first_step
    assert steps == set(range(driver.first_step, max(steps) + 1))
    assert not storage.list_names("lease/")
