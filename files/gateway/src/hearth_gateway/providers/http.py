"""A small HTTP/1.1 client for long answers.

Why not a library: the thread that waits for the vendor must wake up to send heartbeats and to look
at four different time limits, without losing what has already arrived. Common clients treat a read
timeout as the end of the response. A socket with a buffer of our own does not, needs one thread per
stream and costs a fifth of the CPU (docs: performance of the gateway).

It does what is needed for POSTing JSON to one vendor and no more: no redirects (a vendor that
redirects a POST with a key is a fault), no cookies, no proxies.
"""

from __future__ import annotations

import re
import select
import socket
import ssl
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import certifi

from hearth_gateway.clock import Clock
from hearth_gateway.errors import GatewayError, Kind

_MAX_HEAD_BYTES = 64 * 1024
_RECEIVE_BYTES = 64 * 1024
_UNPACKED_BYTES = 1024 * 1024
_ZLIB_OR_GZIP = zlib.MAX_WBITS + 32
_MAX_POOLED = 64
# Vendors and the load balancers before them close idle connections after a minute or so. Ours go
# first: a request sent into a connection that is just being closed is lost.
_MAX_IDLE_S = 25.0
# The longest that the kernel is told to wait at once; who has to wait for longer asks again.
_SLICE_S = 5.0


class Response(Protocol):
    """A response whose body is read piece by piece. ``headers`` have lower-case names."""

    status: int
    headers: dict[str, str]

    def read(self, wait_s: float) -> bytes | None:
        """Some body bytes; ``None`` if nothing came within ``wait_s``; ``b""`` at the end."""

    def close(self) -> None:
        """Give the connection back if the body was read to its end, else cut it."""


class Transport(Protocol):
    """Sends a request and hands back an object to wait on. Injected, so tests need no socket."""

    def post(self, path: str, headers: dict[str, str], body: bytes, connect_s: float) -> PendingResponse: ...

    def close(self) -> None: ...


class PendingResponse(Protocol):
    def wait(self, wait_s: float) -> Response | None:
        """The response once its head has arrived, ``None`` if that takes longer than ``wait_s``."""

    def close(self) -> None: ...


def unreachable(what: str) -> GatewayError:
    return GatewayError(Kind.UPSTREAM_UNREACHABLE, f"The provider cannot be reached: {what}.")


def _protocol() -> GatewayError:
    return GatewayError(Kind.UPSTREAM_PROTOCOL, "The provider sent something that is not an answer.")


def _interrupted() -> GatewayError:
    return GatewayError(Kind.UPSTREAM_INTERRUPTED, "The connection to the provider broke during the answer.")


def tls_context(ca_file: str | None) -> ssl.SSLContext:
    """Verify against the machine's trust store plus ``ca_file``.

    A slim base image may have no trust store at all; then the certifi bundle stands in for it.
    """
    context = ssl.create_default_context()
    paths = ssl.get_default_verify_paths()
    has_store = (paths.cafile and Path(paths.cafile).stat().st_size > 0) or (paths.capath and any(Path(paths.capath).iterdir()))
    if not has_store:
        context.load_verify_locations(cafile=certifi.where())
    if ca_file is not None:
        context.load_verify_locations(cafile=ca_file)
    return context


_Address = tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]]


@dataclass(frozen=True, slots=True)
class _Origin:
    scheme: str
    host: str
    port: int
    prefix: str

    @classmethod
    def parse(cls, base_url: str) -> _Origin:
        parts = urlsplit(base_url)
        default = 443 if parts.scheme == "https" else 80
        return cls(parts.scheme, parts.hostname or "", parts.port or default, parts.path.rstrip("/"))

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self.scheme == "https" else 80
        return host if self.port == default else f"{host}:{self.port}"


# What a socket that does not wait says in place of waiting.
_WOULD_WAIT = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class _Connection:
    """A socket and what was received on it but not yet used.

    A thread that waits gives the interpreter away and has to get it back, so each receive is one call that waits in
    the kernel, which is told for how long when that changes. A socket with Python's timeout makes two of it.
    """

    # Whether the socket itself waits, in a receive.
    _waits = True

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(self._waits)
        self.sock = sock
        self.buffer = bytearray()
        self.reused = False
        self.idle_since = 0.0
        self._slice_s = 0.0  # what the kernel was told

    def send(self, data: memoryview) -> int:
        """As much of it as is taken without waiting; how many bytes that is. Raises ``OSError``."""
        try:
            return self.sock.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0

    def wait_to_send(self, wait_s: float, listen: bool) -> tuple[bool, bool]:
        """Wait until ``send`` can go on or, with ``listen``, there is something to receive. Whether either is so; the
        end of the connection is both."""
        return self._wait_for(wait_s, select.POLLOUT, listen)

    def _wait_for(self, wait_s: float, event: int, listen: bool) -> tuple[bool, bool]:
        poll = select.poll()
        poll.register(self.sock, event | (select.POLLIN if listen else 0))
        found = poll.poll(max(wait_s, 0) * 1000)
        events = found[0][1] if found else 0
        ended = select.POLLERR | select.POLLHUP
        return bool(events & (event | ended)), bool(events & (select.POLLIN | ended))

    def receive(self, wait_s: float) -> bool | None:
        """Receive into the buffer: True if bytes came, None if not within ``wait_s``, False at the end."""
        while True:
            # Mostly the same for each of many receives, so that the kernel need not be told anew. 0 would be for ever.
            slice_s = max(min(wait_s, _SLICE_S), 0.001)
            if slice_s != self._slice_s:
                whole_s, rest_s = divmod(slice_s, 1)
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", int(whole_s), int(rest_s * 1e6)))
                self._slice_s = slice_s
            try:
                data = self.sock.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                wait_s -= slice_s
                if wait_s <= 0:
                    return None
                continue
            self.buffer += data
            return bool(data)

    def is_quiet(self) -> bool:
        """An idle connection has nothing to say. If it is readable, the vendor has closed it."""
        try:
            self.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def close(self) -> None:
        with suppress(OSError):  # it is gone either way
            self.sock.close()


class _TlsConnection(_Connection):
    """The same with TLS, where a record that is not complete would keep a waiting socket for longer than it may: the
    socket never waits, ``poll`` does."""

    sock: ssl.SSLSocket
    _waits = False

    def __init__(self, sock: ssl.SSLSocket) -> None:
        super().__init__(sock)
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._send_wants = select.POLLOUT

    def send(self, data: memoryview) -> int:
        try:
            return self.sock.send(data)
        except ssl.SSLWantReadError:
            self._send_wants = select.POLLIN  # TLS itself has to hear something first
        except ssl.SSLWantWriteError:
            self._send_wants = select.POLLOUT
        return 0

    def wait_to_send(self, wait_s: float, listen: bool) -> tuple[bool, bool]:
        if listen and self.sock.pending():
            return True, True
        return self._wait_for(wait_s, self._send_wants, listen)

    def receive(self, wait_s: float) -> bool | None:
        until = 0.0
        while self._is_readable(wait_s):
            try:
                data = self.sock.recv(_RECEIVE_BYTES)
            except _WOULD_WAIT:
                # Bytes, but of a record that is not complete: they keep nobody waiting for longer.
                now = time.monotonic()
                until = until or now + wait_s
                if now >= until:
                    return None
                wait_s = until - now
                continue
            except ssl.SSLEOFError:
                return False
            self.buffer += data
            return bool(data)
        return None

    def is_quiet(self) -> bool:
        if not self._is_readable(0):
            return True
        try:
            # Or these are bytes of TLS itself: then there is nothing to read all the same.
            self.sock.recv(1)
        except _WOULD_WAIT:
            return True
        except OSError:
            return False
        return False

    def _is_readable(self, wait_s: float) -> bool:
        # What TLS has unpacked already is no longer in the socket, and nobody would wake for it.
        return bool(self.sock.pending()) or bool(self._poll.poll(max(wait_s, 0) * 1000))  # for `poll`, less than 0 is for ever


class _Name:
    """The addresses of a vendor's name. Safe to use from many threads.

    ``getaddrinfo`` has no timeout and cannot be interrupted, so it runs in a thread that can be left behind. There is
    one at a time for each vendor, and all who wait share what it finds: a name server that is silent keeps nobody from
    another vendor, and does not pile up threads.
    """

    def __init__(self, origin: _Origin, clock: Clock) -> None:
        self._origin = origin
        self._clock = clock
        self._lock = threading.Lock()
        self._running: Future[Sequence[_Address]] | None = None
        self._since = 0.0
        self._known: Sequence[_Address] = ()  # what was found last

    def addresses(self, wait_s: float) -> Sequence[_Address]:
        """At least one. When nothing is found in time it is what was found last: a vendor seldom moves while its name
        server is down. Raises ``GatewayError``."""
        with self._lock:
            if self._running is None:
                found: Future[Sequence[_Address]] = Future()
                # A daemon: a look-up that hangs must not keep the process from its end.
                threading.Thread(target=self._look_up, args=(found,), name="resolve", daemon=True).start()
                self._running = found
                self._since = self._clock.monotonic()
            running, since, known = self._running, self._since, self._known
        if known:
            # Half of the time is for connecting to these. Who comes while it hangs need not wait for it anew.
            wait_s = max(since + wait_s / 2 - self._clock.monotonic(), 0.0)
        try:
            addresses = running.result(wait_s)
        except FutureTimeoutError:
            if known:
                return known
            raise unreachable("looking up its name took too long") from None
        if not addresses:
            raise unreachable("its name is not known")
        return addresses

    def _look_up(self, result: Future[Sequence[_Address]]) -> None:
        found: Sequence[_Address] = ()
        try:
            found = socket.getaddrinfo(self._origin.host, self._origin.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
                found = self._known  # no name server answered: as good as late
        finally:
            with self._lock:
                self._known = found or self._known
                self._running = None
            result.set_result(found)


class HttpClient:
    """Connections to one vendor, kept open between requests. Safe to use from many threads."""

    def __init__(self, base_url: str, ca_file: str | None, clock: Clock) -> None:
        self._origin = _Origin.parse(base_url)
        self._fixed_headers = f"host: {self._origin.host_header}\r\naccept-encoding: identity\r\n"
        self._name = _Name(self._origin, clock)
        self._tls = tls_context(ca_file) if self._origin.scheme == "https" else None
        self.clock = clock
        self._pool: deque[_Connection] = deque()
        # Of the kind that one thread can take twice: an answer that nobody closed is closed by the garbage
        # collector, in any thread and at any moment, also in one that holds this lock.
        self._lock = threading.RLock()

    def post(self, path: str, headers: dict[str, str], body: bytes, connect_s: float) -> PendingResponse:
        sent = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        head = f"POST {self._origin.prefix}{path} HTTP/1.1\r\n{self._fixed_headers}{sent}content-length: {len(body)}\r\n\r\n"
        return _Pending(self, head.encode("latin-1") + body, connect_s)

    def close(self) -> None:
        with self._lock:
            while self._pool:
                self._pool.pop().close()

    # --- used by _Pending and _Body

    def take(self, connect_s: float) -> _Connection:
        """An idle connection that still looks alive, or a new one."""
        now = self.clock.monotonic()
        while True:
            with self._lock:
                connection = self._pool.pop() if self._pool else None
            if connection is None:
                return self.connect(connect_s)
            if now - connection.idle_since < _MAX_IDLE_S and connection.is_quiet():
                connection.reused = True
                return connection
            connection.close()

    def give_back(self, connection: _Connection) -> None:
        connection.idle_since = self.clock.monotonic()
        with self._lock:
            if len(self._pool) < _MAX_POOLED:
                self._pool.append(connection)
                return
        connection.close()

    def connect(self, connect_s: float) -> _Connection:
        deadline = self.clock.monotonic() + connect_s
        addresses = self._name.addresses(connect_s)
        problem = "the connection was refused"
        for position, (family, kind, protocol, _, address) in enumerate(addresses):
            left = deadline - self.clock.monotonic()
            if left <= 0:
                break
            sock = socket.socket(family, kind, protocol)
            try:
                # An address that does not answer must leave time for the next one.
                sock.settimeout(left / (len(addresses) - position))
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._tls is not None:
                    sock.settimeout(max(deadline - self.clock.monotonic(), 0.001))
                    return _TlsConnection(self._tls.wrap_socket(sock, server_hostname=self._origin.host))
                return _Connection(sock)
            except ssl.SSLCertVerificationError:
                sock.close()
                raise unreachable("its certificate is not valid") from None
            except TimeoutError:
                problem = "the connection took too long"
            except ssl.SSLError:
                problem = "the TLS handshake failed"
            except OSError:
                problem = "the connection was refused"
            sock.close()
        raise unreachable(problem)


class _Pending:
    """A request on its way: sends it, then waits for the head of the response."""

    def __init__(self, client: HttpClient, request: bytes, connect_s: float) -> None:
        self._client = client
        self._request = request
        self._connect_s = connect_s
        self._head: tuple[int, dict[str, str]] | None = None
        self._begin(client.take(connect_s))

    def _begin(self, connection: _Connection) -> None:
        self._connection = connection
        self._unsent = memoryview(self._request)
        self._cut = False  # not all of the request will be sent: nothing else can be on this connection
        self._send()

    def _send(self) -> None:
        try:
            self._unsent = self._unsent[self._connection.send(self._unsent) :]
        except OSError:
            # The vendor may have answered before it read everything (413, 401) and closed.
            # The answer, if there is one, is still to be read.
            self._unsent = self._unsent[:0]
            self._cut = True

    def wait(self, wait_s: float) -> Response | None:
        # Of the whole wait, not of each byte: a head that drips in would hold the caller for ever.
        until = self._client.clock.monotonic() + wait_s
        while True:
            if self._head is None:
                self._head = self._next_head()
            # A refusal needs no more of the request. Any other answer might wait for the rest of it.
            if self._head is not None and (not self._unsent or self._head[0] >= 300):
                reusable = not self._unsent and not self._cut
                return _Body(self._client, self._connection, *self._head, reusable)
            left_s = until - self._client.clock.monotonic()
            if self._unsent:
                if left_s <= 0 or not self._exchange(left_s):
                    return None
                continue
            received = self._receive(left_s) if left_s > 0 or not self._connection.buffer else None
            if received is None:
                return None
            if not received:
                self._lost()

    def _next_head(self) -> tuple[int, dict[str, str]] | None:
        """Status and headers of the response, once they are here."""
        buffer = self._connection.buffer
        while (end := buffer.find(b"\r\n\r\n")) >= 0:
            head = bytes(buffer[:end])
            del buffer[: end + 4]
            status, headers = _parse_head(head)
            if not 100 <= status < 200:  # else an interim response; the real one follows
                return status, headers
        if len(buffer) > _MAX_HEAD_BYTES:
            raise _protocol()
        return None

    def _exchange(self, wait_s: float) -> bool:
        """Send some more of a request that was not taken at once, and hear what the vendor says meanwhile. False if
        nothing moved within ``wait_s``."""
        listen = self._head is None
        can_send, can_receive = self._connection.wait_to_send(wait_s, listen)
        if listen and can_receive and self._receive(0) is False:
            self._lost()
        elif can_send:
            self._send()
        return can_send or can_receive

    def _receive(self, wait_s: float) -> bool | None:
        try:
            return self._connection.receive(wait_s)
        except OSError:
            return False

    def _lost(self) -> None:
        """The connection has ended. One from the pool may have been dead all along: then a new one gets the request,
        whole, if nothing of it was answered."""
        if not self._connection.reused or self._connection.buffer:
            raise unreachable("it closed the connection without an answer")
        self._connection.close()
        self._begin(self._client.connect(self._connect_s))

    def close(self) -> None:
        self._connection.close()


def _parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    lines = head.decode("latin-1").split("\r\n")
    version, _, rest = lines[0].partition(" ")
    status = rest[:3]
    if not version.startswith("HTTP/1.") or not (status.isascii() and status.isdigit() and len(status) == 3):
        raise _protocol()
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon:
            raise _protocol()
        name = name.strip().lower()
        headers[name] = f"{headers[name]}, {value.strip()}" if name in headers else value.strip()
    if version == "HTTP/1.0":
        headers.setdefault("connection", "close")
    return int(status), headers


_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,16}\Z").match  # `int` alone takes signs, spaces and underscores, too


# What stands between two chunks, as nearly everybody writes it; all else is read with care.
_NEXT_CHUNK = re.compile(rb"\r\n([1-9A-Fa-f][0-9A-Fa-f]{0,14})\r\n").match


def _chunk_size(line: bytes) -> int:
    size = line.partition(b";")[0].strip()
    if not _CHUNK_SIZE(size):
        raise _protocol()
    return int(size, 16)


class _Unpacker:
    """Undoes gzip and deflate, a limited piece at a time: a few bytes can become a thousand times as many.

    Gzip may come as several members in a row (RFC 1952): a server that packs each event on its own does that.
    """

    def __init__(self, encoding: str) -> None:
        self._deflate = encoding == "deflate"
        self.in_member = False  # it has begun and its end is not here
        self._member = zlib.decompressobj()
        self._packed: bytes | None = None  # not unpacked yet; None if that is nothing, not even inside zlib

    def read(self, take: Callable[[], bytes]) -> bytes:
        """Up to ``_UNPACKED_BYTES`` of what ``take`` gives; ``b""`` when more has to be received first."""
        packed = take() if self._packed is None else self._packed
        while packed or self._packed is not None:
            if not self.in_member:
                # "deflate" means zlib's format, but some servers leave its header out. Where it is, it begins with an 8.
                bare = self._deflate and packed[0] & 0x0F != 8
                self._member = zlib.decompressobj(-zlib.MAX_WBITS if bare else _ZLIB_OR_GZIP)
                self.in_member = True
            try:
                data = self._member.decompress(packed, _UNPACKED_BYTES)
            except zlib.error:
                raise _protocol() from None
            packed = self._member.unconsumed_tail
            if self._member.eof:
                packed = self._member.unused_data
                self.in_member = False
            full = self.in_member and len(data) == _UNPACKED_BYTES
            self._packed = packed if packed or full else None
            if data:
                return data
        return b""


class _Body:
    """The body of a response in any of HTTP/1.1's three framings, unpacked if it is gzipped."""

    def __init__(self, client: HttpClient, connection: _Connection, status: int, headers: dict[str, str], reusable: bool) -> None:
        self.status = status
        self.headers = headers
        self._reusable = reusable and headers.get("connection", "").lower() != "close"
        self._client = client
        self._connection = connection
        self._closed = False
        self._done = False
        self._chunked = "chunked" in headers.get("transfer-encoding", "").lower()
        self._left: int | None = 0 if self._chunked else None  # of the body, or of the current chunk
        self._chunk_open = False
        self._in_trailer = False
        if not self._chunked and "content-length" in headers:
            length = headers["content-length"]
            if not (length.isascii() and length.isdigit()):
                raise _protocol()
            self._left = int(length)
            self._done = self._left == 0
        # We ask for identity, but proxies have been seen to compress all the same.
        encoding = headers.get("content-encoding", "identity").lower()
        if encoding not in ("identity", "gzip", "x-gzip", "deflate", ""):
            raise _protocol()
        self._unpacker = _Unpacker(encoding) if encoding not in ("identity", "") else None

    def read(self, wait_s: float) -> bytes | None:
        until = 0.0
        while True:
            data = self._take() if self._unpacker is None else self._unpacker.read(self._take)
            if data:
                return data
            if self._done:
                return self._ended()
            # Of the whole wait: framing and compressed bytes can drip in without a byte of the body.
            now = self._client.clock.monotonic()
            until = until or now + wait_s
            try:
                received = self._connection.receive(until - now) if now <= until else None
            except OSError:
                received = False
            if received is None:
                return None
            if not received:
                if self._left is None and not self._chunked:
                    self._done = True  # this framing ends with the connection
                    self._chunked = True  # and so the connection cannot be used again
                    self._connection.reused = False
                    self._closed = True
                    self._connection.close()
                    return self._ended()
                raise _interrupted()

    def _ended(self) -> bytes:
        if self._unpacker is not None and self._unpacker.in_member:
            raise _interrupted()  # framed as if it were whole, but packed bytes are missing
        return b""

    def _take(self) -> bytes:
        """Body bytes that are already here; ``b""`` when more have to be received first."""
        buffer = self._connection.buffer
        if self._done:
            return b""
        if not self._chunked:
            size = len(buffer) if self._left is None else min(self._left, len(buffer))
            data = bytes(buffer[:size])
            del buffer[:size]
            if self._left is not None:
                self._left -= size
                self._done = self._left == 0
            return data
        pieces: list[bytearray] = []
        at, size = 0, len(buffer)  # it is cut once and not with every chunk: one read may bring hundreds
        while at < size:
            left = self._left
            if not left and self._chunk_open and (line := _NEXT_CHUNK(buffer, at)) is not None:
                left, at = int(line[1], 16), line.end()
            elif not left:
                at = self._framing(buffer, at)
                left = self._left
                if not left:
                    break  # the rest of the framing is not here yet, or this was the end
            pieces.append(buffer[at : at + left])
            taken = min(left, size - at)
            at += taken
            self._left = left - taken
        del buffer[:at]
        return b"".join(pieces)

    def _framing(self, buffer: bytearray, at: int) -> int:
        """Read what stands between chunks, from the position ``at``, as far as it is here. Returns the
        position after it; ``_left`` is then the size of the chunk, or 0 as long as that is not known."""
        if self._chunk_open:
            if len(buffer) - at < 2:
                return at
            if not buffer.startswith(b"\r\n", at):
                raise _protocol()
            at += 2
            self._chunk_open = False
        while (end := buffer.find(b"\r\n", at)) >= 0:
            line = bytes(buffer[at:end])
            at = end + 2
            if not self._in_trailer:
                self._left = _chunk_size(line)
                if self._left:
                    self._chunk_open = True
                    break
                self._in_trailer = True
            elif not line:
                self._done = True
                break
        else:
            if len(buffer) - at > _MAX_HEAD_BYTES:
                raise _protocol()
        return at

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._reusable and self._done and not self._connection.buffer:
            self._connection.reused = False
            self._client.give_back(self._connection)
        else:
            self._connection.close()
