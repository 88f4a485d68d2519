"""Wires the layers together. Nothing here decides anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from hearth_gateway import web
from hearth_gateway.api import chat, description, health
from hearth_gateway.api.door import Door
from hearth_gateway.api.responses import HearthResponse, error_response
from hearth_gateway.clock import Clock, SystemClock
from hearth_gateway.config import AnthropicProviderConfig, Config
from hearth_gateway.core.conversation import ChatService, Limits, Target
from hearth_gateway.core.identity import TokenStore
from hearth_gateway.core.lifecycle import Lifecycle
from hearth_gateway.core.metering import Admission, Leg, Reservation
from hearth_gateway.errors import GatewayError, Kind
from hearth_gateway.providers.anthropic import AnthropicProvider
from hearth_gateway.providers.base import Provider
from hearth_gateway.providers.demo import DemoProvider
from hearth_gateway.providers.http import HttpClient, Transport
from hearth_gateway.secrets import read_secret
from hearth_gateway.store.database import open_database
from hearth_gateway.store.ledger import Ledger
from hearth_gateway.telemetry.log import Log
from hearth_gateway.telemetry.metrics import Metrics

TransportFactory = Callable[[str, str | None, Clock], Transport]


@dataclass(slots=True)
class Gateway:
    """A running application: the WSGI app and what a server needs to stop it in order."""

    app: Flask
    lifecycle: Lifecycle
    ledger: Ledger
    metrics: Metrics
    log: Log
    providers: list[Provider]
    dispose: Callable[[], None]

    def close(self, timeout_s: float = 10.0) -> int:
        """Drain the ledger, close connections. Returns the number of ledger rows that were lost."""
        lost = self.ledger.close(timeout_s)
        for provider in self.providers:
            provider.close()
        self.dispose()
        return lost


class _Meter:
    """Each leg goes to the ledger, the metrics and the log."""

    def __init__(self, ledger: Ledger, metrics: Metrics, log: Log) -> None:
        self._ledger, self._metrics, self._log = ledger, metrics, log

    def admit(self, admission: Admission) -> Reservation:
        self._ledger.check()
        return self

    def begin(self, leg: int, provider: str, model: str) -> None:
        pass

    def close(self) -> None:
        pass

    def settle(self, leg: Leg) -> None:
        self._ledger.record(leg)
        self._metrics.record(leg)
        self._log.event(
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
    metrics = Metrics()
    providers = {item.name: _provider(item, clock, transport) for item in config.providers}
    password = read_secret(Path(config.database_password_file)) if config.database_password_file else None
    engine = open_database(config.database_url, password)
    ledger = Ledger(engine, lambda problem: log.event("store-problem", problem=problem))
    lifecycle = Lifecycle(config.server.max_open_requests)
    tokens = TokenStore(
        Path(config.tokens.dir),
        clock,
        lambda name, problem: log.event("token-ignored", token=name, problem=problem),
    )
    timeouts = config.timeouts
    service = ChatService(
        {
            alias: [Target(providers[target.provider], target.model, config.max_output_tokens(target) or 1) for target in targets]
            for alias, targets in config.models.items()
        },
        Limits(
            timeouts.connect_s,
            timeouts.first_token_s,
            timeouts.idle_s,
            timeouts.total_s,
            config.server.heartbeat_s,
        ),
        clock,
        _Meter(ledger, metrics, log),
        lifecycle,
    )
    metrics.measure("hearth_open_requests", lambda: lifecycle.open)
    metrics.measure("hearth_draining", lambda: float(lifecycle.draining))
    metrics.measure("hearth_valid_tokens", lambda: len(tokens))
    metrics.measure("hearth_ledger_queued_rows", lambda: ledger.queued)
    metrics.measure("hearth_ledger_failing", lambda: float(ledger.failing))

    app = Flask("hearth_gateway", static_folder=None)
    app.response_class = HearthResponse
    # One more than allowed: of a chunked body, which does not announce its length, Werkzeug hands out
    # as much as this and no error. The route sees that it is too much (api/chat.py).
    app.config["MAX_CONTENT_LENGTH"] = config.server.max_body_bytes + 1
    # OPTIONS has no use here, and an automatic answer would be a route that nobody described.
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.register_blueprint(chat.create_blueprint(service, Door(tokens), config.server, int(clock.time()), log))
    app.register_blueprint(health.create_blueprint(lifecycle, ledger))
    app.register_blueprint(description.create_blueprint())
    app.register_blueprint(web.create_blueprint())
    _add_error_handlers(app, log)
    _add_response_hook(app, lifecycle, metrics)
    return Gateway(app, lifecycle, ledger, metrics, log, list(providers.values()), engine.dispose)


def _provider(config: Any, clock: Clock, transport: TransportFactory) -> Provider:
    if isinstance(config, AnthropicProviderConfig):
        key = read_secret(Path(config.api_key_file))
        return AnthropicProvider(config.name, key, transport(config.base_url, config.ca_file, clock))
    return DemoProvider(config.name, clock)


_HTTP_KINDS = {
    404: (Kind.NOT_FOUND, "There is nothing at this address."),
    405: (Kind.METHOD_NOT_ALLOWED, "This address does not know this method."),
    413: (Kind.BODY_TOO_LARGE, "The request body is too large."),
}


def _add_error_handlers(app: Flask, log: Log) -> None:
    @app.errorhandler(GatewayError)
    def gateway_error(error: GatewayError) -> Response:
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
    def finish(response: Response) -> Response:
        route = request.url_rule.rule if request.url_rule is not None else "other"
        method = request.method if request.method in ("GET", "HEAD", "POST") else "other"
        metrics.response(route, method, response.status_code)
        response.headers["X-Content-Type-Options"] = "nosniff"
        if lifecycle.draining:
            # Or a keep-alive client would send its next request into a socket that is going away.
            response.headers["Connection"] = "close"
        return response
