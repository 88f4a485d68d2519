"""From an exchange to an HTTP response, in whichever format the client speaks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import orjson
from flask import request

from hearth_gateway.api.responses import HearthResponse, current_environ, json_response, request_id
from hearth_gateway.clients import Client, Clients
from hearth_gateway.config import ServerConfig
from hearth_gateway.core.conversation import ChatService, Exchange
from hearth_gateway.core.identity import Caller
from hearth_gateway.core.lifecycle import Uploads
from hearth_gateway.errors import GatewayError, InvalidRequestError, Kind
from hearth_gateway.telemetry.log import Log
from hearth_gateway.translate.events import Event, Idle
from hearth_gateway.translate.fields import MAX_DEPTH, TooDeepError, parsed_json
from hearth_gateway.translate.model import ChatRequest

_STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    # A proxy that stores or compresses a stream delivers it all at once, at its end.
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
}


class Encoder(Protocol):
    """Turns events into the bytes of one stream; ``b""`` for an event that shows nothing.

    ``heartbeat`` is what may be sent now, between two events, to show that the stream is alive.
    """

    @property
    def heartbeat(self) -> bytes: ...

    def encode(self, event: Event) -> bytes: ...


class Collector(Protocol):
    """Folds events into the body of an answer that is not streamed."""

    def add(self, event: Event) -> None: ...

    def body(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Format:
    """One client format. ``error`` makes, from the fault and the request's id, the last event of a stream
    that failed; nothing may follow it."""

    encoder: Callable[[Exchange], Encoder]
    collector: Callable[[Exchange], Collector]
    error: Callable[[GatewayError, str], bytes]


class Answering:
    """What all routes that answer share."""

    def __init__(self, server: ServerConfig, log: Log, uploads: Uploads, clients: Clients) -> None:
        self._server = server
        self._log = log
        self._uploads = uploads
        self._clients = clients

    def serve(self, service: ChatService, caller: Caller, parse: Callable[[Any], ChatRequest], wire: Format) -> HearthResponse:
        """Read the current request, and answer it. Raises ``GatewayError``."""
        size = self._size_in_memory()
        self._uploads.hold(size)
        try:
            with self._uploads.of(caller.person or caller.name):
                raw = _json_text(self._server.max_body_bytes)
            # Before it is parsed: megabytes take a while, and the connection is known by when it fell silent.
            received_at = time.monotonic()
            body = json_body(raw)
            del raw
            exchange = service.start(parse(body), caller, request_id())
            del body
        except BaseException:
            self._uploads.release(size)
            raise
        exchange.on_close = partial(self._uploads.release, size)
        return self._answer(exchange, wire, received_at)

    def _size_in_memory(self) -> int:
        """Of the body that the client announces; of one that it does not, the most it may become."""
        length = current_environ().get("CONTENT_LENGTH", "")
        if length.isascii() and length.isdigit():
            # One that is too large is refused before it is read.
            return size if (size := int(length)) <= self._server.max_body_bytes else 0
        return self._server.max_body_bytes

    def _answer(self, exchange: Exchange, wire: Format, received_at: float) -> HearthResponse:
        """Run the exchange, or hand it to the server as a stream. Takes care that it is closed."""
        presence = _Presence(self._clients, current_environ().get("REMOTE_ADDR", ""), received_at)
        try:
            exchange.fallback = _wants_fallback()
            if not exchange.request.stream:
                return _whole(exchange, wire, presence)
            ready = exchange.wait_for_content(self._server.headers_after_s, presence.check)
            headers = _headers(exchange, ready) | _STREAM_HEADERS
            # Its pieces are bytes, and it has a `close`: Werkzeug need not look at each.
            return HearthResponse(_Stream(exchange, wire, self._log), 200, headers, direct_passthrough=True)
        except GatewayError as error:
            error.headers = _headers(exchange, exchange.attempts > 0) | error.headers
            exchange.close()
            raise
        except BaseException:
            exchange.close()
            raise
        finally:
            presence.close()


class _Presence:
    """Whether the client still waits, before the first byte of its response; from then on the server tells."""

    # Most answers need not ask, and those that do share what they find.
    _EVERY_S = 0.4

    def __init__(self, clients: Clients, address: str, since: float) -> None:
        """``since``: when the request was here in full."""
        self._clients = clients
        self._address = address
        self._since = since
        self._next = self._since + self._EVERY_S
        self._client: Client | None = None

    def check(self) -> None:
        """Raises ``GatewayError`` when the client has left."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + self._EVERY_S
        if self._client is None:
            self._client = self._clients.enter(self._address, self._since)
        if self._clients.is_gone(self._client):
            raise GatewayError(Kind.CLIENT_LEFT, "The client left before the answer was there.")

    def close(self) -> None:
        if self._client is not None:
            self._clients.leave(self._client)


def _wants_fallback() -> bool:
    """``x-hearth-no-fallback: true`` asks the first provider and nobody else. Raises ``GatewayError``."""
    value: str = current_environ().get("HTTP_X_HEARTH_NO_FALLBACK", "false").lower()
    if value not in ("true", "false"):
        raise InvalidRequestError("The header must be `true` or `false`.", "x-hearth-no-fallback")
    return value == "false"


def _whole(exchange: Exchange, wire: Format, presence: _Presence) -> HearthResponse:
    collector = wire.collector(exchange)
    try:
        for event in exchange:
            presence.check()
            collector.add(event)
    finally:
        exchange.close()
    return json_response(collector.body(), headers=_headers(exchange, True))


def _headers(exchange: Exchange, settled: bool) -> dict[str, str]:
    headers: dict[str, str] = {}
    if settled:
        # Before the first content another provider may still take over: then these would be wrong.
        headers["x-hearth-provider"] = exchange.target.provider.name
        headers["x-hearth-model"] = exchange.target.model
        headers["x-hearth-attempts"] = str(exchange.attempts)
    if exchange.failed_over:
        headers["x-hearth-failover"] = ",".join(f"{provider}={reason}" for provider, reason in exchange.failed_over)
    if exchange.request.ignored:
        headers["x-hearth-ignored"] = ",".join(exchange.request.ignored)
    if exchange.adjusted:
        headers["x-hearth-adjusted"] = ",".join(exchange.adjusted)
    return headers


def _json_text(max_bytes: int) -> bytes:
    """The body of the current request, which says that it is JSON. Raises ``GatewayError``."""
    # Taking the header apart costs more than reading the body: only where it is not just the one word.
    environ = current_environ()
    if environ.get("CONTENT_TYPE") != "application/json" and request.mimetype != "application/json":
        raise GatewayError(Kind.UNSUPPORTED_MEDIA_TYPE, "Send JSON, with the header `Content-Type: application/json`.")
    body = _body(environ, max_bytes)
    if len(body) > max_bytes:
        raise GatewayError(Kind.BODY_TOO_LARGE, "The request body is too large.")
    return body


def json_body(body: bytes) -> Any:
    """The parsed ``body`` of a request. Raises ``GatewayError``."""
    try:
        return parsed_json(body)
    except TooDeepError:
        raise InvalidRequestError(f"The request body is nested too deeply: {MAX_DEPTH} levels are allowed.") from None
    except orjson.JSONDecodeError:
        # `from None`: the exception carries the body.
        raise InvalidRequestError("The request body is not valid JSON.") from None


def _body(environ: dict[str, Any], max_bytes: int) -> bytes:
    length = environ.get("CONTENT_LENGTH", "")
    if length.isascii() and length.isdigit() and int(length) <= max_bytes:
        # The usual case, without Werkzeug's wrapper around the server's own file.
        body: bytes = environ["wsgi.input"].read(int(length))
        if len(body) == int(length):
            return body
        raise InvalidRequestError("The request body is shorter than its header `Content-Length` says.")
    return request.get_data(cache=False)


class _Stream:
    """The body of a streamed answer.

    The server takes the next piece when the client can have it, and calls ``close`` when the client
    has left. That, and the heartbeats, is how a vendor's answer nobody reads is cancelled.
    """

    def __init__(self, exchange: Exchange, wire: Format, log: Log) -> None:
        self._exchange = exchange
        self._wire = wire
        self._log = log
        self._encoder = wire.encoder(exchange)
        self._over = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        while not self._over:
            try:
                event = next(self._exchange)
                if isinstance(event, Idle):
                    return self._encoder.heartbeat
                piece = self._encoder.encode(event)
            except StopIteration:
                self._over = True
                self.close()
                raise
            except GatewayError as error:
                # Nothing that ends a stream well may follow: half an answer must not pass for a whole one.
                self._over = True
                self.close()
                return self._wire.error(error, self._exchange.id)
            except Exception as error:
                self._log.unexpected(error)
                self._over = True
                self.close()
                return self._wire.error(GatewayError(Kind.INTERNAL, "The gateway had an internal error."), self._exchange.id)
            if piece:
                return piece
        raise StopIteration

    def close(self) -> None:
        self._exchange.close()
