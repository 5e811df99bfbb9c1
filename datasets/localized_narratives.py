"""Localized Narratives on COCO 2017: images described freely by voice, 142,845 recordings.

    python datasets/localized_narratives.py --source DIR --dest s3://bucket/localized_narratives

DIR holds, at any depth: coco_train_localized_narratives-0000{0..3}-of-00004.jsonl and
coco_val_localized_narratives.jsonl, the recordings (coco_train/, coco_val/) and the images (train2017/, val2017/;
links will do). The corpus's own val, on which results are published, is written as test; dev, which chooses the best
checkpoint, is a share of the images of train. See docs/corpora/localized_narratives.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from brewclip.config.ranges import FRACTION_BELOW_1
from brewclip.corpora.options import SourceOptions
from brewclip.corpora.recipe import run_recipe
from brewclip.corpora.rounds import FileCorpus, Recording, join, place_in_unit_interval
from brewclip.corpora.source import Source
from brewclip.errors import UserError

TRAIN = tuple(f"coco_train_localized_narratives-0000{part}-of-00004.jsonl" for part in range(4))
VAL = ("coco_val_localized_narratives.jsonl",)


@dataclass(frozen=True, kw_only=True)
class NarrativesOptions(SourceOptions):
    """The COCO part of Localized Narratives."""

    dev_fraction: Annotated[float, FRACTION_BELOW_1] = 0.02
    """Share of the images of train that make the split dev; 0 writes no dev."""


def read_corpus(options: NarrativesOptions) -> FileCorpus:
    """Read the lists and join them with the existing files."""
    source = Source(options.source)
    listed = recordings(source, options.dev_fraction)
    return FileCorpus("localized_narratives", source, join(source, listed), options.stored_side_pixels)


def recordings(source: Source, dev_fraction: float) -> Iterator[Recording]:
    """Yield a recording for each narrative of train and val; one of the two may be missing entirely.

    Raises:
        UserError: naming the lists that are missing.
    """
    if not any(map(source.find, TRAIN + VAL)):
        raise UserError(f"--source {source.location} has neither {TRAIN[0]} nor {VAL[0]}: download the lists there")
    for split, files in (("train", TRAIN), ("test", VAL)):
        if any(map(source.find, files)):
            for name in source.require_all(*((file,) for file in files)):
                for number, line in enumerate(source.lines(name), 1):
                    yield _recording(split, source.json(name, line, number), dev_fraction)


def _recording(split: str, row: Any, dev_fraction: float) -> Recording:
    try:
        number = int(row["image_id"])  # a string: "137576"
        folder = str(row["dataset_id"]).rpartition("_")[2]  # mscoco_val2017
        audio, text = str(row["voice_recording"]), str(row["caption"])
    except (KeyError, TypeError, ValueError):
        return Recording("", "", str(row)[:200], problem="bad_row")
    image_id = f"{number:012d}"
    if split == "train" and place_in_unit_interval(image_id, 0) < dev_fraction:
        split = "dev"
    return Recording(
        split=split,
        image_id=image_id,
        audio=audio,
        image=f"{folder}/{image_id}.jpg",
        text=text.strip(),
        speaker=str(row.get("annotator_id", "")),
        caption_id=audio.rpartition("/")[2].rpartition(".")[0],
    )


if __name__ == "__main__":
    run_recipe(__doc__, NarrativesOptions, read_corpus)
