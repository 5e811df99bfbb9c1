"""Benchmark parts of the project against common alternatives, on this machine.

    python jobs/benchmark.py stream
    python jobs/benchmark.py stream --num-pairs 9 --json stream.json
    python jobs/benchmark.py all

Compare ratios, not rates: both sides run alternately in one process, on a machine that may be busy with other work.
"""

import importlib
import json
import sys
from dataclasses import asdict
from datetime import date
from pathlib import Path

from brewclip.config import exit_on_user_error, parse_options
from brewclip.errors import UserError

BENCHMARKS = (
    *("adaptation", "all", "extract", "extract_workers", "index", "loss", "recall"),
    *("reading", "recipes", "scaling", "serve", "startup", "stream", "train"),
)
"""Names of the modules of brewclip.benchmarks that can be run; each has `Options` and `run`."""


def main() -> None:
    """Run the named benchmark, print its results, and write them to --json if given."""
    with exit_on_user_error():
        name = sys.argv[1] if len(sys.argv) > 1 else ""
        if name in ("-h", "--help"):
            print(f"{__doc__}\nBenchmarks, each with its own --help: {', '.join(BENCHMARKS)}")
            return
        if name not in BENCHMARKS:
            raise UserError(f"no benchmark {name!r}: name one of {', '.join(BENCHMARKS)}")
        benchmark = importlib.import_module(f"brewclip.benchmarks.{name}")
        from brewclip.benchmarks.measure import machine_line

        options = parse_options(benchmark.__doc__, benchmark.Options, sys.argv[2:])
        machine = machine_line()
        print(f"machine: {machine}", flush=True)
        figures = benchmark.run(options)
        if options.json:
            facts = {"benchmark": name, "date": date.today().isoformat(), "machine": machine}
            record = facts | {"options": asdict(options)} | figures
            Path(options.json).write_text(json.dumps(record, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
