"""A person with another address: what they used goes along, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import sqlalchemy as sa
from gateway_support import Gateway, wait_for
from people_support import ANN, BOB, HOUSE, NOTICED_S, PROXY, Answer, auth, me, person
from postgres_support import PASSWORD

from hearth_gateway.config import LimitsConfig
from hearth_gateway.core.people import Person
from hearth_gateway.store import tables
from hearth_gateway.store.database import open_database
from hearth_gateway.store.people import SqlPeople

NEW = "ann@example.net"
HELLO = {"model": "sonnet", "max_tokens": 20, "messages": [{"role": "user", "content": "one two three"}]}
# One answer to HELLO costs more: three tokens in, five out.
A_MONTH = "0.00008"


# --- in the store --------------------------------------------------------------------------------


@pytest.fixture
def engine(store: dict[str, Any], tmp_path: Path) -> Iterator[sa.Engine]:
    url = store.get("database_url")
    made = open_database(url, PASSWORD) if url else open_database(f"sqlite:///{tmp_path}/hearth.db")
    yield made
    made.dispose()


def a_row(request: str, who: str, state: str = "settled") -> dict[str, Any]:
    return {
        "request_id": request, "leg": 1, "started_at_ms": 1, "caller": "proxy", "alias": "a", "provider": "p", "model": "m",
        "stream": False, "input_tokens": 1, "cache_read_tokens": 0, "cache_write_tokens": 0, "cache_write_1h_tokens": 0,
        "output_tokens": 9, "outcome": "ok", "duration_ms": 1, "person": who, "state": state, "cost_nano": 63,
    }  # fmt: skip


def a_day(who: str, tokens: int, model: str = "m") -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys((column.name for column in tables.usage_days.c), 0)
    return row | {
        "day": "2026-11-20", "caller": "proxy", "person": who, "alias": "a", "provider": "p", "model": model,
        "state": "settled", "requests": 1, "legs": 1, "output_tokens": tokens, "cost_nano": tokens * 7,
    }  # fmt: skip


def a_sum(who: str, period: str, tokens: int, held: int = 0, reported: int = 0) -> dict[str, Any]:
    scope = {"scope": f"person:{who}", "period": period}
    return scope | {"tokens": tokens, "nano": tokens * 7, "held_tokens": held, "held_nano": held * 7, "reported": reported}


def put(engine: sa.Engine, table: sa.Table, *rows: dict[str, Any]) -> None:
    with engine.begin() as connection:
        connection.execute(sa.insert(table), list(rows))


def read(engine: sa.Engine, *columns: sa.ColumnElement[Any]) -> set[tuple[Any, ...]]:
    with engine.begin() as connection:
        return {tuple(row) for row in connection.execute(sa.select(*columns))}


def test_everything_that_was_used_goes_along_and_is_added_up(engine: sa.Engine) -> None:
    people = SqlPeople(engine)
    limits = LimitsConfig(requests_per_minute=3)
    people.put(Person(ANN, 5.0, alias="Ann", limits=limits))
    people.put(Person(BOB, 6.0))
    put(engine, tables.ledger, a_row("r1", ANN), a_row("r2", ANN, "unknown"), a_row("r3", BOB))
    put(engine, tables.usage_days, a_day(ANN, 5), a_day(NEW, 100), a_day(ANN, 3, "other"), a_day(BOB, 2))
    put(engine, tables.spending, a_sum(ANN, "2026-11", 10, reported=16), a_sum(NEW, "2026-11", 1, reported=1), a_sum(ANN, "2026-11-21", 4))
    done = people.rename(ANN, NEW)
    assert (done.changed, done.ledger_rows, done.daily_sums, done.open_rows) == (True, 2, 2, 0)
    assert people.get(NEW) == Person(NEW, 5.0, alias="Ann", limits=limits)
    assert people.get(ANN) == Person(ANN, 5.0, active=False)
    assert read(engine, tables.ledger.c.request_id, tables.ledger.c.person) == {("r1", NEW), ("r2", NEW), ("r3", BOB)}
    days = tables.usage_days.c
    assert read(engine, days.person, days.model, days.output_tokens, days.requests) == {
        (NEW, "m", 105, 2), (NEW, "other", 3, 1), (BOB, "m", 2, 1),
    }  # fmt: skip
    sums = tables.spending.c
    assert read(engine, sums.scope, sums.period, sums.tokens, sums.nano, sums.reported) == {
        (f"person:{NEW}", "2026-11", 11, 77, 17), (f"person:{NEW}", "2026-11-21", 4, 28, 0),
    }  # fmt: skip
    version = people.version()
    again = people.rename(ANN, NEW)
    assert (again.changed, people.version()) == (False, version)


def test_what_is_still_open_stays_until_it_is_over(engine: sa.Engine) -> None:
    """Its settlement gives back what is held where it was taken, so both have to stay together."""
    people = SqlPeople(engine)
    people.put(Person(ANN, 5.0))
    put(engine, tables.ledger, a_row("r1", ANN), a_row("r2", ANN, "intent"))
    put(engine, tables.spending, a_sum(ANN, "2026-11", 10, held=8))
    assert people.rename(ANN, NEW).open_rows == 1
    sums = tables.spending.c
    held = sa.select(sums.scope, sums.tokens, sums.held_tokens, sums.held_nano)
    assert read(engine, *held.selected_columns) == {(f"person:{NEW}", 10, 0, 0), (f"person:{ANN}", 0, 8, 56)}
    # The answer ends and is charged to the former address.
    with engine.begin() as connection:
        connection.execute(sa.update(tables.ledger).values(state="settled"))
        connection.execute(sa.update(tables.spending).where(sums.held_tokens > 0).values(tokens=2, nano=14, held_tokens=0, held_nano=0))
    done = people.rename(ANN, NEW)
    assert (done.changed, done.ledger_rows, done.open_rows) == (True, 1, 0)
    assert read(engine, *held.selected_columns) == {(f"person:{NEW}", 12, 0, 0)}


def test_a_person_who_was_there_keeps_what_is_their_own(engine: sa.Engine) -> None:
    people = SqlPeople(engine)
    people.put(Person(ANN, 5.0, alias="Ann", limits=LimitsConfig(requests_per_minute=3), not_before=9.0))
    own = LimitsConfig(requests_per_minute=1)
    people.put(Person(NEW, 7.0, active=False, alias="Annie", limits=own))
    people.rename(ANN, NEW)
    assert people.get(NEW) == Person(NEW, 5.0, alias="Annie", limits=own, not_before=9.0)


# --- with the service running --------------------------------------------------------------------


@pytest.fixture
def gateway(own: Callable[..., Gateway], store: dict[str, Any]) -> Gateway:
    tokens = {"proxy": ["proxy"], "end_users": ["house"]}
    gateway = own(tokens=tokens, limits={"person": {"money_per_month_usd": A_MONTH}}, start=False, **store)
    for name, token in (("proxy", PROXY), ("house", HOUSE)):
        (gateway.tokens / name).write_text(token)
    gateway.start()
    return gateway


def ask(gateway: Gateway, email: str) -> httpx.Response:
    return httpx.post(f"{gateway.url}/v1/chat/completions", headers=auth(email), json=HELLO)


def spent(gateway: Gateway, email: str) -> Decimal:
    # Two days: midnight may come in the middle of a test.
    usage = httpx.get(f"{gateway.url}/api/usage?days=2", headers=auth(email)).json()
    return Decimal(str(usage["total"]["cost_usd"]))


def shares(gateway: Gateway) -> list[str]:
    return [line for line in gateway.metrics().splitlines() if line.startswith("hearth_limit_used_ratio{")]


def test_what_was_used_this_month_counts_against_the_limit_of_the_new_address(gateway: Gateway) -> None:
    assert ask(gateway, ANN).status_code == 200
    gateway.settled_rows()
    cost = spent(gateway, ANN)
    assert cost > Decimal(A_MONTH)
    assert ask(gateway, ANN).status_code == 429
    assert len(shares(gateway)) == 1
    done = person(gateway, "rename", "-", stdin=f"{ANN} {NEW}\n")
    assert (done["changed"], done["person"]["email"], done["ledger_rows"], done["open_rows"]) == (True, NEW, 1, 0)
    wait_for(lambda: me(gateway, ANN)[0] == 403, "the former address to be refused")
    assert shares(gateway) == [], "of nobody by that address any more"
    refused = ask(gateway, NEW)
    assert refused.status_code == 429
    assert "for this month" in refused.json()["error"]["message"]
    assert spent(gateway, NEW) == cost
    assert person(gateway, "rename", ANN, "--to", NEW)["changed"] is False


def test_an_open_answer_is_cut_and_charged_before_it_goes_along(gateway: Gateway) -> None:
    answer = Answer(gateway, auth(ANN)).begun()
    done = person(gateway, "rename", ANN, "--to", NEW)
    wait_for(lambda: answer.over, "its reader to see that it was cut", NOTICED_S)
    assert (done["ledger_rows"], done["open_rows"]) == (1, 0)
    assert {row["person"] for row in gateway.rows()} == {NEW}
    # Nothing is left held, nor in the name of the former address.
    scopes = gateway.query("SELECT * FROM spending WHERE scope LIKE 'person:%'")
    assert {row["scope"] for row in scopes} == {f"person:{NEW}"}
    assert all((row["held_tokens"], row["held_nano"]) == (0, 0) and row["tokens"] > 0 for row in scopes)


@pytest.mark.parametrize(
    ("arguments", "stdin", "problem"),
    [
        ([ANN, "--to", ANN], None, "both addresses are the same"),
        ([ANN], None, "--to EMAIL is missing"),
        (["-"], ANN, "must have 2 addresses in one line"),
        (["-", "--to", NEW], f"{ANN} {BOB}", "must have 1 address in one line"),
        ([ANN, "--to", "ann"], None, "the address must be one address"),
    ],
)
def test_wrong_arguments_change_nothing(shared: Gateway, arguments: list[str], stdin: str | None, problem: str) -> None:
    said = person(shared, "rename", *arguments, stdin=stdin, status=2)
    assert problem in said
    assert person(shared, "list") == {"people": []}


def test_nobody_by_that_address(shared: Gateway) -> None:
    assert person(shared, "rename", ANN, "--to", NEW) == {"changed": False, "person": None}
    assert person(shared, "list") == {"people": []}
