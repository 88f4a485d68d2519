"""What the tests of the bed share: its command, a bed for the length of a block, and a look at the machine."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.testbed.bedlib.common import cache_dir

BED = Path(__file__).resolve().parent / "bed"
CACHE = cache_dir()


def bed(*words: str, name: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the bed's command on one bed."""
    done = subprocess.run([BED, *words[:1], "--name", name, *words[1:]], text=True, capture_output=True, check=False)
    if check and done.returncode != 0:
        pytest.fail(f"bed {' '.join(words)}: {done.stderr[-2000:]}")
    return done


def ssh(name: str, host: str, command: str) -> str:
    return bed("ssh", host, command, name=name).stdout.strip()


def status(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(bed("status", "--json", name=name).stdout)
    return found


@contextlib.contextmanager
def running(name: str, count: int, *more: str) -> Iterator[dict[str, Any]]:
    """A bed that is there for the block only."""
    bed("down", name=name)
    try:
        bed("up", "-n", str(count), *more, name=name)
        yield status(name)
    finally:
        bed("down", name=name)


def traces(*names: str) -> dict[str, list[str]]:
    """Everything on the machine that carries the name of one of these beds."""

    def named(lines: list[str]) -> list[str]:
        return sorted(line for line in lines if any(name in line for name in names))

    def output(*command: str) -> list[str]:
        return subprocess.run(command, text=True, capture_output=True, check=True).stdout.splitlines()

    return {
        "links": named(output("ip", "-o", "link")),
        "routes": named(output("ip", "route", "show", "table", "all")),
        "namespaces": named(output("ip", "netns", "list")),
        "firewall": named([line.replace("_", "-") for line in output("nft", "list", "tables")]),
        "mounts": named(Path("/proc/self/mountinfo").read_text().splitlines()),
        "cgroups": named(output("find", "/sys/fs/cgroup", "-maxdepth", "2", "-type", "d")),
        # This test's own command line has no bed's name in it; the beds' processes all do.
        "processes": named(
            [
                path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
                for path in Path("/proc").glob("[0-9]*/cmdline")
                if path.parent.name != str(os.getpid()) and _readable(path)
            ]
        ),
        "runtime files": named(output("find", "/run", "/var/lib/machines", "-maxdepth", "4")),
        "state": named([str(path) for path in (CACHE / "beds").glob("*")]),
    }


def _readable(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return bool(path.read_bytes())
    return False


NOTHING: dict[str, list[str]] = {kind: [] for kind in traces("no-such-bed")}


def machine() -> dict[str, str]:
    """Settings of the machine that a bed must not change."""
    names = ("kernel/panic", "kernel/panic_on_oops", "vm/overcommit_memory", "vm/panic_on_oom", "vm/max_map_count")
    return {name: (Path("/proc/sys") / name).read_text() for name in names}


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="the bed makes network namespaces: needs root")
