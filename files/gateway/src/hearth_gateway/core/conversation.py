"""One request, from admission to the last event: route → try providers in order → meter."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass

from hearth_gateway.clock import Clock
from hearth_gateway.core.identity import Caller
from hearth_gateway.core.lifecycle import Lifecycle
from hearth_gateway.core.metering import Admission, Leg, Meter, Reservation
from hearth_gateway.core.redaction import safe_vendor_message
from hearth_gateway.errors import GatewayError, Kind
from hearth_gateway.providers.base import Call, Provider
from hearth_gateway.translate.events import End, Event, Idle, Usage, is_content
from hearth_gateway.translate.model import ChatRequest, ImagePart


@dataclass(frozen=True, slots=True)
class Target:
    """One entry of an alias's list: this provider, with the vendor's name for the model."""

    provider: Provider
    model: str
    max_output_tokens: int


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds. ``first_token`` counts from the start of the attempt, ``idle`` between two events of
    an answer that has begun, ``total`` over all attempts."""

    connect_s: float
    first_token_s: float
    idle_s: float
    total_s: float
    heartbeat_s: float


Routes = Mapping[str, Sequence[Target]]

# Raises ``GatewayError`` when this caller may no longer use the gateway. Asked before a request is
# admitted and at every event of an answer, so it must be cheap.
Guard = Callable[[Caller], None]


class ChatService:
    """Starts conversations. One per process; safe to use from many threads."""

    def __init__(
        self,
        routes: Routes,
        limits: Limits,
        clock: Clock,
        meter: Meter,
        lifecycle: Lifecycle,
        guard: Guard = lambda _caller: None,
    ) -> None:
        self.routes = routes
        self._limits = limits
        self._clock = clock
        self._meter = meter
        self._lifecycle = lifecycle
        self._guard = guard

    def start(self, request: ChatRequest, caller: Caller) -> Exchange:
        """Admit the request. Raises ``GatewayError``. The caller must ``close`` what it gets."""
        targets = self.routes.get(request.alias)
        if not targets:
            raise GatewayError(Kind.MODEL_NOT_FOUND, "There is no such model here; GET /v1/models lists them.", param="model")
        self._guard(caller)
        request_id = secrets.token_hex(12)
        self._lifecycle.enter()
        try:
            reservation = self._meter.admit(_admission(request_id, request, caller, targets))
        except BaseException:
            self._lifecycle.leave()
            raise
        return Exchange(request_id, request, caller, targets, self._limits, self._clock, reservation, self._lifecycle, self._guard)


def _admission(request_id: str, request: ChatRequest, caller: Caller, targets: Sequence[Target]) -> Admission:
    ceiling = max(target.max_output_tokens for target in targets)
    return Admission(
        request_id=request_id,
        caller=caller,
        alias=request.alias,
        stream=request.stream,
        prompt_tokens=estimate_tokens(request),
        max_output_tokens=min(request.max_tokens or ceiling, ceiling),
        targets=tuple((target.provider.name, target.model) for target in targets),
    )


def estimate_tokens(request: ChatRequest) -> int:
    """Tokens of the prompt, roughly and rather too many: one for three bytes of text, and what vendors
    charge at most for an image. For reservations only; bills use what the vendor counted."""
    text = sum(len(text.encode("utf-8", "surrogatepass")) for text in request.texts())
    images = sum(isinstance(part, ImagePart) for turn in request.turns for part in turn.parts)
    return text // 3 + 1600 * images + 16


class _Watch:
    """Looks at the time limits of one attempt."""

    def __init__(self, limits: Limits, clock: Clock, started: float, deadline: float) -> None:
        self._limits = limits
        self._clock = clock
        self._limit_at = min(started + limits.first_token_s, deadline)
        self._deadline = deadline
        self._begun = False

    def patience_s(self) -> float:
        """How long a provider may block: until the next heartbeat or the next limit."""
        return max(0.0, min(self._limits.heartbeat_s, self._limit_at - self._clock.monotonic()))

    def saw(self, event: Event) -> None:
        """Raises ``GatewayError`` when a limit is passed."""
        now = self._clock.monotonic()
        nothing_new = isinstance(event, Idle) and not event.alive
        # A ping keeps an answer alive that has begun. It does not make one begin.
        if nothing_new or not (self._begun or is_content(event)):
            if now >= self._limit_at:
                raise self._late(now)
            return
        self._begun = True
        if now >= self._deadline and not isinstance(event, End):
            raise self._late(now)
        self._limit_at = min(now + self._limits.idle_s, self._deadline)

    def _late(self, now: float) -> GatewayError:
        if now >= self._deadline:
            message = "The answer took longer than this server allows."
        elif self._begun:
            message = "The provider fell silent in the middle of the answer."
        else:
            message = "The provider did not begin to answer in time."
        return GatewayError(Kind.UPSTREAM_TIMEOUT, message)


class Exchange:
    """The answer to one request, as an iterator of events.

    A fault before the first content is raised; the API answers it with a status code. After the
    first content it is raised too, as the last thing the iterator does: the API then has to show it
    inside the stream, and must not end the stream as if it were complete.
    """

    def __init__(
        self,
        request_id: str,
        request: ChatRequest,
        caller: Caller,
        targets: Sequence[Target],
        limits: Limits,
        clock: Clock,
        reservation: Reservation,
        lifecycle: Lifecycle,
        guard: Guard,
    ) -> None:
        self.id = request_id
        self.created = int(clock.time())
        self.request = request
        self.adjusted: tuple[str, ...] = ()
        self.attempts = 0
        self.target = targets[0]
        self.committed = False
        self._caller = caller
        self._targets = targets
        self._limits = limits
        self._clock = clock
        self._reservation = reservation
        self._lifecycle = lifecycle
        self._guard = guard
        self._held: list[Event] = []
        self._closed = False
        self._events = self._run()

    def __iter__(self) -> Exchange:
        return self

    def __next__(self) -> Event:
        if self._held:
            return self._held.pop(0)
        return next(self._events)

    def wait_for_content(self, limit_s: float) -> bool:
        """Block until the first content is here (True) or ``limit_s`` have passed (False).

        What was read meanwhile comes out of the iterator later. Raises the fault if all failed.
        """
        deadline = self._clock.monotonic() + limit_s
        while not self.committed:
            event = next(self._events, None)
            if event is None:
                break
            # Nothing but usage and silence comes before the first content, so this stays short.
            if not isinstance(event, Idle):
                self._held.append(event)
            if self._clock.monotonic() >= deadline:
                break
        return self.committed

    def close(self) -> None:
        """Cut the connection to the vendor if it is still open, and count the request out."""
        if self._closed:
            return
        self._closed = True
        try:
            self._events.close()
        finally:
            self._reservation.close()
            self._lifecycle.leave()

    # --- internals

    def _run(self) -> Generator[Event, None, None]:
        deadline = self._clock.monotonic() + self._limits.total_s
        for number, target in enumerate(self._targets, 1):
            self.target, self.attempts = target, number
            try:
                yield from self._attempt(number, target, deadline)
                return
            except GatewayError as error:
                last = number == len(self._targets)
                if self.committed or last or not error.kind.spec.fails_over:
                    raise

    def _attempt(self, number: int, target: Target, deadline: float) -> Generator[Event, None, None]:
        started_at, started = self._clock.time(), self._clock.monotonic()
        watch = _Watch(self._limits, self._clock, started, deadline)
        usage = Usage()
        first_token_s: float | None = None
        outcome = "cancelled"  # what it is if nobody runs this generator to its end
        call = Call(
            self.request,
            target.model,
            target.max_output_tokens,
            min(self._limits.connect_s, max(deadline - started, 0.001)),
            watch.patience_s,
            self._set_adjusted,
        )
        self._reservation.begin(number, target.provider.name, target.model)
        events = target.provider.stream(call)
        try:
            for event in events:
                self._guard(self._caller)
                watch.saw(event)
                if self._lifecycle.cutting and not isinstance(event, End):
                    raise GatewayError(Kind.SHUTTING_DOWN, "The gateway had to restart before the answer was complete.")
                if isinstance(event, Usage):
                    usage = event
                elif first_token_s is None and is_content(event):
                    first_token_s = self._clock.monotonic() - started
                    self.committed = True
                elif isinstance(event, End):
                    # Before the yield: a caller may stop reading once it has what it needs.
                    outcome = "ok"
                    self.committed = True
                yield event
                if isinstance(event, End):
                    return
            raise GatewayError(Kind.UPSTREAM_INTERRUPTED, "The provider ended the answer before it was complete.")
        except GatewayError as error:
            outcome = error.kind.value
            raise self._presentable(error) from None
        except Exception:
            outcome = Kind.INTERNAL.value
            raise
        finally:
            close = getattr(events, "close", None)
            if close is not None:
                close()
            self._reservation.settle(
                Leg(
                    request_id=self.id,
                    leg=number,
                    started_at=started_at,
                    caller=self._caller,
                    alias=self.request.alias,
                    provider=target.provider.name,
                    model=target.model,
                    stream=self.request.stream,
                    usage=usage,
                    outcome=outcome,
                    duration_s=self._clock.monotonic() - started,
                    first_token_s=first_token_s,
                )
            )

    def _set_adjusted(self, adjusted: tuple[str, ...]) -> None:
        self.adjusted = adjusted

    def _presentable(self, error: GatewayError) -> GatewayError:
        """Vendor words pass the redaction point before anybody sees them."""
        if error.kind is Kind.UPSTREAM_INVALID_REQUEST:
            safe = safe_vendor_message(error.message, self.request.texts())
            error.message = safe or "The provider refused this request as invalid."
        return error
