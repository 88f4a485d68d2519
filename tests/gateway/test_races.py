"""What happens at once in the store: tests stop one transaction in its middle and let another one in.

Two writers at a time has only PostgreSQL; what is not about them is tested on both.
"""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from people_support import ANN, BOB
from postgres_support import PASSWORD, Database, Server

from hearth_gateway.clock import SystemClock
from hearth_gateway.config import AllLimitsConfig, LimitsConfig
from hearth_gateway.core.identity import Caller
from hearth_gateway.core.limits import LimitBook
from hearth_gateway.core.metering import Intent, Leg, Settlement
from hearth_gateway.core.people import Person
from hearth_gateway.core.usage import UsageReport
from hearth_gateway.store import housekeeping, ledger, tables
from hearth_gateway.store.database import open_database
from hearth_gateway.store.housekeeping import Housekeeper, reading
from hearth_gateway.store.ledger import Ledger
from hearth_gateway.store.people import SqlPeople
from hearth_gateway.store.usage import SqlUsage
from hearth_gateway.translate.events import Usage

NEW = "ann@example.net"
PATIENCE_S = 20
DAY_S = 86_400
TODAY = datetime.datetime(2026, 11, 21, 12, tzinfo=datetime.UTC).timestamp()
BOOK = LimitBook(AllLimitsConfig(person=LimitsConfig(tokens_per_day=10_000)))


class Noon(SystemClock):
    def time(self) -> float:
        return TODAY


def intent(request: str, person: str | None = ANN, at: float = TODAY) -> Intent:
    caller = Caller("app", person)
    return Intent(request, 1, at, caller, "sonnet", "anthropic", "x", False, 10, 20, 0, 500, BOOK.bounds(caller, at))


def settlement(of: Intent) -> Settlement:
    usage = Usage(input=4, output=6)
    done = Leg(of.request_id, 1, of.started_at, of.caller, "sonnet", "anthropic", "x", False, usage, "ok", 1, None)
    return Settlement(done, usage, "settled", 70)


@dataclass
class House:
    """A ledger with answers that are being written, on a database of its own."""

    database: Database | None  # None: SQLite
    engine: sa.Engine
    problems: list[str] = field(default_factory=list)
    ledger: Ledger = field(init=False)

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.engine, self.problems.append)

    def keeper(self, name: str = "keeper") -> Housekeeper:
        return Housekeeper(self.engine, Noon(), BOOK.calendar, 5, name, self.problems.append)

    def begun(self, *requests: str, person: str | None = ANN, at: float = TODAY) -> list[Intent]:
        found = [intent(request, person, at) for request in requests]
        for item in found:
            self.ledger.begin(item)
        return found

    def settle(self, *intents: Intent) -> None:
        for item in intents:
            self.ledger.settle(item, settlement(item))

    def written(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while self.ledger.queued:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def read(self, statement: str) -> list[tuple[Any, ...]]:
        with reading(self.engine) as connection:
            return [tuple(row) for row in connection.execute(sa.text(statement))]

    def sums(self, scope: str) -> tuple[Any, ...]:
        """Of this month: tokens, nano, held tokens, held nano."""
        found = self.read("SELECT tokens, nano, held_tokens, held_nano, scope FROM spending WHERE period = '2026-11'")
        return next((row[:4] for row in found if row[4] == scope), ())

    def names(self) -> set[str]:
        """Every address in what was used."""
        found = self.read(
            "SELECT person FROM ledger UNION SELECT NULLIF(person, '') FROM usage_days "
            "UNION SELECT substr(scope, 8) FROM spending WHERE scope LIKE 'person:%'"
        )
        return {name for (name,) in found if name is not None}

    def used(self) -> tuple[Any, ...]:
        """Legs, tokens and money that are over, wherever they are kept."""
        return self.read(
            "SELECT SUM(legs), SUM(tokens), SUM(cost) FROM (SELECT 1 AS legs, input_tokens + output_tokens AS tokens, cost_nano AS cost "
            "FROM ledger WHERE state <> 'intent' UNION ALL SELECT legs, input_tokens + output_tokens, cost_nano FROM usage_days) AS every"
        )[0]


@contextmanager
def a_house(database: Database | None, directory: Path) -> Iterator[House]:
    engine = open_database(database.url, PASSWORD) if database else open_database(f"sqlite:///{directory}/hearth.db")
    house = House(database, engine)
    yield house
    house.ledger.close(PATIENCE_S)
    engine.dispose()


@pytest.fixture
def house(postgresql: Server, tmp_path: Path) -> Iterator[House]:
    with a_house(postgresql.database(), tmp_path) as house:
        yield house


@pytest.fixture(params=["sqlite", "postgresql"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[House]:
    database = request.getfixturevalue("postgresql").database() if request.param == "postgresql" else None
    with a_house(database, tmp_path) as house:
        yield house


@pytest.fixture(autouse=True)
def a_day_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer statements to stop after."""
    monkeypatch.setattr(housekeeping, "_SLICE_S", 2 * DAY_S)


class Middle:
    """Runs something else after a certain statement of the transactions of this thread."""

    def __init__(self, house: House, after: int, other: Callable[[], Any]) -> None:
        self._house, self._left, self._other = house, after, other
        self._thread = threading.get_ident()
        self._pool = ThreadPoolExecutor(1)
        self.others: Future[Any] | None = None

    def __call__(self, *_: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        self._left -= 1
        if self._left == 0:
            self.others = self._pool.submit(self._other)
            if self._house.database is None:
                self.others.result(PATIENCE_S)
                return
            with self._house.database.connect() as connection:
                waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
                while not self.others.done() and connection.execute(waiting).fetchall() == [(0,)]:
                    time.sleep(0.005)


@contextmanager
def in_the_middle(house: House, after: int, other: Callable[[], Any]) -> Iterator[Middle]:
    """``other`` runs, until it is done or waits for a lock, after that statement of what the block does. Both must work."""
    middle = Middle(house, after, other)
    sa.event.listen(house.engine, "after_cursor_execute", middle)
    try:
        yield middle
    finally:
        sa.event.remove(house.engine, "after_cursor_execute", middle)
        if middle.others is not None:
            middle.others.result(PATIENCE_S)


def every_pause(house: House, prepare: Callable[[], tuple[Callable[[], Any], Callable[[], Any]]], check: Callable[[], None]) -> int:
    """Interrupts the first of what ``prepare`` returns by the second, after each of its statements in turn."""
    after = 0
    while True:
        after += 1
        one, other = prepare()
        with in_the_middle(house, after, other) as middle:
            one()
        if middle.others is None:
            return after - 1
        house.written()
        assert house.problems == [], f"after statement {after}"
        check()


def clear(house: House) -> None:
    with house.engine.begin() as connection:
        for table in (tables.ledger, tables.spending, tables.usage_days, tables.people, tables.instances):
            connection.execute(sa.delete(table))


# --- who locks what first ------------------------------------------------------------------------


@pytest.mark.parametrize("careful", [False, True], ids=["plain", "careful"])
@pytest.mark.parametrize("what", ["forget", "rename", "recover", "tidy"])
def test_no_answer_waits_for_who_waits_for_it(house: House, monkeypatch: pytest.MonkeyPatch, what: str, careful: bool) -> None:
    monkeypatch.setattr(ledger, "_CONFLICT_TRIES", 1)
    people = SqlPeople(house.engine)

    def prepare() -> tuple[Callable[[], Any], Callable[[], Any]]:
        clear(house)
        if what != "tidy":  # which takes away the sums of who is nobody
            people.create(ANN, 1)
        opened = house.begun("r1", "r2", "r3")
        house.settle(*house.begun("r4", "r5"), *house.begun("r6", at=TODAY - 9 * DAY_S))
        house.settle(*house.begun("r7", person=BOB))
        house.written()

        def answers() -> None:
            house.ledger._writer._careful = careful  # as after a write that failed
            house.settle(*reversed(opened))
            house.begun("s1", "s2")
            house.begun("s3", person=BOB)

        one: dict[str, Callable[[], Any]] = {
            "forget": lambda: people.forget(ANN),
            "rename": lambda: people.rename(ANN, NEW),
            "recover": house.keeper().recover,
            "tidy": house.keeper().tidy,
        }
        return one[what], answers

    def check() -> None:
        states = {row[0]: row[1] for row in house.read("SELECT request_id, state FROM ledger")}
        assert [states[f"r{number}"] for number in (1, 2, 3)] == ["settled"] * 3
        taken_for_dead = list(states.values()).count("unknown")
        assert taken_for_dead == 0 or what == "recover"
        # Three more answers are being written: those of the s. All others are over.
        held = 3 - taken_for_dead
        assert house.sums("house") == (70 + 30 * taken_for_dead, 490 + 500 * taken_for_dead, 30 * held, 500 * held)

    assert every_pause(house, prepare, check) > 2


def test_a_deadlock_costs_a_retry_and_refuses_nobody(house: House) -> None:
    (opened,) = house.begun("r1")
    house.written()
    assert house.database is not None
    with house.database.connect() as other, ThreadPoolExecutor(1) as pool:
        other.execute("SET deadlock_timeout = '60s'")  # so that it is the ledger which is told
        other.execute("BEGIN")
        other.execute("SELECT 1 FROM ledger WHERE request_id = 'r1' FOR UPDATE")
        house.settle(opened)
        answer = pool.submit(house.begun, "r2")
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        while house.read(waiting) == [(0,)]:
            time.sleep(0.005)
        other.execute("UPDATE spending SET reported = 0")
        other.execute("COMMIT")
        answer.result(PATIENCE_S)
    house.written()
    assert house.problems == [] and house.ledger.reachable()
    assert house.sums("house") == (10, 70, 30, 500)
    assert house.read("SELECT request_id, state FROM ledger ORDER BY id") == [("r1", "settled"), ("r2", "intent")]


@pytest.mark.parametrize("what", ["forget", "rename"])
def test_people_who_change_at_once(house: House, what: str) -> None:
    people = SqlPeople(house.engine)

    def prepare() -> tuple[Callable[[], Any], Callable[[], Any]]:
        clear(house)
        people.put(Person(ANN, 1, alias="Ann"))
        other = partial(people.put, Person(ANN, 1, active=False))
        return partial(people.forget, ANN) if what == "forget" else partial(people.rename, ANN, NEW), other

    def check() -> None:
        found = people.get(ANN)
        assert found is not None and not found.active

    assert every_pause(house, prepare, check) > 2


# --- the daily sums and everybody else -----------------------------------------------------------


@pytest.mark.parametrize("what", ["forget", "rename"])
@pytest.mark.parametrize("first", ["people", "tidy"])
def test_no_address_comes_back_with_the_sums_of_a_day(house: House, what: str, first: str) -> None:
    people = SqlPeople(house.engine)

    def change() -> None:
        if what == "forget":
            people.forget(ANN)
        else:
            people.rename(ANN, NEW)

    def prepare() -> tuple[Callable[[], Any], Callable[[], Any]]:
        clear(house)
        people.create(ANN, 1)
        for days in (4, 9):
            house.settle(*house.begun(f"r{days}", at=TODAY - days * DAY_S))
        house.written()
        keeper = house.keeper()
        return (change, keeper.tidy) if first == "people" else (keeper.tidy, change)

    def check() -> None:
        assert ANN not in house.names()
        assert house.used() == (2, 20, 140)

    assert every_pause(house, prepare, check) > 2


@pytest.mark.parametrize("first", ["tidy", "recover"])
def test_what_ends_while_its_day_is_summed_up_is_not_lost(house: House, first: str) -> None:
    def prepare() -> tuple[Callable[[], Any], Callable[[], Any]]:
        clear(house)
        house.begun("r1", at=TODAY - 9 * DAY_S)  # by a clock that was behind
        house.settle(*house.begun("r2", at=TODAY - 9 * DAY_S))
        house.written()
        both = house.keeper().tidy, house.keeper().recover
        return both if first == "tidy" else both[::-1]

    assert every_pause(house, prepare, lambda: check_used(house, (2, 40, 570))) > 2


def check_used(house: House, expected: tuple[int, ...]) -> None:
    assert house.used() == expected


# --- an answer that is being written while its person goes ---------------------------------------


@pytest.mark.parametrize("dead", [False, True], ids=["alive", "taken-for-dead"])
@pytest.mark.parametrize("last", ["forget", "recover"])
def test_an_answer_of_who_is_forgotten_counts_for_the_house_and_for_nobody(either: House, dead: bool, last: str) -> None:
    house, people = either, SqlPeople(either.engine)
    people.create(ANN, 1)
    house.settle(*house.begun("r1"))
    opened = house.begun("r2", "r3")
    house.written()
    assert house.sums(f"person:{ANN}") == (10, 70, 60, 1000)
    recover = house.keeper().recover if dead else int
    for step in (recover, lambda: people.forget(ANN)) if last == "forget" else (lambda: people.forget(ANN), recover):
        step()
    assert house.sums("house") == ((70, 1070, 0, 0) if dead else (10, 70, 60, 1000)), "as before"
    assert house.names() == set()
    # She comes back before the first answers are over.
    people.create(ANN, 2)
    house.settle(*house.begun("r4"))
    house.settle(*opened)
    house.written()
    assert house.sums("house") == (40, 280, 0, 0)
    assert house.sums("program:app") == (40, 280, 0, 0)
    assert house.sums(f"person:{ANN}") == (10, 70, 0, 0)
    assert house.problems == []
    rows = house.read("SELECT request_id, person, state FROM ledger ORDER BY id")
    assert rows == [("r1", None, "settled"), ("r2", None, "settled"), ("r3", None, "settled"), ("r4", ANN, "settled")]


def test_an_answer_that_was_taken_for_lost_is_put_right_where_it_counts_now(either: House) -> None:
    house, people = either, SqlPeople(either.engine)
    people.create(ANN, 1)
    opened = house.begun("r1")
    assert house.keeper().recover() == 1
    people.rename(ANN, NEW)
    assert house.sums(f"person:{NEW}") == (30, 500, 0, 0)
    house.settle(*opened)
    house.written()
    assert house.sums(f"person:{NEW}") == house.sums("house") == (10, 70, 0, 0)
    assert house.names() == {NEW}


# --- who looks meanwhile -------------------------------------------------------------------------


def test_a_day_that_is_being_summed_up_counts_once_in_the_usage_report(either: House) -> None:
    house = either
    report = UsageReport(SqlUsage(house.engine), BOOK)
    seen: list[str] = []

    def prepare() -> tuple[Callable[[], Any], Callable[[], Any]]:
        clear(house)
        for days in (0, 4, 7, 9):
            house.settle(*house.begun(f"r{days}", at=TODAY - days * DAY_S))
        house.written()
        return lambda: seen.append(report.of(Caller("app", ANN), 30, TODAY)["total"]["cost_usd"]), house.keeper().tidy

    assert every_pause(house, prepare, lambda: None) > 1
    assert set(seen) == {"0.00000028"}
