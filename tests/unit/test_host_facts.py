"""Parsers of what a Linux host says about itself, on text as other machines write it."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.homelab.hearth.plugins.module_utils import _host

OS_RELEASE = """\
PRETTY_NAME="Ubuntu 24.04.3 LTS"
NAME="Ubuntu"
VERSION_ID="24.04"
VERSION_CODENAME=noble
ID=ubuntu
ID_LIKE=debian
# a comment with ID=nothing
"""

TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:192B 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1
   1: 0100007F:1F90 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 222 1
"""

ROUTES = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
tun0\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0
"""


def test_os_release() -> None:
    found = _host.parse_os_release(OS_RELEASE)
    assert (found["id"], found["version"], found["codename"], found["id_like"]) == ("ubuntu", "24.04", "noble", ["debian"])
    assert _host.parse_os_release("")["id"] == ""


@pytest.mark.parametrize(("machine", "arch"), [("x86_64", "amd64"), ("aarch64", "arm64"), ("riscv64", "riscv64")])
def test_architecture(machine: str, arch: str) -> None:
    assert _host.architecture(machine) == arch


def test_meminfo_in_mebibytes() -> None:
    assert _host.parse_meminfo("MemTotal:       16303428 kB\nSwapTotal:       999420 kB\n") == {"memory_mb": 15921, "swap_mb": 975}


def test_only_listening_sockets_count() -> None:
    assert _host.parse_listeners(TCP, "tcp") == [{"port": 6443, "protocol": "tcp", "inode": "111"}]


def test_a_udp_socket_with_a_peer_is_no_listener() -> None:
    text = TCP.replace("0A ", "07 ").replace(" 01 ", " 07 ")
    assert [e["port"] for e in _host.parse_listeners(text, "udp")] == [6443]


def test_routes() -> None:
    assert _host.parse_routes(ROUTES) == [
        {"destination": "0.0.0.0/0", "gateway": "192.168.1.1", "interface": "eth0"},
        {"destination": "192.168.1.0/24", "gateway": "0.0.0.0", "interface": "eth0"},
        {"destination": "10.0.0.0/8", "gateway": "0.0.0.0", "interface": "tun0"},
    ]


CGROUPS = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t3\t90\t1\nmemory\t0\t90\t0\npids\t5\t90\t1\n"


def test_cgroups_of_both_versions() -> None:
    assert _host.parse_cgroups(CGROUPS, None) == {"version": 1, "controllers": ["cpu", "pids"]}
    assert _host.parse_cgroups(CGROUPS, "") == {"version": 1, "controllers": ["cpu", "pids"]}, "hybrid: the unified tree is empty"
    assert _host.parse_cgroups(CGROUPS, "cpuset cpu memory pids\n")["version"] == 2


def state(name: str, **known: Any) -> str:
    facts: dict[str, Any] = {
        "loaded": set(),
        "sysfs": set(),
        "builtin_list": None,
        "dependency_list": None,
        "config": None,
        "filesystems": set(),
    }
    return str(_host.module_state(name, **(facts | known)))


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("overlay", {"loaded": {"overlay"}}, "loaded"),
        ("br-netfilter", {"loaded": {"br_netfilter"}}, "loaded"),
        ("vxlan", {"sysfs": {"vxlan"}}, "builtin"),
        ("overlay", {"filesystems": {"overlay"}}, "builtin"),
        ("br_netfilter", {"builtin_list": "kernel/net/bridge/br_netfilter.ko\n"}, "builtin"),
        ("br_netfilter", {"dependency_list": "kernel/net/bridge/br-netfilter.ko.xz: kernel/net/bridge/bridge.ko.xz\n"}, "available"),
        ("iscsi_tcp", {"dependency_list": "kernel/x.ko:\n"}, "absent"),
        ("br_netfilter", {"config": {"CONFIG_BRIDGE_NETFILTER": "y"}}, "builtin"),
        ("iscsi_tcp", {"config": {"CONFIG_ISCSI_TCP": "m"}}, "absent"),
        ("iscsi_tcp", {"config": {}}, "absent"),
        ("some_module", {"config": {}}, "unknown"),
        ("overlay", {}, "unknown"),
    ],
)
def test_how_the_kernel_stands_to_a_module(name: str, known: dict[str, Any], expected: str) -> None:
    assert state(name, **known) == expected


def test_kernel_config() -> None:
    assert _host.parse_kernel_config("CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=m\n") == {"CONFIG_A": "y", "CONFIG_C": "m"}


DPKG = """\
Package: buildah
Status: install ok installed
Version: 1.28.2
Depends: libc6 (>= 2.34), golang-common, uidmap

Package: golang-common
Status: install ok installed
Version: 4

Package: uidmap
Status: install ok installed
Version: 1

Package: gone
Status: deinstall ok config-files
Version: 1

Package: libc6
Status: install ok installed
Version: 2.36
"""


def test_installed_packages() -> None:
    assert _host.parse_dpkg_status(DPKG) == {"buildah": "1.28.2", "golang-common": "4", "uidmap": "1", "libc6": "2.36"}


def test_all_of_ours_can_go_when_nobody_else_needs_them() -> None:
    assert _host.removable_packages({"buildah", "golang-common", "uidmap", "never-there"}, DPKG) == ["buildah", "golang-common", "uidmap"]


@pytest.mark.parametrize("field", ["Depends: golang-common", "Pre-Depends: golang-common (>= 1)", "Depends: other | golang-common"])
def test_what_a_person_installed_since_keeps_what_it_needs(field: str) -> None:
    """`apt remove golang-common` would take podman along."""
    podman = f"\nPackage: podman\nStatus: install ok installed\nVersion: 4\n{field}\n"
    assert _host.removable_packages({"buildah", "golang-common", "uidmap"}, DPKG + podman) == ["buildah", "uidmap"]


def test_a_package_that_is_kept_keeps_its_own_needs() -> None:
    skopeo = "\nPackage: skopeo\nStatus: install ok installed\nVersion: 1\nDepends: buildah\n"
    assert _host.removable_packages({"buildah", "golang-common", "uidmap"}, DPKG + skopeo) == []


def test_a_virtual_package_counts_as_needed() -> None:
    text = DPKG.replace("Package: uidmap\n", "Package: uidmap\nProvides: id-mapper (= 1)\n")
    text += "\nPackage: x\nStatus: install ok installed\nVersion: 1\nDepends: id-mapper\n"
    assert "uidmap" not in _host.removable_packages({"buildah", "uidmap"}, text)


@pytest.mark.parametrize("word", ["half-installed", "unpacked", "half-configured"])
def test_an_interrupted_dpkg_is_seen(word: str) -> None:
    assert _host.dpkg_interrupted(DPKG.replace("Status: install ok installed", f"Status: install ok {word}", 1))
    assert not _host.dpkg_interrupted(DPKG)


def test_systemctl_show() -> None:
    text = "Id=a.service\nActiveState=active\n\nId=b.service\nActiveState=inactive\n"
    assert _host.parse_systemctl_show(text)["b.service"]["ActiveState"] == "inactive"
    assert _host.parse_systemctl_show("") == {}


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("0::/system.slice/k3s.service\n", "k3s.service"),
        ("12:pids:/lab/system.slice/k3s.service/leaf\n1:name=systemd:/system.slice/k3s.service\n", "k3s.service"),
        ("0::/user.slice/user-0.slice/session-1.scope\n", ""),
    ],
)
def test_the_unit_of_a_process(text: str, unit: str) -> None:
    assert _host.unit_of_cgroup(text) == unit


MOUNTS = """\
1 0 8:1 / / rw - ext4 /dev/sda1 rw
2 1 8:2 / /var rw - xfs /dev/sdb1 rw
3 2 8:3 / /var/lib/my\\040disk rw - ext4 /dev/sdc1 rw
4 1 8:4 / /variety rw - ext4 /dev/sdd1 rw
"""


@pytest.mark.parametrize(
    ("path", "mount"),
    [("/var/lib/rancher", "/var"), ("/var", "/var"), ("/variety/x", "/variety"), ("/etc", "/"), ("/var/lib/my disk/x", "/var/lib/my disk")],
)
def test_the_mount_of_a_path(path: str, mount: str) -> None:
    assert _host.mount_of(path, MOUNTS)["mount"] == mount


def test_sysctl_names_become_paths() -> None:
    assert _host.sysctl_path("net.ipv4.ip_forward") == "/proc/sys/net/ipv4/ip_forward"
    assert _host.sysctl_path("net/ipv4/conf/eth0.100/forwarding") == "/proc/sys/net/ipv4/conf/eth0.100/forwarding"
