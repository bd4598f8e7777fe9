"""The files of the pages: read once, when the server starts, and served from memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Final

from quart import Response
from quart.wrappers import Request

from understudy.wire.errors import not_found

TYPES: Final = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


@dataclass(frozen=True)
class Asset:
    body: bytes
    content_type: str
    etag: str


def load_static() -> dict[str, Asset]:
    return {name: _asset(name, body) for name, body in _files("static")}


def load_templates() -> dict[str, str]:
    return {name: body.decode() for name, body in _files("templates")}


def serve_asset(assets: Mapping[str, Asset], name: str, request: Request) -> Response:
    """Raises `Refused` (404). The browser asks each time and is told 304 while nothing changed."""
    asset = assets.get(name)
    if asset is None:
        raise not_found(f"file {name[:80]}")
    is_known = request.if_none_match.contains(asset.etag)
    response = Response(
        b"" if is_known else asset.body, 304 if is_known else 200, content_type=asset.content_type
    )
    response.set_etag(asset.etag)
    response.headers["Cache-Control"] = "no-cache"
    return response


def _asset(name: str, body: bytes) -> Asset:
    return Asset(body, TYPES[name.rpartition(".")[2]], sha256(body).hexdigest()[:20])


def _files(folder: str) -> Iterator[tuple[str, bytes]]:
    return _walk(resources.files("understudy.http.pages") / folder, "")


def _walk(folder: Traversable, prefix: str) -> Iterator[tuple[str, bytes]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _walk(entry, f"{prefix}{entry.name}/")
        else:
            yield f"{prefix}{entry.name}", entry.read_bytes()
