"""GET /api/me: who the gateway takes the caller for."""

from __future__ import annotations

from typing import Any

from flask import Blueprint

from hearth_gateway.api.door import Door
from hearth_gateway.api.responses import HearthResponse, json_response
from hearth_gateway.config import AllLimitsConfig
from hearth_gateway.core.identity import Caller
from hearth_gateway.core.people import People


def create_blueprint(door: Door, people: People, limits: AllLimitsConfig) -> Blueprint:
    blueprint = Blueprint("me", __name__)

    @blueprint.get("/api/me")
    def me() -> HearthResponse:
        caller = door.caller()
        person = people.of(caller.person) if caller.person else None
        return json_response(
            {
                "email": caller.person,
                "alias": person.alias if person else None,
                # Whoever is disabled gets no answer at all, so there is no other word.
                "state": "active",
                "door": "browser" if caller.browser else "program",
                "program": None if caller.browser else caller.name,
                "limits": _limits(caller, people, limits),
            }
        )

    return blueprint


def _limits(caller: Caller, people: People, limits: AllLimitsConfig) -> dict[str, Any]:
    """The ceilings that hold for this caller; null = none. Money as text, so that no digit is lost."""
    own = people.limits_of(caller.person) or limits.person if caller.person else limits.programs.get(caller.name, limits.program)
    return own.model_dump(mode="json")
