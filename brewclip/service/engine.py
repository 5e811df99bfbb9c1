"""What the web service asks of a search engine: queries, answers, and the protocol; no models and no Ray here."""

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Kind = Literal["audio", "image", "text", "like"]
TOP_OF_CHANNELS = 5
MAX_SOUND_WEIGHT = 4.0  # the most that the choice on dev considers, see docs/adapter.md


@dataclass(frozen=True)
class Query:
    """One search.

    Attributes:
        kind: what is searched with; "like" for an indexed image, also with a text beside it.
        waveform: of a recording, (samples,) float32 mono at 16 kHz.
        image: an encoded image.
        text: words; empty if there are none.
        like: id of an indexed image; empty if there is none.
        text_weight, like_weight: of the two, where there are both.
        sound_weight: of the sound against the transcript; None is the system's own.
        task: "transcribe", "translate", or "" for the system's own.
        language: of the recording; "" detects it, None is the system's own.
        top: results.
        offset: results before those.
    """

    kind: Kind
    waveform: NDArray[np.float32] | None = None
    image: bytes = b""
    text: str = ""
    like: str = ""
    text_weight: float = 1.0
    like_weight: float = 1.0
    sound_weight: float | None = None
    task: str = ""
    language: str | None = None
    top: int = 20
    offset: int = 0


@dataclass(frozen=True)
class Hit:
    """A found image: its id, 1-based rank, cosine similarity, and size in pixels."""

    image_id: str
    rank: int
    score: float
    width: int
    height: int


@dataclass(frozen=True)
class Transcription:
    """Transcription of a recording."""

    transcript: str
    language: str
    confidence: float
    rejection: str
    task: str


@dataclass(frozen=True)
class Facts:
    """Which system answers, over which index.

    Attributes:
        checkpoint: a name to show, without the path of the server.
        identity_digest: of all that embeddings of images depend on.
        index_version: digest of the index's content.
        num_images: in the index.
        reads_text, hears_sound: which channels the system has.
        task, language: its own.
        threshold: best score below which nothing is close; None if there is none.
    """

    checkpoint: str
    identity_digest: str
    index_version: str
    num_images: int
    reads_text: bool
    hears_sound: bool
    task: str
    language: str
    threshold: float | None


@dataclass(frozen=True)
class Answer:
    """Results of a query.

    Attributes:
        hits: of both channels together, or of the only vector there is.
        total: images that could be paged through.
        facts: of the system at the time of the answer.
        transcription: of a recording.
        channels: "heard" and "sounded_like" -> what each channel alone would have found; None where there is none.
        sound_weight: with which the channels were fused.
        nothing_close: whether the best score is below the threshold.
        timings_seconds: stage -> wall time.
        batch_size: queries that were answered together.
    """

    hits: list[Hit]
    total: int
    facts: Facts
    transcription: Transcription | None = None
    channels: dict[str, list[Hit] | None] = field(default_factory=dict)
    sound_weight: float = 0.0
    nothing_close: bool = False
    timings_seconds: dict[str, float] = field(default_factory=dict)
    batch_size: int = 1


@dataclass(frozen=True)
class ImageFile:
    """An image as it is sent: bytes, media type, and a tag that changes with them."""

    data: bytes
    media_type: str
    tag: str


class SearchEngine(Protocol):
    """What `build_app` serves; raises `Problem` for what a client caused."""

    async def search(self, query: Query) -> Answer:
        """Answer a query."""
        ...

    async def facts(self) -> Facts:
        """Return which system answers."""
        ...

    async def original(self, image_id: str) -> ImageFile:
        """Return an indexed image as it is stored."""
        ...

    async def thumbnail(self, image_id: str) -> ImageFile:
        """Return a small JPEG of an indexed image."""
        ...


class ServedIndex(Protocol):
    """What the service needs of an index; `brewclip.serving.index.ImageIndex` is one."""

    @property
    def version(self) -> str:
        """Digest that changes with the content."""
        ...

    def __len__(self) -> int: ...

    def check_made_by(self, identity: dict[str, Any], checkpoint: str) -> None:
        """Raise `UserError` if another system made the index."""
        ...

    def nearest(self, queries: NDArray[np.float32], top: int, offset: int = 0) -> list[list[Any]]:
        """Return matches (rank, score, row, image_id) of each query (n, E), nearest first."""
        ...

    def row_of(self, image_id: str) -> int:
        """Return the row of an image; raise `LookupError` if there is none."""
        ...

    def vector(self, row: int) -> NDArray[np.float32]:
        """Return the embedding of a row, (E,)."""
        ...

    def entry(self, row: int) -> Any:
        """Return id, width and height of a row."""
        ...

    def thumbnail(self, row: int) -> bytes:
        """Return a JPEG."""
        ...

    def read_image(self, row: int) -> bytes:
        """Return the original; raise `LookupError` if it is gone or changed."""
        ...
