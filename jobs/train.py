"""Train BrewCLIP, or resume the run of the same name.

    ray job submit --working-dir . -- python jobs/train.py flickr8k --storage s3://bucket --optim.peak-lr 3e-4
    python jobs/train.py scenes --model.variant pipeline

The corpus must have been extracted (jobs/extract.py); --model.variant speechclip reads it as its recipe wrote it. All
files of the run are stored below STORAGE/runs/NAME.
"""

from brewclip.config import Config, exit_on_user_error, parse_command_line
from brewclip.config.unused import IGNORED_BY_TRAINING


def main() -> None:
    """Parse the configuration, connect to Ray, train."""
    with exit_on_user_error():
        config: Config = parse_command_line(__doc__, Config, ignored=IGNORED_BY_TRAINING)
        from brewclip.cluster import connect
        from brewclip.training.launch import claim_run, run_training

        with claim_run(config) as fence:
            connect()
            result = run_training(config, fence)
        print(
            f"done: step {result['step']}, best {result['best']}, checkpoints at {result['url']}",
            flush=True,
        )


if __name__ == "__main__":
    main()
