"""Search images by speech from the command line.

python -m brewclip index --checkpoint s3://bucket/runs/NAME --images DIR --out index.npz
python -m brewclip search --index index.npz --audio query.wav --k 5
python -m brewclip serve --index INDEX
python -m brewclip --version
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from brewclip.config import exit_on_user_error, parse_options
from brewclip.config.ranges import Range
from brewclip.errors import UserError
from brewclip.version import describe_versions

_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"))


@dataclass(frozen=True)
class IndexOptions:
    """Settings of `index`."""

    checkpoint: str
    """URL of a run or checkpoint, a folder, a run below BREWCLIP_STORAGE, models:/NAME@ALIAS, or zero_shot."""
    images: Path
    """Folder of images, searched recursively."""
    out: Path = Path("index.npz")
    """Index file to write."""
    clip: str = ""
    """CLIP of zero_shot; a checkpoint records its own."""


@dataclass(frozen=True)
class SearchOptions:
    """Settings of `search`."""

    index: Path
    """Index file written by `index`."""
    audio: Path
    """Spoken query, any sound file."""
    k: Annotated[int, Range(1, 10**6)] = 5
    """Number of images to print."""
    checkpoint: str = ""
    """New location of the checkpoint that built the index; empty uses the recorded one, others are refused."""


def main() -> None:
    """Run the command named by the first argument."""
    with exit_on_user_error():
        commands = {"index": build_index, "search": search, "serve": serve}
        name, words = (sys.argv[1:2] or [""])[0], sys.argv[2:]
        if name in ("-h", "--help"):
            print(__doc__.strip() if __doc__ else "")
            return
        if name == "--version":
            print(describe_versions())
            return
        if name not in commands:
            raise UserError(f"no command {name!r}: there are {', '.join(commands)} (python -m brewclip index --help)")
        try:
            commands[name](words)
        except (ValueError, FileNotFoundError) as error:
            raise UserError(str(error)) from error


def build_index(words: list[str]) -> None:
    """Embed the images of a folder and write the index."""
    options = parse_options(__doc__, IndexOptions, words)
    if not options.images.is_dir():
        raise UserError(f"--images {options.images} is not a folder")
    paths = sorted(path for path in options.images.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise UserError(f"--images {options.images} holds no image ({', '.join(sorted(_SUFFIXES))})")
    from brewclip import load

    index, problems = load(options.checkpoint, clip=options.clip).build_index(paths)
    for line in problems:
        print(f"left out: {line}", file=sys.stderr)
    if not index.names:
        raise UserError(f"none of {len(paths)} images in {options.images} can be used")
    index.save(options.out)
    print(f"{len(index.names)} images in {options.out}, {len(problems)} left out")


def search(words: list[str]) -> None:
    """Print the images nearest to a recording."""
    options = parse_options(__doc__, SearchOptions, words)
    from brewclip import load
    from brewclip.serving.npz_index import Index

    index = Index.load(options.index)
    clip = next(iter(index.identity["frozen_sha256"])) if index.checkpoint == "zero_shot" else ""
    name = options.checkpoint or index.checkpoint
    embedder = load(name, clip=clip if name == "zero_shot" else "")
    index.check_made_by(embedder.identity, embedder.name)  # before Whisper is loaded
    (matches,) = embedder.search(index, [options.audio], options.k)
    print("rank  score  image")
    for match in matches:
        print(f"{match.rank:>4}  {match.score:.3f}  {match.name}")


def serve(words: list[str]) -> None:
    """Serve an index as a page and an API."""
    from brewclip.service.command import serve as run

    run(words)


if __name__ == "__main__":
    main()
