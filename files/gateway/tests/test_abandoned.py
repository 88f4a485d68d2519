"""An answer that nobody closed is closed by the garbage collector: in any thread, at any moment, also in one that
holds one of the locks that closing takes. So those locks must not wait for their own thread."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable

import pytest
from gateway_fakes import FakeClock

from hearth_gateway.core.breaker import Breakers, Report, Rules
from hearth_gateway.core.lifecycle import Lifecycle
from hearth_gateway.errors import Kind
from hearth_gateway.providers.http import HttpClient
from hearth_gateway.telemetry.log import Log

PAIR = ("anthropic", "sonnet")


def breaker() -> tuple[threading.RLock, Callable[[], None]]:
    breakers = Breakers(Rules(3, 60, 10, 300), FakeClock(), [PAIR])
    return breakers._lock, lambda: breakers.report(PAIR, Report("fault", 0, Kind.UPSTREAM_ERROR))


def pool() -> tuple[threading.RLock, Callable[[], None]]:
    client = HttpClient("http://127.0.0.1:9", None, FakeClock())
    return client._lock, client.close


def log() -> tuple[threading.RLock, Callable[[], None]]:
    written = Log(io.StringIO())
    return written._lock, lambda: written.event("answer", outcome="cancelled")


def lifecycle() -> tuple[threading.RLock, Callable[[], None]]:
    open_requests = Lifecycle(5)
    open_requests.enter()
    return open_requests._changed, open_requests.leave  # type: ignore[return-value]


@pytest.mark.parametrize("make", [breaker, pool, log, lifecycle])
def test_closing_waits_for_nobody(make: Callable[[], tuple[threading.RLock, Callable[[], None]]]) -> None:
    lock, close = make()

    def interrupted() -> None:
        with lock:
            close()

    thread = threading.Thread(target=interrupted, daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive(), "the thread waits for itself"
