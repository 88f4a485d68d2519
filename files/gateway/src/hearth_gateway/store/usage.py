"""Reading what was used: rows that are still there, and the sums that older ones became."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from hearth_gateway.core.identity import Caller
from hearth_gateway.core.limits import Calendar, Key, Sums
from hearth_gateway.core.usage import Counts, Line
from hearth_gateway.errors import GatewayError, Kind
from hearth_gateway.store.housekeeping import reading
from hearth_gateway.store.tables import ledger, spending, usage_days

# Every time zone of today is a multiple of this away from UTC, so rows can be added up by it in the
# database and sorted into days here.
_QUARTER_MS = 15 * 60 * 1000


class SqlUsage:
    """The ``UsageStore`` of a database."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def lines(self, caller: Caller, calendar: Calendar, first: datetime.date) -> Iterable[tuple[Line, Counts]]:
        with self._reading() as connection:
            rows = connection.execute(_recent(caller, int(calendar.start_of(first) * 1000))).mappings().all()
            older = connection.execute(_older(caller, first.isoformat())).mappings().all()
        for row in rows:
            day = calendar.date(row["quarter"] * _QUARTER_MS / 1000).isoformat()
            yield Line(day, row["alias"], row["provider"], row["model"]), _counts(row)
        for row in older:
            yield Line(row["day"], row["alias"], row["provider"], row["model"]), _counts(row)

    def sums(self, keys: Sequence[Key]) -> Mapping[Key, Sums]:
        if not keys:
            return {}
        columns = spending.c
        amounts = (columns.tokens, columns.nano, columns.held_tokens, columns.held_nano)
        wanted = sa.or_(*(sa.and_(columns.scope == scope, columns.period == period) for scope, period in keys))
        with self._reading() as connection:
            rows = connection.execute(sa.select(columns.scope, columns.period, *amounts).where(wanted)).all()
        return {(row[0], row[1]): Sums(*row[2:]) for row in rows}

    def requests_between(self, scope: str, since: float, until: float) -> int:
        kind, _, name = scope.partition(":")
        mine = ledger.c.person == name if kind == "person" else ledger.c.caller == name
        begun = ledger.c.started_at_ms
        recent = (begun > int(since * 1000)) & (begun < int(until * 1000)) & (ledger.c.leg == 1)
        with self._reading() as connection:
            return int(connection.execute(sa.select(sa.func.count()).where(mine, recent)).scalar_one())

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        try:
            with reading(self._engine) as connection:
                yield connection
        except sa.exc.SQLAlchemyError:
            message = "The gateway cannot read its ledger. The operator has to look at its disk or database."
            raise GatewayError(Kind.LEDGER_UNAVAILABLE, message, retry_after_s=30) from None


def _recent(caller: Caller, since_ms: int) -> sa.Select[Any]:
    columns = ledger.c
    mine = columns.person == caller.person if caller.person is not None else columns.caller == caller.name
    quarter: sa.ColumnElement[int] = sa.literal_column(f"started_at_ms / {_QUARTER_MS}")
    unpriced = sa.case((columns.cost_nano.is_(None), 1), else_=0)
    served = (columns.alias, columns.provider, columns.model, columns.state)
    return (
        sa.select(
            quarter.label("quarter"),
            *served,
            sa.func.sum(sa.case((columns.leg == 1, 1), else_=0)).label("requests"),
            sa.func.count().label("legs"),
            *(sa.func.sum(columns[name]).label(name) for name in _TOKENS),
            sa.func.coalesce(sa.func.sum(columns.cost_nano), 0).label("cost_nano"),
            sa.func.sum(unpriced).label("unpriced_legs"),
        )
        .where(mine, columns.started_at_ms >= since_ms, columns.state != "intent")
        .group_by(quarter, *served)
    )


def _older(caller: Caller, first_day: str) -> sa.Select[Any]:
    columns = usage_days.c
    mine = columns.person == caller.person if caller.person is not None else columns.caller == caller.name
    return sa.select(usage_days).where(mine, columns.day >= first_day)


_TOKENS = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "images")


def _counts(row: Any) -> Counts:
    # PostgreSQL adds whole numbers up to a decimal.
    cost_nano, legs = int(row["cost_nano"]), int(row["legs"])
    estimated = row["state"] != "settled"
    return Counts(
        requests=int(row["requests"]),
        attempts=legs,
        cost_nano=cost_nano,
        unpriced_attempts=int(row["unpriced_legs"]),
        estimated_attempts=legs if estimated else 0,
        estimated_nano=cost_nano if estimated else 0,
        **{name: int(row[name]) for name in _TOKENS},
    )
