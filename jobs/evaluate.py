"""Evaluate systems on a split: recall in both directions with intervals, comparisons, tables, and an HTML report.

    ray job submit --working-dir . -- python jobs/evaluate.py flickr8k --storage s3://bucket --systems zero_shot RUN
    python jobs/evaluate.py scenes --split test --systems zero_shot scenes-pipeline-0 scenes-brewclip-0
    python jobs/evaluate.py scenes --systems scenes-pipeline-0 scenes-pipeline-0@ground_truth

A system is `zero_shot`, the name of a run, or the URL of a run or checkpoint. The suffix `@asr`, `@asr_unfiltered`,
`@asr_greedy`, `@asr_mean` or `@ground_truth` gives the text of the pipeline if it is not --data.transcript; `@acoustic`
or `@text`, before it, takes one channel of a full model. Each evaluation has its own folder below
STORAGE/evaluations/CORPUS-SPLIT-TRANSCRIPT, reused for the same systems, split and settings; latest.json next to the
folders names the last one. A folder holds results.json, table.md, report.html and the ranks per query; metrics are
logged to the systems' MLflow runs.
"""

from dataclasses import dataclass
from typing import Annotated

from brewclip.config import Config, exit_on_user_error, parse_command_line
from brewclip.config.names import FOLDER
from brewclip.config.ranges import Range
from brewclip.config.unused import IGNORED_BY_EVALUATION


@dataclass(frozen=True)
class EvaluateConfig(Config):
    """Settings of an evaluation."""

    systems: tuple[str, ...] = ("zero_shot",)
    """Systems to evaluate: `zero_shot`, names of runs, URLs of runs or checkpoints."""
    split: Annotated[str, FOLDER] = "test"
    """Split to evaluate on."""
    baseline: str = ""
    """System that the others are compared with, query by query; by default zero_shot, else the first."""
    num_report_queries: Annotated[int, Range(1, 100_000)] = 200
    """Queries shown in the report, evenly spaced over the split."""


def main() -> None:
    """Parse the configuration, connect to Ray, evaluate, write the results."""
    with exit_on_user_error():
        config = parse_command_line(__doc__, EvaluateConfig, ignored=IGNORED_BY_EVALUATION)
        from brewclip.cluster import connect
        from brewclip.evaluation.run import choose_baseline, evaluate_and_record
        from brewclip.evaluation.systems import open_systems

        systems = open_systems(config, config.systems, config.split)
        baseline = choose_baseline(systems, config.baseline)
        connect()
        evaluate_and_record(config, systems, config.split, config.num_report_queries, baseline)


if __name__ == "__main__":
    main()
