"""A small sweep on this machine, end to end: eight trials with ASHA, killed once on the way and resumed.

    make sweep
    python jobs/demo_sweep.py --num-trials 12 --total-steps 160

Uses the services and the data of jobs/demo.py below .state/, and creates the data if it is missing. Writes the table
and the figures to .state/sweep/, and registers the best model in MLflow as models:/brewclip@best.
"""

import contextlib
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from brewclip.config.ranges import Range

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for jobs.demo

from jobs.demo import CHECKOUT, DemoOptions, MemoryWatch, Stages, print_times, run_unwinding, say, submit_data

NAME = "sweep-quick-scenes"
EVALUATION = (
    "ray job submit --working-dir . -- python jobs/evaluate.py scenes --systems zero_shot models:/brewclip@best"
)


@dataclass(frozen=True)
class SweepDemoOptions:
    """Sizes of the sweep."""

    num_trials: Annotated[int, Range(1, 1000)] = 8
    """Trials of the sweep."""
    total_steps: Annotated[int, Range(10, 10**9)] = 80
    """Optimiser steps per trial, unless it is stopped early."""
    kill_after: Annotated[int, Range(0, 1000)] = 3
    """Ended trials after which the sweep's program is killed, to be submitted again; 0 does not kill it."""
    state: Path = CHECKOUT / ".state"
    """Folder for the services' data, logs, and the figures."""


def main() -> None:
    """Parse the flags, run the sweep."""
    run_unwinding(__doc__, SweepDemoOptions, run)


def run(options: SweepDemoOptions) -> None:
    """Sweep on local services."""
    from brewclip.local import LocalServices

    began = time.monotonic()
    memory = MemoryWatch()
    with LocalServices(options.state, num_cpus=2, say=say) as services:
        os.environ.update(services.environment())
        stages = Stages(services.ray, services.bucket_url)
        stages.seconds["services"] = time.monotonic() - began
        if not has_data(services.bucket_url):
            submit_data(stages, DemoOptions())
        sweep(stages, options)
        folder = fetch_results(services.bucket_url, options.state / "sweep")
    print_times(stages, time.monotonic() - began, memory)
    print(f"table and figures:  {folder}")
    print("MLflow:             make services, then open the address it prints")
    print("evaluate the best:  make services, and in a second terminal:")
    print(f". {options.state / 'environment.sh'} && {EVALUATION}", flush=True)


def sweep(stages: Stages, options: SweepDemoOptions) -> None:
    """Submit the sweep, kill its program after some trials, and submit it again."""
    # One worker with one CPU per trial, so that two run in parallel.
    flags = f"--run.name {NAME} --sweep.num-trials {options.num_trials} --optim.total-steps {options.total_steps}"
    flags += " --optim.warmup-steps 10 --run.eval-every-steps 20 --run.checkpoint-every-steps 20"
    command = f"python jobs/sweep.py quick scenes {flags} --cluster.num-workers 1"
    ended = 0

    def on_line(line: str) -> None:
        nonlocal ended
        say(line)
        ended += line.startswith(f"sweep {NAME}: trial ") and any(
            word in line for word in (" finished at ", " stopped early at ", " failed: ")
        )
        if options.kill_after and ended == options.kill_after:
            ended += 1  # once
            kill_program(stages, "jobs/sweep.py")

    code = stages.try_submit("sweep", f"{command} --run.fresh", on_line)
    if code and options.kill_after and ended > options.kill_after:
        stages.submit("sweep, again", command)
    elif code:
        raise SystemExit(code)


def kill_program(stages: Stages, script: str) -> None:
    """Kill the program of a job by SIGKILL, as the loss of its machine would."""
    import psutil

    say(f"demo: SIGKILL to {script}")
    head = stages.head.process
    assert head is not None
    for process in head.descendants():
        with contextlib.suppress(psutil.NoSuchProcess):
            words = process.cmdline()
            if script in words and "python" in words[0] and "submit" not in words:
                process.kill()


def has_data(bucket_url: str) -> bool:
    """Return whether the features of the demo exist."""
    from brewclip.data.shards import is_finished
    from brewclip.data.storage import open_storage

    return all(is_finished(open_storage(f"{bucket_url}/scenes/whisper-base/{split}")) for split in ("train", "dev"))


def fetch_results(bucket_url: str, folder: Path) -> Path:
    """Copy tables and figures from the bucket."""
    from brewclip.data.storage import open_storage

    folder.mkdir(exist_ok=True)
    storage = open_storage(f"{bucket_url}/sweeps/{NAME}")
    for name in storage.list_names():
        if not name.startswith("state/"):
            (folder / name).write_bytes(storage.read(name))
    return folder


if __name__ == "__main__":
    main()
