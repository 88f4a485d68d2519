"""GET /api/usage: one's own use and cost by day and model, and what is left of each limit."""

from __future__ import annotations

from flask import Blueprint, request

from hearth_gateway.api.door import Door
from hearth_gateway.api.responses import HearthResponse, json_response
from hearth_gateway.clock import Clock
from hearth_gateway.core.usage import MAX_DAYS, UsageReport
from hearth_gateway.errors import InvalidRequestError

_DEFAULT_DAYS = 30


def create_blueprint(door: Door, report: UsageReport, clock: Clock) -> Blueprint:
    blueprint = Blueprint("usage", __name__)

    @blueprint.get("/api/usage")
    def usage() -> HearthResponse:
        caller = door.caller()
        return json_response(report.of(caller, _days(request.args.get("days")), clock.time()))

    return blueprint


def _days(text: str | None) -> int:
    if text is None:
        return _DEFAULT_DAYS
    if not text.isascii() or not text.isdigit() or len(text) > 3 or not 1 <= int(text) <= MAX_DAYS:
        raise InvalidRequestError(f"`days` must be a whole number from 1 to {MAX_DAYS}.", "days")
    return int(text)
