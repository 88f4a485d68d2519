"""GET /v1/models and GET /v1/models/{id}, in the format of the client that asks."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from flask import Blueprint

from hearth_gateway.api.door import Door
from hearth_gateway.api.responses import HearthResponse, json_response, speaks_anthropic
from hearth_gateway.core.catalogue import Model, Offer
from hearth_gateway.core.prices import Price, Rates
from hearth_gateway.errors import GatewayError, Kind


def create_blueprint(catalogue: Mapping[str, Model], door: Door, started_at: int) -> Blueprint:
    """``started_at`` (Unix seconds) stands for the time at which a model came to be, which nobody here knows."""
    blueprint = Blueprint("models", __name__)

    @blueprint.get("/v1/models")
    def list_models() -> HearthResponse:
        door.caller()
        if not speaks_anthropic():
            return json_response({"object": "list", "data": [_openai(model, started_at) for model in catalogue.values()]})
        # Anthropic's list knows models for messages only. It comes as one page: there are never many.
        data = [_anthropic(model, started_at) for model in catalogue.values() if model.kind == "chat"]
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
        return json_response({"data": data, "has_more": False, **ends})

    @blueprint.get("/v1/models/<model>")
    def one_model(model: str) -> HearthResponse:
        door.caller()
        found = catalogue.get(model)
        if found is None or (speaks_anthropic() and found.kind != "chat"):
            raise GatewayError(Kind.MODEL_NOT_FOUND, "There is no such model here; GET /v1/models lists them.", param="model")
        return json_response(_anthropic(found, started_at) if speaks_anthropic() else _openai(found, started_at))

    return blueprint


def _openai(model: Model, started_at: int) -> dict[str, Any]:
    first = model.offers[0]
    return {"id": model.name, "object": "model", "created": started_at, "owned_by": first.provider, "hearth": _hearth(model)}


def _anthropic(model: Model, started_at: int) -> dict[str, Any]:
    return {
        "type": "model",
        "id": model.name,
        "display_name": model.name,
        "created_at": datetime.datetime.fromtimestamp(started_at, datetime.UTC).isoformat().replace("+00:00", "Z"),
        "lifecycle": "active",
        "max_tokens": model.offers[0].max_output_tokens,
        "max_input_tokens": None,
        "hearth": _hearth(model),
    }


def _hearth(model: Model) -> dict[str, Any]:
    """What neither API has a field for. The first provider's values stand for the model: it is the one asked first."""
    first = model.offers[0]
    return {
        "kind": model.kind,
        "demo": first.demo,
        "max_output_tokens": first.max_output_tokens,
        "price": _price(first.price),
        "unpriced": first.price is None,
        "system_prompt": model.system_prompt,
        "providers": [_offer(offer) for offer in model.offers],
    }


def _offer(offer: Offer) -> dict[str, Any]:
    return {
        "provider": offer.provider,
        "model": offer.model,
        "demo": offer.demo,
        "max_output_tokens": offer.max_output_tokens,
        "price": _price(offer.price),
        "unpriced": offer.price is None,
    }


def _price(price: Price | None) -> dict[str, Any] | None:
    """US dollars for a million tokens, as text, so that no digit is lost."""
    if price is None:
        return None
    long = price.long_prompt
    return {
        **_rates(price.rates),
        "image_usd": _usd(price.image),
        "long_prompt": {"above_tokens": price.above_tokens, **_rates(long)} if long is not None else None,
        "source": price.source,
        "date": price.date.isoformat(),
    }


def _rates(rates: Rates) -> dict[str, Any]:
    return {
        "input_usd": _usd(rates.input),
        "output_usd": _usd(rates.output),
        "cache_read_usd": _usd(rates.cache_read),
        "cache_write_5m_usd": _usd(rates.cache_write_5m),
        "cache_write_1h_usd": _usd(rates.cache_write_1h),
    }


def _usd(amount: Decimal | None) -> str | None:
    return None if amount is None else f"{amount.normalize():f}"
