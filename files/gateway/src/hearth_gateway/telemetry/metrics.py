"""The Prometheus metrics. ``DEFINITIONS`` is the contract: ``contract/metrics.yml`` is written from
it, dashboards and alerts are checked against that file, and a test compares it with the exposition.
"""

from __future__ import annotations

import platform
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Literal, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from hearth_gateway import __version__
from hearth_gateway.core.limits import HOUSE, Ceiling, Level, Limit, LimitEvent, Sums, scope_kind
from hearth_gateway.core.metering import CANCELLED, OK, Settlement
from hearth_gateway.core.prices import NANO
from hearth_gateway.errors import Kind, Owner

# Answers are counted so many at a time: a shared look at a series costs less than one each.
_COUNT_TOGETHER = 64

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

_LIMIT_USED = "hearth_limit_used_ratio"

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
        ("alias", "provider", "model", "outcome", "owner"),
        "Attempts at a provider. `outcome` is ok, cancelled or an error kind; `owner` who has to act: nobody, caller, policy, "
        "provider, gateway.",
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
        "Tokens as they are billed. `kind`: input (not cached), cache_read, cache_write_5m, cache_write_1h, output.",
    ),
    Definition(
        "hearth_cost_usd_total",
        "counter",
        ("provider", "model"),
        "US dollars of priced attempts, for graphs and alerts; the exact sums are in the ledger.",
    ),
    Definition(
        "hearth_unpriced_attempts_total",
        "counter",
        ("provider", "model"),
        "Attempts that used tokens or made images for which nobody has told a price. They are in no sum of money.",
    ),
    Definition(
        "hearth_estimated_attempts_total",
        "counter",
        ("provider", "model", "state"),
        "Attempts whose usage is an estimate. `state`: estimated (broken off before the provider said its count), unknown (the "
        "gateway died meanwhile; counted after the next scrape, so that increase() sees it).",
    ),
    Definition(
        "hearth_person_requests_total",
        "counter",
        ("person",),
        "Requests by person; `other` is everybody beyond metrics.max_people.",
    ),
    Definition("hearth_person_tokens_total", "counter", ("person",), "Tokens of prompts and answers by person."),
    Definition("hearth_person_cost_usd_total", "counter", ("person",), "US dollars of priced attempts by person."),
    Definition(
        _LIMIT_USED,
        "gauge",
        ("scope", "subject", "limit"),
        "What is used of a ceiling in its current period; 1 is all. `scope`: person, program, house. Several replicas: take the max.",
    ),
    Definition(
        "hearth_limit_events_total",
        "counter",
        ("scope", "limit", "level"),
        "Ceilings reached, each once in its period. `level`: soft (limits.soft_share of it), hard (all of it).",
    ),
    Definition("hearth_price_age_days", "gauge", ("provider", "model"), "Days since the price of a configured model was read."),
    Definition("hearth_unpriced_models", "gauge", (), "Configured models without a price."),
    Definition(
        "hearth_error_responses_total",
        "counter",
        ("kind", "owner"),
        "Responses that are an error of the gateway's closed list. `owner`: caller, policy, provider, gateway.",
    ),
    Definition(
        "hearth_failovers_total",
        "counter",
        ("provider", "reason"),
        "Requests that went on from this provider to the next. `reason`: an error kind of the provider, or breaker_open.",
    ),
    Definition(
        "hearth_unknown_stop_reasons_total",
        "counter",
        ("provider",),
        "Answers that ended for a reason this version has never heard of. They were passed on as `stop`.",
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
    Definition("hearth_ledger_failing", "gauge", (), "1 while the ledger cannot be written, or its file is no longer the one in use."),
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


OTHER_PEOPLE = "other"
_DAYS_AND_MONTHS: tuple[Limit, ...] = ("tokens_per_day", "money_per_day_usd", "money_per_month_usd")
# The ceilings that each kind of scope may have.
_LIMITS_OF: dict[str, tuple[Limit, ...]] = {"person": _DAYS_AND_MONTHS, "program": _DAYS_AND_MONTHS, HOUSE: ("money_per_month_usd",)}


class PersonLabels:
    """At most ``max_people`` people have a label of their own, in the order they come: each label is a
    time series of every metric about people, and a scrape stops all answers for as long as it takes.

    ``label_of`` turns an e-mail into what the configuration wants to see.
    """

    def __init__(self, max_people: int, label_of: Callable[[str], str]) -> None:
        self._max_people = max_people
        self._label_of = label_of
        self._known: set[str] = set()
        self._lock = threading.Lock()

    def label(self, email: str) -> str:
        if email not in self._known:
            with self._lock:
                if len(self._known) >= self._max_people:
                    return OTHER_PEOPLE
                self._known.add(email)
        return self._label_of(email)


class _LimitShares(Collector):
    """What is used of each ceiling: it changes with every request, so it is worked out when somebody looks."""

    def __init__(self, definition: Definition, people: PersonLabels) -> None:
        self._definition = definition
        self._people = people
        # The same ceiling as it is now; None: it was taken away since.
        self.present: Callable[[Ceiling], Ceiling | None] = lambda ceiling: ceiling
        self._latest: dict[tuple[str, Limit], tuple[Ceiling, Sums]] = {}

    def saw(self, ceiling: Ceiling, sums: Sums) -> None:
        self._latest[ceiling.scope, ceiling.limit] = ceiling, sums

    def collect(self) -> Iterable[GaugeMetricFamily]:
        now = time.time()
        shares: dict[tuple[str, str, Limit], float] = {}
        for seen, sums in list(self._latest.values()):
            if seen.period.end <= now:
                continue  # who asks nothing today has used nothing of today: yesterday's share must not stay
            ceiling = self.present(seen)
            if ceiling is None:
                continue
            kind, _, name = ceiling.scope.partition(":")
            labels = (kind, self._people.label(name) if kind == "person" else name, ceiling.limit)
            share = ceiling.used(sums) / max(ceiling.amount, 1)
            # Of the people who share the label `other`, the one who is nearest to a ceiling.
            shares[labels] = max(share, shares.get(labels, 0.0))
        family = GaugeMetricFamily(self._definition.name, self._definition.help, labels=self._definition.labels)
        for labels, share in shares.items():
            family.add_metric(labels, share)
        yield family


@lru_cache(maxsize=64)
def _owner(outcome: str) -> str:
    if outcome == OK:
        return "nobody"
    return (Owner.CALLER if outcome == CANCELLED else Kind(outcome).spec.owner).value


class Metrics:
    """One registry per application, so that two applications in one test do not share counters."""

    def __init__(self, people: PersonLabels | None = None) -> None:
        self._people = people or PersonLabels(0, lambda _email: "")
        self._settled: deque[Settlement] = deque()
        # (provider, model, number) of what is counted after the next scrape.
        self._unknown: deque[tuple[str, str, int]] = deque()
        # Held by who touches the metrics of attempts: a scrape, or who counts.
        self._counting = threading.Lock()
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        for item in DEFINITIONS:
            if item.name == _LIMIT_USED:
                self._limit_shares = _LimitShares(item, self._people)
                self.registry.register(self._limit_shares)
            elif item.type == "counter":
                self._counters[item.name] = Counter(item.name, item.help, item.labels, registry=self.registry)
            elif item.type == "gauge":
                self._gauges[item.name] = Gauge(item.name, item.help, item.labels, registry=self.registry)
            else:
                self._histograms[item.name] = Histogram(item.name, item.help, item.labels, registry=self.registry, buckets=item.buckets)
        self._gauges["hearth_build_info"].labels(__version__, platform.python_version()).set(1)
        # Looking up a child by its labels costs more than counting; label sets are few and closed.
        self._counter = lru_cache(maxsize=4096)(lambda name, *labels: self._counters[name].labels(*labels))
        self._histogram = lru_cache(maxsize=1024)(lambda name, *labels: self._histograms[name].labels(*labels))
        for kind, limits in _LIMITS_OF.items():
            for limit, level in product(limits, get_args(Level)):
                self._counter("hearth_limit_events_total", kind, limit, level)

    def expect(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Show what is rare at zero from the start, for these (provider, model): a counter that begins with its first
        event has no increase that an alert could see."""
        for pair, state in product(pairs, ("estimated", "unknown")):
            self._counter("hearth_estimated_attempts_total", *pair, state)

    def limits_are(self, present: Callable[[Ceiling], Ceiling | None]) -> None:
        """``present`` tells what a ceiling that was seen is now; None if it is none any more."""
        self._limit_shares.present = present

    def measure(self, name: str, read: Callable[[], float], *labels: str) -> None:
        """Let the gauge ``name`` call ``read`` at every scrape."""
        gauge = self._gauges[name]
        (gauge.labels(*labels) if labels else gauge).set_function(read)

    def failover(self, provider: str, reason: str) -> None:
        self._counter("hearth_failovers_total", provider, reason).inc()

    def unknown_end(self, provider: str) -> None:
        self._counter("hearth_unknown_stop_reasons_total", provider).inc()

    def response(self, route: str, method: str, status: int) -> None:
        self._counter("hearth_http_responses_total", route, method, str(status)).inc()

    def error(self, kind: Kind) -> None:
        self._counter("hearth_error_responses_total", kind.value, kind.spec.owner.value).inc()

    def limit_event(self, event: LimitEvent) -> None:
        self._counter("hearth_limit_events_total", scope_kind(event.scope), event.limit, event.level).inc()

    def unknown(self, provider: str, model: str, count: int) -> None:
        """Intents of a dead gateway were charged.

        That happens before the first scrape could be, and the number grows perhaps only once. So it is counted
        when a scrape has seen the series without it.
        """
        with self._counting:
            self._counter("hearth_estimated_attempts_total", provider, model, "unknown")
        self._unknown.append((provider, model, count))

    def record(self, settled: Settlement) -> None:
        """Counted a little later, at a scrape at the latest.

        Waits for no lock: an answer that nobody closed is settled by the garbage collector, in any
        thread and at any moment, also while that thread is counting.
        """
        self._settled.append(settled)
        if len(self._settled) >= _COUNT_TOGETHER and self._counting.acquire(blocking=False):
            try:
                self._count_settled()
            finally:
                self._counting.release()

    def _count_settled(self) -> None:
        amounts: defaultdict[tuple[str, ...], float] = defaultdict(float)
        while self._settled:
            self._add(self._settled.popleft(), amounts)
        for series, amount in amounts.items():
            self._counter(*series).inc(amount)

    def _add(self, settled: Settlement, amounts: defaultdict[tuple[str, ...], float]) -> None:
        """Into ``amounts``, by counter and labels; times go to their histograms at once."""
        leg, usage = settled.leg, settled.usage
        provider, model, tokens = leg.provider, leg.model, settled.tokens
        amounts["hearth_attempts_total", leg.alias, provider, model, leg.outcome, _owner(leg.outcome)] += 1
        self._histogram("hearth_attempt_duration_seconds", provider, model).observe(leg.duration_s)
        if leg.first_token_s is not None:
            self._histogram("hearth_first_token_seconds", provider, model).observe(leg.first_token_s)
        for kind, count in (
            ("input", usage.input),
            ("cache_read", usage.cache_read),
            ("cache_write_5m", usage.cache_write - usage.cache_write_1h),
            ("cache_write_1h", usage.cache_write_1h),
            ("output", usage.output),
        ):
            if count:
                amounts["hearth_tokens_total", provider, model, kind] += count
        cost_usd = (settled.cost_nano or 0) / NANO
        if cost_usd:
            amounts["hearth_cost_usd_total", provider, model] += cost_usd
        elif settled.cost_nano is None and (tokens or leg.images):
            amounts["hearth_unpriced_attempts_total", provider, model] += 1
        if settled.state == "estimated":
            amounts["hearth_estimated_attempts_total", provider, model, "estimated"] += 1
        if leg.caller.person is not None:
            person = self._people.label(leg.caller.person)
            if leg.leg == 1:
                amounts["hearth_person_requests_total", person] += 1
            if tokens:
                amounts["hearth_person_tokens_total", person] += tokens
            if cost_usd:
                amounts["hearth_person_cost_usd_total", person] += cost_usd

    def limit_used(self, ceiling: Ceiling, sums: Sums) -> None:
        self._limit_shares.saw(ceiling, sums)

    def exposition(self) -> bytes:
        with self._counting:
            self._count_settled()
            shown = generate_latest(self.registry)
            while self._unknown:
                provider, model, count = self._unknown.popleft()
                self._counter("hearth_estimated_attempts_total", provider, model, "unknown").inc(count)
            return shown
