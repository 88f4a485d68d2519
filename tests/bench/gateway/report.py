"""The report: tables in Markdown, and the goals, met or missed."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.bench.gateway.faults import FaultResult
from tests.bench.gateway.targets import Target
from tests.bench.gateway.windows import Result, Results, cpu_per_chunk, cpu_per_request

OURS = "hearth-gateway"
LITELLM = "LiteLLM + Prometheus"


@dataclass(frozen=True, slots=True)
class Goal:
    """``most`` tells whether the value must stay below the limit (True) or reach it (False)."""

    text: str
    value: float | None
    limit: float
    aim: float
    unit: str
    most: bool

    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        if self._reaches(self.limit):
            return "**met**, and the aim" if self._reaches(self.aim) else "**met**"
        return "**missed**"

    def _reaches(self, bound: float) -> bool:
        assert self.value is not None
        return self.value <= bound if self.most else self.value >= bound

    def row(self) -> list[str]:
        sign = "≤" if self.most else "≥"
        value = "-" if self.value is None else f"{self.value:.3g} {self.unit}".strip()
        return [self.text, f"{sign} {self.limit:g} {self.unit}".strip(), f"{self.aim:g}", value, self.verdict()]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines) + "\n"


def write(targets: Sequence[Target], results: Results, faults: Sequence[FaultResult], rounds: int, began: float) -> tuple[str, bool]:
    """The report, and whether every measured goal is met and every answer was right."""
    stamp = time.strftime("%Y-%m-%d %H:%M", time.gmtime(began))
    found = goals(targets, results, faults)
    wrong = sum(result.get("errors", 0) + result.get("lost_chunks", 0) for windows in results.windows.values() for result in windows)
    ours_wrong = sum(
        result.get("errors", 0) + result.get("lost_chunks", 0) for result in _all(results, OURS)
    ) + sum(fault.errors for fault in faults)  # fmt: skip
    parts = [
        f"# Gateway bench, {stamp} UTC\n",
        f"{rounds} rounds, interleaved; medians of the rounds, and smallest to largest for rps. Python {platform.python_version()} "
        f"({sys.base_prefix}), Linux {platform.release().partition('-')[0]}. Targets on one core, mock vendor "
        "and load driver on another. `bg` is the largest share of the measured core that others used in a window. "
        f"Wrong or missing answers: {wrong}, of them {ours_wrong} of {OURS}.\n",
        table(
            ["target", "version", "PSS idle, MiB", "PSS after load, MiB"],
            [[t.name, t.version, f"{t.idle_pss_mib:.0f}", f"{t.peak_pss_mib:.0f}"] for t in targets if t.measured],
        ),
    ]
    closed = [name for name in dict.fromkeys(load for load, _ in results.windows) if "rps" in results.windows[_first(results, name)][0]]
    streams = [name for name in dict.fromkeys(load for load, _ in results.windows) if name not in closed]
    if closed:
        parts += ["## Not streamed\n", _closed_table(targets, results, closed)]
    if streams:
        parts += ["## Streams\n", _stream_table(targets, results, streams)]
    if faults:
        parts += ["## Failover\n", _fault_table(faults)]
    parts += ["## Goals\n", table(["goal", "limit", "aim", "measured", ""], [goal.row() for goal in found])]
    good = not ours_wrong and all("missed" not in goal.verdict() for goal in found)
    return "\n".join(parts), good


def _first(results: Results, load: str) -> tuple[str, str]:
    return next(key for key in results.windows if key[0] == load)


def _all(results: Results, target: str) -> list[Result]:
    return [result for (_, name), windows in results.windows.items() if name == target for result in windows]


def _closed_table(targets: Sequence[Target], results: Results, loads: Sequence[str]) -> str:
    rows = []
    for load in loads:
        for target in targets:
            windows = results.of(load, target.name)
            if not windows:
                continue
            rps = [float(window["rps"]) for window in windows]
            rows.append(
                [
                    load,
                    target.name,
                    f"{_mid(results, load, target, lambda r: r['rps']):.0f} ({min(rps):.0f} to {max(rps):.0f})",
                    f"{_mid(results, load, target, lambda r: r['p50_ms']):.2f} / {_mid(results, load, target, lambda r: r['p99_ms']):.1f}",
                    _added(results, load, target),
                    f"{_mid(results, load, target, cpu_per_request):.0f}" if target.measured else "-",
                    _ratio(results, load, target, LITELLM),
                    _ratio(results, load, target, "nginx"),
                    f"{max(float(window['bg']) for window in windows):.2f}" if target.measured else "-",
                    str(sum(int(window["errors"]) for window in windows)),
                ]
            )
    head = [
        "load", "target", "rps", "p50 / p99 ms", "added p50 / p99 ms", "CPU µs a request", "rps ÷ LiteLLM", "rps ÷ nginx", "bg",
        "errors",
    ]  # fmt: skip
    return table(head, rows)


def _stream_table(targets: Sequence[Target], results: Results, loads: Sequence[str]) -> str:
    rows = []
    for load in loads:
        for target in targets:
            windows = results.of(load, target.name)
            if not windows:
                continue
            added = _difference(results, load, target, lambda r: r["first_token"]["p50_ms"])
            rows.append(
                [
                    load,
                    target.name,
                    added,
                    f"{_mid(results, load, target, lambda r: r['chunk']['p50_ms']):.2f} / "
                    f"{_mid(results, load, target, lambda r: r['chunk']['p99_ms']):.1f}",
                    f"{max(float(window['chunk']['max_ms']) for window in windows):.0f}",
                    f"{_mid(results, load, target, cpu_per_chunk):.0f}" if target.measured else "-",
                    str(max(int(window["peak_open"]) for window in windows)),
                    f"{sum(int(w['complete']) for w in windows)}/{sum(int(w['streams']) for w in windows)}",
                    str(sum(int(window["lost_chunks"]) for window in windows)),
                    f"{max(float(window['bg']) for window in windows):.2f}" if target.measured else "-",
                ]
            )
    head = [
        "streams x chunks/s", "target", "added first token p50 ms", "chunk p50 / p99 ms", "chunk worst ms", "CPU µs a chunk",
        "open at once", "complete", "lost", "bg",
    ]  # fmt: skip
    return table(head, rows)


def _fault_table(faults: Sequence[FaultResult]) -> str:
    rows = [
        [
            fault.fault,
            f"{fault.limit_ms:.0f}",
            f"{fault.first_added_ms:.1f} ({fault.first_worst_ms:.1f})",
            f"{fault.open_added_p50_ms:.2f} / {fault.open_added_p99_ms:.1f}",
            f"{fault.open_worst_ms:.0f}",
            str(fault.errors),
        ]
        for fault in faults
    ]
    head = [
        "fault of the first provider", "limit ms", "added by the fault ms (worst)", "added with the breaker open p50 / p99 ms",
        "slowest with the breaker open ms", "errors",
    ]  # fmt: skip
    return table(head, rows)


def _mid(results: Results, load: str, target: Target, value: Callable[[Result], float]) -> float:
    return results.middle(load, target.name, value) or 0.0


def _difference(results: Results, load: str, target: Target, value: Callable[[Result], float]) -> str:
    mine, direct = results.middle(load, target.name, value), results.middle(load, "direct", value)
    return "-" if mine is None or direct is None or target.name == "direct" else f"{mine - direct:.2f}"


def _added(results: Results, load: str, target: Target) -> str:
    parts = [_difference(results, load, target, lambda r, k=key: r[k]) for key in ("p50_ms", "p99_ms")]  # type: ignore[misc]
    return "-" if target.name == "direct" else " / ".join(parts)


def _ratio(results: Results, load: str, target: Target, other: str) -> str:
    mine, theirs = (results.middle(load, name, lambda r: r["rps"]) for name in (target.name, other))
    return f"{mine / theirs:.2f}" if mine and theirs and target.name != other else "-"


def goals(targets: Sequence[Target], results: Results, faults: Sequence[FaultResult]) -> list[Goal]:
    def rps(load: str, target: str) -> float | None:
        return results.middle(load, target, lambda r: r["rps"])

    def p50(load: str, target: str) -> float | None:
        return results.middle(load, target, lambda r: r["p50_ms"])

    def chunk_p99(load: str) -> float | None:
        windows = results.of(load, OURS)
        if any(window["lost_chunks"] or window["complete"] != window["streams"] for window in windows):
            return float("inf")
        return results.middle(load, OURS, lambda r: r["chunk"]["p99_ms"])

    ours, theirs, direct, mine = rps("c16", OURS), rps("c16", LITELLM), p50("c1", "direct"), p50("c1", OURS)
    idle = next((target.idle_pss_mib for target in targets if target.name == OURS), None)
    opened = max((fault.open_added_p99_ms for fault in faults if fault.limit_ms == 0), default=None)
    over = max((fault.first_worst_ms - fault.limit_ms for fault in faults), default=None)
    return [
        Goal("throughput at c16, times LiteLLM's", ours / theirs if ours and theirs else None, 15, 40, "", most=False),
        Goal("added median at c1", mine - direct if mine is not None and direct is not None else None, 1, 0.4, "ms", most=True),
        Goal("chunk p99, 500 streams of 20 chunks/s, none lost", chunk_p99("500x20"), 30, 8, "ms", most=True),
        Goal("chunk p99, 1000 streams of 10 chunks/s, none lost", chunk_p99("1000x10"), 30, 8, "ms", most=True),
        Goal("memory idle (PSS)", idle, 90, 60, "MiB", most=True),
        Goal("added with the breaker open (p99, worst fault)", opened, 20, 20, "ms", most=True),
        Goal("added by a fault beyond its limit (worst)", over, 200, 200, "ms", most=True),
    ]
