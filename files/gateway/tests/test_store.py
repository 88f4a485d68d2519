"""The ledger: what is written, when, and what happens when it cannot be."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from hearth_gateway.core.identity import Caller
from hearth_gateway.core.metering import Leg
from hearth_gateway.errors import GatewayError
from hearth_gateway.store import ledger as ledger_module
from hearth_gateway.store.database import MIGRATIONS, DatabaseError, migrate, open_database
from hearth_gateway.store.ledger import Ledger
from hearth_gateway.store.tables import metadata
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
    assert rows(path) == [(1, "r1", 1, 1_700_000_000_500, "ann", "sonnet", "anthropic", "claude-x", 1, 1, 2, 3, 1, 4, "ok", 1250, None)]
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
    url = f"sqlite:///{tmp_path}/hearth.db"
    open_database(url).dispose()
    engine = open_database(url)
    steps = [*MIGRATIONS, ("ALTER TABLE ledger ADD COLUMN note TEXT", "this is no SQL")]
    with pytest.raises(sa.exc.OperationalError):
        migrate(engine, steps)
    assert "note" not in {column["name"] for column in sa.inspect(engine).get_columns("ledger")}
    steps[-1] = ("ALTER TABLE ledger ADD COLUMN note TEXT",)
    migrate(engine, steps)
    engine.dispose()
    with pytest.raises(DatabaseError, match="newer hearth-gateway"):
        open_database(url)


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
