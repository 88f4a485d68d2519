"""The bed's hosts do what they should and leave nothing behind. Needs root, and the hosts' file system only."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.testbed.bedlib import net
from tests.testbed.support import BED, CACHE, NOTHING, bed, machine, needs_root, running, ssh, status, traces

# The first `up` may build the hosts' file system, or wait for a build that somebody else has started.
pytestmark = [needs_root, pytest.mark.timeout(1200)]


def test_down_leaves_nothing() -> None:
    before = machine()
    with running("bedtest-leaves", 2) as up:
        assert {host["state"] for host in up["hosts"].values()} == {"on"}
        found = traces("bedtest-leaves")
        # The comparison below would prove nothing if this looked in the wrong places.
        assert all(found[kind] for kind in ("links", "namespaces", "firewall", "cgroups", "processes", "state")), found
    assert traces("bedtest-leaves") == NOTHING
    assert machine() == before


def test_settings_of_the_machine_come_back_with_the_last_bed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # On files of its own: other beds may run while this test does.
    monkeypatch.setattr(net, "SYSCTLS", tmp_path / "sys")
    monkeypatch.setattr(net, "SAVED", tmp_path / "saved")
    settings = {tmp_path / "sys" / name: value for name, value in zip(net.MACHINE, ("0\n", "8192\n"), strict=True)}
    for file, value in settings.items():
        file.parent.mkdir(parents=True)
        file.write_text(value)
    net.raise_settings()
    net.raise_settings()  # a second bed: what it finds is not the machine's own value
    assert [file.read_text() for file in settings] == ["1\n", "8192\n"], "raised, and never lowered"
    net.restore_settings()
    assert {file: file.read_text() for file in settings} == settings
    assert not (tmp_path / "saved").exists()


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


def up_in_the_background(name: str) -> subprocess.Popen[str]:
    """Start `bed up` and return as soon as it has made something."""
    bed("down", name=name)
    process = subprocess.Popen(
        [BED, "up", "--name", name, "-n", "2"],
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore Ctrl-C and hand that down: a test run started so must not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not (CACHE / "beds" / name).exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    return process


@pytest.mark.parametrize("after_s", [0, 0.1, 0.3, 0.6, 1.2])
def test_down_removes_what_a_killed_up_left(after_s: float) -> None:
    process = up_in_the_background("bedtest-killed")
    time.sleep(after_s)
    process.kill()
    process.communicate()
    found = status("bedtest-killed")["state"]
    assert found in ("broken", "up")
    refused = bed("up", "-n", "1", name="bedtest-killed", check=False)
    assert refused.returncode == 1 and "bed down --name bedtest-killed" in refused.stderr
    bed("down", name="bedtest-killed")
    assert traces("bedtest-killed") == NOTHING
    bed("down", name="bedtest-killed")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_up_cleans_up_itself(sent: signal.Signals) -> None:
    process = up_in_the_background("bedtest-interrupted")
    time.sleep(0.2)
    process.send_signal(sent)
    _, said = process.communicate()
    assert process.returncode == 130, f"{process.returncode}: {said}"
    assert traces("bedtest-interrupted") == NOTHING


def test_down_works_without_a_journal() -> None:
    bed("up", "-n", "1", name="bedtest-nojournal")
    (CACHE / "beds/bedtest-nojournal/bed.json").unlink()
    # What `ip netns add` leaves when it is killed in the middle.
    Path("/run/netns/bed-bedtest-nojournal.h2").touch()
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


def test_an_unplugged_host_runs_on_and_a_renewed_one_knows_nothing() -> None:
    with running("bedtest-cable", 2) as up:
        ping = f"ping -c1 -W1 {up['hosts']['h1']['address']}"
        boot = ssh("bedtest-cable", "h1", "cat /proc/sys/kernel/random/boot_id; ip route; stat -c %Y /proc/1")
        ssh("bedtest-cable", "h2", ping)
        bed("unplug", "h1", name="bedtest-cable")
        assert bed("ssh", "h2", ping, name="bedtest-cable", check=False).returncode != 0
        assert status("bedtest-cable")["hosts"]["h1"]["state"] != "off"
        bed("plug", "h1", name="bedtest-cable")
        ssh("bedtest-cable", "h2", f"for n in 1 2 3 4 5; do {ping} && exit; done; exit 1")
        assert ssh("bedtest-cable", "h1", "cat /proc/sys/kernel/random/boot_id; ip route; stat -c %Y /proc/1") == boot
        ssh("bedtest-cable", "h1", "echo kept > /root/kept; echo kept > /var/lib/kept; sync")
        bed("renew", "h1", name="bedtest-cable")
        assert ssh("bedtest-cable", "h1", "hostname; ls /root/kept /var/lib/kept 2>/dev/null; true") == "h1"
        bed("power-off", "h2", name="bedtest-cable")
        refused = bed("unplug", "h2", name="bedtest-cable", check=False)
        assert refused.returncode == 1 and "h2 of bed bedtest-cable is off" in refused.stderr


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
