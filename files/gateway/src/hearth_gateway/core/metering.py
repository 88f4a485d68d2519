"""What is written down about a request: numbers and names, never words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from hearth_gateway.translate.events import Usage


@dataclass(frozen=True, slots=True)
class Leg:
    """One attempt at one provider. A request that failed over has several, numbered from 1.

    ``started_at`` is Unix seconds. ``outcome`` is ``ok``, ``cancelled`` or the value of an error
    kind. ``first_token_s`` is None when no content came. ``usage`` is what the vendor reported up
    to the end, also of an answer that was cancelled or broke.
    """

    request_id: str
    leg: int
    started_at: float
    caller: str
    alias: str
    provider: str
    model: str
    stream: bool
    usage: Usage
    outcome: str
    duration_s: float
    first_token_s: float | None


class Meter(Protocol):
    """Receives every leg once it is over."""

    def check(self) -> None:
        """Raises ``GatewayError`` when legs cannot be kept: what cannot be counted must not be spent."""

    def record(self, leg: Leg) -> None: ...
