"""Client of the service for Python, with nothing but the standard library."""

import contextlib
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

_TRIES = 3
_LONGEST_WAIT_SECONDS = 30.0
# First bytes -> media type of sound files.
_SOUND = {b"RIFF": "audio/wav", b"fLaC": "audio/flac", b"OggS": "audio/ogg"}


class ServiceError(Exception):
    """An answer of the service that is an error.

    Attributes:
        status: HTTP status.
        cause: short identifier, such as "too_long".
        problem: the whole problem document; empty if the answer was none.
    """

    def __init__(self, status: int, problem: dict[str, Any], text: str) -> None:
        super().__init__(f"{status}: {problem.get('detail') or text}")
        self.status, self.problem = status, problem
        self.cause = str(problem.get("cause", ""))


class Client:
    """Searches images through a running service.

        client = brewclip.Client("http://127.0.0.1:8000")
        for image in client.search(audio="query.wav")["results"]:
            print(image["score"], image["id"])

    Args:
        url: of the service.
        token: that it asks for; empty for one that asks for none.
        timeout_seconds: of a request.
    """

    def __init__(self, url: str, token: str = "", timeout_seconds: float = 90.0) -> None:
        self.url, self._token, self.timeout_seconds = url.rstrip("/"), token, timeout_seconds
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"the URL of a service starts with http:// or https://, not {url!r}")

    def search(
        self,
        *,
        audio: str | Path | bytes | None = None,
        image: str | Path | bytes | None = None,
        text: str = "",
        like: str = "",
        top: int = 20,
        offset: int = 0,
        weight: float | None = None,
        weights: dict[str, float] | None = None,
        task: str = "",
        language: str | None = None,
    ) -> dict[str, Any]:
        """Search with a recording, with an image, or with words and an indexed image.

        Args:
            audio: a sound file: its path or its bytes.
            image: an image file, likewise.
            text: words.
            like: id of an indexed image.
            top: results.
            offset: results that are passed over, for a second page.
            weight: of the sound of a recording; None is the system's own.
            weights: of `text` and `like` where both are given.
            task: "transcribe" or "translate"; empty is the system's own.
            language: of a recording, such as "de"; empty detects it; None is the system's own.

        Returns:
            The response, see docs/serving.md: results, total, query, channels, timing_seconds, ...

        Raises:
            ValueError: unless there is one kind of query.
            ServiceError: if the service refuses the query; where it is busy, after it was asked three times.
            OSError: if the service cannot be reached.
        """
        if (audio is not None) + (image is not None) + bool(text or like) != 1:
            raise ValueError("search with audio, with image, or with text and like")
        asked = {"top": top, "offset": offset, "weight": weight, "task": task or None, "language": language}
        if audio is not None:
            data = _bytes_of(audio)
            return self._post(data, _sound_type(data), asked)
        if image is not None:
            return self._post(_bytes_of(image), "image/*", asked)
        words = {"text": text, "like": like, "top": top, "offset": offset} | ({"weights": weights} if weights else {})
        return self._post(json.dumps(words).encode(), "application/json", {})

    def info(self) -> dict[str, Any]:
        """Return what is served, and its limits."""
        return dict(json.loads(self._request("/v1/info")))

    def image(self, image_id: str) -> bytes:
        """Return an indexed image as it is stored."""
        return self._request(f"/v1/images/{urllib.parse.quote(image_id, safe='')}")

    def thumbnail(self, image_id: str) -> bytes:
        """Return a small JPEG of an indexed image."""
        return self._request(f"/v1/images/{urllib.parse.quote(image_id, safe='')}/thumbnail")

    def _post(self, data: bytes, media_type: str, parameters: dict[str, Any]) -> dict[str, Any]:
        given = {name: value for name, value in parameters.items() if value is not None}
        path = "/v1/search" + ("?" + urllib.parse.urlencode(given) if given else "")
        return dict(json.loads(self._request(path, data, {"Content-Type": media_type})))

    def _request(self, path: str, data: bytes | None = None, headers: dict[str, str] | None = None) -> bytes:
        headers = (headers or {}) | ({"Authorization": f"Bearer {self._token}"} if self._token else {})
        for left in reversed(range(_TRIES)):
            request = urllib.request.Request(self.url + path, data, headers)
            try:
                with urllib.request.urlopen(request, timeout=self.timeout_seconds) as response:
                    return bytes(response.read())
            except urllib.error.HTTPError as error:
                with error:
                    wait = error.headers.get("Retry-After", "")
                    if not (left and error.code in (429, 503) and wait.isdigit()):
                        raise _error_of(error) from None
                time.sleep(min(float(wait), _LONGEST_WAIT_SECONDS))
        raise AssertionError("unreachable")


def _bytes_of(media: str | Path | bytes) -> bytes:
    return media if isinstance(media, bytes) else Path(media).expanduser().read_bytes()


def _sound_type(data: bytes) -> str:
    return _SOUND.get(data[:4], "audio/mpeg")


def _error_of(error: urllib.error.HTTPError) -> ServiceError:
    text, problem = error.read().decode(errors="replace"), {}
    with contextlib.suppress(ValueError):
        problem = json.loads(text)
    return ServiceError(error.code, problem if isinstance(problem, dict) else {}, text[:200])
