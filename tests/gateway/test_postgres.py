"""The store on a real PostgreSQL server: opening, migrating, and what an operator reads when it fails."""

from __future__ import annotations

import datetime
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from postgres_support import PASSWORD, Server

from hearth_gateway.clock import SystemClock
from hearth_gateway.config import AllLimitsConfig
from hearth_gateway.core.identity import Caller
from hearth_gateway.core.limits import LimitBook
from hearth_gateway.core.metering import Intent, Leg, Settlement
from hearth_gateway.core.usage import UsageReport
from hearth_gateway.errors import GatewayError
from hearth_gateway.store.database import MIGRATIONS, DatabaseError, Step, migrate, open_database
from hearth_gateway.store.housekeeping import Housekeeper
from hearth_gateway.store.ledger import Ledger
from hearth_gateway.store.people import SqlPeople
from hearth_gateway.store.tables import metadata, settings
from hearth_gateway.store.usage import SqlUsage
from hearth_gateway.translate.events import Usage


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


def test_replicas_that_start_at_once_have_one_key(postgresql: Server) -> None:
    engine = open_database(postgresql.database().url, PASSWORD)
    for _ in range(5):
        together = threading.Barrier(5)

        def key(together: threading.Barrier = together) -> bytes:
            together.wait()
            return SqlPeople(engine).pseudonym_key()

        with ThreadPoolExecutor(5) as pool:
            keys = {wait.result() for wait in [pool.submit(key) for _ in range(5)]}
        assert len(keys) == 1
        with engine.begin() as connection:
            connection.execute(sa.delete(settings))
    engine.dispose()


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


def test_a_number_of_more_than_32_bits_stops_nobody(postgresql: Server) -> None:
    database = postgresql.database()
    engine = open_database(database.url, PASSWORD)
    problems: list[str] = []
    ledger = Ledger(engine, problems.append)
    leg(ledger, 2, TODAY, 500, tokens=3_000_000_000)
    with pytest.raises(GatewayError):
        leg(ledger, 3, TODAY, 2**70)
    leg(ledger, 4, TODAY, 500)
    assert ledger.reachable() and ledger.close(10) == 0
    with database.connect() as connection:
        rows = connection.execute("SELECT request_id, state, input_tokens, cost_nano FROM ledger ORDER BY id").fetchall()
    assert rows == [("r2", "unknown", 10, 500), ("r4", "settled", 4, 500)]
    assert [problem.partition(": ")[2] for problem in problems] == ["integer out of range", "bigint out of range"]
    engine.dispose()


# --- what a housekeeper does -------------------------------------------------------------------

BOOK = LimitBook(AllLimitsConfig(time_zone="Europe/Berlin"))
TODAY = datetime.datetime(2026, 11, 21, 12, tzinfo=datetime.UTC).timestamp()


class Noon(SystemClock):
    def time(self) -> float:
        return TODAY


def leg(ledger: Ledger, number: int, at: float, cost_nano: int | None, settled: bool = True, tokens: int | None = None) -> None:
    caller = Caller("app", "ann@example.org" if number % 2 else None)
    intent = Intent(f"r{number}", 1, at, caller, "sonnet", "anthropic", "x", False, 10, 20, 0, cost_nano, BOOK.bounds(caller, at))
    ledger.begin(intent)
    if settled:
        usage = Usage(input=tokens or number, output=1)
        done = Leg(f"r{number}", 1, at, caller, "sonnet", "anthropic", "x", False, usage, "ok", 1, None)
        ledger.settle(intent, Settlement(done, usage, "settled", cost_nano))


def test_sums_of_days_lose_nothing_and_two_replicas_do_not_count_twice(postgresql: Server) -> None:
    database = postgresql.database()
    engine = open_database(database.url, PASSWORD)
    ledger = Ledger(engine, lambda problem: None)
    for number in range(40):
        leg(ledger, number, TODAY - number * 43_200, None if number % 5 == 0 else number)
    assert ledger.close(10) == 0
    usage = SqlUsage(engine)
    ann, app = Caller("proxy", "ann@example.org", browser=True), Caller("app")

    def report(caller: Caller) -> object:
        return UsageReport(usage, BOOK).of(caller, 60, TODAY)

    before = report(ann), report(app)
    keepers = [Housekeeper(engine, Noon(), BOOK.calendar, 5, f"keeper-{number}", lambda problem: None) for number in range(2)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda keeper: keeper.tidy(), keepers))
    assert (report(ann), report(app)) == before
    with database.connect() as connection:
        (left,) = connection.execute("SELECT count(*) FROM ledger").fetchone() or (0,)
        (days,) = connection.execute("SELECT count(*) FROM usage_days").fetchone() or (0,)
        (legs,) = connection.execute("SELECT sum(legs) FROM usage_days").fetchone() or (0,)
    assert left + legs == 40 and 0 < days <= legs
    engine.dispose()


def test_a_clock_that_was_ahead_makes_no_limit_start_again(postgresql: Server) -> None:
    database = postgresql.database()
    engine = open_database(database.url, PASSWORD)
    ledger = Ledger(engine, lambda problem: None)

    class Ahead(SystemClock):
        def time(self) -> float:
            return TODAY + 500 * 86_400

    for number in range(60):
        leg(ledger, number, TODAY - number * 86_400, 1)
    leg(ledger, 60, Ahead().time(), 1)
    assert ledger.close(10) == 0
    Housekeeper(engine, Ahead(), BOOK.calendar, 30, "keeper", lambda problem: None).tidy()
    with database.connect() as connection:
        left = connection.execute("SELECT period FROM spending WHERE scope = 'program:app' ORDER BY period COLLATE \"C\" DESC").fetchall()
    days = [period for (period,) in left if len(period) == 10]
    assert len(days) == 40 and days[:3] == ["2028-04-04", "2026-11-21", "2026-11-20"]
    assert [period for (period,) in left if len(period) == 7] == ["2028-04", "2026-11", "2026-10", "2026-09"]
    engine.dispose()


def test_who_was_silent_for_half_a_minute_is_dead(postgresql: Server) -> None:
    database = postgresql.database()
    engine = open_database(database.url, PASSWORD)
    ledger = Ledger(engine, lambda problem: None)
    silent = Housekeeper(engine, Noon(), BOOK.calendar, 30, ledger.instance, lambda problem: None)
    silent.start()
    leg(ledger, 1, TODAY, 500, settled=False)
    charged: list[int] = []

    def charge(_provider: str, _model: str, count: int) -> None:
        charged.append(count)

    other = Housekeeper(engine, Noon(), BOOK.calendar, 30, "other", lambda problem: None, charge)
    other.start()
    assert charged == [], "it was there a moment ago"
    silent.stop()
    with database.connect() as connection:
        connection.execute("INSERT INTO instances VALUES (%s, (EXTRACT(EPOCH FROM now()) * 1000)::BIGINT - 31000)", (ledger.instance,))
    assert other.recover() == 1 and charged == [1]
    with database.connect() as connection:
        assert connection.execute("SELECT state, cost_nano FROM ledger").fetchall() == [("unknown", 500)]
        rows = connection.execute("SELECT nano, held_nano FROM spending WHERE scope = 'house'").fetchall()
    assert rows == [(500, 0)]
    with database.connect() as connection:  # one that died with nothing open
        connection.execute("INSERT INTO instances VALUES ('idle', (EXTRACT(EPOCH FROM now()) * 1000)::BIGINT - 31000)")
        other.tidy()
        assert connection.execute("SELECT id FROM instances").fetchall() == [("other",)]
    other.stop()
    assert ledger.close(10) == 0
    engine.dispose()


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
