"""The ledger: what is written, when, and what happens when it cannot be."""

from __future__ import annotations

import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from hearth_gateway.core.identity import Caller
from hearth_gateway.core.metering import Leg
from hearth_gateway.errors import GatewayError
from hearth_gateway.store import ledger as ledger_module
from hearth_gateway.store.database import MIGRATIONS, DatabaseError, Step, migrate, open_database
from hearth_gateway.store.ledger import Ledger
from hearth_gateway.store.tables import ledger as ledger_table
from hearth_gateway.store.tables import metadata, schema_steps, schema_version
from hearth_gateway.translate.events import Usage


def leg(number: int = 1) -> Leg:
    return Leg(
        request_id=f"r{number}", leg=1, started_at=1_700_000_000.5, caller=Caller("ann"), alias="sonnet",
        provider="anthropic", model="claude-x", stream=True,
        usage=Usage(input=1, cache_read=2, cache_write=3, cache_write_1h=1, output=4),
        outcome="ok", duration_s=1.25, first_token_s=None,
    )  # fmt: skip


def open_ledger(path: Path, problems: list[str]) -> Ledger:
    return Ledger(open_database(f"sqlite:///{path}"), problems.append)


def rows(path: Path) -> list[tuple[object, ...]]:
    with sqlite3.connect(path) as connection:
        return connection.execute("SELECT * FROM ledger ORDER BY id").fetchall()


def test_rows_are_written_soon_and_at_the_close(tmp_path: Path) -> None:
    problems: list[str] = []
    path = tmp_path / "hearth.db"
    ledger = open_ledger(path, problems)
    ledger.record(leg())
    deadline = time.monotonic() + 10
    while not rows(path) and time.monotonic() < deadline:
        time.sleep(0.02)
    expected = (1, "r1", 1, 1_700_000_000_500, "ann", "sonnet", "anthropic", "claude-x", 1, 1, 2, 3, 1, 4, "ok", 1250, None)
    assert rows(path)[0][:17] == expected
    for number in range(2, 1202):
        ledger.record(leg(number))
    assert ledger.close(10) == 0
    assert len(rows(path)) == 1201 and problems == []


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


def test_a_fault_is_told_once_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "_RETRY_S", 0.05)
    problems: list[str] = []
    path = tmp_path / "hearth.db"
    ledger = open_ledger(path, problems)
    # The same fault as a full disk: the database refuses to grow.
    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE ledger RENAME TO away")
    ledger.record(leg())
    wait_until(lambda: ledger.failing)
    assert not ledger.reachable()
    time.sleep(0.2)
    assert len(problems) == 1 and problems[0].startswith("the ledger cannot be written: ")
    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE away RENAME TO ledger")
    wait_until(lambda: not ledger.failing)
    assert ledger.reachable() and len(rows(path)) == 1
    assert ledger.close(10) == 0


def test_when_too_much_waits_no_more_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "_MAX_QUEUED", 3)
    path = tmp_path / "hearth.db"
    ledger = open_ledger(path, [])
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE ledger")
    for number in range(3):
        ledger.check()
        ledger.record(leg(number))
    with pytest.raises(GatewayError):
        ledger.check()
    assert ledger.close(10) == 3, "rows that could not be written are reported"


def wait_until(condition: object) -> None:
    deadline = time.monotonic() + 10
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)
