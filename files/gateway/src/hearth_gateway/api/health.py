"""GET /healthz (the process) and GET /readyz (can it serve?)."""

from __future__ import annotations

from flask import Blueprint

from hearth_gateway.api.responses import HearthResponse, json_response
from hearth_gateway.core.status import Status


def create_blueprint(status: Status) -> Blueprint:
    blueprint = Blueprint("health", __name__)

    @blueprint.get("/healthz")
    def healthz() -> HearthResponse:
        return json_response({"status": "ok"}) if status.alive() else json_response({"status": "failing"}, 503)

    @blueprint.get("/readyz")
    def readyz() -> HearthResponse:
        checks = status.checks()
        ready = all(value == "ok" for value in checks.values())
        return json_response({"status": "ready" if ready else "not-ready", "checks": checks}, 200 if ready else 503)

    return blueprint
