"""The Prometheus metrics. ``DEFINITIONS`` is the contract: ``contract/metrics.yml`` is written from
it, dashboards and alerts are checked against that file, and a test compares it with the exposition.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from hearth_gateway import __version__
from hearth_gateway.core.metering import Leg

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Definition:
    """``labels`` have closed sets of values: names from the configuration, error kinds, statuses."""

    name: str
    type: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()


_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)

DEFINITIONS: tuple[Definition, ...] = (
    Definition("hearth_build_info", "gauge", ("version", "python"), "Always 1; the labels say what runs."),
    Definition(
        "hearth_http_responses_total",
        "counter",
        ("route", "method", "status"),
        "HTTP responses by route of the API description; route `other` is anything else.",
    ),
    Definition(
        "hearth_attempts_total",
        "counter",
        ("alias", "provider", "model", "outcome"),
        "Attempts at a provider. `outcome` is ok, cancelled or an error kind.",
    ),
    Definition(
        "hearth_attempt_duration_seconds",
        "histogram",
        ("provider", "model"),
        "Seconds from the start of an attempt to its end, whatever the end.",
        _SECONDS,
    ),
    Definition(
        "hearth_first_token_seconds",
        "histogram",
        ("provider", "model"),
        "Seconds from the start of an attempt to its first content.",
        _SECONDS,
    ),
    Definition(
        "hearth_tokens_total",
        "counter",
        ("provider", "model", "kind"),
        "Tokens as the provider counts them. `kind`: input (not cached), cache_read, cache_write, output.",
    ),
    Definition(
        "hearth_failovers_total",
        "counter",
        ("provider", "reason"),
        "Requests that went on from this provider to the next. `reason`: an error kind of the provider, or breaker_open.",
    ),
    Definition(
        "hearth_breaker_state",
        "gauge",
        ("provider", "model"),
        "0 closed: in use. 1 half-open: one request may probe. 2 open: left alone for a while.",
    ),
    Definition("hearth_open_requests", "gauge", (), "Answers being written right now."),
    Definition("hearth_draining", "gauge", (), "1 while the gateway shuts down and refuses new requests."),
    Definition("hearth_valid_tokens", "gauge", (), "Gateway tokens that are accepted right now."),
    Definition("hearth_ledger_queued_rows", "gauge", (), "Ledger rows waiting to be written."),
    Definition("hearth_ledger_failing", "gauge", (), "1 while the ledger cannot be written."),
)

# Collected by the Prometheus client itself, on Linux. Part of the contract like the others.
PROCESS_DEFINITIONS: tuple[Definition, ...] = (
    Definition("process_virtual_memory_bytes", "gauge", (), "Virtual memory size in bytes."),
    Definition("process_resident_memory_bytes", "gauge", (), "Resident memory size in bytes."),
    Definition("process_start_time_seconds", "gauge", (), "Start time of the process since unix epoch in seconds."),
    Definition("process_cpu_seconds_total", "counter", (), "Total user and system CPU time spent in seconds."),
    Definition("process_open_fds", "gauge", (), "Number of open file descriptors."),
    Definition("process_max_fds", "gauge", (), "Maximum number of open file descriptors."),
)


class Metrics:
    """One registry per application, so that two applications in one test do not share counters."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        for item in DEFINITIONS:
            if item.type == "counter":
                self._counters[item.name] = Counter(item.name, item.help, item.labels, registry=self.registry)
            elif item.type == "gauge":
                self._gauges[item.name] = Gauge(item.name, item.help, item.labels, registry=self.registry)
            else:
                self._histograms[item.name] = Histogram(item.name, item.help, item.labels, registry=self.registry, buckets=item.buckets)
        self._gauges["hearth_build_info"].labels(__version__, platform.python_version()).set(1)
        # Looking up a child by its labels costs more than counting; label sets are few and closed.
        self._counter = lru_cache(maxsize=4096)(lambda name, *labels: self._counters[name].labels(*labels))
        self._histogram = lru_cache(maxsize=1024)(lambda name, *labels: self._histograms[name].labels(*labels))

    def measure(self, name: str, read: Callable[[], float], *labels: str) -> None:
        """Let the gauge ``name`` call ``read`` at every scrape."""
        gauge = self._gauges[name]
        (gauge.labels(*labels) if labels else gauge).set_function(read)

    def failover(self, provider: str, reason: str) -> None:
        self._counter("hearth_failovers_total", provider, reason).inc()

    def response(self, route: str, method: str, status: int) -> None:
        self._counter("hearth_http_responses_total", route, method, str(status)).inc()

    def record(self, leg: Leg) -> None:
        self._counter("hearth_attempts_total", leg.alias, leg.provider, leg.model, leg.outcome).inc()
        self._histogram("hearth_attempt_duration_seconds", leg.provider, leg.model).observe(leg.duration_s)
        if leg.first_token_s is not None:
            self._histogram("hearth_first_token_seconds", leg.provider, leg.model).observe(leg.first_token_s)
        usage = leg.usage
        for kind, count in (
            ("input", usage.input),
            ("cache_read", usage.cache_read),
            ("cache_write", usage.cache_write),
            ("output", usage.output),
        ):
            if count:
                self._counter("hearth_tokens_total", leg.provider, leg.model, kind).inc(count)

    def exposition(self) -> bytes:
        return generate_latest(self.registry)
