"""Benchmark the start-up time of every job and recipe: `--help`, which needs no model.

    python jobs/benchmark.py startup

Each runs in a new process from the checkout, --num-runs times; loaded heavy modules are reported, as torch, Ray and
MLflow take seconds. Importing torch alone is timed for comparison. The time from a job's start to its first step is
measured by `scaling`.
"""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from brewclip.benchmarks.measure import BenchmarkOptions, Limit, print_limit, show
from brewclip.config.ranges import Range
from brewclip.errors import UserError

_MOST_SECONDS = 1.0
_HEAVY = ("mlflow", "ray", "torch")
_CHECKOUT = Path(__file__).parents[2]
_RUN = f"""
import runpy, sys
sys.path[0] = sys.argv[1].rpartition("/")[0]
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("loaded:", *sorted({set(_HEAVY)!r} & set(sys.modules)), file=sys.stderr)
"""


@dataclass(frozen=True)
class Options(BenchmarkOptions):
    """Scripts and number of runs."""

    folders: tuple[str, ...] = ("jobs", "datasets")
    """Folders of the checkout whose scripts are started."""
    num_runs: Annotated[int, Range(1, 1000)] = 3
    """Starts of each script."""


def run(options: Options) -> dict[str, Any]:
    """Run the benchmark, print the results, and return them for the JSON file.

    Raises:
        UserError: if there is nothing to start.
    """
    scripts = [path for folder in options.folders for path in sorted((_CHECKOUT / folder).glob("*.py"))]
    if not scripts:
        raise UserError(f"--folders {' '.join(options.folders)} have no script to start")
    limits, loaded = [], {}
    for script in scripts:
        name = str(script.relative_to(_CHECKOUT))
        found = [time_help(script) for _ in range(options.num_runs)]
        loaded[name] = found[0][1]
        heavy = f" (loads {', '.join(loaded[name])})" * bool(loaded[name])
        limits.append(
            print_limit(Limit(f"{name} --help{heavy}", tuple(seconds for seconds, _ in found), "s", _MOST_SECONDS))
        )
    torch_seconds = _time([sys.executable, "-c", "import torch"])[0]
    print(f"import torch alone: {show(torch_seconds)} s", flush=True)
    slowest = Limit("slowest --help of all jobs", max((limit.values for limit in limits), key=max), "s", _MOST_SECONDS)
    return {
        "limits": [slowest.record()],
        "scripts": [limit.record() for limit in limits],
        "loaded": loaded,
        "import_torch_seconds": torch_seconds,
    }


def time_help(script: Path) -> tuple[float, list[str]]:
    """Return the seconds of `script --help`, and the heavy modules that it loaded.

    Raises:
        UserError: if the script fails.
    """
    seconds, errors = _time([sys.executable, "-c", _RUN, str(script), "--help"])
    last = errors.strip().rpartition("\n")[2]
    if not last.startswith("loaded:"):
        raise UserError(f"{script} --help failed: {last}")
    return seconds, last.split()[1:]


def _time(command: list[str]) -> tuple[float, str]:
    """Run a command; return its seconds and its stderr."""
    started = time.perf_counter()
    done = subprocess.run(command, cwd=_CHECKOUT, capture_output=True, text=True, check=False)
    return time.perf_counter() - started, done.stderr
