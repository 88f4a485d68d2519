"""One request through the core: failover, limits, metering, closing. Time is faked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from gateway_fakes import FakeClock, FakeMeter, FakeProvider, Step

from hearth_gateway.core.breaker import Breakers, Rules
from hearth_gateway.core.conversation import ChatService, Exchange, Limits, Target, estimate_tokens
from hearth_gateway.core.identity import Caller
from hearth_gateway.core.lifecycle import Lifecycle
from hearth_gateway.core.redaction import safe_vendor_message
from hearth_gateway.errors import GatewayError, Kind
from hearth_gateway.translate.events import ALIVE, BEGUN, IDLE, Document, End, Event, Idle, Text, ThinkingEnd, Usage
from hearth_gateway.translate.model import ChatRequest, ImagePart, JsonOutput, Part, PdfPart, TextPart, Tool, ToolResult, Turn

RULES = Rules(failures=3, window_s=60, open_s=10, max_open_s=300)
LIMITS = Limits(connect_s=5, first_token_s=30, idle_s=60, total_s=100, heartbeat_s=0.5)
HELLO: list[Step] = [Usage(input=3), Text("Hel"), Text("lo"), Usage(input=3, output=2), End("stop")]


class World:
    """A service with scripted providers behind the alias `sonnet`."""

    def __init__(self, *scripts: list[Step], max_open: int = 10) -> None:
        self.clock = FakeClock()
        self.meter = FakeMeter()
        self.lifecycle = Lifecycle(max_open)
        self.providers = [FakeProvider(f"p{n}", self.clock, *script) for n, script in enumerate(scripts, 1)]
        targets = [Target(provider, f"m-{provider.name}", 100) for provider in self.providers]
        self.breakers = Breakers(RULES, self.clock, [target.pair for target in targets])
        self.failovers: list[tuple[str, str]] = []
        self.unknown_ends: list[str] = []
        self.service = ChatService(
            {"sonnet": targets},
            LIMITS,
            self.clock,
            self.meter,
            self.lifecycle,
            self.breakers,
            pseudonym=lambda caller: f"pseudonym-of-{caller.name}",
            on_failover=lambda provider, reason: self.failovers.append((provider, reason)),
            on_unknown_end=self.unknown_ends.append,
            jitter_s=lambda: 0.1,
        )

    def start(self, alias: str = "sonnet") -> Exchange:
        request = ChatRequest(alias, (), (Turn("user", (TextPart("my private words here"),), "messages[0]"),))
        return self.service.start(request, Caller("ann"))

    def run(self) -> tuple[list[Event], GatewayError | None]:
        exchange = self.start()
        events: list[Event] = []
        try:
            events.extend(exchange)
        except GatewayError as error:
            return events, error
        finally:
            exchange.close()
        return events, None


def fault(kind: Kind) -> GatewayError:
    return GatewayError(kind, "A fault.")


def test_an_answer_is_passed_on_and_counted() -> None:
    world = World(HELLO)
    events, error = world.run()
    assert error is None and events == HELLO
    (leg,) = world.meter.legs
    assert (leg.leg, leg.caller.name, leg.alias, leg.provider, leg.model, leg.outcome, leg.usage) == (
        1, "ann", "sonnet", "p1", "m-p1", "ok", Usage(input=3, output=2),
    )  # fmt: skip
    assert world.lifecycle.open == 0 and world.providers[0].closed == 1


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind.spec.fails_over])
def test_before_the_first_content_the_next_provider_takes_over(kind: Kind) -> None:
    world = World([Usage(input=9), fault(kind)], HELLO)
    events, error = world.run()
    assert error is None
    assert [event for event in events if isinstance(event, Text)] == [Text("Hel"), Text("lo")]
    tries = 2 if kind is Kind.UPSTREAM_ERROR else 1
    assert [(leg.leg, leg.provider, leg.outcome) for leg in world.meter.legs] == [
        *((number, "p1", kind.value) for number in range(1, tries + 1)),
        (tries + 1, "p2", "ok"),
    ]
    assert world.meter.legs[0].usage == Usage(input=9), "what the failed attempt cost is not lost"


@pytest.mark.parametrize("kind", [Kind.UPSTREAM_INVALID_REQUEST, Kind.UPSTREAM_TOO_LARGE, Kind.INVALID_REQUEST])
def test_a_wrong_request_is_not_tried_elsewhere(kind: Kind) -> None:
    world = World([fault(kind)], HELLO)
    _, error = world.run()
    assert error is not None and error.kind is kind
    assert world.providers[1].calls == 0


def test_after_the_first_content_nobody_takes_over() -> None:
    world = World([Text("Hel"), fault(Kind.UPSTREAM_ERROR)], HELLO)
    events, error = world.run()
    assert events == [Text("Hel")]
    assert error is not None and error.kind is Kind.UPSTREAM_ERROR
    assert world.providers[1].calls == 0


def test_an_answer_without_an_end_is_a_fault() -> None:
    world = World([Text("Hel")])
    _, error = world.run()
    assert error is not None and error.kind is Kind.UPSTREAM_INTERRUPTED
    assert world.meter.legs[0].outcome == "upstream_interrupted"


def test_the_last_fault_is_the_one_reported() -> None:
    world = World([fault(Kind.UPSTREAM_TIMEOUT)], [fault(Kind.UPSTREAM_RATE_LIMITED)])
    _, error = world.run()
    assert error is not None and error.kind is Kind.UPSTREAM_RATE_LIMITED


def idle(seconds: float, step: float = 0.5) -> list[Step]:
    return [piece for _ in range(int(seconds / step)) for piece in (step, IDLE)]


PINGS: list[Step] = [piece for _ in range(7) for piece in (10.0, ALIVE)]


def test_first_token_limit() -> None:
    world = World([Usage(input=1), *idle(40)])
    _, error = world.run()
    assert error is not None and "begin" in error.message
    assert world.meter.legs[0].duration_s == pytest.approx(30, abs=0.5)


def test_pings_do_not_begin_an_answer_but_keep_it_alive() -> None:
    _, error = World(PINGS).run()
    assert error is not None and error.kind is Kind.UPSTREAM_TIMEOUT
    events, error = World([Text("a"), *PINGS, Text("b"), End("stop")]).run()
    assert error is None and Text("b") in events


def test_reasoning_that_is_not_shown_may_take_longer_than_the_first_word() -> None:
    world = World([Usage(input=3), BEGUN, *PINGS, ThinkingEnd("sig"), Text("a"), End("stop")])
    exchange = world.start()
    assert not exchange.wait_for_content(65) and not exchange.committed
    assert [event for event in exchange if not isinstance(event, Idle)] == [Usage(input=3), ThinkingEnd("sig"), Text("a"), End("stop")]
    exchange.close()
    assert world.meter.legs[0].first_token_s == pytest.approx(70), "no word was shown before"


@pytest.mark.parametrize("end", [idle(80), [fault(Kind.UPSTREAM_OVERLOADED)]], ids=["silent", "fault"])
def test_reasoning_that_comes_to_nothing_is_taken_over_by_the_next(end: list[Step]) -> None:
    events, error = World([BEGUN, 10.0, ALIVE, *end], HELLO).run()
    assert error is None and [event for event in events if isinstance(event, Text)] == [Text("Hel"), Text("lo")]


def test_reasoning_that_never_ends_is_bounded_by_the_total_limit() -> None:
    world = World([BEGUN, *PINGS, *PINGS])
    started = world.clock.now
    _, error = world.run()
    assert error is not None and error.kind is Kind.DEADLINE_EXCEEDED
    assert world.clock.now - started == pytest.approx(100)


def test_who_has_begun_has_no_less_time_than_who_has_not() -> None:
    world = World([BEGUN, 1.0, ALIVE, *idle(28), Text("a"), *idle(12)])
    world.service.limits = replace(LIMITS, idle_s=10)
    events, error = world.run()
    assert Text("a") in events and error is not None and "silent" in error.message
    assert world.meter.legs[0].duration_s == pytest.approx(29 + 10, abs=0.5), "an answer that shows words has idle_s, and no more"


def test_silence_limit() -> None:
    world = World([Text("Hel"), *idle(80)], HELLO)
    _, error = world.run()
    assert error is not None and "silent" in error.message
    assert world.meter.legs[0].duration_s == pytest.approx(60, abs=0.5)


def test_total_limit_spans_all_attempts() -> None:
    slow: list[Step] = [piece for _ in range(100) for piece in (2.0, Text("x"))]
    world = World([20.0, fault(Kind.UPSTREAM_ERROR)], slow)
    started = world.clock.now
    _, error = world.run()
    assert error is not None and "longer than this server allows" in error.message
    assert world.clock.now - started == pytest.approx(100, abs=2)


def test_a_provider_may_block_until_the_next_heartbeat_or_limit() -> None:
    seen: list[float] = []

    def wait(call: object) -> float:
        seen.append(call.patience_s())  # type: ignore[attr-defined]
        return 29.8

    World([wait, IDLE, wait, End("stop")]).run()
    assert seen[0] == pytest.approx(0.5) and seen[1] == pytest.approx(0.2)


def test_waiting_for_content_keeps_what_came_before_it() -> None:
    world = World([Usage(input=3), *idle(2), Text("a"), End("stop")])
    exchange = world.start()
    assert exchange.wait_for_content(10)
    assert list(exchange) == [Usage(input=3), Text("a"), End("stop")]
    exchange.close()


def test_t40_counts_before_the_first_content_fill_no_memory() -> None:
    world = World([*(Usage(input=number) for number in range(1000)), Text("a"), End("stop")])
    exchange = world.start()
    assert exchange.wait_for_content(10)
    assert list(exchange) == [Usage(input=999), Text("a"), End("stop")]
    exchange.close()


def test_a_stop_reason_nobody_knows_is_counted() -> None:
    world = World([Text("a"), End("stop", unknown=True)], [Text("a"), End("stop")])
    events, error = world.run()
    assert error is None and events[-1] == End("stop", unknown=True)
    assert world.unknown_ends == [world.providers[0].name]


def test_waiting_for_content_gives_up_and_goes_on() -> None:
    world = World([*idle(5), fault(Kind.UPSTREAM_UNREACHABLE)], [*idle(1), Text("a"), End("stop")])
    exchange = world.start()
    assert not exchange.wait_for_content(2)
    events = [event for event in exchange if event is not IDLE]
    assert events == [Text("a"), End("stop")]
    assert exchange.attempts == 2
    exchange.close()


def test_a_client_that_leaves_cancels_and_is_counted() -> None:
    world = World(HELLO)
    exchange = world.start()
    assert exchange.wait_for_content(1)
    exchange.close()
    exchange.close()  # twice is once
    assert world.providers[0].closed == 1
    assert [(leg.outcome, leg.usage) for leg in world.meter.legs] == [("cancelled", Usage(input=3))]
    assert world.lifecycle.open == 0


def test_closing_before_anything_was_asked_gives_the_place_back() -> None:
    world = World(HELLO)
    world.start().close()
    assert world.lifecycle.open == 0 and world.meter.legs == []


def test_a_bug_of_ours_is_counted_and_raised() -> None:
    def bug(_call: object) -> float:
        raise RuntimeError("words")

    world = World([bug])
    exchange = world.start()
    with pytest.raises(RuntimeError):
        list(exchange)
    exchange.close()
    assert world.meter.legs[0].outcome == "internal" and world.lifecycle.open == 0


def test_admission() -> None:
    world = World(HELLO, max_open=1)
    with pytest.raises(GatewayError) as caught:
        world.start("none")
    assert caught.value.kind is Kind.MODEL_NOT_FOUND
    first = world.start()
    with pytest.raises(GatewayError) as caught:
        world.start()
    assert caught.value.kind is Kind.GATEWAY_BUSY and caught.value.retry_after_s
    first.close()
    world.start().close()
    world.lifecycle.drain()
    with pytest.raises(GatewayError) as caught:
        world.start()
    assert caught.value.kind is Kind.SHUTTING_DOWN
    world = World(HELLO)
    world.meter.problem = fault(Kind.LEDGER_UNAVAILABLE)
    with pytest.raises(GatewayError):
        world.start()
    assert world.lifecycle.open == 0, "what was refused must not stay counted"


def test_a_shutdown_that_cannot_wait_is_visible() -> None:
    world = World([Text("Hel"), *idle(5), *HELLO])
    exchange = world.start()
    assert next(exchange) == Text("Hel")
    world.lifecycle.cut()
    with pytest.raises(GatewayError) as caught:
        list(exchange)
    assert caught.value.kind is Kind.SHUTTING_DOWN
    exchange.close()
    assert world.lifecycle.wait_until_cut(0)


# --- failover and the breaker -------------------------------------------------------------------


def outcomes(world: World) -> list[tuple[int, str, str]]:
    return [(leg.leg, leg.provider, leg.outcome) for leg in world.meter.legs]


def test_a_hiccup_is_asked_again_once_at_the_same_provider() -> None:
    world = World([fault(Kind.UPSTREAM_ERROR)], HELLO)
    world.providers[0].scripts = [[fault(Kind.UPSTREAM_ERROR)], HELLO]
    exchange = world.start()
    assert list(exchange) == HELLO
    exchange.close()
    assert outcomes(world) == [(1, "p1", "upstream_error"), (2, "p1", "ok")]
    assert (exchange.target.provider.name, exchange.attempts) == ("p1", 2)
    assert exchange.failed_over == [("p1", "upstream_error")] and world.failovers == []
    assert world.meter.legs[1].started_at - world.meter.legs[0].started_at == pytest.approx(0.1), "the jitter"
    assert world.breakers.snapshot()[0].failures == 0, "what the retry mended is no fault"


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind.spec.fails_over and kind is not Kind.UPSTREAM_ERROR])
def test_no_other_fault_is_asked_again(kind: Kind) -> None:
    world = World([fault(kind)], HELLO)
    world.run()
    assert [provider.calls for provider in world.providers] == [1, 1]
    assert world.failovers == [("p1", kind.value)]


def test_a_retry_shares_the_time_of_what_it_repeats() -> None:
    world = World([], HELLO)
    world.providers[0].scripts = [[10.0, fault(Kind.UPSTREAM_ERROR)], [*idle(60)]]
    started = world.clock.now
    world.run()
    assert outcomes(world) == [(1, "p1", "upstream_error"), (2, "p1", "upstream_timeout"), (3, "p2", "ok")]
    assert world.clock.now - started == pytest.approx(30, abs=1), "one limit, not two"


def test_no_retry_when_its_time_is_half_gone() -> None:
    world = World([15.0, fault(Kind.UPSTREAM_ERROR)], HELLO)
    world.run()
    assert [provider.calls for provider in world.providers] == [1, 1]


def test_an_open_breaker_spares_the_provider_and_the_caller() -> None:
    world = World([fault(Kind.UPSTREAM_UNREACHABLE)], HELLO)
    for _ in range(3):
        world.run()
    assert world.providers[0].calls == 3
    exchange = world.start()
    assert list(exchange) == HELLO
    exchange.close()
    assert world.providers[0].calls == 3 and exchange.attempts == 1
    assert exchange.failed_over == [("p1", "breaker_open")]
    assert world.failovers == [*[("p1", "upstream_unreachable")] * 3, ("p1", "breaker_open")]


def test_all_open() -> None:
    world = World([fault(Kind.UPSTREAM_OVERLOADED)], [rate_limited(4)])
    _, error = world.run()
    assert error is not None and error.kind is Kind.UPSTREAM_RATE_LIMITED
    world.clock.sleep(1.5)
    _, error = world.run()
    assert error is not None and (error.kind, error.retry_after_s) == (Kind.PROVIDERS_UNAVAILABLE, 3)
    assert [provider.calls for provider in world.providers] == [1, 1] and len(world.meter.legs) == 2


def rate_limited(retry_after_s: int | None) -> GatewayError:
    return GatewayError(Kind.UPSTREAM_RATE_LIMITED, "A limit.", retry_after_s=retry_after_s)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (7, 20, 7),  # the first provider is back earlier
        (20, 7, 7),
        (None, 3000, 10),
        (3000, None, 10),
        (3000, 2000, 300),  # the first is probed again then
        (None, None, 10),
    ],
)
def test_retry_after_is_when_the_first_provider_is_back(first: int | None, second: int | None, expected: int) -> None:
    _, error = World([rate_limited(first)], [rate_limited(second)]).run()
    assert error is not None and error.retry_after_s == expected


def test_retry_after_of_a_single_provider_is_its_own() -> None:
    _, error = World([rate_limited(2000)]).run()
    assert error is not None and error.retry_after_s == 2000


def test_recovery_has_one_probe_and_its_first_word_lets_the_others_in() -> None:
    world = World([fault(Kind.UPSTREAM_OVERLOADED)], HELLO)
    world.run()
    world.providers[0].scripts = [HELLO]
    world.clock.sleep(10)
    probe, other = world.start(), world.start()
    assert next(probe) == Usage(input=3)
    assert next(other) == Usage(input=3) and other.target.provider.name == "p2"
    assert next(probe) == Text("Hel")
    third = world.start()
    next(third)
    assert (probe.target.provider.name, third.target.provider.name) == ("p1", "p1")
    for exchange in (probe, other, third):
        exchange.close()


def test_an_image_that_takes_minutes_stays_the_only_probe() -> None:
    """Its first byte may take as long as its last (app.py): the probe is not given up after a chat's first_token_s."""
    image = Document({"data": []}, images=1)
    world = World([fault(Kind.UPSTREAM_OVERLOADED)])
    world.service.limits = replace(LIMITS, first_token_s=100, total_s=100)
    world.run()
    world.providers[0].scripts = [[IDLE, 30.0, image, End("stop")]]
    world.clock.sleep(10)
    probe = world.start()
    assert next(probe) == IDLE
    world.clock.sleep(60)
    assert world.run()[1] is not None and world.providers[0].calls == 2
    assert list(probe) == [image, End("stop")]
    probe.close()
    assert world.breakers.state(("p1", "m-p1")) == 0


def test_a_slow_probe_whose_place_was_given_away_still_lets_the_others_in() -> None:
    world = World([fault(Kind.UPSTREAM_OVERLOADED)])
    world.run()
    world.providers[0].scripts = [[IDLE, BEGUN, 40.0, ALIVE, IDLE, Text("a"), End("stop")]]
    world.clock.sleep(10)
    probe = world.start()
    while next(probe) is not ALIVE:
        pass
    second = world.start()
    assert next(second) == IDLE and world.providers[0].calls == 3
    assert world.breakers.state(("p1", "m-p1")) == 1
    assert list(probe) == [IDLE, Text("a"), End("stop")]
    assert world.breakers.state(("p1", "m-p1")) == 0
    for exchange in (probe, second):
        exchange.close()


def test_a_probe_whose_client_leaves_hands_over() -> None:
    world = World([fault(Kind.UPSTREAM_OVERLOADED)], HELLO)
    world.run()
    world.providers[0].scripts = [HELLO]
    world.clock.sleep(10)
    probe = world.start()
    next(probe)
    probe.close()
    after = world.start()
    next(after)
    assert after.target.provider.name == "p1"
    after.close()


def test_a_probe_is_one_request_also_for_a_hiccup() -> None:
    world = World([fault(Kind.UPSTREAM_OVERLOADED)], HELLO)
    world.run()
    world.providers[0].scripts = [[fault(Kind.UPSTREAM_ERROR)]]
    world.clock.sleep(10)
    world.run()
    assert world.providers[0].calls == 2


def test_faults_in_the_middle_of_answers_count_too() -> None:
    world = World([Text("Hel"), fault(Kind.UPSTREAM_INTERRUPTED)])
    for _ in range(3):
        world.run()
    _, error = world.run()
    assert error is not None and error.kind is Kind.PROVIDERS_UNAVAILABLE


@pytest.mark.parametrize("kind", [Kind.UPSTREAM_INVALID_REQUEST, Kind.UPSTREAM_TOO_LARGE, Kind.UPSTREAM_MODEL_UNAVAILABLE])
def test_what_says_nothing_about_the_next_request_never_opens_a_breaker(kind: Kind) -> None:
    world = World([fault(kind)], HELLO)
    for _ in range(20):
        world.run()
    assert world.providers[0].calls == 20


def test_a_provider_that_only_ran_out_of_our_time_is_not_blamed() -> None:
    slow: list[Step] = [piece for _ in range(100) for piece in (2.0, Text("x"))]
    world = World(slow)
    for _ in range(5):
        _, error = world.run()
        assert error is not None and error.kind is Kind.DEADLINE_EXCEEDED


def test_the_total_limit_bounds_the_failover_too() -> None:
    world = World([100.0, fault(Kind.UPSTREAM_UNREACHABLE)], HELLO)
    _, error = world.run()
    assert error is not None and error.kind is Kind.UPSTREAM_UNREACHABLE
    assert world.providers[1].calls == 0


@pytest.mark.parametrize("open_first", [False, True])
def test_a_caller_may_want_no_fallback(open_first: bool) -> None:
    world = World([fault(Kind.UPSTREAM_OVERLOADED)], HELLO)
    if open_first:
        world.run()
    calls = [provider.calls for provider in world.providers]
    exchange = world.start()
    exchange.fallback = False
    with pytest.raises(GatewayError) as caught:
        next(exchange)
    exchange.close()
    assert caught.value.kind is (Kind.PROVIDERS_UNAVAILABLE if open_first else Kind.UPSTREAM_OVERLOADED)
    assert caught.value.retry_after_s == 10
    assert [provider.calls for provider in world.providers] == [calls[0] + (not open_first), calls[1]]


def test_vendors_see_a_pseudonym() -> None:
    seen: list[object] = []

    def look(call: object) -> float:
        seen.append(call.user)  # type: ignore[attr-defined]
        return 0.0

    World([look, End("stop")]).run()
    assert seen == ["pseudonym-of-ann"]


def test_vendor_words_pass_the_redaction_point() -> None:
    quoting = GatewayError(Kind.UPSTREAM_INVALID_REQUEST, "bad text: 'my private words here'")
    _, error = World([quoting]).run()
    assert error is not None and "private" not in error.message
    helpful = GatewayError(Kind.UPSTREAM_INVALID_REQUEST, "tools.0.name: too long")
    _, error = World([helpful]).run()
    assert error is not None and error.message == "tools.0.name: too long"


@pytest.mark.parametrize(
    ("message", "texts", "expected"),
    [
        ("max_tokens: too large", ["hello"], "max_tokens: too large"),
        ("cannot use 'hello' here", ["hello"], None),
        ("cannot use 'hel\nlo  you there my dear' here", ["x hel lo you there my dear y"], None),
        ("a\n  b", ["zzzz"], "a b"),
        ("ok", ["ok"], None),  # hidden needlessly, and harmless
        ("m" * 400, ["zzzz"], "m" * 299 + "…"),
    ],
)
def test_redaction(message: str, texts: list[str], expected: str | None) -> None:
    assert safe_vendor_message(message, texts) == expected


# --- what is reserved ----------------------------------------------------------------------------


def test_all_that_vendors_charge_for_is_reserved() -> None:
    def tokens(*parts: Part, **more: Any) -> int:
        return estimate_tokens(ChatRequest("sonnet", (), (Turn("user", (TextPart("Hello"), *parts), "messages[0]"),), **more))

    plain = tokens()
    schema = {"type": "object", "properties": {f"field{number}": {"type": "string"} for number in range(100)}}
    assert tokens(tools=(Tool("search", "Looks it up.", schema),)) > plain + 900
    assert tokens(output=JsonOutput(schema)) > plain + 900
    assert tokens(ImagePart("image/png", "A" * 4000)) == plain + 1600
    assert tokens(ToolResult("t1", (ImagePart("image/png", "A" * 4000),))) == plain + 1600, "a screenshot that a tool sends"
    assert tokens(PdfPart("A" * 1000)) > plain + 1000, "one page"
    assert tokens(PdfPart("A" * 640_000)) > plain + 10_000
    assert tokens(PdfPart("A" * 20_000_000)) <= plain + 300_000, "no vendor takes as many pages"
