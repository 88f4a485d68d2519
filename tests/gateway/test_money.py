"""Money over real sockets, on SQLite and on a real PostgreSQL: the bill, crashes, limits, two gateways at once."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai
import pytest
from bad_servers import Gate
from gateway_support import SCENARIOS, SECOND_SCENARIOS, TOKEN, Gateway, Mock, wait_for
from gateway_support import SOURCE as GATEWAY_SOURCE
from postgres_support import PASSWORD, Server, on

Make = Callable[..., Gateway]
HELLO: Any = [{"role": "user", "content": "one two three"}]
# A word takes 0.2 s: still being written when the test, on a busy machine, gets to what it does in the middle of it.
LONG_WORDS = 40
LONG: Any = [{"role": "user", "content": "word " * LONG_WORDS}]
TOOLS: Any = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
SOURCE = {"source": "a price of this test", "date": "2026-11-01"}


def price(provider: str, model: str, input_usd: str, output_usd: str, **more: str) -> dict[str, Any]:
    return {"provider": provider, "model": model, "input_usd": input_usd, "output_usd": output_usd, **more, **SOURCE}


def usage(gateway: Gateway, days: int = 2, token: str = TOKEN) -> dict[str, Any]:
    """Of two days: midnight may come in the middle of a test."""
    request = urllib.request.Request(f"{gateway.url}/api/usage?days={days}", headers={"x-api-key": token})
    with urllib.request.urlopen(request, timeout=10) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


def ask(gateway: Gateway, model: str, stream: bool = False, **more: Any) -> Exception | None:
    """One request with the real SDK, read to its end; the error, if it ended with one."""
    options = {"max_tokens": 100, "stream": stream, **({"tools": TOOLS} if "tool" in model else {}), **more}
    try:
        answer = gateway.client().chat.completions.create(model=model, messages=HELLO, **options)
        if stream:
            for _ in answer:
                pass
    except openai.APIError as error:
        return error
    return None


# --- the bill ----------------------------------------------------------------------------------

# The vendors of the tests count one token a word: three in the prompt, five in "You said: one two three".
# (input, cache read, written for 5 min, written for 1 h, output), and whether the count is the vendor's.
ALL = (3, 0, 0, 0, 5)
NOTHING = (0, 0, 0, 0, 0)
# Cut after "You said:": three tokens of four bytes. A vendor that said nothing: 16 and one for three bytes.
STARTED = (3, 0, 0, 0, 1)
CUT = (3, 0, 0, 0, 3)
REFUSED = ["garbage", "close", "quote", "400", "401", "402", "403", "404", "413", "429", "429-bare", "529"]
FIRST: dict[str, tuple[tuple[int, ...], str]] = {
    **dict.fromkeys(SCENARIOS, (ALL, "settled")),
    **dict.fromkeys(["silent", "big-event"], (STARTED, "settled")),
    **dict.fromkeys(["cut", "silent-after", "error-after", "eof", "garbage-after"], (CUT, "estimated")),
    **dict.fromkeys(["slow-headers", "408"], ((20, 0, 0, 0, 0), "estimated")),
    **dict.fromkeys(REFUSED, (NOTHING, "settled")),
    "overloaded": (STARTED, "settled"),
    "tool": ((3, 0, 0, 0, 3), "settled"),
    "tool-empty": ((3, 0, 0, 0, 2), "settled"),
    "thinking": ((3, 0, 0, 0, 9), "settled"),
    "cache": ((3, 1000, 150, 50, 5), "settled"),
}
SECOND: dict[str, tuple[tuple[int, ...], str]] = {
    **dict.fromkeys(SECOND_SCENARIOS, (ALL, "settled")),
    **dict.fromkeys(["cut", "silent-after", "error-after", "eof", "garbage-after"], ((20, 0, 0, 0, 3), "estimated")),
    **dict.fromkeys(["slow-headers", "408", "silent"], ((20, 0, 0, 0, 0), "estimated")),
    **dict.fromkeys(REFUSED, (NOTHING, "settled")),
    **dict.fromkeys(["overloaded", "big-event"], (NOTHING, "settled")),
    "tool-empty": ((3, 0, 0, 0, 2), "settled"),
    "tools": ((3, 0, 0, 0, 10), "settled"),
    "thinking": ((3, 0, 0, 0, 8), "settled"),
    "cache": ((3, 1000, 200, 0, 5), "settled"),
    "no-usage": ((20, 0, 0, 0, 6), "estimated"),
}
# Asked twice, because the gateway tries a hiccup once more at the same provider.
TWICE = {"error-before": STARTED, "html": NOTHING, "500": NOTHING, "502": NOTHING, "503": NOTHING}
SECOND_TWICE = dict.fromkeys(TWICE, NOTHING)
# Dollars for a million tokens, in the order of the counts.
RATES = tuple(Decimal(rate) for rate in ("3", "0.30", "3.75", "6", "15"))
SECOND_RATES = tuple(Decimal(rate) for rate in ("3.3", "0.33", "4.125", "6.6", "16.5"))


def expected_legs(scenario: str, first: bool) -> list[tuple[tuple[int, ...], str]]:
    twice = TWICE if first else SECOND_TWICE
    if scenario in twice:
        return [(twice[scenario], "settled")] * 2
    return [(FIRST if first else SECOND)[scenario]]


def cost(counts: tuple[int, ...], rates: tuple[Decimal, ...]) -> Decimal:
    return sum((count * rate for count, rate in zip(counts, rates, strict=True)), Decimal(0)) / 1_000_000


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_the_bill_of_every_scenario_is_exact(own: Make, store: dict[str, Any], second_vendor: Mock, tmp_path: Path, stream: bool) -> None:
    """Each leg's counts, its cost at the provider that served, and what /api/usage and the sums make of them."""
    names = [("anthropic", f"mock+{name}", RATES) for name in SCENARIOS]
    names += [("litellm", f"mock+{name}", SECOND_RATES) for name in SECOND_SCENARIOS]
    prices = [price(provider, model, str(rates[0]), str(rates[4])) for provider, model, rates in names]
    gateway = own(second_url=second_vendor.url, prices=prices, breaker={"failures": 100}, **store)
    models = [(f"x-{name}", name, True) for name in SCENARIOS] + [(f"y-{name}", name, False) for name in SECOND_SCENARIOS]
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda item: ask(gateway, item[0], stream), models))
    gateway.settled_rows()
    total, attempts = Decimal(0), 0
    for alias, scenario, first in models:
        legs = [row for row in gateway.rows() if row["alias"] == alias]
        expected = expected_legs(scenario, first)
        found = [(counts_of(row), row["state"]) for row in sorted(legs, key=lambda row: int(row["leg"]))]
        assert found == expected, alias
        for row, (counts, _) in zip(legs, expected, strict=True):
            amount = cost(counts, RATES if first else SECOND_RATES)
            assert Decimal(row["cost_nano"]) == amount * 10**9, alias
            total += amount
            attempts += 1
    shown = usage(gateway)
    assert Decimal(shown["total"]["cost_usd"]) == total
    assert sum((Decimal(line["cost_usd"]) for line in shown["days"]), Decimal(0)) == total
    assert (shown["total"]["requests"], shown["total"]["attempts"], shown["total"]["unpriced_attempts"]) == (len(models), attempts, 0)
    month = gateway.query("SELECT * FROM spending WHERE scope = 'house'")
    assert Decimal(sum(row["nano"] for row in month)) == total * 10**9
    assert [(row["held_nano"], row["held_tokens"]) for row in month] == [(0, 0)] * len(month)
    assert gateway.metric("hearth_cost_usd_total") == pytest.approx(float(total))
    assert gateway.events("unexpected-error") == []


def counts_of(row: dict[str, Any]) -> tuple[int, ...]:
    written_1h = row["cache_write_1h_tokens"]
    return row["input_tokens"], row["cache_read_tokens"], row["cache_write_tokens"] - written_1h, written_1h, row["output_tokens"]


def test_a_request_that_failed_over_costs_what_the_one_that_served_charges(own: Make, store: dict[str, Any], second_vendor: Mock) -> None:
    prices = [price("anthropic", "mock+cut", "100", "100"), price("litellm", "mock+normal", "3.3", "16.5")]
    gateway = own(second_url=second_vendor.url, prices=prices, **store)
    assert ask(gateway, "f-529") is None
    gateway.settled_rows()
    assert [(row["leg"], row["provider"], row["outcome"], row["cost_nano"]) for row in gateway.rows()] == [
        (1, "anthropic", "upstream_overloaded", 0),
        (2, "litellm", "ok", int(cost(ALL, SECOND_RATES) * 10**9)),
    ]
    shown = usage(gateway)["total"]
    assert (shown["requests"], shown["attempts"], Decimal(shown["cost_usd"])) == (1, 2, cost(ALL, SECOND_RATES))


def test_who_leaves_pays_what_was_seen(own: Make, store: dict[str, Any]) -> None:
    gateway = own(prices=[price("anthropic", "mock+slow", "3", "15")], **store)
    answer = gateway.client().chat.completions.create(model="x-slow", messages=LONG, stream=True)
    for chunk in answer:
        if chunk.choices[0].delta.content:
            break
    answer.close()
    row = gateway.wait_row(0)
    assert (row["outcome"], row["state"], row["input_tokens"]) == ("cancelled", "estimated", LONG_WORDS)
    assert 1 <= row["output_tokens"] <= LONG_WORDS
    assert row["cost_nano"] == LONG_WORDS * 3000 + row["output_tokens"] * 15000
    shown = usage(gateway)["total"]
    assert shown["estimated_attempts"] == 1 and shown["estimated_cost_usd"] == shown["cost_usd"]
    gateway.settled_rows()
    assert [row["held_nano"] for row in gateway.query("SELECT * FROM spending")] == [0, 0, 0], "the reservation is given back"


def test_what_has_no_price_is_counted_apart_and_never_free(own: Make, store: dict[str, Any]) -> None:
    gateway = own(limits={"program": {"money_per_day_usd": "1"}}, **store)
    assert ask(gateway, "x-normal") is None and ask(gateway, "sonnet") is None
    gateway.settled_rows()
    shown = usage(gateway)
    by_model = {line["model"]: line for line in shown["days"]}
    assert by_model["x-normal"]["unpriced_attempts"] == 1 and by_model["x-normal"]["output_tokens"] == 5
    assert by_model["sonnet"]["unpriced_attempts"] == 0 and by_model["sonnet"]["cost_usd"] == "0.000084"
    assert shown["total"]["unpriced_attempts"] == 1 and shown["total"]["cost_usd"] == "0.000084"
    assert gateway.metric('hearth_unpriced_attempts_total{model="mock+normal"') == 1
    assert gateway.metric("hearth_unpriced_models") == len(SCENARIOS)


@pytest.mark.parametrize("number", [3_000_000_000, 2**64 - 1])
def test_a_vendors_number_beyond_all_measure_costs_nobody_anything(
    own: Make, store: dict[str, Any], second_vendor: Mock, number: int
) -> None:
    """More than a column of PostgreSQL holds, and more than SQLite does. The answer is good; the next ones are, too."""
    model = f"mock+tokens-{number}"
    gateway = own(
        second_url=second_vendor.url,
        models={"huge": [{"provider": "litellm", "model": model, "max_output_tokens": 100}]},
        prices=[price("litellm", model, "3", "15")],
        **store,
    )
    for stream in (False, True):
        assert ask(gateway, "huge", stream) is None and ask(gateway, "sonnet") is None
    gateway.settled_rows()
    rows = [row for row in gateway.rows() if row["alias"] == "huge"]
    assert [(row["state"], row["input_tokens"], row["output_tokens"]) for row in rows] == [("estimated", 20, 6)] * 2
    assert [row["state"] for row in gateway.rows() if row["alias"] == "sonnet"] == ["settled"] * 2
    assert ready(gateway) == 200 and gateway.events("store-problem") == [] and gateway.terminate() == 0


def test_what_has_no_price_can_be_refused(own: Make) -> None:
    gateway = own(limits={"unpriced": "refuse", "program": {"money_per_day_usd": "1"}})
    error = ask(gateway, "x-normal")
    assert isinstance(error, openai.PermissionDeniedError) and error.code == "unpriced_model"
    assert ask(gateway, "sonnet") is None


# --- crashes -----------------------------------------------------------------------------------


def test_killed_in_the_middle_of_an_answer(own: Make, store: dict[str, Any]) -> None:
    gateway = own(prices=[price("anthropic", "mock+slow", "3", "15")], **store)
    answer = gateway.client().chat.completions.create(model="x-slow", messages=LONG, stream=True, max_tokens=1000)
    next(iter(answer))
    # On disk while the answer is being written, at the most it can cost.
    # What is not counted yet is 16 tokens and one for three bytes.
    most = (16 + len(LONG[0]["content"]) // 3) * 3000 + 1000 * 15000
    (intent,) = gateway.query("SELECT * FROM ledger")
    assert (intent["state"], intent["cost_nano"]) == ("intent", most)
    gateway.process.kill()
    gateway.process.wait()
    with pytest.raises((openai.APIError, OSError, Exception)):
        for _ in answer:
            pass
    age_heartbeats(gateway)
    gateway.restart()
    (row,) = wait_for(gateway.rows, "the row of the dead gateway")
    assert (row["state"], row["outcome"], row["cost_nano"]) == ("unknown", "unknown", most)
    charged = 'hearth_estimated_attempts_total{model="mock+slow",provider="anthropic",state="unknown"'
    assert [gateway.metric(charged) for _ in range(3)] == [0, 1, 1], "an increase between two scrapes"
    assert ask(gateway, "x-slow") is None
    gateway.settled_rows()
    shown = usage(gateway)["total"]
    assert Decimal(shown["estimated_cost_usd"]) * 10**9 == most
    assert Decimal(shown["cost_usd"]) * 10**9 == most + 84000
    assert shown["estimated_attempts"] == 1
    sums = gateway.query("SELECT * FROM spending WHERE scope = 'house'")
    assert [(row["nano"], row["held_nano"]) for row in sums] == [(most + 84000, 0)]
    gateway.terminate()
    gateway.restart()
    assert len(gateway.rows()) == 2, "charged once"


def age_heartbeats(gateway: Gateway) -> None:
    """PostgreSQL: as if half a minute had passed since the gateway died."""
    if gateway.config["database_url"].startswith("postgresql"):
        gateway.query("UPDATE instances SET seen_at_ms = seen_at_ms - 60000 RETURNING id")


def test_a_replica_charges_for_the_one_that_died_and_not_for_the_living(own: Make, postgresql: Server, tmp_path: Path) -> None:
    database = on(postgresql.database(), tmp_path)
    dies, lives = own(**database), own(**database)
    streams = [gateway.client().chat.completions.create(model="x-slow", messages=LONG, stream=True) for gateway in (dies, lives)]
    rest = [iter(stream) for stream in streams]
    for stream in rest:
        next(stream)
    assert len(dies.query("SELECT id FROM instances")) == 2
    dies.process.kill()
    dies.process.wait()
    age_heartbeats(lives)  # the living one says that it lives within 5 s; until then it is taken for dead too
    wait_for(lambda: any(row["state"] == "unknown" for row in lives.rows()), "the charge", 30)
    for _ in rest[1]:
        pass
    lives.settled_rows()
    assert sorted((row["state"], row["outcome"]) for row in lives.rows()) == [("settled", "ok"), ("unknown", "unknown")]
    sums = lives.query("SELECT tokens, held_tokens FROM spending WHERE scope = 'house'")
    unknown = next(row for row in lives.rows() if row["state"] == "unknown")
    whole = LONG_WORDS + LONG_WORDS + 2  # the vendor counts a token a word, and says "You said:" first
    assert sums == [{"tokens": whole + unknown["input_tokens"] + unknown["output_tokens"], "held_tokens": 0}]


def test_the_database_goes_away_and_comes_back(own: Make, tmp_path: Path) -> None:
    server = Server()
    try:
        gateway = own(**on(server.database(), tmp_path))
        answer = iter(gateway.client().chat.completions.create(model="x-slow", messages=LONG, stream=True))
        next(answer)
        server.crash()
        for _ in answer:
            pass
        assert isinstance(error := ask(gateway, "sonnet"), openai.InternalServerError) and error.code == "ledger_unavailable"
        wait_for(lambda: ready(gateway) == 503, "readiness to drop")
        wait_for(lambda: gateway.metric("hearth_ledger_failing") == 1, "the fault to be seen")
        server.start()
        wait_for(lambda: ready(gateway) == 200, "the gateway to find its database")
        wait_for(lambda: len(gateway.rows()) >= 1, "the settlement that waited")
        assert ask(gateway, "sonnet") is None
        gateway.settled_rows()
        rows = gateway.rows()
        assert (rows[0]["alias"], rows[0]["outcome"]) == ("x-slow", "ok")
        assert [row["held_tokens"] for row in gateway.query("SELECT held_tokens FROM spending")] == [0, 0, 0]
        assert all("password" not in line.lower() and PASSWORD not in line for line in gateway.log_lines)
    finally:
        server.stop()


def ready(gateway: Gateway) -> int:
    try:
        with urllib.request.urlopen(f"{gateway.url}/readyz", timeout=20) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


# --- limits ------------------------------------------------------------------------------------

# One word of output may cost a cent: the reservation of a request with max_tokens 10 is ten cents.
CENT_A_WORD = "10000"


@pytest.fixture
def gate(vendor: Mock) -> Iterator[Gate]:
    with Gate(vendor.url, up=True) as made:
        yield made
        made.passing.set()


@pytest.fixture
def gateways(own: Make, store: dict[str, Any], gate: Gate) -> Iterator[tuple[Gateway, ...]]:
    """One gateway on SQLite; on PostgreSQL two on one database. The vendor is behind the gate."""
    config = {
        "vendor_url": gate.url,
        "timeouts": {"first_token_s": 30, "idle_s": 30},
        "prices": [price("anthropic", f"mock+{name}", "0", CENT_A_WORD) for name in ("slow", "normal")],
        "limits": {"program": {"money_per_day_usd": "0.11"}, "time_zone": "Europe/Berlin"},
        **store,
    }
    yield tuple(own(**config) for _ in range(2 if store else 1))


def test_fifty_at_the_last_cent(gateways: tuple[Gateway, ...], vendor: Mock, gate: Gate) -> None:
    """Ten cents are spent, one is left: one more request may begin, and only one, at whichever gateway."""
    for _ in range(2):
        assert ask(gateways[0], "x-normal", max_tokens=10) is None
    gateways[0].settled_rows()
    before = vendor.asked()
    errors: list[Exception | None] = []
    start = threading.Barrier(50)

    def one(number: int) -> None:
        gateway = gateways[number % len(gateways)]
        client = gateway.client()
        start.wait()
        try:
            client.chat.completions.create(model="x-slow", messages=HELLO, max_tokens=10)
            errors.append(None)
        except openai.APIError as error:
            errors.append(error)

    gate.passing.clear()  # the one that may begin is not over before all the others have asked
    with ThreadPoolExecutor(50) as pool:
        asked = pool.map(one, range(50))
        try:
            wait_for(lambda: len(errors) >= 49, "all but one to be refused", 25)
        finally:
            gate.passing.set()
        list(asked)
    for gateway in gateways:
        gateway.settled_rows()
    refused = [error for error in errors if error is not None]
    assert len(refused) == 49
    for error in refused:
        assert isinstance(error, openai.RateLimitError) and error.code == "quota_exceeded"
        assert error.response.headers["retry-after"] == "5"
        assert "Other answers are being written right now" in error.message
    assert vendor.asked() == before + 1, "no vendor hears of a request that was refused"
    # 10 + 5 cents: over the ceiling of 11, and by less than the one reservation of ten.
    (day,) = [limit for limit in usage(gateways[-1])["limits"] if limit["limit"] == "money_per_day_usd"]
    assert (day["ceiling"], day["used"], day["reserved"], day["left"], day["reached"]) == ("0.11", "0.15", "0", "0", True)
    assert day["resets_at"].endswith(("T00:00:00+01:00", "T00:00:00+02:00"))
    late = ask(gateways[0], "x-normal")
    assert isinstance(late, openai.RateLimitError) and "this program has used its $0.11 for today" in late.message
    assert 0 < int(late.response.headers["retry-after"]) <= 25 * 3600
    assert all(gateway.metric("hearth_breaker_state") == 0 for gateway in gateways), "a limit is no fault of a provider"

    def told_of() -> list[dict[str, Any]]:
        return [event for gateway in gateways for event in gateway.events("limit")]

    wait_for(lambda: len(told_of()) >= 2, "the lines about the limit")
    events = told_of()
    assert sorted((event["level"], event["scope"], event["subject"], event["limit"]) for event in events) == [
        ("hard", "program", "operator", "money_per_day_usd"),
        ("soft", "program", "operator", "money_per_day_usd"),
    ], "each told once, by one of the gateways"
    told = sum(gateway.metric('hearth_limit_events_total{level="soft",limit="money_per_day_usd",scope="program"}') for gateway in gateways)
    assert told == 1


def test_a_limit_never_fails_over(own: Make, store: dict[str, Any], second_vendor: Mock, vendor: Mock) -> None:
    gateway = own(second_url=second_vendor.url, limits={"program": {"tokens_per_day": 5}}, **store)
    assert ask(gateway, "f-normal") is None
    gateway.settled_rows()
    before = vendor.asked(), second_vendor.asked()
    error = ask(gateway, "f-normal", stream=True)
    assert isinstance(error, openai.RateLimitError) and error.code == "quota_exceeded" and error.type == "rate_limit_error"
    assert (vendor.asked(), second_vendor.asked()) == before
    assert gateway.metric("hearth_failovers_total") == 0
    assert gateway.metric('hearth_error_responses_total{kind="quota_exceeded",owner="policy"}') == 1


def test_requests_a_minute_across_gateways(own: Make, postgresql: Server, tmp_path: Path) -> None:
    database = on(postgresql.database(), tmp_path)
    gateways = [own(limits={"program": {"requests_per_minute": 3}}, **database) for _ in range(2)]
    started = time.monotonic()
    for number in range(3):
        assert ask(gateways[number % 2], "sonnet") is None
    error = ask(gateways[1], "sonnet")
    assert isinstance(error, openai.RateLimitError) and "3 requests a minute" in error.message
    # When the first of the three is a minute old, and not before.
    assert 60 - (time.monotonic() - started) <= int(error.response.headers["retry-after"]) <= 60
    (rate,) = usage(gateways[0])["limits"]
    assert (rate["limit"], rate["used"], rate["left"], rate["reached"]) == ("requests_per_minute", "3", "0", True)


def test_the_house_stops_everybody_and_says_no_sums(own: Make, store: dict[str, Any]) -> None:
    gateway = own(prices=[price("anthropic", "mock+normal", "0", CENT_A_WORD)], limits={"house": {"money_per_month_usd": "0.05"}}, **store)
    other = "kitchen-token-0123456789"
    (gateway.tokens / "kitchen").write_text(other)
    assert ask(gateway, "x-normal") is None
    gateway.settled_rows()
    wait_for(lambda: known(gateway, other), "the new token to count")
    client = gateway.client(api_key=other)
    with pytest.raises(openai.RateLimitError, match="the house has used its"):
        client.chat.completions.create(model="x-normal", messages=HELLO)
    (house,) = usage(gateway, token=other)["limits"]
    assert (house["scope"], house["reached"], house["used"], house["left"]) == ("house", True, None, None)
    assert usage(gateway, token=other)["total"]["attempts"] == 0, "each sees only their own"


def known(gateway: Gateway, token: str) -> bool:
    try:
        return bool(gateway.client(api_key=token).models.list().data)
    except openai.AuthenticationError:
        return False


def test_a_person_has_limits_of_their_own_and_is_named_nowhere(own: Make, store: dict[str, Any]) -> None:
    """Through the sign-in proxy's door; the operator gives one of them more while the gateway runs."""
    gateway = own(tokens={"proxy": ["operator"]}, limits={"person": {"tokens_per_day": 5}}, metrics={"max_people": 1}, **store)

    def say(email: str) -> Exception | None:
        basic = base64.b64encode(f"{email}:{TOKEN}".encode()).decode()
        headers = {"Authorization": f"Basic {basic}", "Sec-Fetch-Site": "same-origin"}
        try:
            gateway.client(default_headers=headers).chat.completions.create(model="sonnet", messages=HELLO)
        except openai.APIError as error:
            return error
        finally:
            gateway.settled_rows()
        return None

    assert say("ann@example.org") is None and say("bob@example.org") is None
    error = say("ann@example.org")
    assert isinstance(error, openai.RateLimitError) and "you have used your 5 tokens for today" in error.message
    command = [sys.executable, "-m", "hearth_gateway", "person", "set", "ann@example.org", "--limits", '{"tokens_per_day": 1000}']
    environment = {**os.environ, "PYTHONPATH": str(GATEWAY_SOURCE)}
    subprocess.run([*command, "--config", str(gateway.config_file)], check=True, env=environment, capture_output=True)
    wait_for(lambda: say("ann@example.org") is None, "the new limit to count")
    assert isinstance(say("bob@example.org"), openai.RateLimitError)
    people = [line for line in gateway.metrics().splitlines() if "person=" in line or 'scope="person"' in line]
    assert people and any('person="other"' in line for line in people)
    labels = {line.partition('person="')[2].partition('"')[0] for line in people if 'person="' in line}
    assert len(labels) == 2, "one of their own, and other"
    wait_for(lambda: len({event["subject"] for event in gateway.events("limit")}) == 2, "both to be told of")
    assert {event["scope"] for event in gateway.events("limit")} == {"person"}
    everything = "".join(gateway.log_lines) + gateway.metrics()
    assert "example.org" not in everything


@pytest.mark.parametrize("days", ["0", "367", "-1", "one", "1e2", "٣"])
def test_days_of_the_usage_report(shared: Gateway, days: str) -> None:
    request = urllib.request.Request(f"{shared.url}/api/usage?days={urllib.request.quote(days)}", headers={"x-api-key": TOKEN})  # type: ignore[attr-defined]
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    assert refused.value.code == 400 and json.load(refused.value)["error"]["param"] == "days"


# --- handing over ------------------------------------------------------------------------------


def test_two_gateways_on_one_sqlite_file(own: Make) -> None:
    """A change of the configuration starts the new gateway beside the old one, on the same volume."""
    old = own()
    new = own(database_url=old.config["database_url"])
    answer = iter(old.client().chat.completions.create(model="x-slow", messages=HELLO, stream=True))
    next(answer)
    with ThreadPoolExecutor(8) as pool:
        errors = list(pool.map(lambda number: ask((old, new)[number % 2], "sonnet"), range(20)))
    assert errors == [None] * 20
    for _ in answer:
        pass
    assert old.terminate() == 0 and new.terminate() == 0
    assert sorted(row["state"] for row in old.rows()) == ["settled"] * 21
    assert old.query("SELECT tokens, held_tokens FROM spending WHERE scope = 'house'") == [{"tokens": 21 * 8, "held_tokens": 0}]
    old.restart()  # in the time any start has: it waits for nobody to be taken for dead
    assert len(old.rows()) == 21
