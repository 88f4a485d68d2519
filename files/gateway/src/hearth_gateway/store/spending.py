"""The sums that limits are checked against: changed together with the ledger, in the same transaction.

Every transaction locks the rows of sums that it will change before any row of the ledger, in the order of scope and
period; then those of the ledger, then those of `usage_days`, then people. Else two of them could wait for each other, and
PostgreSQL would take one back.
"""

# ruff: noqa: S608  (statements are put together from constants of this file; values are parameters)
from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import sqlalchemy as sa

from hearth_gateway.core.limits import Key, Sums
from hearth_gateway.store.database import DriverConnection, is_postgresql
from hearth_gateway.store.tables import spending


def driver_text(statement: str, postgresql: bool) -> str:
    """A statement written with ``?``, in the words of the driver.

    Text and not expressions where it runs for every request: compiling one would cost more than running it.
    """
    return statement.replace("?", "%s") if postgresql else statement


def lock_sums(connection: sa.Connection, which: sa.ColumnElement[bool]) -> None:
    """Until the commit nobody else changes these rows, nor settles what counts for them. SQLite has one writer anyway."""
    if is_postgresql(connection):
        # Sorted as Python does it, whatever the language of the database.
        order = (sa.collate(spending.c.scope, "C"), sa.collate(spending.c.period, "C"))
        connection.execute(sa.select(spending.c.scope).where(which).order_by(*order).with_for_update()).all()


class Changes:
    """Differences to rows of `spending`, added up so that each row is written once."""

    def __init__(self) -> None:
        self._rows: dict[Key, list[int]] = {}  # the fields of ``Sums``, in their order

    def add(self, keys: Iterable[Key], tokens: int = 0, cost_nano: int = 0, held_tokens: int = 0, held_nano: int = 0) -> None:
        """To each of ``keys``. Negative numbers give back."""
        for key in keys:
            row = self._rows.get(key)
            if row is None:
                self._rows[key] = [tokens, cost_nano, held_tokens, held_nano]
            else:
                row[0] += tokens
                row[1] += cost_nano
                row[2] += held_tokens
                row[3] += held_nano

    def lock(self, connection: sa.Connection | DriverConnection) -> None:
        """The rows that there are already, as ``apply`` would do it: before rows of the ledger are locked."""
        if not self._rows or not is_postgresql(connection):
            return
        connection.exec_driver_sql(_lock_rows(len(self._rows)), tuple(word for key in self._rows for word in key)).fetchall()

    def apply(self, connection: sa.Connection | DriverConnection) -> tuple[dict[Key, Sums], dict[Key, int]]:
        """Write them, and lock their rows until the commit. Returns the sums after, and which limits were reported."""
        if not self._rows:
            return {}, {}
        values: list[str | int] = []
        # In one order everywhere, or two replicas could wait for each other for ever.
        for key in sorted(self._rows):
            values += key
            values += self._rows[key]
        statement = _add_rows(len(self._rows), is_postgresql(connection))
        rows = connection.exec_driver_sql(statement, tuple(values)).fetchall()
        return {(row[0], row[1]): Sums(*row[2:6]) for row in rows}, {(row[0], row[1]): row[6] for row in rows}


@cache
def _lock_rows(rows: int) -> str:
    keys = ", ".join(["(%s, %s)"] * rows)
    return f'SELECT 1 FROM spending WHERE (scope, period) IN ({keys}) ORDER BY scope COLLATE "C", period COLLATE "C" FOR UPDATE'


@cache
def _add_rows(rows: int, postgresql: bool) -> str:
    return driver_text(
        "INSERT INTO spending (scope, period, tokens, nano, held_tokens, held_nano) VALUES "
        + ", ".join(["(?, ?, ?, ?, ?, ?)"] * rows)
        + " ON CONFLICT (scope, period) DO UPDATE SET tokens = spending.tokens + excluded.tokens, "
        "nano = spending.nano + excluded.nano, held_tokens = spending.held_tokens + excluded.held_tokens, "
        "held_nano = spending.held_nano + excluded.held_nano "
        "RETURNING scope, period, tokens, nano, held_tokens, held_nano, reported",
        postgresql,
    )
