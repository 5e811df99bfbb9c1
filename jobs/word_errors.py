"""Measure Whisper's word errors in a split, and their effect on each system's recall.

    ray job submit --working-dir . -- python jobs/word_errors.py flickr8k --storage s3://bucket --systems zero_shot RUN
    python jobs/word_errors.py scenes --systems scenes-pipeline-0 scenes-brewclip-0

A system is `zero_shot`, the name of a run, or the URL of a run or checkpoint. Prints WER, silence and hallucination of
the split, recall by WER, and the logistic regression of the R@5 hit on the WER of the utterance; writes
results.json, table.md, word_errors.png and report.html to their own folder below
STORAGE/evaluations/CORPUS-SPLIT-TRANSCRIPT-word_errors, whose latest.json names the last one, and to MLflow.
"""

from dataclasses import dataclass
from typing import Annotated

from brewclip.config import Config, exit_on_user_error, parse_command_line
from brewclip.config.names import FOLDER
from brewclip.config.unused import IGNORED_BY_STUDIES


@dataclass(frozen=True)
class WordErrorsConfig(Config):
    """Settings of the word error study."""

    systems: tuple[str, ...] = ("zero_shot",)
    """Systems to evaluate: `zero_shot`, names of runs, URLs of runs or checkpoints."""
    split: Annotated[str, FOLDER] = "test"
    """Split to evaluate on."""


def main() -> None:
    """Parse the configuration, load the split's texts, evaluate the systems on Ray, write the results."""
    with exit_on_user_error():
        config = parse_command_line(__doc__, WordErrorsConfig, ignored=IGNORED_BY_STUDIES)
        from brewclip.cluster import connect
        from brewclip.data.storage import check_reachable
        from brewclip.evaluation.shares import evaluate_system
        from brewclip.evaluation.systems import describe_systems
        from brewclip.studies.word_errors.publish import study_word_errors
        from brewclip.studies.word_errors.study import load_utterances

        check_reachable(config.storage)
        systems = describe_systems(config, config.systems)
        utterances, num_samples = load_utterances(config, config.split)
        connect()
        rankings = [evaluate_system(system, config.split).ranking for system in systems]
        study_word_errors(config, config.split, utterances, num_samples, systems, rankings)


if __name__ == "__main__":
    main()
