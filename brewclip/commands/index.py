"""Make an index of images, or bring it up to date.

brewclip index IMAGES... --out INDEX [--checkpoint s3://bucket/runs/NAME]

IMAGES are folders, files, globs in quotes, or s3:// prefixes. The same command again reads only files that are new or
changed; an interrupted one resumes where it stopped.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import tyro

from brewclip.config import parse_options
from brewclip.config.extras import check_installed
from brewclip.progress import ProgressReporter

if TYPE_CHECKING:
    from brewclip.serving.index.build import BuildReport

_LISTED = 20  # unusable images named to people; --json names all


@dataclass(frozen=True)
class IndexOptions:
    """Settings of `brewclip index`."""

    images: tyro.conf.Positional[tuple[str, ...]]
    """Folders (with all in them), files, globs in quotes, or s3:// prefixes."""
    out: str
    """Folder or s3:// prefix of the index."""
    checkpoint: str = ""
    """URL of a run or checkpoint, a folder, a run below BREWCLIP_STORAGE, models:/NAME@ALIAS, or zero_shot. By default
    the one that made the index, zero_shot for a new index."""
    clip: str = ""
    """CLIP of zero_shot, such as ViT-L-14/openai; a checkpoint records its own."""
    device: str = ""
    """Device of the model, such as cuda; empty uses a GPU if there is one."""
    approximate: Literal["auto", "always", "never"] = "auto"
    """Add an approximate index (extra faiss) for search in more images than can be compared one by one in time: `auto`
    does so above a million."""
    json: bool = False
    """Print what was done as JSON, with all images that cannot be used."""


def run(words: Sequence[str]) -> int:
    """Build the index and print what was done; returns the exit code."""
    options = parse_options(__doc__, IndexOptions, words)
    if options.approximate == "always":
        check_installed("faiss", "--approximate always")
    from brewclip import load
    from brewclip.serving.index.build import build_index
    from brewclip.serving.index.sources import list_images

    files = list_images(options.images)  # fails before the model is loaded
    checkpoint, clip = recorded_system(options.out, options.checkpoint, options.clip)
    embedder = load(checkpoint, clip=clip, device=options.device)
    _, report = build_index(embedder, files, options.out, approximate=options.approximate, start_progress=show_progress)
    print_report(report, options.out, as_json=options.json)
    return 0


def recorded_system(location: str, checkpoint: str, clip: str) -> tuple[str, str]:
    """Return checkpoint and CLIP for an index: those given, else those that made it, else zero_shot."""
    from brewclip.serving.index.place import IndexPlace

    facts = IndexPlace(location).read_facts()
    name, recorded = facts.system(checkpoint) if facts else (checkpoint or "zero_shot", "")
    return name, clip or recorded


def show_progress(total: int) -> Callable[[int], None]:
    """Start a line of progress on stderr, which leaves stdout to the results."""
    return ProgressReporter("index", total, "images", stream=sys.stderr).advance


def print_report(report: "BuildReport", location: str, *, as_json: bool) -> None:
    """Print what a build did: for people, or as one JSON object."""
    if as_json:
        unusable = [{"name": name, "problem": problem} for name, problem in report.unusable]
        print(json.dumps({"index": location} | asdict(report) | {"unusable": unusable}))
        return
    for name, problem in report.unusable[:_LISTED]:
        print(f"left out: {name}: {problem}", file=sys.stderr)
    if len(report.unusable) > _LISTED:
        print(f"left out: {len(report.unusable) - _LISTED} more, --json lists all", file=sys.stderr)
    for note in report.notes:
        print(note)
    print(
        f"{report.num_images} images in {location}: {report.num_added} added, {report.num_renamed} renamed, "
        f"{report.num_removed} removed, {report.num_unchanged} unchanged; {len(report.unusable)} left out"
    )
