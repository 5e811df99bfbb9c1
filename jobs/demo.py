"""The main job, end to end, on this machine: scenes -> shards -> Whisper -> training -> evaluation -> report.

    make demo
    python jobs/demo.py --num-train 2000 --total-steps 1000

Starts an S3 server, a Ray head and MLflow on loopback, submits every stage as a user would, and stops them at the end.
Results are stored below .state/ and reused; `rm -r .state` starts over.
"""

import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

from brewclip.config import exit_on_user_error, parse_options
from brewclip.config.ranges import Range
from brewclip.errors import UserError

if TYPE_CHECKING:
    from brewclip.local import LocalServices, RayHead

Form = TypeVar("Form")
CHECKOUT = Path(__file__).resolve().parents[1]
# Captions are spoken clearly and through babble at 2 dB; those of test at more levels, in the same words and voice.
NOISE = "--captions-per-image 1 --noise-snr-db 99 2 --test-noise-snr-db 99 5 2 0 -5"
# Unclear speech is read once: sampling it again takes half of the time, and gave 14 of 400 transcripts more.
EXTRACTION = "--extraction.precision auto --extraction.retries 0"
# Of text that Whisper is not certain of, three alternatives are read too.
READING = "--data.transcript asr_mean"
PAPER, BEYOND = "scenes-brewclip-0", "scenes-brewclip-adapter-confidence-asr_mean-0"


@dataclass(frozen=True)
class DemoOptions:
    """Sizes of the demo."""

    num_train: Annotated[int, Range(2, 100_000)] = 160
    """Training images, each with two recordings of its caption: clear, and through babble."""
    num_dev: Annotated[int, Range(2, 100_000)] = 80
    """Images for selecting the best checkpoint and the weights of the channels, likewise."""
    num_test: Annotated[int, Range(2, 100_000)] = 80
    """Images for the final evaluation, each with five recordings of its caption: clear, and at four noise levels."""
    total_steps: Annotated[int, Range(20, 10**9)] = 160
    """Optimiser steps of the paper's model; the first 20 are the warm-up."""
    state: Path = CHECKOUT / ".state"
    """Folder for the services' data, logs, and the reports."""


class Stages:
    """Submits jobs in sequence and records their duration."""

    def __init__(self, head: "RayHead", storage: str) -> None:
        self.head, self.storage = head, storage
        self.seconds: dict[str, float] = {}

    def submit(self, name: str, command: str) -> None:
        """Run a stage by `ray job submit`; a failure ends the demo with the stage's exit code."""
        code = self.try_submit(name, command, say)
        if code != 0:
            raise SystemExit(code)

    def try_submit(self, name: str, command: str, on_line: Callable[[str], None]) -> int:
        """Run a stage by `ray job submit` and return its exit code; `on_line` is called with each line of output."""
        from brewclip.local import submit_job
        from brewclip.tracking.sources import git_commit

        print(f"\n== {name}\n$ ray job submit --working-dir . -- {command}", flush=True)
        start = time.monotonic()
        # Ray does not upload .git, so the job cannot find the commit itself.
        variables = {"BREWCLIP_GIT_COMMIT": git_commit()}
        code = submit_job(self.head, command, CHECKOUT, environment=variables, say=on_line)
        self.seconds[name] = time.monotonic() - start
        return code


def main() -> None:
    """Parse the flags, run the demo."""
    run_unwinding(__doc__, DemoOptions, run)


def run_unwinding(usage: str | None, form: type[Form], run: Callable[[Form], None]) -> None:
    """Parse flags and run; on Ctrl-C and SIGTERM, stop the services and exit with code 130."""
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with exit_on_user_error():
        options = parse_options(usage, form)
        from brewclip.local import StateError

        try:
            run(options)
        except StateError as error:
            raise UserError(f"--state {error}") from None
        except KeyboardInterrupt:
            print("interrupted: the services were stopped, finished stages are saved", file=sys.stderr)
            raise SystemExit(130) from None


def run(options: DemoOptions) -> None:
    """Run all stages on local services."""
    from brewclip.local import LocalServices

    began = time.monotonic()
    memory = MemoryWatch()
    with LocalServices(options.state, num_cpus=2, say=say) as services:
        stages = Stages(services.ray, services.bucket_url)
        stages.seconds["services"] = time.monotonic() - began
        submit_data(stages, options)
        stages.submit("training paper", f"python jobs/train.py scenes --optim.total-steps {options.total_steps}")
        stages.submit("training confidence", f"python jobs/train.py scenes_adapter {READING}")
        systems = f"zero_shot {PAPER} zero_shot@asr_mean {BEYOND}@asr_mean"
        stages.submit("evaluation", f"python jobs/evaluate.py scenes --systems {systems}")
        by = f"--by condition snr_db --systems {systems} {BEYOND}@acoustic@asr_mean"
        stages.submit("by noise", f"python jobs/breakdown.py scenes {by}")
        found = fetch_results(services, options.state)
    print_times(stages, time.monotonic() - began, memory)
    for name, path in found.items():
        print(f"{name + ':':<16}{path}")
    print("MLflow:         make services, then open the address it prints")
    print("Ray dashboard:  likewise")
    print(f"checkpoint:     {services.bucket_url}/runs/{BEYOND} (in {options.state / 's3'})", flush=True)


def submit_data(stages: Stages, options: DemoOptions) -> None:
    """Write the scenes and extract features and embeddings; existing results are reused."""
    stages.submit("data", f"python datasets/scenes.py --dest {stages.storage}/scenes {scene_flags(options)}")
    stages.submit("extraction", f"python jobs/extract.py scenes_adapter {EXTRACTION} {READING}")


def print_times(stages: Stages, seconds_in_all: float, memory: "MemoryWatch") -> None:
    """Print how long each stage took."""
    print(f"\n{'stage':<22}{'seconds':>8}")
    for name, seconds in stages.seconds.items():
        print(f"{name:<22}{seconds:>8.0f}")
    print(f"{'in all':<22}{seconds_in_all:>8.0f}    peak memory {memory.stop() / 2**30:.1f} GiB\n")


def scene_flags(options: DemoOptions) -> str:
    """Return the flags of the recipe."""
    names = ("num_train", "num_dev", "num_test")
    flags = [(f"--{name.replace('_', '-')}", str(getattr(options, name))) for name in names]
    return f"{shlex.join([word for flag in flags for word in flag])} {NOISE} --samples-per-shard 50"


def fetch_results(services: "LocalServices", state: Path) -> dict[str, Path]:
    """Copy the reports and the figure from the bucket; return what they are, and their paths."""
    import os

    from brewclip.evaluation.folders import latest_evaluation

    os.environ.update(services.environment())
    found = {}
    for name, study, source, target in (
        ("queries", "scenes-test-asr", "report.html", "report.html"),
        ("by noise", "scenes-test-asr-breakdown", "report.html", "by-noise.html"),
        ("figure", "scenes-test-asr-breakdown", "snr_db.png", "snr_db.png"),
    ):
        found[name] = state / target
        found[name].write_bytes(latest_evaluation(services.bucket_url, study).read(source))
    return found


class MemoryWatch:
    """Peak memory of this process and its descendants, sampled every two seconds."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """Return the peak in bytes."""
        self._done.set()
        self._thread.join()
        return self.peak_bytes

    def _watch(self) -> None:
        import psutil

        own = psutil.Process()
        while not self._done.wait(2.0):
            total = 0
            for process in [own, *own.children(recursive=True)]:
                try:
                    memory = process.memory_full_info()
                    total += getattr(memory, "pss", memory.uss)
                except psutil.Error:
                    continue
            self.peak_bytes = max(self.peak_bytes, total)


def say(line: str) -> None:
    """Print a line at once, without the colours that Ray gives its workers."""
    print(re.sub(r"\x1b\[[0-9;]*m", "", line), flush=True)


if __name__ == "__main__":
    main()
