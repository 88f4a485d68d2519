"""Limits: days and months of a time zone, whose ceilings hold, and what the person reads."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

import pytest

from hearth_gateway.config import AllLimitsConfig, LimitsConfig
from hearth_gateway.core.identity import Caller
from hearth_gateway.core.limits import Calendar, Ceiling, LimitBook, Rate, Sums, dollars

BERLIN = Calendar("Europe/Berlin")
UTC = datetime.UTC


def at(text: str) -> float:
    """Unix seconds of a UTC time such as `2026-03-28 23:00`."""
    return datetime.datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("moment", "key", "hours"),
    [
        ("2026-11-21 22:59:59", "2026-11-21", 24),
        ("2026-11-21 23:00:00", "2026-11-22", 24),
        ("2026-03-28 23:00:00", "2026-03-29", 23),  # clocks go forward
        ("2026-03-29 21:59:59", "2026-03-29", 23),
        ("2026-03-29 22:00:00", "2026-03-30", 24),
        ("2026-10-24 22:00:00", "2026-10-25", 25),  # clocks go back
        ("2026-10-25 22:59:59", "2026-10-25", 25),
        ("2026-10-25 23:00:00", "2026-10-26", 24),
    ],
)
def test_a_day_is_that_of_the_time_zone(moment: str, key: str, hours: int) -> None:
    day = BERLIN.day(at(moment))
    assert (day.key, (day.end - day.start) / 3600) == (key, hours)
    assert day.holds(at(moment))


def test_a_day_whose_midnight_does_not_exist() -> None:
    """In Chile the clocks go forward at midnight: that day begins at one."""
    santiago = Calendar("America/Santiago")
    day = santiago.day_of(datetime.date(2026, 9, 6))
    assert (day.end - day.start) / 3600 == 23
    assert santiago.day_of(datetime.date(2026, 9, 5)).end == day.start
    assert santiago.date(day.start) == datetime.date(2026, 9, 6) and santiago.date(day.start - 1) == datetime.date(2026, 9, 5)


def test_months_follow_each_other_without_a_gap() -> None:
    moment, keys = at("2026-01-01 12:00"), []
    for _ in range(14):
        month = BERLIN.month(moment)
        keys.append(month.key)
        assert BERLIN.month(month.end - 1).key == month.key
        moment = month.end
    assert keys == [f"2026-{number:02}" for number in range(1, 13)] + ["2027-01", "2027-02"]


def test_a_calendar_asked_about_the_past_does_not_forget_today() -> None:
    calendar = Calendar("UTC")
    for text in ("2026-11-21", "2026-11-20", "2026-11-21", "2026-10-31"):
        assert calendar.day(at(f"{text} 12:00")).key == text
        assert calendar.month(at(f"{text} 12:00")).key == text[:7]


NOW = at("2026-11-21 12:00")
LIMITS = AllLimitsConfig(
    time_zone="Europe/Berlin",
    person=LimitsConfig(money_per_day_usd=Decimal("2")),
    program=LimitsConfig(requests_per_minute=60),
    programs={"kitchen": LimitsConfig(tokens_per_day=1000)},
    house={"money_per_month_usd": Decimal("50")},  # type: ignore[arg-type]
)


def ceilings(book: LimitBook, caller: Caller) -> list[tuple[str, str, str, int]]:
    return [(item.scope, item.limit, item.period.key, item.amount) for item in book.bounds(caller, NOW).ceilings]


def test_whose_ceilings_hold() -> None:
    own = {"ann@example.org": LimitsConfig(money_per_month_usd=Decimal("9"))}
    book = LimitBook(LIMITS, own.get)
    house = ("house", "money_per_month_usd", "2026-11", 50 * 10**9)
    bob, ann = "person:bob@example.org", "person:ann@example.org"
    day = "2026-11-21"
    assert ceilings(book, Caller("proxy", "bob@example.org", browser=True)) == [(bob, "money_per_day_usd", day, 2 * 10**9), house]
    assert ceilings(book, Caller("proxy", "ann@example.org", browser=True)) == [(ann, "money_per_month_usd", "2026-11", 9 * 10**9), house]
    assert ceilings(book, Caller("kitchen")) == [("program:kitchen", "tokens_per_day", day, 1000), house]
    # A program that speaks for a person: both.
    assert ceilings(book, Caller("kitchen", "bob@example.org")) == [
        (bob, "money_per_day_usd", day, 2 * 10**9),
        ("program:kitchen", "tokens_per_day", day, 1000),
        house,
    ]
    assert book.bounds(Caller("other"), NOW).rates == (Rate("program:other", 60),)
    assert book.bounds(Caller("kitchen"), NOW).rates == ()


def test_a_changed_limit_counts_at_once() -> None:
    own: dict[str, LimitsConfig] = {}
    book = LimitBook(AllLimitsConfig(), own.get)
    caller = Caller("proxy", "ann@example.org", browser=True)
    assert ceilings(book, caller) == []
    own["ann@example.org"] = LimitsConfig(tokens_per_day=5)
    assert [item[3] for item in ceilings(book, caller)] == [5]
    own["ann@example.org"] = LimitsConfig(tokens_per_day=6)
    assert [item[3] for item in ceilings(book, caller)] == [6]


def test_everything_counts_also_without_any_limit() -> None:
    """A limit that is set in the middle of a month holds for the whole month."""
    charges = LimitBook(AllLimitsConfig()).bounds(Caller("app", "ann@example.org"), NOW).charges
    assert charges == (
        ("person:ann@example.org", "2026-11-21"),
        ("person:ann@example.org", "2026-11"),
        ("program:app", "2026-11-21"),
        ("program:app", "2026-11"),
        ("house", "2026-11"),
    )


def ceiling(caller: Caller, **limits: Any) -> Ceiling:
    config = AllLimitsConfig(time_zone="Europe/Berlin", person=LimitsConfig(**limits), program=LimitsConfig(**limits))
    return LimitBook(config).bounds(caller, NOW).ceilings[0]


PERSON = Caller("proxy", "ann@example.org", browser=True)


@pytest.mark.parametrize(
    ("of", "sums", "retry_after_s", "words"),
    [
        (
            ceiling(PERSON, tokens_per_day=100_000),
            Sums(tokens=100_000),
            11 * 3600,
            "That is all for today: you have used your 100,000 tokens for today. It starts again at 00:00 on 22 November (Europe/Berlin).",
        ),
        (
            ceiling(PERSON, money_per_day_usd="0.5"),
            Sums(nano=10**9),
            11 * 3600,
            "That is all for today: you have used your $0.50 for today. It starts again at 00:00 on 22 November (Europe/Berlin).",
        ),
        (
            ceiling(Caller("kitchen"), money_per_month_usd="1200"),
            Sums(nano=1200 * 10**9),
            9 * 86_400 + 11 * 3600,
            "That is all for this month: this program has used its $1,200 for this month. "
            "It starts again at 00:00 on 1 December (Europe/Berlin).",
        ),
        (
            ceiling(PERSON, money_per_day_usd="0.5"),
            Sums(nano=1, held_nano=10**9),
            5,
            "Other answers are being written right now, and together they may use up what you have left of your $0.50 for today. "
            "Try again when they are done.",
        ),
    ],
)
def test_a_refusal_says_which_limit_and_until_when(of: Ceiling, sums: Sums, retry_after_s: int, words: str) -> None:
    assert of.is_full(sums)
    error = of.refusal(sums, NOW)
    assert (error.retry_after_s, error.message) == (retry_after_s, words)
    assert error.kind.spec.status == 429 and not error.kind.spec.fails_over


def test_a_cent_is_enough_to_begin() -> None:
    day = ceiling(PERSON, money_per_day_usd="1")
    assert not day.is_full(Sums(nano=10**9 - 1)) and day.is_full(Sums(nano=10**9))
    assert not day.is_soft(Sums(nano=8 * 10**8 - 1)) and day.is_soft(Sums(nano=8 * 10**8))
    assert not day.is_used_up(Sums(held_nano=10**9)) and day.is_full(Sums(held_nano=10**9))


def test_nothing_at_all_may_be_a_limit() -> None:
    """A ceiling of zero dollars shuts somebody out without removing them."""
    assert ceiling(PERSON, money_per_month_usd="0").is_used_up(Sums())


def test_a_minute_is_any_sixty_seconds() -> None:
    error = Rate("person:ann@example.org", 1).refusal(oldest=NOW - 59.5, now=NOW)
    assert (error.retry_after_s, error.message) == (1, "That was quick: you have one request a minute. The next is possible in 1 s.")
    assert Rate("program:x", 7).refusal(NOW, NOW).retry_after_s == 60


def test_money_in_sentences() -> None:
    assert [dollars(nano) for nano in (0, 10**9, 5 * 10**8, 123_000, 1_234_560_000_000)] == ["$0", "$1", "$0.50", "$0.000123", "$1,234.56"]
