"""Measure the slice: bare host to first answer, and a rerun with nothing to do.

    python tests/bench/run.py [--reruns 5] [--servers 1]

Starts a bed of one host (or three, all of them servers), runs `site.yml` once and then RERUNS times, each rerun beside a
playbook that does nothing on the same hosts (the floor: start of Ansible and one ssh connection), interleaved, so that a
busy machine slows both. Prints seconds and the ratio to the floor. Downloads are cached by the bed's own servers,
apart from Debian and Python packages. What ran is the stand-in for k3s, and the output says so.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import yaml

from tests.cluster.support import Bed, play

FLOOR = """---
- name: Do nothing
  hosts: servers
  gather_facts: false
  tasks:
    - name: Reach the host
      ansible.builtin.ping:
"""


def all_servers(bed: Bed) -> Path:
    """The bed's inventory with its agents among the servers."""
    document = yaml.safe_load(bed.inventory.read_text())
    groups = document["all"]["children"]["k3s_cluster"]["children"]
    groups["servers"]["hosts"] |= groups["agents"]["hosts"] or {}
    groups["agents"]["hosts"] = {}
    path = bed.state / "bench.yml"
    path.write_text(yaml.safe_dump(document))
    return path


def timed(playbook: str, inventory: Path) -> tuple[float, str, int]:
    start = time.monotonic()
    run = play(playbook, inventory, timeout_s=1200)
    seconds = time.monotonic() - start
    if run.rc:
        raise SystemExit(f"{playbook} failed:\n{run.output[-4000:]}")
    return seconds, run.output, run.count("changed")


def main(reruns: int, servers: int) -> int:
    bed = Bed("bench")
    bed.call("down", check=False)
    bed.call("up", "-n", str(servers), "--with", "services", timeout_s=900)
    try:
        floor_playbook = bed.state / "floor.yml"
        floor_playbook.write_text(FLOOR)
        inventory = all_servers(bed)
        first, _, _ = timed("site.yml", inventory)
        floors, seconds = [], []
        for _ in range(reruns):
            floors.append(timed(str(floor_playbook), inventory)[0])
            took, _, changed = timed("site.yml", inventory)
            if changed:
                raise SystemExit(f"a rerun changed {changed} things: not the measurement that was asked for")
            seconds.append(took)
        floor, rerun = statistics.median(floors), statistics.median(seconds)
        print(f"{servers} server{'s' * (servers > 1)}, n={reruns}")
        print(f"bare host to first answer   {first:6.1f} s")
        print(f"rerun, nothing to do        {rerun:6.1f} s  (min {min(seconds):.1f}, max {max(seconds):.1f}, n={reruns})")
        print(f"floor, one ping by Ansible  {floor:6.1f} s  → ratio {rerun / floor:.1f}")
        print("k3s: " + bed.ssh("/usr/local/bin/k3s --version").replace("\n", " | "))
    finally:
        bed.call("down")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Bare host to first answer, and a rerun with nothing to do.")
    parser.add_argument("--reruns", type=int, default=5)
    parser.add_argument("--servers", type=int, choices=(1, 3, 5), default=1)
    arguments = parser.parse_args()
    sys.exit(main(arguments.reruns, arguments.servers))
