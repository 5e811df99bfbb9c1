"""Run all benchmarks one after the other and write one table of their figures.

    make benchmark
    python jobs/benchmark.py all --only recall loss

Each runs in a process of its own with its defaults, about 20 minutes in all on 2 quiet cores. The table is put between
the markers <!-- benchmarks --> and <!-- /benchmarks --> of --table, or is the whole of that file if it has none; the
figures lie below --folder. Benchmarks left out by --only keep the figures of their last run.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brewclip.benchmarks.measure import BenchmarkOptions
from brewclip.benchmarks.summary import put_between_markers, read_records, render
from brewclip.errors import UserError

BENCHMARKS = ("stream", "recipes", "extract", "train", "scaling", "loss", "recall", "startup")
"""Modules of this package that can be run; each has `Options` and `run`."""
_FLAGS = {"scaling": ("--image", "docs/scaling.png", "--page", "docs/scaling.md")}
_CHECKOUT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Options(BenchmarkOptions):
    """What runs, and where figures go."""

    only: tuple[str, ...] = BENCHMARKS
    """Benchmarks that run."""
    folder: Path = _CHECKOUT / ".state" / "benchmarks"
    """Gets one JSON file for each benchmark."""
    table: Path = _CHECKOUT / "docs" / "benchmarks.md"
    """File that gets the table."""


def run(options: Options) -> dict[str, Any]:
    """Run the benchmarks, write the table, and return which of them failed.

    Raises:
        UserError: if a benchmark is not known, or one of them failed.
    """
    unknown = set(options.only) - set(BENCHMARKS)
    if unknown:
        raise UserError(f"--only has {sorted(unknown)}: allowed are {', '.join(BENCHMARKS)}")
    options.folder.mkdir(parents=True, exist_ok=True)
    failed = [name for name in options.only if not _succeeds(name, options.folder)]
    text = render(read_records(options.folder, [name for name in BENCHMARKS if name not in failed]), failed)
    if not put_between_markers(options.table, text):
        options.table.write_text(f"# Benchmarks\n\n{text}")
    print(f"\n{text}\nwritten to {options.table}", flush=True)
    if failed:
        raise UserError(f"no figures of {', '.join(failed)}: the reason stands above")
    return {}


def _succeeds(name: str, folder: Path) -> bool:
    print(f"\n== {name}", flush=True)
    script = _CHECKOUT / "jobs" / "benchmark.py"
    command = [sys.executable, str(script), name, "--json", str(folder / f"{name}.json"), *_FLAGS.get(name, ())]
    return subprocess.run(command, cwd=_CHECKOUT, check=False).returncode == 0
