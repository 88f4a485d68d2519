"""The store on SQLite: migrations, the ledger, limits in its transactions, and what happens when it cannot be written."""

from __future__ import annotations

import datetime
import fcntl
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from gateway_fakes import FakeClock

from hearth_gateway.config import AllLimitsConfig, LimitsConfig
from hearth_gateway.core.identity import Caller
from hearth_gateway.core.limits import LimitBook, LimitEvent
from hearth_gateway.core.metering import Intent, Leg, Settlement
from hearth_gateway.core.usage import UsageReport
from hearth_gateway.errors import GatewayError, Kind
from hearth_gateway.store import ledger as ledger_module
from hearth_gateway.store.database import MIGRATIONS, DatabaseError, Step, migrate, open_database
from hearth_gateway.store.housekeeping import Housekeeper
from hearth_gateway.store.ledger import Ledger
from hearth_gateway.store.tables import ledger as ledger_table
from hearth_gateway.store.tables import metadata, schema_steps, schema_version
from hearth_gateway.store.usage import SqlUsage
from hearth_gateway.translate.events import Usage

PATIENCE_S = 20
BOOK = LimitBook(AllLimitsConfig())
NOW = 1_700_000_000.5  # 2023-11-14 22:13 UTC


def intent(
    number: int = 1,
    book: LimitBook = BOOK,
    leg: int = 1,
    at: float = NOW,
    cost_nano: int | None = 500,
    person: str | None = None,
) -> Intent:
    caller = Caller("ann", person)
    return Intent(
        request_id=f"r{number}", leg=leg, started_at=at, caller=caller, alias="sonnet", provider="anthropic", model="claude-x", stream=True,
        prompt_tokens=30, max_output_tokens=70, images=0, cost_nano=cost_nano, bounds=book.bounds(caller, at),
    )  # fmt: skip


def settlement(of: Intent, cost_nano: int | None = 5) -> Settlement:
    usage = Usage(input=1, cache_read=2, cache_write=3, cache_write_1h=1, output=4)
    leg = Leg(
        request_id=of.request_id, leg=of.leg, started_at=of.started_at, caller=of.caller, alias=of.alias, provider=of.provider,
        model=of.model, stream=of.stream, usage=usage, outcome="ok", duration_s=1.25, first_token_s=None,
    )  # fmt: skip
    return Settlement(leg, usage, "settled", cost_nano)


def run(ledger: Ledger, what: Intent, cost_nano: int | None = 5) -> None:
    """One whole leg."""
    ledger.begin(what)
    ledger.settle(what, settlement(what, cost_nano))


def open_ledger(path: Path, problems: list[str], **listeners: Any) -> Ledger:
    return Ledger(open_database(f"sqlite:///{path}"), problems.append, **listeners)


def rows(path: Path) -> list[dict[str, Any]]:
    with sqlite3.connect(path) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute("SELECT * FROM ledger ORDER BY id")]


def sums(path: Path, scope: str) -> dict[str, tuple[int, int, int, int]]:
    """By period: tokens, nano, held tokens, held nano."""
    with sqlite3.connect(path) as connection:
        found = connection.execute("SELECT period, tokens, nano, held_tokens, held_nano FROM spending WHERE scope = ?", (scope,))
        return {row[0]: row[1:] for row in found}


def test_an_intent_is_on_disk_before_begin_returns(tmp_path: Path) -> None:
    path = tmp_path / "hearth.db"
    ledger = open_ledger(path, [])
    mine = intent(person="ann@example.org")
    ledger.begin(mine)
    row = rows(path)[0]
    assert (row["state"], row["outcome"], row["input_tokens"], row["output_tokens"], row["cost_nano"]) == ("intent", "unknown", 30, 70, 500)
    for scope in ("person:ann@example.org", "program:ann"):
        assert sums(path, scope) == {"2023-11-14": (0, 0, 100, 500), "2023-11": (0, 0, 100, 500)}
    assert sums(path, "house") == {"2023-11": (0, 0, 100, 500)}
    ledger.settle(mine, settlement(mine))
    assert ledger.close(PATIENCE_S) == 0
    assert rows(path) == [
        {
            "id": 1, "request_id": "r1", "leg": 1, "started_at_ms": 1_700_000_000_500, "caller": "ann", "alias": "sonnet",
            "provider": "anthropic", "model": "claude-x", "stream": 1, "input_tokens": 1, "cache_read_tokens": 2, "cache_write_tokens": 3,
            "cache_write_1h_tokens": 1, "output_tokens": 4, "outcome": "ok", "duration_ms": 1250, "first_token_ms": None,
            "person": "ann@example.org", "state": "settled", "instance": ledger.instance, "images": 0, "cost_nano": 5,
        }
    ]  # fmt: skip
    assert sums(path, "person:ann@example.org") == {"2023-11-14": (10, 5, 0, 0), "2023-11": (10, 5, 0, 0)}


def test_settlements_are_written_soon_and_at_the_close(tmp_path: Path) -> None:
    problems: list[str] = []
    path = tmp_path / "hearth.db"
    ledger = open_ledger(path, problems)
    run(ledger, intent())
    wait_until(lambda: rows(path)[0]["state"] == "settled")
    with ThreadPoolExecutor(40) as pool:
        list(pool.map(lambda number: run(ledger, intent(number)), range(2, 402)))
    assert ledger.close(PATIENCE_S) == 0 and problems == []
    assert [row["state"] for row in rows(path)] == ["settled"] * 401
    assert sums(path, "house") == {"2023-11": (4010, 2005, 0, 0)}


def test_a_leg_without_a_price_is_counted_and_costs_nothing_known(tmp_path: Path) -> None:
    path = tmp_path / "hearth.db"
    ledger = open_ledger(path, [])
    run(ledger, intent(cost_nano=None), cost_nano=None)
    assert ledger.close(PATIENCE_S) == 0
    assert rows(path)[0]["cost_nano"] is None
    assert sums(path, "house") == {"2023-11": (10, 0, 0, 0)}


def test_the_migrations_make_the_tables_of_the_code(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path}/hearth.db")
    found = sa.inspect(engine)
    for table in metadata.sorted_tables:
        columns = {column["name"]: bool(column["nullable"]) for column in found.get_columns(table.name)}
        assert columns == {column.name: bool(column.nullable) for column in table.columns}
    assert set(found.get_table_names()) == set(metadata.tables)
    assert found.get_unique_constraints("ledger")[0]["column_names"] == ["request_id", "leg"]


def test_migrations_are_applied_once_and_all_or_none(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path}/hearth.db")
    steps = [*MIGRATIONS, Step(("ALTER TABLE ledger ADD COLUMN note TEXT", "this is no SQL"))]
    with pytest.raises(sa.exc.OperationalError):
        migrate(engine, steps)
    assert "note" not in {column["name"] for column in sa.inspect(engine).get_columns("ledger")}
    steps[-1] = Step(("ALTER TABLE ledger ADD COLUMN note TEXT",))
    migrate(engine, steps)
    migrate(engine, steps)
    assert steps_and_reader(engine) == (len(steps), 1)


def test_an_older_version_works_on_a_newer_database_unless_it_must_not(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/hearth.db"
    engine = open_database(url)
    newer = [*MIGRATIONS, Step(("ALTER TABLE ledger ADD COLUMN note TEXT",))]
    migrate(engine, newer)
    open_database(url).dispose()
    assert steps_and_reader(engine) == (len(newer), 1), "an older one that starts must not hide the newer step"
    migrate(engine, newer)
    newer.append(Step(("CREATE TABLE other (id {key})",), reader=len(newer) + 1))
    migrate(engine, newer)
    engine.dispose()
    with pytest.raises(DatabaseError, match="newer hearth-gateway"):
        open_database(url)


def test_the_first_version_works_on_todays_database(tmp_path: Path) -> None:
    """Its own statements: what it did at its start, to write a row, and to see whether the store answers."""
    path = tmp_path / "hearth.db"
    engine = open_database(f"sqlite:///{path}")
    with sqlite3.connect(path) as old:
        old.execute("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)")
        assert old.execute("SELECT max(schema_version.version) AS max_1 FROM schema_version").fetchone() <= (1,)
        old.execute("DELETE FROM schema_version")
        old.execute("INSERT INTO schema_version (version) VALUES (1)")
        old.execute(V1_INSERT, ("r1", 1, 1_700_000_000_500, "ann", "sonnet", "anthropic", "x", True, 1, 2, 3, 1, 4, "ok", 12, None))
    with engine.begin() as connection:
        row = connection.execute(sa.select(ledger_table)).mappings().one()
    assert (row["state"], row["cost_nano"], row["person"]) == ("settled", None, None), "counted, and as unpriced"
    migrate(engine, MIGRATIONS)
    assert steps_and_reader(engine) == (len(MIGRATIONS), 1)


def test_a_database_of_the_first_version_is_migrated(tmp_path: Path) -> None:
    path = tmp_path / "hearth.db"
    with sqlite3.connect(path) as old:
        old.execute("CREATE TABLE schema_version (version INTEGER NOT NULL)")
        old.execute("INSERT INTO schema_version VALUES (1)")
        old.execute(MIGRATIONS[0].statements[0].replace("{key}", "INTEGER PRIMARY KEY NOT NULL").replace("{int64}", "INTEGER"))
        old.execute(MIGRATIONS[0].statements[1])
        old.execute(V1_INSERT, ("r1", 1, 1_700_000_000_500, "ann", "sonnet", "anthropic", "x", True, 1, 2, 3, 1, 4, "ok", 12, None))
    engine = open_database(f"sqlite:///{path}")
    assert steps_and_reader(engine) == (len(MIGRATIONS), 1)
    with engine.begin() as connection:
        assert connection.execute(sa.select(ledger_table.c.state, ledger_table.c.cost_nano)).all() == [("settled", None)]


def test_many_that_start_at_once_migrate_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/hearth.db"
    with ThreadPoolExecutor(8) as pool:
        engines = list(pool.map(lambda _: open_database(url), range(8)))
    assert {steps_and_reader(engine) for engine in engines} == {(len(MIGRATIONS), 1)}


V1_INSERT = (
    "INSERT INTO ledger (request_id, leg, started_at_ms, caller, alias, provider, model, stream, input_tokens, cache_read_tokens, "
    "cache_write_tokens, cache_write_1h_tokens, output_tokens, outcome, duration_ms, first_token_ms) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


def steps_and_reader(engine: sa.Engine) -> tuple[int, int]:
    """The last step applied, and the oldest version that may use the database."""
    with engine.begin() as connection:
        steps = connection.execute(sa.select(sa.func.max(schema_steps.c.step))).scalar_one()
        return steps, connection.execute(sa.select(schema_version.c.version)).scalar_one()


@pytest.mark.parametrize("fault", ["no directory", "not a database", "a directory"])
def test_a_database_that_cannot_be_used_is_one_sentence(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "hearth.db"
    if fault == "no directory":
        path = tmp_path / "none" / "hearth.db"
    elif fault == "not a database":
        path.write_bytes(b"this is some other file" * 100)
    else:
        path.mkdir()
    with pytest.raises(DatabaseError, match=r"the database .*hearth\.db cannot be used: [a-z ]+$"):
        open_database(f"sqlite:///{path}")


def test_a_fault_is_told_once_and_no_settlement_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "_RETRY_S", 0.05)
    problems: list[str] = []
    path = tmp_path / "hearth.db"
    ledger = open_ledger(path, problems)
    mine = intent()
    ledger.begin(mine)
    # The same fault as a full disk: the database refuses the write.
    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE ledger RENAME TO away")
    ledger.settle(mine, settlement(mine))
    wait_until(lambda: ledger.failing)
    with pytest.raises(GatewayError) as refused:
        ledger.begin(intent(2))
    assert refused.value.kind is Kind.LEDGER_UNAVAILABLE, "what cannot be written down must not be spent"
    assert not ledger.reachable()
    time.sleep(0.2)
    assert len(problems) == 1 and problems[0].startswith("the ledger cannot be written: ")
    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE away RENAME TO ledger")
    wait_until(lambda: not ledger.failing)
    assert ledger.reachable() and ledger.close(PATIENCE_S) == 0
    assert [row["state"] for row in rows(path)] == ["settled"]
    assert sums(path, "house") == {"2023-11": (10, 5, 0, 0)}, "nothing held, nothing charged twice"


def test_a_commit_that_nobody_heard_of_is_not_charged_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection breaks after the database has written: the writer must find out by itself."""
    # Long enough for the second to come before the writer tries again.
    monkeypatch.setattr(ledger_module, "_RETRY_S", 2.0)
    path = tmp_path / "hearth.db"
    ledger = open_ledger(path, [])
    first, second = intent(1), intent(2)
    ledger.begin(first)
    write = ledger._writer.write
    broken: list[int] = []

    def write_and_break(batch: Any) -> None:
        write(batch)
        if len(broken) < 2:
            broken.append(len(batch))
            ledger._writer._careful = True
            raise sa.exc.OperationalError("COMMIT", {}, Exception("the connection was lost"))

    monkeypatch.setattr(ledger._writer, "write", write_and_break)
    ledger.settle(first, settlement(first))
    wait_until(lambda: len(broken) == 1)
    with pytest.raises(GatewayError):
        ledger.begin(second)
    assert ledger.close(PATIENCE_S) == 0 and len(broken) == 2
    assert [(row["request_id"], row["state"], row["cost_nano"], row["outcome"]) for row in rows(path)][:1] == [("r1", "settled", 5, "ok")]
    assert all(row["cost_nano"] == 0 for row in rows(path)[1:]), "an intent nobody acted on is taken back"
    assert sums(path, "house") == {"2023-11": (10, 5, 0, 0)}


def test_who_waited_too_long_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database is busy: one intent is on its way to it, another has not left. Both waits end before."""
    monkeypatch.setattr(ledger_module, "_INTENT_WAIT_S", 1.0)
    path = tmp_path / "hearth.db"
    ledger = open_ledger(path, [])
    write = ledger._writer.write
    on_its_way = threading.Event()

    def write_and_tell(batch: Any) -> None:
        # Its own thread has tried in vain; the ledger's goes on with what there is now.
        if threading.current_thread().name == "ledger":
            on_its_way.set()
        write(batch)

    monkeypatch.setattr(ledger._writer, "write", write_and_tell)
    with sqlite3.connect(path, isolation_level=None) as busy, ThreadPoolExecutor(2) as pool:
        busy.execute("BEGIN IMMEDIATE")
        waits = [pool.submit(ledger.begin, intent(1))]
        assert on_its_way.wait(PATIENCE_S)
        waits.append(pool.submit(ledger.begin, intent(2)))
        assert [wait.exception().kind for wait in waits] == [Kind.LEDGER_UNAVAILABLE] * 2  # type: ignore[union-attr]
        busy.execute("ROLLBACK")
    assert ledger.close(PATIENCE_S) == 0
    assert [(row["request_id"], row["state"], row["cost_nano"]) for row in rows(path)] == [("r1", "settled", 0)]
    assert set(sums(path, "house").values()) == {(0, 0, 0, 0)}


def test_more_than_fits_into_one_transaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "_BATCH", 3)
    monkeypatch.setattr(ledger_module, "_SETTLE_WAIT_S", PATIENCE_S)
    path = tmp_path / "hearth.db"
    ledger = open_ledger(path, [])
    with sqlite3.connect(path, isolation_level=None) as busy, ThreadPoolExecutor(20) as pool:
        busy.execute("BEGIN IMMEDIATE")
        waits = [pool.submit(run, ledger, intent(number)) for number in range(20)]
        wait_until(lambda: ledger.queued == 20)
        busy.execute("ROLLBACK")
        started = time.monotonic()
        assert [wait.exception() for wait in waits] == [None] * 20
        assert time.monotonic() - started < PATIENCE_S / 2, "who is left over waits for the next transaction, and for no timer"
    assert ledger.close(PATIENCE_S) == 0
    assert [row["state"] for row in rows(path)] == ["settled"] * 20


def test_who_comes_first_writes_and_the_first_of_the_others_writes_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "hearth.db"
    ledger = open_ledger(path, [])
    wait_until(lambda: ledger._asleep)  # for a moment after its start it looks whether something waits
    write = ledger._writer.write
    writers: list[tuple[str, int]] = []
    others_wait = threading.Event()

    def write_slowly(batch: Any) -> None:
        writers.append((threading.current_thread().name, len(batch)))
        assert others_wait.wait(PATIENCE_S)
        write(batch)

    monkeypatch.setattr(ledger._writer, "write", write_slowly)
    with ThreadPoolExecutor(9, thread_name_prefix="request") as pool:
        first = pool.submit(ledger.begin, intent(0))
        wait_until(lambda: len(writers) == 1)
        waits = [pool.submit(ledger.begin, intent(number)) for number in range(1, 9)]
        wait_until(lambda: ledger.queued == 9)
        others_wait.set()
        assert [wait.exception(PATIENCE_S) for wait in (first, *waits)] == [None] * 9
    assert [length for _, length in writers] == [1, 8], "all that came meanwhile are one transaction"
    assert all(name.startswith("request") for name, _ in writers), "and no other thread was woken for it"
    assert len(rows(path)) == 9 and ledger.close(PATIENCE_S) == 0


def test_a_settlement_does_not_wait_for_who_is_writing(tmp_path: Path) -> None:
    """The garbage collector settles an answer that nobody closed: perhaps in a thread in the middle of a transaction."""
    path = tmp_path / "hearth.db"
    ledger = open_ledger(path, [])
    mine = intent()
    ledger.begin(mine)

    def interrupted() -> None:
        with ledger._writing:
            ledger.settle(mine, settlement(mine))

    thread = threading.Thread(target=interrupted, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive(), "the thread waits for itself"
    wait_until(lambda: rows(path)[0]["state"] == "settled")
    assert ledger.close(PATIENCE_S) == 0


def test_what_finds_the_database_busy_is_written_by_the_ledgers_own_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "hearth.db"
    ledger = open_ledger(path, [])
    write = ledger._writer.write
    writers: list[str] = []

    def write_and_tell(batch: Any) -> None:
        writers.append(threading.current_thread().name)
        write(batch)

    monkeypatch.setattr(ledger._writer, "write", write_and_tell)
    with sqlite3.connect(path, isolation_level=None) as busy, ThreadPoolExecutor(1, thread_name_prefix="request") as pool:
        busy.execute("BEGIN IMMEDIATE")
        wait = pool.submit(ledger.begin, intent())
        wait_until(lambda: writers.count("ledger") > 1)
        assert not wait.done()
        busy.execute("ROLLBACK")
        assert wait.exception(PATIENCE_S) is None
    assert writers[0].startswith("request") and set(writers[1:]) == {"ledger"}
    assert len(rows(path)) == 1 and ledger.close(PATIENCE_S) == 0


def test_when_too_much_waits_no_more_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "_MAX_QUEUED", 3)
    path = tmp_path / "hearth.db"
    ledger = open_ledger(path, [])
    begun = [intent(number) for number in range(3)]
    for item in begun:
        ledger.begin(item)
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE ledger")
    for item in begun:
        ledger.check()
        ledger.settle(item, settlement(item))
    with pytest.raises(GatewayError):
        ledger.check()
    assert ledger.close(PATIENCE_S) == 3, "rows that could not be written are reported"


# --- a value that the database cannot hold ------------------------------------------------------

TOO_LARGE = 2**64


def with_tokens(of: Settlement, tokens: int) -> Settlement:
    usage = Usage(input=tokens)
    return replace(of, leg=replace(of.leg, usage=usage), usage=usage)


def test_a_settlement_that_cannot_be_written_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "_SETTLE_WAIT_S", PATIENCE_S)  # all of them in one transaction
    problems: list[str] = []
    path = tmp_path / "hearth.db"
    ledger = open_ledger(path, problems)
    begun = [intent(number) for number in range(7)]
    for item in begun:
        ledger.begin(item)
    for number, item in enumerate(begun):
        done = settlement(item)
        ledger.settle(item, with_tokens(done, TOO_LARGE) if number in (0, 4) else done)
    ledger.begin(intent(7))
    assert ledger.alive and ledger.reachable()
    assert ledger.close(PATIENCE_S) == 0
    found = [(row["state"], row["input_tokens"], row["output_tokens"], row["cost_nano"]) for row in rows(path)]
    fine, reserved = ("settled", 1, 4, 5), ("unknown", 30, 70, 500)
    assert found == [reserved, fine, fine, fine, reserved, fine, fine, ("intent", 30, 70, 500)]
    assert sums(path, "house") == {"2023-11": (5 * 10 + 2 * 100, 5 * 5 + 2 * 500, 100, 500)}
    assert len(problems) == 2 and all("charged at what was reserved for it: Python int too large" in problem for problem in problems)


def test_an_intent_that_cannot_be_written_is_refused_and_the_others_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "hearth.db"
    problems: list[str] = []
    ledger = open_ledger(path, problems)
    write, first, go_on = ledger._writer.write, threading.Event(), threading.Event()

    def write_when_all_are_here(batch: Any) -> None:
        first.set()
        assert go_on.wait(PATIENCE_S)
        write(batch)

    monkeypatch.setattr(ledger._writer, "write", write_when_all_are_here)
    with ThreadPoolExecutor(9) as pool:
        waits = [pool.submit(ledger.begin, intent(0))]
        assert first.wait(PATIENCE_S)
        waits += [pool.submit(ledger.begin, intent(number, cost_nano=TOO_LARGE if number == 5 else 500)) for number in range(1, 9)]
        wait_until(lambda: ledger.queued == 9)
        go_on.set()
        errors = [wait.exception(PATIENCE_S) for wait in waits]
    assert [number for number, error in enumerate(errors) if error is not None] == [5]
    assert isinstance(errors[5], GatewayError) and errors[5].kind is Kind.INTERNAL
    ledger.begin(intent(9))
    assert ledger.close(PATIENCE_S) == 0
    assert len(rows(path)) == 9 and len(problems) == 1 and "refused" in problems[0]
    assert sums(path, "house") == {"2023-11": (0, 0, 900, 4500)}, "what was refused holds nothing"


def test_a_limit_of_more_requests_than_a_database_can_count_is_none(tmp_path: Path) -> None:
    path = tmp_path / "hearth.db"
    book = LimitBook(AllLimitsConfig(program=LimitsConfig.model_construct(requests_per_minute=99999999999999999999)))
    ledger = open_ledger(path, [])
    for number in range(3):
        run(ledger, intent(number, book))
    assert ledger.close(PATIENCE_S) == 0 and len(rows(path)) == 3


def test_the_ledgers_thread_outlives_any_mistake_and_a_listener_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "_RETRY_S", 0.01)
    path = tmp_path / "hearth.db"
    problems: list[str] = []

    def fails(*_: object) -> None:
        raise KeyError("a mistake")

    book = LimitBook(AllLimitsConfig(program=LimitsConfig(tokens_per_day=1000)))
    ledger = open_ledger(path, problems, on_sums=fails)
    wait, mistakes = ledger._wait_for_work, iter([KeyError("a mistake")] * 3)

    def wait_wrongly() -> None:
        for mistake in mistakes:
            raise mistake
        wait()

    monkeypatch.setattr(ledger, "_wait_for_work", wait_wrongly)
    for number in range(3):
        run(ledger, intent(number, book))
    wait_until(lambda: [row["state"] for row in rows(path)] == ["settled"] * 3)
    assert ledger.alive and not ledger.failing and ledger.close(PATIENCE_S) == 0
    assert sums(path, "house") == {"2023-11": (30, 15, 0, 0)}, "each written once"
    assert any("KeyError" in problem for problem in problems)


# --- limits in the store -----------------------------------------------------------------------


def test_the_last_cent_goes_to_one_of_fifty(tmp_path: Path) -> None:
    path = tmp_path / "hearth.db"
    book = LimitBook(AllLimitsConfig(program=LimitsConfig(money_per_day_usd=Decimal("0.000001"))))
    ledger = open_ledger(path, [])
    run(ledger, intent(0, book), cost_nano=999)
    refused: list[GatewayError] = []

    def ask(number: int) -> None:
        try:
            ledger.begin(intent(number, book))
        except GatewayError as error:
            refused.append(error)

    with ThreadPoolExecutor(50) as pool:
        list(pool.map(ask, range(1, 51)))
    assert len(refused) == 49 and {error.kind for error in refused} == {Kind.QUOTA_EXCEEDED}
    assert all(error.retry_after_s == 5 for error in refused), "the one that is written may cost less than it could"
    assert sums(path, "program:ann")["2023-11-14"] == (10, 999, 100, 500), "those that were refused hold nothing"
    assert ledger.close(PATIENCE_S) == 0


def test_what_is_used_up_starts_again_with_the_day(tmp_path: Path) -> None:
    path = tmp_path / "hearth.db"
    book = LimitBook(AllLimitsConfig(program=LimitsConfig(tokens_per_day=10)))
    events: list[LimitEvent] = []
    ledger = open_ledger(path, [], on_limit=events.append)
    run(ledger, intent(1, book))
    wait_until(lambda: len(events) == 2)
    with pytest.raises(GatewayError) as refused:
        ledger.begin(intent(2, book))
    assert refused.value.retry_after_s == 6_399 or refused.value.retry_after_s == 6_400
    assert "this program has used its 10 tokens for today. It starts again at 00:00 on 15 November (UTC)" in refused.value.message
    tomorrow = NOW + 6_400
    run(ledger, intent(3, book, at=tomorrow))
    assert ledger.close(PATIENCE_S) == 0
    assert [(event.level, event.period, event.share) for event in events] == [
        ("soft", "2023-11-14", 1.0), ("hard", "2023-11-14", 1.0), ("soft", "2023-11-15", 1.0), ("hard", "2023-11-15", 1.0),
    ]  # fmt: skip


def test_a_soft_limit_is_told_once_in_its_period(tmp_path: Path) -> None:
    book = LimitBook(AllLimitsConfig(soft_share=0.5, program=LimitsConfig(tokens_per_day=100)))
    events: list[LimitEvent] = []
    path = tmp_path / "hearth.db"
    for process in range(2):  # also after a restart
        ledger = open_ledger(path, [], on_limit=events.append)
        for number in range(4):
            run(ledger, intent(10 * process + number, book))
        assert ledger.close(PATIENCE_S) == 0
    assert [(event.level, event.share >= 0.5) for event in events] == [("soft", True)]


def test_a_ceiling_that_was_raised_is_told_of_again(tmp_path: Path) -> None:
    own = LimitsConfig(tokens_per_day=20)
    book = LimitBook(AllLimitsConfig(soft_share=0.5), lambda _email: own)
    events: list[LimitEvent] = []
    ledger = open_ledger(tmp_path / "hearth.db", [], on_limit=events.append)

    def use_ten(number: int) -> list[str]:
        before = len(events)
        run(ledger, intent(number, book, person="ann@example.org"))
        wait_until(lambda: ledger.queued == 0)
        ledger.begin(intent(1000 + number))  # with what was queued; nobody's, for no ceiling
        return [event.level for event in events[before:]]

    assert [use_ten(number) for number in range(2)] == [["soft"], ["hard"]]
    own = LimitsConfig(tokens_per_day=35)  # half of it is used already
    assert [use_ten(number) for number in range(2, 4)] == [[], ["hard"]]
    own = LimitsConfig(tokens_per_day=120)
    assert [use_ten(number) for number in range(4, 12)] == [[], ["soft"], [], [], [], [], [], ["hard"]]
    assert ledger.close(PATIENCE_S) == 0


def test_requests_of_any_minute(tmp_path: Path) -> None:
    book = LimitBook(AllLimitsConfig(program=LimitsConfig(requests_per_minute=3)))
    ledger = open_ledger(tmp_path / "hearth.db", [])
    for number, second in enumerate((0, 10, 20)):
        run(ledger, intent(number, book, at=NOW + second))
    with pytest.raises(GatewayError) as refused:
        ledger.begin(intent(4, book, at=NOW + 30))
    assert refused.value.retry_after_s == 30 and "3 requests a minute" in refused.value.message
    ledger.begin(intent(2, book, leg=2, at=NOW + 30))  # the second provider of an accepted request
    run(ledger, intent(5, book, at=NOW + 60.1))
    assert ledger.close(PATIENCE_S) == 0


def test_a_clock_that_was_ahead_locks_nobody_out(tmp_path: Path) -> None:
    book = LimitBook(AllLimitsConfig(program=LimitsConfig(requests_per_minute=3)))
    ledger = open_ledger(tmp_path / "hearth.db", [])
    ahead_s = 5 * 3600
    for number in range(3):
        run(ledger, intent(number, book, at=NOW + ahead_s + number))
    for number in range(3, 6):
        run(ledger, intent(number, book, at=NOW + number / 10))
    with pytest.raises(GatewayError, match="quota_exceeded"):
        ledger.begin(intent(6, book, at=NOW - 0.2))  # by a replica whose clock is a little behind
    usage = SqlUsage(open_database(f"sqlite:///{tmp_path}/hearth.db"))
    (left,) = (limit for limit in UsageReport(usage, book).of(Caller("ann"), 1, NOW + 1)["limits"])
    assert (left["used"], left["left"]) == ("3", "0")
    assert ledger.close(PATIENCE_S) == 0


# --- the dead ----------------------------------------------------------------------------------


Charged = list[tuple[str, str, int]]


def housekeeper(path: Path, instance: str, clock: FakeClock | None = None, detail_days: int = 30) -> tuple[Housekeeper, Charged]:
    found: Charged = []
    keeper = Housekeeper(
        open_database(f"sqlite:///{path}"), clock or FakeClock(), BOOK.calendar, detail_days, instance, found.append,  # type: ignore[arg-type]
        lambda provider, model, count: found.append((provider, model, count)),
    )  # fmt: skip
    return keeper, found


def test_intents_of_the_dead_are_charged_as_unknown_and_those_of_the_living_are_not(tmp_path: Path) -> None:
    path = tmp_path / "hearth.db"
    dead, alive = open_ledger(path, []), open_ledger(path, [])
    living, _ = housekeeper(path, alive.instance)
    living.start()
    mine, theirs = intent(1), intent(2)
    dead.begin(mine)
    alive.begin(theirs)
    newcomer, charged = housekeeper(path, "new")
    newcomer.start()
    assert charged == [("anthropic", "claude-x", 1)]
    assert [(row["state"], row["cost_nano"]) for row in rows(path)] == [("unknown", 500), ("intent", 500)]
    assert sums(path, "program:ann")["2023-11-14"] == (100, 500, 100, 500)
    assert newcomer.recover() == 0, "charged once"
    # It was not dead after all: what it knows counts.
    dead.settle(mine, settlement(mine))
    alive.settle(theirs, settlement(theirs))
    for ledger in (dead, alive):
        assert ledger.close(PATIENCE_S) == 0
    assert [(row["state"], row["cost_nano"]) for row in rows(path)] == [("settled", 5), ("settled", 5)]
    assert sums(path, "program:ann")["2023-11-14"] == (20, 10, 0, 0)
    living.stop()
    newcomer.stop()
    assert not list(tmp_path.glob("*.alive"))


def test_nothing_stays_of_who_died_without_an_open_intent(tmp_path: Path) -> None:
    path = tmp_path / "hearth.db"
    living, _ = housekeeper(path, "living")
    living.start()
    for number in range(3):
        (tmp_path / f"hearth.db-dead{number}.alive").touch()
    (tmp_path / "other.db-living.alive").touch()
    newcomer, _ = housekeeper(path, "new")
    newcomer.start()
    newcomer.tidy()
    left = ["hearth.db-living.alive", "hearth.db-new.alive", "other.db-living.alive"]
    assert sorted(file.name for file in tmp_path.glob("*.alive")) == left
    living.stop()
    newcomer.stop()


def test_who_starts_lives_whoever_tidies_up_at_that_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper, _ = housekeeper(tmp_path / "hearth.db", "old")
    lock, taken_away = fcntl.flock, iter(["once"])

    def tidied_up_before(file: Any, how: int) -> None:
        if how == fcntl.LOCK_EX:
            for _ in taken_away:
                keeper.tidy()
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", tidied_up_before)
    newcomer, _ = housekeeper(tmp_path / "hearth.db", "new")
    newcomer.start()
    keeper.tidy()
    assert [file.name for file in tmp_path.glob("*.alive")] == ["hearth.db-new.alive"]
    newcomer.stop()


# --- sums instead of old rows ------------------------------------------------------------------


def test_old_rows_become_sums_of_days_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "hearth.db"
    ledger = open_ledger(path, [])
    clock = FakeClock()
    day_s = 86_400
    for number in range(60):
        at = clock.time() - (number % 20) * day_s / 2 - number
        run(ledger, intent(number, at=at, person="ann@example.org" if number % 3 else None), cost_nano=None if number % 7 == 0 else number)
    ledger.begin(intent(99, at=clock.time() - 9 * day_s))
    assert ledger.close(PATIENCE_S) == 0
    before = everything(path)
    keeper, _ = housekeeper(path, "keeper", clock, detail_days=3)
    keeper.tidy()
    assert everything(path) == before
    keeper.tidy()
    assert everything(path) == before
    left = rows(path)
    first_kept = BOOK.calendar.start_of(BOOK.calendar.date(clock.time()) - datetime.timedelta(days=3))
    assert 0 < len(left) < 61
    assert all(row["started_at_ms"] >= first_kept * 1000 for row in left if row["state"] != "intent")
    assert [row["request_id"] for row in left if row["state"] == "intent"] == ["r99"], "a leg that is not over keeps its row"


def test_a_clock_that_was_ahead_makes_no_limit_start_again(tmp_path: Path) -> None:
    path = tmp_path / "hearth.db"
    limits = LimitsConfig(tokens_per_day=10), LimitsConfig(money_per_month_usd=Decimal("0.000001"))
    books = [LimitBook(AllLimitsConfig(program=limit)) for limit in limits]
    ledger = open_ledger(path, [])
    run(ledger, intent(0), cost_nano=1000)
    ahead = FakeClock()
    ahead.sleep(500 * 86_400)
    run(ledger, intent(1, at=ahead.time()))
    wait_until(lambda: ledger.queued == 0)
    housekeeper(path, "keeper", ahead)[0].tidy()
    for number, book in enumerate(books):
        with pytest.raises(GatewayError, match="quota_exceeded"):
            ledger.begin(intent(2 + number, book))
    assert ledger.close(PATIENCE_S) == 0


def test_sums_that_no_limit_can_ask_for_go(tmp_path: Path) -> None:
    path = tmp_path / "hearth.db"
    ledger = open_ledger(path, [])
    clock = FakeClock()
    days = [*range(60), *range(60, 600, 30)]
    for number, day in enumerate(days):
        run(ledger, intent(number, at=clock.time() - day * 86_400))
    assert ledger.close(PATIENCE_S) == 0
    housekeeper(path, "keeper", clock)[0].tidy()
    kept = sums(path, "program:ann")
    assert (
        min(period for period in kept if len(period) == 10) == "2023-10-05" and len([period for period in kept if len(period) == 10]) == 41
    )
    assert min(sums(path, "house")) == min(period for period in kept if len(period) == 7) == "2022-10"


def everything(path: Path) -> list[tuple[object, ...]]:
    """Legs, tokens and money of each person, wherever they are kept."""
    with sqlite3.connect(path) as connection:
        return connection.execute("""
            SELECT person, SUM(legs), SUM(input), SUM(read), SUM(output), SUM(cost), SUM(unpriced) FROM (
                SELECT COALESCE(person, '') AS person, 1 AS legs, input_tokens AS input, cache_read_tokens AS read,
                    output_tokens AS output, COALESCE(cost_nano, 0) AS cost, cost_nano IS NULL AS unpriced
                FROM ledger WHERE state <> 'intent'
                UNION ALL SELECT person, legs, input_tokens, cache_read_tokens, output_tokens, cost_nano, unpriced_legs FROM usage_days
            ) GROUP BY person ORDER BY person""").fetchall()


def wait_until(condition: object) -> None:
    deadline = time.monotonic() + 30
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)
