"""Measure truncation of images, texts and speech, and its effect on recall.

    python jobs/truncation.py localized_narratives --split dev --systems zero_shot RUN
    python jobs/truncation.py scenes_narratives --split dev --systems zero_shot

For each system: the centre crop against the whole image with padding (--data.image-transform letterbox), the text
truncated at CLIP's 77 tokens less the prompts against chunks of the whole text (--data.long-text chunks), the first
--data.max-audio-frames of the speech against all of it (0). Prints the table, and writes results.json, table.md,
truncation.png and report.html to their own folder below STORAGE/evaluations/CORPUS-SPLIT-TRANSCRIPT-truncation, whose
latest.json names the last one, and to MLflow. The run is not retrained: to measure training without truncation, train
with the same flags and use jobs/evaluate.py.
"""

from dataclasses import dataclass
from typing import Annotated

from brewclip.config import Config, exit_on_user_error, parse_command_line
from brewclip.config.names import FOLDER
from brewclip.config.unused import IGNORED_BY_EVALUATION


@dataclass(frozen=True)
class TruncationConfig(Config):
    """Settings of the truncation study."""

    systems: tuple[str, ...] = ("zero_shot",)
    """Systems to evaluate: `zero_shot`, names of runs, URLs of runs or checkpoints."""
    split: Annotated[str, FOLDER] = "dev"
    """Split to evaluate on."""


def main() -> None:
    """Parse the configuration, connect to Ray, evaluate, print and write the results."""
    with exit_on_user_error():
        config = parse_command_line(__doc__, TruncationConfig, ignored=IGNORED_BY_EVALUATION)
        from brewclip.cluster import connect
        from brewclip.evaluation.systems import open_systems
        from brewclip.studies.truncation import study_truncation

        systems = open_systems(config, config.systems, config.split)
        connect()
        study_truncation(config, systems, config.split)


if __name__ == "__main__":
    main()
