"""Opening the database and bringing its tables to this version.

SQLite and PostgreSQL run the same statements. Where the two differ, which is only in the words for a
64-bit number and for a counting key, a statement says ``{int64}`` and ``{key}``.

Two versions of the gateway work on one database while one replaces the other, so a step only ever
*adds*: tables, indexes, columns with a default. ``schema_steps`` lists the steps that were applied.
``schema_version`` holds something else: the *oldest* version whose code can still use the tables.
An older gateway compares only that number with its own and goes on working; one that is too old
refuses to start instead of writing wrong rows.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from hearth_gateway.store import tables

_BUSY_TIMEOUT_MS = 5000
_CONNECT_TIMEOUT_S = 5
# Any number, as long as it stays the same: replicas that start together migrate one after the other.
_MIGRATION_LOCK = 0x48656172
# PostgreSQL's names for what only the other transaction is to blame for: serialization_failure, deadlock_detected.
_CONFLICTS = ("40001", "40P01")


class DatabaseError(Exception):
    """Why the database cannot be used, as a sentence for the operator."""


class BusyError(sa.exc.DBAPIError):
    """Another connection writes to SQLite's file at the moment."""


class ConflictError(sa.exc.DBAPIError):
    """Two transactions waited for each other, and PostgreSQL took this one back: nothing of it is done, and it may be tried again."""


class ValueFaultError(sa.exc.DBAPIError):
    """The database works, and cannot hold one of the values it was given."""


def open_database(url: str, password: str | None = None, create: bool = True) -> sa.Engine:
    """Open, check that it can be written, migrate. ``password`` is PostgreSQL's. Raises ``DatabaseError``, also where
    SQLite's file is not there and ``create`` is false."""
    where = sa.make_url(url)
    if not create and where.get_backend_name() == "sqlite" and not os.path.exists(str(where.database)):
        raise DatabaseError(f"there is no database {_name(where)} yet; the service makes it when it starts, and so does `person set`")
    engine = _sqlite(where) if where.get_backend_name() == "sqlite" else _postgresql(where, password)
    try:
        migrate(engine, MIGRATIONS)
    except sa.exc.DBAPIError as error:
        engine.dispose()
        raise DatabaseError(f"the database {_name(where)} cannot be used: {reason(error)}") from None
    except DatabaseError:
        engine.dispose()
        raise
    return engine


def _name(where: sa.URL) -> str:
    """For people: a file, or host and database. Never the password, which is in no part of this."""
    if where.get_backend_name() == "sqlite":
        return str(where.database)
    host = where.host or where.query.get("host") or "of this machine"
    return f"{where.database} on {host}"


def reason(error: sa.exc.SQLAlchemyError) -> str:
    """The database's own short words; SQLAlchemy's text would add the statement and its parameters."""
    if not isinstance(error, sa.exc.DBAPIError):
        return type(error).__name__
    lines = str(error.orig).splitlines()
    return lines[0] if lines else type(error.orig).__name__


def file_of(engine: sa.Engine) -> tuple[int, int] | None:
    """Which file (device and number) the path of SQLite's database names now. None if it names none, and for PostgreSQL."""
    if is_postgresql(engine):
        return None
    try:
        found = os.stat(str(engine.url.database))
    except OSError:
        return None
    return found.st_dev, found.st_ino


def is_postgresql(database: sa.Engine | sa.Connection | DriverConnection) -> bool:
    return database.dialect.name == "postgresql"


def lock_until_commit(connection: sa.Connection, lock: int) -> None:
    """Wait for who else holds the lock of this number. SQLite has one writer anyway."""
    if is_postgresql(connection):
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(lock)))


class DriverConnection:
    """A connection of the driver's own, and transactions on it, for what runs with every request.

    SQLAlchemy's bookkeeping for a transaction costs several times what SQLite needs for its statements.
    Every method raises ``SQLAlchemyError``, as a ``Connection`` does; ``ValueFaultError`` where a parameter is at
    fault, ``ConflictError`` where another transaction is. For one thread at a time. On SQLite, ``begin`` does not
    wait for who else is writing, but raises ``BusyError``.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self.dialect = engine.dialect
        dbapi = engine.dialect.loaded_dbapi
        self._fault = dbapi.Error
        self._value_faults = (dbapi.DataError, dbapi.IntegrityError)
        self._is_sqlite = not is_postgresql(engine)
        try:
            self._pooled = engine.raw_connection()
        except self._fault as error:
            raise sa.exc.DBAPIError("connect", None, error) from None
        self._cursor: Any = self._pooled.cursor()
        if self._is_sqlite:
            self.exec_driver_sql("PRAGMA busy_timeout = 0")

    def begin(self) -> None:
        """PostgreSQL's driver begins by itself, with the first statement."""
        if not self._is_sqlite:
            return
        try:
            self._cursor.execute(_BEGIN_WRITING)
        except self._fault as error:
            busy = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
            raise (BusyError if busy else sa.exc.DBAPIError)(_BEGIN_WRITING, None, error) from None

    def exec_driver_sql(self, statement: str, parameters: tuple[Any, ...] | list[tuple[Any, ...]] = ()) -> Any:
        """A cursor, good until the next statement. A list of parameters runs the statement once for each."""
        try:
            if isinstance(parameters, list):
                self._cursor.executemany(statement, parameters)
            else:
                self._cursor.execute(statement, parameters)
        except self._fault as error:
            wrapper = ValueFaultError if isinstance(error, self._value_faults) else _wrapper_of(error)
            raise wrapper(statement, None, error) from None
        except (OverflowError, ValueError, TypeError) as error:
            # A number of more than 64 bits, half a character: the drivers say so in Python's own words.
            raise ValueFaultError(statement, None, error) from None
        return self._cursor

    def commit(self) -> None:
        if self._is_sqlite:
            self.exec_driver_sql("COMMIT")  # the driver's own method parses the word anew each time
        else:
            self._end(self._pooled.commit)

    def rollback(self) -> None:
        self._end(self._pooled.rollback)

    def close(self) -> None:
        """Not back into the pool: it may be broken, or changed in a way that the next user does not expect."""
        if self._is_sqlite:
            # SQLite keeps a connection, and its lock, for as long as somebody has a statement of it: an
            # exception, say, whose traceback is being looked at.
            with contextlib.suppress(self._fault):
                self._cursor.close()
                self._pooled.rollback()
        self._pooled.invalidate()

    def _end(self, how: Callable[[], None]) -> None:
        try:
            how()
        except self._fault as error:
            raise _wrapper_of(error)(how.__name__, None, error) from None


def _wrapper_of(error: Exception) -> type[sa.exc.DBAPIError]:
    return ConflictError if getattr(error, "sqlstate", None) in _CONFLICTS else sa.exc.DBAPIError


# --- SQLite ------------------------------------------------------------------------------------


def _sqlite(where: sa.URL) -> sa.Engine:
    engine = sa.create_engine(where)
    event.listen(engine, "connect", _set_pragmas)
    event.listen(engine, "begin", _begin)
    return engine


def _set_pragmas(connection: sqlite3.Connection, _record: Any) -> None:
    # The driver's own idea of when to begin a transaction leaves DDL outside of it; `_begin` does it.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        f"busy_timeout = {_BUSY_TIMEOUT_MS}",
        "journal_mode = WAL",  # readers and the writer do not wait for each other
        "synchronous = FULL",  # the ledger relaxes it where a power cut may lose a row (store/ledger.py)
        "foreign_keys = ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


# IMMEDIATE: a transaction that starts reading and then writes can fail with "database is locked" at
# once, busy timeout or not.
_BEGIN_WRITING = "BEGIN IMMEDIATE"


def _begin(connection: sa.Connection) -> None:
    # A transaction that says that it only reads need not wait for the writer.
    connection.exec_driver_sql("BEGIN" if connection.get_execution_options().get("reads_only") else _BEGIN_WRITING)


# --- PostgreSQL --------------------------------------------------------------------------------


def _postgresql(where: sa.URL, password: str | None) -> sa.Engine:
    if password is not None:
        where = where.set(password=password)
    return sa.create_engine(
        where.set(drivername="postgresql+psycopg"),
        connect_args={
            "connect_timeout": _CONNECT_TIMEOUT_S,
            "application_name": "hearth-gateway",
            # A server that vanished without a word is noticed in seconds and not in two hours.
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 20_000,
        },
        pool_size=5,
        max_overflow=10,
        pool_timeout=5,
        hide_parameters=True,
    )


# --- the steps ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
    """``reader`` is the oldest schema version whose code still works once this step is applied."""

    statements: tuple[str, ...]
    reader: int = 1


_WORDS = {
    "sqlite": {"{key}": "INTEGER PRIMARY KEY NOT NULL", "{int64}": "INTEGER"},
    "postgresql": {"{key}": "BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY", "{int64}": "BIGINT"},
}

# Each step is applied once, in order, and never edited after a release.
MIGRATIONS: Sequence[Step] = (
    Step(
        (
            """CREATE TABLE ledger (
                id {key},
                request_id TEXT NOT NULL,
                leg INTEGER NOT NULL,
                started_at_ms {int64} NOT NULL,
                caller TEXT NOT NULL,
                alias TEXT NOT NULL,
                provider TEXT NOT NULL,
                model TEXT NOT NULL,
                stream BOOLEAN NOT NULL,
                input_tokens INTEGER NOT NULL,
                cache_read_tokens INTEGER NOT NULL,
                cache_write_tokens INTEGER NOT NULL,
                cache_write_1h_tokens INTEGER NOT NULL,
                output_tokens INTEGER NOT NULL,
                outcome TEXT NOT NULL,
                duration_ms INTEGER NOT NULL,
                first_token_ms INTEGER,
                UNIQUE (request_id, leg)
            )""",
            "CREATE INDEX ledger_started_at ON ledger (started_at_ms)",
        )
    ),
    # Money. Rows of version 1 have no cost: they count as unpriced, not as free.
    Step(
        (
            "ALTER TABLE ledger ADD COLUMN person TEXT",
            "ALTER TABLE ledger ADD COLUMN state TEXT NOT NULL DEFAULT 'settled'",
            "ALTER TABLE ledger ADD COLUMN instance TEXT",
            "ALTER TABLE ledger ADD COLUMN images INTEGER NOT NULL DEFAULT 0",
            "ALTER TABLE ledger ADD COLUMN cost_nano {int64}",
            "CREATE INDEX ledger_caller ON ledger (caller, started_at_ms)",
            "CREATE INDEX ledger_person ON ledger (person, started_at_ms) WHERE person IS NOT NULL",
            "CREATE INDEX ledger_open ON ledger (instance) WHERE state = 'intent'",
            """CREATE TABLE spending (
                scope TEXT NOT NULL,
                period TEXT NOT NULL,
                tokens {int64} NOT NULL DEFAULT 0,
                nano {int64} NOT NULL DEFAULT 0,
                held_tokens {int64} NOT NULL DEFAULT 0,
                held_nano {int64} NOT NULL DEFAULT 0,
                reported INTEGER NOT NULL DEFAULT 0,
                PRIMARY KEY (scope, period)
            )""",
            """CREATE TABLE usage_days (
                day TEXT NOT NULL,
                caller TEXT NOT NULL,
                person TEXT NOT NULL,
                alias TEXT NOT NULL,
                provider TEXT NOT NULL,
                model TEXT NOT NULL,
                state TEXT NOT NULL,
                requests {int64} NOT NULL,
                legs {int64} NOT NULL,
                input_tokens {int64} NOT NULL,
                cache_read_tokens {int64} NOT NULL,
                cache_write_tokens {int64} NOT NULL,
                cache_write_1h_tokens {int64} NOT NULL,
                output_tokens {int64} NOT NULL,
                images {int64} NOT NULL,
                cost_nano {int64} NOT NULL,
                unpriced_legs {int64} NOT NULL,
                PRIMARY KEY (day, caller, person, alias, provider, model, state)
            )""",
            """CREATE TABLE instances (
                id TEXT PRIMARY KEY NOT NULL,
                seen_at_ms {int64} NOT NULL
            )""",
        )
    ),
    # People.
    Step(
        (
            """CREATE TABLE people (
                email TEXT PRIMARY KEY NOT NULL,
                state TEXT NOT NULL,
                alias TEXT,
                limits TEXT,
                not_before_ms {int64},
                first_seen_ms {int64} NOT NULL
            )""",
            "CREATE TABLE people_version (version {int64} NOT NULL)",
            "INSERT INTO people_version (version) VALUES (0)",
            "CREATE TABLE settings (name TEXT PRIMARY KEY NOT NULL, value TEXT NOT NULL)",
        )
    ),
)


def migrate(engine: sa.Engine, steps: Sequence[Step]) -> None:
    """Apply the steps the database has not seen yet, all or none. Also proves that it can be written."""
    words = _WORDS[engine.dialect.name]
    with engine.begin() as connection:
        lock_until_commit(connection, _MIGRATION_LOCK)
        connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)")
        connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS schema_steps (step INTEGER PRIMARY KEY NOT NULL)")
        reader = connection.execute(sa.select(sa.func.max(tables.schema_version.c.version))).scalar() or 0
        # A database of version 1 knows no list of steps: there the number is that of the only step.
        applied = connection.execute(sa.select(sa.func.max(tables.schema_steps.c.step))).scalar() or reader
        if reader > len(steps):
            raise DatabaseError(
                f"the database was written by a newer hearth-gateway (its tables need schema {reader}, this one "
                f"knows {len(steps)}); start that version, or restore an older backup"
            )
        for step in steps[applied:]:
            for statement in step.statements:
                for word, meaning in words.items():
                    statement = statement.replace(word, meaning)
                connection.exec_driver_sql(statement)
        reader = max([reader, *(step.reader for step in steps[applied:])])
        # Written at every start, also without a step to apply: a read-only file must be found now
        # and not with the first answer.
        connection.execute(sa.delete(tables.schema_version))
        connection.execute(sa.insert(tables.schema_version).values(version=reader))
        done = max(applied, len(steps))
        connection.execute(sa.delete(tables.schema_steps))
        connection.execute(sa.insert(tables.schema_steps), [{"step": number} for number in range(1, done + 1)])
