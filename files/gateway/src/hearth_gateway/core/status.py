"""How the process is: for the readiness check, for the debug page, for `hearth-gateway status`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hearth_gateway.clock import Clock
from hearth_gateway.core.breaker import Breakers, Phase, View
from hearth_gateway.core.lifecycle import Lifecycle

_STATES = {Phase.CLOSED: "closed", Phase.HALF_OPEN: "half-open", Phase.OPEN: "open"}


@dataclass(frozen=True, slots=True)
class Store:
    """``reachable`` asks the database, ``queued`` counts the ledger rows that wait to be written, ``alive`` says
    whether anybody writes them."""

    reachable: Callable[[], bool]
    queued: Callable[[], int]
    alive: Callable[[], bool]


class Status:
    """Numbers and names of the configuration; no person and no word. ``kinds`` are the providers' kinds, by name."""

    def __init__(
        self, version: str, clock: Clock, lifecycle: Lifecycle, breakers: Breakers, store: Store, kinds: Mapping[str, str]
    ) -> None:
        self._version = version
        self._clock = clock
        self._started = clock.monotonic()
        self._lifecycle = lifecycle
        self._breakers = breakers
        self._store = store
        self._kinds = kinds

    def alive(self) -> bool:
        """False: this process will not recover, and should be started anew."""
        return self._store.alive()

    def checks(self) -> dict[str, str]:
        """What must be "ok" before anybody is sent here."""
        return {
            "store": "ok" if self._store.reachable() else "failing",
            "providers": "ok" if self._breakers.any_usable() else "open",
            "shutdown": "draining" if self._lifecycle.leaving else "ok",
        }

    def report(self) -> dict[str, Any]:
        """The whole state. ``status`` is ``ok`` only if every check is and every breaker is closed."""
        checks, views = self.checks(), self._breakers.snapshot()
        well = all(value == "ok" for value in checks.values()) and all(view.phase is Phase.CLOSED for view in views)
        return {
            "status": "ok" if well else "degraded",
            "version": self._version,
            "uptime_s": int(self._clock.monotonic() - self._started),
            "checks": checks,
            "open_requests": self._lifecycle.open,
            "max_open_requests": self._lifecycle.max_open,
            "ledger_queued_rows": self._store.queued(),
            "providers": [self._provider(name, kind, views) for name, kind in self._kinds.items()],
        }

    def _provider(self, name: str, kind: str, views: list[View]) -> dict[str, Any]:
        return {"name": name, "kind": kind, "models": [_breaker(view) for view in views if view.provider == name]}


def _breaker(view: View) -> dict[str, Any]:
    """``reason`` is the last fault since the last whole answer; ``wait_s`` the time until the next try."""
    return {
        "model": view.model,
        "breaker": _STATES[view.phase],
        "failures": view.failures,
        "reason": view.reason.value if view.reason else None,
        "wait_s": round(view.wait_s, 1),
    }
