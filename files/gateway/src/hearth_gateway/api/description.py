"""GET /openapi.json: the description of this API, from the package's own openapi.yml."""

from __future__ import annotations

from importlib import resources
from typing import Any

import orjson
import yaml
from flask import Blueprint

from hearth_gateway.api.responses import HearthResponse


def openapi_text() -> str:
    return resources.files("hearth_gateway.api").joinpath("openapi.yml").read_text(encoding="utf-8")


def openapi_document() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(openapi_text())
    return document


def create_blueprint() -> Blueprint:
    blueprint = Blueprint("description", __name__)
    body = orjson.dumps(openapi_document())

    @blueprint.get("/openapi.json")
    def openapi() -> HearthResponse:
        return HearthResponse(body, 200, {"Cache-Control": "no-cache"})

    return blueprint
