"""Wires the layers together. Nothing here decides anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import sqlalchemy as sa
from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from hearth_gateway import __version__, web
from hearth_gateway.api import chat, description, endpoints, health, me, messages, models, transparency, usage
from hearth_gateway.api.answering import Answering
from hearth_gateway.api.door import Door
from hearth_gateway.api.framework import HearthApp
from hearth_gateway.api.responses import HearthResponse, error_response, own_headers
from hearth_gateway.clients import Clients
from hearth_gateway.clock import Clock, SystemClock
from hearth_gateway.config import (
    AnthropicProviderConfig,
    Config,
    DemoProviderConfig,
    EndpointConfig,
    OpenAIProviderConfig,
    ProviderConfig,
    TargetConfig,
)
from hearth_gateway.core.breaker import Breakers, Rules, View
from hearth_gateway.core.catalogue import build_catalogue
from hearth_gateway.core.conversation import ChatService, Limits, Routes, Target
from hearth_gateway.core.identity import Caller, TokenStore
from hearth_gateway.core.lifecycle import Lifecycle, Uploads
from hearth_gateway.core.limits import Calendar, Ceiling, LimitBook, LimitEvent
from hearth_gateway.core.metering import LedgerMeter, Settlement
from hearth_gateway.core.people import People, PeopleUnavailableError, Watch
from hearth_gateway.core.prices import Price, PriceBook, price_book, served_pairs
from hearth_gateway.core.pseudonym import Pseudonym
from hearth_gateway.core.status import Status, Store
from hearth_gateway.core.usage import UsageReport
from hearth_gateway.errors import GatewayError, Kind
from hearth_gateway.providers.anthropic import AnthropicProvider
from hearth_gateway.providers.base import Provider
from hearth_gateway.providers.demo import DemoProvider
from hearth_gateway.providers.fetch import ImageFetcher
from hearth_gateway.providers.http import HttpClient, Transport
from hearth_gateway.providers.key import KeyFile
from hearth_gateway.providers.openai_compatible import OpenAICompatibleProvider, Options
from hearth_gateway.store.database import DatabaseError, open_database, reason
from hearth_gateway.store.housekeeping import Housekeeper
from hearth_gateway.store.ledger import Ledger
from hearth_gateway.store.people import SqlPeople
from hearth_gateway.store.usage import SqlUsage
from hearth_gateway.telemetry.log import Log
from hearth_gateway.telemetry.metrics import Metrics, PersonLabels
from hearth_gateway.translate.openai_upstream_request import Dialect
from hearth_gateway.translate.traits import OPENAI, ModelTraits, anthropic_traits

# Of requests that are being answered. Less than two of the largest would let one person shut out all others.
_BODIES_BYTES = 64 * 1024 * 1024

TransportFactory = Callable[[str, str | None, Clock], Transport]


@dataclass(slots=True)
class Gateway:
    """A running application: the WSGI app and what a server needs to stop it in order."""

    app: Flask
    lifecycle: Lifecycle
    clients: Clients
    ledger: Ledger
    metrics: Metrics
    log: Log
    providers: list[Provider]
    status: Status
    dispose: Callable[[], None]

    def close(self, timeout_s: float = 10.0) -> int:
        """Drain the ledger, close connections. Returns the number of ledger rows that were lost."""
        lost = self.ledger.close(timeout_s)
        for provider in self.providers:
            provider.close()
        self.dispose()
        return lost


def create_app(
    config: Config,
    *,
    clock: Clock | None = None,
    transport: TransportFactory = HttpClient,
    log: Log | None = None,
) -> Gateway:
    """Build the application. ``transport`` makes the connection to a vendor, ``clock`` tells time.

    Raises ``DatabaseError`` and ``SecretError``.
    """
    clock = clock or SystemClock()
    log = log or Log()
    keys = _keys(config, clock, log)
    providers = {item.name: _provider(item, config, keys.get(item.name), clock, transport) for item in config.providers}
    engine = open_database(config.database_url, config.database_password())
    lifecycle = Lifecycle(config.server.max_open_requests)
    identity = _identity(config, clock, engine, log)
    tokens, people, door = identity.tokens, identity.people, Door(identity.tokens, identity.people)
    metrics = Metrics(PersonLabels(config.metrics.max_people, identity.label(config.metrics.person_label)))
    money = _money(config, clock, engine, identity, metrics, log)
    ledger = money.ledger
    timeouts = config.timeouts
    breakers = _breakers(config, clock, keys, log)
    limits = Limits(timeouts.connect_s, timeouts.first_token_s, timeouts.idle_s, timeouts.total_s, config.server.heartbeat_s)

    def make_service(routes: Routes, limits: Limits, system_prompts: dict[str, str]) -> ChatService:
        return ChatService(
            routes,
            limits,
            clock,
            money.meter,
            lifecycle,
            breakers,
            identity.guard,
            identity.upstream_name,
            metrics.failover,
            metrics.unknown_end,
            system_prompts=system_prompts,
        )

    service = make_service(_chat_routes(config, providers), limits, config.system_prompts)
    embedding_service = make_service(_endpoint_routes(config.embedding_models, providers), limits, {})
    # An image comes all at once, after a minute or more: its first byte may take as long as its last.
    image_limits = replace(limits, first_token_s=limits.total_s)
    image_service = make_service(_endpoint_routes(config.image_models, providers), image_limits, {})
    kinds = {item.name: item.kind for item in config.providers}
    status = Status(__version__, clock, lifecycle, breakers, Store(ledger.reachable, lambda: ledger.queued, lambda: ledger.alive), kinds)
    for pair in breakers.pairs:
        metrics.measure("hearth_breaker_state", partial(breakers.state, pair), *pair)
    metrics.measure("hearth_open_requests", lambda: lifecycle.open)
    metrics.measure("hearth_draining", lambda: float(lifecycle.draining))
    metrics.measure("hearth_valid_tokens", lambda: len(tokens))
    metrics.measure("hearth_ledger_queued_rows", lambda: ledger.queued)
    metrics.measure("hearth_ledger_failing", lambda: float(ledger.failing or ledger.misplaced))

    app = HearthApp()
    # One more than allowed: of a chunked body, which does not announce its length, Werkzeug hands out
    # as much as this and no error. The route sees that it is too much (api/answering.py).
    app.config["MAX_CONTENT_LENGTH"] = config.server.max_body_bytes + 1
    catalogue = build_catalogue(config, money.prices.price)
    clients = Clients(clock)
    uploads = Uploads(config.server.max_open_requests, max(2 * config.server.max_body_bytes, _BODIES_BYTES))
    answering = Answering(config.server, log, uploads, clients)
    app.register_blueprint(chat.create_blueprint(service, door, answering))
    app.register_blueprint(messages.create_blueprint(service, door, answering))
    app.register_blueprint(endpoints.create_blueprint(embedding_service, image_service, door, answering))
    app.register_blueprint(models.create_blueprint(catalogue, door, int(clock.time())))
    app.register_blueprint(me.create_blueprint(door, people, config.limits))
    app.register_blueprint(usage.create_blueprint(door, UsageReport(SqlUsage(engine), money.limits), clock))
    app.register_blueprint(transparency.create_blueprint(door, config))
    app.register_blueprint(health.create_blueprint(status))
    app.register_blueprint(description.create_blueprint())
    app.register_blueprint(web.create_blueprint())
    app.before_request(door.before_request)
    _add_error_handlers(app, metrics, log)
    _add_response_hook(app, lifecycle, metrics)

    def dispose() -> None:
        money.housekeeper.stop()
        identity.watch.stop()
        engine.dispose()

    return Gateway(app, lifecycle, clients, ledger, metrics, log, list(providers.values()), status, dispose)


@dataclass(slots=True)
class _Identity:
    """Who may use the gateway, as of a second ago. ``watch`` keeps it so until it is stopped."""

    tokens: TokenStore
    people: People
    pseudonym: Pseudonym
    watch: Watch

    def guard(self, caller: Caller) -> None:
        self.tokens.check(caller)
        self.people.check(caller)

    def label(self, form: str) -> Callable[[str], str]:
        """How a person appears in the metrics: `email`, `alias` (where there is one) or `opaque`."""

        def alias(email: str) -> str:
            person = self.people.of(email)
            return (person.alias if person else None) or self.pseudonym.of(email)

        if form == "email":
            return lambda email: email
        return alias if form == "alias" else self.pseudonym.of

    def upstream_name(self, caller: Caller) -> str | None:
        """What vendors are told about who asks."""
        return self.pseudonym.of(caller.person) if caller.person else None


def _identity(config: Config, clock: Clock, engine: sa.Engine, log: Log) -> _Identity:
    tokens = TokenStore(
        Path(config.tokens.dir),
        clock,
        lambda name, problem: log.event("token-ignored", token=name, problem=problem),
        proxy=config.tokens.proxy,
        end_users=config.tokens.end_users,
    )
    store = SqlPeople(engine)
    people = People(store, clock, lambda problem: log.event("store-problem", problem=problem))
    try:
        key = config.pseudonym_key() or store.pseudonym_key()
    except PeopleUnavailableError as problem:
        raise DatabaseError(str(problem)) from None
    return _Identity(tokens, people, Pseudonym(key), Watch((tokens.refresh, people.refresh), log.unexpected))


@dataclass(slots=True)
class _Money:
    """What is spent, and who may spend it."""

    ledger: Ledger
    housekeeper: Housekeeper
    prices: PriceBook
    limits: LimitBook
    meter: LedgerMeter


def _money(config: Config, clock: Clock, engine: sa.Engine, identity: _Identity, metrics: Metrics, log: Log) -> _Money:
    def problem(text: str) -> None:
        log.event("store-problem", problem=text)

    def reached(event: LimitEvent) -> None:
        metrics.limit_event(event)
        kind, _, name = event.scope.partition(":")
        subject = identity.pseudonym.of(name) if kind == "person" else name
        share = round(event.share, 3)
        log.event("limit", scope=kind, subject=subject, limit=event.limit, level=event.level, period=event.period, share=share)

    def present(ceiling: Ceiling) -> Ceiling | None:
        kind, _, name = ceiling.scope.partition(":")
        if kind == "person":
            person = identity.people.of(name)
            if person is None or not person.active:
                return None  # forgotten, or known by another address now
        if kind == "program" and name not in identity.tokens:
            return None
        return limits.present(ceiling)

    def unknown(provider: str, model: str, count: int) -> None:
        metrics.unknown(provider, model, count)
        log.event("charged-unknown", provider=provider, model=model, rows=count)

    def answered(settled: Settlement) -> None:
        leg = settled.leg
        log.event(
            "answer",
            request_id=leg.request_id,
            caller=leg.caller.name,
            alias=leg.alias,
            provider=leg.provider,
            model=leg.model,
            stream=leg.stream,
            outcome=leg.outcome,
            attempts=leg.leg,
            duration_ms=int(leg.duration_s * 1000),
        )

    prices = price_book(config)
    limits = LimitBook(config.limits, identity.people.limits_of)
    metrics.expect(served_pairs(config))
    metrics.limits_are(present)
    ledger = Ledger(engine, problem, reached, metrics.limit_used)
    housekeeper = Housekeeper(engine, clock, limits.calendar, config.ledger_detail_days, ledger.instance, problem, unknown)
    try:
        housekeeper.start()
    except sa.exc.SQLAlchemyError as error:
        raise DatabaseError(f"the ledger cannot be used: {reason(error)}") from None
    except OSError as error:
        raise DatabaseError(f"beside the database no file can be made: {error.strerror}") from None
    _measure_prices(config, prices, clock, limits.calendar, metrics)
    return _Money(ledger, housekeeper, prices, limits, LedgerMeter(ledger, prices, limits, clock, (metrics.record, answered)))


def _measure_prices(config: Config, prices: PriceBook, clock: Clock, calendar: Calendar, metrics: Metrics) -> None:
    def age_of(price: Price) -> float:
        return price.age_days(calendar.date(clock.time()))

    found = {pair: prices.price(*pair) for pair in served_pairs(config)}
    for pair, price in found.items():
        if price is not None:
            metrics.measure("hearth_price_age_days", partial(age_of, price), *pair)
    unpriced = sum(price is None for price in found.values())
    metrics.measure("hearth_unpriced_models", lambda: unpriced)


def _breakers(config: Config, clock: Clock, keys: Mapping[str, KeyFile], log: Log) -> Breakers:
    def changed(view: View) -> None:
        reason = view.reason.value if view.reason else ""
        log.event("breaker", provider=view.provider, model=view.model, state=view.phase.name.lower(), reason=reason)

    settings = config.breaker
    rules = Rules(settings.failures, settings.window_s, settings.open_s, settings.max_open_s)
    sections: list[Mapping[str, Sequence[TargetConfig | EndpointConfig]]] = [config.models, config.embedding_models, config.image_models]
    pairs = {(target.provider, target.model): None for models in sections for targets in models.values() for target in targets}
    return Breakers(rules, clock, pairs, {name: key.version for name, key in keys.items()}, changed)


def _chat_routes(config: Config, providers: Mapping[str, Provider]) -> Routes:
    return {
        alias: [Target(providers[target.provider], target.model, config.max_output_tokens(target) or 1) for target in targets]
        for alias, targets in config.models.items()
    }


def _endpoint_routes(models: Mapping[str, Sequence[EndpointConfig]], providers: Mapping[str, Provider]) -> Routes:
    return {alias: [Target(providers[target.provider], target.model, 0) for target in targets] for alias, targets in models.items()}


def _keys(config: Config, clock: Clock, log: Log) -> dict[str, KeyFile]:
    """The key files of the providers that have one, by provider."""

    def problem(name: str, text: str) -> None:
        log.event("key-ignored", provider=name, problem=text)

    files = {item.name: item.api_key_file for item in config.providers if not isinstance(item, DemoProviderConfig)}
    return {name: KeyFile(Path(file), clock, partial(problem, name)) for name, file in files.items() if file is not None}


def _provider(item: ProviderConfig, config: Config, key: KeyFile | None, clock: Clock, transport: TransportFactory) -> Provider:
    if isinstance(item, DemoProviderConfig):
        return DemoProvider(item.name, clock)
    connection = transport(item.base_url, item.ca_file, clock)
    traits = {
        target.model: _traits(item, target) for targets in config.models.values() for target in targets if target.provider == item.name
    }.__getitem__
    if isinstance(item, AnthropicProviderConfig):
        assert key is not None, "the configuration asks for one"  # noqa: S101
        return AnthropicProvider(item.name, key.value, connection, traits, clock.time)
    dialect = Dialect(item.max_tokens_field, item.litellm_extensions)
    options = Options(dialect, item.usage_includes_cache)
    fetcher = ImageFetcher(clock) if item.fetch_images else None
    return OpenAICompatibleProvider(item.name, key.value if key else None, connection, options, traits, fetcher, clock.time)


def _traits(provider: AnthropicProviderConfig | OpenAIProviderConfig, target: TargetConfig) -> ModelTraits:
    """What is known of the model, and over it what the configuration says."""
    known = anthropic_traits(target.model) if isinstance(provider, AnthropicProviderConfig) else OPENAI
    return ModelTraits(
        sampling=known.sampling if target.sampling is None else target.sampling,
        reasoning=target.reasoning or known.reasoning,
        later_system=known.later_system if target.later_system is None else target.later_system,
        xhigh=known.xhigh,
        budget_too=known.budget_too,
    )


_HTTP_KINDS = {
    404: (Kind.NOT_FOUND, "There is nothing at this address."),
    405: (Kind.METHOD_NOT_ALLOWED, "This address does not know this method."),
    413: (Kind.BODY_TOO_LARGE, "The request body is too large."),
}


def _add_error_handlers(app: Flask, metrics: Metrics, log: Log) -> None:
    @app.errorhandler(GatewayError)
    def gateway_error(error: GatewayError) -> Response:
        metrics.error(error.kind)
        return error_response(error)

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        kind, message = _HTTP_KINDS.get(error.code or 500, (Kind.INVALID_REQUEST, "The request is not valid HTTP for this address."))
        headers = dict(error.get_headers()) if error.code == 405 else {}
        allow = {"Allow": headers["Allow"]} if "Allow" in headers else {}
        return gateway_error(GatewayError(kind, message, headers=allow))

    @app.errorhandler(Exception)
    def unexpected(error: Exception) -> Response:
        log.unexpected(error)
        return gateway_error(GatewayError(Kind.INTERNAL, "The gateway had an internal error."))


def _add_response_hook(app: Flask, lifecycle: Lifecycle, metrics: Metrics) -> None:
    @app.after_request
    def finish(response: HearthResponse) -> HearthResponse:
        asked = request._get_current_object()  # type: ignore[attr-defined]
        route = asked.url_rule.rule if asked.url_rule is not None else "other"
        method = asked.method if asked.method in ("GET", "HEAD", "POST") else "other"
        metrics.response(route, method, response.status_code)
        response.more_headers += own_headers(asked)
        if lifecycle.leaving:
            # Or a keep-alive client would send its next request into a socket that is going away.
            response.more_headers += (("Connection", "close"),)
        return response
