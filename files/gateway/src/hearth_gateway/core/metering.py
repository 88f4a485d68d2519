"""What is written down about a request: numbers and names, never words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from hearth_gateway.core.identity import Caller
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
    caller: Caller
    alias: str
    provider: str
    model: str
    stream: bool
    usage: Usage
    outcome: str
    duration_s: float
    first_token_s: float | None


@dataclass(frozen=True, slots=True)
class Admission:
    """What is known of a request before any provider is tried.

    ``prompt_tokens`` is an estimate, ``max_output_tokens`` the most the answer may have, ``targets``
    the (provider, model) pairs that may serve it, in order.
    """

    request_id: str
    caller: Caller
    alias: str
    stream: bool
    prompt_tokens: int
    max_output_tokens: int
    targets: tuple[tuple[str, str], ...]


class Reservation(Protocol):
    """What one admitted request may spend. Exactly one ``settle`` follows each ``begin``; ``close`` comes last."""

    def begin(self, leg: int, provider: str, model: str) -> None:
        """Returns once the intent to call this provider is durable. Raises ``GatewayError`` if it cannot be."""

    def settle(self, leg: Leg) -> None:
        """The leg is over, however it ended. Does not raise."""

    def close(self) -> None:
        """Give back what was reserved and not spent. Does not raise; may be called twice."""


class Meter(Protocol):
    """Admits requests and receives every leg once it is over."""

    def admit(self, admission: Admission) -> Reservation:
        """Raises ``GatewayError``: a limit is reached, or what is spent could not be counted."""
