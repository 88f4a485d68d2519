"""Opening the database and bringing its tables to this version."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from hearth_gateway.store import tables

_BUSY_TIMEOUT_MS = 5000


class DatabaseError(Exception):
    """Why the database cannot be used, as a sentence for the operator."""


def open_database(url: str) -> sa.Engine:
    """Open, check that it can be written, migrate. Raises ``DatabaseError``."""
    engine = sa.create_engine(url)
    event.listen(engine, "connect", _set_pragmas)
    event.listen(engine, "begin", _begin)
    try:
        migrate(engine, MIGRATIONS)
    except sa.exc.DBAPIError as error:
        engine.dispose()
        path = sa.make_url(url).database
        raise DatabaseError(f"the database {path} cannot be used: {_reason(error)}") from None
    except DatabaseError:
        engine.dispose()
        raise
    return engine


def _reason(error: sa.exc.DBAPIError) -> str:
    """SQLite's own short words; SQLAlchemy's text would add the statement and its parameters."""
    return str(error.orig)


def _set_pragmas(connection: sqlite3.Connection, _record: Any) -> None:
    # The driver's own idea of when to begin a transaction leaves DDL outside of it; `_begin` does it.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        f"busy_timeout = {_BUSY_TIMEOUT_MS}",
        "journal_mode = WAL",  # readers and the writer do not wait for each other
        "synchronous = NORMAL",  # in WAL mode a power cut may lose the last rows, never the file
        "foreign_keys = ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: sa.Connection) -> None:
    # IMMEDIATE: a transaction that starts reading and then writes can fail with "database is locked"
    # at once, busy timeout or not.
    connection.exec_driver_sql("BEGIN IMMEDIATE")


# Each step is applied once, in order, and never edited after a release.
MIGRATIONS: Sequence[Sequence[str]] = (
    (
        """CREATE TABLE ledger (
            id INTEGER PRIMARY KEY NOT NULL,
            request_id TEXT NOT NULL,
            leg INTEGER NOT NULL,
            started_at_ms INTEGER NOT NULL,
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
    ),
)


def migrate(engine: sa.Engine, steps: Sequence[Sequence[str]]) -> None:
    """Apply the steps the database has not seen yet, all or none. Also proves that it can be written."""
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)")
        version = connection.execute(sa.select(sa.func.max(tables.schema_version.c.version))).scalar()
        if version is not None and version > len(steps):
            raise DatabaseError(
                f"the database was written by a newer hearth-gateway (its schema is {version}, this one "
                f"knows {len(steps)}); start that version, or restore an older backup"
            )
        for statements in steps[version or 0 :]:
            for statement in statements:
                connection.exec_driver_sql(statement)
        # Written at every start, also without a step to apply: a read-only file must be found now
        # and not with the first answer.
        connection.execute(sa.delete(tables.schema_version))
        connection.execute(sa.insert(tables.schema_version).values(version=len(steps)))
