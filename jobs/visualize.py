"""RelevanceMaps at what systems do: galleries of their best and worst queries, and maps of where they look and listen.

    python jobs/visualize.py scenes --split test --systems zero_shot scenes-pipeline-0 scenes-brewclip-0
    python jobs/visualize.py scenes --systems scenes-brewclip-0 --keys scenetest000003-0 scenetest000007-1

Writes PNG files to a folder of their own below STORAGE/evaluations/CORPUS-SPLIT-TRANSCRIPT-look, whose latest.json
names the last one: gallery-SYSTEM-best, gallery-SYSTEM-worst, and attention-KEY with a row for each system. The maps
show what each patch of the right image and each frame of the recording adds to their similarity; the sound is that of
systems with an acoustic channel.
"""

from dataclasses import dataclass

from brewclip.config import Config, exit_on_user_error, parse_command_line
from brewclip.errors import UserError


@dataclass(frozen=True)
class VisualizeConfig(Config):
    """Settings of a look."""

    systems: tuple[str, ...] = ("zero_shot",)
    """What is looked at: `zero_shot`, names of runs, URLs of runs or checkpoints."""
    split: str = "test"
    """Split that is looked at."""
    num_queries: int = 6
    """Queries in each gallery, and maps that are drawn where no keys are given."""
    keys: tuple[str, ...] = ()
    """Recordings whose maps are drawn; none takes evenly spaced ones."""


def main() -> None:
    """Parse the configuration, join Ray, evaluate, draw."""
    with exit_on_user_error():
        config = parse_command_line(__doc__, VisualizeConfig)
        if config.num_queries < 1:
            raise UserError(f"--num-queries {config.num_queries} must be 1 or more")
        from brewclip.cluster import connect
        from brewclip.data.manifest import open_manifest
        from brewclip.data.storage import check_reachable
        from brewclip.evaluation.systems import describe_systems
        from brewclip.studies.visualize import visualize_and_record

        check_reachable(config.storage)
        open_manifest(f"{config.features_url}/{config.split}", retry_seconds=10)
        systems = describe_systems(config, config.systems)
        connect()
        for url in visualize_and_record(config, systems, config.split, config.num_queries, config.keys):
            print(url, flush=True)


if __name__ == "__main__":
    main()
