"""Behind a load balancer: a process that leaves refuses nobody, and two of them share one SQLite file meanwhile."""

from __future__ import annotations

import http.client
import json
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from gateway_support import TOKEN, Gateway, wait_for

Make = Callable[..., Gateway]
HELLO = {"messages": [{"role": "user", "content": "one two three four five six seven eight"}]}
# A word takes 0.2 s: the answer is still being written when the hand-over is over, also where the test itself is slow.
LONG = " ".join(f"word{number}" for number in range(50))
HANDOVER_S = 5


class Connection:
    """One HTTP connection that is kept, as the pool of a client or a proxy keeps it."""

    def __init__(self, gateway: Gateway) -> None:
        self.http = http.client.HTTPConnection(*gateway.address, timeout=20)
        # Python's own client opens a new connection in silence where the old one is gone: the test must see that.
        self.http.auto_open = 0
        self.http.connect()

    def ask(self, method: str = "GET", path: str = "/v1/models", body: Any = None) -> http.client.HTTPResponse:
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        self.http.request(method, path, None if body is None else json.dumps(body), headers)
        return self.http.getresponse()

    def closed(self) -> bool:
        """Whether the server has closed it. Nothing may be on its way."""
        assert self.http.sock is not None
        self.http.sock.settimeout(0.01)
        try:
            return self.http.sock.recv(1) == b""
        except TimeoutError:
            return False


class Stream(threading.Thread):
    """A slow answer, read in the background."""

    def __init__(self, gateway: Gateway) -> None:
        super().__init__()
        self.text, self.last = "", ""
        ask = {"messages": [{"role": "user", "content": LONG}]}
        self.response = Connection(gateway).ask("POST", "/v1/chat/completions", {"model": "x-slow", "stream": True, **ask})
        self.start()

    def run(self) -> None:
        for raw in self.response:
            line = raw.decode().strip()
            if line.startswith("data: "):
                self.last = line
                if line != "data: [DONE]":
                    self.text += "".join(c["delta"].get("content") or "" for c in json.loads(line[6:])["choices"])


def test_a_leaving_process_refuses_nobody_and_sends_everybody_away(own: Make) -> None:
    gateway = own(server={"handover_s": HANDOVER_S})
    streams = [Stream(gateway) for _ in range(3)]
    idle, busy = Connection(gateway), Connection(gateway)
    for connection in (idle, busy):
        response = connection.ask()
        assert (response.status, response.headers.get("Connection")) == (200, None)
        response.read()
    wait_for(lambda: all(stream.text for stream in streams), "the first words")
    gateway.process.send_signal(signal.SIGTERM)
    wait_for(lambda: readiness(gateway) == 503, "readiness to drop")
    response = busy.ask()
    assert (response.status, response.headers["Connection"]) == (200, "close")
    response.read()
    fresh = Connection(gateway).ask("POST", "/v1/chat/completions", {"model": "sonnet", **HELLO})
    assert (fresh.status, fresh.headers["Connection"]) == (200, "close")
    fresh.read()
    assert not idle.closed()
    wait_for(idle.closed, "the idle connection to be closed, so that its client opens another one elsewhere")
    assert gateway.process.poll() is None, "the streams are still open"
    for stream in streams:
        stream.join(30)
        assert (stream.text, stream.last) == (f"You said: {LONG}", "data: [DONE]")
    assert gateway.wait() == 0
    assert gateway.events("stopped")[0]["queued"] == 0


def readiness(gateway: Gateway) -> int:
    return Connection(gateway).ask(path="/readyz").status


def test_ctrl_c_twice_ends_a_hand_over(own: Make) -> None:
    gateway = own(server={"handover_s": 60})
    gateway.process.send_signal(signal.SIGINT)
    wait_for(lambda: readiness(gateway) == 503, "the first signal to count")
    gateway.process.send_signal(signal.SIGINT)
    assert gateway.wait() == 0, "it did not wait for the 60 s of the hand-over"


def test_two_processes_write_one_sqlite_file(own: Make) -> None:
    """What a rollout on one volume is: the new process starts beside the old one, and both write what was used."""
    old = own()
    new = own(database_url=f"sqlite:///{old.database}")
    new.database = old.database
    asked = 20

    def ask(gateway: Gateway, statuses: list[int]) -> None:
        for _ in range(asked):
            response = Connection(gateway).ask("POST", "/v1/chat/completions", {"model": "sonnet", **HELLO})
            response.read()
            statuses.append(response.status)

    statuses: list[int] = []
    threads = [threading.Thread(target=ask, args=(gateway, statuses)) for gateway in (old, new) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * (4 * asked)
    assert old.terminate() == 0
    assert Connection(new).ask("POST", "/v1/chat/completions", {"model": "sonnet", **HELLO}).status == 200
    assert new.terminate() == 0
    assert len(new.rows()) == 4 * asked + 1
    for gateway in (old, new):
        assert gateway.events("store-problem") == []


@pytest.mark.parametrize("seconds", [-1, 61, "soon"])
def test_a_hand_over_has_bounds(own: Make, seconds: object) -> None:
    gateway = own(start=False, server={"handover_s": seconds})
    process = gateway.spawn()
    _, said = process.communicate(timeout=20)
    assert process.returncode == 2
    assert "server.handover_s" in said


def test_without_a_hand_over_the_process_stops_at_once(own: Make) -> None:
    gateway = own()
    started = time.monotonic()
    assert gateway.terminate() == 0
    # There is nobody to wait for: neither a hand-over of up to 60 s nor the 120 s for open answers.
    assert time.monotonic() - started < 15
