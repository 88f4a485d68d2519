"""People: who may chat, as the store says and as the running process answers."""

from __future__ import annotations

import argparse
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from gateway_fakes import FakeClock

from hearth_gateway import cli_person
from hearth_gateway.config import LimitsConfig
from hearth_gateway.core.identity import Caller, TokenStore
from hearth_gateway.core.people import People, PeopleUnavailableError, Person, Watch
from hearth_gateway.core.pseudonym import Pseudonym
from hearth_gateway.errors import GatewayError, Kind
from hearth_gateway.store import tables
from hearth_gateway.store.database import open_database
from hearth_gateway.store.people import SqlPeople

ANN = "ann@example.org"


class House:
    """A store and one process's view of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = FakeClock()
        self.problems: list[str] = []
        self.engine = open_database(f"sqlite:///{directory}/hearth.db")
        self.store = SqlPeople(self.engine)
        self.people = People(self.store, self.clock, self.problems.append)

    def caller(self, email: str = ANN) -> Caller:
        return Caller("proxy", email, browser=True, since=self.clock.time())

    def verdict(self, caller: Caller) -> str:
        try:
            self.people.check(caller)
        except GatewayError as error:
            assert error.kind is Kind.PERSON_REFUSED and ANN not in error.message
            return "refused"
        return "fine"


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    yield house
    house.engine.dispose()


def test_the_first_use_makes_a_record(house: House) -> None:
    assert house.people.of(ANN) is None
    house.people.admit(house.caller())
    assert house.store.get(ANN) == Person(ANN, first_seen=house.clock.time())
    house.clock.sleep(100)
    house.people.admit(house.caller())
    again = People(house.store, house.clock, house.problems.append)
    assert again.of(ANN) == Person(ANN, first_seen=house.clock.time() - 100)
    assert [person.email for person in again.known()] == [ANN]


def test_a_program_that_asks_for_itself_is_no_person(house: House) -> None:
    house.people.admit(Caller("operator"))
    assert house.store.load()[1] == []


def test_a_change_counts_once_the_version_was_looked_at(house: House) -> None:
    caller = house.caller()
    house.people.admit(caller)
    house.store.put(Person(ANN, 0, active=False))
    assert house.verdict(caller) == "fine"
    house.people.refresh()
    assert house.verdict(caller) == "refused"
    with pytest.raises(GatewayError):
        house.people.admit(house.caller())
    house.store.put(Person(ANN, 0, active=True))
    house.people.refresh()
    assert house.verdict(caller) == "fine"


def test_somebody_disabled_before_their_first_use_stays_out(house: House) -> None:
    house.store.put(Person(ANN, 0, active=False))
    # This process has not looked since, so it takes her for new.
    with pytest.raises(GatewayError) as caught:
        house.people.admit(house.caller())
    assert caught.value.kind is Kind.PERSON_REFUSED


def test_not_before(house: House) -> None:
    before = house.caller()
    house.people.admit(before)
    house.clock.sleep(10)
    now = house.clock.time()
    house.store.put(Person(ANN, 0, not_before=now))
    house.people.refresh()
    assert house.verdict(before) == "refused"  # open since before: cut
    assert house.verdict(house.caller()) == "fine"  # the proxy vouches again, and that is all we can know
    house.store.put(Person(ANN, 0, not_before=now + 60))
    house.people.refresh()
    assert house.verdict(house.caller()) == "refused"
    house.clock.sleep(60)
    assert house.verdict(house.caller()) == "fine"


def test_limits_replace_the_houses(house: House) -> None:
    assert house.people.limits_of(ANN) is None
    limits = LimitsConfig.model_validate({"requests_per_minute": 3, "money_per_day_usd": "0.123456"})
    house.store.put(Person(ANN, 0, alias="Ann", limits=limits))
    house.people.refresh()
    assert house.people.limits_of(ANN) == limits
    assert house.people.of(ANN) == Person(ANN, 0, alias="Ann", limits=limits)


@pytest.mark.parametrize(
    ("column", "value"),
    [("state", "Active"), ("state", ""), ("limits", "{"), ("limits", '{"requests_per_hour": 1}'), ("limits", "[]")],
)
def test_a_record_that_cannot_be_read_keeps_that_person_out(house: House, column: str, value: str) -> None:
    for email in (ANN, "bob@example.org"):
        house.people.admit(house.caller(email))
    with house.engine.begin() as connection:
        connection.execute(sa.update(tables.people).where(tables.people.c.email == ANN).values({column: value}))
        connection.exec_driver_sql("UPDATE people_version SET version = version + 1")
    house.people.refresh()
    assert house.verdict(house.caller()) == "refused"
    assert house.verdict(house.caller("bob@example.org")) == "fine"


def test_a_store_at_fault_keeps_the_last_answer_and_is_told_once(house: House) -> None:
    house.people.admit(house.caller())
    house.store.put(Person("bob@example.org", 0, active=False))
    house.people.refresh()
    with house.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE people RENAME TO elsewhere")
        connection.exec_driver_sql("ALTER TABLE people_version RENAME TO elsewhere_version")
    for _ in range(3):
        house.people.refresh()
        house.clock.sleep(1)
    assert house.verdict(house.caller()) == "fine"
    assert house.verdict(house.caller("bob@example.org")) == "refused"
    with pytest.raises(GatewayError) as caught:
        house.people.admit(house.caller("new@example.org"))
    assert caught.value.kind is Kind.LEDGER_UNAVAILABLE
    assert len(house.problems) == 1 and "@" not in house.problems[0]
    with house.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE elsewhere RENAME TO people")
        connection.exec_driver_sql("ALTER TABLE elsewhere_version RENAME TO people_version")
    house.people.refresh()
    house.people.admit(house.caller("new@example.org"))


def test_many_new_people_at_once(house: House) -> None:
    other = People(house.store, house.clock, house.problems.append)
    emails = [f"p{number % 8}@example.org" for number in range(32)]
    refused: list[GatewayError] = []

    def use(people: People, email: str) -> None:
        try:
            people.admit(house.caller(email))
            people.refresh()
        except GatewayError as error:
            refused.append(error)

    threads = [threading.Thread(target=use, args=((house.people, other)[number % 2], email)) for number, email in enumerate(emails)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused == [] and house.problems == []
    version, people = house.store.load()
    assert (version, len(people)) == (8, 8)


def test_a_deleted_person_is_cut_and_new_at_the_next_use(house: House) -> None:
    caller = house.caller()
    house.people.admit(caller)
    assert house.store.forget(ANN).known
    house.people.refresh()
    assert house.verdict(caller) == "refused"
    house.people.admit(house.caller())
    assert house.verdict(house.caller()) == "fine"


def day(person: str, tokens: int, model: str = "m") -> dict[str, object]:
    row: dict[str, object] = dict.fromkeys((column.name for column in tables.usage_days.c), 0)
    return row | {
        "day": "2026-11-20", "caller": "proxy", "person": person, "alias": "a", "provider": "p", "model": model,
        "state": "settled", "requests": 1, "legs": 1, "output_tokens": tokens, "cost_nano": tokens * 7,
    }  # fmt: skip


def test_who_is_forgotten_is_not_said_to_be_gone_while_a_reader_keeps_the_files(house: House) -> None:
    house.store.put(Person(ANN, 1.0))
    file = house.directory / "hearth.db"
    reader = sqlite3.connect(file, isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM people").fetchone() == (1,)

    @sa.event.listens_for(house.engine, "checkout")
    def impatient(connection: sqlite3.Connection, _record: object, _proxy: object) -> None:
        connection.execute("PRAGMA busy_timeout = 50").close()

    with pytest.raises(PeopleUnavailableError, match="still in the database's files"):
        house.store.forget(ANN)
    reader.execute("COMMIT")
    house.store.forget(ANN)
    reader.close()
    assert not any(ANN.encode() in path.read_bytes() for path in house.directory.iterdir())


@pytest.mark.parametrize("failure", [PeopleUnavailableError("database is locked"), KeyboardInterrupt()])
def test_a_rename_that_fails_says_that_the_former_address_is_disabled(
    house: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failure: BaseException
) -> None:
    def fail(*_addresses: str) -> None:
        raise failure

    house.store.put(Person(ANN, 1.0))
    monkeypatch.setattr(cli_person, "CUT_WITHIN_S", 0)
    monkeypatch.setattr(house.store, "rename", fail)
    store = cli_person._Store(house.store, Pseudonym(b"k" * 32))
    with pytest.raises(type(failure)):
        cli_person._rename(store, argparse.Namespace(email=ANN, to="ann@example.net"))
    said = capsys.readouterr().err
    assert "the former address is disabled now" in said and ANN not in said
    found = house.store.get(ANN)
    assert found is not None and not found.active


def test_a_change_of_somebody_unknown_is_told(house: House) -> None:
    store = cli_person._Store(house.store, Pseudonym(b"k" * 32))
    assert store.change("ann@exmaple.org", active=False).text.endswith("(nobody was known by this address)")
    assert "nobody" not in store.change("ann@exmaple.org", active=True).text


def test_forgetting_somebody_leaves_the_sums_of_the_house(house: House) -> None:
    house.people.admit(house.caller())
    with house.engine.begin() as connection:
        # The same day with and without a sum of nobody, and somebody else's.
        rows = [day(ANN, 5), day("", 100), day(ANN, 3, "other"), day("bob@example.org", 2)]
        connection.execute(sa.insert(tables.usage_days), rows)
        for number, person in enumerate((ANN, "bob@example.org")):
            row = {
                "request_id": f"r{number}", "leg": 1, "started_at_ms": 1, "caller": "proxy", "alias": "a", "provider": "p", "model": "m",
                "stream": False, "input_tokens": 1, "cache_read_tokens": 0, "cache_write_tokens": 0, "cache_write_1h_tokens": 0,
                "output_tokens": 9, "outcome": "ok", "duration_ms": 1, "person": person, "cost_nano": 63,
            }  # fmt: skip
            connection.execute(sa.insert(tables.ledger), row)
        spent = {"tokens": 1, "nano": 1, "held_tokens": 0, "held_nano": 0, "reported": 0, "period": "2026-11"}
        connection.execute(sa.insert(tables.spending), [{"scope": scope, **spent} for scope in (f"person:{ANN}", "house")])

    def sums() -> list[tuple[int, int, int]]:
        with house.engine.begin() as connection:
            queries = [
                sa.select(sa.func.sum(table.c.output_tokens), sa.func.sum(table.c.cost_nano), sa.func.count())
                for table in (tables.usage_days, tables.ledger)
            ]
            return [tuple(connection.execute(query).one()) for query in queries]

    assert sums() == [(110, 770, 4), (18, 126, 2)]
    done = house.store.forget(ANN)
    assert (done.ledger_rows, done.daily_sums, done.kept_disabled) == (1, 2, False)
    assert sums() == [(110, 770, 3), (18, 126, 2)]
    with house.engine.begin() as connection:
        days = tables.usage_days.c
        kept = {tuple(row[:2]): row[2] for row in connection.execute(sa.select(days.person, days.model, days.output_tokens))}
        scopes = connection.execute(sa.select(tables.spending.c.scope)).scalars().all()
        everything = str([connection.execute(sa.select(table)).all() for table in tables.metadata.sorted_tables])
    assert kept == {("", "m"): 105, ("", "other"): 3, ("bob@example.org", "m"): 2}
    assert scopes == ["house"]
    assert ANN not in everything
    written = b"".join(path.read_bytes() for path in house.directory.iterdir())
    assert b"bob@example.org" in written
    assert ANN.encode() not in written  # not in free space either, nor in the write-ahead log
    assert not house.store.forget(ANN).known


def test_forgetting_somebody_disabled_keeps_them_out(house: House) -> None:
    house.store.put(Person(ANN, 5, active=False, alias="Ann", not_before=9, limits=LimitsConfig(requests_per_minute=1)))
    assert house.store.forget(ANN).kept_disabled
    assert house.store.get(ANN) == Person(ANN, 5, active=False)


def test_the_key_of_the_pseudonyms_is_made_once(house: House) -> None:
    key = house.store.pseudonym_key()
    assert len(key) == 64 and house.store.pseudonym_key() == key


def test_pseudonyms_are_keyed_and_opaque() -> None:
    names = {Pseudonym(key).of(person) for key in (b"k" * 16, b"l" * 16) for person in (ANN, "bob@example.org")}
    assert len(names) == 4
    assert all(name.startswith("p-") and len(name) <= 64 and "ann" not in name for name in names)
    assert Pseudonym(b"k" * 16).of(ANN) == Pseudonym(b"k" * 16).of(ANN)
    with pytest.raises(ValueError, match="16"):
        Pseudonym(b"k" * 15)


def test_the_watch_survives_a_look_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hearth_gateway.core.people.LOOK_EVERY_S", 0.01)
    errors: list[Exception] = []
    looks = threading.Semaphore(0)

    def fails() -> None:
        raise RuntimeError("zebra")

    watch = Watch([fails, looks.release], errors.append)
    for _ in range(3):
        assert looks.acquire(timeout=20)
    deadline = time.monotonic() + 20
    while len(errors) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    watch.stop()
    assert len(errors) >= 3
    for thread in watch._threads:
        thread.join(20)
        assert not thread.is_alive()
    while looks.acquire(blocking=False):
        pass
    time.sleep(0.05)
    assert not looks.acquire(blocking=False)


def test_a_store_that_hangs_does_not_keep_a_removed_token_valid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A PostgreSQL that went away without a word is waited for. Who asks nothing meanwhile, because the answer
    is still being written, must be cut all the same."""
    monkeypatch.setattr("hearth_gateway.core.people.LOOK_EVERY_S", 0.01)
    (tmp_path / "operator").write_text("token-0123456789abcdef")
    tokens = TokenStore(tmp_path, FakeClock(), lambda *_problem: None)
    hanging, back = threading.Event(), threading.Event()

    class Hanging:
        def version(self) -> int:
            hanging.set()
            back.wait(60)
            return 1

        def load(self) -> tuple[int, list[Person]]:
            return 1, []

        def create(self, email: str, first_seen: float) -> Person:
            return Person(email, first_seen)

    people = People(Hanging(), FakeClock(), list[str]().append)
    caller = tokens.identify(None, "token-0123456789abcdef")
    watch = Watch((people.refresh, tokens.refresh), list[Exception]().append)
    try:
        assert hanging.wait(20)
        (tmp_path / "operator").unlink()
        deadline = time.monotonic() + 5
        while len(tokens) and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(GatewayError):
            tokens.check(caller)
    finally:
        back.set()
        watch.stop()
