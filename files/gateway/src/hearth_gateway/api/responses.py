"""Shaping responses: JSON, errors in the format of the API that was called, the request's id."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Any

import orjson
from flask import Request, Response, request
from flask.globals import _cv_request

from hearth_gateway.errors import GatewayError


class HearthResponse(Response):
    """Hands whole bodies to the server in one piece; Werkzeug would make a stream of them."""

    default_mimetype = "application/json"
    # Headers of our own making. Werkzeug's container looks at each value for line breaks, and again when it is copied.
    more_headers: tuple[tuple[str, str], ...] = ()

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        if self.is_streamed or environ["REQUEST_METHOD"] == "HEAD":
            self.headers.extend(self.more_headers)
            return super().__call__(environ, start_response)
        if self.status_code < 200 or self.status_code in (204, 304):
            start_response(self.status, [*self.get_wsgi_headers(environ), *self.more_headers])
        else:
            # Werkzeug's look at them is for relative redirects and bodies of unknown length. We have neither.
            start_response(self.status, [*self.headers, *self.more_headers])
        body = self.response if type(self.response) is list else [self.get_data()]
        self.close()
        return body


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> HearthResponse:
    body = orjson.dumps(value)
    response = HearthResponse([body], status, content_type="application/json")
    response.more_headers = (("Content-Length", str(len(body))), ("Cache-Control", "no-store"), *(headers or {}).items())
    return response


# These routes are OpenAI's, whoever calls them.
_OPENAI_ROUTES = ("/v1/chat/", "/v1/embeddings", "/v1/images/")


def speaks_anthropic(asked: Request = request) -> bool:
    """Whether the request comes from a client of Anthropic's API: by the route, else by the header
    that its SDKs send with everything."""
    path = asked.path
    return path.startswith("/v1/messages") or ("HTTP_ANTHROPIC_VERSION" in asked.environ and not path.startswith(_OPENAI_ROUTES))


def current_environ() -> dict[str, Any]:
    """Of the current request. To find it, Flask's own `request` takes five calls, each time."""
    return _cv_request.get().request.environ


def request_id() -> str:
    """The id of the current request: in its response headers, in the ledger, in the log."""
    return _id_of(current_environ())


def _id_of(environ: dict[str, Any]) -> str:
    found: str | None = environ.get("hearth.request_id")
    if found is None:
        found = environ["hearth.request_id"] = secrets.token_hex(12)
    return found


def own_headers(asked: Request) -> tuple[tuple[str, str], ...]:
    """What every response has. The request's id under each name that the client's SDK reads."""
    number = _id_of(asked.environ)
    headers = (("X-Content-Type-Options", "nosniff"), ("x-request-id", number))
    return (*headers, ("request-id", number)) if speaks_anthropic(asked) else headers


def error_response(error: GatewayError) -> HearthResponse:
    headers = dict(error.headers)
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    body = error.anthropic_body(request_id()) if speaks_anthropic() else error.body()
    return json_response(body, error.kind.spec.status, headers)
