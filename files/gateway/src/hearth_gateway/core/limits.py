"""Who may spend how much: calendar periods, ceilings, and the sentence of a refusal. No I/O.

A request counts for its *scopes*: the person it is for, the token it came with, and the house. Each
scope has its sums of the day and of the month (the house of the month only), and may have ceilings.
The store keeps the sums and asks ``Ceiling.refusal`` in the same transaction in which it reserves.

The rule: as long as something is left, one more request is let in, and what it may cost at most is
reserved until it is over. So a ceiling is overshot by at most one reservation, and a person with a
cent left is not refused because an answer *could* cost two.
"""

from __future__ import annotations

import datetime
import zoneinfo
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from typing import Literal, NamedTuple

from hearth_gateway.config import AllLimitsConfig, LimitsConfig
from hearth_gateway.core.identity import Caller
from hearth_gateway.core.prices import nano, usd
from hearth_gateway.errors import GatewayError, Kind

HOUSE = "house"
MINUTE_S = 60
# The clocks of replicas differ by less. What began later than that was written by a clock that has been put right since;
# counted, it would fill the last minute for hours.
CLOCK_SKEW_S = 1
# What waits for others to finish may be free again in seconds.
_HELD_RETRY_S = 5

Limit = Literal["requests_per_minute", "tokens_per_day", "money_per_day_usd", "money_per_month_usd"]
Level = Literal["soft", "hard"]
# Bits of `spending.reported`: an event is sent once for a scope and period.
_BITS: dict[tuple[Limit, Level], int] = {
    ("tokens_per_day", "soft"): 1,
    ("tokens_per_day", "hard"): 2,
    ("money_per_day_usd", "soft"): 4,
    ("money_per_day_usd", "hard"): 8,
    ("money_per_month_usd", "soft"): 16,
    ("money_per_month_usd", "hard"): 32,
}


def reported_bit(limit: Limit, level: Level) -> int:
    return _BITS[limit, level]


@dataclass(frozen=True, slots=True)
class Period:
    """A calendar day or month. ``key`` is `2026-11-21` or `2026-11`, the times are Unix seconds."""

    key: str
    start: float
    end: float

    def holds(self, now: float) -> bool:
        return self.start <= now < self.end


class Calendar:
    """Days and months of one time zone. A day has 23 to 25 hours, as the zone has it."""

    def __init__(self, time_zone: str) -> None:
        self.name = time_zone
        self.zone = zoneinfo.ZoneInfo(time_zone)
        self._today: Period | None = None
        self._month: Period | None = None

    def date(self, now: float) -> datetime.date:
        return datetime.datetime.fromtimestamp(now, self.zone).date()

    def start_of(self, date: datetime.date) -> float:
        """Unix seconds of that day's first moment."""
        return datetime.datetime.combine(date, datetime.time(), self.zone).timestamp()

    def day_of(self, date: datetime.date) -> Period:
        return Period(date.isoformat(), self.start_of(date), self.start_of(date + datetime.timedelta(days=1)))

    def day(self, now: float) -> Period:
        # Asked for every request: kept until it is over. Two threads may both work it out; that is harmless.
        today = self._today
        if today is None or not today.holds(now):
            today = self._today = self.day_of(self.date(now))
        return today

    def month(self, now: float) -> Period:
        month = self._month
        if month is None or not month.holds(now):
            first = self.date(now).replace(day=1)
            following = (first + datetime.timedelta(days=32)).replace(day=1)
            month = self._month = Period(first.isoformat()[:7], self.start_of(first), self.start_of(following))
        return month

    def when(self, moment: float) -> str:
        """For a sentence: `00:00 on 22 November (Europe/Berlin)`."""
        local = datetime.datetime.fromtimestamp(moment, self.zone)
        return f"{local:%H:%M} on {local.day} {local:%B} ({self.name})"


Key = tuple[str, str]  # (scope, key of the period): a row of the table `spending`


class Sums(NamedTuple):
    """What a scope has used and reserved in a period."""

    tokens: int = 0
    nano: int = 0
    held_tokens: int = 0
    held_nano: int = 0

    def plus(self, tokens: int = 0, nano_dollars: int = 0, held_tokens: int = 0, held_nano: int = 0) -> Sums:
        return Sums(self.tokens + tokens, self.nano + nano_dollars, self.held_tokens + held_tokens, self.held_nano + held_nano)


@dataclass(frozen=True, slots=True)
class Ceiling:
    """One ceiling of one scope and period: ``amount`` in tokens or in nano-dollars."""

    scope: str
    limit: Limit
    period: Period
    amount: int
    soft_amount: int
    when: Callable[[float], str]
    key: Key = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", (self.scope, self.period.key))

    def used(self, sums: Sums) -> int:
        return sums.tokens if self.limit == "tokens_per_day" else sums.nano

    def held(self, sums: Sums) -> int:
        return sums.held_tokens if self.limit == "tokens_per_day" else sums.held_nano

    def is_full(self, sums: Sums) -> bool:
        return self.used(sums) + self.held(sums) >= self.amount

    def is_used_up(self, sums: Sums) -> bool:
        """Full even if every answer that is being written cost nothing."""
        return self.used(sums) >= self.amount

    def is_soft(self, sums: Sums) -> bool:
        return self.used(sums) >= self.soft_amount

    def refusal(self, sums: Sums, now: float) -> GatewayError:
        """The 429 for a request this ceiling refuses at ``now`` (Unix seconds)."""
        whose, verb = _WHOSE[_kind_of(self.scope)]
        if not self.is_used_up(sums):
            return GatewayError(
                Kind.QUOTA_EXCEEDED,
                f"Other answers are being written right now, and together they may use up what {whose} {verb} left of "
                f"{self._said()}. Try again when they are done.",
                retry_after_s=_HELD_RETRY_S,
            )
        return GatewayError(
            Kind.QUOTA_EXCEEDED,
            f"That is all for {self._span()}: {whose} {verb} used {self._said()}. It starts again at {self.when(self.period.end)}.",
            retry_after_s=max(1, round(self.period.end - now)),
        )

    def _span(self) -> str:
        return "this month" if self.limit == "money_per_month_usd" else "today"

    def _said(self) -> str:
        if self.limit == "tokens_per_day":
            return f"its {self.amount:,} tokens for today" if self._is_thing() else f"your {self.amount:,} tokens for today"
        pronoun = "its" if self._is_thing() else "your"
        return f"{pronoun} {dollars(self.amount)} for {self._span()}"

    def _is_thing(self) -> bool:
        return _kind_of(self.scope) != "person"


_WHOSE = {"person": ("you", "have"), "program": ("this program", "has"), HOUSE: ("the house", "has")}


def _kind_of(scope: str) -> str:
    return scope.partition(":")[0]


def scope_kind(scope: str) -> str:
    """`person`, `program` or `house`: what a metric or a log line may say of a scope."""
    return _kind_of(scope)


def dollars(nano_dollars: int) -> str:
    """`$5`, `$0.50`, `$0.000123`: all digits there are, and cents in full."""
    value = usd(nano_dollars)
    digits = -int(value.as_tuple().exponent)
    return f"${value:,.{0 if digits == 0 else max(2, digits)}f}"


@dataclass(frozen=True, slots=True)
class Rate:
    """At most ``amount`` requests of ``scope`` in any 60 seconds."""

    scope: str
    amount: int

    def refusal(self, oldest: float, now: float) -> GatewayError:
        """``oldest``: when the first of the requests that fill the minute came, in Unix seconds."""
        wait_s = max(1, min(MINUTE_S, int(-(-(oldest + MINUTE_S - now) // 1))))
        whose, verb = _WHOSE[_kind_of(self.scope)]
        number = "one request" if self.amount == 1 else f"{self.amount} requests"
        return GatewayError(
            Kind.QUOTA_EXCEEDED,
            f"That was quick: {whose} {verb} {number} a minute. The next is possible in {wait_s} s.",
            retry_after_s=wait_s,
        )


@dataclass(frozen=True, slots=True)
class Bounds:
    """All that one request counts for, and all that may refuse it."""

    charges: tuple[Key, ...]
    ceilings: tuple[Ceiling, ...]
    rates: tuple[Rate, ...]


def scopes_of(program: str, person: str | None) -> list[str]:
    """A program that speaks for a person counts for both, so that neither can go round its ceiling through the other."""
    return [*([f"person:{person}"] if person is not None else []), f"program:{program}"]


def charges_of(program: str, person: str | None, day: Period, month: Period) -> tuple[Key, ...]:
    """Every sum that a leg begun in this day and month counts for."""
    scopes = scopes_of(program, person)
    return (*((scope, period.key) for scope in scopes for period in (day, month)), (HOUSE, month.key))


# Callers whose bounds are kept; a house has fewer.
_MAX_KNOWN = 4096


class _Known(NamedTuple):
    """The bounds of a caller, and what they were made of: compared by identity, which costs nothing."""

    day: Period
    month: Period
    own: LimitsConfig | None
    bounds: Bounds


class LimitBook:
    """``limits_of`` returns a person's own limits, None for those of the configuration."""

    def __init__(self, config: AllLimitsConfig, limits_of: Callable[[str], LimitsConfig | None] = lambda _email: None) -> None:
        self._config = config
        self._house = LimitsConfig(money_per_month_usd=config.house.money_per_month_usd)
        self._limits_of = limits_of
        self.calendar = Calendar(config.time_zone)
        # Most of what a request costs here is the same until a limit or the day changes.
        self._known: dict[tuple[str, str | None, bool], _Known] = {}
        # Ceilings that many share, such as the house's, are one object for all of them.
        self._ceilings_of = lru_cache(maxsize=4096)(self._ceilings)

    @property
    def refuses_unpriced(self) -> bool:
        return self._config.unpriced == "refuse"

    def bounds(self, caller: Caller, now: float) -> Bounds:
        """For a request at ``now`` (Unix seconds)."""
        day, month = self.calendar.day(now), self.calendar.month(now)
        own = None if caller.person is None else self._limits_of(caller.person)
        who = (caller.name, caller.person, caller.browser)
        known = self._known.get(who)
        if known is not None and known.day is day and known.month is month and known.own is own:
            return known.bounds
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        bounds = self._bounds(caller, own, day, month)
        self._known[who] = _Known(day, month, own, bounds)
        return bounds

    def present(self, ceiling: Ceiling) -> Ceiling | None:
        """The same ceiling as the limits are now; None if they have none such any more."""
        kind, _, name = ceiling.scope.partition(":")
        limits = self._house if kind == HOUSE else self._limits(ceiling.scope, self._limits_of(name) if kind == "person" else None)
        found = self._ceilings(ceiling.scope, limits, ceiling.period, ceiling.period)
        return next((item for item in found if item.limit == ceiling.limit), None)

    def _bounds(self, caller: Caller, own: LimitsConfig | None, day: Period, month: Period) -> Bounds:
        ceilings: list[Ceiling] = []
        rates: list[Rate] = []
        for scope in scopes_of(caller.name, caller.person):
            if caller.browser and scope.startswith("program:"):
                continue  # the sign-in proxy is a way in and not a spender
            limits = self._limits(scope, own)
            ceilings += self._ceilings_of(scope, limits, day, month)
            if limits.requests_per_minute is not None:
                rates.append(Rate(scope, limits.requests_per_minute))
        ceilings += self._ceilings_of(HOUSE, self._house, day, month)
        return Bounds(charges_of(caller.name, caller.person, day, month), tuple(ceilings), tuple(rates))

    def _limits(self, scope: str, own: LimitsConfig | None) -> LimitsConfig:
        kind, _, name = scope.partition(":")
        if kind == "person":
            return own or self._config.person
        return self._config.programs.get(name, self._config.program)

    def _ceilings(self, scope: str, limits: LimitsConfig, day: Period, month: Period) -> tuple[Ceiling, ...]:
        found = []
        if limits.tokens_per_day is not None:
            found.append(self._ceiling(scope, "tokens_per_day", day, limits.tokens_per_day))
        if limits.money_per_day_usd is not None:
            found.append(self._ceiling(scope, "money_per_day_usd", day, nano(limits.money_per_day_usd)))
        if limits.money_per_month_usd is not None:
            found.append(self._ceiling(scope, "money_per_month_usd", month, nano(limits.money_per_month_usd)))
        return tuple(found)

    def _ceiling(self, scope: str, limit: Limit, period: Period, amount: int) -> Ceiling:
        soft = int(amount * Decimal(str(self._config.soft_share)))
        return Ceiling(scope, limit, period, amount, soft, self.calendar.when)


@dataclass(frozen=True, slots=True)
class LimitEvent:
    """A ceiling was reached, for the first time in its period. ``share`` is used / ceiling."""

    scope: str
    limit: Limit
    level: Level
    period: str
    share: float
