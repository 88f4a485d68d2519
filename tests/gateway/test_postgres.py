"""The store on a real PostgreSQL server: opening, migrating, and what an operator reads when it fails."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from postgres_support import PASSWORD, Server

from hearth_gateway.store.database import MIGRATIONS, DatabaseError, Step, migrate, open_database
from hearth_gateway.store.tables import metadata


def test_the_migrations_make_the_tables_of_the_code(postgresql: Server) -> None:
    engine = open_database(postgresql.database().url, PASSWORD)
    found = sa.inspect(engine)
    for table in metadata.sorted_tables:
        columns = {column["name"]: bool(column["nullable"]) for column in found.get_columns(table.name)}
        assert columns == {column.name: bool(column.nullable) for column in table.columns}
    assert set(found.get_table_names()) == set(metadata.tables)
    wide = {column["name"] for column in found.get_columns("ledger") if isinstance(column["type"], sa.BigInteger)}
    assert {"id", "started_at_ms", "cost_nano"} <= wide, "milliseconds and nano-dollars do not fit 32 bits"
    engine.dispose()


def test_over_a_unix_socket(postgresql: Server) -> None:
    open_database(postgresql.database().socket_url, PASSWORD).dispose()


def test_replicas_that_start_at_once_migrate_once(postgresql: Server) -> None:
    database = postgresql.database()
    with ThreadPoolExecutor(8) as pool:
        for engine in pool.map(lambda _: open_database(database.url, PASSWORD), range(8)):
            engine.dispose()
    with database.connect() as connection:
        steps = connection.execute("SELECT step FROM schema_steps ORDER BY step").fetchall()
        assert steps == [(number,) for number in range(1, len(MIGRATIONS) + 1)]
        assert connection.execute("SELECT version FROM schema_version").fetchall() == [(1,)]


def test_steps_are_applied_all_or_none(postgresql: Server) -> None:
    engine = open_database(postgresql.database().url, PASSWORD)
    with pytest.raises(sa.exc.ProgrammingError):
        migrate(engine, [*MIGRATIONS, Step(("ALTER TABLE ledger ADD COLUMN note TEXT", "this is no SQL"))])
    assert "note" not in {column["name"] for column in sa.inspect(engine).get_columns("ledger")}
    engine.dispose()


def test_the_first_versions_insert_works_on_todays_tables(postgresql: Server) -> None:
    database = postgresql.database()
    open_database(database.url, PASSWORD).dispose()
    with database.connect() as connection:
        connection.execute(
            "INSERT INTO ledger (request_id, leg, started_at_ms, caller, alias, provider, model, stream, input_tokens, "
            "cache_read_tokens, cache_write_tokens, cache_write_1h_tokens, output_tokens, outcome, duration_ms, first_token_ms) "
            "VALUES ('r1', 1, 1700000000500, 'ann', 'sonnet', 'anthropic', 'x', true, 1, 2, 3, 1, 4, 'ok', 12, NULL)"
        )
        assert connection.execute("SELECT state, cost_nano, person FROM ledger").fetchall() == [("settled", None, None)]


@pytest.mark.parametrize(
    ("fault", "words"),
    [("password", "password authentication failed"), ("port", "refused"), ("database", "does not exist")],
)
def test_a_server_that_cannot_be_used_is_one_sentence(postgresql: Server, fault: str, words: str) -> None:
    database = postgresql.database()
    url, password = database.url, PASSWORD
    if fault == "password":
        password = "wrong-password-0123456789"
    elif fault == "port":
        url = url.replace(str(postgresql.port), "1")
    else:
        url += "_gone"
    with pytest.raises(DatabaseError) as refused:
        open_database(url, password)
    said = str(refused.value)
    assert words in said and "\n" not in said
    assert password not in said and refused.value.__cause__ is None
