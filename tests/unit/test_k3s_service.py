"""Module k3s_service: when k3s is restarted, what is waited for, and what is said when it does not come up."""

from __future__ import annotations

import datetime
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.hearth.plugins.modules import k3s_service
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Run = Callable[..., dict[str, Any]]
VERSION = "v1.36.4+k3s1"


def node(ready: str = "True", version: str = VERSION, message: str = "") -> dict[str, Any]:
    return {"kind": "Node", "status": {"conditions": [{"type": "Ready", "status": ready, "message": message}],
                                       "nodeInfo": {"kubeletVersion": version}}}


class Machine:
    """systemd, journal and API of one host, answering in place of the real commands; each `systemctl` is noted."""

    def __init__(self) -> None:
        self.unit = {"LoadState": "loaded", "ActiveState": "active", "SubState": "running", "MainPID": str(os.getpid()),
                     "UnitFileState": "enabled", "NeedDaemonReload": "no", "NRestarts": "0", "InvocationID": "one"}
        self.after: dict[str, str] = {}
        self.calls: list[str] = []
        self.api: dict[str, Any] = {
            "/readyz": "ok",
            "/api/v1/nodes/h1": node(),
            "/apis/apps/v1/namespaces/kube-system/deployments/coredns": {"kind": "Deployment", "status": {"availableReplicas": 1}},
        }
        self.journal: list[str] = []
        self.grow_restarts = False
        self.on_restart: Callable[[], None] = lambda: None

    def run(self, words: list[str]) -> tuple[int, str, str]:
        if words[0] == "systemctl" and words[1] == "show":
            if self.grow_restarts and self.calls:
                self.unit["NRestarts"] = str(int(self.unit["NRestarts"]) + 1)
            return 0, "\n".join(f"{k}={v}" for k, v in self.unit.items()), ""
        if words[0] == "systemctl":
            self.calls.append(" ".join(words[1:]))
            if words[1] == "restart":
                self.on_restart()
            if words[1] in ("start", "restart"):
                self.unit |= {"ActiveState": "active", "InvocationID": "two"} | self.after
            return 0, "", ""
        if words[0] == "journalctl":
            return 0, "\n".join(self.journal), ""
        assert words[:2] == ["/usr/local/bin/k3s", "kubectl"], words
        answer = self.api.get(words[-1])
        if answer is None:
            return 1, "", "NotFound"
        return 0, answer if isinstance(answer, str) else json.dumps(answer), ""


class Clock:
    """The module's view of time: waiting costs nothing."""

    localtime = staticmethod(time.localtime)
    strftime = staticmethod(time.strftime)

    def __init__(self) -> None:
        self.waited = 0.0

    def sleep(self, seconds: float) -> None:
        self.waited += seconds

    def monotonic(self) -> float:
        return self.waited

    def time(self) -> float:
        return time.time() + self.waited


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(AnsibleModule, "run_command", lambda self, words, **more: made.run(words))
    monkeypatch.setattr(k3s_service, "time", Clock())
    return made


@pytest.fixture
def service(run_module: Run, machine: Machine, tmp_path: Path) -> Run:
    """The module with one input that does not exist; `config.yaml` beside it is newer than this process."""
    path = tmp_path / "config.yaml"
    path.write_text("")
    usual = {"inputs": [str(tmp_path / "missing")], "node_name": "h1", "version": VERSION, "timeout_s": 1}

    def run(**more: Any) -> dict[str, Any]:
        return run_module(k3s_service.main, **(usual | more))

    return run


def test_what_runs_and_is_ready_is_left_alone(service: Run, machine: Machine) -> None:
    result = service()
    assert (result["changed"], result["action"]) == (False, "")
    assert machine.calls == []


def test_a_file_newer_than_the_process_restarts_it(service: Run, machine: Machine, tmp_path: Path) -> None:
    """A run that was broken off between writing and restarting is finished by the next one."""
    result = service(inputs=[str(tmp_path / "config.yaml")])
    assert (result["changed"], result["action"]) == (True, "restarted")
    assert machine.calls == ["restart --no-block k3s"]


def test_a_change_of_this_run_restarts_it_and_reloads_systemd(service: Run, machine: Machine) -> None:
    assert service(changed=True)["action"] == "restarted"
    assert machine.calls == ["daemon-reload", "restart --no-block k3s"]


def test_the_first_start(service: Run, machine: Machine) -> None:
    machine.unit |= {"ActiveState": "inactive", "MainPID": "0", "UnitFileState": "disabled", "NeedDaemonReload": "yes", "InvocationID": ""}
    assert service()["action"] == "started"
    assert machine.calls == ["daemon-reload", "enable k3s", "start --no-block k3s"], "a blocking start may never return"


def test_a_unit_that_failed_is_started_again(service: Run, machine: Machine) -> None:
    machine.unit |= {"ActiveState": "failed", "MainPID": "0"}
    assert service()["action"] == "started"
    assert machine.calls == ["reset-failed k3s", "start --no-block k3s"]


def test_a_disabled_unit_is_enabled_without_a_restart(service: Run, machine: Machine) -> None:
    machine.unit["UnitFileState"] = "disabled"
    assert service()["changed"] is True
    assert machine.calls == ["enable k3s"]


@pytest.mark.parametrize("state", ["active", "inactive"])
def test_check_mode_touches_nothing(service: Run, machine: Machine, state: str) -> None:
    machine.unit["ActiveState"] = state
    result = service(check=True, changed=True)
    assert result["changed"] is True
    assert machine.calls == []


def test_check_mode_says_what_is_missing_and_does_not_wait(service: Run, machine: Machine) -> None:
    """By this all servers are asked at once who of them has nothing to do (roles/k3s/tasks/settled.yml)."""
    told = service(check=True)
    assert (told["would_change"], told["missing"], told["action"]) == (False, "", "")
    machine.api["/api/v1/nodes/h1"] = node("False", message="cni plugin not initialized")
    began = time.monotonic()
    told = service(check=True, timeout_s=600)
    assert "cni plugin not initialized" in told["missing"] and not told["would_change"]
    machine.unit["ActiveState"] = "inactive"
    told = service(check=True, timeout_s=600)
    assert (told["would_change"], told["action"]) == (True, "started") and "inactive" in told["missing"]
    assert time.monotonic() - began < 60
    assert machine.calls == []


def test_a_unit_that_systemd_has_not_read_again_is_something_to_do(service: Run, machine: Machine) -> None:
    machine.unit["NeedDaemonReload"] = "yes"
    told = service(check=True)
    assert (told["changed"], told["would_change"]) == (False, True)


def test_active_of_the_old_run_is_not_taken_for_the_new_one(service: Run, machine: Machine) -> None:
    """Right after `restart --no-block` systemd still shows the old run as active."""
    machine.after = {"InvocationID": "one"}
    result = service(changed=True)
    assert result["failed"] is True
    assert "not begun again" in result["msg"]


@pytest.mark.parametrize(
    ("path", "answer", "says"),
    [
        ("/readyz", None, "the API is not ready"),
        ("/readyz", "[-]etcd failed", "the API is not ready"),
        ("/api/v1/nodes/h1", None, "has not registered"),
        ("/api/v1/nodes/h1", node("False", message="cni plugin not initialized"), "cni plugin not initialized"),
        ("/api/v1/nodes/h1", node(version="v1.36.3+k3s1"), "still reports v1.36.3+k3s1"),
        ("/apis/apps/v1/namespaces/kube-system/deployments/coredns", None, "CoreDNS has not been deployed"),
        ("/apis/apps/v1/namespaces/kube-system/deployments/coredns", {"kind": "Deployment", "status": {}}, "CoreDNS is not running"),
    ],
)
def test_what_is_missing_at_the_deadline_is_said(service: Run, machine: Machine, path: str, answer: Any, says: str) -> None:
    machine.api[path] = answer
    result = service()
    assert result["failed"] is True
    assert says in result["msg"]


def test_only_what_is_asked_for_is_waited_for(service: Run, machine: Machine) -> None:
    """Without a network plugin the node cannot be Ready, and no pod runs."""
    machine.api = {"/readyz": "ok"}
    assert service(wait_for=["api"])["changed"] is False


def test_a_unit_that_ends_again_and_again_is_given_up_early_with_its_cause(service: Run, machine: Machine) -> None:
    machine.unit |= {"ActiveState": "activating", "SubState": "auto-restart"}
    machine.after = {"ActiveState": "activating"}
    machine.grow_restarts = True
    machine.journal = ["starting", 'level=fatal msg="bootstrap data already found and encrypted with different token"']
    result = service(changed=True, timeout_s=600)
    assert result["failed"] is True
    assert "made with another token" in result["cause"]
    assert result["cause"] in result["msg"]
    assert "level=fatal" in result["msg"], "the last error of the log belongs to it"


def test_an_unknown_failure_shows_the_log_without_a_made_up_cause(service: Run, machine: Machine) -> None:
    machine.unit["ActiveState"] = "failed"
    machine.after = {"ActiveState": "failed"}
    machine.journal = ["something nobody has seen"]
    result = service()
    assert result["cause"] == ""
    assert "Cause:" not in result["msg"]
    assert "something nobody has seen" in result["msg"]


def test_no_token_of_the_log_is_shown(service: Run, machine: Machine) -> None:
    machine.unit["ActiveState"] = "failed"
    machine.after = {"ActiveState": "failed"}
    machine.journal = ["token K10" + "a" * 64 + "::server:s3cr3t refused", "args --token=s3cr3t"]
    assert "s3cr3t" not in json.dumps(service())


def test_the_start_of_a_process_is_known_to_a_hundredth_of_a_second() -> None:
    # Field 22 counts from the boot; the command may hold blanks and brackets.
    text = "42 (k3s (x) y) S " + " ".join(["0"] * 18) + " 5050 0 0"
    assert k3s_service.process_start(text, uptime_s=60.0, now=1000.0, ticks_per_s=100) == pytest.approx(990.5)


def test_this_process_began_in_the_past_and_not_long_ago() -> None:
    stat = Path("/proc/self/stat").read_text()
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    now = time.time()
    assert 0 <= now - k3s_service.process_start(stat, uptime, now, os.sysconf("SC_CLK_TCK")) < 3600


@pytest.mark.parametrize(("times", "stale"), [([], False), ([9.0, 9.99], False), ([9.0, 10.01], True)])
def test_stale(times: list[float], stale: bool) -> None:
    assert k3s_service.is_stale(times, 10.0) is stale


@pytest.mark.parametrize(
    ("days", "began_days_ago", "action"),
    [
        (200, 100, ""),
        (59, 200, "restarted"),
        (-10, 375, "restarted"),
        # k3s has started since, and has left it: another restart would do no more.
        (59, 0.5, ""),
    ],
    ids=["long", "ends soon", "has ended", "not renewed by k3s"],
)
def test_k3s_starts_anew_before_its_certificates_end(
    service: Run, machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, days: int, began_days_ago: float, action: str
) -> None:
    """It renews them when it starts, and only then: after a year nobody got in, and a rerun waited five minutes and failed."""
    path = tmp_path / "client-admin.crt"
    path.write_text(certificate(days))
    monkeypatch.setattr(k3s_service, "process_start", lambda *_given: time.time() - began_days_ago * 86400)
    result = service(certificates=[str(path), str(tmp_path / "missing.crt")])
    assert (result["action"], machine.calls) == (action, ["restart --no-block k3s"] if action else [])


def certificate(days: int) -> str:
    """A certificate that ends after so many days, in PEM."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "k3s")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    made = builder.not_valid_before(now - datetime.timedelta(days=400)).not_valid_after(now + datetime.timedelta(days=days, hours=1))
    return made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


# -- one of several servers -------------------------------------------------------------------------------------------

NODES = "/api/v1/nodes?labelSelector=node-role.kubernetes.io%2Fetcd%3Dtrue"


def member(name: str, ready: str = "True", voter: str = "True") -> dict[str, Any]:
    made = node(ready)
    made["metadata"] = {"name": name}
    made["status"]["conditions"].append({"type": "EtcdIsVoter", "status": voter, "message": "learner"})
    return made


def test_a_server_is_restarted_when_the_others_are_a_majority(service: Run, machine: Machine) -> None:
    machine.api[NODES] = {"items": [member("h1"), member("h2"), member("h3")]}
    assert service(changed=True, majority=True)["action"] == "restarted"


@pytest.mark.parametrize("sick", [member("h3", ready="Unknown"), member("h3", voter="False")])
def test_a_restart_that_would_cost_the_majority_is_refused(service: Run, machine: Machine, sick: dict[str, Any]) -> None:
    """Two of three at once: every write fails, and nobody can repair it by API (KA#485 #505)."""
    machine.api[NODES] = {"items": [member("h1"), member("h2"), sick]}
    result = service(changed=True, majority=True)
    assert result["failed"] is True
    assert "would leave 1 of 3 etcd members" in result["msg"] and "not healthy: h3" in result["msg"]
    assert not [call for call in machine.calls if call.startswith(("restart", "start"))], "nothing was restarted"


def test_a_server_that_is_no_help_may_be_restarted_any_time(service: Run, machine: Machine) -> None:
    machine.api[NODES] = {"items": [member("h1", ready="False"), member("h2"), member("h3", ready="False")]}
    assert service(changed=True, majority=True)["action"] == "restarted"


def test_without_an_api_there_is_no_majority_to_lose(service: Run, machine: Machine) -> None:
    assert service(changed=True, majority=True)["action"] == "restarted"


def test_the_next_server_waits_until_this_one_votes(service: Run, machine: Machine) -> None:
    machine.api["/api/v1/nodes/h1"] = member("h1", voter="False")
    result = service(wait_for=["api", "etcd", "node"])
    assert "not a voting member of etcd yet (learner)" in result["msg"]
    machine.api["/api/v1/nodes/h1"] = member("h1")
    assert service(wait_for=["api", "etcd", "node"])["changed"] is False


def test_servers_that_are_started_together_wait_for_nobody(service: Run, machine: Machine) -> None:
    machine.unit |= {"ActiveState": "inactive", "MainPID": "0"}
    machine.after = {"ActiveState": "activating"}
    machine.api.clear()
    result = service(wait=False)
    assert (result["changed"], result["action"], result["node"]) == (True, "started", {})


def test_an_agent_asks_with_its_kubelets_credentials(service: Run, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(_module: AnsibleModule, words: list[str], **_options: Any) -> tuple[int, str, str]:
        asked.append(words)
        return machine.run(words)

    monkeypatch.setattr(AnsibleModule, "run_command", run)
    assert service(wait_for=["node"], kubeconfig="/x/kubelet.kubeconfig")["changed"] is False
    kubectl = [words for words in asked if words[0] == "/usr/local/bin/k3s"]
    assert kubectl and all("--kubeconfig=/x/kubelet.kubeconfig" in words for words in kubectl)


def test_the_node_is_shown_as_far_as_the_role_looks_after_it(service: Run, machine: Machine) -> None:
    machine.api["/api/v1/nodes/h1"] |= {
        "metadata": {"name": "h1", "labels": {"a": "1"}, "annotations": {"hearth.homelab/labels": "a", "k3s.io/node-args": "x"}},
        "spec": {"taints": [{"key": "t", "effect": "NoSchedule"}], "podCIDR": "10.42.0.0/24"},
    }
    assert service()["node"] == {
        "metadata": {"name": "h1", "labels": {"a": "1"}, "annotations": {"hearth.homelab/labels": "a"}},
        "spec": {"taints": [{"key": "t", "effect": "NoSchedule"}], "unschedulable": False},
    }


def test_a_kubelet_whose_node_is_gone_is_restarted_once(service: Run, machine: Machine) -> None:
    """After a restore from an older snapshot the agent runs on, and nobody knows its node."""
    known = machine.api.pop("/api/v1/nodes/h1")
    machine.on_restart = lambda: machine.api.update({"/api/v1/nodes/h1": known})
    result = service(wait_for=["node"], timeout_s=60)
    assert (result["changed"], result["action"]) == (True, "restarted")
    assert [call for call in machine.calls if call.startswith("restart")] == ["restart --no-block k3s"]
