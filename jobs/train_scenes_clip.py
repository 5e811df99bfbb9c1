"""Train the small CLIP of the scenes world from scratch on images and read captions.

    python jobs/train_scenes_clip.py --steps 550 --output brewclip/scenes/clip.safetensors

Text captions only: it never sees narratives, speech or a corpus' images. Scenes that equal one of a split named by
`--keep-clear` are excluded and counted. The same flags on the same machine give the same weights. About 10 minutes on 2
free cores; the weights are written every `--save-every-steps`, so a run can be stopped early.
"""

from brewclip.config import exit_on_user_error, parse_options
from brewclip.scenes_clip.options import TrainScenesClip


def main() -> None:
    """Parse the flags, train."""
    with exit_on_user_error():
        flags = parse_options(__doc__, TrainScenesClip)
        flags.check()
        from brewclip.scenes_clip.training import run

        run(flags)


if __name__ == "__main__":
    main()
