"""GET /api/usage in process: what adds up, what is counted apart, and what is left."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

from gateway_fakes import FakeClock

from hearth_gateway.config import AllLimitsConfig, LimitsConfig
from hearth_gateway.core.identity import Caller
from hearth_gateway.core.limits import Key, LimitBook, Sums
from hearth_gateway.core.metering import Admission, Intent, LedgerMeter, Leg, Settlement, billed
from hearth_gateway.core.prices import Price, PriceBook, Rates
from hearth_gateway.core.usage import Counts, Line, UsageReport
from hearth_gateway.errors import Kind
from hearth_gateway.store.database import open_database
from hearth_gateway.store.housekeeping import Housekeeper
from hearth_gateway.store.ledger import Ledger
from hearth_gateway.store.usage import SqlUsage
from hearth_gateway.telemetry.metrics import Metrics
from hearth_gateway.translate.events import Usage
from hearth_gateway.translate.vendor_fields import MAX_COUNT

ANN = Caller("proxy", "ann@example.org", browser=True)
BERLIN = AllLimitsConfig(time_zone="Europe/Berlin", person=LimitsConfig(money_per_day_usd=Decimal("1"), requests_per_minute=10))
NOW = datetime.datetime(2026, 11, 21, 12, tzinfo=datetime.UTC).timestamp()


class FakeStore:
    def __init__(self, *lines: tuple[Line, Counts]) -> None:
        self.found = lines
        self.sums_of: dict[Key, Sums] = {}

    def lines(self, caller: Caller, calendar: object, first: datetime.date) -> Sequence[tuple[Line, Counts]]:
        return self.found

    def sums(self, keys: Sequence[Key]) -> Mapping[Key, Sums]:
        return {key: self.sums_of[key] for key in keys if key in self.sums_of}

    def requests_between(self, scope: str, since: float, until: float) -> int:
        assert (since, until) == (NOW - 60, NOW + 1)
        return 4


def test_lines_of_one_day_and_model_are_added() -> None:
    line, other = Line("2026-11-21", "sonnet", "anthropic", "claude-x"), Line("2026-11-20", "opus", "anthropic", "claude-y")
    store = FakeStore(
        (line, Counts(requests=1, attempts=2, cost_nano=10**9, unpriced_attempts=1)),
        (line, Counts(requests=2, attempts=2, cost_nano=1, estimated_attempts=1, estimated_nano=1)),
        (other, Counts(requests=1, attempts=1, output_tokens=5)),
    )
    report = UsageReport(store, LimitBook(BERLIN)).of(ANN, 30, NOW)
    assert (report["from"], report["to"]) == ("2026-10-23", "2026-11-21")
    by_day = [(row["date"], row["model"], row["requests"]) for row in report["days"]]
    assert by_day == [("2026-11-20", "opus", 1), ("2026-11-21", "sonnet", 3)]
    total = report["total"]
    assert (total["requests"], total["attempts"], total["unpriced_attempts"], total["estimated_attempts"]) == (4, 5, 1, 1)
    assert (total["cost_usd"], total["estimated_cost_usd"]) == ("1.000000001", "0.000000001")


def test_what_is_left() -> None:
    store = FakeStore()
    store.sums_of["person:ann@example.org", "2026-11-21"] = Sums(nano=250_000_000, held_nano=500_000_000)
    report = UsageReport(store, LimitBook(BERLIN)).of(ANN, 1, NOW)
    rate, money = report["limits"]
    assert (rate["limit"], rate["ceiling"], rate["left"]) == ("requests_per_minute", "10", "6")
    assert money == {
        "scope": "person", "limit": "money_per_day_usd", "ceiling": "1", "used": "0.25", "reserved": "0.5", "left": "0.25",
        "reached": False, "resets_at": "2026-11-22T00:00:00+01:00",
    }  # fmt: skip


def test_rows_and_the_sums_they_become_give_the_same_report(tmp_path: Path) -> None:
    """Days of the configured zone, over a change of the clocks, before and after the rows are summed up."""
    engine = open_database(f"sqlite:///{tmp_path}/hearth.db")
    book = LimitBook(BERLIN)
    ledger = Ledger(engine, lambda problem: None)
    start = datetime.datetime(2026, 10, 24, 21, 30, tzinfo=datetime.UTC).timestamp()  # half past eleven in Berlin
    for number in range(60):
        person = ANN if number % 2 else Caller("kitchen")
        at, bounds = start + number * 1800, book.bounds(person, start)
        intent = Intent(f"r{number}", 1, at, person, "sonnet", "anthropic", "x", False, 1, 1, 0, 7, bounds)
        ledger.begin(intent)
        done = Leg(f"r{number}", 1, at, person, "sonnet", "anthropic", "x", False, Usage(output=1), "ok", 1, None)
        ledger.settle(intent, Settlement(done, Usage(output=1), "settled", 7))
    assert ledger.close(10) == 0
    report = UsageReport(SqlUsage(engine), book)
    now = start + 10 * 86_400

    def days(caller: Caller) -> dict[str, int]:
        return {row["date"]: row["requests"] for row in report.of(caller, 30, now)["days"]}

    before = days(ANN), days(Caller("kitchen"))
    # 24th: one half hour; the 25th has 25 hours, so 50 half hours; the rest is of the 26th.
    assert before[0] == {"2026-10-25": 25, "2026-10-26": 5} and before[1] == {"2026-10-24": 1, "2026-10-25": 25, "2026-10-26": 4}
    clock = FakeClock()
    clock.time = lambda: now  # type: ignore[method-assign]
    Housekeeper(engine, clock, book.calendar, 3, "keeper", lambda problem: None).tidy()
    assert (days(ANN), days(Caller("kitchen"))) == before
    assert days(Caller("proxy", "bob@example.org", browser=True)) == {}
    engine.dispose()


# --- what is billed ----------------------------------------------------------------------------


def leg(outcome: str, usage: Usage, answer_bytes: int = 0, images: int = 0) -> Leg:
    return Leg("r", 1, 0, ANN, "a", "p", "m", True, usage, outcome, 1, None, answer_bytes, images)


def test_the_vendors_count_stands() -> None:
    said = Usage(input=3, output=50)
    assert billed(leg("ok", said, answer_bytes=4000), 99) == (said, "settled")
    assert billed(leg("cancelled", said, answer_bytes=100), 99) == (said, "settled"), "it counted more than was seen"
    assert billed(leg("ok", Usage(), images=1), 99) == (Usage(), "settled"), "images are priced by the piece"


def test_a_part_is_not_more_than_the_whole() -> None:
    """A server that tells how much it wrote for an hour, and not how much in all: the rest would be less than nothing."""
    said = Usage(input=3, cache_write_1h=7, output=5)
    usage, state = billed(leg("ok", said, answer_bytes=20), 99)
    assert (usage, state) == (replace(said, cache_write=7), "settled")
    metrics = Metrics()
    metrics.record(Settlement(replace(leg("ok", said), usage=usage), usage, state, 5))
    assert b'kind="cache_write_1h",model="m",provider="p"} 7.0' in metrics.exposition()


def test_what_the_vendor_did_not_count_is_estimated() -> None:
    started = Usage(input=3, output=1)
    assert billed(leg("cancelled", started, answer_bytes=41), 99) == (Usage(input=3, output=11), "estimated")
    assert billed(leg("upstream_interrupted", Usage(), answer_bytes=8), 99) == (Usage(input=99, output=2), "estimated")
    assert billed(leg("ok", Usage(), answer_bytes=8), 99) == (Usage(input=99, output=2), "estimated")
    assert billed(leg("cancelled", Usage(cache_read=7), answer_bytes=4), 99) == (Usage(cache_read=7, output=1), "estimated")


def test_a_count_that_cannot_be_true_is_as_good_as_none() -> None:
    """It would use up everybody's limits for the month."""
    huge = MAX_COUNT
    assert billed(leg("ok", Usage(input=huge, output=5), answer_bytes=20), 99) == (Usage(input=99, output=5), "estimated")
    assert billed(leg("ok", Usage(input=3, cache_read=7, output=huge), answer_bytes=20), 99) == (
        Usage(input=3, cache_read=7, output=5),
        "estimated",
    )
    assert billed(leg("ok", Usage(cache_write=huge, cache_write_1h=huge), answer_bytes=20), 99) == (Usage(input=99, output=5), "estimated")
    assert billed(leg(Kind.UPSTREAM_OVERLOADED.value, Usage(input=huge)), 99) == (Usage(input=99), "estimated")


def test_who_hung_up_on_a_vendor_at_work_pays_for_the_prompt_and_a_fault_costs_nothing() -> None:
    for outcome in ("cancelled", Kind.UPSTREAM_TIMEOUT.value, Kind.SHUTTING_DOWN.value, Kind.PERSON_REFUSED.value):
        assert billed(leg(outcome, Usage()), 99) == (Usage(input=99), "estimated")
    for outcome in (Kind.UPSTREAM_OVERLOADED.value, Kind.UPSTREAM_UNREACHABLE.value, Kind.UPSTREAM_AUTH.value):
        assert billed(leg(outcome, Usage()), 99) == (Usage(), "settled")


class NoBooks:
    def __init__(self) -> None:
        self.settled: list[Settlement] = []

    def check(self) -> None: ...

    def begin(self, intent: Intent) -> None: ...

    def settle(self, intent: Intent, settlement: Settlement) -> None:
        self.settled.append(settlement)


def test_a_prompt_that_is_to_be_cached_is_reserved_at_what_that_costs() -> None:
    rates = Rates(Decimal(10), Decimal(50), Decimal(1), Decimal("12.5"), Decimal(20))
    prices = PriceBook({("p", "m"): Price(rates, "test", datetime.date(2026, 11, 21))})
    meter = LedgerMeter(NoBooks(), prices, LimitBook(AllLimitsConfig()), FakeClock())
    admission = Admission("r", ANN, "a", True, 90_000, 10, (("p", "m"),))
    assert meter.intent(admission, 1, "p", "m").cost_nano == 900_500_000
    assert meter.intent(replace(admission, cache_write="1h"), 1, "p", "m").cost_nano == 1_800_500_000


def test_nothing_costs_nothing_also_without_a_price() -> None:
    """A fault at a provider without a price must not make the bill look incomplete."""

    books = NoBooks()
    meter = LedgerMeter(books, PriceBook({}), LimitBook(AllLimitsConfig()), FakeClock())
    intent = Intent("r", 1, 0, ANN, "a", "p", "m", True, 5, 5, 0, None, LimitBook(AllLimitsConfig()).bounds(ANN, NOW))
    meter.settle(intent, leg(Kind.UPSTREAM_OVERLOADED.value, Usage()))
    meter.settle(intent, leg("ok", Usage(output=1)))
    assert [item.cost_nano for item in books.settled] == [0, None]
