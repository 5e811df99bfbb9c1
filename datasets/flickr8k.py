"""Flickr8k with the Flickr Audio Caption Corpus: 8,000 images, five read captions each.

    python datasets/flickr8k.py --source DIR --dest s3://bucket/flickr8k

DIR holds, at any depth: the images (Images/ or Flicker8k_Dataset/), Flickr8k.token.txt or Kaggle's captions.txt,
the three lists Flickr_8k.{train,dev,test}Images.txt, and flickr_audio/ (wavs/, wav2capt.txt, wav2spk.txt).
Splits follow the three lists only. See docs/corpora/flickr8k.md.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from brewclip.corpora.options import SourceOptions
from brewclip.corpora.recipe import run_recipe
from brewclip.corpora.rounds import FileCorpus, Recording, join, safe_id
from brewclip.corpora.source import Source
from brewclip.errors import UserError

Caption = tuple[str, int]  # file name of the image, number of the caption
SPLITS = ("train", "dev", "test")
TEXTS = ("Flickr8k.token.txt", "captions.txt")


@dataclass(frozen=True, kw_only=True)
class Flickr8kOptions(SourceOptions):
    """Flickr8k with spoken captions."""


def read_corpus(options: Flickr8kOptions) -> FileCorpus:
    """Read lists and captions, and join them with the existing files."""
    source = Source(options.source)
    return FileCorpus("flickr8k", source, join(source, recordings(source)), options.stored_side_pixels)


def recordings(source: Source) -> Iterator[Recording]:
    """Yield a recording for each caption that has a text or a line in wav2capt.txt.

    Raises:
        UserError: naming all lists that are missing.
    """
    source.require_all(*((f"Flickr_8k.{split}Images.txt",) for split in SPLITS), TEXTS, ("wav2capt.txt",))
    split_of = read_splits(source)
    texts, wavs, speakers = read_texts(source), read_wavs(source), read_speakers(source)
    captions = {*texts, *wavs}
    without = split_of.keys() - {image for image, _ in captions}
    for image, number in sorted(captions | {(image, 0) for image in without}):
        stem = image.rpartition(".")[0]
        wav = wavs.get((image, number), f"{stem}_{number}.wav")
        split = split_of.get(image, "")
        text = texts.get((image, number), "")
        yield Recording(
            split=split,
            image_id=safe_id(stem),
            audio=f"wavs/{wav}",
            image=image,
            text=text,
            speaker=speakers.get(wav, ""),
            caption_id=wav.rpartition(".")[0],
            problem="no_split" if not split else "" if text else "missing_caption",
        )


def read_splits(source: Source) -> dict[str, str]:
    """Return image -> split.

    Raises:
        UserError: if a list is missing, or an image is in two of them.
    """
    split_of: dict[str, str] = {}
    for split in SPLITS:
        for line in source.lines(source.require(f"Flickr_8k.{split}Images.txt")):
            other = split_of.setdefault(line.strip(), split)
            if other != split:
                raise UserError(
                    f"{line.strip()} is in Flickr_8k.{other}Images.txt and in Flickr_8k.{split}Images.txt: "
                    "these are not the original lists, download them again"
                )
    return split_of


def read_texts(source: Source) -> dict[Caption, str]:
    """Return the captions of Flickr8k.token.txt, or else of Kaggle's captions.txt (five rows for each image)."""
    name = source.require(*TEXTS)
    texts: dict[Caption, str] = {}
    if name.endswith("captions.txt"):
        seen: Counter[str] = Counter()
        for row in list(csv.reader(io.StringIO(source.text(name), newline="")))[1:]:
            if len(row) >= 2:
                image = _without_copy_number(row[0])
                # A comma that is not quoted splits the caption.
                texts[image, seen[image]] = ",".join(row[1:]).strip()
                seen[image] += 1
        return texts
    for line in source.lines(name):
        label, _, text = line.partition("\t")
        image, _, number = label.strip().rpartition("#")
        if not number.isdecimal():  # included to be counted: no list names such an image
            image, number = label.strip(), "0"
        texts.setdefault((_without_copy_number(image), int(number)), text.strip())
    return texts


def read_wavs(source: Source) -> dict[Caption, str]:
    """Return the recording of each caption from wav2capt.txt: lines `<wav> <jpg> #<n>`."""
    wavs: dict[Caption, str] = {}
    for line in source.lines(source.require("wav2capt.txt")):
        parts = line.split()
        if len(parts) == 3 and parts[2].lstrip("#").isdecimal():
            wavs[_without_copy_number(parts[1]), int(parts[2].lstrip("#"))] = parts[0]
    return wavs


def read_speakers(source: Source) -> dict[str, str]:
    """Return the speaker of each recording from wav2spk.txt; nothing if it is missing."""
    name = source.find("wav2spk.txt")
    pairs = (line.split() for line in source.lines(name)) if name else ()
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


def _without_copy_number(image: str) -> str:
    """Return the image of the line that names `2258277193_586949ec62.jpg.1`."""
    head, _, tail = image.strip().rpartition(".jpg.")
    return f"{head}.jpg" if head and tail.isdecimal() else image.strip()


if __name__ == "__main__":
    run_recipe(__doc__, Flickr8kOptions, read_corpus)
