"""What a fault of the first provider adds to an answer of the second, and what the open breaker leaves of it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.bench.gateway.targets import Scenario, Target, free_port, gateway_config, start_gateway
from tests.bench.gateway.windows import Load, shoot

# `limit_ms` is how long the configuration lets this fault last.
FIRST_TOKEN_S = 1.0
FAULTS = {"refused": 0.0, "reset": 0.0, "429": 0.0, "500": 0.0, "503": 0.0, "529": 0.0, "error-event": 0.0, "silent": FIRST_TOKEN_S * 1000}
# A gateway keeps a breaker for each provider and model, so every fresh key begins with a closed one.
KEYS = 5
TO_OPEN = 5


@dataclass(frozen=True, slots=True)
class FaultResult:
    """Milliseconds added to an answer without a fault: by the first request that meets it, and once the breaker is open."""

    fault: str
    limit_ms: float
    first_added_ms: float
    first_worst_ms: float
    open_added_p50_ms: float
    open_added_p99_ms: float
    open_worst_ms: float
    errors: int


def scenarios(upstream: str) -> list[Scenario]:
    names = [Scenario("healthy", "mock", upstream)]
    names += [Scenario(f"{fault}-{key}", f"mock+fault={fault}+key={key}", upstream) for fault in FAULTS for key in range(KEYS)]
    return names


def config(vendor: str, upstream: str, work: Path) -> dict[str, object]:
    """Each alias: first the provider with the fault, then a healthy one."""
    found = scenarios(upstream)
    whole = gateway_config(vendor, found, work)
    providers = whole["providers"]
    assert isinstance(providers, list)
    template = next(item for item in providers if item["name"] == upstream)
    providers += [{**template, "name": "refused", "base_url": f"http://127.0.0.1:{free_port()}"}]
    healthy = {"provider": upstream, "model": "mock", "max_output_tokens": 1000}
    models = {"healthy": [healthy]}
    for scenario in found[1:]:
        provider = "refused" if scenario.name.startswith("refused-") else upstream
        models[scenario.name] = [{"provider": provider, "model": scenario.vendor_model, "max_output_tokens": 1000}, healthy]
    whole["models"] = models
    whole["timeouts"] = {"connect_s": 1, "first_token_s": FIRST_TOKEN_S, "idle_s": 1, "total_s": 20}
    whole["prices"] = []
    return whole


def run(binary: Path, vendor: str, upstream: str, source: Path, say: Callable[[str], None]) -> list[FaultResult]:
    with tempfile.TemporaryDirectory(prefix="hearth-bench-") as folder:
        work = Path(folder) / "gateway"
        target = start_gateway(config(vendor, upstream, work), source, work)
        try:
            results = []
            for fault, limit_ms in FAULTS.items():
                result = _fault(binary, target, upstream, fault, limit_ms)
                say(
                    f"{fault:<12} first +{result.first_added_ms:.1f} ms (worst {result.first_worst_ms:.1f})  "
                    f"open +{result.open_added_p50_ms:.2f}/{result.open_added_p99_ms:.1f} ms (worst {result.open_worst_ms:.0f})"
                )
                results.append(result)
            return results
        finally:
            target.stop()


def _fault(binary: Path, target: Target, upstream: str, fault: str, limit_ms: float) -> FaultResult:
    healthy = Scenario("healthy", "mock", upstream)
    normal, first, errors = [], [], 0
    for key in range(KEYS):
        normal.append(float(_ask(binary, target, healthy, 1)["p50_ms"]))
        result = _ask(binary, target, Scenario(f"{fault}-{key}", "", upstream), 1)
        errors += int(result["errors"])
        first.append(float(result["p50_ms"]))
    opened = Scenario(f"{fault}-0", "", upstream)
    _ask(binary, target, opened, TO_OPEN)
    baseline = shoot(binary, target, Load("healthy", "closed", healthy, ("-c", "1", "-seconds", "1")))
    window = shoot(binary, target, Load(fault, "closed", opened, ("-c", "1", "-seconds", "2")))
    usual = median(normal)
    return FaultResult(
        fault,
        limit_ms,
        median(first) - usual,
        max(first) - usual,
        float(window["p50_ms"]) - float(baseline["p50_ms"]),
        float(window["p99_ms"]) - float(baseline["p99_ms"]),
        float(window["max_ms"]),
        errors + int(window["errors"]),
    )


def _ask(binary: Path, target: Target, scenario: Scenario, requests: int) -> dict[str, float]:
    return shoot(binary, target, Load(scenario.name, "closed", scenario, ("-c", "1", "-requests", str(requests))))
