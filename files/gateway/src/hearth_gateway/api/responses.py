"""Shaping responses: JSON, errors in the format of the API that was called, the request's id."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Any

import orjson
from flask import Request, Response, g, request

from hearth_gateway.errors import GatewayError


class HearthResponse(Response):
    """Hands whole bodies to the server in one piece; Werkzeug would make a stream of them."""

    default_mimetype = "application/json"

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        if self.is_streamed or environ["REQUEST_METHOD"] == "HEAD":
            return super().__call__(environ, start_response)
        if self.status_code < 200 or self.status_code in (204, 304):
            start_response(self.status, self.get_wsgi_headers(environ).to_wsgi_list())
        else:
            # Werkzeug's look at them is for relative redirects and bodies of unknown length. We have neither.
            start_response(self.status, self.headers.to_wsgi_list())
        body = self.get_data()
        self.close()
        return [body]


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> HearthResponse:
    body = orjson.dumps(value)
    # All of them at once, and the body as it is: Werkzeug takes its time for each header that is set later.
    sent = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Cache-Control", "no-store")]
    return HearthResponse([body], status, [*sent, *(headers or {}).items()])


# These routes are OpenAI's, whoever calls them.
_OPENAI_ROUTES = ("/v1/chat/", "/v1/embeddings", "/v1/images/")


def speaks_anthropic(asked: Request = request) -> bool:
    """Whether the request comes from a client of Anthropic's API: by the route, else by the header
    that its SDKs send with everything."""
    path = asked.path
    return path.startswith("/v1/messages") or ("HTTP_ANTHROPIC_VERSION" in asked.environ and not path.startswith(_OPENAI_ROUTES))


def request_id() -> str:
    """The id of the current request: in its response headers, in the ledger, in the log."""
    found: str | None = g.get("request_id")
    if found is None:
        found = g.request_id = secrets.token_hex(12)
    return found


def own_headers(asked: Request) -> list[tuple[str, str]]:
    """What every response has. The request's id under each name that the client's SDK reads."""
    number = request_id()
    headers = [("X-Content-Type-Options", "nosniff"), ("x-request-id", number)]
    return [*headers, ("request-id", number)] if speaks_anthropic(asked) else headers


def error_response(error: GatewayError) -> HearthResponse:
    headers = dict(error.headers)
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    body = error.anthropic_body(request_id()) if speaks_anthropic() else error.body()
    return json_response(body, error.kind.spec.status, headers)
