"""Run test layers, one after another, and close with one line that counts them.

    python tests/run.py LAYER…        the layers named, in that order
    python tests/run.py acceptance    nothing is run: every line of tests/acceptance.yml must have passed before

Each layer writes `build/reports/<layer>.xml` (JUnit) and `<layer>.log`. A layer that fails does not stop the
next one: an operator of CI wants to see all that is wrong. A skip that tests/acceptance.yml does not list is
a failure, and so is a layer that executed no test: a check that did not run is no check.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / "build" / "reports"
PYTEST = [sys.executable, "-m", "pytest", "-q"]


@dataclass(frozen=True)
class Layer:
    """One layer: its pytest arguments or its command, and the seconds it may take in CI."""

    budget_s: int
    pytest: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    stand_ins: tuple[str, ...] = ()


K3S = "k3s (tests/testbed/go/cmd/k3s, the real Kubernetes inside; HEARTH_BED_K3S=/path/to/k3s runs the real one)"
VENDOR = "Anthropic (tests/mocks/anthropic_server.py, over real HTTP)"
OAUTH2_PROXY = "oauth2-proxy (tests/standins/oauth2-proxy; OAUTH2_PROXY=/path/to/oauth2-proxy runs the real one)"
OIDC = "sign-in provider (tests/mocks/oidc_provider.py, which signs real tokens)"
HOSTS = "ThinkCentre hosts (systemd-nspawn on this machine's kernel)"

LAYERS: dict[str, Layer] = {
    "lint": Layer(240, pytest=("tests/lint",)),
    "sanity": Layer(420, pytest=("tests/sanity",)),
    "unit": Layer(300, pytest=("tests/unit", "tests/docs", "files/gateway/tests")),
    "render": Layer(240, pytest=("tests/render",)),
    "gateway": Layer(600, pytest=("tests/gateway",), stand_ins=(VENDOR,)),
    "fuzz": Layer(1500, pytest=("tests/gateway/test_fuzz.py",), stand_ins=(VENDOR,)),
    "contract": Layer(300, pytest=("tests/contract",), stand_ins=(OAUTH2_PROXY, OIDC, VENDOR)),
    "browser": Layer(180, pytest=("tests/browser",), stand_ins=(VENDOR,)),
    "bed": Layer(300, pytest=("tests/testbed/test_bed.py",), stand_ins=(HOSTS,)),
    "molecule": Layer(420, command=("molecule", "test", "-s", "default"), stand_ins=(HOSTS,)),
    "readme": Layer(600, pytest=("tests/readme",)),
    "standin": Layer(
        600,
        pytest=("tests/testbed/test_bed_services.py", "tests/testbed/test_k3s_standin.py"),
        stand_ins=(HOSTS, K3S),
    ),
    "cluster": Layer(900, command=("molecule", "test", "-s", "cluster"), stand_ins=(HOSTS, K3S, VENDOR)),
    "faults": Layer(900, pytest=("tests/cluster/test_faults.py",), stand_ins=(HOSTS, K3S, VENDOR)),
    "gateway-cluster": Layer(900, pytest=("tests/cluster/test_gateway_rollout.py",), stand_ins=(HOSTS, K3S, VENDOR)),
    "vm": Layer(900, pytest=("tests/vm",)),
}


@dataclass
class Outcome:
    """What one layer came to: counts, the skips with their reasons, and the seconds it took."""

    layer: str
    passed: int = 0
    failed: int = 0
    skips: list[tuple[str, str]] = field(default_factory=list)
    tests: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def read_junit(path: Path, outcome: Outcome) -> None:
    """Add the results of one JUnit file: test id -> passed, failed or skipped."""
    for case in ET.parse(path).getroot().iter("testcase"):  # noqa: S314  (our own file)
        name = f"{case.get('classname', '')}.{case.get('name', '')}".lstrip(".")
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            outcome.failed += 1
            outcome.tests[name] = "failed"
        elif skipped is not None:
            outcome.skips.append((name, skipped.get("message") or "no reason"))
            outcome.tests[name] = "skipped"
        else:
            outcome.passed += 1
            outcome.tests.setdefault(name, "passed")


def junit_files(layer: str) -> list[Path]:
    """A layer's own report, then those of the steps in it (`<layer>.<step>.xml`, such as testinfra's in molecule)."""
    return [p for p in (REPORTS / f"{layer}.xml", *sorted(REPORTS.glob(f"{layer}.*.xml"))) if p.exists()]


def run_layer(name: str) -> Outcome:
    layer = LAYERS[name]
    outcome = Outcome(name)
    log = REPORTS / f"{name}.log"
    for stale in junit_files(name):
        stale.unlink()
    command = list(layer.command)
    if layer.pytest:
        command = [*PYTEST, f"--junitxml={REPORTS / f'{name}.xml'}", *layer.pytest]
    print(f"── {name} " + "─" * (60 - len(name)), flush=True)
    environment = os.environ | {"HEARTH_REPORTS": str(REPORTS), "HEARTH_LAYER": name}
    # The tools beside this Python, also when somebody runs this file by hand and not through make.
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    start = time.monotonic()
    with log.open("wb") as sink:
        done = subprocess.run(command, cwd=ROOT, stdout=sink, stderr=subprocess.STDOUT, env=environment, check=False)
    outcome.seconds = time.monotonic() - start
    for report in junit_files(name):
        read_junit(report, outcome)
    if layer.command:
        # The sequence itself (create, converge, idempotence, …) counts as one test beside those of its verifier.
        outcome.tests[" ".join(layer.command)] = "passed" if done.returncode == 0 else "failed"
        if done.returncode == 0:
            outcome.passed += 1
        else:
            outcome.failed += 1
    elif done.returncode not in (0, 1) and not outcome.failed:
        outcome.failed += 1  # pytest itself broke: collection error, missing file, no test executed
    text = log.read_text(errors="replace").splitlines()
    if outcome.failed:
        print("\n".join(text[-120:]))
        print(f"{name}: FAILED, whole log in {log.relative_to(ROOT)}")
    return outcome


def allowed_skips() -> dict[str, str]:
    loaded = yaml.safe_load((ROOT / "tests" / "acceptance.yml").read_text())
    return {str(k): str(v) for k, v in (loaded.get("allowed_skips") or {}).items()}


def report(outcomes: list[Outcome]) -> int:
    skips = allowed_skips()
    failures = 0
    stand_ins: list[str] = []
    print("\nlayer           passed failed skipped   time    budget")
    for o in outcomes:
        budget = LAYERS[o.layer].budget_s
        over = "  OVER BUDGET" if o.seconds > budget else ""
        print(f"{o.layer:<15} {o.passed:>6} {o.failed:>6} {len(o.skips):>7} {o.seconds:>6.0f}s {budget:>6}s{over}")
        if not o.passed and not o.failed:
            print(f"  {o.layer}: executed no test, which counts as a failure")
            failures += 1
        for name, reason in o.skips:
            listed = next((why for pattern, why in skips.items() if name.endswith(pattern)), None)
            print(f"  skipped {name}: {reason}" + ("" if listed else "  NOT LISTED in tests/acceptance.yml: a failure"))
            failures += listed is None
        stand_ins += [s for s in LAYERS[o.layer].stand_ins if s not in stand_ins]
    if os.environ.get("HEARTH_BED_K3S"):
        stand_ins = [s for s in stand_ins if s != K3S]
    if os.environ.get("OAUTH2_PROXY"):
        stand_ins = [s for s in stand_ins if s != OAUTH2_PROXY]
    if stand_ins:
        print("not the real thing: " + "; ".join(stand_ins))
    failed = sum(o.failed for o in outcomes) + failures
    skipped = sum(len(o.skips) for o in outcomes)
    print(f"{sum(o.passed for o in outcomes)} passed, {failed} failed, {skipped} skipped", flush=True)
    return 1 if failed else 0


def acceptance() -> int:
    """Every line of an issue's "Shown by" must be shown by tests that passed in the layers run before."""
    results: dict[str, str] = {}
    for name in LAYERS:
        outcome = Outcome(name)
        for path in junit_files(name):
            read_junit(path, outcome)
        results |= outcome.tests
        if LAYERS[name].command and (REPORTS / f"{name}.ok").exists():
            results[" ".join(LAYERS[name].command)] = "passed"
    loaded = yaml.safe_load((ROOT / "tests" / "acceptance.yml").read_text())
    bad = 0
    lines = 0
    for issue, shown in loaded["issues"].items():
        for line, tests in shown.items():
            lines += 1
            problems = [] if tests else ["no test shows it"]
            for test in tests or []:
                found = [state for name, state in results.items() if test in name]
                if not found:
                    problems.append(f"{test}: did not run")
                elif set(found) != {"passed"}:
                    problems.append(f"{test}: {', '.join(sorted(set(found) - {'passed'}))}")
            if problems:
                bad += 1
                print(f"issue {issue}: NOT SHOWN: {line}\n    " + "\n    ".join(problems))
    print(f"acceptance: {lines - bad} passed, {bad} failed")
    return 1 if bad else 0


def main(arguments: list[str]) -> int:
    if arguments == ["acceptance"]:
        return acceptance()
    unknown = [a for a in arguments if a not in LAYERS]
    if unknown or not arguments:
        print(f"usage: run.py {' | '.join(LAYERS)} | acceptance", file=sys.stderr)
        return 2
    REPORTS.mkdir(parents=True, exist_ok=True)
    outcomes = []
    for name in arguments:
        outcome = run_layer(name)
        outcomes.append(outcome)
        marker = REPORTS / f"{name}.ok"
        marker.unlink(missing_ok=True)
        if not outcome.failed:
            marker.touch()
    return report(outcomes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
