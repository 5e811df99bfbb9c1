"""Sweep over settings: parallel trials, early stopping, the best one registered in MLflow.

    ray job submit --working-dir . -- python jobs/sweep.py paper flickr8k --storage s3://bucket
    python jobs/sweep.py quick scenes --sweep.num-trials 8 --optim.total-steps 80
    python jobs/sweep.py my_space.py scenes --sweep.scheduler median --sweep.search random

The positional arguments are SPACE and PRESET. A space is a name in tune/spaces.py or a Python file that defines one;
the preset is by default flickr8k for `paper`, else scenes. Other flags are those of jobs/train.py, for all trials. The
same --run.name resumes an interrupted sweep, also with more --sweep.num-trials; trials are runs NAME-TRIAL. Exit code 1
if every trial failed.
"""

import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for tune/, which is not installed

from dataclasses import replace

from brewclip.config import exit_on_user_error, parse_command_line
from brewclip.config.unused import IGNORED_BY_SWEEPS
from brewclip.errors import UserError
from tune.options import SweepConfig
from tune.spaces import PRESET_OF_SPACE, SPACES, load_space


def main() -> None:
    """Parse the settings, connect to Ray, sweep."""
    with exit_on_user_error():
        name, words = split_words(sys.argv[1:])
        config = parse_command_line(__doc__, SweepConfig, words, ignored=IGNORED_BY_SWEEPS)
        space = load_space(name)
        if not config.run.name:
            run_name = f"sweep-{Path(name).stem}-{config.data.corpus}-{config.model.variant}-{config.run.seed}"
            config = replace(config, run=replace(config.run, name=run_name))
        from brewclip.cluster import connect
        from tune.sweep import claim_sweep, run_sweep

        with claim_sweep(config, space) as fence:
            connect()
            rows = run_sweep(config, space, fence, shlex.join(["python", "jobs/sweep.py", *sys.argv[1:]]))
        if all(row.outcome == "failed" for row in rows):
            print(f"error: every trial failed, the first one: {rows[0].problem}", file=sys.stderr, flush=True)
            raise SystemExit(1)


def split_words(words: list[str]) -> tuple[str, list[str]]:
    """Return the name of the space, and the words from the preset on."""
    if {"-h", "--help"} & set(words):
        return "", ["--help"]
    if not words or words[0].startswith("-"):
        raise UserError(f"no space given: name one of {', '.join(SPACES)}, or a Python file, as the first word")
    name, rest = words[0], words[1:]
    if not rest or rest[0].startswith("-"):
        rest = [PRESET_OF_SPACE.get(name, "scenes"), *rest]
    return name, rest


if __name__ == "__main__":
    main()
