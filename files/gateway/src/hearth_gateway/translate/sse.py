"""Server-sent events, as vendors really send them."""

from __future__ import annotations

from hearth_gateway.errors import GatewayError, Kind

_BOM = b"\xef\xbb\xbf"


class SseParser:
    """Incremental parser: feed it bytes cut at any place, get whole events.

    Works on bytes and cuts at line ends only, so a UTF-8 character split over two TCP segments is
    whole again before anyone decodes it. An event larger than ``max_event_bytes`` raises
    ``GatewayError(UPSTREAM_PROTOCOL)``: without the cap, one vendor fault fills our memory.
    """

    def __init__(self, max_event_bytes: int) -> None:
        self._max = max_event_bytes
        self._tail = bytearray()  # the line that has no end yet
        self._skip_lf = False  # the last chunk ended in CR: a LF that follows belongs to it
        self._first = True
        self._name = ""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[tuple[str, bytes]]:
        """Return the events completed by ``chunk`` as (event name, data); the name may be empty."""
        if self._skip_lf and chunk:
            self._skip_lf = False
            if chunk[:1] == b"\n":
                chunk = chunk[1:]
        if not chunk:
            return []
        if self._tail:
            if not self._first and b"\n" not in chunk and b"\r" not in chunk:
                # Joining and cutting a long line anew with each of its pieces would take time by its square.
                self._tail += chunk
                self._check(len(self._tail))
                return []
            chunk = bytes(self._tail) + chunk
            self._tail.clear()
        if self._first:
            if len(chunk) < len(_BOM) and _BOM.startswith(chunk):
                self._tail = bytearray(chunk)
                return []
            self._first = False
            chunk = chunk.removeprefix(_BOM)
        events: list[tuple[str, bytes]] = []
        if not self._data and not self._name and b"\r" not in chunk:
            chunk = self._whole_events(chunk, events)
        for line in chunk.splitlines(keepends=True):  # bytes: cuts at CR, LF and CRLF, nothing else
            stripped = line.rstrip(b"\r\n")
            if len(stripped) == len(line):
                self._tail = bytearray(line)
                self._check(len(line))
                break
            self._skip_lf = line[-1:] == b"\r"
            self._line(stripped, events)
        else:
            return events
        self._skip_lf = False
        return events

    def _whole_events(self, chunk: bytes, events: list[tuple[str, bytes]]) -> bytes:
        """The events that ``chunk`` holds from their first byte to their last; returns what is left of it.

        Nearly all that vendors send looks alike: `data`, or `event` and `data`, a line each.
        """
        *blocks, rest = chunk.split(b"\n\n")
        for block in blocks:
            first, _, second = block.partition(b"\n")
            if not second and first.startswith(b"data: "):
                name, data = "", first[6:]
            elif first.startswith(b"event: ") and second.startswith(b"data: ") and b"\n" not in second:
                name, data = first[7:].decode("utf-8", "replace"), second[6:]
            else:
                for line in block.split(b"\n"):
                    self._line(line, events)
                self._dispatch(events)
                continue
            if len(data) > self._max:
                self._check(len(data))
            events.append((name, data))
        return rest

    def end(self) -> list[tuple[str, bytes]]:
        """The stream is over: also return a last event that had no blank line after it."""
        events: list[tuple[str, bytes]] = []
        if self._tail:
            tail = bytes(self._tail)
            self._tail.clear()
            self._line(tail, events)
        self._dispatch(events)
        return events

    def _line(self, line: bytes, events: list[tuple[str, bytes]]) -> None:
        if not line:
            self._dispatch(events)
            return
        name, colon, value = line.partition(b":")
        if not name:
            return  # a comment; vendors use it as a heartbeat
        if colon and value[:1] == b" ":
            value = value[1:]
        if name == b"data":
            self._check(len(value))
            self._size += len(value)
            self._data.append(value)
        elif name == b"event":
            self._name = value.decode("utf-8", "replace")
        # id, retry and unknown fields carry nothing we use

    def _dispatch(self, events: list[tuple[str, bytes]]) -> None:
        if self._data:
            events.append((self._name, b"\n".join(self._data)))
        self._name, self._data, self._size = "", [], 0

    def _check(self, more: int) -> None:
        if self._size + more > self._max:
            raise GatewayError(Kind.UPSTREAM_PROTOCOL, "The provider sent an event that is too large.")
