"""The ledger: rows are queued by the requests and written in batches by one thread.

A write per request would cost each answer a disk flush. The price is that a crash loses what was
queued in the last moments; a stop (SIGTERM) drains the queue.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from hearth_gateway.core.metering import Leg
from hearth_gateway.errors import GatewayError, Kind
from hearth_gateway.store.tables import ledger

_BATCH_WAIT_S = 0.05  # collects the rows of requests that end together
_BATCH_ROWS = 500
_RETRY_S = 1.0
# Full disk: this many answers can still be counted while we wait. Then new requests are refused.
_MAX_QUEUED = 5000


class Ledger:
    """``on_problem`` is told once, as a sentence, when writing starts to fail."""

    def __init__(self, engine: sa.Engine, on_problem: Callable[[str], None]) -> None:
        self._engine = engine
        self._on_problem = on_problem
        self._queue: deque[dict[str, Any]] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._retry_now = threading.Event()
        self.failing = False
        self._thread = threading.Thread(target=self._write_loop, name="ledger", daemon=True)
        self._thread.start()

    @property
    def queued(self) -> int:
        return len(self._queue)

    def check(self) -> None:
        """Raises ``GatewayError`` when no more can be queued."""
        if len(self._queue) >= _MAX_QUEUED:
            raise GatewayError(
                Kind.LEDGER_UNAVAILABLE,
                "The gateway cannot write its ledger. The operator has to look at its disk.",
                retry_after_s=30,
            )

    def record(self, leg: Leg) -> None:
        with self._wake:
            self._queue.append(_row(leg))
            self._wake.notify()

    def reachable(self) -> bool:
        """Whether the last write worked and the database answers now."""
        if self.failing:
            return False
        connection = None
        try:
            # A plain cursor: a transaction of the engine begins IMMEDIATE and would wait for the
            # writer. A table is read, because SQLite answers `SELECT 1` without opening its file.
            connection = self._engine.raw_connection()
            connection.cursor().execute("SELECT version FROM schema_version").fetchone()
        except (sa.exc.SQLAlchemyError, sqlite3.Error):
            return False
        finally:
            if connection is not None:
                connection.close()
        return True

    def close(self, timeout_s: float) -> int:
        """Write what is queued; returns how many rows could not be written."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._retry_now.set()
        self._thread.join(timeout_s)
        return len(self._queue)

    def _write_loop(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._queue or self._stopping)
                if not self._queue:
                    return
                stopping = self._stopping
            if not stopping:
                self._retry_now.wait(_BATCH_WAIT_S)
            batch = [self._queue[index] for index in range(min(len(self._queue), _BATCH_ROWS))]
            if self._write(batch):
                for _ in batch:
                    self._queue.popleft()
            elif self._stopping:
                return
            else:
                self._retry_now.wait(_RETRY_S)

    def _write(self, batch: list[dict[str, Any]]) -> bool:
        try:
            with self._engine.begin() as connection:
                connection.execute(sa.insert(ledger), batch)
        except sa.exc.SQLAlchemyError as error:
            if not self.failing:
                self.failing = True
                reason = str(error.orig) if isinstance(error, sa.exc.DBAPIError) else type(error).__name__
                self._on_problem(f"the ledger cannot be written: {reason}")
            return False
        self.failing = False
        return True


def _row(leg: Leg) -> dict[str, Any]:
    return {
        "request_id": leg.request_id,
        "leg": leg.leg,
        "started_at_ms": int(leg.started_at * 1000),
        "caller": leg.caller.name,
        "alias": leg.alias,
        "provider": leg.provider,
        "model": leg.model,
        "stream": leg.stream,
        "input_tokens": leg.usage.input,
        "cache_read_tokens": leg.usage.cache_read,
        "cache_write_tokens": leg.usage.cache_write,
        "cache_write_1h_tokens": leg.usage.cache_write_1h,
        "output_tokens": leg.usage.output,
        "outcome": leg.outcome,
        "duration_ms": int(leg.duration_s * 1000),
        "first_token_ms": None if leg.first_token_s is None else int(leg.first_token_s * 1000),
    }
