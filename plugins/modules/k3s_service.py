#!/usr/bin/python
# Copyright: The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: k3s runs, with the files that lie on disk, and is ready."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: k3s_service
short_description: Start k3s, restart it only when a file of it is newer, and wait until it is ready
version_added: 0.1.0
description:
  - Enables the unit and starts it without blocking, because C(systemctl start) of a k3s that cannot join never returns.
  - Restarts it when one of O(certificates) will end within 60 days, because k3s makes them anew only when it starts.
  - Restarts it when one of O(inputs) changed after the running process began. So a run that was broken off between writing
    and restarting is finished by the next one, and a run that changes nothing restarts nothing.
  - Waits for the unit, the API, the node and CoreDNS with a deadline. On failure it gives the cause in words, as far as it is
    known, and the last lines of the unit's log.
author:
  - The Hearth developers (@hearth)
attributes:
  check_mode:
    support: full
    description: Says whether it would start or restart.
  diff_mode:
    support: none
    description: There is no text to compare.
options:
  unit:
    description: Name of the unit.
    type: str
    default: k3s
  inputs:
    description: Files that k3s reads when it starts.
    type: list
    elements: path
    required: true
  certificates:
    description: Certificates that k3s makes anew when it starts and they have less than 120 days left. Missing ones do not count.
    type: list
    elements: path
    default: []
  changed:
    description: Whether this run changed one of them (in check mode they are not written, so their times do not tell).
    type: bool
    default: false
  wait:
    description:
      - Whether to wait at all. Servers whose etcd has lost its majority are all started without waiting, because each of them
        waits for the others.
    type: bool
    default: true
  wait_for:
    description: What to wait for once the unit is active. V(etcd) means that this host is a voting member of it.
    type: list
    elements: str
    choices: [api, node, etcd, coredns]
    default: [api, node, coredns]
  kubeconfig:
    description: Credentials for the API. Empty means those that a server has; an agent has its kubelet's.
    type: path
  majority:
    description:
      - Before a healthy server of several is restarted, wait until etcd has a majority without it, and fail when time is up.
    type: bool
    default: false
  node_name:
    description: Name of this host's node.
    type: str
    required: true
  version:
    description: Version that the node must report.
    type: str
    default: ""
  timeout_s:
    description: Seconds from the start until it must be ready.
    type: int
    default: 300
"""

EXAMPLES = r"""
- name: Run k3s
  homelab.hearth.k3s_service:
    inputs: [/usr/local/bin/k3s, /etc/rancher/k3s/config.yaml]
    node_name: h1
"""

RETURN = r"""
action:
  description: What was done or would be done. Empty when it ran already.
  returned: success
  type: str
  sample: restarted
node:
  description: >-
    The Node of this host, as far as the role looks after it: labels, our annotations, taints, and whether it is closed to new pods.
    Empty when it has not registered.
  returned: success
  type: dict
kubeconfig_sha256:
  description: Fingerprint of the kubeconfig that k3s wrote on this host, empty when there is none.
  returned: success
  type: str
would_change:
  description: Whether there is anything to do, also what is not counted as a change, such as having systemd read its units again.
  returned: check mode
  type: bool
missing:
  description: What is not ready now, in words; empty when all is, or when O(wait=false).
  returned: check mode
  type: str
waited_s:
  description: Seconds from the action until everything was ready.
  returned: success
  type: float
cause:
  description: Cause of the failure in words, with its fix; empty when no line of the log is known.
  returned: failure
  type: str
log:
  description: Last lines of the unit's log.
  returned: failure
  type: list
  elements: str
"""

import _ssl
import hashlib
import json
import os
import pathlib
import ssl
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.hearth.plugins.module_utils import _conditions, _k3s
from ansible_collections.homelab.hearth.plugins.module_utils._kubectl import K3S

KUBECONFIG = pathlib.Path("/etc/rancher/k3s/k3s.yaml")
PROPERTIES = "LoadState,ActiveState,SubState,MainPID,UnitFileState,NeedDaemonReload,NRestarts,InvocationID"
# A kubelet registers its node when it starts, and never again. After a restore from an older snapshot, or when somebody deleted
# the node, it runs on without one until it is restarted.
NOT_REGISTERED = "the node has not registered"
REGISTERS_WITHIN_S = 20
# Of a year. k3s renews what has less than 120 days left when it starts (90 in former versions), and never while it runs: a house whose
# k3s has run for a year would be locked out of it.
RENEW_BEFORE_S = 60 * 86400
# A unit that fails and is restarted this often will not come up by waiting longer.
GIVE_UP_RESTARTS = 3


def process_start(stat_text: str, uptime_s: float, now: float, ticks_per_s: int) -> float:
    """Epoch second at which a process began, from /proc/<pid>/stat.

    Taken from the uptime, not from the boot time in /proc/stat: that has whole seconds only, and a file written
    in the same second would look newer than the process that read it.
    """
    # The command in brackets may hold blanks and brackets itself: count from the last one.
    fields = stat_text.rpartition(")")[2].split()
    return now - (uptime_s - int(fields[19]) / ticks_per_s)


def is_stale(changed_at: list[float], started_at: float) -> bool:
    """Whether one of the files changed after the process began."""
    return any(moment > started_at for moment in changed_at)


def certificate_end(path: pathlib.Path) -> float | None:
    """Epoch second at which a certificate ends, None when there is none. A bare host has nothing but Python to read it with."""
    try:
        return float(ssl.cert_time_to_seconds(_ssl._test_decode_cert(str(path))["notAfter"]))  # type: ignore[attr-defined]
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def is_renewal_due(ends: list[float], started_at: float, now: float) -> bool:
    """Whether a certificate ends soon that was not due when k3s started. One that was, and is as it was, no restart would renew."""
    return any(started_at < end - RENEW_BEFORE_S < now for end in ends)


def node_problem(node: dict[str, Any] | None, version: str) -> str:
    """Why a Node is not what we wait for, empty when it is: Ready, and running the wanted version."""
    if node is None:
        return NOT_REGISTERED
    if not _conditions.is_ready(node):
        return f"the node is not Ready ({_conditions.condition(node, 'Ready').get('message') or 'no report yet'})"
    running = node["status"].get("nodeInfo", {}).get("kubeletVersion", "")
    if version and running != version:
        return f"the node still reports {running}, not {version}"
    return ""


def healthy_member(node: dict[str, Any]) -> bool:
    """Whether a server's Node is Ready and a voting member of etcd."""
    return bool(_conditions.is_ready(node) and _conditions.condition(node, "EtcdIsVoter").get("status") == "True")


def majority_problem(nodes: list[dict[str, Any]], name: str) -> str:
    """Why this server may not be restarted now, empty when it may: the others must be a majority without it."""
    healthy = {node["metadata"]["name"]: healthy_member(node) for node in nodes}
    if len(healthy) < 2 or not healthy.get(name):
        return ""  # alone, or already no help to the others
    others = sum(good for other, good in healthy.items() if other != name)
    if others > len(healthy) // 2:
        return ""
    sick = ", ".join(other for other, good in healthy.items() if other != name and not good) or "none"
    return (
        f"restarting k3s on {name} would leave {others} of {len(healthy)} etcd members, which is no majority (not healthy: {sick}). "
        "Bring those back first"
    )


def voter_problem(node: dict[str, Any] | None) -> str:
    """Why this host is no voting member of etcd, empty when it is."""
    voter = _conditions.condition(node, "EtcdIsVoter")
    if voter.get("status") == "True":
        return ""
    return f"this server is not a voting member of etcd yet ({voter.get('message') or 'no report'})"


def shown(node: dict[str, Any] | None) -> dict[str, Any]:
    """What the role looks after on a Node."""
    if not node:
        return {}
    meta, spec = node.get("metadata", {}), node.get("spec", {})
    ours = {name: text for name, text in (meta.get("annotations") or {}).items() if name.startswith("hearth.homelab/")}
    return {
        "metadata": {"name": meta.get("name"), "labels": meta.get("labels") or {}, "annotations": ours},
        "spec": {"taints": spec.get("taints") or [], "unschedulable": bool(spec.get("unschedulable"))},
    }


def coredns_problem(deployment: dict[str, Any] | None) -> str:
    """Why CoreDNS is not up, empty when it is."""
    if deployment is None:
        return "CoreDNS has not been deployed"
    return "" if deployment.get("status", {}).get("availableReplicas", 0) else "CoreDNS is not running yet"


def kubeconfig_sha256() -> str:
    """Fingerprint of the kubeconfig: it holds a private key, so nothing can be told from it but whether it is the same."""
    return hashlib.sha256(KUBECONFIG.read_bytes()).hexdigest() if KUBECONFIG.exists() else ""


class Service:
    """The unit on this host: what it is doing, and the three things that can be done to it."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.unit = module.params["unit"]
        self.node: dict[str, Any] | None = None
        self.nudged = False
        self.node_path = f"/api/v1/nodes/{module.params['node_name']}"

    def systemctl(self, *words: str) -> str:
        code, output, error = self.module.run_command(["systemctl", *words])
        if code != 0:
            self.module.fail_json(msg=f"systemctl {' '.join(words)}: {(error or output).strip()}")
        return str(output)

    def show(self) -> dict[str, str]:
        text = self.systemctl("show", f"--property={PROPERTIES}", self.unit)
        return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)

    def log(self, since: float) -> list[str]:
        _code, output, _error = self.module.run_command(
            ["journalctl", f"--unit={self.unit}", f"--since=@{int(since)}", "--no-pager", "--output=cat"]
        )
        return [_k3s.redact(line) for line in output.splitlines()[-2000:]]

    def get(self, path: str) -> tuple[int, str]:
        """GET of the API as k3s's administrator, or as the node itself. Raw: a plain `kubectl get` would leave a cache in root's home."""
        given = self.module.params["kubeconfig"]
        credentials = [f"--kubeconfig={given}"] if given else []
        code, output, error = self.module.run_command([K3S, "kubectl", *credentials, "--request-timeout=10s", "get", "--raw", path])
        return code, output if code == 0 else error

    def get_object(self, path: str) -> dict[str, Any] | None:
        code, text = self.get(path)
        loaded: dict[str, Any] | None = json.loads(text) if code == 0 else None
        return loaded

    def stale(self, main_pid: int) -> bool:
        """Whether the running process began before one of its files changed, or should begin anew for its certificates."""
        try:
            text = pathlib.Path(f"/proc/{main_pid}/stat").read_text()
        except OSError:
            return False
        uptime = float(pathlib.Path("/proc/uptime").read_text().split()[0])
        started = process_start(text, uptime, time.time(), os.sysconf("SC_CLK_TCK"))
        # The change time, not the modification time: a file put back from a backup keeps the latter.
        times = [p.stat().st_ctime for p in map(pathlib.Path, self.module.params["inputs"]) if p.exists()]
        ends = [end for end in map(certificate_end, map(pathlib.Path, self.module.params["certificates"])) if end is not None]
        return is_stale(times, started) or is_renewal_due(ends, started, time.time())

    def may_restart(self) -> str:
        """Why the other servers would lose their majority; empty when they would not, or when they have none to lose."""
        path = "/api/v1/nodes?labelSelector=node-role.kubernetes.io%2Fetcd%3Dtrue"
        deadline = time.monotonic() + self.module.params["timeout_s"]
        while True:
            listed = self.get_object(path)
            if listed is None:
                return ""  # the API does not answer: there is nothing left to protect
            problem = majority_problem(listed["items"], self.module.params["node_name"])
            if not problem or time.monotonic() > deadline:
                return problem
            time.sleep(1)

    def waiting_for(self) -> str:
        """What is not ready yet, in words; empty when all is."""
        wanted = self.module.params["wait_for"]
        if "api" in wanted:
            code, text = self.get("/readyz")
            if code != 0 or text.strip() != "ok":
                return "the API is not ready"
        if "node" in wanted or "etcd" in wanted:
            self.node = self.get_object(self.node_path)
        if "node" in wanted:
            problem = node_problem(self.node, self.module.params["version"])
            if problem:
                return problem
        if "etcd" in wanted:
            problem = voter_problem(self.node)
            if problem:
                return problem
        if "coredns" in wanted:
            return coredns_problem(self.get_object("/apis/apps/v1/namespaces/kube-system/deployments/coredns"))
        return ""


def decide(state: dict[str, str], stale: bool, changed: bool) -> str:
    """started, restarted or nothing, from what systemd says and whether files are newer than the process."""
    if state.get("ActiveState") in ("active", "activating", "reloading"):
        return "restarted" if stale or changed else ""
    return "started"


def wait(service: Service, began: float, old_invocation: str, ran_already: bool) -> str:
    """Wait until everything is ready. Returns what was missing at the deadline, empty when all is there.

    ran_already: it was neither started nor restarted, so it has had its time to register.
    old_invocation: id of the run that was told to end. Until systemd has another one, "active" is still that run.
    """
    first_restarts: int | None = None
    nudged = not ran_already
    deadline = time.monotonic() + service.module.params["timeout_s"]
    while True:
        state = service.show()
        active = state.get("ActiveState")
        count = int(state.get("NRestarts", "0") or 0)
        first_restarts = count if first_restarts is None else min(first_restarts, count)
        restarts = count - first_restarts
        if old_invocation and state.get("InvocationID") == old_invocation:
            missing, active = "the unit has not begun again", "waiting"
        elif active == "active":
            missing = service.waiting_for()
            if not missing:
                return ""
            if missing == NOT_REGISTERED and not nudged and time.time() > began + REGISTERS_WITHIN_S:
                nudged, old_invocation, first_restarts = True, state.get("InvocationID", ""), None
                service.systemctl("restart", "--no-block", service.unit)
                service.nudged = True
        else:
            missing = f"the unit is {active} ({state.get('SubState')})"
        if active == "failed" or restarts >= GIVE_UP_RESTARTS:
            return f"{missing}; it ended {max(restarts, 1)} times since {time.strftime('%H:%M:%S', time.localtime(began))}"
        if time.monotonic() > deadline:
            return f"{missing} after {service.module.params['timeout_s']} s"
        time.sleep(0.5)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "unit": {"type": "str", "default": "k3s"},
            "inputs": {"type": "list", "elements": "path", "required": True},
            "certificates": {"type": "list", "elements": "path", "default": []},
            "changed": {"type": "bool", "default": False},
            "wait_for": {
                "type": "list",
                "elements": "str",
                "choices": ["api", "node", "etcd", "coredns"],
                "default": ["api", "node", "coredns"],
            },
            "wait": {"type": "bool", "default": True},
            "kubeconfig": {"type": "path"},
            "majority": {"type": "bool", "default": False},
            "node_name": {"type": "str", "required": True},
            "version": {"type": "str", "default": ""},
            "timeout_s": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    service = Service(module)
    state = service.show()
    stale = service.stale(int(state.get("MainPID", "0") or 0))
    action = decide(state, stale, module.params["changed"])
    enable = state.get("UnitFileState") != "enabled"
    began = time.time()
    changed = bool(action) or enable
    if module.check_mode:
        running = state.get("ActiveState") == "active"
        missing = (service.waiting_for() if running else f"the unit is {state.get('ActiveState')}") if module.params["wait"] else ""
        node = service.node or (service.get_object(service.node_path) if running else None)
        module.exit_json(
            changed=changed,
            would_change=changed or state.get("NeedDaemonReload") == "yes",
            missing=missing,
            action=action,
            waited_s=0.0,
            kubeconfig_sha256=kubeconfig_sha256(),
            node=shown(node),
        )
    if action == "restarted" and module.params["majority"]:
        refused = service.may_restart()
        if refused:
            module.fail_json(msg=f"{refused}. Nothing was restarted.", cause=refused, log=[])
    if state.get("NeedDaemonReload") == "yes" or state.get("LoadState") != "loaded" or module.params["changed"]:
        service.systemctl("daemon-reload")
    if enable:
        service.systemctl("enable", service.unit)
    if action:
        # A unit that failed too often before would refuse to start.
        if state.get("ActiveState") == "failed":
            service.systemctl("reset-failed", service.unit)
        service.systemctl("restart" if action == "restarted" else "start", "--no-block", service.unit)
    if not module.params["wait"]:
        module.exit_json(changed=changed, action=action, waited_s=0.0, kubeconfig_sha256="", node={})
    missing = wait(service, began, state.get("InvocationID", "") if action == "restarted" else "", not action)
    if missing:
        lines = service.log(began - 1 if action else began - 600)
        cause = _k3s.named_cause(lines)
        said = f"k3s is not ready: {missing}." + (f" Cause: {cause}." if cause else "")
        words = _k3s.last_words(lines)
        module.fail_json(msg="\n".join([said, "From its log:", *[f"  {line}" for line in words]]), cause=cause, log=words)
    if service.nudged:
        changed, action = True, "restarted"
    waited_s = round(time.time() - began, 1)
    node = shown(service.node or service.get_object(service.node_path))
    module.exit_json(changed=changed, action=action, waited_s=waited_s, kubeconfig_sha256=kubeconfig_sha256(), node=node)


if __name__ == "__main__":
    main()
