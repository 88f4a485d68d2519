"""What the ledger needs done beside the requests: the intents of dead gateways, and sums instead of old rows.

A gateway that dies leaves intents behind: it may have called the vendor or not. They are charged at
what they could cost at most, as `unknown`, which the person sees apart. That needs to know who is
dead. On SQLite every gateway holds a lock on a small file beside the database, and the kernel lets
go of it with the process, so the next start knows at once. On PostgreSQL each says every few seconds
that it is there, by the clock of the database; who was silent for half a minute is dead. If it turns
out to be alive after all, its settlement puts the charge right (store/ledger.py).
"""

# ruff: noqa: S608  (statements are put together from constants of this file; values are parameters)
from __future__ import annotations

import contextlib
import datetime
import fcntl
import glob
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Protocol

import sqlalchemy as sa

from hearth_gateway.clock import Clock
from hearth_gateway.core.limits import Calendar, Key, charges_of
from hearth_gateway.store.database import is_postgresql, lock_until_commit, reason
from hearth_gateway.store.spending import Changes, lock_sums
from hearth_gateway.store.tables import instances, ledger, people, spending

_ROUND_S = 5.0
_DEAD_AFTER_S = 30
_TIDY_S = 3600.0
# One slice of old rows in one transaction: requests wait that long for the writer at most.
_SLICE_S = 3600
# What a limit can ask for: days and months (the length of their keys) that are not older than so many days, and so many
# of the newest, however old they seem. A clock that is ahead for an hour must not have the limits of today start again.
_KEEP_SUMS = ((10, 40, 40), (7, 400, 13))
_TIDY_LOCK = 0x48656173


class Liveness(Protocol):
    def register(self) -> None: ...

    def beat(self) -> None: ...

    def alive(self, instance: str) -> bool: ...

    def bury(self) -> None:
        """Take away what the dead left to say that they lived. Those with open intents come to it by themselves."""

    def leave(self) -> None: ...


class Housekeeper:
    """``start`` does the first round before it returns; a thread does the others until ``stop``.

    ``on_unknown`` is told how many intents of dead gateways were charged, by (provider, model).
    """

    def __init__(
        self,
        engine: sa.Engine,
        clock: Clock,
        calendar: Calendar,
        detail_days: int,
        instance: str,
        on_problem: Callable[[str], None],
        on_unknown: Callable[[str, str, int], None] = lambda _provider, _model, _count: None,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._calendar = calendar
        self._detail_days = detail_days
        self._instance = instance
        self._on_problem = on_problem
        self._on_unknown = on_unknown
        self._liveness: Liveness = _Heartbeat(engine, instance) if is_postgresql(engine) else _LockFile(engine, instance)
        self._next_tidy = 0.0
        self._failing = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)

    def start(self) -> None:
        """Raises ``SQLAlchemyError`` or ``OSError``: who cannot say that it lives must not write intents."""
        self._liveness.register()
        self.recover()
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(10)
        with contextlib.suppress(sa.exc.SQLAlchemyError, OSError):
            self._liveness.leave()

    def _run(self) -> None:
        while not self._stop.wait(_ROUND_S):
            try:
                self._liveness.beat()
                self.recover()
                if self._clock.monotonic() >= self._next_tidy:
                    self.tidy()
                    self._next_tidy = self._clock.monotonic() + _TIDY_S
                self._failing = False
            except (sa.exc.SQLAlchemyError, OSError) as error:
                if not self._failing:
                    self._failing = True
                    why = reason(error) if isinstance(error, sa.exc.SQLAlchemyError) else str(error.strerror)
                    self._on_problem(f"old rows of the ledger cannot be looked after: {why}")

    # --- intents of the dead

    def recover(self) -> int:
        """Charge the intents of dead gateways as unknown; returns how many."""
        with reading(self._engine) as connection:
            open_of = sa.select(ledger.c.instance).where(ledger.c.state == "intent", ledger.c.instance != self._instance).distinct()
            others = [row[0] for row in connection.execute(open_of)]
        return sum(self._charge_unknown(instance) for instance in others if not self._liveness.alive(instance))

    def _charge_unknown(self, instance: str) -> int:
        columns = ledger.c
        still_open = sa.and_(columns.instance == instance, columns.state == "intent")
        counted = (columns.id, columns.caller, columns.person, columns.started_at_ms)
        costs = (columns.input_tokens, columns.output_tokens, columns.cost_nano, columns.provider, columns.model)
        changes = Changes()
        counts: dict[tuple[str, str], int] = {}
        with self._engine.begin() as connection:
            # It may be alive after all, and settle them at this moment: first the sums, then the rows.
            found = connection.execute(sa.select(*counted).where(still_open)).all()
            locked = Changes()
            for row in found:
                locked.add(self._keys(row))
            locked.lock(connection)
            mine = still_open & (columns.id <= max((row.id for row in found), default=0))
            for row in connection.execute(sa.update(ledger).where(mine).values(state="unknown").returning(*counted, *costs)):
                tokens, cost_nano = row.input_tokens + row.output_tokens, row.cost_nano or 0
                changes.add(self._keys(row), tokens, cost_nano, -tokens, -cost_nano)
                pair = (row.provider, row.model)
                counts[pair] = counts.get(pair, 0) + 1
            changes.apply(connection)
            connection.execute(sa.delete(instances).where(instances.c.id == instance))
        for (provider, model), count in counts.items():
            self._on_unknown(provider, model, count)
        return sum(counts.values())

    def _keys(self, row: Any) -> tuple[Key, ...]:
        begun = row.started_at_ms / 1000
        # A calendar of its own: the shared one remembers today, and this may be yesterday.
        calendar = Calendar(self._calendar.name)
        return charges_of(row.caller, row.person, calendar.day(begun), calendar.month(begun))

    # --- sums instead of old rows

    def tidy(self) -> None:
        """Sum up the days that are old enough, and forget sums that no limit can ask for any more, and the dead."""
        self._liveness.bury()
        today = self._calendar.date(self._clock.time())
        until = self._calendar.start_of(today - datetime.timedelta(days=self._detail_days))
        while (oldest := self._oldest_row(until)) is not None and not self._stop.is_set():
            day = self._calendar.day_of(self._calendar.date(oldest))
            start = day.start
            while start < day.end:
                end = min(start + _SLICE_S, day.end)
                self._sum_up(day.key, start, end)
                start = end
        with self._engine.begin() as connection:
            # A request that came while its person was being forgotten may have brought their sums back.
            somebody = sa.select(sa.literal("person:").concat(people.c.email))
            which = spending.c.scope.like("person:%") & spending.c.scope.not_in(somebody)
            for length, keep_days, keep_newest in _KEEP_SUMS:
                period, mine = spending.c.period, sa.func.length(spending.c.period) == length
                before = (today - datetime.timedelta(days=keep_days)).isoformat()[:length]
                # What lies in the future stays: to a clock that is behind, today does.
                newest = sa.select(period).where(mine).distinct().order_by(period.desc()).limit(keep_newest)
                which |= mine & (period < before) & period.not_in(newest)
            lock_sums(connection, which)
            connection.execute(sa.delete(spending).where(which))

    def _oldest_row(self, until: float) -> float | None:
        with reading(self._engine) as connection:
            closed = (ledger.c.started_at_ms < int(until * 1000)) & (ledger.c.state != "intent")
            found = connection.execute(sa.select(sa.func.min(ledger.c.started_at_ms)).where(closed)).scalar()
        return None if found is None else found / 1000

    def _sum_up(self, day: str, start: float, end: float) -> None:
        """Rows begun in [start, end) become part of the sums of ``day``. Both or neither."""
        slice_ = {"start": int(start * 1000), "until": int(end * 1000)}
        with self._engine.begin() as connection:
            one_at_a_time(connection)
            if is_postgresql(self._engine):
                # In one statement: what ends between two of them would be deleted and in no sum.
                connection.execute(sa.text(_SUM_UP_DELETED), {"day": day, **slice_})
            else:
                connection.execute(sa.text(_SUM_UP), {"day": day, **slice_})
                connection.execute(sa.text(_DELETE), slice_)


_IN_SLICE = "started_at_ms >= :start AND started_at_ms < :until AND state <> 'intent'"
_SUMMED = (
    "requests", "legs", "input_tokens", "cache_read_tokens", "cache_write_tokens", "cache_write_1h_tokens", "output_tokens",
    "images", "cost_nano", "unpriced_legs",
)  # fmt: skip
_ADD_UP = f"""
    INSERT INTO usage_days (day, caller, person, alias, provider, model, state, {", ".join(_SUMMED)})
    SELECT CAST(:day AS TEXT), caller, COALESCE(person, ''), alias, provider, model, state,
        SUM(CASE WHEN leg = 1 THEN 1 ELSE 0 END), COUNT(*), SUM(input_tokens), SUM(cache_read_tokens), SUM(cache_write_tokens),
        SUM(cache_write_1h_tokens), SUM(output_tokens), SUM(images), COALESCE(SUM(cost_nano), 0),
        SUM(CASE WHEN cost_nano IS NULL THEN 1 ELSE 0 END)
    FROM {{rows}}
    GROUP BY caller, COALESCE(person, ''), alias, provider, model, state
    ON CONFLICT (day, caller, person, alias, provider, model, state) DO UPDATE SET
    {", ".join(f"{name} = usage_days.{name} + excluded.{name}" for name in _SUMMED)}
"""
_DELETE = f"DELETE FROM ledger WHERE {_IN_SLICE}"
_SUM_UP = _ADD_UP.format(rows=f"ledger WHERE {_IN_SLICE}")
_SUM_UP_DELETED = f"WITH deleted AS ({_DELETE} RETURNING *) {_ADD_UP.format(rows='deleted')}"


def one_at_a_time(connection: sa.Connection) -> None:
    """For who sums rows of the ledger up, or makes them another person's: until the commit, nobody else does either."""
    lock_until_commit(connection, _TIDY_LOCK)


def reading(engine: sa.Engine) -> contextlib.AbstractContextManager[sa.Connection]:
    """A transaction that only reads, and all of it as of one moment: rows that become sums meanwhile count once.

    On SQLite it does not wait for the writer (see database._begin).
    """
    connection = engine.connect()
    if is_postgresql(engine):
        connection.execution_options(isolation_level="REPEATABLE READ")
    return connection.execution_options(reads_only=True)


# --- who is alive ------------------------------------------------------------------------------


class _LockFile:
    """SQLite: gateways on one file run on one machine. ``<database>-<instance>.alive`` is locked while one lives."""

    def __init__(self, engine: sa.Engine, instance: str) -> None:
        self._base = str(engine.url.database)
        self._instance = instance
        self._file: IO[bytes] | None = None

    def _path(self, instance: str) -> Path:
        return Path(f"{self._base}-{instance}.alive")

    def register(self) -> None:
        path = self._path(self._instance)
        while self._file is None:
            file = path.open("wb")
            fcntl.flock(file, fcntl.LOCK_EX)
            # Before the lock, somebody else may have taken it for the file of a dead one, and away.
            if _is_at(path, file):
                self._file = file
            else:
                file.close()

    def beat(self) -> None:
        """The kernel keeps the lock."""

    def alive(self, instance: str) -> bool:
        path = self._path(instance)
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(path, file):
                    path.unlink()
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def bury(self) -> None:
        base = Path(self._base)
        for path in base.parent.glob(f"{glob.escape(base.name)}-*.alive"):
            instance = path.name[len(base.name) + 1 : -len(".alive")]
            if instance != self._instance:
                with contextlib.suppress(OSError):  # not ours to take away
                    self.alive(instance)

    def leave(self) -> None:
        if self._file is not None:
            self._path(self._instance).unlink(missing_ok=True)
            self._file.close()


def _is_at(path: Path, file: IO[bytes]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


class _Heartbeat:
    """PostgreSQL: a row per gateway, with the database's own time."""

    def __init__(self, engine: sa.Engine, instance: str) -> None:
        self._engine = engine
        self._instance = instance

    def register(self) -> None:
        self.beat()

    def beat(self) -> None:
        statement = (
            f"INSERT INTO instances (id, seen_at_ms) VALUES (:id, {_NOW_MS}) "
            "ON CONFLICT (id) DO UPDATE SET seen_at_ms = excluded.seen_at_ms"
        )
        with self._engine.begin() as connection:
            connection.execute(sa.text(statement), {"id": self._instance})

    def alive(self, instance: str) -> bool:
        statement = f"SELECT count(*) FROM instances WHERE id = :id AND seen_at_ms > {_NOW_MS} - :ms"
        with reading(self._engine) as connection:
            return bool(connection.execute(sa.text(statement), {"id": instance, "ms": _DEAD_AFTER_S * 1000}).scalar())

    def bury(self) -> None:
        # Who has no row is dead, too; and who lives writes a new one with the next beat.
        statement = f"DELETE FROM instances WHERE seen_at_ms < {_NOW_MS} - :ms"
        with self._engine.begin() as connection:
            connection.execute(sa.text(statement), {"ms": _DEAD_AFTER_S * 1000})

    def leave(self) -> None:
        with self._engine.begin() as connection:
            connection.execute(sa.delete(instances).where(instances.c.id == self._instance))


_NOW_MS = "(EXTRACT(EPOCH FROM clock_timestamp()) * 1000)::BIGINT"
