"""What the cluster tests share: the bed, playbooks run as an operator runs them, and views from outside."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
BED = ROOT / "tests" / "testbed" / "bed"
OBSERVE = Path(__file__).with_name("observe.py")
CACHE = Path(os.environ.get("HEARTH_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hearth")
REPORTS = Path(os.environ.get("HEARTH_REPORTS") or ROOT / "build" / "reports")


@dataclass
class Run:
    """One finished ansible-playbook run: exit code, output, wall time, and the counts of its recap by host."""

    rc: int
    output: str
    took_s: float = 0

    @cached_property
    def recap(self) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = {}
        for host, counts in re.findall(r"^(\S+)\s+: (ok=.*)$", self.output, re.M):
            found[host] = {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", counts)}
        return found

    def count(self, what: str) -> int:
        return sum(host.get(what, 0) for host in self.recap.values())


@dataclass(frozen=True)
class Bed:
    """One named test bed. Its hosts are h1, h2, …"""

    name: str

    @property
    def state(self) -> Path:
        return CACHE / "beds" / self.name

    @property
    def inventory(self) -> Path:
        return self.state / "inventory.yml"

    def call(self, *arguments: str, check: bool = True, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(BED), *arguments, "--name", self.name], cwd=ROOT, capture_output=True, text=True,
                              check=check, timeout=timeout_s)

    def ssh(self, command: str, host: str = "h1", check: bool = True, stdin: str = "", timeout_s: float = 120) -> str:
        done = subprocess.run(["ssh", "-F", str(self.state / "ssh_config"), host, command], input=stdin,
                              capture_output=True, text=True, check=False, timeout=timeout_s)
        if check and done.returncode:
            raise AssertionError(f"ssh {host} {command!r}: exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        return done.stdout

    def observe(self, what: str, host: str = "h1") -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads(self.ssh(f"python3 - {what}", host, stdin=OBSERVE.read_text()))
        return loaded

    @property
    def described(self) -> dict[str, Any]:
        """Hosts, services and versions, as `bed up` wrote them down."""
        return dict(json.loads((self.state / "env.json").read_text()))

    def address_of_this_machine(self) -> str:
        """As the hosts of the bed see it."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((self.described["hosts"]["h1"]["address"], 9))
            return str(probe.getsockname()[0])

    def variables(self) -> dict[str, Any]:
        inventory = yaml.safe_load(self.inventory.read_text())
        return dict(inventory["all"]["children"]["k3s_cluster"]["vars"])

    def kubectl(self, *arguments: str) -> str:
        # kubectl's cache in /run: in the home directory it would look like something a reset forgot
        return self.ssh("KUBECACHEDIR=/run/kubectl-cache /usr/local/bin/k3s kubectl " + shlex.join(arguments))

    def objects(self) -> dict[str, str]:
        """Every object of ours (and the node): kind/namespace/name -> resourceVersion and generation."""
        kinds = "deploy,svc,cm,secret,pvc,sa,netpol,ns,pod,replicaset,endpointslice"
        loaded = json.loads(self.kubectl("get", kinds, "-A", "-o", "json"))
        seen = {}
        for item in loaded["items"]:
            meta = item["metadata"]
            if item["kind"] == "Lease":
                continue
            key = f"{item['kind']}/{meta.get('namespace', '')}/{meta['name']}"
            seen[key] = f"resourceVersion {meta['resourceVersion']} generation {meta.get('generation', '')}"
        return seen


def play(playbook: str, inventory: Path | str, *extra: str, env: dict[str, str] | None = None, timeout_s: float = 600) -> Run:
    """Run a playbook from the repository root, as the README says it."""
    command = [str(ROOT / ".venv" / "bin" / "ansible-playbook"), playbook, "-i", str(inventory), *extra]
    environment = os.environ | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0",
                                "PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}"} | (env or {})
    # molecule hands its own Ansible settings down; an operator has none of them.
    for name in [n for n in environment if n.startswith(("MOLECULE_", "ANSIBLE_")) and n not in
                 {"ANSIBLE_CONFIG", "ANSIBLE_NOCOLOR", "ANSIBLE_FORCE_COLOR"}]:
        del environment[name]
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=timeout_s)
    return Run(done.returncode, done.stdout + done.stderr, time.monotonic() - began)


def collect(bed: Bed, label: str) -> None:
    """On failure: the logs of the host, its units and its pods, into build/reports/."""
    target = REPORTS / f"{label}-{bed.name}"
    target.mkdir(parents=True, exist_ok=True)
    for name, command in {
        "journal.log": "journalctl --no-pager -n 2000",
        "k3s.log": "journalctl --no-pager -u k3s -n 2000",
        "pods.txt": "/usr/local/bin/k3s kubectl get pods -A -o wide; /usr/local/bin/k3s kubectl describe pods -A",
        "gateway.log": "/usr/local/bin/k3s kubectl logs -n hearth deploy/gateway --tail=500",
        "events.txt": "/usr/local/bin/k3s kubectl get events -A --sort-by=.lastTimestamp",
    }.items():
        (target / name).write_text(bed.ssh(f"export KUBECACHEDIR=/run/kubectl-cache; {command}", check=False))
