"""Run all benchmarks in sequence and write one table of their results.

    make benchmark
    python jobs/benchmark.py all --only recall loss
    python jobs/benchmark.py all --only extract --speech-split file:///data/ravdess/train

Each runs in its own process with its defaults, 40 minutes in all on 2 idle cores. The table is written between
the markers <!-- benchmarks --> and <!-- /benchmarks --> of --table, or replaces that file if it has none; the results
are stored in --folder. Benchmarks left out by --only reuse the results of their last run.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brewclip.benchmarks.measure import BenchmarkOptions
from brewclip.benchmarks.summary import put_between_markers, read_records, render
from brewclip.errors import UserError

BENCHMARKS = (
    *("stream", "reading", "recipes", "extract", "extract_workers", "train"),
    *("scaling", "loss", "recall", "index", "serve", "startup"),
)
"""Modules of this package that can be run; each has `Options` and `run`."""
_FLAGS = {"scaling": ("--image", "docs/scaling.png", "--page", "docs/scaling.md")}
_ON_SPEECH = "-on-speech"
_CHECKOUT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Options(BenchmarkOptions):
    """Selection of benchmarks, and output files."""

    only: tuple[str, ...] = BENCHMARKS
    """Benchmarks to run."""
    folder: Path = _CHECKOUT / ".state" / "benchmarks"
    """Folder for one JSON file per benchmark."""
    table: Path = _CHECKOUT / "docs" / "benchmarks.md"
    """File to write the table to."""
    speech_split: str = ""
    """URL of a split of real speech whose text is known, on which `extract` is measured, too; empty leaves it out."""


def run(options: Options) -> dict[str, Any]:
    """Run the benchmarks, and write the table.

    Raises:
        UserError: if a benchmark is unknown, or one of them failed.
    """
    unknown = set(options.only) - set(BENCHMARKS)
    if unknown:
        raise UserError(f"--only has {sorted(unknown)}: allowed are {', '.join(BENCHMARKS)}")
    options.folder.mkdir(parents=True, exist_ok=True)
    failed = [name for name in options.only if not _succeeds(name, options)]
    measured = [name for name in BENCHMARKS if name not in failed]
    records = [name for one in measured for name in (one, f"{one}{_ON_SPEECH}")]
    text = render(read_records(options.folder, records), failed)
    if not put_between_markers(options.table, text):
        options.table.write_text(f"# Benchmarks\n\n{text}")
    print(f"\n{text}\nwritten to {options.table}", flush=True)
    if failed:
        raise UserError(f"no figures of {', '.join(failed)}: the reason is above")
    return {}


def _succeeds(name: str, options: Options) -> bool:
    """Run one benchmark; extraction a second time if there is a split of real speech."""
    runs: list[tuple[str, tuple[str, ...]]] = [(name, _FLAGS.get(name, ()))]
    if name == "extract" and options.speech_split:
        runs.append((f"{name}{_ON_SPEECH}", ("--split", options.speech_split)))
    return all(_run_once(name, options.folder / f"{file}.json", flags) for file, flags in runs)


def _run_once(name: str, results: Path, flags: tuple[str, ...]) -> bool:
    print(f"\n== {' '.join([name, *flags])}", flush=True)
    script = _CHECKOUT / "jobs" / "benchmark.py"
    command = [sys.executable, str(script), name, "--json", str(results), *flags]
    return subprocess.run(command, cwd=_CHECKOUT, check=False).returncode == 0
