"""Extract Whisper's transcripts, confidences and features of a corpus, as shards.

    ray job submit --working-dir . -- python jobs/extract.py flickr8k --storage s3://bucket
    python jobs/extract.py scenes --extraction.splits test

Without --extraction.splits, all splits of the corpus are extracted. Existing shards are skipped, so an interrupted job
resumes where it stopped. With --model.adaptation adapter, CLIP's embeddings of texts and images are computed as well.
"""

import sys

from brewclip.config import Config, exit_on_user_error, parse_command_line
from brewclip.config.unused import IGNORED_BY_EXTRACTION


def main() -> None:
    """Parse the configuration, connect to Ray, extract the splits in sequence."""
    with exit_on_user_error():
        config: Config = parse_command_line(__doc__, Config, ignored=IGNORED_BY_EXTRACTION)
        from brewclip.cluster import check_resources, connect, demand_of
        from brewclip.corpora.extraction import extract_splits, image_side, splits_to_extract
        from brewclip.data.manifest import open_manifest
        from brewclip.data.storage import check_reachable
        from brewclip.tracking.provenance import recorded
        from brewclip.tracking.tracker import Tracker

        check_reachable(config.storage)
        splits = splits_to_extract(config)  # fails before Ray starts
        side_pixels = image_side(config)
        tracking = config.tracking
        tracker = Tracker(tracking.uri, tracking.experiment, f"extract-{config.data.corpus}", config.features_url)
        connect()
        check_resources(demand_of("extraction", config.cluster, 1))
        try:
            with recorded(tracker, config, "extract"):
                done = extract_splits(config, side_pixels)
                manifests = {split: open_manifest(f"{config.features_url}/{split}") for split in done}
                tracker.set_tags({f"brewclip.sha256.{split}": one.sha256 for split, one in manifests.items()})
                cached = _embed(config, splits) if config.model.adaptation == "adapter" else {}
        except KeyboardInterrupt:
            print("interrupted: finished parts are kept, the same command continues", file=sys.stderr, flush=True)
            raise SystemExit(130) from None
        for split, counts in (*done.items(), *cached.items()):
            print(f"{split}: " + ", ".join(f"{name} {value}" for name, value in counts.items()), flush=True)


def _embed(config: Config, splits: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """Compute CLIP's embeddings; only this needs CLIP, whose import takes seconds."""
    from brewclip.corpora.embedding import embed_splits

    return embed_splits(config, splits)


if __name__ == "__main__":
    main()
