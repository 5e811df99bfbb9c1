"""SpokenCOCO: COCO 2014 images with about five read captions each, 617,222 recordings.

    python datasets/spoken_coco.py --source DIR --dest s3://bucket/spoken_coco

DIR holds, at any depth: train2014/ and val2014/ (links will do), wavs/, and lists in one of three forms, of which the
first that exists is read:
  ksplit    SpokenCOCO_ksplit_{train,val,test}.json (Karpathy's split, as SpeechCLIP has it)
  unrolled  SpokenCOCO_{train,val,test}_unrolled_karpathy.json (the same split, one caption a row, as FaST-VGS has it)
  original  SpokenCOCO_{train,val}.json (no test split)
The split that the lists call val is written as dev. See docs/corpora/spoken_coco.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from brewclip.corpora.options import SourceOptions
from brewclip.corpora.recipe import run_recipe
from brewclip.corpora.rounds import FileCorpus, Recording, join, safe_id
from brewclip.corpora.source import Source
from brewclip.errors import UserError

Variant = Literal["auto", "ksplit", "unrolled", "original"]
LISTS = {
    "ksplit": "SpokenCOCO_ksplit_{}.json",
    "unrolled": "SpokenCOCO_{}_unrolled_karpathy.json",
    "original": "SpokenCOCO_{}.json",
}
SPLITS = {"train": "train", "val": "dev", "test": "test"}


@dataclass(frozen=True, kw_only=True)
class SpokenCocoOptions(SourceOptions):
    """SpokenCOCO in one of its three forms."""

    variant: Variant = "auto"
    """Which lists are read; auto reads Karpathy's split if it exists."""


def read_corpus(options: SpokenCocoOptions) -> FileCorpus:
    """Read the lists and join them with the existing files."""
    source = Source(options.source)
    listed = recordings(source, find_lists(source, options.variant))
    return FileCorpus("spoken_coco", source, join(source, listed), options.stored_side_pixels)


def find_lists(source: Source, variant: Variant) -> dict[str, str]:
    """Return split -> list file, of the requested variant or the first that exists.

    Raises:
        UserError: naming the files looked for.
    """
    for name in LISTS if variant == "auto" else [variant]:
        files = {split: source.find(LISTS[name].format(part)) for part, split in SPLITS.items()}
        if any(files.values()):
            missing = [LISTS[name].format(part) for part, split in SPLITS.items() if not files[split]]
            if missing and name != "original":
                raise UserError(f"--source {source.location} has no {', '.join(missing)} next to the other lists")
            return {split: file for split, file in files.items() if file}
    wanted = ", ".join(LISTS[name].format("train") for name in (LISTS if variant == "auto" else [variant]))
    raise UserError(f"--source {source.location} has none of {wanted}: is it the folder of SpokenCOCO?")


def recordings(source: Source, lists: dict[str, str]) -> Iterator[Recording]:
    """Yield a recording for each caption; the text, which is UPPER CASE, in lower case."""
    for split, file in lists.items():
        content = source.json(file)
        rows = content.get("data") if isinstance(content, dict) else content
        if not isinstance(rows, list):
            raise UserError(f"{source.location}/{file} has no list 'data': is it a list of SpokenCOCO?")
        for row in rows:
            for caption in _captions(row):
                yield _recording(split, row, caption)


def _captions(row: Any) -> list[Any]:
    """Return all captions of a row: an image's (original, ksplit) or the one (unrolled)."""
    if not isinstance(row, dict):
        return [None]
    return row["captions"] if isinstance(row.get("captions"), list) else [row.get("caption")]


def _recording(split: str, row: Any, caption: Any) -> Recording:
    try:
        image = str(row["image"])
        stem = image.rpartition("/")[2].rpartition(".")[0]
        text, wav = str(caption["text"]), str(caption["wav"])
    except (KeyError, TypeError):
        return Recording("", "", str(row)[:200], problem="bad_row")
    return Recording(
        split=split,
        image_id=safe_id(stem or image),
        audio=wav,
        image=image,
        text=text.strip().lower(),
        speaker=str(caption.get("speaker", "")),
        caption_id=str(caption.get("uttid", "")),
    )


if __name__ == "__main__":
    run_recipe(__doc__, SpokenCocoOptions, read_corpus)
