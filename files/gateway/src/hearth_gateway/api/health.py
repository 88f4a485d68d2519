"""GET /healthz (the process) and GET /readyz (can it serve?)."""

from __future__ import annotations

from flask import Blueprint

from hearth_gateway.api.responses import HearthResponse, json_response
from hearth_gateway.core.breaker import Breakers
from hearth_gateway.core.lifecycle import Lifecycle
from hearth_gateway.store.ledger import Ledger


def create_blueprint(lifecycle: Lifecycle, ledger: Ledger, breakers: Breakers) -> Blueprint:
    blueprint = Blueprint("health", __name__)

    @blueprint.get("/healthz")
    def healthz() -> HearthResponse:
        return json_response({"status": "ok"})

    @blueprint.get("/readyz")
    def readyz() -> HearthResponse:
        checks = {
            "store": "ok" if ledger.reachable() else "failing",
            "providers": "ok" if breakers.any_usable() else "open",
            "shutdown": "draining" if lifecycle.draining else "ok",
        }
        ready = all(value == "ok" for value in checks.values())
        return json_response({"status": "ready" if ready else "not-ready", "checks": checks}, 200 if ready else 503)

    return blueprint
