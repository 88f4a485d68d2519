"""The chat page: static files, no build step, nothing from another host."""

from __future__ import annotations

import hashlib
from importlib import resources

from flask import Blueprint, Response, request

from hearth_gateway.api.responses import HearthResponse
from hearth_gateway.errors import GatewayError, Kind

# Only what the page needs. Nothing inline, nothing foreign, and text can never become markup.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "manifest-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    # The page is small and changes with the gateway: ask every time, and mostly get a 304.
    "Cache-Control": "no-cache",
}
_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}


def create_blueprint() -> Blueprint:
    """Reads all files once: what is served is what was installed, and no path of a request touches a disk."""
    blueprint = Blueprint("web", __name__)
    files: dict[str, tuple[bytes, str, str]] = {}
    for entry in (resources.files("hearth_gateway.web") / "static").iterdir():
        kind = _TYPES.get(entry.name.rpartition(".")[2])
        if kind is not None:
            body = entry.read_bytes()
            files[entry.name] = (body, kind, f'"{hashlib.sha256(body).hexdigest()[:32]}"')

    def serve(name: str) -> Response:
        if name not in files:
            raise GatewayError(Kind.NOT_FOUND, "There is nothing at this address.")
        body, kind, etag = files[name]
        headers = {**_HEADERS, "ETag": etag}
        if etag in request.headers.get("If-None-Match", ""):
            return HearthResponse(b"", 304, headers)
        return HearthResponse(body, 200, {**headers, "Content-Type": kind})

    @blueprint.get("/")
    def page() -> Response:
        return serve("index.html")

    @blueprint.get("/static/<name>")
    def static_file(name: str) -> Response:
        return serve(name)

    return blueprint
