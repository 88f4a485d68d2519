"""Shaping responses: JSON, errors, security headers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson
from flask import Response

from hearth_gateway.errors import GatewayError


class HearthResponse(Response):
    """Hands whole bodies to the server in one piece; Werkzeug would make a stream of them."""

    default_mimetype = "application/json"

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        if self.is_streamed or environ["REQUEST_METHOD"] == "HEAD":
            return super().__call__(environ, start_response)
        body = self.get_data()
        start_response(self.status, self.get_wsgi_headers(environ).to_wsgi_list())
        self.close()
        return [body]


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> HearthResponse:
    return HearthResponse(orjson.dumps(value), status, {"Cache-Control": "no-store", **(headers or {})})


def error_response(error: GatewayError) -> HearthResponse:
    headers = dict(error.headers)
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    return json_response(error.body(), error.kind.spec.status, headers)
