"""One request, from admission to the last event: route → try providers in order → meter.

Which fault leads where (the table is in files/gateway/README.md): a fault before the first content goes on to
the next provider; 500, 502 and 503 get one more request to the same provider first; what is wrong
with the request itself goes nowhere else. After the first content every fault is the end.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from hearth_gateway.clock import Clock
from hearth_gateway.core.breaker import RETRIES_ONCE, Breakers, Pair, Report, whole_seconds
from hearth_gateway.core.identity import Caller
from hearth_gateway.core.lifecycle import Lifecycle
from hearth_gateway.core.metering import Admission, Leg, Meter, Reservation, cache_write_of
from hearth_gateway.core.redaction import safe_vendor_message
from hearth_gateway.errors import GatewayError, Kind
from hearth_gateway.providers.base import Call, Provider
from hearth_gateway.translate.events import Document, End, Event, Idle, Usage, content_bytes, is_content, utf8_bytes
from hearth_gateway.translate.fields import json_bytes
from hearth_gateway.translate.model import ChatRequest, ImagePart, PdfPart, TextPart, ToolResult


@dataclass(frozen=True, slots=True)
class Target:
    """One entry of an alias's list: this provider, with the vendor's name for the model."""

    provider: Provider
    model: str
    max_output_tokens: int

    @property
    def pair(self) -> Pair:
        return self.provider.name, self.model


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds. ``first_token`` counts from the start of the attempt until the answer begins, be it with
    reasoning that is not shown; ``idle`` between two events from then on, ``total`` over all attempts."""

    connect_s: float
    first_token_s: float
    idle_s: float
    total_s: float
    heartbeat_s: float


# Longer than any Retry-After.
_NEVER = 1 << 30

Routes = Mapping[str, Sequence[Target]]

# Raises ``GatewayError`` when this caller may no longer use the gateway. Asked before a request is
# admitted and at every event of an answer, so it must be cheap.
Guard = Callable[[Caller], None]

# What vendors are told about who asks, so that they can tell one person's abuse from the house's; or None.
Pseudonym = Callable[[Caller], str | None]

# Told (provider, reason) each time a request goes on to another provider. ``reason`` is the value of
# an error kind, or BREAKER_OPEN.
OnFailover = Callable[[str, str], None]
BREAKER_OPEN = "breaker_open"


def _jitter_s() -> float:
    """The pause before the one retry: long enough for a vendor's hiccup to pass, short enough to go unnoticed."""
    return secrets.SystemRandom().uniform(0.05, 0.15)


class ChatService:
    """Starts conversations. One per process; safe to use from many threads."""

    def __init__(
        self,
        routes: Routes,
        limits: Limits,
        clock: Clock,
        meter: Meter,
        lifecycle: Lifecycle,
        breakers: Breakers,
        guard: Guard = lambda _caller: None,
        pseudonym: Pseudonym = lambda _caller: None,
        on_failover: OnFailover = lambda _provider, _reason: None,
        on_unknown_end: Callable[[str], None] = lambda _provider: None,
        jitter_s: Callable[[], float] = _jitter_s,
        system_prompts: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.routes = routes
        self.limits = limits
        self.clock = clock
        self.lifecycle = lifecycle
        self.breakers = breakers
        self.guard = guard
        self.pseudonym = pseudonym
        self.on_failover = on_failover
        self.on_unknown_end = on_unknown_end
        self.jitter_s = jitter_s
        self._meter = meter
        self._system_prompts = system_prompts

    def start(self, request: ChatRequest, caller: Caller, request_id: str | None = None) -> Exchange:
        """Admit the request. Raises ``GatewayError``. The caller must ``close`` what it gets."""
        targets = self.routes.get(request.alias)
        if not targets:
            raise GatewayError(Kind.MODEL_NOT_FOUND, "There is no such model here; GET /v1/models lists them.", param="model")
        self.guard(caller)
        request_id = request_id or secrets.token_hex(12)
        request = self._with_system_prompt(request)
        self.lifecycle.enter()
        try:
            reservation = self._meter.admit(_admission(request_id, request, caller, targets))
        except BaseException:
            self.lifecycle.leave()
            raise
        return Exchange(self, request_id, request, caller, targets, reservation)

    def _with_system_prompt(self, request: ChatRequest) -> ChatRequest:
        """The house's words come first: the caller's own may add to them, and caches share the beginning."""
        prompt = self._system_prompts.get(request.alias)
        return replace(request, system=(TextPart(prompt), *request.system)) if prompt else request


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
        images=request.images,
        cache_write=cache_write_of(request),
    )


def estimate_tokens(request: ChatRequest) -> int:
    """Tokens of the prompt, roughly and rather too many. For reservations only; bills use what the vendor counted."""
    text = sum(utf8_bytes(text) for text in request.texts()) + _schema_bytes(request)
    tokens = text // _BYTES_PER_TOKEN + request.tokens + 16
    for turn in request.turns:
        for part in turn.parts:
            # Of a tool's answer too: agents send screenshots that way.
            for item in part.parts if isinstance(part, ToolResult) else (part,):
                if isinstance(item, ImagePart):
                    tokens += _TOKENS_PER_IMAGE
                elif isinstance(item, PdfPart):
                    tokens += _TOKENS_PER_PAGE * min(len(item.data) // _BASE64_PER_PAGE + 1, _MAX_PAGES)
    return tokens


# English has about four bytes a token, other languages and code less.
_BYTES_PER_TOKEN = 3
# What vendors charge at most for an image.
_TOKENS_PER_IMAGE = 1600
# A guess: how many pages a PDF has would take unpacking it, and vendors say of a page's tokens only that it is text
# and a picture. Claude takes at most 100 pages (AWS, "API restrictions" of the Bedrock user guide, read in November 2026).
_TOKENS_PER_PAGE = 3000
_BASE64_PER_PAGE = 64_000
_MAX_PAGES = 100


def _schema_bytes(request: ChatRequest) -> int:
    """Bytes of what the tools are and of the form that the answer must have: vendors charge for them as for words."""
    size = 0
    for tool in request.tools:
        size += len(tool.name) + utf8_bytes(tool.description or "") + len(json_bytes(tool.schema))
    if request.output is not None and request.output.schema is not None:
        size += len(json_bytes(request.output.schema))
    return size


class _Watch:
    """Looks at the time limits of one attempt.

    ``started`` is when this provider got the request first: a retry shares its time with what it repeats.
    """

    def __init__(self, limits: Limits, clock: Clock, started: float, deadline: float) -> None:
        self._limits = limits
        self._clock = clock
        self._provider_until = started + limits.first_token_s
        self._deadline = deadline
        self._begun = False

    def patience_s(self) -> float:
        """How long a provider may block: until the next heartbeat or the next limit."""
        return max(0.0, min(self._limits.heartbeat_s, self._limit_at() - self._clock.monotonic()))

    def saw(self, event: Event) -> None:
        """Raises ``GatewayError`` when a limit is passed."""
        now = self._clock.monotonic()
        content = is_content(event)
        if content or (isinstance(event, Idle) and event.begun):
            self._begun = True
        # A ping keeps an answer alive that has begun. It does not make one begin.
        if not self._begun or (isinstance(event, Idle) and not event.alive):
            if now >= self._limit_at():
                raise self._late(now)
            return
        if now >= self._deadline and not isinstance(event, End):
            raise self._late(now)
        idle_until = now + self._limits.idle_s
        # Who has begun but shows nothing yet has no less time than who has not begun.
        self._provider_until = idle_until if content else max(idle_until, self._provider_until)

    def _limit_at(self) -> float:
        return min(self._provider_until, self._deadline)

    def _late(self, now: float) -> GatewayError:
        if now < self._provider_until:
            # Not the provider's fault: it had no time left, or wrote for longer than anybody may.
            return GatewayError(Kind.DEADLINE_EXCEEDED, "The answer took longer than this server allows.")
        if self._begun:
            return GatewayError(Kind.UPSTREAM_TIMEOUT, "The provider fell silent in the middle of the answer.")
        return GatewayError(Kind.UPSTREAM_TIMEOUT, "The provider did not begin to answer in time.")


class _Permit:
    """What the breaker allowed, until one report has ended it."""

    def __init__(self, breakers: Breakers, pair: Pair, probe: int) -> None:
        self._breakers = breakers
        self._pair = pair
        self.probe = probe
        self._open = True

    def begun(self) -> None:
        if self.probe:
            # A probe's answer may take minutes. The others need not wait for its last word.
            self._breakers.report(self._pair, Report("begun", self.probe))

    def ok(self) -> None:
        self._end(Report("ok", self.probe))

    def fault(self, error: GatewayError) -> None:
        self._end(Report("fault", self.probe, error.kind, error.retry_after_s))

    def close(self) -> None:
        self._end(Report("none", self.probe))

    def _end(self, event: Report) -> None:
        if self._open:
            self._open = False
            self._breakers.report(self._pair, event)


class Exchange:
    """The answer to one request, as an iterator of events.

    A fault before the first content is raised; the API answers it with a status code. After the
    first content it is raised too, as the last thing the iterator does: the API then has to show it
    inside the stream, and must not end the stream as if it were complete.
    """

    def __init__(
        self,
        service: ChatService,
        request_id: str,
        request: ChatRequest,
        caller: Caller,
        targets: Sequence[Target],
        reservation: Reservation,
    ) -> None:
        self.id = request_id
        self.created = int(service.clock.time())
        self.request = request
        self.adjusted: tuple[str, ...] = ()
        self.attempts = 0
        self.target = targets[0]
        self.committed = False
        # Each provider that did not serve, in order, as (name, reason).
        self.failed_over: list[tuple[str, str]] = []
        # May be set to False before the first event is taken: the first provider or none.
        self.fallback = True
        # Called once it is over, however it ended.
        self.on_close: Callable[[], None] = lambda: None
        self._service = service
        self._clock = service.clock
        self._caller = caller
        self._targets = targets
        self._reservation = reservation
        self._held: list[Event] = []
        self._closed = False
        self._events = self._run()

    def __iter__(self) -> Exchange:
        return self

    def __next__(self) -> Event:
        if self._held:
            return self._held.pop(0)
        return next(self._events)

    def wait_for_content(self, limit_s: float, check: Callable[[], None] = lambda: None) -> bool:
        """Block until the first content is here (True) or ``limit_s`` have passed (False).

        What was read meanwhile comes out of the iterator later. Raises the fault if all failed, and what
        ``check`` raises, which is called at every event.
        """
        deadline = self._clock.monotonic() + limit_s
        while not self.committed:
            event = next(self._events, None)
            if event is None:
                break
            check()
            if isinstance(event, Usage) and self._held and isinstance(self._held[-1], Usage):
                self._held[-1] = event  # a vendor that counts on and on before its first word fills no memory
            elif not isinstance(event, Idle):
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
            self._service.lifecycle.leave()
            self.on_close()

    # --- internals

    def _run(self) -> Generator[Event, None, None]:
        limits = self._service.limits
        deadline = self._clock.monotonic() + limits.total_s
        targets = self._targets if self.fallback else self._targets[:1]
        waits: list[float] = []
        passed_over: tuple[str, str] | None = None
        fault: GatewayError | None = None
        for target in targets:
            if fault is not None and self._clock.monotonic() >= deadline:
                break
            decision = self._service.breakers.ask(target.pair, limits.connect_s + limits.first_token_s)
            if not decision.allowed:
                waits.append(decision.wait_s)
                passed_over = self._left(target, BREAKER_OPEN)
                continue
            if passed_over is not None:
                self._service.on_failover(*passed_over)
            permit = _Permit(self._service.breakers, target.pair, decision.probe)
            try:
                yield from self._ask(target, permit, deadline)
                return
            except GatewayError as error:
                permit.fault(error)
                if self.committed or not error.kind.spec.fails_over:
                    raise
                fault = error
                passed_over = self._left(target, error.kind.value)
            finally:
                permit.close()
        raise self._nobody_left(fault, targets, waits)

    def _left(self, target: Target, reason: str) -> tuple[str, str]:
        entry = (target.provider.name, reason)
        self.failed_over.append(entry)
        return entry

    def _nobody_left(self, fault: GatewayError | None, targets: Sequence[Target], waits: list[float]) -> GatewayError:
        """The last fault, or that nobody could be asked; with the time at which the first could be again."""
        if fault is None:
            message = "No provider can answer right now. Please try again in a moment."
            return GatewayError(Kind.PROVIDERS_UNAVAILABLE, message, retry_after_s=whole_seconds(min(waits)))
        # What the vendor itself said stands, unless another provider is back earlier.
        others = [target.pair for target in targets if fault.retry_after_s is None or target is not self.target]
        wait_s = self._service.breakers.wait_s(others)
        if wait_s is not None:
            fault.retry_after_s = min(fault.retry_after_s or _NEVER, whole_seconds(wait_s))
        return fault

    def _ask(self, target: Target, permit: _Permit, deadline: float) -> Generator[Event, None, None]:
        """One attempt, and for some faults a second one at the same provider. A probe is always just one."""
        started = self._clock.monotonic()
        self.target = target
        try:
            yield from self._attempt(target, permit, started, deadline)
        except GatewayError as error:
            if permit.probe or not self._worth_a_retry(error, started, deadline):
                raise
            self._left(target, error.kind.value)
        else:
            return
        self._clock.sleep(self._service.jitter_s())
        yield from self._attempt(target, permit, started, deadline)

    def _worth_a_retry(self, error: GatewayError, started: float, deadline: float) -> bool:
        if self.committed or error.kind not in RETRIES_ONCE:
            return False
        # With less than half of its time left, the retry would more likely cost that time than answer.
        first_token_s = self._service.limits.first_token_s
        return self._clock.monotonic() - started < min(first_token_s, deadline - started) / 2

    def _attempt(self, target: Target, permit: _Permit, asked: float, deadline: float) -> Generator[Event, None, None]:
        limits = self._service.limits
        started_at, started = self._clock.time(), self._clock.monotonic()
        watch = _Watch(limits, self._clock, asked, deadline)
        usage = Usage()
        images = 0
        first_token_s: float | None = None
        answer_bytes = 0
        outcome = "cancelled"  # what it is if nobody runs this generator to its end
        call = Call(
            self.request,
            target.model,
            target.max_output_tokens,
            min(limits.connect_s, max(deadline - started, 0.001)),
            watch.patience_s,
            self._set_adjusted,
            self._service.pseudonym(self._caller),
        )
        self.attempts += 1
        number = self.attempts
        self._reservation.begin(number, *target.pair)
        events = target.provider.stream(call)
        try:
            for event in events:
                self._service.guard(self._caller)
                watch.saw(event)
                if self._service.lifecycle.cutting and not isinstance(event, End):
                    raise GatewayError(Kind.SHUTTING_DOWN, "The gateway had to restart before the answer was complete.")
                answer_bytes += content_bytes(event)
                if isinstance(event, Usage):
                    usage = event
                elif first_token_s is None and is_content(event):
                    first_token_s = self._clock.monotonic() - started
                    images = event.images if isinstance(event, Document) else 0
                    self.committed = True
                    permit.begun()
                elif isinstance(event, End):
                    if event.unknown:
                        self._service.on_unknown_end(target.provider.name)
                    # Before the yield: a caller may stop reading once it has what it needs.
                    outcome = "ok"
                    self.committed = True
                    permit.ok()
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
                    answer_bytes=answer_bytes,
                    images=images,
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
