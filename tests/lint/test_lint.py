"""Linters and type checkers, one test a tool. A tool that is missing fails: `make setup` installs all of them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def tracked(*patterns: str) -> list[str]:
    """Files of the tree that match, tracked or new, without what git ignores."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n")
    return sorted(n for n in names if n and (ROOT / n).is_file())


def run(*command: str, cwd: Path = ROOT) -> None:
    if shutil.which(command[0]) is None:
        pytest.fail(f"{command[0]} is missing: run `make setup`")
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"{' '.join(command[:4])} …\n{done.stdout[-8000:]}\n{done.stderr[-4000:]}", pytrace=False)


def python_programs() -> list[str]:
    """Python files, and the scripts that say so in their first line."""
    scripts = [n for n in tracked() if not Path(n).suffix and b"python3" in (ROOT / n).read_bytes()[:40]]
    return tracked("*.py") + scripts


def test_ruff() -> None:
    run("ruff", "check", *python_programs())


# What imports the gateway's package and its test support is checked beside them.
FLOOR = "tests/bench/gateway/floor.py"
GATEWAY_TESTS = ("files/gateway/", "tests/gateway/", "tests/browser/", "tests/contract/", "tests/cluster/access/", FLOOR)


def test_mypy_strict(monkeypatch: pytest.MonkeyPatch) -> None:
    # PostgreSQL for the cluster tests is that of the gateway's.
    monkeypatch.setenv("MYPYPATH", "tests/gateway")
    run("mypy", *[n for n in python_programs() if n.endswith(".py") and not n.startswith(GATEWAY_TESTS)])


def test_mypy_strict_gateway() -> None:
    run("mypy", "--config-file", str(ROOT / "pyproject.toml"), "-p", "hearth_gateway", cwd=ROOT / "files" / "gateway" / "src")


def test_mypy_strict_gateway_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    # Each folder's tests import their support modules by their plain name.
    monkeypatch.setenv("MYPYPATH", "files/gateway/src:tests/gateway")
    run("mypy", *tracked("tests/gateway/*.py", "tests/browser/*.py", FLOOR))
    monkeypatch.setenv("MYPYPATH", "files/gateway/src:tests/gateway:tests/contract")
    run("mypy", *tracked("tests/contract/*.py", "tests/cluster/access/*.py"))


def test_yamllint() -> None:
    run("yamllint", "--strict", *tracked("*.yml", "*.yaml"))


@pytest.mark.timeout(600)
def test_ansible_lint_production() -> None:
    run("ansible-lint", "--offline", "-q", "playbooks", "roles", "inventories", "site.yml", "add_user.yml", "galaxy.yml")


def test_shellcheck() -> None:
    scripts = [n for n in tracked() if Path(n).suffix == ".sh" or (ROOT / n).read_bytes()[:20].startswith((b"#!/bin/bash",
               b"#!/usr/bin/env bash", b"#!/bin/sh"))]
    assert scripts, "no shell script found: the pattern is wrong"
    run("shellcheck", *scripts)


@pytest.mark.timeout(1200)
def test_go_vet() -> None:
    # The launcher and the small programs are ours; cmd/node only links Kubernetes, and vetting it compiles all of it.
    run("go", "vet", "./cmd/k3s/...", "./cmd/k3spack/...", cwd=ROOT / "tests" / "testbed" / "go")
    run("go", "vet", "./...", cwd=ROOT / "tests" / "standins" / "oauth2-proxy")


def test_gofmt() -> None:
    files = tracked("*.go")
    assert files
    done = subprocess.run(["gofmt", "-l", *files], cwd=ROOT, check=True, capture_output=True, text=True)
    assert not done.stdout, f"gofmt would change:\n{done.stdout}"


def test_no_machine_in_the_tree() -> None:
    """No path of a developer's machine and no registry that our machines install from stands in a file."""
    forbidden = ["/work" + "/main", "/work" + "/shared", "/root/." + "cache", "/opt/" + "wheels"]
    hits = []
    for name in tracked():
        text = (ROOT / name).read_bytes().decode(errors="ignore")
        hits += [f"{name}: {word}" for word in forbidden if word in text]
    assert not hits, "\n".join(hits)
