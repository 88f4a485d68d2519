"""When a provider's model is left alone, and when it is tried again.

One breaker for each (provider, model). The decisions are two pure functions, `ask` before an attempt
and `report` after it: state, event and time in, new state out. They need no second deployment to
compare with, so they work for one primary and one fallback. `Breakers` puts a lock around them.

closed     every request may try.
open       nobody tries until a time. Faults in a row lead here; so does, at once, what the vendor
           says itself: 429 (for its Retry-After), 529, and 401, 402, 403. These end early when the key
           changes, and else as any pause: an account may be paid, or allowed a model, under the same key.
half-open  the time is over and exactly one request, the probe, tries; the others are turned away.
           Its first content closes the breaker, on trial: the next fault opens it again. Only a
           whole answer forgets what was.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from enum import Enum
from typing import Literal

from hearth_gateway.clock import Clock
from hearth_gateway.errors import Kind
from hearth_gateway.records import record

Pair = tuple[str, str]


class Phase(Enum):
    """The value is the one of the gauge ``hearth_breaker_state``."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


# The vendor itself said "not now": the next request would hear the same.
OPENS_AT_ONCE = frozenset({Kind.UPSTREAM_RATE_LIMITED, Kind.UPSTREAM_OVERLOADED, Kind.UPSTREAM_AUTH})
# A single one is bad luck, several in a row are an outage.
COUNTS = frozenset(
    {Kind.UPSTREAM_UNREACHABLE, Kind.UPSTREAM_TIMEOUT, Kind.UPSTREAM_ERROR, Kind.UPSTREAM_PROTOCOL, Kind.UPSTREAM_INTERRUPTED}
)
# Worth one more request to the same provider: it is there and answers. Where the connection fails or
# nothing comes, a second wait would only be added to the first.
RETRIES_ONCE = frozenset({Kind.UPSTREAM_ERROR})


@record
class Rules:
    """Seconds. ``failures`` in a row, none further than ``window_s`` from the one before, open a breaker
    for ``open_s``; each time a probe fails the pause doubles, up to ``max_open_s``."""

    failures: int
    window_s: float
    open_s: float
    max_open_s: float


@record
class State:
    """``until`` is when the pause ends, or when the probe is given up. ``openings`` counts the pauses
    since the last whole answer. ``probe`` is the number of the last probe, ``probes_before`` that of the
    last one before the pause. ``reason`` is the last fault."""

    phase: Phase = Phase.CLOSED
    failures: int = 0
    failed_at: float = -math.inf
    until: float = 0.0
    openings: int = 0
    probe: int = 0
    probes_before: int = 0
    reason: Kind | None = None


NEW = State()


@record
class Decision:
    """``probe`` is 0 for an ordinary attempt, else the number to report with. Where the attempt is not
    allowed, ``wait_s`` is the time until asking again makes sense."""

    allowed: bool
    probe: int = 0
    wait_s: float = 0.0


ALLOWED = Decision(True)


@record
class Report:
    """How an attempt goes. ``begun`` comes first where there was content; exactly one of the others ends it.

    ``none`` is an attempt that says nothing about the provider: the caller left, the caller's request
    was wrong, the gateway stopped.
    """

    outcome: Literal["begun", "ok", "fault", "none"]
    probe: int = 0
    kind: Kind | None = None
    retry_after_s: float | None = None


def ask(state: State, now: float, probe_s: float) -> tuple[State, Decision]:
    """May somebody try now? ``now`` in seconds of a clock that never goes back.

    Should this become the probe, it is given up after ``probe_s``, so that one lost request cannot keep
    a provider out.
    """
    if state.phase is Phase.CLOSED:
        return state, ALLOWED
    if now < state.until:
        # Nobody knows when a probe will be back. Soon, either way.
        return state, Decision(False, wait_s=state.until - now if state.phase is Phase.OPEN else 1.0)
    number = state.probe + 1
    return replace(state, phase=Phase.HALF_OPEN, until=now + probe_s, probe=number), Decision(True, number)


def report(state: State, event: Report, now: float, rules: Rules) -> State:
    """What an attempt that was allowed earlier has come to."""
    fault = event.kind if event.outcome == "fault" else None
    if state.phase is not Phase.CLOSED and event.probe > state.probes_before:
        # Also a probe that was given up, or followed by another, has found that the provider answers.
        if event.outcome == "ok":
            return replace(NEW, probe=state.probe)
        if event.outcome == "begun":
            return replace(state, phase=Phase.CLOSED, failures=rules.failures - 1, failed_at=now)
    if state.phase is Phase.HALF_OPEN:
        # Only the probe says that it does not. The others began before, and know nothing new.
        return _failed_probe(state, event, fault, now, rules) if event.probe == state.probe else state
    if state.phase is Phase.OPEN:
        if fault in OPENS_AT_ONCE and event.retry_after_s is not None:
            return replace(state, until=max(state.until, now + _pause_s(state.openings - 1, event, rules)))
        return state
    if event.outcome == "ok":
        return replace(NEW, probe=state.probe)
    if fault in OPENS_AT_ONCE:
        return _opened(state, event, now, rules)
    if fault in COUNTS:
        failures = state.failures + 1 if now - state.failed_at <= rules.window_s else 1
        state = replace(state, failures=failures, failed_at=now, reason=fault)
        return _opened(state, event, now, rules) if failures >= rules.failures else state
    return state


def key_changed(state: State, now: float) -> State:
    """The provider has a new key: what was refused because of the old one may be probed at once."""
    if state.phase is Phase.OPEN and state.reason is Kind.UPSTREAM_AUTH:
        return replace(state, until=now)
    return state


def _failed_probe(state: State, event: Report, fault: Kind | None, now: float, rules: Rules) -> State:
    if fault in OPENS_AT_ONCE or fault in COUNTS:
        return _opened(state, event, now, rules)
    return replace(state, phase=Phase.OPEN, until=now)  # it told nothing: the next request is the probe


def _opened(state: State, event: Report, now: float, rules: Rules) -> State:
    return replace(
        state,
        phase=Phase.OPEN,
        until=now + _pause_s(state.openings, event, rules),
        openings=state.openings + 1,
        probes_before=state.probe,
        reason=event.kind,
    )


def _pause_s(openings: int, event: Report, rules: Rules) -> float:
    # The exponent is bounded because 2.0 ** 2000 is an error, not infinity.
    pause = rules.open_s * 2.0 ** min(max(openings, 0), 30)
    if event.retry_after_s is not None:
        # A rate limit knows its own end; an outage's Retry-After is a guess that may only lengthen the pause.
        limited = event.kind is Kind.UPSTREAM_RATE_LIMITED
        pause = max(event.retry_after_s, 1.0) if limited else max(pause, event.retry_after_s)
    return min(pause, rules.max_open_s)


# --- with a lock and a clock --------------------------------------------------------------------


@record
class View:
    """One breaker for people and metrics. ``wait_s`` is 0 unless the phase is open."""

    provider: str
    model: str
    phase: Phase
    failures: int
    reason: Kind | None
    wait_s: float


class Breakers:
    """All breakers of one process. Safe to use from many threads.

    ``key_versions`` gives, by provider, a number that changes when its key does. ``on_change`` is told
    each time a breaker of a pair changes its phase, after the lock is released.
    """

    def __init__(
        self,
        rules: Rules,
        clock: Clock,
        pairs: Iterable[Pair],
        key_versions: Mapping[str, Callable[[], int]] | None = None,
        on_change: Callable[[View], None] = lambda _view: None,
    ) -> None:
        self._rules = rules
        self._clock = clock
        self._states: dict[Pair, State] = dict.fromkeys(pairs, NEW)
        self._key_versions = dict(key_versions or {})
        self._refused_keys: dict[Pair, int] = {}
        self._on_change = on_change
        # Of the kind that one thread can take twice: an answer that nobody closed is closed by the garbage
        # collector, in any thread and at any moment, also in one that holds this lock.
        self._lock = threading.RLock()

    def ask(self, pair: Pair, probe_s: float) -> Decision:
        """May this (provider, model) be tried now? Who is allowed must `report` how it ended.

        ``probe_s``: what has no content by then has failed already.
        """
        # Without the lock: a closed breaker allows everybody, and changes nothing by it.
        if self._states.get(pair, NEW).phase is Phase.CLOSED:
            return ALLOWED
        with self._lock:
            now = self._clock.monotonic()
            before = self._states.get(pair, NEW)
            state, decision = ask(self._with_key(pair, before, now), now, probe_s)
            self._states[pair] = state
        self._tell(pair, before, state, now)
        return decision

    def report(self, pair: Pair, event: Report) -> None:
        if event.outcome == "ok" and self._states.get(pair) is NEW:
            return
        with self._lock:
            now = self._clock.monotonic()
            before = self._states.get(pair, NEW)
            state = report(before, event, now, self._rules)
            self._states[pair] = state
            if state.phase is Phase.OPEN and event.kind is Kind.UPSTREAM_AUTH:
                self._refused_keys[pair] = self._key_version(pair[0])
        self._tell(pair, before, state, now)

    def wait_s(self, pairs: Iterable[Pair]) -> float | None:
        """Seconds until the first of ``pairs`` may be tried; None if one may be right now."""
        waits = [view.wait_s for view in self._views(pairs)]
        return min(waits) if waits and all(waits) else None

    def snapshot(self) -> list[View]:
        """Every breaker as it would answer now: a pause that is over counts as half-open."""
        return self._views(list(self._states))

    @property
    def pairs(self) -> list[Pair]:
        return list(self._states)

    def state(self, pair: Pair) -> float:
        """The value of the gauge: 0 closed, 1 half-open, 2 open."""
        return float(self._views([pair])[0].phase.value)

    def any_usable(self) -> bool:
        """Whether some provider may be asked, for whatever: chat, embeddings, images. What readiness needs to know.

        Who is not ready gets no request at all, so that also what could be served is not.
        """
        return any(view.phase is not Phase.OPEN for view in self.snapshot())

    # --- internals

    def _views(self, pairs: Iterable[Pair]) -> list[View]:
        now = self._clock.monotonic()
        with self._lock:
            return [self._view(pair, self._with_key(pair, self._states.get(pair, NEW), now), now) for pair in pairs]

    def _with_key(self, pair: Pair, state: State, now: float) -> State:
        if pair in self._refused_keys and self._refused_keys[pair] != self._key_version(pair[0]):
            return key_changed(state, now)
        return state

    def _key_version(self, provider: str) -> int:
        version = self._key_versions.get(provider)
        return version() if version is not None else 0

    def _view(self, pair: Pair, state: State, now: float) -> View:
        phase, wait_s = state.phase, 0.0
        if phase is Phase.OPEN:
            wait_s = max(state.until - now, 0.0)
            phase = Phase.OPEN if wait_s else Phase.HALF_OPEN
        return View(pair[0], pair[1], phase, state.failures, state.reason, wait_s)

    def _tell(self, pair: Pair, before: State, after: State, now: float) -> None:
        if before.phase is not after.phase:
            self._on_change(self._view(pair, after, now))


def whole_seconds(wait_s: float) -> int:
    """For ``Retry-After``: rounded up, because a client that comes too early is turned away again."""
    return max(1, math.ceil(wait_s))
