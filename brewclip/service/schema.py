"""Bodies of requests and responses as the API's schema (OpenAPI) has them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from brewclip.service.engine import MAX_SOUND_WEIGHT, Answer, Facts, Hit, Query

ImageId = Annotated[str, Field(pattern=r"^[0-9A-Za-z_-]{1,64}$", description="Opaque id of an indexed image.")]
Number = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]


class Weights(BaseModel):
    """Weights of a text and an image that are searched with together."""

    model_config = ConfigDict(extra="forbid")

    text: Number = 1.0
    like: Number = 1.0


class TextQuery(BaseModel):
    """A search with words, with an indexed image, or with both."""

    model_config = ConfigDict(extra="forbid")

    text: str = Field("", description="Words to search with.")
    like: ImageId | Literal[""] = Field("", description="Id of an image to find similar ones of.")
    weights: Weights = Weights()
    top: int = Field(20, ge=1, description="Number of results.")
    offset: int = Field(0, ge=0, description="Results that are passed over, for a second page.")


class Result(BaseModel):
    """A found image."""

    id: str
    rank: int
    score: float = Field(description="Cosine similarity.")
    image_url: str
    thumbnail_url: str
    width: int
    height: int


class QueryEcho(BaseModel):
    """What was searched with; of a recording also what was heard."""

    kind: Literal["audio", "image", "text", "like"]
    transcript: str | None = None
    language: str | None = None
    confidence: float | None = Field(default=None, description="Mean probability of a token of the transcript, 0 to 1.")
    rejection: str | None = Field(default=None, description="Why the transcript is empty; empty if it is not.")
    task: str | None = None


class Channels(BaseModel):
    """What each channel alone would have found; null where there is none."""

    heard: list[Result] | None = None
    sounded_like: list[Result] | None = None


class Model(BaseModel):
    """The system that answered."""

    checkpoint: str
    identity_digest: str


class IndexFacts(BaseModel):
    """The index that was searched."""

    version: str
    images: int


class SearchResponse(BaseModel):
    """Results of a search."""

    results: list[Result]
    total: int = Field(description="Images that can be paged through.")
    top: int
    offset: int
    query: QueryEcho
    channels: Channels
    weight: float = Field(description="Weight of the sound against the transcript.")
    weight_max: float
    nothing_close: bool
    threshold: float | None
    timing_seconds: dict[str, float]
    model: Model
    index: IndexFacts


class InfoResponse(BaseModel):
    """What is served."""

    version: str
    model: Model
    index: IndexFacts
    reads_text: bool
    hears_sound: bool
    task: str
    language: str
    threshold: float | None
    weight_max: float
    limits: dict[str, float]


class ProblemDocument(BaseModel):
    """An error (RFC 9457)."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    cause: str = Field(description="Short identifier, such as too_long.")


def result_of(hit: Hit) -> Result:
    """Return a found image with its addresses."""
    where = f"/v1/images/{hit.image_id}"
    return Result(
        id=hit.image_id,
        rank=hit.rank,
        score=hit.score,
        image_url=where,
        thumbnail_url=f"{where}/thumbnail",
        width=hit.width,
        height=hit.height,
    )


def response_of(query: Query, answer: Answer, timing_seconds: dict[str, float]) -> SearchResponse:
    """Return the response to a query."""
    heard = answer.transcription
    echo = QueryEcho(kind=query.kind, **(vars(heard) if heard else {}))
    sides = {side: None if hits is None else [result_of(hit) for hit in hits] for side, hits in answer.channels.items()}
    return SearchResponse(
        results=[result_of(hit) for hit in answer.hits],
        total=answer.total,
        top=query.top,
        offset=query.offset,
        query=echo,
        channels=Channels(**sides),
        weight=answer.sound_weight,
        weight_max=MAX_SOUND_WEIGHT,
        nothing_close=answer.nothing_close,
        threshold=answer.facts.threshold,
        timing_seconds={stage: round(seconds, 4) for stage, seconds in timing_seconds.items()},
        **shared_of(answer.facts),
    )


def shared_of(facts: Facts) -> dict[str, Any]:
    """Return the members that results and information have in common."""
    return {
        "model": Model(checkpoint=facts.checkpoint, identity_digest=facts.identity_digest),
        "index": IndexFacts(version=facts.index_version, images=facts.num_images),
    }
