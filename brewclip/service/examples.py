"""Recordings that the page offers to click on, for users without a microphone: the sound files of a folder.

NAME.txt beside a recording has the title that is shown, such as the words that are spoken.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI, Request
from pydantic import BaseModel
from starlette.responses import Response

from brewclip.errors import UserError
from brewclip.service.pages import cached_response
from brewclip.service.problems import Problem
from brewclip.service.schema import ImageId

_TYPES = {".wav": "audio/wav", ".flac": "audio/flac", ".ogg": "audio/ogg", ".mp3": "audio/mpeg"}
_MOST = 50
_LONGEST_TITLE = 200
_CACHE = "private, max-age=300"


class ExampleDocument(BaseModel):
    """A recording to search with: an opaque id, a title, and where it is."""

    id: str
    title: str
    url: str


class ExamplesResponse(BaseModel):
    """All of them, in the order of their files' names."""

    examples: list[ExampleDocument]


@dataclass(frozen=True)
class Example:
    """A recording of the folder."""

    title: str
    data: bytes
    media_type: str

    @property
    def key(self) -> str:
        """Digest of the content, which serves as id and as ETag."""
        return hashlib.blake2b(self.data, digest_size=8).hexdigest()


def read_examples(folder: str, max_bytes: int) -> dict[str, Example]:
    """Read the recordings of a folder, by id; an empty name has none.

    Raises:
        UserError: if there is no such folder, it has no recording or too many, or one is larger than a body may be.
    """
    if not folder:
        return {}
    try:
        paths = sorted(path for path in Path(folder).expanduser().iterdir() if path.suffix.lower() in _TYPES)
        large = [path.name for path in paths if path.stat().st_size > max_bytes]
        if large or not 1 <= len(paths) <= _MOST:
            what = f"{large[0]}, which is larger than {max_bytes} bytes" if large else f"{len(paths)} recordings"
            raise UserError(f"--examples {folder} has {what}; 1 to {_MOST} of {', '.join(_TYPES)} are served")
        examples = [Example(_title(path), path.read_bytes(), _TYPES[path.suffix.lower()]) for path in paths]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--examples {folder} cannot be read: {error}") from None
    return {example.key: example for example in examples}


def add_example_routes(app: FastAPI, examples: dict[str, Example]) -> None:
    """Serve them below /v1/examples."""

    async def listing() -> ExamplesResponse:
        """Return recordings to try a search with; none unless the service was given some."""
        found = [(key, example.title) for key, example in examples.items()]
        return ExamplesResponse(
            examples=[ExampleDocument(id=key, title=title, url=f"/v1/examples/{key}") for key, title in found]
        )

    async def sound(example_id: ImageId, request: Request) -> Response:
        """Return one of the recordings."""
        if example_id not in examples:
            raise Problem(404, "unknown_example", "there is no example of this id")
        example = examples[example_id]
        return cached_response(example.data, example.media_type, example_id, _CACHE, request, {})

    app.add_api_route("/v1/examples", listing, response_model=ExamplesResponse)
    app.add_api_route("/v1/examples/{example_id}", sound, response_class=Response)


def _title(path: Path) -> str:
    words = path.with_suffix(".txt")
    return " ".join((words.read_text() if words.is_file() else path.stem).split())[:_LONGEST_TITLE]
