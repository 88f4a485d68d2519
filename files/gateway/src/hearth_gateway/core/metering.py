"""What is written down about a request: numbers and names, never words.

``LedgerMeter`` reserves before a provider is called and settles after. What a leg cost is the
provider's own count times its price. Where the provider did not get to say its count, because
somebody hung up in the middle, the rest is estimated and marked so; it is never left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain
from typing import Literal, Protocol

from hearth_gateway.clock import Clock
from hearth_gateway.core.identity import Caller
from hearth_gateway.core.limits import Bounds, LimitBook
from hearth_gateway.core.prices import CacheWrite, PriceBook
from hearth_gateway.errors import GatewayError, Kind
from hearth_gateway.records import record
from hearth_gateway.translate.events import Usage
from hearth_gateway.translate.model import ChatRequest, ToolResult

# The outcome of an answer that nobody waited for. All others are OK or the value of an error kind.
CANCELLED = "cancelled"
OK = "ok"

_NO_USAGE = Usage()


@record
class Leg:
    """One attempt at one provider. A request that failed over has several, numbered from 1.

    ``started_at`` is Unix seconds. ``outcome`` is ``ok``, ``cancelled`` or the value of an error
    kind. ``first_token_s`` is None when no content came. ``usage`` is what the vendor reported up
    to the end, also of an answer that was cancelled or broke. ``answer_bytes`` is the size of the
    content that was seen, in UTF-8: the estimate for what the vendor did not report. ``images``
    counts generated images.
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
    answer_bytes: int = 0
    images: int = 0


@record
class Admission:
    """What is known of a request before any provider is tried.

    ``prompt_tokens`` is an estimate, ``max_output_tokens`` the most the answer may have, ``targets``
    the (provider, model) pairs that may serve it, in order. ``images`` is how many are asked for,
    ``cache_write`` the longest time for which any of the prompt is to be cached.
    """

    request_id: str
    caller: Caller
    alias: str
    stream: bool
    prompt_tokens: int
    max_output_tokens: int
    targets: tuple[tuple[str, str], ...]
    images: int = 0
    cache_write: CacheWrite | None = None


def cache_write_of(request: ChatRequest) -> CacheWrite | None:
    """The longest time for which the request asks a vendor to cache any of its prompt."""
    found: CacheWrite | None = None
    for part in chain(request.system, request.tools, *(turn.parts for turn in request.turns)):
        inner = part.parts if isinstance(part, ToolResult) else ()
        for item in (part, *inner):
            control = getattr(item, "cache_control", None)
            if control is not None:
                if control.get("ttl") == "1h":
                    return "1h"
                found = "5m"
    return found


class Reservation(Protocol):
    """What one admitted request may spend. Exactly one ``settle`` follows each ``begin``; ``close`` comes last."""

    def begin(self, leg: int, provider: str, model: str) -> None:
        """Returns once the intent to call this provider is durable.

        Raises ``GatewayError``, and then nothing is reserved: a limit is reached, or the intent
        cannot be written.
        """

    def settle(self, leg: Leg) -> None:
        """The leg is over, however it ended. Does not raise."""

    def close(self) -> None:
        """Give back what was reserved and not spent. Does not raise; may be called twice."""


class Meter(Protocol):
    """Admits requests and receives every leg once it is over."""

    def admit(self, admission: Admission) -> Reservation:
        """Raises ``GatewayError``: what is spent could not be counted."""


# --- what the ledger is told -------------------------------------------------------------------

State = Literal["settled", "estimated", "unknown"]


@record
class Intent:
    """A leg that is about to begin, with the most it can cost. ``cost_nano`` is None without a price."""

    request_id: str
    leg: int
    started_at: float
    caller: Caller
    alias: str
    provider: str
    model: str
    stream: bool
    prompt_tokens: int
    max_output_tokens: int
    images: int
    cost_nano: int | None
    bounds: Bounds

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.max_output_tokens


@record
class Settlement:
    """How a leg ended. ``usage`` is what is billed: the vendor's count, or ours where ``state`` is `estimated`.

    `unknown`: the ledger could not hold it, and what was reserved stands instead.
    """

    leg: Leg
    usage: Usage
    state: State
    cost_nano: int | None

    @property
    def tokens(self) -> int:
        return self.usage.prompt + self.usage.output


class Books(Protocol):
    """The ledger and the sums that limits are checked against."""

    def check(self) -> None:
        """Raises ``GatewayError`` when nothing can be written down at the moment."""

    def begin(self, intent: Intent) -> None:
        """Check the limits, reserve and write the intent, in one durable step. Raises ``GatewayError``."""

    def settle(self, intent: Intent, settlement: Settlement) -> None:
        """Give back the reservation and charge what was used. Does not raise and does not wait."""


Listener = Callable[[Settlement], None]


class LedgerMeter:
    """The ``Meter`` of the running service. Each of ``listeners`` is told of every leg that is over."""

    def __init__(self, books: Books, prices: PriceBook, limits: LimitBook, clock: Clock, listeners: Iterable[Listener] = ()) -> None:
        self._books = books
        self._prices = prices
        self._limits = limits
        self._clock = clock
        self._listeners = tuple(listeners)

    def admit(self, admission: Admission) -> Reservation:
        self._books.check()
        return _Reservation(self, admission)

    def intent(self, admission: Admission, leg: int, provider: str, model: str) -> Intent:
        """Raises ``GatewayError`` if this model may not be used without a price."""
        now = self._clock.time()
        bounds = self._limits.bounds(admission.caller, now)
        cost_nano = self._prices.most_nano(
            provider, model, admission.prompt_tokens, admission.max_output_tokens, admission.images, admission.cache_write
        )
        if cost_nano is None and self._limits.refuses_unpriced and any(ceiling.limit != "tokens_per_day" for ceiling in bounds.ceilings):
            raise GatewayError(
                Kind.UNPRICED_MODEL,
                "Nobody has told this server what this model costs, so it cannot keep your limit on money. Choose another model.",
                param="model",
            )
        return Intent(
            request_id=admission.request_id,
            leg=leg,
            started_at=now,
            caller=admission.caller,
            alias=admission.alias,
            provider=provider,
            model=model,
            stream=admission.stream,
            prompt_tokens=admission.prompt_tokens,
            max_output_tokens=admission.max_output_tokens,
            images=admission.images,
            cost_nano=cost_nano,
            bounds=bounds,
        )

    def begin(self, intent: Intent) -> None:
        self._books.begin(intent)

    def settle(self, intent: Intent, leg: Leg) -> None:
        usage, state = billed(leg, intent.prompt_tokens)
        used = usage != _NO_USAGE or leg.images
        # Nothing costs nothing, also where nobody knows the price.
        cost_nano = self._prices.cost_nano(leg.provider, leg.model, usage, leg.images) if used else 0
        settlement = Settlement(leg, usage, state, cost_nano)
        self._books.settle(intent, settlement)
        for listener in self._listeners:
            listener(settlement)


class _Reservation:
    """One leg at a time: ``begin`` keeps the intent that the next ``settle`` ends."""

    def __init__(self, meter: LedgerMeter, admission: Admission) -> None:
        self._meter = meter
        self._admission = admission
        self._open: Intent | None = None

    def begin(self, leg: int, provider: str, model: str) -> None:
        intent = self._meter.intent(self._admission, leg, provider, model)
        self._meter.begin(intent)
        self._open = intent

    def settle(self, leg: Leg) -> None:
        intent, self._open = self._open, None
        if intent is not None:
            self._meter.settle(intent, leg)

    def close(self) -> None:
        """Each leg gives back its own reservation when it settles: nothing is left to do."""


# --- what is billed ----------------------------------------------------------------------------

# A token of English text has about four bytes, of other languages less; code and names more.
_BYTES_PER_TOKEN = 4
# Here it was this side that hung up on a vendor who may have been working: what was read is billed by
# them, said or not. In all other faults without content the vendor answered that it did nothing.
_HUNG_UP = frozenset(
    {
        CANCELLED,
        Kind.DEADLINE_EXCEEDED.value,
        Kind.UPSTREAM_TIMEOUT.value,
        Kind.SHUTTING_DOWN.value,
        Kind.PERSON_REFUSED.value,
        Kind.UNAUTHENTICATED.value,
    }
)


# No model reads or writes as many in one attempt. A vendor that says so has made a mistake, and it would take all that
# somebody may spend in a month.
_MAX_BELIEVED = 100_000_000


def billed(leg: Leg, prompt_tokens: int) -> tuple[Usage, State]:
    """The usage to charge for, and whether any of it is our estimate. ``prompt_tokens`` is the estimate for the prompt."""
    said = leg.usage
    if said.cache_write_1h > said.cache_write:
        # The part alone was said, and the rest is not negative: no price and no counter can be.
        said = replace(said, cache_write=said.cache_write_1h)
    usage = said if said.prompt <= _MAX_BELIEVED and said.output <= _MAX_BELIEVED else _believed(said)
    doubted = usage is not said
    said_nothing = usage == _NO_USAGE and not leg.images
    if leg.outcome == OK:
        if not (said_nothing or doubted):
            return usage, "settled"
    elif not (leg.answer_bytes or doubted) and not (said_nothing and leg.outcome in _HUNG_UP):
        return usage, "settled"
    # The vendor's first count of the output is one token; the true one would have come at the end.
    output = max(usage.output, -(-leg.answer_bytes // _BYTES_PER_TOKEN))
    estimate = replace(usage, output=output, input=usage.input if usage.prompt else prompt_tokens)
    return estimate, "settled" if estimate == said else "estimated"


def _believed(said: Usage) -> Usage:
    """Without the counts that cannot be true, as if they had not been said."""
    prompt = said if said.prompt <= _MAX_BELIEVED else _NO_USAGE
    return replace(prompt, output=said.output if said.output <= _MAX_BELIEVED else 0)
