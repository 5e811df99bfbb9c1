"""ASGI middleware for every request: authentication, response headers, access log, metrics."""

import base64
import binascii
import hmac
import json
import logging
import re
import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from brewclip.service.metrics import ServiceMetrics
from brewclip.service.problems import Problem

access_log = logging.getLogger("brewclip.service.access")
_OPEN_PATHS = ("/healthz", "/readyz")  # asked by probes, which bring no token
_PORT = re.compile(r":\d+$")
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(self)",
}
_STRICT_POLICY = "default-src 'none'; frame-ancestors 'none'; sandbox"


def log_to_stderr() -> None:
    """Write the service's log and its access log to stderr, once a process."""
    logger = logging.getLogger("brewclip.service")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


class Gate:
    """ASGI middleware around the whole app.

    With a token, a request must bring it, as `Authorization: Bearer TOKEN` or as the password of HTTP Basic, for which
    browsers ask. Without one, it must name a loopback host: else a web page elsewhere could have its own name
    resolve to this machine, and read images and answers (DNS rebinding).

    Args:
        app: the app.
        token: empty if none is needed.
        metrics: count each request.
    """

    def __init__(self, app: ASGIApp, token: str, metrics: ServiceMetrics) -> None:
        self.app, self.token, self.metrics = app, token, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; websockets are refused."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        started, status, size = time.monotonic(), 500, 0
        scope.setdefault("state", {})["log"] = {}

        async def send_with_headers(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                _complete(MutableHeaders(scope=message))
            size += len(message.get("body", b""))
            await send(message)

        try:
            problem = self._problem(Headers(scope=scope), scope["path"])
            if problem is None:
                await self.app(scope, receive, send_with_headers)
            else:
                await problem.response()(scope, receive, send_with_headers)
        finally:
            seconds = time.monotonic() - started
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.count(route, status, seconds)
            _log(scope, route, status, seconds, size)

    def _problem(self, headers: Headers, path: str) -> Problem | None:
        if path in _OPEN_PATHS:
            return None
        if not self.token:
            if _PORT.sub("", headers.get("host", "")).lower() not in _LOOPBACK_NAMES:
                return Problem(421, "wrong_host", "without a token, this service answers to localhost only")
            return None
        if hmac.compare_digest(_token_of(headers.get("authorization", "")).encode(), self.token.encode()):
            return None
        ask = {"WWW-Authenticate": 'Basic realm="brewclip: any name, the token as password", charset="UTF-8"'}
        return Problem(401, "unauthorized", "the token is missing or wrong", ask)


def _token_of(authorization: str) -> str:
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, ValueError):
            return ""
    return ""


def _complete(headers: MutableHeaders) -> None:
    for name, value in _HEADERS.items():
        headers.setdefault(name, value)
    headers.setdefault("Content-Security-Policy", _STRICT_POLICY)
    headers.setdefault("Cache-Control", "no-store")


def _log(scope: Scope, route: str, status: int, seconds: float, size: int) -> None:
    """Write a line without address, path or query of the request: those may hold what somebody searched."""
    line: dict[str, Any] = {"method": scope["method"], "route": route, "status": status}
    line |= {"seconds": round(seconds, 4), "bytes": size} | scope["state"]["log"]
    access_log.info("%s", json.dumps(line, ensure_ascii=False))
