"""Metrics: counted once each whoever asks when, and shares of ceilings as of now."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal

import pytest

from hearth_gateway.config import AllLimitsConfig, LimitsConfig
from hearth_gateway.core.identity import Caller
from hearth_gateway.core.limits import LimitBook, LimitEvent, Sums
from hearth_gateway.core.metering import Leg, Settlement
from hearth_gateway.telemetry.metrics import Metrics, PersonLabels
from hearth_gateway.translate.events import Usage


def settled(number: int = 1, person: str | None = "ann@example.org") -> Settlement:
    usage = Usage(input=5, cache_read=1, cache_write=3, cache_write_1h=1, output=7)
    leg = Leg(f"r{number}", 1, 0.0, Caller("app", person), "sonnet", "anthropic", "x", False, usage, "ok", 0.2, 0.1)
    return Settlement(leg, usage, "settled", 2_000_000)


def metrics(max_people: int = 2) -> Metrics:
    return Metrics(PersonLabels(max_people, lambda email: email))


def series(of: Metrics) -> dict[str, float]:
    lines = [line.rsplit(" ", 1) for line in of.exposition().decode().splitlines() if line.startswith("hearth_")]
    return {name: float(value) for name, value in lines}


@pytest.mark.parametrize("number", [1, 63, 64, 200])
def test_every_attempt_is_counted_once(number: int) -> None:
    mine = metrics()
    for i in range(number):
        mine.record(settled(i))
    for _ in range(2):
        found = series(mine)
        attempt = 'alias="sonnet",model="x",outcome="ok",owner="nobody",provider="anthropic"'
        assert found[f"hearth_attempts_total{{{attempt}}}"] == number
        assert found['hearth_attempt_duration_seconds_count{model="x",provider="anthropic"}'] == number
        assert found['hearth_first_token_seconds_sum{model="x",provider="anthropic"}'] == pytest.approx(number * 0.1)
        tokens = {"input": 5, "cache_read": 1, "cache_write_5m": 2, "cache_write_1h": 1, "output": 7}
        for kind, count in tokens.items():
            assert found[f'hearth_tokens_total{{kind="{kind}",model="x",provider="anthropic"}}'] == number * count
        assert found['hearth_cost_usd_total{model="x",provider="anthropic"}'] == pytest.approx(number * 0.002)
        assert found['hearth_person_requests_total{person="ann@example.org"}'] == number
        assert found['hearth_person_tokens_total{person="ann@example.org"}'] == number * 16


def test_many_threads_count_once() -> None:
    mine = metrics()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: mine.exposition() if i % 100 == 0 else mine.record(settled(i)), range(2000)))
    assert series(mine)['hearth_person_requests_total{person="ann@example.org"}'] == 1980


def test_an_answer_may_end_while_this_thread_counts() -> None:
    """The garbage collector closes an abandoned answer wherever it interrupts: recording must not wait."""
    mine = metrics()
    with mine._counting:
        for i in range(200):
            mine.record(settled(i))
    assert series(mine)['hearth_person_requests_total{person="ann@example.org"}'] == 200


def test_shares_of_ceilings_are_those_of_the_current_period() -> None:
    mine, now = metrics(max_people=1), time.time()
    book = LimitBook(AllLimitsConfig(person=LimitsConfig(tokens_per_day=10)))

    def saw(person: str, at: float, tokens: int) -> None:
        mine.limit_used(book.bounds(Caller("app", person), at).ceilings[0], Sums(tokens=tokens))

    def shares() -> dict[str, float]:
        return {name.split('subject="')[1][:-2]: share for name, share in series(mine).items() if "limit_used" in name}

    saw("ann@example.org", now, 5)
    saw("ann@example.org", now, 6)
    saw("bob@example.org", now, 9)
    saw("cid@example.org", now, 1)
    assert shares() == {"ann@example.org": 0.6, "other": 0.9}
    saw("bob@example.org", now - 86_400, 10)
    assert shares() == {"ann@example.org": 0.6, "other": 0.1}, "yesterday's share does not stay"


def test_an_attempt_without_a_price_is_counted_as_that() -> None:
    mine = metrics()
    mine.record(replace(settled(), cost_nano=None, state="estimated"))
    found = series(mine)
    assert found['hearth_unpriced_attempts_total{model="x",provider="anthropic"}'] == 1
    assert found['hearth_estimated_attempts_total{model="x",provider="anthropic",state="estimated"}'] == 1
    assert not any("cost_usd" in name for name in found)


def test_what_happens_once_was_zero_at_a_scrape_before() -> None:
    """Else increase() is 0, and no alert fires."""
    mine = metrics()
    mine.expect([("anthropic", "x")])
    mine.unknown("anthropic", "x", 3)  # at the start, before anybody could look
    mine.unknown("anthropic", "of-an-older-configuration", 1)
    before = series(mine)
    limit = 'hearth_limit_events_total{level="soft",limit="money_per_day_usd",scope="person"}'
    unknown = 'hearth_estimated_attempts_total{{model="{}",provider="anthropic",state="unknown"}}'
    names = [limit, unknown.format("x"), unknown.format("of-an-older-configuration")]
    assert [before[name] for name in names] == [0, 0, 0]
    mine.limit_event(LimitEvent("person:ann@example.org", "money_per_day_usd", "soft", "2026-11-21", 0.8))
    for _ in range(2):
        after = series(mine)
        assert [after[name] for name in names] == [1, 3, 1]
    events = [name for name in before if name.startswith("hearth_limit_events_total")]
    assert len(events) == 14 and set(events) == {name for name in after if name.startswith("hearth_limit_events_total")}


def test_a_ceiling_that_is_gone_has_no_share_and_a_new_one_its_own() -> None:
    mine, own = metrics(), {"ann@example.org": LimitsConfig(tokens_per_day=10, money_per_month_usd=Decimal(1))}
    book = LimitBook(AllLimitsConfig(), own.get)
    mine.limits_are(book.present)
    for ceiling in book.bounds(Caller("app", "ann@example.org"), time.time()).ceilings:
        mine.limit_used(ceiling, Sums(tokens=5, nano=10**9))
    assert sorted(share for name, share in series(mine).items() if "limit_used" in name) == [0.5, 1]
    own["ann@example.org"] = LimitsConfig(tokens_per_day=50)
    assert [share for name, share in series(mine).items() if "limit_used" in name] == [0.1]
