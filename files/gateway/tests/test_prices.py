"""Prices: what an answer costs to the last digit, and what happens where nobody knows."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

import pytest

from hearth_gateway.cli import main
from hearth_gateway.config import Config, parse_config
from hearth_gateway.core.metering import cache_write_of
from hearth_gateway.core.prices import (
    MAX_AGE_DAYS,
    Price,
    PriceBook,
    Rates,
    builtin_prices,
    cost,
    nano,
    price_book,
    price_warnings,
    served_pairs,
    usd,
)
from hearth_gateway.translate.events import Usage
from hearth_gateway.translate.messages_request import parse_messages_request

TODAY = datetime.date(2026, 11, 21)
CHEAP_WRITES = Rates(Decimal("3"), Decimal("15"), Decimal("0.3"), Decimal(0), Decimal(0))
RATES = Rates(Decimal("3"), Decimal("15"), Decimal("0.3"), Decimal("3.75"), Decimal("6"))


def price(**changes: Any) -> Price:
    return Price(rates=RATES, source="test", date=TODAY, **changes)


def config(extra: str = "", model: str = "claude-sonnet-4-5-20250929") -> Config:
    return parse_config(f"""
tokens: {{dir: /run/tokens}}
providers:
  - {{name: first, kind: anthropic, api_key_file: /k}}
  - {{name: second, kind: openai, base_url: http://llm:4000}}
  - {{name: demo, kind: demo}}
models:
  sonnet: [{{provider: first, model: {model}, max_output_tokens: 10}}, {{provider: second, model: {model}, max_output_tokens: 10}}]
  demo: [{{provider: demo, model: demo}}]
embedding_models: {{embed: [{{provider: second, model: embed-1}}]}}
{extra}
""")


def test_each_kind_of_token_has_its_own_rate() -> None:
    usage = Usage(input=1, cache_read=10, cache_write=1100, cache_write_1h=100, output=10_000)
    # 1*3 + 10*0.3 + 1000*3.75 + 100*6 + 10000*15, by hand
    assert cost(usage, price()) == Decimal("154356") / 1_000_000
    assert cost(Usage(), price()) == 0


def test_the_most_that_a_request_can_cost() -> None:
    long = Rates(Decimal("6"), Decimal("20"), Decimal("0.6"), Decimal("7.5"), Decimal("12"))
    book = PriceBook({("p", "m"): price(long_prompt=long, above_tokens=1000), ("p", "cheap"): Price(CHEAP_WRITES, "test", TODAY)})
    assert [book.most_nano("p", "m", 100, 10, 0, write) for write in (None, "5m", "1h")] == [450_000, 525_000, 750_000]
    assert [book.most_nano("p", "m", 1001, 10, 0, write) for write in (None, "1h")] == [6_206_000, 12_212_000]
    assert book.most_nano("p", "cheap", 100, 10, 0, "1h") == 450_000, "what is not written is dearer"
    assert book.most_nano("p", "other", 100, 10, 0, "1h") is None


MARKED: dict[str, Any] = {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}
MARKED_1H: dict[str, Any] = {**MARKED, "cache_control": {"type": "ephemeral", "ttl": "1h"}}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"system": [MARKED]}, "5m"),
        ({"system": [MARKED_1H]}, "1h"),
        ({"messages": [{"role": "user", "content": [MARKED, MARKED_1H]}]}, "1h"),
        ({"tools": [{"name": "f", "input_schema": {"type": "object"}, "cache_control": MARKED_1H["cache_control"]}]}, "1h"),
        ({"cache_control": {"type": "ephemeral"}}, "5m"),
    ],
)
def test_for_how_long_a_prompt_is_to_be_cached(changes: dict[str, Any], expected: str | None) -> None:
    body = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}], **changes}
    assert cache_write_of(parse_messages_request(body)) == expected


def test_a_result_of_a_tool_may_be_cached() -> None:
    body = {
        "model": "m", "max_tokens": 5,
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": [MARKED_1H]}]},
        ],
    }  # fmt: skip
    assert cache_write_of(parse_messages_request(body)) == "1h"


def test_no_digit_is_lost() -> None:
    """A thousandth of a cent, a million times: floats would be off by now."""
    one = cost(Usage(input=1), Price(Rates(Decimal("0.1"), *[Decimal(0)] * 4), "test", TODAY))
    assert one == Decimal("0.0000001") and nano(one) == 100
    assert sum((nano(one) for _ in range(10_000)), 0) == nano(10_000 * one)
    assert usd(1) == Decimal("1E-9") and format(usd(1), "f") == "0.000000001"
    assert format(usd(10_000_000_000), "f") == "10" and format(usd(0), "f") == "0"


def test_a_long_prompt_changes_the_rates_of_the_whole_request() -> None:
    double = Rates(*(2 * rate for rate in (RATES.input, RATES.output, RATES.cache_read, RATES.cache_write_5m, RATES.cache_write_1h)))
    tiered = price(long_prompt=double, above_tokens=100)
    at = Usage(input=40, cache_read=50, cache_write=10, output=7)
    above = Usage(input=41, cache_read=50, cache_write=10, output=7)
    assert cost(at, tiered) == RATES.of(at)
    assert cost(above, tiered) == 2 * RATES.of(above)


def test_images_have_a_price_or_none() -> None:
    assert cost(Usage(), price(), images=2) is None
    assert cost(Usage(input=1_000_000), price(image=Decimal("0.04")), images=2) == Decimal("3.08")


def test_the_price_is_that_of_the_provider_that_serves() -> None:
    book = price_book(
        config(
            """
prices:
  - {provider: second, model: claude-sonnet-4-5-20250929, input_usd: 3.3, output_usd: 16.5, source: my contract, date: 2026-10-01}
"""
        )
    )
    model, usage = "claude-sonnet-4-5-20250929", Usage(input=1_000_000, cache_read=1_000_000, cache_write=1_000_000)
    assert book.cost_nano("first", model, usage) == nano(Decimal("3") + Decimal("0.3") + Decimal("3.75"))
    assert book.cost_nano("second", model, usage) == nano(Decimal("3.3") + Decimal("0.33") + Decimal("4.125"))
    assert book.price("second", "embed-1") is None and book.cost_nano("second", "embed-1", usage) is None
    assert book.cost_nano("demo", "demo", usage) == 0


def test_the_configuration_wins() -> None:
    own = "prices: [{provider: first, model: claude-sonnet-4-5-20250929, input_usd: 1, output_usd: 2, source: x, date: 2026-11-01}]"
    found = price_book(config(own)).price("first", "claude-sonnet-4-5-20250929")
    assert found is not None and (found.rates.input, found.rates.cache_write_1h, found.source) == (1, 2, "x")


def test_another_server_is_not_given_this_vendors_prices() -> None:
    """A model's name says nothing about what an OpenAI-compatible server charges for it."""
    assert price_book(config()).price("second", "claude-sonnet-4-5-20250929") is None


def test_the_rows_of_the_package_say_where_they_are_from() -> None:
    rows = builtin_prices()
    models = [(row.kind, model) for row in rows for model in row.models]
    assert len(models) == len(set(models)), "two prices for one model"
    for row in rows:
        assert row.source and row.date <= datetime.datetime.now(datetime.UTC).date()
        for rate in (row.input_usd, row.output_usd):
            assert rate.as_tuple().exponent >= -6  # type: ignore[operator]
        if row.kind == "anthropic":
            # What the vendor writes of every model: the cache's rates follow from the input's; reading may be cheaper still.
            assert row.cache_write_5m_usd == row.input_usd * Decimal("1.25") and row.cache_write_1h_usd == 2 * row.input_usd
            assert row.cache_read_usd is not None and row.cache_read_usd <= row.input_usd * Decimal("0.1")


def test_old_and_missing_prices_are_told(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    later = TODAY + datetime.timedelta(days=MAX_AGE_DAYS + 1)
    told = price_warnings(config(), later)
    assert told == [
        "the price of claude-sonnet-4-5-20250929 of first was read on 2026-11-21, 91 days ago; look again",
        "claude-sonnet-4-5-20250929 of second has no price: its use counts as unpriced; add it under `prices`",
        "embed-1 of second has no price: its use counts as unpriced; add it under `prices`",
    ]
    assert price_warnings(config(), TODAY + datetime.timedelta(days=MAX_AGE_DAYS)) == told[1:]
    file = tmp_path / "gateway.yaml"
    file.write_text(
        "tokens: {dir: /x}\nproviders: [{name: a, kind: openai, base_url: 'http://x'}]\n"
        "models: {m: [{provider: a, model: b, max_output_tokens: 9}]}\n"
    )
    assert main(["check-config", str(file)]) == 0, "a warning is no error"
    assert "warning: b of a has no price" in capsys.readouterr().err


def test_every_pair_that_can_serve_is_looked_at_once() -> None:
    model = "claude-sonnet-4-5-20250929"
    assert served_pairs(config()) == [("first", model), ("second", model), ("demo", "demo"), ("second", "embed-1")]
