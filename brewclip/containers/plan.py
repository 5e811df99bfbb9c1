"""Import plan: whether tars are adopted in place or rewritten, and the split of each.

Tars are adopted if in every one each sample has one recording and is contiguous, all samples of a tar are in one
split, and no image occurs twice in a split, by its name or by its bytes. Otherwise all are rewritten.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from brewclip.containers.digest import Digest
from brewclip.containers.sources import SourceTar
from brewclip.corpora.rounds import place_in_unit_interval
from brewclip.errors import UserError


@dataclass(frozen=True)
class SplitDraw:
    """Random split of images where nothing else determines it: shares of dev and test, and a seed."""

    dev_fraction: float
    test_fraction: float
    seed: int

    def check(self) -> None:
        """Raise a `UserError` if the shares are impossible."""
        fractions = self.dev_fraction, self.test_fraction
        if sum(fractions) >= 1:
            raise UserError(f"--dev-fraction and --test-fraction are {fractions}: they must be below 1 together")

    def split_of(self, name: str) -> str:
        """Return the split of an image."""
        place = place_in_unit_interval(name, self.seed)
        if place < self.test_fraction:
            return "test"
        return "dev" if place < self.test_fraction + self.dev_fraction else "train"

    def splits_of_tars(self, labels: Sequence[str]) -> list[str]:
        """Return the split of each tar; an empty list if there are fewer tars than splits."""
        shares = {"test": self.test_fraction, "dev": self.dev_fraction}
        counts = {split: max(1, round(share * len(labels))) for split, share in shares.items() if share}
        if sum(counts.values()) >= len(labels):
            return []
        order = sorted(
            range(len(labels)), key=lambda row: (place_in_unit_interval(labels[row], self.seed), labels[row])
        )
        drawn = [split for split, count in counts.items() for _ in range(count)]
        splits = [""] * len(labels)
        for place, row in enumerate(order):
            splits[row] = drawn[place] if place < len(drawn) else "train"
        return splits


@dataclass(frozen=True)
class Plan:
    """How tars are imported.

    Attributes:
        obstacle: why they are rewritten, in words; empty if they are adopted.
        splits: of each tar, if they are adopted.
        keys_repeat: a key occurs in several tars, so that names must include the tar's.
    """

    obstacle: str
    splits: list[str]
    keys_repeat: bool


def make_plan(tars: list[SourceTar], digests: list[Digest], draw: SplitDraw, *, by_field: bool, wish: str = "") -> Plan:
    """Decide how tars are imported.

    Args:
        tars: their locations.
        digests: one for each.
        draw: used where neither the user nor a field gives the split.
        by_field: a field of the samples names their split.
        wish: why the user wants them rewritten; empty if not.
    """
    keys = np.concatenate([digest.keys for digest in digests])
    keys_repeat = len(np.unique(keys)) < len(keys)
    pairs = list(zip(tars, digests, strict=True))
    obstacle = wish or next((f"{tar.url}: {digest.obstacle}" for tar, digest in pairs if digest.obstacle), "")
    drawn = not tars[0].split and not by_field
    if by_field:
        several = ((tar.url, digest.splits) for tar, digest in pairs if len(digest.splits) > 1)
        obstacle = obstacle or next((f"{url}: its samples are in {', '.join(names)}" for url, names in several), "")
        splits = [next(iter(digest.splits), "") for digest in digests]
    elif drawn:
        splits = draw.splits_of_tars([tar.label for tar in tars])
        if not splits:
            obstacle = obstacle or f"{len(tars)} tars are too few to assign whole tars to train, dev and test"
    else:
        splits = [tar.split for tar in tars]
    return Plan(obstacle or _find_repeated_image(digests, [] if drawn else splits), splits, keys_repeat)


def _find_repeated_image(digests: list[Digest], splits: list[str]) -> str:
    """Describe images that occur more than once in a split, or, without splits, in all tars."""
    for split in sorted(set(splits)) or [""]:
        mine = [digest for digest, of in zip(digests, splits or [""] * len(digests), strict=True) if of == split]
        for what, hashes in (("name", [one.ids for one in mine]), ("bytes", [one.images for one in mine])):
            joined = np.concatenate(hashes)
            joined = joined[joined != 0]
            repeated = len(joined) - len(np.unique(joined))
            if repeated:
                return f"{repeated} samples share an image with another sample, by its {what}"
    return ""


def check_splits_of_images(digests: list[Digest], splits: list[str], *, refuse_identical: bool) -> None:
    """Check for images in the tars of two splits: an error by name, and by bytes an error or a warning.

    Raises:
        UserError: with their number.
    """
    for what, attribute in (("name", "ids"), ("bytes", "images")):
        held: dict[str, np.ndarray] = {}
        for split in sorted(set(splits)):
            mine = [getattr(one, attribute) for one, of in zip(digests, splits, strict=True) if of == split]
            held[split] = np.setdiff1d(np.concatenate(mine), np.zeros(1, np.uint64))
        for one, other in ((one, other) for one in held for other in held if one < other):
            common = len(np.intersect1d(held[one], held[other], assume_unique=True))
            line = f"{common} images are in {one} and in {other}, by their {what}"
            if common and (what == "name" or refuse_identical):
                raise UserError(f"{line}: name no splits, and they are drawn by image")
            if common:
                print(f"warning: {line}", flush=True)
