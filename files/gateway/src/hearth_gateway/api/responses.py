"""Shaping responses: JSON, errors in the format of the API that was called, the request's id."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Any

import orjson
from flask import Response, g, request

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


# These routes are OpenAI's, whoever calls them.
_OPENAI_ROUTES = ("/v1/chat/", "/v1/embeddings", "/v1/images/")


def speaks_anthropic() -> bool:
    """Whether the current request comes from a client of Anthropic's API: by the route, else by the header
    that its SDKs send with everything."""
    path = request.path
    return path.startswith("/v1/messages") or ("anthropic-version" in request.headers and not path.startswith(_OPENAI_ROUTES))


def request_id() -> str:
    """The id of the current request: in its response headers, in the ledger, in the log."""
    if "request_id" not in g:
        g.request_id = secrets.token_hex(12)
    found: str = g.request_id
    return found


def add_request_id(response: Response) -> None:
    """Under the name that the client's SDK reads."""
    response.headers["x-request-id"] = request_id()
    if speaks_anthropic():
        response.headers["request-id"] = request_id()


def error_response(error: GatewayError) -> HearthResponse:
    headers = dict(error.headers)
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    body = error.anthropic_body(request_id()) if speaks_anthropic() else error.body()
    return json_response(body, error.kind.spec.status, headers)
