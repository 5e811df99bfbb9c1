"""Flags that recipes share, and their validation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from brewclip.config.ranges import FRACTION, Range, check_ranges
from brewclip.errors import UserError

# Flags that do not change the content of a sample.
NOT_IN_A_SAMPLE = {
    *("dest", "source", "split", "limit", "dry_run", "max_rejected_fraction", "samples_per_shard", "identical_images"),
}


@dataclass(frozen=True)
class WriteOptions:
    """Flags that every recipe has."""

    dest: str
    """URL of the corpus, s3://bucket/corpus or file:///folder: splits are stored below it."""
    samples_per_shard: Annotated[int, Range(0, 10**6, note="0 is as many as fit the corpus")] = 0
    """Samples of one shard; 0 makes about 64 shards of a split, each of 16 to 1,000 samples."""
    limit: Annotated[int, Range(0, 10**9, note="0 takes all")] = 0
    """Samples of each round at most; 0 takes all."""
    dry_run: bool = False
    """Count the samples, and write nothing."""
    max_rejected_fraction: Annotated[float, FRACTION] = 0.05
    """Largest share of samples that may be rejected, in 0..1."""
    identical_images: Literal["warn", "refuse"] = "warn"
    """What to do about images that have the same bytes in two splits; published splits cannot be changed."""


@dataclass(frozen=True, kw_only=True)
class SourceOptions(WriteOptions):
    """Flags of the recipes that read a corpus from files."""

    source: str
    """Directory of the corpus as it is distributed, or s3://bucket/prefix or file:///folder. On a cluster, all
    machines must see it."""
    split: tuple[str, ...] = ()
    """Splits to write; none given writes all."""
    image_side_pixels: Annotated[int, Range(16, 8192, note="--keep-original-images reduces nothing")] = 336
    """Images are reduced to this short side; the default suits the largest CLIP (ViT-L-14-336)."""
    keep_original_images: bool = False
    """Keep the bytes of JPEG images instead of reducing them."""

    @property
    def stored_side_pixels(self) -> int:
        """The short side of stored images; 0 keeps them."""
        return 0 if self.keep_original_images else self.image_side_pixels


def check_options(options: WriteOptions) -> None:
    """Check the flags of a recipe that is run from Python, beyond their ranges.

    Raises:
        UserError: one line that names the flag.
    """
    check_ranges(options)
    if "://" not in options.dest:
        url = Path(options.dest).expanduser().absolute().as_uri()
        raise UserError(f"--dest {options.dest} must be s3://bucket[/prefix] or file:///folder, e.g. {url}")
