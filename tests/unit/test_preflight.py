"""Every sentence that preflight can say: what is wrong, on which host, and what to do about it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from ansible_collections.homelab.hearth.plugins.filter import preflight as filters
from ansible_collections.homelab.hearth.plugins.module_utils import _preflight, _renamed

SURVEY: dict[str, Any] = {
    "system": {
        "hostname": "h1",
        "machine": "x86_64",
        "architecture": "amd64",
        "cores": 4,
        "memory_mb": 16000,
        "swap_mb": 0,
        "kernel": "6.1.0-42-amd64",
        "os": {"id": "debian", "version": "12", "name": "Debian GNU/Linux 12 (bookworm)"},
        "systemd": True,
        "reboot_pending": False,
        "cgroups": {"version": 2, "controllers": ["cpu", "memory", "pids"]},
        "python": {"executable": "/usr/bin/python3", "version": [3, 11, 2], "venv": True},
    },
    "clock": {"skew_s": [-0.3, 0.4], "synchronised": True},
    "network": {
        "routes": [
            {"destination": "0.0.0.0/0", "gateway": "192.168.1.1", "interface": "eth0"},
            {"destination": "192.168.1.0/24", "gateway": "0.0.0.0", "interface": "eth0"},
        ],
        "default_route": {"destination": "0.0.0.0/0", "gateway": "192.168.1.1", "interface": "eth0"},
        "ports": [{"port": 6443, "protocol": "tcp", "free": True, "ours": False}],
        "firewalls": [],
    },
    "kernel": {"modules": {"overlay": "builtin", "br_netfilter": "available", "odd": "unknown"}, "sysctl": {}},
    "paths": {"disks": {"/var/lib/rancher/k3s": {"mount": "/", "filesystem": "ext4", "free_mb": 90000, "total_mb": 200000}}},
    "k3s": {
        "version": "",
        "units": [],
        "kind": "",
        "active": False,
        "datastore": "",
        "joined": False,
        "ca_sha256": "",
        "config": {},
        "token_matches": None,
        "download": None,
        "dropins": [],
    },
}
WANT: dict[str, Any] = {
    "part": "k3s",
    "supported_os": [{"id": "debian", "version": "12"}, {"id": "ubuntu", "version": "24.04"}],
    "architectures": ["amd64", "arm64"],
    "systemd": True,
    "default_route": True,
    "clock": True,
    "hostname": True,
    "memory_mb": 1900,
    "cores": 2,
    "cgroups": ["pids", "memory"],
    "modules": ["overlay", "br_netfilter", "odd"],
    "disks": [
        {"path": "/var/lib/rancher/k3s", "free_mb": 4000, "why": "images and volumes", "mount": ""},
        {"path": "/data/k3s", "free_mb": 4000, "why": "images and volumes", "mount": "/data"},
    ],
    "ports": [{"port": 6443, "why": "the Kubernetes API", "owners": ["k3s.service"]}],
    "networks": [{"cidr": "10.42.0.0/16", "why": "the pods' network", "fix": "k3s_config: {cluster-cidr: …}"}],
    "k3s": {"version": "v1.36.4+k3s1", "kind": "server"},
    "pins": [{"name": "k3s", "kind": "file", "version": "v1.36.4+k3s1"}],
}


def look_up(name: str, kind: str, version: str, arch: str) -> dict[str, Any]:
    return {"problem": "" if version == "v1.36.4+k3s1" else "no checksum is known", "listed": version != "v8"}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The good survey with one value replaced; the path's parts are joined by dots."""
    survey = copy.deepcopy(SURVEY)
    *folders, last = path.split(".")
    inner = survey
    for folder in folders:
        inner = inner[folder]
    inner[last] = value
    return survey


def problems(survey: dict[str, Any], want: dict[str, Any] | None = None, **more: Any) -> list[dict[str, str]]:
    return list(_preflight.host_problems("h1", survey, [want or WANT], look_up=look_up, **more))


def test_a_good_host_has_no_problem() -> None:
    assert problems(SURVEY) == []


FAULTS: list[tuple[str, Any, str, str]] = [
    ("system.os", {"id": "fedora", "version": "43", "name": "Fedora Linux 43"}, "Linux 43 is not supported", "Debian 12, Ubuntu 24.04"),
    ("system.os", {"id": "debian", "version": "11", "name": "Debian GNU/Linux 11"}, "is too old", "Debian 12 or newer"),
    ("system.os", {"id": "ubuntu", "version": "22.04", "name": "Ubuntu 22.04"}, "is too old", "Ubuntu 24.04 or newer"),
    ("system.os", {"id": "", "version": "", "name": ""}, "this system is not supported", "use one of"),
    ("system.architecture", "riscv64", "the processor is x86_64", "amd64 or arm64"),
    ("system.systemd", False, "systemd does not run", "booted by systemd"),
    ("system.memory_mb", 900, "900 MB of memory, 1900 MB are needed (k3s 1900)", "add memory"),
    ("system.cores", 1, "1 processor cores, k3s needs 2", "larger machine"),
    ("system.cgroups", {"version": 1, "controllers": ["cpu", "pids"]}, "without the cgroup controllers memory", "cgroup_enable=memory"),
    ("clock.skew_s", [599.0, 601.0], "599 s ahead of", "timedatectl set-ntp true"),
    ("clock.skew_s", [-12.0, -9.5], "10 s behind", "timedatectl set-ntp true"),
    ("network.default_route", None, "no default route", "ip route add default"),
    (
        "network.ports",
        [{"port": 6443, "protocol": "tcp", "free": False, "ours": False, "process": "nginx", "unit": "nginx.service"}],
        "port 6443 (the Kubernetes API) is held by nginx (nginx.service)",
        "systemctl disable --now nginx.service",
    ),
    (
        "network.ports",
        [{"port": 6443, "protocol": "tcp", "free": False, "ours": False, "process": "", "unit": ""}],
        "is held by another program",
        "stop that program",
    ),
    (
        "network.ports",
        [{"port": 6443, "protocol": "tcp", "free": False, "ours": False, "process": "python3", "unit": "ssh.service"}],
        "is held by python3",
        "stop that program",
    ),
    ("network.routes", [{"destination": "10.42.1.0/24", "interface": "tun0"}], "overlaps 10.42.0.0/16", "cluster-cidr"),
    ("network.routes", [{"destination": "10.0.0.0/8", "interface": "wg0"}], "10.0.0.0/8 on wg0 overlaps", "remove that route"),
    ("paths.disks", {"/var/lib/rancher/k3s": {"mount": "/", "free_mb": 100}}, "100 MB of free space under", "free space on /"),
    (
        "paths.disks",
        {"/data/k3s": {"mount": "/", "free_mb": 90000}},
        "nothing is mounted at /data: /data/k3s would lie on the disk of /",
        "/etc/fstab",
    ),
    ("kernel.modules", {"overlay": "absent", "br_netfilter": "absent"}, "has no overlay, br_netfilter", "linux-image-amd64"),
    ("k3s.kind", "agent", "runs a k3s agent, the inventory makes it a server", "playbooks/reset.yml"),
    ("k3s.version", "v1.36.4+k3s2", "v1.36.4+k3s1 is older", "cannot go back"),
    ("k3s.version", "v1.34.1+k3s1", "more than one minor version", "first a v1.35 release"),
    ("k3s.token_matches", False, "not the token this cluster was made with", "k3s token rotate"),
    (
        "k3s.download",
        {"url": "https://github.com/x", "ok": False, "seconds": 0.1, "error": "Name or service not known"},
        "https://github.com/x cannot be had: Name or service not known",
        "k3s_airgap_dir",
    ),
]


@pytest.mark.parametrize(("path", "value", "says", "fix"), FAULTS, ids=[f"{p} {v}"[:60] for p, v, _s, _f in FAULTS])
def test_a_fault_is_named_with_its_fix(path: str, value: Any, says: str, fix: str) -> None:
    found = problems(changed(path, value))
    assert len(found) == 1, found
    assert says in found[0]["problem"]
    assert fix in found[0]["fix"]
    assert found[0]["host"] == "h1"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("system.os", {"id": "debian", "version": "13", "name": "Debian 13"}),
        ("clock.skew_s", [-30.0, 30.0]),
        ("clock.skew_s", [1.5, 1.9]),
        ("network.ports", [{"port": 6443, "protocol": "tcp", "free": False, "ours": True, "process": "k3s-server", "unit": "k3s.service"}]),
        ("network.routes", [{"destination": "10.41.0.0/16", "gateway": "0.0.0.0", "interface": "tun0"}]),
        ("k3s.version", "v1.36.4+k3s1"),
        ("k3s.version", "v1.36.3+k3s2"),
        ("k3s.version", "v1.35.9+k3s1"),
        ("k3s.download", {"url": "https://github.com/x", "ok": True, "seconds": 0.1, "error": ""}),
        ("k3s.token_matches", True),
    ],
)
def test_what_is_no_fault(path: str, value: Any) -> None:
    assert problems(changed(path, value)) == []


def test_routes_of_a_k3s_that_runs_here_are_its_own() -> None:
    survey = changed("network.routes", [{"destination": "10.42.0.0/24", "gateway": "0.0.0.0", "interface": "cni0"}])
    survey["k3s"]["units"] = ["k3s"]
    assert problems(survey) == []


def test_modules_gone_with_a_replaced_kernel_ask_for_a_reboot() -> None:
    survey = changed("kernel.modules", {"overlay": "absent"})
    survey["system"]["reboot_pending"] = True
    [found] = problems(survey)
    assert "it was replaced" in found["problem"]
    assert "host_reboot_enabled" in found["fix"]


def test_an_unresolved_pin_is_refused_with_both_ways_out() -> None:
    want = {**WANT, "pins": [{"name": "k3s", "kind": "file", "version": "v9", "or_else": ", or give k3s_sha256"}]}
    [found] = problems(SURVEY, want)
    assert "k3s v9 for amd64 is not pinned" in found["problem"]
    for word in ("make resolve-pins", "hearth_allow_unpinned: true", "k3s_sha256"):
        assert word in found["fix"]
    assert "add=" not in found["fix"]
    assert problems(SURVEY, want, unpinned_allowed=True) == []


def test_a_version_the_lock_does_not_list_is_to_be_added() -> None:
    [found] = problems(SURVEY, {**WANT, "pins": [{"name": "k3s", "kind": "file", "version": "v8"}]})
    assert "make resolve-pins add=k3s@v8" in found["fix"]


def test_a_given_checksum_needs_no_pin() -> None:
    want = {**WANT, "pins": [{"name": "k3s", "kind": "file", "version": "v9", "given": {"amd64": "a" * 64}}]}
    assert problems(SURVEY, want) == []
    other = {**WANT, "pins": [{"name": "k3s", "kind": "file", "version": "v9", "given": {"arm64": "a" * 64}}]}
    assert len(problems(SURVEY, other)) == 1


def test_what_a_role_refuses_is_said_too() -> None:
    want = {"part": "k3s", "refused": [{"problem": "flanel-backend: no setting", "fix": "correct it"}]}
    assert problems(SURVEY, want) == [{"host": "h1", "problem": "flanel-backend: no setting", "fix": "correct it"}]


def test_two_roles_with_the_same_wish_make_one_problem() -> None:
    survey = changed("network.default_route", None)
    want = {"part": "x", "default_route": True}
    assert len(_preflight.host_problems("h1", survey, [want, {**want, "part": "y"}], look_up=look_up)) == 1


def test_memory_of_the_enabled_parts_is_added_up() -> None:
    wants = [{"part": "k3s", "memory_mb": 1600}, {"part": "the gateway", "memory_mb": 256}]
    [found] = _preflight.host_problems("h1", changed("system.memory_mb", 1700), wants, look_up=look_up)
    assert found["problem"] == "1700 MB of memory, 1856 MB are needed (k3s 1600, the gateway 256)"
    assert _preflight.host_problems("h1", changed("system.memory_mb", 1900), wants, look_up=look_up) == []


def test_all_problems_are_listed_at_once() -> None:
    survey = changed("system.memory_mb", 100)
    survey["system"]["cores"] = 1
    survey["network"]["default_route"] = None
    assert len(problems(survey)) == 3


@pytest.mark.parametrize(
    ("version", "venv", "says"),
    [([3, 9, 2], True, "is Python 3.9.2"), ([3, 11, 2], False, "cannot make virtual environments")],
)
def test_the_trials_interpreter(version: list[int], venv: bool, says: str) -> None:
    survey = changed("system.python", {"executable": "/usr/bin/python3", "version": version, "venv": venv})
    [found] = problems(survey, {"part": "the gateway", "python": {"version": [3, 11], "venv": True}})
    assert says in found["problem"]
    assert found["fix"]


def test_a_port_of_the_trial_comes_with_its_own_fix() -> None:
    survey = changed("network.ports", [{"port": 8080, "protocol": "tcp", "free": False, "ours": False, "process": "java", "unit": ""}])
    want = {"part": "the gateway", "ports": [{"port": 8080, "why": "the chat page", "fix": "choose another: -e gateway_process_port=8081"}]}
    [found] = problems(survey, want)
    assert found["problem"] == "port 8080 (the chat page) is held by java"
    assert found["fix"] == "choose another: -e gateway_process_port=8081"


# -- several hosts ------------------------------------------------------------------------------------------------


def test_host_names() -> None:
    found = _preflight.name_problems({"one": "h1", "two": "h1", "three": "localhost", "four": "under_score", "five": "fine-5", "six": ""})
    by_host = {p["host"]: p["problem"] for p in found}
    assert set(by_host) == {"one", "two", "three", "four", "six"}
    assert "also that of two" in by_host["one"]
    assert "cannot be the name" in by_host["three"]


KNOWN = ["k3s_version", "host_sysctl", "gateway_models", "preflight_roles"]


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("k3s_versoin", "did you mean k3s_version?"),
        ("host_sysctls", "did you mean host_sysctl?"),
        ("gateway_xyz", "docs/variables.md"),
        ("hearth_allow_unpined", "did you mean hearth_allow_unpinned?"),
    ],
)
def test_a_misspelt_variable_is_named_with_the_nearest_one(name: str, fix: str) -> None:
    [found] = _preflight.variable_problems("h1", [name, "k3s_version"], KNOWN)
    assert name in found["problem"]
    assert fix in found["fix"]


def test_variables_of_others_are_left_alone() -> None:
    others = ["ansible_host", "hostvars", "group_names", "my_k3s_thing", "_k3s_wants", "host_key_checking"]
    assert _preflight.variable_problems("h1", [*others, "hearth_allow_unpinned", "k3s_version"], KNOWN) == []


def test_the_roles_own_variables_are_known() -> None:
    known = filters.known_variables()
    assert {"k3s_version", "host_sysctl", "preflight_roles"} <= known


@pytest.mark.parametrize(("name", "new"), sorted(_renamed.RENAMED.items()))
def test_a_variable_of_another_name_is_refused_with_its_new_one(name: str, new: str) -> None:
    [found] = _preflight.variable_problems("h1", [name], filters.known_variables())
    assert name in found["problem"]
    assert found["fix"] == f"use {new}"


def test_new_names_are_variables_that_exist() -> None:
    known = filters.known_variables()
    for old, new in _renamed.RENAMED.items():
        assert old not in known, f"{old} is a variable of ours and stands in the table of old names"
        first = new.split()[0].rstrip(":")
        assert first in known or first in ("nothing", "the"), new


def test_the_inventory_is_judged_before_any_host_is_asked() -> None:
    hosts = [
        {"inventory_hostname": "one", "ansible_host": "CHANGE-ME", "k3s_versoin": "v1"},
        {"inventory_hostname": "two", "ansible_host": "192.0.2.7", "k3s_versoin": "v1"},
    ]
    found = filters.inventory_problems(hosts, ["one", "two"], [])
    words = ["2 servers", "no variable k3s_versoin", "ansible_host was not filled in"]
    assert len(found) == len(words), found
    for problem, word in zip(found, words, strict=True):
        assert word in problem["problem"]


class Broken(dict[str, Any]):
    """Variables of which one refers to another that nobody gave."""

    def __getitem__(self, name: str) -> Any:
        if name == "k3s_token":
            raise KeyError("'vault_k3s_token' is undefined")
        return super().__getitem__(name)


def test_a_value_that_cannot_be_worked_out_is_named() -> None:
    [found] = filters.inventory_problems([Broken(inventory_hostname="one", k3s_token="{{ vault_k3s_token }}")], ["one"])
    assert "k3s_token cannot be worked out" in found["problem"] and "vault_k3s_token" in found["problem"]
    assert "vault.yml" in found["fix"]


@pytest.mark.parametrize(
    ("clocks", "hosts"),
    [
        ({"one": [-0.1, 0.1], "two": [0.0, 0.2]}, []),
        ({"one": [-1.9, -1.8], "two": [1.7, 1.9]}, ["two"]),
        ({"one": [-1.9, 5.0], "two": [1.7, 1.9]}, []),
        ({"one": [1.8, 1.9], "two": [-1.9, -1.8], "three": [1.0, 1.9]}, ["two"]),
    ],
)
def test_clocks_of_hosts_are_compared_with_each_other(clocks: dict[str, list[float]], hosts: list[str]) -> None:
    found = _preflight.skew_problems(clocks)
    assert [p["host"] for p in found] == hosts
    for problem in found:
        assert "timedatectl" in problem["fix"]


def several(**surveys: dict[str, Any]) -> list[dict[str, Any]]:
    return [variables(name, {**survey, "system": {**survey["system"], "hostname": name}}) for name, survey in surveys.items()]


def test_hosts_of_different_clusters_are_told_apart() -> None:
    hosts = several(one=changed("k3s.ca_sha256", "a"), two=changed("k3s.ca_sha256", "b"), three=changed("k3s.ca_sha256", "a"))
    [found] = filters.preflight_problems(hosts, servers=["one"], agents=["two", "three"])
    assert found["host"] == "two"
    assert "another cluster than one, three" in found["problem"]


def test_a_setting_that_cannot_change_is_refused_from_what_lies_on_the_host() -> None:
    [host] = several(one=changed("k3s.config", {"token-file": "x", "flannel-backend": "none", "secrets-encryption": False}))
    host["_k3s_wants"] = {**WANT, "k3s": {**WANT["k3s"], "config": {"secrets-encryption": True}}}
    found = filters.preflight_problems([host], servers=["one"])
    assert {p["problem"].split()[0] for p in found} == {"flannel-backend", "secrets-encryption"}


def test_servers_must_agree() -> None:
    hosts = several(one=SURVEY, two=SURVEY, three=SURVEY)
    hosts[1]["_k3s_wants"] = {**WANT, "k3s": {**WANT["k3s"], "config": {"service-cidr": "10.99.0.0/16"}}}
    hosts[2]["k3s_token"] = "another-0123456789"
    found = filters.preflight_problems(hosts, servers=["one", "two", "three"])
    assert [p["host"] for p in found] == ["two", "three"]
    assert "service-cidr is 10.99.0.0/16 here and 10.43.0.0/16 on one" in found[0]["problem"]
    assert "another-0123456789" not in str(found)


def test_a_server_without_the_others_does_not_found_a_second_cluster() -> None:
    [found] = filters.preflight_problems(several(one=SURVEY), servers=["one", "two", "three"])
    assert "two, three were not looked at" in found["problem"]
    assert found["fix"] == "run it without --limit"


def variables(name: str, survey: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"inventory_hostname": name, "_preflight_survey": {"survey": survey}, "_k3s_wants": WANT, **more}


def test_all_hosts_are_judged_in_one_pass() -> None:
    small = changed("system.memory_mb", 100)
    found = filters.preflight_problems(
        [variables("one", SURVEY), variables("two", small)], servers=["one"], agents=["two"], unreachable=["three"]
    )
    assert [p["host"] for p in found] == ["three", "two", "one", "two"]
    words = ["does not answer", "100 MB of memory", "also that of two", "also that of one"]
    for problem, word in zip(found, words, strict=True):
        assert word in problem["problem"]


def test_a_node_name_of_its_own_settles_two_equal_host_names() -> None:
    found = filters.preflight_problems([variables("one", SURVEY), variables("two", SURVEY, k3s_node_name="h2")], servers=["one"])
    assert found == []


def test_notes_stop_nothing_and_are_told() -> None:
    survey = changed("system.swap_mb", 2000)
    survey["clock"]["synchronised"] = False
    survey["network"]["firewalls"] = ["ufw"]
    survey["k3s"]["dropins"] = ["/etc/rancher/k3s/config.yaml.d/mine.yaml"]
    notes = filters.preflight_notes([variables("one", survey)])
    assert len(notes) == 4
    assert all(n.startswith("one: ") for n in notes)
    assert problems(survey) == []
    assert filters.preflight_notes([{**variables("one", survey), "_k3s_wants": {"part": "trial"}}]) == []


def test_the_report_reads_well() -> None:
    text = filters.preflight_report(
        [
            {"host": "h1", "problem": "900 MB of memory, k3s needs 1900 MB", "fix": "add memory"},
            {"host": "h1", "problem": "https://example.org/k3s cannot be had: 404", "fix": "did you mean another?"},
            {"host": "h2", "problem": "there is no default route", "fix": "add one"},
        ]
    )
    assert text == (
        "3 problems to solve first. Nothing has been changed.\n"
        "\n"
        "h1:\n"
        "  * 900 MB of memory, k3s needs 1900 MB.\n"
        "    Fix: add memory.\n"
        "  * https://example.org/k3s cannot be had: 404.\n"
        "    Fix: did you mean another?\n"
        "\n"
        "h2:\n"
        "  * There is no default route.\n"
        "    Fix: add one."
    )


def test_long_lines_wrap_and_addresses_stay_whole() -> None:
    url = "https://github.com/k3s-io/k3s/releases/download/v1.36.4%2Bk3s1/k3s-airgap-images-amd64.tar.zst-and-so-on"
    text = _preflight.report([{"host": "h", "problem": f"the file at {url} cannot be had", "fix": "word " * 40}])
    assert url in text
    assert text.startswith("1 problem to")
    assert all(len(line) <= 110 for line in text.splitlines() if url not in line)
