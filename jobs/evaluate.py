"""Evaluate systems on a split: recall both ways with intervals, tables, and an HTML report.

    ray job submit --working-dir . -- python jobs/evaluate.py flickr8k --storage s3://bucket --systems zero_shot RUN
    python jobs/evaluate.py scenes --split test --systems zero_shot scenes-pipeline-0 scenes-brewclip-0

A system is `zero_shot`, the name of a run, or the URL of a run or checkpoint. Writes results.json, table.md and
report.html below STORAGE/evaluations/CORPUS-SPLIT-TRANSCRIPT, and the metrics to the systems' MLflow runs.
"""

from dataclasses import dataclass

from brewclip.config import Config, exit_on_user_error, parse_command_line


@dataclass(frozen=True)
class EvaluateConfig(Config):
    """Settings of an evaluation."""

    systems: tuple[str, ...] = ("zero_shot",)
    """What is evaluated: `zero_shot`, names of runs, URLs of runs or checkpoints."""
    split: str = "test"
    """Split that is evaluated."""
    num_report_queries: int = 24
    """Queries shown in the report, evenly spaced over the split."""


def main() -> None:
    """Parse the configuration, join Ray, evaluate, write."""
    with exit_on_user_error():
        config = parse_command_line(__doc__, EvaluateConfig)
        from brewclip.analysis.evaluate import evaluate_and_record
        from brewclip.analysis.systems import describe_system
        from brewclip.cluster import connect
        from brewclip.data.manifest import open_manifest
        from brewclip.data.storage import check_reachable

        check_reachable(config.storage)
        open_manifest(f"{config.features_url}/{config.split}", retry_seconds=10)
        systems = [describe_system(config, name) for name in config.systems]
        connect()
        evaluate_and_record(config, systems, config.split, config.num_report_queries)


if __name__ == "__main__":
    main()
