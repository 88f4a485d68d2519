"""What a caller has used: by day and model, and what is left of each ceiling. No I/O."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

from hearth_gateway.core.identity import Caller
from hearth_gateway.core.limits import CLOCK_SKEW_S, HOUSE, MINUTE_S, Calendar, Ceiling, Key, LimitBook, Rate, Sums
from hearth_gateway.core.prices import usd

MAX_DAYS = 366


@dataclass(frozen=True, slots=True)
class Counts:
    """What adds up. ``cost_nano`` is the money of priced attempts, ``estimated_nano`` the part of it that is an estimate."""

    requests: int = 0
    attempts: int = 0
    input_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    images: int = 0
    cost_nano: int = 0
    unpriced_attempts: int = 0
    estimated_attempts: int = 0
    estimated_nano: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, name) + getattr(other, name) for name in _COUNTS))

    def as_json(self) -> dict[str, Any]:
        """Money as text, so that no digit is lost on the way."""
        return {
            "requests": self.requests,
            "attempts": self.attempts,
            "input_tokens": self.input_tokens,
            "cache_read_tokens": self.cache_read_tokens,
            "cache_write_tokens": self.cache_write_tokens,
            "output_tokens": self.output_tokens,
            "images": self.images,
            "cost_usd": format(usd(self.cost_nano), "f"),
            "unpriced_attempts": self.unpriced_attempts,
            "estimated_attempts": self.estimated_attempts,
            "estimated_cost_usd": format(usd(self.estimated_nano), "f"),
        }


_COUNTS = tuple(field.name for field in fields(Counts))


@dataclass(frozen=True, slots=True, order=True)
class Line:
    """The use of one model on one day. ``alias`` is what the caller asked for, the others who served."""

    day: str
    alias: str
    provider: str
    model: str


class UsageStore(Protocol):
    def lines(self, caller: Caller, calendar: Calendar, first: datetime.date) -> Iterable[tuple[Line, Counts]]:
        """From ``first`` on; the same line may come more than once. Raises ``GatewayError``."""

    def sums(self, keys: Sequence[Key]) -> Mapping[Key, Sums]:
        """Those there are. Raises ``GatewayError``."""

    def requests_between(self, scope: str, since: float, until: float) -> int:
        """Requests of a scope begun between the two (Unix seconds). Raises ``GatewayError``."""


class UsageReport:
    """Makes the answer of GET /api/usage."""

    def __init__(self, store: UsageStore, limits: LimitBook) -> None:
        self._store = store
        self._limits = limits

    def of(self, caller: Caller, days: int, now: float) -> dict[str, Any]:
        """The last ``days`` days up to ``now`` (Unix seconds), today included."""
        calendar = self._limits.calendar
        today = calendar.date(now)
        first = today - datetime.timedelta(days=days - 1)
        lines: dict[Line, Counts] = {}
        for line, counts in self._store.lines(caller, calendar, first):
            lines[line] = lines.get(line, Counts()) + counts
        return {
            "person": caller.person,
            "program": None if caller.browser else caller.name,
            "currency": "USD",
            "time_zone": calendar.name,
            "from": first.isoformat(),
            "to": today.isoformat(),
            "days": [_line(line, lines[line]) for line in sorted(lines)],
            "total": sum(lines.values(), Counts()).as_json(),
            "limits": self._limits_left(caller, now),
        }

    def _limits_left(self, caller: Caller, now: float) -> list[dict[str, Any]]:
        bounds = self._limits.bounds(caller, now)
        sums = self._store.sums([ceiling.key for ceiling in bounds.ceilings])
        calendar = self._limits.calendar
        minute = (now - MINUTE_S, now + CLOCK_SKEW_S)
        left = [_rate(rate, self._store.requests_between(rate.scope, *minute)) for rate in bounds.rates]
        return left + [_ceiling(ceiling, sums.get(ceiling.key, Sums()), calendar) for ceiling in bounds.ceilings]


def _line(line: Line, counts: Counts) -> dict[str, Any]:
    served = {"date": line.day, "model": line.alias, "provider": line.provider, "served_model": line.model}
    return served | counts.as_json()


def _rate(rate: Rate, used: int) -> dict[str, Any]:
    return {
        "scope": rate.scope.partition(":")[0],
        "limit": "requests_per_minute",
        "ceiling": str(rate.amount),
        "used": str(used),
        "reserved": "0",
        "left": str(max(0, rate.amount - used)),
        "reached": used >= rate.amount,
        "resets_at": None,
    }


def _ceiling(ceiling: Ceiling, sums: Sums, calendar: Calendar) -> dict[str, Any]:
    resets_at = datetime.datetime.fromtimestamp(ceiling.period.end, calendar.zone).isoformat()
    shown = {"scope": ceiling.scope.partition(":")[0], "limit": ceiling.limit, "reached": ceiling.is_used_up(sums), "resets_at": resets_at}
    if ceiling.scope == HOUSE:
        # What all others together have spent is nobody's business; whether it stops oneself is.
        return shown | {"ceiling": None, "used": None, "reserved": None, "left": None}
    used, held = ceiling.used(sums), ceiling.held(sums)

    def text(amount: int) -> str:
        return str(amount) if ceiling.limit == "tokens_per_day" else format(usd(amount), "f")

    left = max(0, ceiling.amount - used - held)
    return shown | {"ceiling": text(ceiling.amount), "used": text(used), "reserved": text(held), "left": text(left)}
