"""Reading a vendor's answer piece by piece: what the wire formats share."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from typing import Protocol

import orjson

from hearth_gateway.errors import GatewayError
from hearth_gateway.providers.base import Call
from hearth_gateway.providers.http import PendingResponse, Response
from hearth_gateway.translate.events import ALIVE, IDLE, End, Event, Text
from hearth_gateway.translate.sse import SseParser

# A text event is a few hundred bytes; a signed thinking block can be large. More is a fault.
_MAX_EVENT_BYTES = 4 * 1024 * 1024
_MAX_ERROR_BYTES = 64 * 1024
# It comes with its head, or never.
_ERROR_BODY_S = 2.0
_MAX_WHOLE_BYTES = 32 * 1024 * 1024
_MAX_DOCUMENT_BYTES = 128 * 1024 * 1024  # ten large images, or 2048 long vectors
# The last chunk of the framing comes with the last event or a moment later. Two reads: some servers say a word in between.
_AFTER_END_S = 0.02
_READS_AFTER_END = 2

ErrorReader = Callable[[int, bytes, str | None], GatewayError]


class Reader(Protocol):
    """Turns the data of one answer into events. Each method raises ``GatewayError``."""

    def read(self, data: bytes) -> list[Event]:
        """Events of one SSE event."""

    def plain(self, data: bytes) -> str | None:
        """The text of an SSE event that brings nothing else, and that ``read`` would read as that now; None for
        any other, also for what is no event. Changes nothing."""

    def read_whole(self, body: bytes) -> list[Event]:
        """Events of an answer that came as one document."""

    def end(self) -> list[Event]:
        """The body has ended: the last events, or a fault if the answer is not complete."""


def answer(pending: PendingResponse, call: Call, reader: Reader, error: ErrorReader) -> Iterator[Event]:
    """Events of the answer to a request that is on its way. ``error`` reads status, body and Retry-After."""
    response = yield from wait(pending, call)
    try:
        if response.status != 200:
            raise _refusal(response, call, error)
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
        if response.status != 200:
            raise _refusal(response, call, error)
        return (yield from read_up_to(response, _MAX_DOCUMENT_BYTES, call))
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
    pieces = Pieces(reader)
    while True:
        chunk = response.read(call.patience_s())
        if chunk is None:
            yield IDLE
            continue
        found = parser.feed(chunk) if chunk else parser.end()
        if chunk and not found:
            yield IDLE  # bytes that are no event yet keep no answer alive: an event may drip in for ever
        for event in _read(found, pieces) if call.request.stream else _read_joined(found, pieces):
            if isinstance(event, End):
                _finish_body(response)
            yield event
            if isinstance(event, End):
                return
        if not chunk:
            yield from reader.end()
            return


class Pieces:
    """Reads events, most of them without a look at anything but their text.

    Nearly all events of an answer are the same bytes around another piece of text. Once two that differ
    in it alone are known to be plain, a third is too: until some other event comes, only what stands
    between the same head and tail has to be parsed.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._head: bytes | None = None  # up to and with the quote before the text
        self._tail = b""
        self._around = 0
        self._left_to_learn = 3  # some servers pad every event anew; theirs are not worth the trying

    def read(self, data: bytes) -> str | list[Event]:
        """A piece of text, as nearly always, or the events of one SSE event. Raises ``GatewayError``."""
        head = self._head
        if head is not None and data.startswith(head) and data.endswith(self._tail) and len(data) > self._around:
            try:
                # It begins and ends with a quote: a string, or no JSON at all.
                text: str = orjson.loads(data[len(head) - 1 : len(data) - len(self._tail) + 1])
            except orjson.JSONDecodeError:
                text = ""  # the reader has the words for it
            if text:
                return text
        events = self._reader.read(data)
        if len(events) == 1 and isinstance(events[0], Text):
            self._learn(data, events[0].text)
        else:
            self._head = None
        return events

    def _learn(self, data: bytes, text: str) -> None:
        if not self._left_to_learn:
            return
        self._left_to_learn -= 1
        head, found, tail = data.rpartition(orjson.dumps(text))
        other = text + "."
        # Were these bytes something else than the text, this would not be the text now.
        if found and self._reader.plain(head + orjson.dumps(other) + tail) == other:
            self._head, self._tail = head + b'"', b'"' + tail
            self._around = len(head) + len(tail) + 2


def _read(found: list[tuple[str, bytes]], pieces: Pieces) -> Iterator[Event]:
    for _, data in found:
        read = pieces.read(data)
        if isinstance(read, str):
            yield Text(read)
        else:
            yield from read


def _read_joined(found: list[tuple[str, bytes]], pieces: Pieces) -> Iterator[Event]:
    """The same, with neighbouring pieces of text as one: who gets the answer as a whole sees no difference,
    and all that follows is done once and not for each word."""
    texts: list[str] = []
    alive = False  # a sign of life that nothing came out of yet
    fault: GatewayError | None = None
    try:
        for _, data in found:
            read = pieces.read(data)
            if isinstance(read, str):
                texts.append(read)
                continue
            for event in read:
                if isinstance(event, Text):
                    texts.append(event.text)
                    continue
                if event is ALIVE:
                    alive = True
                    continue
                if texts:
                    yield Text("".join(texts))
                    texts.clear()
                alive = False
                yield event
    except GatewayError as error:
        fault = error
    if texts:
        yield Text("".join(texts))  # also before a fault: it was there first
    elif alive:
        yield ALIVE
    if fault is not None:
        raise fault


def _refusal(response: Response, call: Call, error: ErrorReader) -> GatewayError:
    """What a response with an error status says. Status and Retry-After are known: a body that does not come, or is
    broken, only lacks the words, and must not hold back who could ask another provider."""
    body = bytearray()
    until = time.monotonic() + min(_ERROR_BODY_S, call.patience_s())
    with suppress(GatewayError):
        while chunk := response.read(max(until - time.monotonic(), 0.0)):
            body += chunk
            if len(body) >= _MAX_ERROR_BYTES or time.monotonic() >= until:
                break
    return error(response.status, bytes(body[:_MAX_ERROR_BYTES]), response.headers.get("retry-after"))


def _finish_body(response: Response) -> None:
    """Read the few framing bytes after the last event, so that the connection can be used again.

    A vendor that goes on talking must not hold the answer back: its connection is cut instead.
    """
    try:
        for _ in range(_READS_AFTER_END):
            if not response.read(_AFTER_END_S):
                break
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
