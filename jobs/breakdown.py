"""Recall by a field of the recordings' metadata: their noise, speaker, language or whatever the corpus records.

    python jobs/breakdown.py scenes --by condition --systems zero_shot RUN RUN@acoustic
    python jobs/breakdown.py own --data.corpus mine --by speaker language --systems zero_shot RUN

Each group of recordings is ranked on its own against all images of the split; "all" has those of all groups in one
gallery. Prints a table and the differences from the baseline, and writes results.json, table.md, a figure for each
field and report.html to their own folder below STORAGE/evaluations/CORPUS-SPLIT-TRANSCRIPT-breakdown, whose latest.json
names the last one, and to MLflow.
"""

from dataclasses import dataclass
from typing import Annotated

from brewclip.config import Config, exit_on_user_error, parse_command_line
from brewclip.config.names import FOLDER
from brewclip.config.unused import IGNORED_BY_EVALUATION


@dataclass(frozen=True)
class BreakdownConfig(Config):
    """Settings of the breakdown."""

    by: tuple[str, ...] = ("speaker",)
    """Fields of the metadata."""
    systems: tuple[str, ...] = ("zero_shot",)
    """Systems to evaluate: `zero_shot`, names of runs, URLs of runs or checkpoints."""
    split: Annotated[str, FOLDER] = "test"
    """Split to evaluate on."""
    baseline: str = ""
    """System that the others are compared with, query by query; by default zero_shot, else the first."""


def main() -> None:
    """Parse the configuration, connect to Ray, evaluate, print and write the results."""
    with exit_on_user_error():
        config = parse_command_line(__doc__, BreakdownConfig, ignored=IGNORED_BY_EVALUATION)
        from brewclip.cluster import connect
        from brewclip.evaluation.run import choose_baseline
        from brewclip.evaluation.systems import open_systems
        from brewclip.studies.breakdown import study_breakdown

        systems = open_systems(config, config.systems, config.split)
        baseline = choose_baseline(systems, config.baseline)
        connect()
        study_breakdown(config, systems, config.split, config.by, baseline)


if __name__ == "__main__":
    main()
