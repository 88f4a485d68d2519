"""People and the few values that a house keeps for itself, in the tables of migration 3."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError

from hearth_gateway.config import LimitsConfig
from hearth_gateway.core.people import PeopleUnavailableError, Person
from hearth_gateway.store.database import is_postgresql, reason
from hearth_gateway.store.housekeeping import one_at_a_time
from hearth_gateway.store.spending import Changes, lock_sums
from hearth_gateway.store.tables import ledger, people, people_version, settings, spending, usage_days

_ACTIVE, _DISABLED = "active", "disabled"
_PSEUDONYM_KEY = "pseudonym_key"


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What ``SqlPeople.forget`` did: whether there was a record, how many rows lost their person, and
    whether the bare address was kept because the person is disabled."""

    known: bool
    ledger_rows: int
    daily_sums: int
    kept_disabled: bool


@dataclass(frozen=True, slots=True)
class Renamed:
    """What ``SqlPeople.rename`` moved. ``open_rows`` stay with the former address: their answers were still being written."""

    person: Person
    changed: bool
    ledger_rows: int
    daily_sums: int
    open_rows: int


class SqlPeople:
    """The ``PeopleStore`` of a database. Every method raises ``PeopleUnavailableError``."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def version(self) -> int:
        with self._reported():
            # A plain cursor: a transaction of the engine takes SQLite's write lock, once a second for nothing.
            connection = self._engine.raw_connection()
            try:
                cursor = connection.cursor()
                cursor.execute("SELECT version FROM people_version")
                row = cursor.fetchone()
                cursor.close()
            finally:
                connection.close()
        return int(row[0]) if row else 0

    def load(self) -> tuple[int, list[Person]]:
        with self._reported(), self._engine.begin() as connection:
            version = connection.execute(sa.select(people_version.c.version)).scalar_one()
            rows = connection.execute(sa.select(people).order_by(people.c.email)).mappings().all()
        return version, [_person(row) for row in rows]

    def create(self, email: str, first_seen: float) -> Person:
        with self._reported(), self._engine.begin() as connection:
            # Another process may add the same person at the same moment; both databases know this clause.
            statement = sa.text(
                "INSERT INTO people (email, state, first_seen_ms) VALUES (:email, :state, :first_seen_ms) ON CONFLICT DO NOTHING"
            )
            values = {"email": email, "state": _ACTIVE, "first_seen_ms": int(first_seen * 1000)}
            if connection.execute(statement, values).rowcount > 0:
                _count(connection)
            return _person(connection.execute(sa.select(people).where(people.c.email == email)).mappings().one())

    def get(self, email: str) -> Person | None:
        with self._reported(), self._engine.begin() as connection:
            return _get(connection, email)

    def put(self, person: Person) -> None:
        """Add the person, or replace what is known of them."""
        with self._reported(), self._engine.begin() as connection:
            _put(connection, person)
            _count(connection)

    def forget(self, email: str) -> Forgotten:
        """Cut every connection between what is stored and this person, all or nothing.

        What they used stays as nobody's, so that the sums of the house stay right. Who is disabled stays
        known by address alone: without a record they would be let in as somebody new.
        """
        sums = spending.c.scope == f"person:{email}"
        with self._reported(), self._overwriting(), self._engine.begin() as connection:
            one_at_a_time(connection)
            lock_sums(connection, sums)
            rows = connection.execute(sa.update(ledger).where(ledger.c.person == email).values(person=None)).rowcount
            days = _move_days(connection, email, "")
            connection.execute(sa.delete(spending).where(sums))
            # Who is disabled at this moment must not be lost.
            person = _get(connection, email, locked=True)
            connection.execute(sa.delete(people).where(people.c.email == email))
            if person is not None:
                if not person.active:
                    _put(connection, Person(email, person.first_seen, active=False))
                _count(connection)
        return Forgotten(person is not None, rows, days, person is not None and not person.active)

    def rename(self, old: str, new: str) -> Renamed:
        """Make what is stored of ``old`` that of ``new``, all or nothing: alias, limits, and everything used so far, which
        counts against the limits of today and this month.

        ``new`` is active then. What it had of its own wins or is added up. ``old`` stays known as disabled, else it would be
        let in as somebody new. Run again, it moves what was still open the first time.
        """
        with self._reported(), self._engine.begin() as connection:
            one_at_a_time(connection)
            lock_sums(connection, spending.c.scope.in_([f"person:{old}", f"person:{new}"]))
            before, there = _get(connection, old), _get(connection, new)
            mine, is_open = ledger.c.person == old, ledger.c.state == "intent"
            rows = connection.execute(sa.update(ledger).where(mine, ~is_open).values(person=new)).rowcount
            left = connection.execute(sa.select(sa.func.count()).select_from(ledger).where(mine, is_open)).scalar_one()
            days = _move_days(connection, old, new)
            moved = _move_sums(connection, old, new)
            person = _successor(before, there, new)
            former = Person(old, before.first_seen if before else person.first_seen, active=False)
            wanted = [now for now, found in ((person, there), (former, before)) if now != found]
            for item in wanted:
                _put(connection, item)
            if wanted:
                _count(connection)
        changed = bool(rows or days or moved) or (person, former) != (there, before)
        return Renamed(person, changed, rows, days, int(left))

    @contextmanager
    def _overwriting(self) -> Iterator[None]:
        """SQLite leaves deleted bytes in its file and in the write-ahead log until something needs the space.

        Here they are zeroed, and the log is folded into the file. PostgreSQL's VACUUM does the like in its own time.
        """
        if is_postgresql(self._engine):
            yield
            return

        def zero(connection: sqlite3.Connection, _record: object, _proxy: object) -> None:
            connection.execute("PRAGMA secure_delete = ON").close()

        sa.event.listen(self._engine, "checkout", zero)
        try:
            yield
        finally:
            sa.event.remove(self._engine, "checkout", zero)
        connection = self._engine.raw_connection()
        try:
            busy = connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        finally:
            connection.close()
        if busy:
            raise PeopleUnavailableError(
                "the person is forgotten, but the address is still in the database's files, because somebody else, such as a backup, "
                "is reading them; run this again when that has ended"
            )

    def pseudonym_key(self) -> bytes:
        """The key of this house: made at the first call, and the same ever after."""
        with self._reported(), self._engine.begin() as connection:
            query = sa.select(settings.c.value).where(settings.c.name == _PSEUDONYM_KEY)
            value = connection.execute(query).scalar()
            if value is None:
                # Replicas that start together: one of them makes it, and all of them read it.
                statement = sa.text("INSERT INTO settings (name, value) VALUES (:name, :value) ON CONFLICT DO NOTHING")
                connection.execute(statement, {"name": _PSEUDONYM_KEY, "value": secrets.token_hex(32)})
                value = connection.execute(query).scalar_one()
            return str(value).encode()

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.SQLAlchemyError as error:
            words = reason(error)
        except self._engine.dialect.loaded_dbapi.Error as error:  # from the plain cursor
            words = type(error).__name__
        else:
            return
        raise PeopleUnavailableError(f"the table of people cannot be used: {words}") from None


def _move_days(connection: sa.Connection, old: str, new: str) -> int:
    """Make the daily sums of one person another's, or nobody's (""): added to what that one has. Returns how many."""
    days = connection.execute(sa.select(usage_days).where(usage_days.c.person == old)).mappings().all()
    for day in days:
        _move_day(connection, day, new)
    return len(days)


def _move_day(connection: sa.Connection, day: Any, new: str) -> None:
    def row_of(person: str) -> sa.ColumnElement[bool]:
        key = {column.name: day[column.name] for column in usage_days.primary_key} | {"person": person}
        return sa.and_(*(usage_days.c[name] == value for name, value in key.items()))

    sums = [column for column in usage_days.c if not column.primary_key]
    added = connection.execute(sa.update(usage_days).where(row_of(new)).values({column: column + day[column.name] for column in sums}))
    if added.rowcount:
        connection.execute(sa.delete(usage_days).where(row_of(day["person"])))
    else:
        connection.execute(sa.update(usage_days).where(row_of(day["person"])).values(person=new))


def _move_sums(connection: sa.Connection, old: str, new: str) -> int:
    """What limits are checked against. What is held for an open answer stays: its settlement gives it back where it took it."""
    columns = spending.c
    mine = columns.scope == f"person:{old}"
    rows = connection.execute(sa.select(spending).where(mine, sa.or_(columns.tokens != 0, columns.nano != 0))).mappings().all()
    changes = Changes()
    for row in rows:
        changes.add([(f"person:{old}", row["period"])], -row["tokens"], -row["nano"])
        changes.add([(f"person:{new}", row["period"])], row["tokens"], row["nano"])
    changes.apply(connection)
    for row in rows:
        # A limit that was told as reached is not told again.
        theirs = (columns.scope == f"person:{new}") & (columns.period == row["period"])
        connection.execute(sa.update(spending).where(theirs).values(reported=columns.reported.op("|")(row["reported"])))
    nothing = (column == 0 for column in (columns.tokens, columns.nano, columns.held_tokens, columns.held_nano))
    connection.execute(sa.delete(spending).where(mine, *nothing))
    return len(rows)


def _successor(before: Person | None, there: Person | None, email: str) -> Person:
    """The person under the new address. ``there``: what it is already."""
    known = [person for person in (there, before) if person is not None]
    return Person(
        email,
        min((person.first_seen for person in known), default=0.0),
        alias=next((person.alias for person in known if person.alias), None),
        limits=next((person.limits for person in known if person.limits is not None), None),
        not_before=max((person.not_before for person in known if person.not_before is not None), default=None),
    )


def _get(connection: sa.Connection, email: str, locked: bool = False) -> Person | None:
    query = sa.select(people).where(people.c.email == email)
    row = connection.execute(query.with_for_update() if locked else query).mappings().first()
    return _person(row) if row is not None else None


def _put(connection: sa.Connection, person: Person) -> None:
    values = {
        "state": _ACTIVE if person.active else _DISABLED,
        "alias": person.alias,
        "limits": None if person.limits is None else person.limits.model_dump_json(exclude_none=True),
        "not_before_ms": None if person.not_before is None else int(person.not_before * 1000),
        "first_seen_ms": int(person.first_seen * 1000),
    }
    changed = connection.execute(sa.update(people).where(people.c.email == person.email).values(**values))
    if changed.rowcount == 0:
        connection.execute(sa.insert(people).values(email=person.email, **values))


def _count(connection: sa.Connection) -> None:
    """Comes last: until the commit nobody else can change any person."""
    connection.execute(sa.update(people_version).values(version=people_version.c.version + 1))


def _person(row: Any) -> Person:
    active = row["state"] == _ACTIVE  # anything but the word itself keeps the person out
    try:
        limits = None if row["limits"] is None else LimitsConfig.model_validate_json(row["limits"])
    except ValidationError:
        # Written by a newer version or by hand. Nobody may spend without the ceiling somebody gave them.
        limits, active = None, False
    return Person(
        email=row["email"],
        first_seen=row["first_seen_ms"] / 1000,
        active=active,
        alias=row["alias"],
        limits=limits,
        not_before=None if row["not_before_ms"] is None else row["not_before_ms"] / 1000,
    )
