"""Visualize systems: galleries of best and worst queries, and relevance maps over image patches and speech frames.

    python jobs/visualize.py scenes --split test --systems zero_shot scenes-pipeline-0 scenes-brewclip-0
    python jobs/visualize.py scenes --systems scenes-brewclip-0 --keys scenetest000003-0 scenetest000007-1

Writes PNG files and report.html to their own folder below STORAGE/evaluations/CORPUS-SPLIT-TRANSCRIPT-visualize, whose
latest.json names the last one, and to MLflow: gallery-SYSTEM-best, gallery-SYSTEM-worst, and attention-KEY with a row
for each system. The maps show what each patch of the correct image and each frame of the recording adds to their
similarity; frames are shown for systems with an acoustic channel.
"""

from dataclasses import dataclass
from typing import Annotated

from brewclip.config import Config, exit_on_user_error, parse_command_line
from brewclip.config.names import FOLDER
from brewclip.config.ranges import Range
from brewclip.config.unused import IGNORED_BY_EVALUATION


@dataclass(frozen=True)
class VisualizeConfig(Config):
    """Settings of a visualization."""

    systems: tuple[str, ...] = ("zero_shot",)
    """Systems to visualize: `zero_shot`, names of runs, URLs of runs or checkpoints."""
    split: Annotated[str, FOLDER] = "test"
    """Split of the queries."""
    num_queries: Annotated[int, Range(1, 1000)] = 6
    """Queries per gallery, and number of relevance maps if no keys are given."""
    keys: tuple[str, ...] = ()
    """Recordings whose relevance maps are drawn; by default evenly spaced ones."""


def main() -> None:
    """Parse the configuration, connect to Ray, evaluate, draw the figures."""
    with exit_on_user_error():
        config = parse_command_line(__doc__, VisualizeConfig, ignored=IGNORED_BY_EVALUATION)
        from brewclip.cluster import connect
        from brewclip.evaluation.systems import check_reads_features, open_systems
        from brewclip.studies.visualize import visualize_and_record

        systems = open_systems(config, config.systems, config.split)
        check_reads_features(systems, "visualize")
        connect()
        for url in visualize_and_record(config, systems, config.split, config.num_queries, config.keys):
            print(url, flush=True)


if __name__ == "__main__":
    main()
