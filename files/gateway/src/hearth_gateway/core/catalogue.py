"""The models a caller can name, and what is known about each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from hearth_gateway.config import Config, EndpointConfig, TargetConfig
from hearth_gateway.core.prices import Price

Kind = Literal["chat", "embedding", "image"]
# The price of (provider, the provider's name for the model); None if nobody has said it.
PriceOf = Callable[[str, str], Price | None]


@dataclass(frozen=True, slots=True)
class Offer:
    """One provider of a model. ``max_output_tokens`` is None where an answer has no such length."""

    provider: str
    model: str
    demo: bool
    max_output_tokens: int | None
    price: Price | None


@dataclass(frozen=True, slots=True)
class Model:
    """A name callers use. ``offers`` are in the order in which they are tried, at least one."""

    name: str
    kind: Kind
    offers: tuple[Offer, ...]
    system_prompt: str | None


def build_catalogue(config: Config, price_of: PriceOf) -> dict[str, Model]:
    """All models of a configuration by name, in its order."""
    demos = {provider.name for provider in config.providers if provider.kind == "demo"}

    def offer(target: TargetConfig | EndpointConfig) -> Offer:
        ceiling = config.max_output_tokens(target) if isinstance(target, TargetConfig) else None
        return Offer(target.provider, target.model, target.provider in demos, ceiling, price_of(target.provider, target.model))

    sections: list[tuple[Kind, Mapping[str, Sequence[TargetConfig | EndpointConfig]]]] = [
        ("chat", config.models),
        ("embedding", config.embedding_models),
        ("image", config.image_models),
    ]
    return {
        name: Model(name, kind, tuple(offer(target) for target in targets), config.system_prompts.get(name) if kind == "chat" else None)
        for kind, models in sections
        for name, targets in models.items()
    }
