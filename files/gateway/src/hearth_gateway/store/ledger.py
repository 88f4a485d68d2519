"""The ledger: intents before, settlements after, and the sums that limits are checked against.

One thread at a time writes, in a transaction that holds all that waits at that moment. On SQLite it is the
thread of the request itself that comes when nobody is writing: it writes for all, and of those that came
meanwhile the first writes next. So no thread has to be woken for a request that comes alone, and a hundred that
come together share one flush. A thread of the ledger's own writes what can wait, and whatever may take time:
all on PostgreSQL, and on SQLite what finds the database busy.

An intent is answered when its transaction is on disk; a settlement is not waited for and rides with the next
intents, or goes alone after a moment.

The order within a transaction is what makes a limit exact. The sums of the scopes are raised first,
by settlements and by all that new intents want to reserve; that also locks their rows, so another
replica waits. Then the intents are looked at one by one, against the sums as they were before each;
those that find a ceiling full are taken out again and refused.

One row that cannot be written must not stop the others. Where the database works and refuses a value, the batch is
written item by item: an intent of that kind is refused, a settlement is charged at what was reserved for it.
"""

# ruff: noqa: S608  (statements are put together from constants of this file; values are parameters)
from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa

from hearth_gateway.core.limits import CLOCK_SKEW_S, MINUTE_S, Ceiling, Key, Level, LimitEvent, Rate, Sums, reported_bit
from hearth_gateway.core.metering import Intent, Settlement
from hearth_gateway.errors import GatewayError, Kind
from hearth_gateway.records import record
from hearth_gateway.store.database import BusyError, ConflictError, DriverConnection, ValueFaultError, file_of, is_postgresql, reason
from hearth_gateway.store.spending import Changes, driver_text
from hearth_gateway.translate.events import Usage

# Settlements without an intent to ride with are written after this time.
_SETTLE_WAIT_S = 0.05
_BATCH = 500
_RETRY_S = 1.0
# While somebody else writes to SQLite's file, it is asked again for so long, with such pauses.
_BUSY_S = 5.0
_BUSY_PAUSE_S = 0.002
# The database is busy or away: this long a request waits for its intent before it is refused.
_INTENT_WAIT_S = 10.0
# PostgreSQL finds out within a second that two wait for each other, and takes one back, which is then tried again.
_CONFLICT_TRIES = 5
# Nobody sends as many requests a minute: such a limit is none, and need not fit into the database.
_MAX_RATE = 1_000_000
# Full disk: this many answers can still be counted while we wait. Then new requests are refused.
_MAX_QUEUED = 5000


def _unavailable() -> GatewayError:
    return GatewayError(
        Kind.LEDGER_UNAVAILABLE,
        "The gateway cannot write its ledger. The operator has to look at its disk or database.",
        retry_after_s=30,
    )


def _unwritable() -> GatewayError:
    return GatewayError(
        Kind.INTERNAL,
        "The gateway cannot write this request into its ledger. The operator finds the reason in its log.",
    )


class _Bell:
    """One waits, any ring. A ring before the wait is kept, more than one count as one.

    A lock and not an ``Event``, which makes two of them for every wait.
    """

    __slots__ = ("_silent",)

    def __init__(self) -> None:
        self._silent = threading.Lock()
        self._silent.acquire()

    def ring(self) -> None:
        with contextlib.suppress(RuntimeError):  # rung already
            self._silent.release()

    def wait(self, timeout_s: float = -1) -> bool:
        """False when nobody has rung; -1 waits for ever."""
        return self._silent.acquire(timeout=timeout_s)


@dataclass(slots=True, eq=False)
class _Begin:
    """An intent that somebody waits for. Once it is ``answered``, it is on disk if ``error`` is None.

    ``bell`` rings when it is answered, or when it is this one's turn to write.
    """

    intent: Intent
    error: GatewayError | None = None
    answered: bool = False
    bell: _Bell = field(default_factory=_Bell)

    def answer(self) -> None:
        self.answered = True
        self.bell.ring()


@dataclass(slots=True, eq=False)
class _Settle:
    """``settlement`` None takes an intent back whose fate is not known: nothing was called, nothing is owed."""

    intent: Intent
    settlement: Settlement | None


class Ledger:
    """The ``Books`` in a database. Safe to use from many threads.

    ``on_problem`` is told, as a sentence, once when writing starts to fail, and of each row that cannot be
    written; ``on_limit`` of each ceiling that is reached; ``on_sums`` of what is used of a ceiling, each time
    it changes.
    """

    def __init__(
        self,
        engine: sa.Engine,
        on_problem: Callable[[str], None],
        on_limit: Callable[[LimitEvent], None] = lambda _event: None,
        on_sums: Callable[[Ceiling, Sums], None] = lambda _ceiling, _sums: None,
    ) -> None:
        self.instance = secrets.token_hex(8)
        self._writer = _Writer(engine, self.instance, on_limit, on_sums, on_problem)
        self._engine = engine
        self._file = file_of(engine)
        self.misplaced = False
        self._on_problem = on_problem
        # Any thread appends; who holds `_writing` takes away, from the left, what is written.
        self._queue: deque[_Begin | _Settle] = deque()
        # Never waited for by a thread of a request: an answer that nobody closed is settled by the garbage
        # collector, also in a thread that is writing.
        self._writing = threading.Lock()
        # A request that waits for its intent may be refused in the end, one that writes cannot. SQLite says at
        # once that it is busy; what PostgreSQL waits for, nobody knows.
        self._requests_write = not is_postgresql(engine)
        # Of the ledger's own thread.
        self._bell = _Bell()
        self._asleep = False
        self._batches = 0
        self._stopping = False
        self._retry_now = threading.Event()
        self.failing = False
        self._thread = threading.Thread(target=self._write_loop, name="ledger", daemon=True)
        self._thread.start()

    @property
    def queued(self) -> int:
        return len(self._queue)

    @property
    def alive(self) -> bool:
        """Whether settlements will be written. If not, only a new process helps."""
        return self._stopping or self._thread.is_alive()

    def check(self) -> None:
        if len(self._queue) >= _MAX_QUEUED or not self._in_place():
            raise _unavailable()

    def begin(self, intent: Intent) -> None:
        waiting = _Begin(intent)
        self._queue.append(waiting)
        while not waiting.answered:
            if self._requests_write and not self._stopping and self._writing.acquire(blocking=False):
                if self._write_for_all():
                    continue  # a batch is written; mine was in it, unless very many wait
            elif not self._requests_write:
                self._bell.ring()
            if not waiting.bell.wait(_INTENT_WAIT_S):
                # It may still be written, or be on its way: whatever becomes of it is taken back.
                self._settle(_Settle(intent, None))
                raise _unavailable()
        if waiting.error is not None:
            raise waiting.error

    def settle(self, intent: Intent, settlement: Settlement) -> None:
        self._settle(_Settle(intent, settlement))

    def _settle(self, item: _Settle) -> None:
        self._queue.append(item)
        if self._asleep:
            self._bell.ring()

    def reachable(self) -> bool:
        """Whether the last write worked and the database answers now."""
        if self.failing or not self.alive or not self._in_place():
            return False
        connection = None
        try:
            # A plain cursor: a transaction of the engine begins IMMEDIATE and would wait for the
            # writer. A table is read, because SQLite answers `SELECT 1` without opening its file.
            connection = self._engine.raw_connection()
            connection.cursor().execute("SELECT version FROM schema_version").fetchone()
        except (sa.exc.SQLAlchemyError, self._engine.dialect.loaded_dbapi.Error):
            return False
        finally:
            if connection is not None:
                connection.close()
        return True

    def _in_place(self) -> bool:
        """False: SQLite's file was taken away or replaced while it is open, as by a careless restore, and what is written now
        is read by nobody else."""
        if file_of(self._engine) == self._file:
            self.misplaced = False
        elif not self.misplaced:
            self.misplaced = True
            self._problem("the database's file was taken away or replaced while it was in use: start the service again")
        return not self.misplaced

    def close(self, timeout_s: float) -> int:
        """Write what is queued; returns how many rows could not be written."""
        self._stopping = True
        self._bell.ring()
        self._retry_now.set()
        self._thread.join(timeout_s)
        return len(self._queue)

    # --- writing

    def _write_for_all(self) -> bool:
        """One batch, by the thread of a request, which holds `_writing`; released here. False: the database is
        busy, and the ledger's own thread has to wait for it."""
        try:
            self._write(self._batch())
        except BusyError:
            self._bell.ring()
            return False
        finally:
            self._writing.release()
        self._pass_on()
        return True

    def _pass_on(self) -> None:
        """The first of those that came meanwhile writes next. If it has just given up, the ledger's own thread
        finds what is left soon."""
        with contextlib.suppress(IndexError):  # somebody else is writing already
            for index in range(len(self._queue)):
                item = self._queue[index]
                if isinstance(item, _Begin):
                    (item.bell if self._requests_write else self._bell).ring()
                    return

    def _write_loop(self) -> None:
        while self._queue or not self._stopping:
            try:
                written = self._round()
            except Exception as error:  # this thread is the only one that writes what nobody waits for
                written = False
                if not self.failing:
                    self.failing = bool(self._queue)
                    self._problem(f"the ledger cannot be written: {_said(error)}")
            if not written:
                if self._stopping:
                    break
                self._retry_now.wait(_RETRY_S)
        with self._writing:
            self._writer.close()

    def _round(self) -> bool:
        self._wait_for_work()
        with self._writing:
            written = self._write_patiently()
        if written:
            self._pass_on()
        return written

    def _wait_for_work(self) -> None:
        """Until something cannot be written by a request, or settlements have waited long enough."""
        while not self._stopping:
            batches = self._batches
            if self._bell.wait(_SETTLE_WAIT_S):
                return
            if self._batches != batches:
                continue  # others write: what is queued goes with the next intent
            if self._queue:
                return
            # Quiet for a while. Under load nobody comes here, and no settlement has to wake anybody.
            self._asleep = True
            if not self._queue and not self._stopping:
                self._bell.wait()
            self._asleep = False
            if self._somebody_waits():
                return

    def _somebody_waits(self) -> bool:
        with contextlib.suppress(IndexError):  # a request writes, and takes away what was there
            return any(isinstance(self._queue[index], _Begin) for index in range(len(self._queue)))
        return False

    def _write_patiently(self) -> bool:
        batch, until = self._batch(), time.monotonic() + _BUSY_S
        while True:
            try:
                return self._write(batch)
            except BusyError as busy:
                if time.monotonic() >= until:
                    self._failed(busy)
                    return False
            if self._queue[0] is not batch[0]:
                batch = self._batch()  # in halves, and the first is written
            time.sleep(_BUSY_PAUSE_S)

    def _batch(self) -> list[_Begin | _Settle]:
        return [self._queue[index] for index in range(min(len(self._queue), _BATCH))]

    def _write(self, batch: Sequence[_Begin | _Settle]) -> bool:
        """False if it could not be written: then nobody waits any more. Raises ``BusyError``."""
        if not batch:
            return True
        self._batches += 1
        try:
            self._writer.write(batch)
        except BusyError:
            raise
        except Exception as error:
            if not _is_of_a_row(error):
                self._failed(error)
                return False
            # Whoever else waits must not suffer from it: halves, until it is alone.
            if len(batch) == 1:
                return self._set_aside(batch[0], error)
            half = len(batch) // 2
            return self._write(batch[:half]) and self._write(batch[half:])
        self.failing = False
        for item in batch:
            self._queue.popleft()
            if isinstance(item, _Begin):
                item.answer()
        return True

    def _set_aside(self, item: _Begin | _Settle, error: Exception) -> bool:
        """``item``, the first of the queue, can never be written. False if nor can what stands in for it."""
        self.failing = False
        if isinstance(item, _Begin):
            self._told_aside("refused", error)
            item.error = _unwritable()
            self._queue.popleft()
            item.answer()
            return True
        if item.settlement is None or item.settlement.state == "unknown":
            # The intent stays, with what it holds, until this process is gone: then it is charged as unknown.
            self._told_aside("left open", error)
            self._queue.popleft()
            return True
        self._told_aside("charged at what was reserved for it", error)
        instead = self._queue[0] = _Settle(item.intent, _as_reserved(item.intent, item.settlement))
        return self._write([instead])

    def _told_aside(self, fate: str, error: Exception) -> None:
        self._problem(f"the ledger cannot hold a value of a row, which is {fate}: {_said(error)}")

    def _failed(self, error: Exception) -> None:
        if not self.failing:
            self.failing = True
            self._problem(f"the ledger cannot be written: {_said(error)}")
        self._fail_begins()
        self._bell.ring()  # the ledger's own thread tries again

    def _problem(self, text: str) -> None:
        with contextlib.suppress(Exception):  # whatever becomes of the sentence, writing goes on
            self._on_problem(text)

    def _fail_begins(self) -> None:
        """Refuse who waits: they must not call a vendor. What they wanted written is taken back later, in
        case that the commit did happen and only its answer was lost."""
        failed = []
        for index in range(len(self._queue)):
            item = self._queue[index]
            if isinstance(item, _Begin):
                self._queue[index] = _Settle(item.intent, None)
                failed.append(item)
        for item in failed:
            item.error = _unavailable()
            item.answer()


def _is_of_a_row(error: Exception) -> bool:
    """Whether the database can be used, as far as ``error`` tells. A mistake of ours is taken for one row's, too: if it
    is not, each item meets it and is set aside, and nobody waits for ever."""
    return isinstance(error, ValueFaultError) or not isinstance(error, sa.exc.SQLAlchemyError | OSError | MemoryError)


def _said(error: Exception) -> str:
    return reason(error) if isinstance(error, sa.exc.SQLAlchemyError) else type(error).__name__


def _as_reserved(intent: Intent, settlement: Settlement) -> Settlement:
    """The numbers of ``intent``, which the ledger holds already."""
    usage = Usage(input=intent.prompt_tokens, output=intent.max_output_tokens)
    leg = replace(settlement.leg, usage=usage, images=intent.images, duration_s=0.0, first_token_s=None)
    return Settlement(leg, usage, "unknown", intent.cost_nano)


class _NotOpenError(Exception):
    """Some row to settle is not an intent of that person (any more): the careful way has to be taken."""


class _Writer:
    """One transaction at a time, on a connection of its own."""

    def __init__(
        self,
        engine: sa.Engine,
        instance: str,
        on_limit: Callable[[LimitEvent], None],
        on_sums: Callable[[Ceiling, Sums], None],
        on_problem: Callable[[str], None],
    ) -> None:
        self._engine = engine
        self._instance = instance
        self._on_limit = on_limit
        self._on_sums = on_sums
        self._on_problem = on_problem
        self._driver: DriverConnection | None = None
        self._sql = _Statements(is_postgresql(engine))
        # After a failure nobody knows whether the last commit happened.
        self._careful = False
        self._relaxed = False

    def write(self, batch: Sequence[_Begin | _Settle]) -> None:
        """All of ``batch``, or nothing. Raises ``SQLAlchemyError``; ``BusyError`` before anything was tried."""
        settles = [item for item in batch if isinstance(item, _Settle)]
        # What somebody stopped waiting for before it was written need not be written.
        taken_back = {id(item.intent) for item in settles if item.settlement is None}
        begins = [item for item in batch if isinstance(item, _Begin) and id(item.intent) not in taken_back]
        careful = self._careful or bool(taken_back)
        try:
            events = self._persistently(begins, settles, careful)
        except BusyError:
            raise
        except BaseException:
            self._careful = True
            self.close()  # which takes back what was not committed
            raise
        self._careful = False
        self._tell(events)

    def _persistently(self, begins: list[_Begin], settles: list[_Settle], careful: bool) -> _Events:
        tries = 1
        while True:
            try:
                return self._transaction(begins, settles, careful)
            except _NotOpenError:
                careful = True
            except ConflictError:
                if tries == _CONFLICT_TRIES:
                    raise
                tries += 1
            if self._driver is not None:
                self._driver.rollback()

    def _tell(self, events: _Events) -> None:
        """All is committed: a listener that fails must not have it written a second time."""
        try:
            for event in events.found:
                self._on_limit(event)
            for ceiling, sums in events.changed:
                self._on_sums(ceiling, sums)
        except Exception as error:
            with contextlib.suppress(Exception):
                self._on_problem(f"what a limit has left could not be told: {type(error).__name__}")

    def close(self) -> None:
        if self._driver is not None:
            self._driver.close()
            self._driver = None

    def _transaction(self, begins: list[_Begin], settles: list[_Settle], careful: bool) -> _Events:
        driver = self._driver
        if driver is None:
            driver = self._driver = DriverConnection(self._engine)
            self._relaxed = False
        relaxed = not begins
        self._relax_sqlite(driver, relaxed)
        driver.begin()
        if relaxed and self._sql.postgresql:
            # A settlement that a power cut takes back is an intent again: charged, as unknown.
            driver.exec_driver_sql("SET LOCAL synchronous_commit TO OFF")
        if careful:
            locked = Changes()
            for intent in [*(item.intent for item in settles), *(item.intent for item in begins)]:
                locked.add(intent.bounds.charges)
            locked.lock(driver)
        owed = _careful(driver, self._sql, settles) if careful else [_plain(item) for item in settles if item.settlement]
        changes = Changes()
        for item in owed:
            item.charge(changes)
        for begin in begins:
            _hold(changes, begin.intent, 1)
        sums, reported = changes.apply(driver)
        accepted, refused = self._decide(driver, begins, dict(sums))
        if refused:
            back = Changes()
            for begin in refused:
                _hold(back, begin.intent, -1)
            back.apply(driver)
        self._insert(driver, accepted)
        self._update(driver, owed, checked=not careful)
        events = _Events(reported)
        events.look(_ceilings(item.intent for item in owed), sums)
        events.save(driver, self._sql)
        driver.commit()
        return events

    def _relax_sqlite(self, driver: DriverConnection, relaxed: bool) -> None:
        """In WAL mode NORMAL leaves the flush to a later commit: a settlement that is lost with the power
        is an intent again, and charged as unknown. SQLite takes the word outside of a transaction only."""
        if relaxed != self._relaxed and not self._sql.postgresql:
            driver.exec_driver_sql("PRAGMA synchronous = " + ("NORMAL" if relaxed else "FULL"))
            self._relaxed = relaxed

    def _decide(self, driver: DriverConnection, begins: list[_Begin], sums: dict[Key, Sums]) -> tuple[list[_Begin], list[_Begin]]:
        """Who may begin, in the order they came. ``sums`` hold the reservations of all of them."""
        # Where there is room with all of them, there was room before each: the usual case.
        tight = any(ceiling.is_full(sums[ceiling.key]) for ceiling in _ceilings(begin.intent for begin in begins))
        if tight:
            for begin in begins:
                _hold_in(sums, begin.intent, -1)
        accepted: list[_Begin] = []
        refused: list[_Begin] = []
        minutes: dict[str, list[float]] = {}
        for begin in begins:
            begin.error = (_full(begin.intent, sums) if tight else None) or self._too_quick(driver, begin.intent, minutes)
            if begin.error is not None:
                refused.append(begin)
                continue
            accepted.append(begin)
            if tight:
                _hold_in(sums, begin.intent, 1)
        return accepted, refused

    def _too_quick(self, driver: DriverConnection, intent: Intent, minutes: dict[str, list[float]]) -> GatewayError | None:
        """``minutes``: when the requests accepted in this transaction came, by scope; an accepted one is added."""
        if intent.leg != 1:  # another try at another provider is no new request
            return None
        for rate in intent.bounds.rates:
            oldest = self._oldest_of_full_minute(driver, rate, intent.started_at, minutes.get(rate.scope, ()))
            if oldest is not None:
                return rate.refusal(oldest, intent.started_at)
        for rate in intent.bounds.rates:
            minutes.setdefault(rate.scope, []).append(intent.started_at)
        return None

    def _oldest_of_full_minute(self, driver: DriverConnection, rate: Rate, now: float, mine: Sequence[float]) -> float | None:
        """When the first of ``rate.amount`` requests of the last minute came; None if there were fewer.

        ``mine`` are those that are not written yet.
        """
        if len(mine) >= rate.amount:
            return mine[-rate.amount]
        if rate.amount > _MAX_RATE:
            return None
        kind, _, name = rate.scope.partition(":")
        statement = self._sql.recent_of_person if kind == "person" else self._sql.recent_of_program
        since, until = int((now - MINUTE_S) * 1000), int((now + CLOCK_SKEW_S) * 1000)
        row = driver.exec_driver_sql(statement, (name, since, until, rate.amount - len(mine) - 1)).fetchone()
        return None if row is None else row[0] / 1000

    def _insert(self, driver: DriverConnection, begins: list[_Begin]) -> None:
        if begins:
            driver.exec_driver_sql(self._sql.insert, [_intent_row(begin.intent, self._instance) for begin in begins])

    def _update(self, driver: DriverConnection, owed: list[_Owed], checked: bool) -> None:
        if not owed:
            return
        if not checked:
            driver.exec_driver_sql(self._sql.settle_found, [item.row() for item in owed])
            return
        done = driver.exec_driver_sql(self._sql.settle_open, [(*item.row(), item.intent.caller.person) for item in owed])
        if done.rowcount != len(owed):
            raise _NotOpenError


def _ceilings(intents: Iterable[Intent]) -> Collection[Ceiling]:
    """The ceilings of all of them, each once: requests of one person share theirs."""
    return {id(ceiling): ceiling for intent in intents for ceiling in intent.bounds.ceilings}.values()


def _hold_in(sums: dict[Key, Sums], intent: Intent, sign: int) -> None:
    for key in intent.bounds.charges:
        sums[key] = sums[key].plus(held_tokens=sign * intent.tokens, held_nano=sign * (intent.cost_nano or 0))


def _full(intent: Intent, sums: dict[Key, Sums]) -> GatewayError | None:
    for ceiling in intent.bounds.ceilings:
        if ceiling.is_full(sums[ceiling.key]):
            return ceiling.refusal(sums[ceiling.key], intent.started_at)
    return None


# --- what a settlement changes -----------------------------------------------------------------


@record
class _Owed:
    """A settlement whose row was found. ``was_unknown``: somebody took this gateway for dead and charged the estimate.

    ``intent`` is that of the row: its person may have been forgotten since.
    """

    intent: Intent
    settlement: Settlement | None
    was_unknown: bool = False

    def charge(self, changes: Changes) -> None:
        keys = self.intent.bounds.charges
        held_tokens, held_nano = self.intent.tokens, self.intent.cost_nano or 0
        tokens, cost = (self.settlement.tokens, self.settlement.cost_nano or 0) if self.settlement else (0, 0)
        if self.was_unknown:
            changes.add(keys, tokens - held_tokens, cost - held_nano)
        else:
            changes.add(keys, tokens, cost, -held_tokens, -held_nano)

    def row(self) -> tuple[Any, ...]:
        key = (self.intent.request_id, self.intent.leg)
        if self.settlement is None:
            return (0, 0, 0, 0, 0, 0, 0, Kind.LEDGER_UNAVAILABLE.value, 0, None, "settled", *key)
        leg, usage = self.settlement.leg, self.settlement.usage
        first_ms = None if leg.first_token_s is None else int(leg.first_token_s * 1000)
        return (
            usage.input,
            usage.cache_read,
            usage.cache_write,
            usage.cache_write_1h,
            usage.output,
            leg.images,
            self.settlement.cost_nano,
            leg.outcome,
            int(leg.duration_s * 1000),
            first_ms,
            self.settlement.state,
            *key,
        )


def _hold(changes: Changes, intent: Intent, sign: int) -> None:
    changes.add(intent.bounds.charges, 0, 0, sign * intent.tokens, sign * (intent.cost_nano or 0))


def _plain(item: _Settle) -> _Owed:
    return _Owed(item.intent, item.settlement)


def _careful(driver: DriverConnection, sql: _Statements, settles: list[_Settle]) -> list[_Owed]:
    """Only what is still open, so that nothing is charged twice after a commit that nobody heard of; to whom it belongs now."""
    owed = []
    for item in settles:
        row = driver.exec_driver_sql(sql.state, (item.intent.request_id, item.intent.leg)).fetchone()
        if row is not None and row[0] in ("intent", "unknown"):
            owed.append(_Owed(_now_of(row[1], item.intent), item.settlement, was_unknown=row[0] == "unknown"))
    return owed


def _now_of(person: str | None, intent: Intent) -> Intent:
    """``intent`` as one of ``person``, None for nobody: who was forgotten or has another address since it was written."""
    if intent.caller.person in (None, person):
        return intent
    former, bounds = f"person:{intent.caller.person}", intent.bounds
    charges = [key for key in bounds.charges if key[0] != former]
    if person is not None:
        charges += [(f"person:{person}", period) for scope, period in bounds.charges if scope == former]
    ceilings = tuple(ceiling for ceiling in bounds.ceilings if ceiling.scope != former)
    return replace(intent, bounds=replace(bounds, charges=tuple(charges), ceilings=ceilings))


class _Events:
    """Which ceilings were reached by what is settled now, each once in its period."""

    def __init__(self, reported: dict[Key, int]) -> None:
        self._reported = reported
        self._new: dict[Key, int] = {}
        self.found: list[LimitEvent] = []
        # Each ceiling that was looked at, with what is used of it now.
        self.changed: list[tuple[Ceiling, Sums]] = []

    def look(self, ceilings: Iterable[Ceiling], sums: dict[Key, Sums]) -> None:
        """``sums`` must have all of ``ceilings``."""
        for ceiling in ceilings:
            now = sums[ceiling.key]
            self.changed.append((ceiling, now))
            self._note(ceiling, now, "soft", ceiling.is_soft(now))
            self._note(ceiling, now, "hard", ceiling.is_used_up(now))

    def _note(self, ceiling: Ceiling, sums: Sums, level: Level, reached: bool) -> None:
        key, bit = ceiling.key, reported_bit(ceiling.limit, level)
        bits = self._new.get(key, self._reported[key])
        if bool(bits & bit) == reached:
            return
        # What was reported and is not reached is a ceiling that somebody has raised: it is to be heard of again.
        self._new[key] = bits ^ bit
        if reached:
            share = ceiling.used(sums) / max(ceiling.amount, 1)
            self.found.append(LimitEvent(ceiling.scope, ceiling.limit, level, ceiling.period.key, share))

    def save(self, driver: DriverConnection, sql: _Statements) -> None:
        for (scope, period), bits in self._new.items():
            driver.exec_driver_sql(sql.report, (bits, scope, period))


# --- statements --------------------------------------------------------------------------------


def _intent_row(intent: Intent, instance: str) -> tuple[Any, ...]:
    return (
        intent.request_id,
        intent.leg,
        int(intent.started_at * 1000),
        intent.caller.name,
        intent.alias,
        intent.provider,
        intent.model,
        intent.stream,
        intent.prompt_tokens,
        intent.max_output_tokens,
        intent.caller.person,
        instance,
        intent.images,
        intent.cost_nano,
    )


class _Statements:
    def __init__(self, postgresql: bool) -> None:
        self.postgresql = postgresql
        settled = (
            "UPDATE ledger SET input_tokens = ?, cache_read_tokens = ?, cache_write_tokens = ?, cache_write_1h_tokens = ?, "
            "output_tokens = ?, images = ?, cost_nano = ?, outcome = ?, duration_ms = ?, first_token_ms = ?, state = ? "
            "WHERE request_id = ? AND leg = ? AND state "
        )
        recent = (
            "SELECT started_at_ms FROM ledger WHERE {} = ? AND started_at_ms > ? AND started_at_ms < ? AND leg = 1 "
            "ORDER BY started_at_ms DESC LIMIT 1 OFFSET ?"
        )
        lock = " FOR UPDATE" if postgresql else ""
        same = "IS NOT DISTINCT FROM" if postgresql else "IS"
        self.insert = driver_text(
            "INSERT INTO ledger (request_id, leg, started_at_ms, caller, alias, provider, model, stream, input_tokens, "
            "cache_read_tokens, cache_write_tokens, cache_write_1h_tokens, output_tokens, outcome, duration_ms, person, state, "
            "instance, images, cost_nano) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0, 0, ?, 'unknown', 0, ?, 'intent', ?, ?, ?)",
            postgresql,
        )
        self.settle_open = driver_text(settled + f"= 'intent' AND person {same} ?", postgresql)
        self.settle_found = driver_text(settled + "IN ('intent', 'unknown')", postgresql)
        self.state = driver_text("SELECT state, person FROM ledger WHERE request_id = ? AND leg = ?" + lock, postgresql)
        self.report = driver_text("UPDATE spending SET reported = ? WHERE scope = ? AND period = ?", postgresql)
        self.recent_of_person = driver_text(recent.format("person"), postgresql)
        self.recent_of_program = driver_text(recent.format("caller"), postgresql)
