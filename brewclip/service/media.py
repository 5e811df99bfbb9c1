"""Bodies of requests: read within limits, and decoded to what an engine takes."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect, Request

from brewclip.audio import UndecodableAudio, decode_audio
from brewclip.data.images import CLIP_SIDES, reduce_image
from brewclip.data.schema import BadSample
from brewclip.service.problems import Problem
from brewclip.service.settings import ServiceSettings

AUDIO_TYPES = (
    *("audio/wav", "audio/x-wav", "audio/wave", "audio/vnd.wave", "audio/flac", "audio/x-flac"),
    *("audio/ogg", "audio/mpeg", "audio/mp3"),
)
JSON_TYPE = "application/json"
Decoded = TypeVar("Decoded")
_SILENT_PEAK = 1e-4  # what SpeechReader takes for digital silence
# A hostile image within the limits may take 0.8 GB while it is decoded: two at once.
_DECODERS = ThreadPoolExecutor(2, thread_name_prefix="decode")


def media_type_of(request: Request) -> str:
    """Return the media type of a body: one of `AUDIO_TYPES`, an image's, or JSON.

    Raises:
        Problem: 415 for any other, or a compressed body.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise Problem(415, "unsupported_encoding", "a compressed body is not accepted: send it as it is")
    if kind in AUDIO_TYPES or kind.startswith("image/") or kind == JSON_TYPE:
        return kind
    raise Problem(
        415,
        "unsupported_type",
        "the Content-Type must be audio/wav, audio/flac, audio/ogg, audio/mpeg, image/* or application/json",
    )


async def read_body(request: Request, settings: ServiceSettings) -> bytes:
    """Return the body of a request, held against the limit by its header and again while it arrives.

    Raises:
        Problem: 413 if it is too large, 408 if it takes too long, 422 if it is empty.
    """
    limit = settings.max_body_bytes
    too_large = Problem(413, "too_many_bytes", f"the body must have {limit} bytes at most")
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(settings.limits.upload_seconds):
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise Problem(408, "slow_upload", f"the body took more than {settings.limits.upload_seconds:g} s") from None
    except ClientDisconnect:
        raise Problem(400, "disconnected", "the client closed the connection") from None
    if not size:
        raise Problem(422, "empty", "the body is empty")
    return b"".join(parts)


async def decode_recording(data: bytes, settings: ServiceSettings) -> NDArray[np.float32]:
    """Return a recording as (samples,) float32, mono at 16 kHz.

    Raises:
        Problem: 422 with the cause if it cannot be decoded, is too long, or is silent.
    """
    most = settings.limits.speech_seconds
    try:
        waveform = await _in_a_thread(lambda: decode_audio(data, max_seconds=most))
    except UndecodableAudio as error:
        raise Problem(422, error.cause, str(error)) from None
    if np.abs(waveform).max() < _SILENT_PEAK:
        raise Problem(422, "silent", "the recording is silent: check the microphone")
    return waveform


async def decode_image(data: bytes) -> bytes:
    """Return an image as a JPEG of a size that every CLIP reads as it would the original.

    Raises:
        Problem: 422 if it cannot be decoded, or has too many pixels.
    """
    try:
        return await _in_a_thread(lambda: reduce_image(data, max(CLIP_SIDES), exact=False))
    except BadSample as error:
        raise Problem(422, "unusable_image", error.detail) from None


async def _in_a_thread(work: Callable[[], Decoded]) -> Decoded:
    return await asyncio.get_running_loop().run_in_executor(_DECODERS, work)
