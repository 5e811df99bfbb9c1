"""Speech emotion recognition: a linear probe or finetuning of systems, tested on held-out speakers.

    python jobs/emotion.py flickr8k --data.corpus ravdess --storage s3://bucket --systems zero_shot RUN
    python jobs/emotion.py scenes --data.corpus scenes_emotion --methods probe finetune --systems scenes-brewclip-0

    python jobs/emotion.py scenes --data.corpus mine --probe.folds speakers --systems zero_shot RUN

A system is `zero_shot`, the name of a run, or the URL of a run or checkpoint. The corpus has emotions and speakers:
datasets/ravdess.py, datasets/scenes.py --style emotion, or datasets/table.py with the columns emotion and speaker (and
text, the sentence spoken; else --probe.transcript asr). With few speakers, --probe.folds speakers tests each in turn.
Whisper's encoder layers are probed too: its encoder reads the recordings once (--probe.skip-layers does without).
Prints accuracy with its interval and the majority baseline, accuracy by speaker, and confusion matrices. Each
experiment has its own folder with results.json, table.md, accuracy.png and report.html below
STORAGE/evaluations/CORPUS-emotion, whose latest.json names the last one; metrics are logged to MLflow. A few hundred
clips need no cluster: this runs in one process, on a GPU if there is one.
"""

import sys
from dataclasses import dataclass, field
from typing import Literal

from brewclip.config import Config, exit_on_user_error, parse_command_line
from brewclip.config.probe import ProbeConfig, check_probe, ignored_probe_settings
from brewclip.config.unused import IGNORED_BY_EMOTION
from brewclip.errors import UserError


@dataclass(frozen=True)
class EmotionConfig(Config):
    """Settings of the emotion experiment."""

    systems: tuple[str, ...] = ("zero_shot",)
    """Systems to test: `zero_shot`, names of runs, URLs of runs or checkpoints."""
    methods: tuple[Literal["probe", "finetune"], ...] = ("probe",)
    """`probe` trains a linear head, `finetune` also the prompts and the last acoustic layer."""
    probe: ProbeConfig = field(default_factory=ProbeConfig)


def main() -> None:
    """Parse the configuration, load the clips, train and test a classifier for each system, write the results."""
    with exit_on_user_error():
        config = parse_command_line(__doc__, EmotionConfig, ignored=IGNORED_BY_EMOTION)
        try:
            check_probe(config.probe, config.data.train_split)
        except ValueError as error:
            raise UserError(str(error)) from None
        for line in ignored_probe_settings(config.probe, "finetune" in config.methods):
            print(f"warning: {line}", file=sys.stderr)
        from brewclip.data.storage import check_reachable
        from brewclip.evaluation.systems import check_reads_features, describe_systems
        from brewclip.studies.emotion.clips import load_folds, splits_of
        from brewclip.studies.emotion.layers import load_layers
        from brewclip.studies.emotion.results import record_emotion
        from brewclip.studies.emotion.study import iter_results

        check_reachable(config.storage)
        systems = describe_systems(config, config.systems)
        check_reads_features(systems, "emotion")
        folds = load_folds(config, config.probe)
        skips, splits = config.probe.skip_layers, splits_of(config, config.probe)
        layers = None if skips else load_layers(config, splits, config.probe)
        results = []
        for result in iter_results(config, systems, folds, layers, config.probe, config.methods):
            print(f"emotion {result.system}: {result.method} on {result.channel} done", flush=True)
            results.append(result)
        record_emotion(config, systems, results, config.probe, config.methods)


if __name__ == "__main__":
    main()
