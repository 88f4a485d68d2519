"""Reading a vendor's answer piece by piece: what the wire formats share."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Protocol

from hearth_gateway.errors import GatewayError
from hearth_gateway.providers.base import Call
from hearth_gateway.providers.http import PendingResponse, Response
from hearth_gateway.translate.events import IDLE, End, Event, Text
from hearth_gateway.translate.sse import SseParser

# A text event is a few hundred bytes; a signed thinking block can be large. More is a fault.
_MAX_EVENT_BYTES = 4 * 1024 * 1024
_MAX_ERROR_BYTES = 64 * 1024
_MAX_WHOLE_BYTES = 32 * 1024 * 1024
_MAX_DOCUMENT_BYTES = 128 * 1024 * 1024  # ten large images, or 2048 long vectors

ErrorReader = Callable[[int, bytes, str | None], GatewayError]


class Reader(Protocol):
    """Turns the data of one answer into events. Each method raises ``GatewayError``."""

    def read(self, data: bytes) -> list[Event]:
        """Events of one SSE event."""

    def read_whole(self, body: bytes) -> list[Event]:
        """Events of an answer that came as one document."""

    def end(self) -> list[Event]:
        """The body has ended: the last events, or a fault if the answer is not complete."""


def answer(pending: PendingResponse, call: Call, reader: Reader, error: ErrorReader) -> Iterator[Event]:
    """Events of the answer to a request that is on its way. ``error`` reads status, body and Retry-After."""
    response = yield from wait(pending, call)
    try:
        if response.status != 200:
            body = yield from read_up_to(response, _MAX_ERROR_BYTES, call)
            raise error(response.status, body, response.headers.get("retry-after"))
        content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type == "application/json":
            # Asked for a stream, got a document: some servers and proxies do that.
            yield from reader.read_whole((yield from read_up_to(response, _MAX_WHOLE_BYTES, call)))
        else:
            yield from _read_stream(response, reader, call)
    finally:
        response.close()


def document(pending: PendingResponse, call: Call, error: ErrorReader) -> Generator[Event, None, bytes]:
    """The body of a response that is not streamed (the generator's return value), yielding ``Idle`` meanwhile."""
    response = yield from wait(pending, call)
    try:
        ok = response.status == 200
        body = yield from read_up_to(response, _MAX_DOCUMENT_BYTES if ok else _MAX_ERROR_BYTES, call)
        if not ok:
            raise error(response.status, body, response.headers.get("retry-after"))
        return body
    finally:
        response.close()


def wait(pending: PendingResponse, call: Call) -> Generator[Event, None, Response]:
    """The response (the generator's return value), yielding ``Idle`` until it is there."""
    response: Response | None = None
    try:
        while (response := pending.wait(call.patience_s())) is None:
            yield IDLE
    finally:
        if response is None:
            pending.close()
    return response


def _read_stream(response: Response, reader: Reader, call: Call) -> Iterator[Event]:
    parser = SseParser(_MAX_EVENT_BYTES)
    while True:
        chunk = response.read(call.patience_s())
        if chunk is None:
            yield IDLE
            continue
        found = parser.feed(chunk) if chunk else parser.end()
        if chunk and not found:
            yield IDLE  # bytes that are no event yet keep no answer alive: an event may drip in for ever
        for event in _read(found, reader) if call.request.stream else _read_joined(found, reader):
            if isinstance(event, End):
                _finish_body(response)
            yield event
            if isinstance(event, End):
                return
        if not chunk:
            yield from reader.end()
            return


def _read(found: list[tuple[str, bytes]], reader: Reader) -> Iterator[Event]:
    for _, data in found:
        yield from reader.read(data)


def _read_joined(found: list[tuple[str, bytes]], reader: Reader) -> Iterator[Event]:
    """The same, with neighbouring pieces of text as one: who gets the answer as a whole sees no difference,
    and all that follows is done once and not for each word."""
    texts: list[str] = []
    fault: GatewayError | None = None
    try:
        for _, data in found:
            for event in reader.read(data):
                if isinstance(event, Text):
                    texts.append(event.text)
                    continue
                if texts:
                    yield Text("".join(texts))
                    texts.clear()
                yield event
    except GatewayError as error:
        fault = error
    if texts:
        yield Text("".join(texts))  # also before a fault: it was there first
    if fault is not None:
        raise fault


def _finish_body(response: Response) -> None:
    """Read the few framing bytes after the last event, so that the connection can be used again."""
    try:
        while response.read(0.02):
            pass
    except GatewayError:
        pass  # the answer is complete; a connection broken after it is no fault of the answer


def read_up_to(response: Response, limit: int, call: Call) -> Generator[Event, None, bytes]:
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
        yield IDLE  # or a body that drips in would never meet a time limit
