"""Windows of load, interleaved over the targets, so that a busy machine slows all of them alike."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.gateway.targets import GATEWAY_CORE, LOAD_CORE, BenchError, Scenario, Target, pinned

Result = dict[str, Any]

# Above this share of the measured core used by others, a window is measured once more.
NOISY = 0.12


@dataclass(frozen=True, slots=True)
class Load:
    """One way to load a target. ``options`` are those of cmd/load."""

    name: str
    kind: str  # closed or streams
    scenario: Scenario
    options: tuple[str, ...]
    skip: frozenset[str] = frozenset()  # targets that cannot do it


@dataclass(slots=True)
class Results:
    """All windows, by load and target."""

    windows: dict[tuple[str, str], list[Result]] = field(default_factory=dict)

    def add(self, load: str, target: str, result: Result) -> None:
        self.windows.setdefault((load, target), []).append(result)

    def of(self, load: str, target: str) -> list[Result]:
        return self.windows.get((load, target), [])

    def middle(self, load: str, target: str, value: Callable[[Result], float]) -> float | None:
        """The median over the rounds; None if nothing was measured."""
        found = self.of(load, target)
        return median(value(result) for result in found) if found else None


def shoot(binary: Path, target: Target, load: Load) -> Result:
    """One window. Raises ``BenchError``."""
    command = [str(binary), load.kind, "-url", target.url(load.scenario), "-model", target.model(load.scenario), *load.options]
    for header in target.headers:
        command += ["-header", header]
    if target.people:
        command += ["-people", str(target.people)]
    if target.measured:
        command += ["-core", str(GATEWAY_CORE), *(part for pid in target.pids() for part in ("-pid", str(pid)))]
    done = subprocess.run(
        pinned(LOAD_CORE, *command), capture_output=True, text=True, check=False, timeout=600, env={**os.environ, "GOMAXPROCS": "1"}
    )
    if done.returncode:
        raise BenchError(f"{load.name} on {target.name}: {done.stderr.strip()}")
    result: Result = json.loads(done.stdout)
    return result


def measure(binary: Path, target: Target, load: Load) -> Result:
    """One window; a noisy one is repeated once and the quieter kept."""
    result = shoot(binary, target, load)
    if result["bg"] > NOISY:
        again = shoot(binary, target, load)
        result = min(result, again, key=lambda window: float(window["bg"]))
    target.peak_pss_mib = max(target.peak_pss_mib, target.pss_mib())
    return result


def warm_up(binary: Path, targets: Sequence[Target], loads: Iterable[Load]) -> None:
    """The first requests import modules, open connections and make people known; nobody's numbers should have them."""
    for scenario in {load.scenario.name: load.scenario for load in loads if load.kind == "closed"}.values():
        for target in targets:
            # With people: so many that each of them has asked once.
            length = ("-c", "16", "-requests", "250") if target.people else ("-c", "4", "-seconds", "2")
            shoot(binary, target, Load("warm-up", "closed", scenario, length))


def run_rounds(
    binary: Path, targets: Sequence[Target], loads: Iterable[Load], rounds: int, results: Results, say: Callable[[str], None]
) -> None:
    """Every load on every target, one after the other, ``rounds`` times; the order of the targets turns."""
    for load in loads:
        able = [target for target in targets if target.name not in load.skip]
        for number in range(rounds):
            for position in range(len(able)):
                target = able[(position + number) % len(able)]
                result = measure(binary, target, load)
                results.add(load.name, target.name, result)
                say(f"{load.name:<24} {target.name:<22} {brief(result)}")


def brief(result: Result) -> str:
    if "chunk" in result:
        chunk, first = result["chunk"], result["first_token"]
        text = (
            f"chunk {chunk['p50_ms']:.2f}/{chunk['p99_ms']:.1f} ms  first {first['p50_ms']:.1f}/{first['p99_ms']:.0f} ms  "
            f"lost {result['lost_chunks']}  {result['complete']}/{result['streams']} complete  {cpu_per_chunk(result):.0f} us/chunk"
        )
    else:
        text = (
            f"{result['rps']:8.0f} rps  {result['p50_ms']:.2f}/{result['p99_ms']:.1f} ms  {cpu_per_request(result):.0f} us/req  "
            f"errors {result['errors']}"
        )
    return f"{text}  bg {result['bg']:.2f}" + (f"  {result['error_kinds']}" if result.get("error_kinds") else "")


def cpu_per_request(result: Result) -> float:
    """Microseconds of the target's CPU time."""
    return float(result["cpu_s"]) * 1e6 / max(1, int(result["requests"]))


def cpu_per_chunk(result: Result) -> float:
    return float(result["cpu_s"]) * 1e6 / max(1, int(result["chunks"]))
