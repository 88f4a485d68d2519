"""Who is still there: the decision, and what the kernel says."""

from __future__ import annotations

import socket
import time

import pytest

from hearth_gateway import server
from hearth_gateway.clients import Client, Clients, Connection, is_gone, read_connections
from hearth_gateway.clock import SystemClock

HERE, ELSEWHERE = "192.0.2.1", "192.0.2.2"


def waits(port: int, received_at: float, address: str = HERE) -> Connection:
    return Connection(address, port, received_at, received_at - 5)


def answered(port: int, at: float) -> Connection:
    return Connection(HERE, port, at, at + 1)


def test_the_connection_that_spoke_when_the_request_came_is_its_own() -> None:
    client = Client(HERE, 100.0)
    there = [waits(1, 60.0), waits(2, 99.99), answered(3, 99.9), waits(4, 99.99, ELSEWHERE)]
    assert not is_gone(client, [], there) and client.port == 2
    assert is_gone(client, [], [waits(1, 60.0), answered(3, 99.9)])


def test_nobody_is_there() -> None:
    assert is_gone(Client(HERE, 100.0), [], [])
    assert is_gone(Client(HERE, 100.0), [], [waits(4, 99.99, ELSEWHERE)])
    # Idle ones, and one on which an answer is being written, wait for nothing.
    assert is_gone(Client(HERE, 100.0), [], [answered(3, 99.9), answered(5, 98)])


def test_a_connection_that_is_anothers_is_not_mine() -> None:
    client, other = Client(HERE, 100.0), Client(HERE, 90.0)
    assert not is_gone(other, [client], [waits(1, 90.0), waits(2, 100.0)]) and other.port == 1
    assert is_gone(client, [other], [waits(1, 90.0)])


def test_two_that_came_together_cannot_be_told_apart() -> None:
    one, two = Client(HERE, 100.0), Client(HERE, 100.1)
    both = [waits(1, 99.99), waits(2, 100.0)]
    assert not is_gone(one, [two], both) and not is_gone(two, [one], both)
    assert one.port is None and two.port is None
    # One of them has left, and nobody knows which: both are written on for.
    assert not is_gone(one, [two], both[:1]) and not is_gone(two, [one], both[:1])
    assert one.port is None and two.port is None
    assert is_gone(one, [two], []) and is_gone(two, [one], [])


def test_who_speaks_again_while_waiting_is_there() -> None:
    client = Client(HERE, 100.0)
    assert not is_gone(client, [], [waits(1, 105.0)])
    assert client.port is None


def accepted(listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    mine = socket.create_connection(listener.getsockname())
    return mine, listener.accept()[0]


def test_the_kernel_is_asked() -> None:
    clients = Clients(SystemClock())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_server(("127.0.0.1", 0)) as other:
            elsewhere = accepted(other)
        mine, theirs = accepted(listener)
        mine.send(b"request")
        theirs.recv(100)
        client = clients.enter("::ffff:127.0.0.1", time.monotonic())
        assert not clients.is_gone(client), "nobody is gone as long as nothing listens"
        clients.come_to(listener)
        assert not clients.is_gone(client) and client.port == mine.getsockname()[1]
        [found] = read_connections(port, SystemClock())
        assert (found.address, found.port) == mine.getsockname() and found.waits
        time.sleep(0.05)
        theirs.send(b"response")
        [found] = read_connections(port, SystemClock())
        assert not found.waits
        mine.close()
        time.sleep(0.5)
        assert clients.is_gone(client)
        # What was looked at is as open as before.
        theirs.fileno()
        elsewhere[0].send(b"x")
        assert elsewhere[1].recv(1) == b"x"
        for sock in (theirs, *elsewhere):
            sock.close()


def test_a_client_that_takes_nothing_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_STALLED_MS", 1000)
    with server.listen("127.0.0.1:0", "test") as listener:
        mine, theirs = accepted(listener)
        theirs.settimeout(30)
        began = time.monotonic()
        with mine, theirs, pytest.raises(TimeoutError) as caught:
            while True:
                theirs.sendall(b"x" * 65536)
        assert caught.value.errno is not None, "the test's own limit, not the kernel's"
        assert time.monotonic() - began < 20
