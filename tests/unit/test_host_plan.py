"""What the host role does, and what it remembers to undo it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.homelab.hearth.plugins.module_utils import _host, _plan
from ansible_collections.homelab.hearth.plugins.modules import host_kernel

from tests.unit.test_playbooks import ROOT, ansible

Run = Callable[..., dict[str, Any]]

SURVEY: dict[str, Any] = {
    "system": {"reboot_pending": False},
    "packages": {"installed": {"ca-certificates": "1"}},
    "kernel": {
        "modules": {"overlay": "builtin", "br_netfilter": "available", "nf_conntrack": "loaded"},
        "sysctl": {"vm.overcommit_memory": "0", "kernel.panic": "10", "net.bridge.bridge-nf-call-iptables": None},
    },
    "services": {"iscsid.service": {"exists": True, "active": False, "enabled": False}},
    "paths": {"content": {"/var/lib/containers": "missing", "/var/lib/kubelet": "empty"}},
    "state": {},
}
WANTS: dict[str, Any] = {
    "packages": ["ca-certificates", "buildah"],
    "modules": ["overlay", "br_netfilter", "nf_conntrack"],
    "sysctl": {"vm.overcommit_memory": 1, "kernel.panic": 10, "net.bridge.bridge-nf-call-iptables": 1},
}


def survey(**changes: Any) -> dict[str, Any]:
    found = copy.deepcopy(SURVEY)
    for path, value in changes.items():
        part, _, key = path.partition("__")
        found[part] = value if not key else {**found[part], key: value}
    return found


def test_only_what_is_missing_is_done() -> None:
    plan = _plan.host_plan(SURVEY, **WANTS)
    assert plan["missing_packages"] == ["buildah"]
    assert plan["load_modules"] == ["br_netfilter"], "what is built in or loaded is left alone"
    assert plan["set_sysctl"] == {"vm.overcommit_memory": "1", "net.bridge.bridge-nf-call-iptables": "1"}
    assert plan["reboot_needed"] is False


def test_what_was_before_is_remembered() -> None:
    state = _plan.host_plan(SURVEY, **WANTS)["state"]
    assert state["packages"] == ["buildah"]
    assert state["modules"] == ["br_netfilter"]
    assert state["sysctl"] == {"vm.overcommit_memory": "0", "net.bridge.bridge-nf-call-iptables": None}
    assert state["paths"] == {"/var/lib/containers": "missing", "/var/lib/kubelet": "empty"}
    assert state["services"] == {"iscsid.service": {"active": False, "enabled": False}}


def test_a_later_run_does_not_forget_what_the_first_one_found() -> None:
    state = _plan.host_plan(SURVEY, **WANTS)["state"]
    after = survey(
        packages__installed={"ca-certificates": "1", "buildah": "1"},
        kernel={
            "modules": {"overlay": "builtin", "br_netfilter": "loaded", "nf_conntrack": "loaded"},
            "sysctl": {"vm.overcommit_memory": "1", "kernel.panic": "10", "net.bridge.bridge-nf-call-iptables": "1"},
        },
        paths={"content": {"/var/lib/containers": "used", "/var/lib/kubelet": "used"}},
        services={"iscsid.service": {"exists": True, "active": True, "enabled": True}},
        state=state,
    )
    plan = _plan.host_plan(after, **WANTS)
    assert plan["state"] == state
    assert (plan["missing_packages"], plan["load_modules"], plan["set_sysctl"]) == ([], [], {})


def test_a_setting_that_drifted_is_set_again_and_its_first_value_kept() -> None:
    state = _plan.host_plan(SURVEY, **WANTS)["state"]
    drifted = survey(state=state, kernel__sysctl={**SURVEY["kernel"]["sysctl"], "vm.overcommit_memory": "2"})
    plan = _plan.host_plan(drifted, **WANTS)
    assert plan["set_sysctl"]["vm.overcommit_memory"] == "1"
    assert plan["state"]["sysctl"]["vm.overcommit_memory"] == "0"


@pytest.mark.parametrize(("pending", "needed"), [(True, True), (False, False)])
def test_a_reboot_is_needed_only_when_the_running_kernel_lost_its_modules(pending: bool, needed: bool) -> None:
    modules = {**SURVEY["kernel"]["modules"], "br_netfilter": "absent"}
    plan = _plan.host_plan(survey(system={"reboot_pending": pending}, kernel__modules=modules), **WANTS)
    assert plan["blocked_modules"] == ["br_netfilter"]
    assert plan["reboot_needed"] is needed


def test_a_replaced_kernel_alone_is_no_reason_to_reboot() -> None:
    assert _plan.host_plan(survey(system={"reboot_pending": True}), **WANTS)["reboot_needed"] is False


def test_dependencies_are_remembered_too() -> None:
    state = _plan.with_packages({"packages": ["buildah"], "modules": []}, ["libc6"], ["libc6", "buildah", "uidmap"])
    assert state == {"packages": ["buildah", "uidmap"], "modules": []}


# -- the module host_kernel ---------------------------------------------------------------------------------------


@pytest.fixture
def proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(_host, "sysctl_path", lambda key: str(tmp_path / key))
    (tmp_path / "vm.overcommit_memory").write_text("0\n")
    (tmp_path / "net.ipv4.tcp_rmem").write_text("4096\t131072\t6291456\n")
    return tmp_path


def test_a_setting_is_written_once(run_module: Run, proc: Path) -> None:
    wanted = {"vm.overcommit_memory": "1", "net.ipv4.tcp_rmem": "4096 131072 6291456"}
    first = run_module(host_kernel.main, sysctl=wanted)
    assert first["settings"] == {"vm.overcommit_memory": "0"}, "a value that differs in blanks only is equal"
    assert (proc / "vm.overcommit_memory").read_text() == "1"
    assert run_module(host_kernel.main, sysctl=wanted)["changed"] is False


def test_check_mode_leaves_the_kernel_alone(run_module: Run, proc: Path) -> None:
    assert run_module(host_kernel.main, check=True, sysctl={"vm.overcommit_memory": "1"})["changed"] is True
    assert (proc / "vm.overcommit_memory").read_text() == "0\n"


def test_a_refused_setting_is_named(run_module: Run, proc: Path) -> None:
    (proc / "folder").mkdir()
    result = run_module(host_kernel.main, sysctl={"folder": "1"})
    assert result["failed"] is True
    assert "the kernel refuses folder = 1" in result["msg"]


# -- one look for several roles -------------------------------------------------------------------------------------

ASKED: dict[str, Any] = {
    "gather": ["system", "clock", "packages", "services", "paths", "k3s"],
    "packages": ["buildah", "git"], "services": ["a.service", "b.service"], "paths": ["/x", "/y"], "globs": ["/i/*.tar"],
    "data_dir": "/data", "hash_binary": True,
}  # fmt: skip
EARLIER: dict[str, Any] = {
    "asked": ASKED,
    "looked_at": 1000.0,
    "survey": {
        "system": {"hostname": "h1"},
        "clock": {"epoch": 1000.0},
        "packages": {"installed": {"git": "1"}, "interrupted": False, "removable": []},
        "services": {"a.service": {"active": True}, "b.service": {"active": False}},
        "paths": {"content": {"/x": "used", "/y": "missing"}, "disks": {}, "globs": {"/i/*.tar": ["/i/1.tar"]}},
        "k3s": {"sha256": "0" * 64},
    },
}


def test_an_earlier_look_answers_what_it_was_asked_and_nothing_else() -> None:
    asked = {"gather": ["system", "packages", "services", "paths"], "packages": ["git"], "services": ["b.service"], "paths": ["/y"]}
    assert _plan.known_already(EARLIER, asked, 1010) == {
        "system": {"hostname": "h1"},
        "packages": {"installed": {"git": "1"}, "interrupted": False, "removable": []},
        "services": {"b.service": {"active": False}},
        "paths": {"content": {"/y": "missing"}, "disks": {}, "globs": {}},
    }
    assert EARLIER["survey"]["services"].keys() == {"a.service", "b.service"}, "the earlier look itself stays whole"


@pytest.mark.parametrize(
    ("asked", "now"),
    [
        ({"gather": ["system"]}, 1061),
        ({"gather": ["system"]}, 999),
        ({"gather": []}, 1010),
        ({}, 1010),
        ({"gather": ["system", "state"]}, 1010),
        ({"gather": ["clock"]}, 1010),
        ({"gather": ["packages"], "packages": ["nfs-common"]}, 1010),
        ({"gather": ["packages"], "list_packages": True}, 1010),
        ({"gather": ["paths"], "paths": ["/z"]}, 1010),
        ({"gather": ["paths"], "globs": ["/j/*"]}, 1010),
        ({"gather": ["k3s"], "data_dir": "/other"}, 1010),
        ({"gather": ["k3s"], "data_dir": "/data", "token": "given-0123456789ab"}, 1010),
        ({"gather": ["k3s"], "data_dir": "/data", "probe": {"version": "v1", "urls": {}}}, 1010),
    ],
)
def test_an_earlier_look_that_does_not_answer_all_is_none(asked: dict[str, Any], now: float) -> None:
    assert _plan.known_already(EARLIER, asked, now) is None


@pytest.mark.parametrize("earlier", [{}, {"survey": {}}, {"survey": EARLIER["survey"], "looked_at": 1000.0}])
def test_half_an_earlier_look_is_none(earlier: dict[str, Any]) -> None:
    assert _plan.known_already(earlier, {"gather": ["system"]}, 1010) is None


def test_an_earlier_look_with_a_hash_answers_one_who_wants_it() -> None:
    asked = {"gather": ["k3s"], "data_dir": "/data", "hash_binary": True}
    assert _plan.known_already(EARLIER, asked, 1010) == {"k3s": {"sha256": "0" * 64}}
    without = {**EARLIER, "asked": {**ASKED, "hash_binary": False}}
    assert _plan.known_already(without, asked, 1010) is None


WITH_THE_ROLE = """
- hosts: localhost
  connection: local
  gather_facts: false
  vars_files: [{role}/defaults/main.yml, {role}/vars/main.yml]
  tasks:
"""
BACK = WITH_THE_ROLE + """    - ansible.builtin.debug: {{msg: "alone={{{{ _host_is_back }}}}."}}
    - ansible.builtin.debug: {{msg: "{{{{ item.kind }}}}-{{{{ item.active }}}}={{{{ _host_is_back }}}}."}}
      vars: {{_preflight_survey: {{survey: {{k3s: "{{{{ item }}}}"}}}}}}
      loop: [{{kind: server, active: true}}, {{kind: server, active: false}}, {{kind: agent, active: true}}, {{kind: "", active: false}}]
"""


def test_servers_reboot_one_after_another_and_each_is_back_when_its_cluster_is(tmp_path: Path) -> None:
    role = ROOT / "roles" / "host"
    [reboot] = [task for task in yaml.safe_load((role / "tasks" / "_reboot.yml").read_text()) if "ansible.builtin.reboot" in task]
    assert reboot["throttle"] == 1
    assert reboot["ansible.builtin.reboot"]["test_command"] == "{{ _host_is_back }}"
    playbook = tmp_path / "play.yml"
    playbook.write_text(BACK.format(role=role))
    code, said = ansible(str(playbook))
    assert code == 0, said
    for says in ("alone=whoami.", "server-True=/usr/local/bin/k3s kubectl get --raw /readyz.", "server-False=whoami.",
                 "agent-True=systemctl is-active k3s-agent.", "-False=whoami."):  # fmt: skip
        assert says in said, said


SWITCHES = WITH_THE_ROLE + """    - ansible.builtin.debug:
        msg: "refused={{{{ {refused} }}}} packages={{{{ _host_packages | join('+') }}}}"
"""


def test_a_switch_that_is_set_off_on_the_command_line_is_off(tmp_path: Path) -> None:
    """`-e host_reboot_enabled=false` is text, and text that is not empty counts as true: the host was rebooted."""
    role = ROOT / "roles" / "host"
    [stop] = [task for task in yaml.safe_load((role / "tasks" / "_reboot.yml").read_text()) if "ansible.builtin.fail" in task]
    playbook = tmp_path / "play.yml"
    playbook.write_text(SWITCHES.format(role=role, refused=stop["when"]))
    off = [f"-e{name}=false" for name in ("host_reboot_enabled", "host_image_build_enabled", "host_iscsi_enabled", "host_nfs_enabled")]
    code, said = ansible(str(playbook), *off)
    assert code == 0, said
    assert "refused=True packages=ca-certificates+python3-apt" in said, said
    assert "buildah" not in said
