"""Whether the client of a request is still there, as the kernel tells.

granian says nothing when a client leaves before its response has begun. But it closes the connection then, and which
connections there are can be read from the process's own sockets. What cannot be read is which of them a request came on:
granian tells the client's address, and not its port. A connection on which the client spoke last is one that waits
for a response; the one that spoke when the request came in is the request's. Where two fit, nobody is
taken for gone: an answer that is written for nobody costs little, one that is cut off costs somebody their words.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address

from hearth_gateway.clock import Clock

# How long what was read from the kernel is good for: all who wait share one look.
_LOOK_EVERY_S = 0.4
# Between the last byte of a request and our noticing it. More under load, and then there is no telling.
_NOTICED_S = 0.25
# The kernel counts in ticks of up to 10 ms.
_TICK_S = 0.015
_ESTABLISHED = 1
# Of `struct tcp_info` (linux/tcp.h): the state, and the milliseconds since we last sent and received data.
_TCP_INFO = struct.Struct("@B7x12I")
_TCP_INFO_BYTES = 104


@dataclass(frozen=True, slots=True)
class Connection:
    """One client's. ``received_at`` and ``sent_at`` are the monotonic times of the last data in each direction."""

    address: str
    port: int
    received_at: float
    sent_at: float

    @property
    def waits(self) -> bool:
        """The client spoke last, so it waits for a response."""
        return self.received_at >= self.sent_at - _TICK_S


class Client:
    """Who sent one request, which was here in full at ``since``. ``port`` is None as long as it is not known."""

    __slots__ = ("address", "port", "since")

    def __init__(self, address: str, since: float) -> None:
        self.address = address
        self.since = since
        self.port: int | None = None

    def may_be_on(self, connection: Connection) -> bool:
        return -_NOTICED_S <= connection.received_at - self.since <= _TICK_S


def is_gone(client: Client, others: Iterable[Client], connections: Iterable[Connection]) -> bool:
    """Whether ``client`` has left for certain. Notes its port once that is known.

    ``others`` are those of other requests that wait; ``connections`` are all there are.
    """
    mine = [connection for connection in connections if connection.address == client.address]
    if client.port is not None:
        return all(connection.port != client.port for connection in mine)
    waiting = [other for other in others if other.address == client.address]
    taken = {other.port for other in waiting}
    free = [connection for connection in mine if connection.waits and connection.port not in taken]
    if not free:
        return True
    fitting = [connection for connection in free if client.may_be_on(connection)]
    if len(fitting) == 1 and not any(other.port is None and other.may_be_on(fitting[0]) for other in waiting):
        client.port = fitting[0].port
    return False


class Clients:
    """Those whose requests take long enough to ask. Safe to use from many threads."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._port: int | None = None
        self._waiting: set[Client] = set()
        self._connections: list[Connection] = []
        self._looked_at = float("-inf")

    def come_to(self, sock: socket.socket) -> None:
        """The socket that listens. Without one, nobody is ever gone."""
        self._port = sock.getsockname()[1]

    def enter(self, address: str, since: float) -> Client:
        """To be given to ``leave`` in the end."""
        client = Client(_normal(address), since)
        with self._lock:
            self._waiting.add(client)
        return client

    def leave(self, client: Client) -> None:
        with self._lock:
            self._waiting.discard(client)

    def is_gone(self, client: Client) -> bool:
        with self._lock:
            if self._port is None:
                return False
            if self._clock.monotonic() - self._looked_at >= _LOOK_EVERY_S or self._looked_at <= client.since:
                self._connections = read_connections(self._port, self._clock)
                self._looked_at = self._clock.monotonic()
            return is_gone(client, self._waiting - {client}, self._connections)


def _normal(address: str) -> str:
    """One spelling for each address."""
    with suppress(ValueError):
        found = ip_address(address)
        return str(getattr(found, "ipv4_mapped", None) or found)
    return address


def read_connections(port: int, clock: Clock) -> list[Connection]:
    """Those of this process that came to ``port`` and that the client has not closed."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # no socket, or one that is closed by now
            sock = socket.socket(fileno=int(name))
            try:
                if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.getsockname()[1] != port:
                    continue
                address, peer = sock.getpeername()[:2]
                state, *numbers = _TCP_INFO.unpack_from(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES))
            finally:
                sock.detach()  # it is granian's
            if state == _ESTABLISHED:
                now, sent_ms, received_ms = clock.monotonic(), numbers[9], numbers[11]
                found.append(Connection(_normal(address), peer, now - received_ms / 1000, now - sent_ms / 1000))
    return found
