"""Find the images of an index that are nearest to speech, text or an image.

brewclip search --index INDEX --audio query.wav
brewclip search --index INDEX --text "a dog in the snow" --top 20 --json
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from brewclip.config import parse_options
from brewclip.config.ranges import Range
from brewclip.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from brewclip.serving.embedder import Embedder
    from brewclip.serving.index import Match


@dataclass(frozen=True)
class SearchOptions:
    """Settings of `brewclip search`."""

    index: str
    """Folder or s3:// prefix of an index."""
    audio: str = ""
    """Spoken query: a file of WAV, FLAC, OGG or MP3."""
    text: str = ""
    """Written query."""
    image: str = ""
    """Image as the query: finds what looks like it."""
    top: Annotated[int, Range(1, 10**6)] = 10
    """Number of images to print."""
    offset: Annotated[int, Range(0, 10**6)] = 0
    """Number of nearest images to pass over, as for a second page."""
    threshold: Annotated[float, Range(-1, 1)] = -1.0
    """Least cosine similarity of an image that is printed; exit code 1 if none has it."""
    exact: bool = False
    """Compare all images one by one where the index has an approximate index, too."""
    checkpoint: str = ""
    """New location of the checkpoint that made the index; empty uses the recorded one, others are refused."""
    device: str = ""
    """Device of the models, such as cuda; empty uses a GPU if there is one."""
    json: bool = False
    """Print one JSON object."""


def run(words: Sequence[str]) -> int:
    """Print the nearest images; returns the exit code."""
    options = parse_options(__doc__, SearchOptions, words)
    given = [name for name in ("audio", "text", "image") if getattr(options, name)]
    if len(given) != 1:
        raise UserError(f"give one of --audio, --text and --image; {' and '.join(given) or 'none'} is given")
    from brewclip import load
    from brewclip.serving.index.place import open_index

    index = open_index(options.index)
    checkpoint, clip = index.facts.system(options.checkpoint)
    embedder = load(checkpoint, clip=clip, device=options.device)
    index.check_made_by(embedder.identity, embedder.name)  # before Whisper is loaded
    query, vector = _embed(embedder, options, given[0])
    (matches,) = index.nearest(vector, options.top, options.offset, exact=options.exact)
    matches = [match for match in matches if match.score >= options.threshold]
    _print(query, matches, as_json=options.json)
    return 0 if matches else 1


def _embed(embedder: "Embedder", options: SearchOptions, kind: str) -> tuple[dict[str, Any], "NDArray[np.float32]"]:
    """Return what is known of the query, and its vector (1, E)."""
    query: dict[str, Any] = {"kind": kind}
    if kind == "text":
        return query | {"text": options.text}, embedder.embed_text([options.text])
    if kind == "image":
        return query | {"image": options.image}, embedder.embed_images([options.image])
    (heard,) = embedder.listen([options.audio])
    query |= {"audio": options.audio, "transcript": heard.transcript, "language": heard.language}
    query |= {"confidence": heard.confidence, "rejection": heard.rejection}
    return query, heard.fused[None]


def _print(query: dict[str, Any], matches: Sequence["Match"], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"query": query, "results": [asdict(match) for match in matches]}))
        return
    if "transcript" in query:
        rejected = f", rejected: {query['rejection']}" if query["rejection"] else ""
        print(f"heard: {query['transcript']!r} ({query['language']}{rejected})", file=sys.stderr)
    if not matches:
        print("no image is as near as --threshold", file=sys.stderr)
        return
    print("rank  score  image")
    for match in matches:
        print(f"{match.rank:>4}  {match.score:.3f}  {match.name}")
