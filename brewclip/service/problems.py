"""Errors of the API as problem documents (RFC 9457): every answer of 400 and above is one."""

import json
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"
_URN = "urn:brewclip:problem:"
_log = logging.getLogger("brewclip.service")


class Problem(Exception):
    """A request that is not answered as asked.

    Args:
        status: HTTP status.
        cause: short identifier such as "too_long"; the end of the document's type.
        detail: one sentence on what is wrong and what is allowed. It reaches the client: no path, no secret.
        headers: of the response.
        extra: members of the document beyond the standard's.
    """

    def __init__(
        self, status: int, cause: str, detail: str, headers: Mapping[str, str] | None = None, **extra: Any
    ) -> None:
        super().__init__(detail)
        self.status, self.cause, self.detail = status, cause, detail
        self.headers, self.extra = dict(headers or {}), extra

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.status, self.cause, self.detail, self.headers, self.extra)

    def document(self) -> dict[str, Any]:
        """Return the members of the problem document."""
        title = HTTPStatus(self.status).phrase
        facts = {"type": _URN + self.cause, "title": title, "status": self.status, "detail": self.detail}
        return facts | {"cause": self.cause} | self.extra

    def response(self) -> Response:
        """Return the response."""
        return Response(json.dumps(self.document()), self.status, self.headers, MEDIA_TYPE)


def _restore(status: int, cause: str, detail: str, headers: dict[str, str], extra: dict[str, Any]) -> Problem:
    return Problem(status, cause, detail, headers, **extra)


def busy(detail: str, retry_seconds: int = 1) -> Problem:
    """Return the problem of a full queue."""
    return Problem(429, "busy", detail, {"Retry-After": str(retry_seconds)})


def invalid(error: ValidationError | RequestValidationError) -> Problem:
    """Return the problem of parameters or JSON that do not fit the schema, without repeating their values."""
    errors = [{"place": ".".join(map(str, one["loc"])), "message": one["msg"]} for one in error.errors()]
    first = errors[0] if errors else {"place": "", "message": "invalid"}
    return Problem(422, "invalid_request", f"{first['place']}: {first['message']}", errors=errors)


def install_handlers(app: FastAPI) -> None:
    """Answer every error of an app, the framework's own too, with a problem document."""

    @app.exception_handler(Problem)
    async def of_ours(request: Request, error: Problem) -> Response:
        return error.response()

    @app.exception_handler(HTTPException)
    async def of_the_framework(request: Request, error: HTTPException) -> Response:
        cause = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "refused")
        return Problem(error.status_code, cause, str(error.detail), error.headers).response()

    @app.exception_handler(RequestValidationError)
    async def of_parameters(request: Request, error: RequestValidationError) -> Response:
        return invalid(error).response()

    @app.exception_handler(Exception)
    async def of_nobody(request: Request, error: Exception) -> Response:
        return internal_error().response()


def internal_error() -> Problem:
    """Return the problem of an error of ours, which the log explains."""
    return Problem(500, "internal_error", "the service failed; its log says why")
