"""Compare the gateway with nothing between, nginx, its own parts and LiteLLM in one interleaved run. See docs/performance.md.

    python tests/bench/gateway/run.py [--rounds N] [--quick] [--only WHAT ...] [--targets PEER ...] [--compare REVISION]

Writes build/reports/bench-gateway.md and prints it. `--compare` adds the gateway of another git revision, for the
ratio before and after a change. Exit status 1 when a goal is missed or an answer was wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.bench.gateway import faults, report
from tests.bench.gateway.targets import (
    ROOT,
    BenchError,
    Scenario,
    Target,
    gateway_config,
    prepare,
    start_direct,
    start_floor,
    start_gateway,
    start_litellm,
    start_nginx,
    unpack_revision,
)
from tests.bench.gateway.windows import Load, Results, run_rounds, warm_up

SOURCE = ROOT / "files" / "gateway" / "src"
PARTS = ("plain", "translated", "streams", "faults")
PEERS = ("nginx", "floor", "litellm", "gateway")
LITELLMS = frozenset({"LiteLLM", "LiteLLM + Prometheus"})
# It answers one kind of request, and holds no streams.
FLOOR = frozenset({"floor"})

PLAIN = Scenario("plain", "mock")
DELAYED = Scenario("delayed", "mock+delay_ms=100")
TRANSLATED = Scenario("translated", "mock", "anthropic")
SECONDS = 15  # how long one held stream lasts


def stream_scenario(per_second: int) -> Scenario:
    model = f"mock+events={SECONDS * per_second}+gap_ms={1000 // per_second}"
    return Scenario(f"stream-{per_second}", model, "anthropic")


def stream_load(name: str, streams: int, per_second: int, skip: frozenset[str] = frozenset()) -> Load:
    options = ("-n", str(streams), "-events", str(SECONDS * per_second), "-ramp", "5")
    return Load(name, "streams", stream_scenario(per_second), options, skip)


def loads(parts: list[str], quick: bool) -> list[Load]:
    found: list[Load] = []
    seconds = ("-seconds", "1" if quick else "2")
    # LiteLLM answers too slowly for many connections to show anything but its queue.
    slow = LITELLMS | FLOOR
    if "plain" in parts:
        for connections in (1, 16, 64):
            skip = slow if connections == 64 else frozenset()
            found.append(Load(f"c{connections}", "closed", PLAIN, ("-c", str(connections), *seconds), skip))
        found.append(Load("d100", "closed", DELAYED, ("-c", "64", *seconds), slow))
    if "translated" in parts:
        for connections in (1, 64):
            skip = (slow if connections == 64 else FLOOR) | {"nginx"}
            found.append(Load(f"a-c{connections}", "closed", TRANSLATED, ("-c", str(connections), *seconds), skip))
    if "streams" in parts:
        found.append(stream_load("20x20", 20, 20, FLOOR | {"LiteLLM"}))
        found.append(stream_load("500x20", 500, 20, slow))
        if not quick:
            found.append(stream_load("1000x10", 1000, 10, slow))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="short windows, no 1000 streams")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--targets", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--compare", metavar="REVISION", help="also measure the gateway of this git revision")
    asked = parser.parse_args()
    try:
        return bench(asked)
    except BenchError as problem:
        print(f"bench-gateway: {problem}", file=sys.stderr)
        return 2


def bench(asked: argparse.Namespace) -> int:
    tools = prepare()
    todo = loads(asked.only, asked.quick)
    scenarios = list({load.scenario.name: load.scenario for load in todo}.values())
    results = Results()
    began = time.time()
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hearth-bench-")))
        targets: list[Target] = []

        def add(target: Target) -> None:
            stack.callback(target.stop)
            targets.append(target)

        add(start_direct(tools))
        vendor = targets[0].urls["anthropic"].removesuffix("/v1/messages")
        if "nginx" in asked.targets:
            add(start_nginx(tools, vendor, work / "nginx"))
        if "floor" in asked.targets and "plain" in asked.only:
            add(start_floor(vendor, SOURCE, work / "floor"))
        if "gateway" in asked.targets:
            add(start_gateway(gateway_config(vendor, scenarios, work / "gateway"), SOURCE, work / "gateway"))
        if asked.compare:
            old = unpack_revision(asked.compare, work)
            add(start_gateway(gateway_config(vendor, scenarios, work / "old"), old, work / "old", f"gateway {asked.compare}"))
        if "litellm" in asked.targets:
            add(start_litellm(tools, vendor, scenarios, work / "litellm", prometheus=False))
            add(start_litellm(tools, vendor, scenarios, work / "litellm-prometheus", prometheus=True))
        time.sleep(3)  # imports and first look-ups are over
        for target in targets:
            target.idle_pss_mib = target.pss_mib()
        warm_up(tools.load, targets, todo)
        run_rounds(tools.load, targets, todo, asked.rounds, results, print_now)
        fault_results = faults.run(tools.load, vendor, "anthropic", SOURCE, print_now) if "faults" in asked.only else []
    text, good = report.write(targets, results, fault_results, asked.rounds, began)
    folder = ROOT / "build" / "reports"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench-gateway.md").write_text(text)
    print(text)
    return 0 if good else 1


def print_now(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
