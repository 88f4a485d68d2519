"""POST /v1/chat/completions and GET /v1/models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
from flask import Blueprint, request

from hearth_gateway.api.responses import HearthResponse, json_response
from hearth_gateway.config import ServerConfig
from hearth_gateway.core.conversation import ChatService, Exchange
from hearth_gateway.core.identity import Caller, TokenStore
from hearth_gateway.errors import GatewayError, InvalidRequestError, Kind
from hearth_gateway.telemetry.log import Log
from hearth_gateway.translate.events import Idle
from hearth_gateway.translate.openai_request import parse_chat_request
from hearth_gateway.translate.openai_response import HEARTBEAT, ChunkEncoder, Collector, encode_error

_STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    # A proxy that stores or compresses a stream delivers it all at once, at its end.
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
}


def create_blueprint(service: ChatService, tokens: TokenStore, server: ServerConfig, started_at: int, log: Log) -> Blueprint:
    """``started_at`` (Unix seconds) is what the model list reports as `created`."""
    blueprint = Blueprint("openai", __name__)

    def caller() -> Caller:
        return tokens.identify(request.headers.get("Authorization", ""), request.headers.get("x-api-key", ""))

    @blueprint.get("/v1/models")
    def list_models() -> HearthResponse:
        caller()
        models = [
            {
                "id": alias,
                "object": "model",
                "created": started_at,
                "owned_by": targets[0].provider.name,
                "hearth": {"demo": targets[0].provider.is_demo},
            }
            for alias, targets in service.routes.items()
        ]
        return json_response({"object": "list", "data": models})

    @blueprint.post("/v1/chat/completions")
    def create_chat_completion() -> HearthResponse:
        who = caller()
        chat = parse_chat_request(_json_body(server.max_body_bytes))
        exchange = service.start(chat, who)
        try:
            if not chat.stream:
                return _whole(exchange)
            ready = exchange.wait_for_content(server.headers_after_s)
            headers = _headers(exchange, ready) | _STREAM_HEADERS
            response = HearthResponse(_Stream(exchange, log), 200, headers)
        except BaseException:
            exchange.close()
            raise
        return response

    def _whole(exchange: Exchange) -> HearthResponse:
        collector = Collector()
        try:
            for event in exchange:
                collector.add(event)
        finally:
            exchange.close()
        body = collector.completion(f"chatcmpl-{exchange.id}", exchange.created, exchange.request.alias)
        return json_response(body, headers=_headers(exchange, True))

    return blueprint


def _headers(exchange: Exchange, settled: bool) -> dict[str, str]:
    headers = {"x-request-id": exchange.id}
    if settled:
        # Before the first content another provider may still take over: then these would be wrong.
        headers["x-hearth-provider"] = exchange.target.provider.name
        headers["x-hearth-model"] = exchange.target.model
        headers["x-hearth-attempts"] = str(exchange.attempts)
    if exchange.request.ignored:
        headers["x-hearth-ignored"] = ",".join(exchange.request.ignored)
    if exchange.adjusted:
        headers["x-hearth-adjusted"] = ",".join(exchange.adjusted)
    return headers


def _json_body(max_bytes: int) -> Any:
    if request.mimetype != "application/json":
        raise GatewayError(Kind.UNSUPPORTED_MEDIA_TYPE, "Send JSON, with the header `Content-Type: application/json`.")
    body = request.get_data(cache=False)
    if len(body) > max_bytes:
        raise GatewayError(Kind.BODY_TOO_LARGE, "The request body is too large.")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        # `from None`: the exception carries the body.
        raise InvalidRequestError("The request body is not valid JSON.") from None


class _Stream:
    """The body of a streamed answer.

    The server takes the next piece when the client can have it, and calls ``close`` when the client
    has left. That, and the heartbeats, is how a vendor's answer nobody reads is cancelled.
    """

    def __init__(self, exchange: Exchange, log: Log) -> None:
        self._exchange = exchange
        self._log = log
        asked = exchange.request
        self._encoder = ChunkEncoder(f"chatcmpl-{exchange.id}", exchange.created, asked.alias, asked.include_usage)
        self._over = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        while not self._over:
            try:
                event = next(self._exchange)
                if isinstance(event, Idle):
                    return HEARTBEAT
                piece = self._encoder.encode(event)
            except StopIteration:
                self._over = True
                self.close()
                raise
            except GatewayError as error:
                # No [DONE] after this: a client must not take half an answer for a whole one.
                self._over = True
                self.close()
                return encode_error(error)
            except Exception as error:
                self._log.unexpected(error)
                self._over = True
                self.close()
                return encode_error(GatewayError(Kind.INTERNAL, "The gateway had an internal error."))
            if piece:
                return piece
        raise StopIteration

    def close(self) -> None:
        self._exchange.close()
