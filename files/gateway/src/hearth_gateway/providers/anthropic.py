"""Anthropic's native Messages API."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import orjson

from hearth_gateway.errors import GatewayError, Kind
from hearth_gateway.providers.base import Call
from hearth_gateway.providers.http import Response, Transport
from hearth_gateway.translate.anthropic_request import build_messages_request
from hearth_gateway.translate.anthropic_response import MessageReader, error_from_status
from hearth_gateway.translate.events import IDLE, End, Event
from hearth_gateway.translate.sse import SseParser

# Not the newest, 2026-10-21: that one refuses `temperature` and `top_p`, also for the models that
# honour them, and changes nothing else that we send or read.
API_VERSION = "2023-06-01"
# A text event is a few hundred bytes; a signed thinking block can be large. More is a fault.
_MAX_EVENT_BYTES = 4 * 1024 * 1024
_MAX_ERROR_BYTES = 64 * 1024
_MAX_WHOLE_BYTES = 32 * 1024 * 1024


class AnthropicProvider:
    """One Anthropic account. ``api_key`` goes into a header and nowhere else."""

    is_demo = False

    def __init__(self, name: str, api_key: str, transport: Transport) -> None:
        self._name = name
        self._transport = transport
        self._headers = {
            "x-api-key": api_key,
            "anthropic-version": API_VERSION,
            "content-type": "application/json",
            "accept": "text/event-stream",
            "user-agent": "hearth-gateway",
        }

    @property
    def name(self) -> str:
        return self._name

    def close(self) -> None:
        self._transport.close()

    def stream(self, call: Call) -> Iterator[Event]:
        built = build_messages_request(call.request, call.model, call.max_output_tokens)
        call.adjusted(built.adjusted)
        pending = self._transport.post("/v1/messages", self._headers, orjson.dumps(built.body), call.connect_s)
        response: Response | None = None
        try:
            while (response := pending.wait(call.patience_s())) is None:
                yield IDLE
        finally:
            if response is None:
                pending.close()
        try:
            if response.status != 200:
                body = yield from _read_up_to(response, _MAX_ERROR_BYTES, call)
                raise error_from_status(response.status, body, response.headers.get("retry-after"))
            reader = MessageReader(built.names)
            content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if content_type == "application/json":
                # Asked for a stream, got a document: some proxies in front of the vendor do that.
                yield from reader.read_whole((yield from _read_up_to(response, _MAX_WHOLE_BYTES, call)))
            else:
                yield from _read_stream(response, reader, call)
        finally:
            response.close()


def _read_stream(response: Response, reader: MessageReader, call: Call) -> Iterator[Event]:
    parser = SseParser(_MAX_EVENT_BYTES)
    while True:
        chunk = response.read(call.patience_s())
        if chunk is None:
            yield IDLE
            continue
        for _, data in parser.feed(chunk) if chunk else parser.end():
            for event in reader.read(data):
                if isinstance(event, End):
                    _finish_body(response)
                yield event
                if isinstance(event, End):
                    return
        if not chunk:
            raise GatewayError(Kind.UPSTREAM_INTERRUPTED, "The provider ended the answer before it was complete.")


def _finish_body(response: Response) -> None:
    """Read the few framing bytes after the last event, so that the connection can be used again."""
    try:
        while response.read(0.02):
            pass
    except GatewayError:
        pass  # the answer is complete; a connection broken after it is no fault of the answer


def _read_up_to(response: Response, limit: int, call: Call) -> Generator[Event, None, bytes]:
    """Collect a body (the generator's return value), yielding ``Idle`` meanwhile."""
    body = bytearray()
    while True:
        chunk = response.read(call.patience_s())
        if chunk is None:
            yield IDLE
            continue
        body += chunk
        if not chunk or len(body) > limit:
            return bytes(body[:limit])
