"""Run test layers, one after another, and close with one line that counts them.

    python tests/run.py LAYER…        the layers named, in that order
    python tests/run.py acceptance    nothing is run: every line of tests/acceptance.yml must have passed before

Each layer writes `build/reports/<layer>.xml` (JUnit) and `<layer>.log`. A layer that fails does not stop the
next one: an operator of CI wants to see all that is wrong. A skip that tests/acceptance.yml does not list is
a failure, and so is a layer that executed no test: a check that did not run is no check.

In a layer of independent tests, one or two that fail are run once more by themselves. One that passes then is *unsteady*:
the report names it, its failure is in the log, and it does not stop a landing (docs/testing.md says why).

CI has an end. `HEARTH_TESTS_END` (seconds since 1970) is when all has to be over: a layer whose budget is longer than
what is left does not begin, is named in the report as not run, and what it would have shown is not claimed. One that takes much
longer than its budget is stopped two minutes after that end: what has failed in it by then is a failure, and nothing else of it
is claimed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / "build" / "reports"
PYTEST = [sys.executable, "-m", "pytest", "-q"]
OVERTIME_S = 120  # after HEARTH_TESTS_END, what is still running is stopped
UNSTEADY_AT_MOST = 2  # failures in a layer that are looked at a second time; more are no accident


@dataclass(frozen=True)
class Layer:
    """One layer: its pytest arguments or its command, and the seconds it may take in CI.

    `workers`: processes among which the files of tests are shared out, where a test waits more than it works.
    `independent`: no test needs what the one before it left, so one that failed may be run by itself.
    """

    budget_s: int
    pytest: tuple[str, ...] = ()
    workers: int = 1
    independent: bool = False
    command: tuple[str, ...] = ()
    stand_ins: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


K3S = "k3s (tests/testbed/go/cmd/k3s, the real Kubernetes inside; HEARTH_BED_K3S=/path/to/k3s runs the real one)"
VENDOR = "Anthropic (tests/mocks/anthropic_server.py, over real HTTP)"
OAUTH2_PROXY = "oauth2-proxy (tests/standins/oauth2-proxy; OAUTH2_PROXY=/path/to/oauth2-proxy runs the real one)"
FRONT_DOOR = "helm-controller with Traefik's chart, and servicelb (tests/testbed/go/cmd/k3s/frontdoor.go; Traefik itself is real)"
BED_OAUTH2_PROXY = "oauth2-proxy (tests/standins/oauth2-proxy; HEARTH_BED_OAUTH2_PROXY=/path/to/oauth2-proxy runs the real one)"
OIDC = "sign-in provider (tests/mocks/oidc_provider.py, which signs real tokens)"
HOSTS = "ThinkCentre hosts (systemd-nspawn on this machine's kernel)"

NODE_IN_VM = "tests/vm/test_host_in_vm.py::test_a_node_comes_back_by_itself_after_a_reboot"

LAYERS: dict[str, Layer] = {
    "lint": Layer(240, pytest=("tests/lint",)),
    "sanity": Layer(420, pytest=("tests/sanity",)),
    "unit": Layer(300, pytest=("tests/unit", "tests/docs", "files/gateway/tests"), workers=2, independent=True),
    "render": Layer(240, pytest=("tests/render",)),
    "gateway": Layer(600, pytest=("tests/gateway",), workers=2, independent=True, stand_ins=(VENDOR,)),
    "fuzz": Layer(400, pytest=("tests/gateway/test_fuzz.py",), stand_ins=(VENDOR,)),
    "contract": Layer(300, pytest=("tests/contract",), independent=True, stand_ins=(OAUTH2_PROXY, OIDC, VENDOR)),
    "browser": Layer(180, pytest=("tests/browser",), independent=True, stand_ins=(VENDOR,)),
    "bed": Layer(300, pytest=("tests/testbed/test_bed.py",), stand_ins=(HOSTS,)),
    "molecule": Layer(420, command=("molecule", "test", "-s", "default"), stand_ins=(HOSTS,)),
    "readme": Layer(600, pytest=("tests/readme",)),
    "standin": Layer(
        700,
        pytest=(
            "tests/testbed/test_bed_services.py",
            "tests/testbed/test_k3s_standin.py",
            "tests/testbed/test_k3s_cluster.py",
        ),
        stand_ins=(HOSTS, K3S),
    ),
    "standin-servers": Layer(600, pytest=("tests/testbed/test_k3s_etcd.py",), stand_ins=(HOSTS, K3S)),
    "cluster": Layer(600, command=("molecule", "test", "-s", "cluster"), stand_ins=(HOSTS, K3S, VENDOR)),
    "faults": Layer(400, pytest=("tests/cluster/test_faults.py",), stand_ins=(HOSTS, K3S, VENDOR)),
    "gateway-cluster": Layer(600, pytest=("tests/cluster/test_gateway_rollout.py",), stand_ins=(HOSTS, K3S, VENDOR)),
    # One to four hosts on one bed: built, grown, a server lost, nodes removed and added, upgraded.
    "topology": Layer(1800, pytest=("tests/cluster/test_topology.py",), stand_ins=(HOSTS, K3S, VENDOR)),
    "airgap": Layer(240, pytest=("tests/cluster/test_airgap.py",), stand_ins=(HOSTS, K3S, VENDOR)),
    "access": Layer(900, pytest=("tests/cluster/access",), stand_ins=(HOSTS, K3S, FRONT_DOOR, BED_OAUTH2_PROXY, OIDC, VENDOR)),
    "vm": Layer(900, pytest=("tests/vm", f"--deselect={NODE_IN_VM}")),
    # By hand: an emulated Kubernetes takes a quarter of an hour, and the bed builds its k3s for amd64 only.
    "vm-node": Layer(3600, pytest=(NODE_IN_VM,), stand_ins=(K3S,)),
    "vm-arm64": Layer(
        3600,
        pytest=("tests/vm/test_host_in_vm.py", f"--deselect={NODE_IN_VM}"),
        environment={"HEARTH_VM_ARCHITECTURE": "arm64"},
    ),
}


@dataclass
class Outcome:
    """What one layer came to: counts, the skips with their reasons, and the seconds it took.

    ``tests``: passed, skipped, failed, or broken, which is that its set-up or teardown failed.
    """

    layer: str
    passed: int = 0
    failed: int = 0
    skips: list[tuple[str, str]] = field(default_factory=list)
    tests: dict[str, str] = field(default_factory=dict)
    unsteady: list[str] = field(default_factory=list)  # failed once, then passed by themselves
    seconds: float = 0.0
    left_s: float | None = None  # what was left of CI's time, if that was too little to begin
    stopped: bool = False  # it was not over when CI's time was


def read_junit(path: Path, outcome: Outcome) -> None:
    """Add the results of one JUnit file."""
    for case in ET.parse(path).getroot().iter("testcase"):  # noqa: S314  (our own file)
        name = f"{case.get('classname', '')}.{case.get('name', '')}".lstrip(".")
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            outcome.failed += 1
            outcome.tests[name] = "failed" if case.find("failure") is not None else "broken"
        elif skipped is not None:
            outcome.skips.append((name, skipped.get("message") or "no reason"))
            outcome.tests[name] = "skipped"
        else:
            outcome.passed += 1
            outcome.tests.setdefault(name, "passed")


def junit_files(layer: str) -> list[Path]:
    """A layer's own report, then those of the steps in it (`<layer>.<step>.xml`, such as testinfra's in molecule)."""
    return [p for p in (REPORTS / f"{layer}.xml", *sorted(REPORTS.glob(f"{layer}.*.xml"))) if p.exists()]


def again_file(layer: str) -> Path:
    """The report of the second run of what failed in the first."""
    return REPORTS / f"{layer}-again.xml"


def read_layer(name: str) -> Outcome:
    """What the reports of a layer say, the second run of a failed test counting as its result."""
    outcome = Outcome(name)
    for path in junit_files(name):
        read_junit(path, outcome)
    if left_out(name).exists():
        # Of a layer that was stopped. To pytest's report the test that it was at has passed, or its teardown failed.
        failed = {test: state for test, state in outcome.tests.items() if state == "failed"}
        outcome = Outcome(name, failed=len(failed), tests=failed, stopped=True)
    if again_file(name).exists():
        again = Outcome(name)
        read_junit(again_file(name), again)
        bad = {test for test, state in outcome.tests.items() if state in ("failed", "broken")}
        outcome.unsteady = [test for test, state in again.tests.items() if state == "passed" and test in bad]
        outcome.passed += len(outcome.unsteady)
        outcome.failed -= len(outcome.unsteady)
        outcome.tests |= dict.fromkeys(outcome.unsteady, "passed")
    return outcome


def left_out(layer: str) -> Path:
    """The marker of a layer that did not begin, or was not over, for want of time."""
    return REPORTS / f"{layer}.left-out"


def run_layer(name: str) -> Outcome:
    layer = LAYERS[name]
    outcome = Outcome(name)
    log = REPORTS / f"{name}.log"
    for stale in (*junit_files(name), again_file(name), left_out(name)):
        stale.unlink(missing_ok=True)
    if (end := os.environ.get("HEARTH_TESTS_END")) and float(end) - time.time() < layer.budget_s:
        outcome.left_s = max(0.0, float(end) - time.time())
        left_out(name).touch()
        return outcome
    command = list(layer.command)
    if layer.pytest:
        shared = ["-n", str(layer.workers), "--dist", "loadfile"] if layer.workers > 1 else []
        command = [*PYTEST, *shared, f"--junitxml={REPORTS / f'{name}.xml'}", *layer.pytest]
    print(f"── {name} " + "─" * (60 - len(name)), flush=True)
    environment = os.environ | {"HEARTH_REPORTS": str(REPORTS), "HEARTH_LAYER": name, **layer.environment}
    # The tools beside this Python, also when somebody runs this file by hand and not through make.
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    start = time.monotonic()

    def run(command: list[str], mode: str) -> int | None:
        with log.open(mode) as sink:
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=sink, stderr=subprocess.STDOUT, env=environment, preexec_fn=hear_interrupts
            )
            return wait(process, float(end) + OVERTIME_S if end else None)

    returncode = run(command, "wb")
    if returncode is None:
        left_out(name).touch()
    outcome = read_layer(name)
    if not outcome.stopped and layer.independent and 0 < outcome.failed <= UNSTEADY_AT_MOST:
        print(tail(log) + f"\n{name}: once more, what failed", flush=True)
        again = [*PYTEST, "--last-failed", "--last-failed-no-failures", "none", f"--junitxml={again_file(name)}", *layer.pytest]
        run(again, "ab")
        outcome = read_layer(name)
    outcome.seconds = time.monotonic() - start
    if outcome.stopped:
        pass  # neither the sequence nor pytest came to its end
    elif layer.command:
        # The sequence itself (create, converge, idempotence, …) counts as one test beside those of its verifier.
        outcome.tests[" ".join(layer.command)] = "passed" if returncode == 0 else "failed"
        if returncode == 0:
            outcome.passed += 1
        else:
            outcome.failed += 1
    elif returncode not in (0, 1) and not outcome.failed:
        outcome.failed += 1  # pytest itself broke: collection error, missing file, no test executed
    if outcome.failed:
        print(tail(log))
        print(f"{name}: FAILED, whole log in {log.relative_to(ROOT)}")
    return outcome


def hear_interrupts() -> None:
    """What a shell starts in the background ignores them, and so would all that is started from there."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait(process: subprocess.Popen[bytes], until: float | None) -> int | None:
    """Its exit status; None if it had to be stopped ``until`` then, for which pytest has time to write its report."""
    try:
        return process.wait(None if until is None else max(0.0, until - time.time()))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return None


def tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-120:])


def allowed_skips() -> dict[str, str]:
    loaded = yaml.safe_load((ROOT / "tests" / "acceptance.yml").read_text())
    return {str(k): str(v) for k, v in (loaded.get("allowed_skips") or {}).items()}


def report(outcomes: Sequence[Outcome]) -> int:
    skips = allowed_skips()
    failures = 0
    stand_ins: list[str] = []
    print("\nlayer           passed failed skipped   time    budget")
    for o in outcomes:
        budget = LAYERS[o.layer].budget_s
        if o.left_s is not None:
            print(f"{o.layer:<15} NOT RUN: it may take {budget} s, and {o.left_s:.0f} s were left")
            continue
        over = "  STOPPED: CI's time was over" if o.stopped else "  OVER BUDGET" if o.seconds > budget else ""
        print(f"{o.layer:<15} {o.passed:>6} {o.failed:>6} {len(o.skips):>7} {o.seconds:>6.0f}s {budget:>6}s{over}")
        if not o.passed and not o.failed and not o.stopped:
            print(f"  {o.layer}: executed no test, which counts as a failure")
            failures += 1
        for name, reason in o.skips:
            listed = next((why for pattern, why in skips.items() if name.endswith(pattern)), None)
            print(f"  skipped {name}: {reason}" + ("" if listed else "  NOT LISTED in tests/acceptance.yml: a failure"))
            failures += listed is None
        for name in o.unsteady:
            print(f"  UNSTEADY {name}: failed, and passed by itself; the failure is in build/reports/{o.layer}.log")
        stand_ins += [s for s in LAYERS[o.layer].stand_ins if s not in stand_ins]
    if os.environ.get("HEARTH_BED_K3S"):
        stand_ins = [s for s in stand_ins if s not in (K3S, FRONT_DOOR)]
    if os.environ.get("HEARTH_BED_OAUTH2_PROXY"):
        stand_ins = [s for s in stand_ins if s != BED_OAUTH2_PROXY]
    if os.environ.get("OAUTH2_PROXY"):
        stand_ins = [s for s in stand_ins if s != OAUTH2_PROXY]
    if stand_ins:
        print("not the real thing: " + "; ".join(stand_ins))
    failed = sum(o.failed for o in outcomes) + failures
    if not any(o.passed or o.failed or o.skips for o in outcomes) and not failed:
        print("nothing to count", flush=True)  # a closing line that counts none reads as if there were no tests
    else:
        print(closing_line(outcomes, failed), flush=True)
    return 1 if failed else 0


def closing_line(outcomes: Sequence[Outcome], failed: int) -> str:
    """In the words that CI reads."""
    passed, skipped = sum(o.passed for o in outcomes), sum(len(o.skips) for o in outcomes)
    return f"{passed} passed, {failed} failed, {skipped} skipped"


def names(test: str, files: Iterable[Path]) -> bool:
    """Whether a test, by a part of its id as acceptance names it, stands in one of these files."""
    parts = test.partition("[")[0].split(".")
    return any(all(part in str(path) or part in path.read_text() for part in parts) for path in files)


def was_left_out(test: str, layers: list[str]) -> bool:
    """Whether it is one of these layers that would have run a test."""
    for layer in (LAYERS[name] for name in layers):
        files = [file for path in layer.pytest for file in ([ROOT / path] if path.endswith(".py") else (ROOT / path).rglob("*.py"))]
        if test == " ".join(layer.command) or names(test, files):
            return True
    return False


def acceptance() -> int:
    """Every line of an issue's "Shown by" must be shown by tests that passed in the layers run before. Ends with the count
    of all of them."""
    results: dict[str, str] = {}
    layers = [read_layer(name) for name in LAYERS]
    for outcome in layers:
        command = " ".join(LAYERS[outcome.layer].command)
        if command and (REPORTS / f"{outcome.layer}.ok").exists():
            outcome.tests[command] = "passed"
            outcome.passed += 1
        elif command and (REPORTS / f"{outcome.layer}.log").exists() and not left_out(outcome.layer).exists():
            outcome.tests[command] = "failed"
            outcome.failed += 1
        results |= outcome.tests
    loaded = yaml.safe_load((ROOT / "tests" / "acceptance.yml").read_text())
    bad = 0
    lines = 0
    unseen = 0
    not_run = [name for name in LAYERS if left_out(name).exists()]
    for issue, shown in loaded["issues"].items():
        for line, tests in shown.items():
            lines += 1
            problems, waiting = ([] if tests else ["no test shows it"]), 0
            for test in tests or []:
                found = [state for name, state in results.items() if test in name]
                if not found and was_left_out(test, not_run):
                    waiting += 1
                elif not found:
                    problems.append(f"{test}: did not run")
                elif set(found) != {"passed"}:
                    problems.append(f"{test}: {', '.join(sorted(set(found) - {'passed'}))}")
            if problems:
                bad += 1
                print(f"issue {issue}: NOT SHOWN: {line}\n    " + "\n    ".join(problems))
            elif waiting:
                unseen += 1
                print(f"issue {issue}: not shown in this run: {line}")
    print(f"acceptance: {lines - bad - unseen} passed, {bad} failed")
    if unseen:
        print(f"{unseen} not shown, because there was no time for: {', '.join(not_run)}")
    print("total: " + closing_line(layers, sum(outcome.failed for outcome in layers)))
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
        if not outcome.failed and outcome.left_s is None and not outcome.stopped:
            marker.touch()
    return report(outcomes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
