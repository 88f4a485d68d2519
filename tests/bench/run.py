"""Measure the slice: bare host to first answer, and a rerun with nothing to do.

    python tests/bench/run.py [RERUNS]

Starts a bed of one host, runs `site.yml` once and then RERUNS times (default 5), each rerun beside a playbook
that does nothing on the same host (the floor: start of Ansible and one ssh connection), interleaved, so that a busy
machine slows both. Prints seconds and the ratio to the floor. Downloads are cached by the bed's own servers,
apart from Debian and Python packages. What ran is the stand-in for k3s, and the output says so.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.cluster.support import Bed, play

FLOOR = """---
- name: Do nothing
  hosts: servers
  gather_facts: false
  tasks:
    - name: Reach the host
      ansible.builtin.ping:
"""


def timed(playbook: str, bed: Bed) -> tuple[float, str, int]:
    start = time.monotonic()
    run = play(playbook, bed.inventory)
    seconds = time.monotonic() - start
    if run.rc:
        raise SystemExit(f"{playbook} failed:\n{run.output[-4000:]}")
    return seconds, run.output, run.count("changed")


def main(reruns: int) -> int:
    bed = Bed("bench")
    bed.call("down", check=False)
    bed.call("up", "-n", "1", "--with", "services", timeout_s=900)
    try:
        floor_playbook = bed.state / "floor.yml"
        floor_playbook.write_text(FLOOR)
        first, _, _ = timed("site.yml", bed)
        floors, seconds = [], []
        for _ in range(reruns):
            floors.append(timed(str(floor_playbook), bed)[0])
            took, _, changed = timed("site.yml", bed)
            if changed:
                raise SystemExit(f"a rerun changed {changed} things: not the measurement that was asked for")
            seconds.append(took)
        floor, rerun = statistics.median(floors), statistics.median(seconds)
        print(f"bare host to first answer   {first:6.1f} s")
        print(f"rerun, nothing to do        {rerun:6.1f} s  (min {min(seconds):.1f}, max {max(seconds):.1f}, n={reruns})")
        print(f"floor, one ping by Ansible  {floor:6.1f} s  → ratio {rerun / floor:.1f}")
        print("k3s: " + bed.ssh("/usr/local/bin/k3s --version").replace("\n", " | "))
    finally:
        bed.call("down")
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
