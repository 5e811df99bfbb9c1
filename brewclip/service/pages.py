"""The page: every file of the folder `page/`, by its own name, under a strict Content-Security-Policy."""

import hashlib
from pathlib import Path

from fastapi import Request
from starlette.responses import Response

from brewclip.service.problems import Problem

FOLDER = Path(__file__).with_name("page")
INDEX = "index.html"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
    ".txt": "text/plain; charset=utf-8",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "media-src 'self' blob:",
        "font-src 'self'",
        "connect-src 'self'",
        "manifest-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)


def page_response(name: str, request: Request, folder: Path = FOLDER) -> Response:
    """Return a file of the page; the browser keeps it and asks each time whether it has changed.

    Only names that a listing of the folder has are served, so that no name leads elsewhere.

    Raises:
        Problem: 404 if there is no such file.
    """
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    path = files.get(name or INDEX)
    if path is None or path.suffix not in _TYPES:
        raise Problem(404, "not_found", "there is nothing at this address: openapi.json describes the API")
    data = path.read_bytes()
    headers = {"Content-Security-Policy": POLICY}
    return cached_response(data, _TYPES[path.suffix], digest(data), "no-cache", request, headers)


def cached_response(
    data: bytes, media_type: str, tag: str, cache_control: str, request: Request, headers: dict[str, str]
) -> Response:
    """Return a response with an ETag; 304 without a body if the client has this version."""
    headers = {"ETag": f'"{tag}"', "Cache-Control": cache_control} | headers
    known = [one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")]
    if headers["ETag"] in known:
        return Response(status_code=304, headers=headers)
    return Response(data, headers=headers, media_type=media_type)


def digest(data: bytes) -> str:
    """Return a short digest of bytes."""
    return hashlib.blake2b(data, digest_size=12).hexdigest()
