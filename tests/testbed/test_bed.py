"""The bed does what it says and leaves nothing behind. Needs root; run with `make bed` done, or wait for the build."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BED = Path(__file__).resolve().parent / "bed"
CACHE = Path(os.environ.get("HEARTH_CACHE") or Path.home() / ".cache/hearth")

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="the bed makes network namespaces: needs root"),
    # The first `up` may build the hosts' file system, or wait for a build that somebody else has started.
    pytest.mark.timeout(1800),
]


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
    """Settings of the machine that a bed could change and must not."""
    sysctls = ("kernel/panic", "kernel/panic_on_oops", "vm/overcommit_memory", "fs/inotify/max_user_instances")
    found = {name: (Path("/proc/sys") / name).read_text() for name in sysctls}
    if not list(Path("/sys/class/net").glob("bed-*")):  # while another bed runs, forwarding is on for that one
        found["ip_forward"] = Path("/proc/sys/net/ipv4/ip_forward").read_text()
    return found


def test_down_leaves_nothing() -> None:
    before = machine()
    with running("bedtest-leaves", 2) as up:
        assert {host["state"] for host in up["hosts"].values()} == {"on"}
        found = traces("bedtest-leaves")
        # The comparison below would prove nothing if this looked in the wrong places.
        assert all(found[kind] for kind in ("links", "namespaces", "firewall", "cgroups", "processes", "state")), found
    assert traces("bedtest-leaves") == NOTHING
    if "ip_forward" in machine():
        assert machine() == before


def test_hosts_are_debian_and_reach_each_other_and_apt() -> None:
    with running("bedtest-hosts", 2) as up:
        assert ssh("bedtest-hosts", "h1", "systemctl is-system-running") == "running"
        assert ssh("bedtest-hosts", "h1", "hostname; cat /etc/debian_version").split()[0] == "h1"
        # What k3s or the roles bring must not be there already.
        for tool in ("iptables", "curl", "buildah", "runc", "conntrack"):
            assert bed("ssh", "h1", f"command -v {tool}", name="bedtest-hosts", check=False).returncode != 0, tool
        ssh("bedtest-hosts", "h1", f"ping -c1 -W2 {up['hosts']['h2']['address']}")
        ssh("bedtest-hosts", "h2", "apt-get -qq update && apt-get -qq install -y tree </dev/null")
        assert ssh("bedtest-hosts", "h1", "stat -fc %T /var") == "ext2/ext3", "containerd needs a /var that is no overlay"
        assert ssh("bedtest-hosts", "h1", "modprobe overlay && echo yes") == "yes"
        assert bed("ssh", "h1", "modprobe no_such_module", name="bedtest-hosts", check=False).returncode != 0


def test_two_beds_side_by_side_do_not_reach_each_other() -> None:
    with running("bedtest-left", 1) as left, running("bedtest-right", 1) as right:
        assert left["subnet"] != right["subnet"]
        address = right["hosts"]["h1"]["address"]
        assert bed("ssh", "h1", f"ping -c1 -W1 {address}", name="bedtest-left", check=False).returncode != 0
        bed("down", name="bedtest-right")
        assert traces("bedtest-right") == NOTHING
        assert ssh("bedtest-left", "h1", "echo alive") == "alive"
        ssh("bedtest-left", "h1", "apt-get -qq update")


@pytest.mark.parametrize("after_s", [0.1, 0.5, 1.0, 1.6])
def test_down_removes_what_a_killed_up_left(after_s: float) -> None:
    bed("down", name="bedtest-killed")
    process = subprocess.Popen([BED, "up", "--name", "bedtest-killed", "-n", "2"], stderr=subprocess.DEVNULL)
    time.sleep(after_s)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if status("bedtest-killed")["state"] == "broken":
        refused = bed("up", "-n", "1", name="bedtest-killed", check=False)
        assert refused.returncode == 1 and "bed down --name bedtest-killed" in refused.stderr
    bed("down", name="bedtest-killed")
    assert traces("bedtest-killed") == NOTHING
    bed("down", name="bedtest-killed")


def test_interrupted_up_cleans_up_itself() -> None:
    process = subprocess.Popen([BED, "up", "--name", "bedtest-interrupted", "-n", "2"], stderr=subprocess.PIPE, text=True)
    time.sleep(0.8)
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    assert traces("bedtest-interrupted") == NOTHING


def test_down_works_without_a_journal() -> None:
    bed("up", "-n", "1", name="bedtest-nojournal")
    (CACHE / "beds/bedtest-nojournal/bed.json").unlink()
    bed("down", name="bedtest-nojournal")
    assert traces("bedtest-nojournal") == NOTHING


def test_power_off_pulls_the_plug_and_power_on_boots_the_same_disk() -> None:
    with running("bedtest-power", 1):
        before = ssh("bedtest-power", "h1", "cat /proc/sys/kernel/random/boot_id /etc/machine-id")
        ssh("bedtest-power", "h1", "echo kept > /root/kept; echo kept > /var/lib/kept; sync")
        ssh("bedtest-power", "h1", "ip link add dummy0 type bridge; nft add table ip left; mkdir /run/left")
        ssh("bedtest-power", "h1", "systemd-run -q --unit=cry sh -c 'trap \"touch /root/stopped\" TERM; sleep 1000 & wait'")
        bed("power-off", "h1", name="bedtest-power")
        assert status("bedtest-power")["hosts"]["h1"]["state"] == "off"
        bed("power-on", "h1", name="bedtest-power")
        assert ssh("bedtest-power", "h1", "cat /root/kept /var/lib/kept").split() == ["kept", "kept"]
        assert bed("ssh", "h1", "ls /root/stopped", name="bedtest-power", check=False).returncode != 0, "it was a clean stop"
        assert ssh("bedtest-power", "h1", "cat /etc/machine-id") == before.split()[1]
        assert ssh("bedtest-power", "h1", "ip -o link; nft list tables; ls /run").find("left") < 0
        assert "dummy0" not in ssh("bedtest-power", "h1", "ip -o link")


def test_reboot_from_inside_comes_back_with_a_clean_network() -> None:
    with running("bedtest-reboot", 1):
        ssh("bedtest-reboot", "h1", "ip link add dummy0 type bridge; echo kept > /root/kept")
        started = ssh("bedtest-reboot", "h1", "stat -c %Y /proc/1")
        bed("ssh", "h1", "systemctl reboot", name="bedtest-reboot", check=False)
        end = time.monotonic() + 60
        while True:
            done = bed("ssh", "h1", "systemctl is-system-running", name="bedtest-reboot", check=False)
            if done.stdout.strip() == "running" and ssh("bedtest-reboot", "h1", "stat -c %Y /proc/1") != started:
                break
            assert time.monotonic() < end, "the host did not come back"
            time.sleep(0.2)
        assert ssh("bedtest-reboot", "h1", "cat /root/kept") == "kept"
        assert "dummy0" not in ssh("bedtest-reboot", "h1", "ip -o link")


def test_snapshot_and_restore() -> None:
    with running("bedtest-snap", 2):
        ssh("bedtest-snap", "h1", "echo one > /root/state; echo one > /var/lib/state; chown nobody /root/state")
        bed("power-off", "h2", name="bedtest-snap")
        bed("snapshot", "one", name="bedtest-snap")
        assert status("bedtest-snap")["snapshots"] == ["one"]
        ssh("bedtest-snap", "h1", "echo two > /root/state; rm /var/lib/state; rm /etc/debian_version")
        bed("power-on", "h2", name="bedtest-snap")
        bed("restore", "one", name="bedtest-snap")
        assert ssh("bedtest-snap", "h1", "cat /root/state /var/lib/state; stat -c %U /root/state").split() == ["one", "one", "nobody"]
        ssh("bedtest-snap", "h1", "test -s /etc/debian_version")
        assert status("bedtest-snap")["hosts"]["h2"]["state"] == "off", "it was off when the snapshot was taken"
        refused = bed("restore", "two", name="bedtest-snap", check=False)
        assert refused.returncode == 1 and "no snapshot two" in refused.stderr


@pytest.mark.parametrize("name", ["", "A", "1a", "a.b", "a_b", "../a", "a" * 32])
def test_bad_names_are_refused(name: str) -> None:
    done = bed("down", name=name, check=False)
    assert done.returncode == 1 and "bed's name" in done.stderr


class Lab:
    """HTTPS requests to the services of a bed, with the bed's authority and no other."""

    def __init__(self, name: str) -> None:
        self.folder = Path(status(name)["folder"])
        self.described: dict[str, Any] = json.loads((self.folder / "env.json").read_text())
        self.context = ssl.create_default_context(cafile=str(self.folder / "ca.crt"))
        self.base = self.described["services"]["release"].removesuffix("/k3s")

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"{self.base}{path}", context=self.context, timeout=30) as answer:
            body: bytes = answer.read()
            return body


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with running("bedtest-served", 1, "--with", "services"):
        yield Lab("bedtest-served")


def test_release_files_have_the_layout_of_k3s_and_true_checksums(lab: Lab) -> None:
    versions = sorted(lab.described["k3s"]["versions"])
    assert versions == ["v1.36.3+k3s1", "v1.36.3+k3s2"]
    for version in versions:
        for written in (version, version.replace("+", "%2B")):
            folder = f"/k3s/download/{written}"
            lines = lab.get(f"{folder}/sha256sum-amd64.txt").decode().splitlines()
            sums = {file: digest for digest, file in (line.split("  ") for line in lines)}
            assert {"k3s", "k3s-airgap-images-amd64.tar.zst"} <= set(sums)
        for name in ("k3s", "k3s-airgap-images-amd64.tar.zst"):
            assert hashlib.sha256(lab.get(f"/k3s/download/{version}/{name}")).hexdigest() == sums[name]
        assert lab.described["k3s"]["versions"][version]["sha256"]["amd64"] == sums["k3s"]
        arm = lab.get(f"/k3s/download/{version}/sha256sum-arm64.txt").decode()
        assert arm == f"{hashlib.sha256(lab.get(f'/k3s/download/{version}/k3s-arm64')).hexdigest()}  k3s-arm64\n"


def test_release_server_faults(lab: Lab) -> None:
    folder = "k3s/download/v1.36.3+k3s1"
    right, wrong = lab.get(f"/{folder}/sha256sum-amd64.txt"), lab.get(f"/faults/wrong-checksum/{folder}/sha256sum-amd64.txt")
    assert len(right) == len(wrong)
    for good, bad in zip(right.splitlines(), wrong.splitlines(), strict=True):
        assert good[:64] != bad[:64] and good[64:] == bad[64:]
    with pytest.raises(http.client.IncompleteRead):
        lab.get(f"/faults/cut/{folder}/k3s")
    begun = time.monotonic()
    with urllib.request.urlopen(f"{lab.base}/faults/slow/{folder}/k3s", context=lab.context, timeout=30) as answer:
        answer.read(4_000_000)
    assert time.monotonic() - begun > 1
    for path in (f"/{folder}/k3s-armhf", "/k3s/download/v9/k3s", f"/faults/other/{folder}/k3s", "/k3s/download/../k3s/k3s"):
        with pytest.raises(urllib.error.HTTPError) as error:
            lab.get(path)
        assert error.value.code == 404


def test_a_silent_client_blocks_nobody(lab: Lab) -> None:
    address = (lab.described["gateway"], 8443)
    with socket.create_connection(address):
        assert lab.get("/k3s/download/v1.36.3+k3s1/sha256sum-amd64.txt")


def test_hosts_trust_the_lab_and_the_registry_serves_the_base_image(lab: Lab) -> None:
    image = lab.described["services"]["base_image"]
    registry, _, rest = image.partition("/")
    repository, _, digest = rest.partition("@")
    program = (
        "import hashlib,urllib.request as u;"
        f"r=u.Request('https://{registry}/v2/{repository}/manifests/{digest}',"
        "headers={'Accept':'application/vnd.docker.distribution.manifest.v2+json'});"
        "print(hashlib.sha256(u.urlopen(r).read()).hexdigest())"
    )
    assert "sha256:" + ssh("bedtest-served", "h1", f'python3 -c "{program}"') == digest


def test_inventory_is_what_ansible_reads_and_names_stand_ins(lab: Lab) -> None:
    listed = json.loads(bed("inventory", "--json", name="bedtest-served").stdout)
    assert {"trial", "servers", "agents", "k3s_cluster", "_meta"} == set(listed)
    assert listed["servers"]["hosts"] == ["h1"] and listed["agents"]["hosts"] == []
    text = bed("inventory", name="bedtest-served").stdout
    assert "k3s_version" in text and (lab.folder / "inventory.yml").stat().st_mode & 0o777 == 0o600
    assert any(text.startswith("k3s") for text in lab.described["stand_ins"])


def test_services_go_down_with_the_bed(lab: Lab) -> None:
    assert all(status("bedtest-served")["services"].values())
    bed("down", name="bedtest-served")
    assert traces("bedtest-served") == NOTHING
