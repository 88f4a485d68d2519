"""What the core expects of a provider."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from hearth_gateway.records import record
from hearth_gateway.translate.events import Event
from hearth_gateway.translate.model import ChatRequest


@record
class Call:
    """One attempt at one provider.

    ``model`` is the vendor's name, ``max_output_tokens`` its ceiling. ``connect_s`` bounds name
    look-up, TCP and TLS together. ``patience_s`` says how long the provider may block at most before
    it yields ``Idle``: the core checks its time limits, and whether anybody still listens, only
    when it gets an event. ``adjusted`` reports each field of the request that had to be changed.
    ``user`` is the pseudonym of who asks, for the vendor; never an e-mail.
    """

    request: ChatRequest
    model: str
    max_output_tokens: int
    connect_s: float
    patience_s: Callable[[], float]
    adjusted: Callable[[tuple[str, ...]], None]
    user: str | None = None


class Provider(Protocol):
    """Yields the events of one answer. The last one is ``End``; every fault is a ``GatewayError``.

    Closing the iterator early must close the connection to the vendor: that is how an answer nobody
    waits for stops costing money.
    """

    @property
    def name(self) -> str: ...

    @property
    def is_demo(self) -> bool:
        """True if no language model answers. The page has to say so."""

    def stream(self, call: Call) -> Iterator[Event]: ...

    def close(self) -> None: ...
