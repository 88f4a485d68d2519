"""The circuit breaker: a table of decisions, then random histories that must keep the promises."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from gateway_fakes import FakeClock
from hypothesis import given, settings
from hypothesis import strategies as st

from hearth_gateway.core.breaker import (
    COUNTS,
    NEW,
    OPENS_AT_ONCE,
    RETRIES_ONCE,
    Breakers,
    Decision,
    Phase,
    Report,
    Rules,
    State,
    View,
    ask,
    key_changed,
    report,
    whole_seconds,
)
from hearth_gateway.errors import Kind, Owner

RULES = Rules(failures=3, window_s=60, open_s=10, max_open_s=300)
PROBE_S = 35
OK, NONE, BEGUN = Report("ok"), Report("none"), Report("begun")
PAIR = ("anthropic", "sonnet")


def fault(kind: Kind, retry_after_s: float | None = None, probe: int = 0) -> Report:
    return Report("fault", probe, kind, retry_after_s)


DOWN = fault(Kind.UPSTREAM_UNREACHABLE)


def after(*events: Report, state: State = NEW, now: float = 0) -> State:
    for event in events:
        state = report(state, event, now, RULES)
    return state


def probing(now: float = 10, state: State | None = None) -> State:
    """Half-open, with probe number 1 on its way."""
    found, decision = ask(state or after(DOWN, DOWN, DOWN), now, PROBE_S)
    assert decision == Decision(True, found.probe) and found.probe
    return found


# --- closed -> open ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(COUNTS, key=lambda kind: kind.value))
def test_faults_in_a_row_open_it(kind: Kind) -> None:
    state = after(fault(kind), fault(kind))
    assert ask(state, 0, PROBE_S) == (state, Decision(True))
    state = after(fault(kind), state=state, now=5)
    assert (state.phase, state.until, state.reason) == (Phase.OPEN, 15, kind)
    assert ask(state, 12, PROBE_S) == (state, Decision(False, wait_s=3))


def test_an_answer_between_faults_forgets_them() -> None:
    assert after(DOWN, DOWN, OK, DOWN, DOWN).phase is Phase.CLOSED
    assert after(DOWN, DOWN, OK) == NEW


def test_faults_far_apart_do_not_add_up() -> None:
    state = after(DOWN, DOWN)
    assert after(DOWN, state=state, now=60).phase is Phase.OPEN
    assert after(DOWN, state=state, now=60.1).phase is Phase.CLOSED
    assert after(DOWN, state=state, now=60.1).failures == 1


@pytest.mark.parametrize(
    ("event", "seconds"),
    [
        (fault(Kind.UPSTREAM_RATE_LIMITED, 7), 7),
        (fault(Kind.UPSTREAM_RATE_LIMITED, 0), 1),  # "now" from somebody who just said no
        (fault(Kind.UPSTREAM_RATE_LIMITED, 100_000), 300),
        (fault(Kind.UPSTREAM_RATE_LIMITED), 10),
        (fault(Kind.UPSTREAM_OVERLOADED), 10),
        (fault(Kind.UPSTREAM_OVERLOADED, 3), 10),
        (fault(Kind.UPSTREAM_OVERLOADED, 20), 20),
        (fault(Kind.UPSTREAM_AUTH), 10),
    ],
)
def test_what_the_vendor_says_itself_opens_it_at_once(event: Report, seconds: float) -> None:
    state = after(event, now=100)
    assert (state.phase, state.until) == (Phase.OPEN, 100 + seconds)


def test_a_retry_after_can_only_lengthen_the_pause_of_an_outage() -> None:
    error = Kind.UPSTREAM_ERROR
    assert after(fault(error), fault(error), fault(error, 30)).until == 30
    assert after(fault(error), fault(error), fault(error, 2)).until == 10


NEUTRAL = sorted(set(Kind) - COUNTS - OPENS_AT_ONCE, key=lambda kind: kind.value)


@pytest.mark.parametrize("kind", NEUTRAL)
def test_what_is_not_the_providers_fault_changes_nothing(kind: Kind) -> None:
    for state in (NEW, after(DOWN, DOWN), after(DOWN, DOWN, DOWN)):
        assert after(*[fault(kind, 5)] * 50, state=state) == state
    for event in (NONE, BEGUN):
        assert after(event, state=after(DOWN, DOWN)) == after(DOWN, DOWN)


def test_every_kind_has_its_place() -> None:
    """A fault that fails over and does not count is one that says nothing about the next request."""
    assert not COUNTS & OPENS_AT_ONCE and RETRIES_ONCE <= COUNTS
    assert {kind for kind in NEUTRAL if kind.spec.fails_over} == {Kind.UPSTREAM_MODEL_UNAVAILABLE}
    assert all(kind.spec.owner is Owner.PROVIDER and kind.spec.fails_over for kind in COUNTS | OPENS_AT_ONCE)


# --- open --------------------------------------------------------------------------------------


def test_late_reports_of_requests_that_began_before_the_pause() -> None:
    state = after(DOWN, DOWN, DOWN)
    assert after(OK, DOWN, NONE, fault(Kind.UPSTREAM_AUTH), state=state) == state
    # Twenty requests hit the limit together: the longest Retry-After stands, and the pause does not double.
    limited = after(fault(Kind.UPSTREAM_RATE_LIMITED, 7))
    later = after(fault(Kind.UPSTREAM_RATE_LIMITED, 20), fault(Kind.UPSTREAM_RATE_LIMITED, 5), state=limited)
    assert later == replace(limited, until=20)


def test_when_the_pause_is_over_exactly_one_may_try() -> None:
    opened = after(DOWN, DOWN, DOWN)
    assert not ask(opened, 9.99, PROBE_S)[1].allowed
    state, first = ask(opened, 10, PROBE_S)
    assert (state.phase, first) == (Phase.HALF_OPEN, Decision(True, 1))
    assert [ask(state, 10 + n, PROBE_S) for n in range(20)] == [(state, Decision(False, wait_s=1.0))] * 20


def test_a_probe_that_is_never_heard_of_again_is_given_up() -> None:
    state = probing(now=10)
    assert not ask(state, 44.9, PROBE_S)[1].allowed
    again, decision = ask(state, 45, PROBE_S)
    assert decision == Decision(True, 2)
    for lost in (fault(Kind.UPSTREAM_TIMEOUT, probe=1), fault(Kind.UPSTREAM_AUTH, probe=1), replace(NONE, probe=1)):
        assert after(lost, state=again, now=46) == again, "now the other one decides"


@pytest.mark.parametrize("second", [None, NONE], ids=["out", "left"])
def test_a_probe_that_was_given_up_and_answers_after_all(second: Report | None) -> None:
    again, _ = ask(probing(now=10), 45, PROBE_S)
    if second is not None:
        again = after(replace(second, probe=2), state=again, now=46)
    assert after(replace(OK, probe=1), state=again, now=46) == replace(NEW, probe=2)
    begun = after(replace(BEGUN, probe=1), state=again, now=46)
    assert begun.phase is Phase.CLOSED
    assert after(DOWN, state=begun, now=47).phase is Phase.OPEN, "on trial, as after any probe's first content"


def test_an_answer_that_began_before_the_pause_does_not_end_it() -> None:
    again, _ = ask(probing(now=10), 45, PROBE_S)
    failed = after(fault(Kind.UPSTREAM_TIMEOUT, probe=2), state=again, now=50)
    for state in (failed, probing(failed.until, failed)):
        for late in (OK, BEGUN):
            assert after(replace(late, probe=1), replace(late, probe=0), state=state, now=51) == state


# --- half-open ---------------------------------------------------------------------------------


def test_the_probes_first_content_lets_the_others_in_on_trial() -> None:
    state = after(replace(BEGUN, probe=1), state=probing(), now=11)
    assert ask(state, 11, PROBE_S)[1] == Decision(True)
    broken = after(fault(Kind.UPSTREAM_INTERRUPTED, probe=1), state=state, now=12)
    assert (broken.phase, broken.until) == (Phase.OPEN, 12 + 20)
    whole = after(replace(OK, probe=1), state=state, now=12)
    assert whole == replace(NEW, probe=1)
    assert after(DOWN, DOWN, state=whole, now=13).phase is Phase.CLOSED


@pytest.mark.parametrize("kind", sorted(COUNTS | OPENS_AT_ONCE, key=lambda kind: kind.value))
def test_a_probe_that_fails_opens_it_for_twice_as_long(kind: Kind) -> None:
    now, state = 0.0, after(DOWN, DOWN, DOWN)
    for seconds in (20, 40, 80, 160, 300, 300):
        now = state.until
        state = after(fault(kind, probe=state.probe + 1), state=probing(now, state), now=now)
        assert (state.phase, state.until, state.reason) == (Phase.OPEN, now + seconds, kind)


@pytest.mark.parametrize("event", [NONE, *(fault(kind) for kind in NEUTRAL)], ids=lambda event: event.kind or "none")
def test_a_probe_that_tells_nothing_hands_over_to_the_next(event: Report) -> None:
    state = after(replace(event, probe=1), state=probing(now=10), now=11)
    assert (state.phase, state.openings) == (Phase.OPEN, 1)
    assert ask(state, 11, PROBE_S)[1] == Decision(True, 2)


def test_while_a_probe_is_out_only_the_probe_counts() -> None:
    state = probing()
    assert after(OK, DOWN, NONE, fault(Kind.UPSTREAM_RATE_LIMITED, 99), state=state) == state


# --- the key -----------------------------------------------------------------------------------


def test_a_new_key_is_tried_at_once() -> None:
    refused = after(fault(Kind.UPSTREAM_AUTH), now=100)
    state, decision = ask(key_changed(refused, 101), 101, PROBE_S)
    assert decision == Decision(True, 1) and state.phase is Phase.HALF_OPEN
    for other in (NEW, after(DOWN, DOWN, DOWN), state):
        assert key_changed(other, 1) == other


# --- any history -------------------------------------------------------------------------------

KINDS = st.sampled_from(sorted(Kind, key=lambda kind: kind.value))
STEPS = st.lists(
    st.tuples(
        st.floats(0, 80),
        st.sampled_from(["ask", "begun", "ok", "fault", "none"]),
        KINDS,
        st.none() | st.floats(0, 1000),
        st.integers(0, 3),
    ),
    max_size=60,
)
ANY_RULES = st.builds(
    Rules,
    failures=st.integers(1, 5),
    window_s=st.floats(1, 100),
    open_s=st.floats(0.01, 50),
    max_open_s=st.floats(1, 300),
)


@settings(max_examples=400, deadline=None)
@given(STEPS, ANY_RULES, st.floats(1, 60))
def test_no_history_breaks_the_promises(steps: list[tuple[float, str, Kind, float | None, int]], rules: Rules, probe_s: float) -> None:
    now, state = 0.0, NEW
    probe_out_since: float | None = None
    for seconds, action, kind, retry_after_s, back in steps:
        now += seconds
        before = state
        if action == "ask":
            state, decision = ask(state, now, probe_s)
            assert decision.allowed or decision.wait_s > 0
            assert decision.wait_s <= max(rules.max_open_s, 1.0) + 1e-6, "nobody waits longer than the longest pause"
            assert (before.phase is Phase.CLOSED) == (decision.allowed and not decision.probe)
            if decision.probe:
                given_up = probe_out_since is None or now - probe_out_since >= probe_s
                assert given_up, "two probes at a time"
                assert decision.probe > before.probe, "two probes with one number"
                probe_out_since = now
            continue
        # Reports come from the current probe, from one long given up, and from ordinary attempts.
        probe = max(state.probe - back, 0) if back < 3 else 0
        event = Report(action, probe, kind if action == "fault" else None, retry_after_s)  # type: ignore[arg-type]
        state = report(state, event, now, rules)
        if state.phase is not Phase.HALF_OPEN:
            probe_out_since = None
        answered = action in ("ok", "begun")
        if before.phase is Phase.HALF_OPEN and probe != before.probe and not (answered and probe > before.probes_before):
            assert state == before
        if answered and (before.phase is Phase.CLOSED or probe > before.probes_before):
            assert state.phase is Phase.CLOSED
        if state.phase is Phase.OPEN:
            assert state.until - now <= rules.max_open_s + 1e-6
        if state.phase is Phase.CLOSED:
            assert state.failures < rules.failures
        if kind in NEUTRAL and action == "fault" and before.phase is not Phase.HALF_OPEN:
            assert state == before
    # From wherever it got to: wait, probe, answer, and it is as new.
    state, decision = ask(state, now + rules.max_open_s + probe_s, probe_s)
    assert decision.allowed
    assert report(state, Report("ok", decision.probe), now + 1000, rules) == replace(NEW, probe=state.probe)


# --- with a lock and a clock --------------------------------------------------------------------


def test_each_provider_and_model_has_its_own() -> None:
    other = ("litellm", "sonnet")
    clock, changes = FakeClock(), list[View]()
    breakers = Breakers(RULES, clock, [PAIR, other], on_change=changes.append)
    breakers.report(PAIR, fault(Kind.UPSTREAM_RATE_LIMITED, 7))
    assert breakers.ask(PAIR, PROBE_S) == Decision(False, wait_s=7) and breakers.ask(other, PROBE_S).allowed
    assert [(view.provider, view.phase, view.wait_s) for view in breakers.snapshot()] == [
        ("anthropic", Phase.OPEN, 7), ("litellm", Phase.CLOSED, 0),
    ]  # fmt: skip
    assert (breakers.state(PAIR), breakers.state(other)) == (2, 0)
    assert breakers.any_usable() and breakers.wait_s([PAIR, other]) is None and breakers.wait_s([PAIR]) == 7
    breakers.report(other, fault(Kind.UPSTREAM_OVERLOADED))
    assert not breakers.any_usable() and breakers.wait_s([PAIR, other]) == 7
    clock.sleep(7)
    assert breakers.any_usable(), "a pause that is over must not keep the traffic away that would probe"
    assert breakers.state(PAIR) == 1 and breakers.wait_s([PAIR, other]) is None
    probe = breakers.ask(PAIR, PROBE_S).probe
    breakers.report(PAIR, Report("ok", probe))
    assert breakers.state(PAIR) == 0
    assert [(view.provider, view.phase.name) for view in changes] == [
        ("anthropic", "OPEN"), ("litellm", "OPEN"), ("anthropic", "HALF_OPEN"), ("anthropic", "CLOSED"),
    ]  # fmt: skip


def test_a_key_that_changed_in_its_file() -> None:
    clock, version = FakeClock(), [1]
    breakers = Breakers(RULES, clock, [PAIR], {"anthropic": lambda: version[0]})
    breakers.report(PAIR, fault(Kind.UPSTREAM_AUTH))
    assert not breakers.ask(PAIR, PROBE_S).allowed and breakers.state(PAIR) == 2
    version[0] = 2
    assert breakers.state(PAIR) == 1
    probe = breakers.ask(PAIR, PROBE_S).probe
    assert probe and not breakers.ask(PAIR, PROBE_S).allowed
    breakers.report(PAIR, fault(Kind.UPSTREAM_AUTH, probe=probe))
    assert not breakers.ask(PAIR, PROBE_S).allowed, "the new key is wrong too"
    clock.sleep(20)
    assert breakers.ask(PAIR, PROBE_S).probe, "and without a change one looks again now and then"


def test_one_probe_among_many_threads() -> None:
    for _ in range(20):
        clock = FakeClock()
        breakers = Breakers(RULES, clock, [PAIR])
        for _ in range(3):
            breakers.report(PAIR, DOWN)
        clock.sleep(10)
        barrier = threading.Barrier(20)
        allowed: list[Decision] = []

        def run(barrier: threading.Barrier = barrier, breakers: Breakers = breakers, allowed: list[Decision] = allowed) -> None:
            barrier.wait()
            decision = breakers.ask(PAIR, PROBE_S)
            if decision.allowed:
                allowed.append(decision)

        threads = [threading.Thread(target=run) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert allowed == [Decision(True, 1)]


@pytest.mark.parametrize(("seconds", "header"), [(0.0, 1), (0.01, 1), (1.0, 1), (6.2, 7), (300.0, 300)])
def test_retry_after_is_a_whole_number_and_never_too_early(seconds: float, header: int) -> None:
    assert whole_seconds(seconds) == header
