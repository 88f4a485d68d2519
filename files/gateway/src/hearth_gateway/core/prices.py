"""What an answer costs: the price of the provider and model that served it, in decimal money.

Prices come from ``data/prices.yml``, by kind of provider and model, and from the configuration, by
name of provider and model, which wins. A pair nobody has a price for is *unpriced*: its tokens
are counted, its money is unknown, and no sum pretends that it was free.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from importlib import resources
from typing import Literal

import yaml
from pydantic import Field

from hearth_gateway.config import Config, LongPromptConfig, PriceConfig, RatesConfig
from hearth_gateway.translate.events import Usage

# A price older than this may have changed; nothing stops, but it shows.
MAX_AGE_DAYS = 90
NANO = 10**9
_MILLION = Decimal(1_000_000)

# How long a prompt that is written to the vendor's cache stays there. The longer costs more.
CacheWrite = Literal["5m", "1h"]


@dataclass(frozen=True, slots=True)
class Rates:
    """US dollars for a million tokens."""

    input: Decimal
    output: Decimal
    cache_read: Decimal
    cache_write_5m: Decimal
    cache_write_1h: Decimal

    def of(self, usage: Usage) -> Decimal:
        """US dollars, exact."""
        amount = usage.input * self.input + usage.output * self.output
        if usage.cache_read or usage.cache_write:
            amount += usage.cache_read * self.cache_read
            amount += (usage.cache_write - usage.cache_write_1h) * self.cache_write_5m
            amount += usage.cache_write_1h * self.cache_write_1h
        return amount / _MILLION


@dataclass(frozen=True, slots=True)
class Price:
    """Where a price is from, and what it is.

    ``long_prompt`` are the rates of a request whose whole prompt, cached tokens too, has more than
    ``above_tokens``. ``image`` is US dollars for one generated image, None = not known.
    """

    rates: Rates
    source: str
    date: datetime.date
    image: Decimal | None = None
    long_prompt: Rates | None = None
    above_tokens: int = 0
    never_old: bool = False

    def age_days(self, today: datetime.date) -> int:
        return 0 if self.never_old else (today - self.date).days

    def is_old(self, today: datetime.date) -> bool:
        return self.age_days(today) > MAX_AGE_DAYS


def cost(usage: Usage, price: Price, images: int = 0) -> Decimal | None:
    """US dollars, exact; None when it takes a price that is not known (an image)."""
    long = price.long_prompt is not None and usage.prompt > price.above_tokens
    rates = price.long_prompt if long and price.long_prompt is not None else price.rates
    if not images:
        return rates.of(usage)
    return None if price.image is None else rates.of(usage) + images * price.image


def nano(usd: Decimal) -> int:
    """Whole nano-dollars: what the store holds. Rounded once, for one attempt; sums are exact from there on."""
    return int((usd * NANO).to_integral_value(ROUND_HALF_EVEN))


def usd(nano_dollars: int) -> Decimal:
    """The decimal for a number of nano-dollars, without zeros at its end."""
    value = Decimal(nano_dollars).scaleb(-9)
    return value.quantize(Decimal(1)) if value == value.to_integral_value() else value.normalize()


class PriceBook:
    """Immutable once made, so that any thread may ask."""

    def __init__(self, prices: Mapping[tuple[str, str], Price]) -> None:
        self._prices = prices

    def price(self, provider: str, model: str) -> Price | None:
        """The price of ``model`` at the provider of that name; None = unpriced."""
        return self._prices.get((provider, model))

    def cost_nano(self, provider: str, model: str, usage: Usage, images: int = 0) -> int | None:
        """Nano-dollars; None = unpriced."""
        price = self._prices.get((provider, model))
        if price is None:
            return None
        amount = cost(usage, price, images)
        return None if amount is None else nano(amount)

    def most_nano(
        self, provider: str, model: str, prompt_tokens: int, output_tokens: int, images: int = 0, cache_write: CacheWrite | None = None
    ) -> int | None:
        """Nano-dollars that a request can cost at most, whatever becomes of its prompt; None = unpriced.

        ``cache_write``: the longest lifetime that it asks for.
        """
        most = Usage(input=prompt_tokens, output=output_tokens)
        cost_nano = self.cost_nano(provider, model, most, images)
        if cache_write is None or cost_nano is None:
            return cost_nano
        # Each token has one rate: all of them at the dearest cost as much as any mixture.
        ways = [Usage(cache_write=prompt_tokens, output=output_tokens)]
        if cache_write == "1h":
            ways.append(Usage(cache_write=prompt_tokens, cache_write_1h=prompt_tokens, output=output_tokens))
        return max(cost_nano, *(self.cost_nano(provider, model, usage, images) or 0 for usage in ways))


class BuiltinPrice(RatesConfig):
    """One entry of ``data/prices.yml``."""

    kind: str
    models: list[str] = Field(min_length=1)
    source: str = Field(min_length=1)
    date: datetime.date
    never_old: bool = False


def builtin_prices() -> list[BuiltinPrice]:
    """The rows that come with the package."""
    text = resources.files("hearth_gateway").joinpath("data/prices.yml").read_text(encoding="utf-8")
    # BaseLoader: every value stays text, so that no price ever passes through a float.
    return [BuiltinPrice.model_validate(row) for row in yaml.load(text, yaml.BaseLoader)["prices"]]  # noqa: S506


def price_book(config: Config) -> PriceBook:
    """The prices of all that this configuration can call."""
    prices: dict[tuple[str, str], Price] = {}
    for row in builtin_prices():
        for provider in config.providers:
            if provider.kind == row.kind:
                for model in row.models:
                    prices[provider.name, model] = _price(row, row.source, row.date, never_old=row.never_old)
    for own in config.prices:
        prices[own.provider, own.model] = _price(own, own.source, own.date)
    return PriceBook(prices)


def _price(row: PriceConfig | BuiltinPrice, source: str, date: datetime.date, *, never_old: bool = False) -> Price:
    long = row.long_prompt
    return Price(
        rates=_rates(row),
        source=source,
        date=date,
        image=row.image_usd,
        long_prompt=None if long is None else _rates(long),
        above_tokens=0 if long is None else long.above_tokens,
        never_old=never_old,
    )


def _rates(row: RatesConfig | LongPromptConfig) -> Rates:
    """The usual multiples stand in for what a row leaves out (see ``PriceConfig``)."""

    def or_times(value: Decimal | None, factor: str) -> Decimal:
        return row.input_usd * Decimal(factor) if value is None else value

    return Rates(
        input=row.input_usd,
        output=row.output_usd,
        cache_read=or_times(row.cache_read_usd, "0.1"),
        cache_write_5m=or_times(row.cache_write_5m_usd, "1.25"),
        cache_write_1h=or_times(row.cache_write_1h_usd, "2"),
    )


def served_pairs(config: Config) -> list[tuple[str, str]]:
    """Every (provider, model) this configuration can call, each once, in order."""
    lists: Iterable[Iterable[tuple[str, str]]] = (
        [(target.provider, target.model) for target in targets]
        for section in (config.models, config.embedding_models, config.image_models)
        for targets in section.values()
    )
    return list(dict.fromkeys(pair for pairs in lists for pair in pairs))


def price_warnings(config: Config, today: datetime.date) -> list[str]:
    """Sentences for the operator: what has no price, and which prices may be out of date."""
    book = price_book(config)
    warnings = []
    for provider, model in served_pairs(config):
        price = book.price(provider, model)
        if price is None:
            warnings.append(f"{model} of {provider} has no price: its use counts as unpriced; add it under `prices`")
        elif price.is_old(today):
            warnings.append(f"the price of {model} of {provider} was read on {price.date}, {price.age_days(today)} days ago; look again")
    return warnings
