"""What hosts that share this machine's kernel cannot show: modules, kernel settings, iSCSI, a real reboot.

One virtual machine goes through all of it, from bare to rebooted. The processor is emulated, some ten times slower
than the real one, so the number of playbook runs is kept small: six, one of them without the machine.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.observe import differences
from tests.cluster.support import REPORTS, Run, play
from tests.vm.conftest import CONTROLLER, Inventory
from tests.vm.image import Image
from tests.vm.machine import Machine, running

HERE = Path(__file__).parent
PLAYBOOK = "tests/vm/prepare.yml"
LOOK = (HERE / "look.py").read_text()

# The whole layer: an image from nothing (two to three minutes), a boot, five playbook runs, two reboots.
pytestmark = pytest.mark.timeout(3600)

# A k3s server wants 1900 MB. QEMU takes from this machine what is used.
MEMORY_MIB = 3072
# Until a node is Ready and DNS runs, with all of it emulated.
READY_S = 1200

# What must hold on a host of k3s and Longhorn, written down here a second time on purpose: from the manuals, not
# from the role. The kubelet's `protectKernelDefaults` insists on the first four.
NEEDED_SETTINGS = {
    "kernel.panic": "10",
    "kernel.panic_on_oops": "1",
    "vm.overcommit_memory": "1",
    "vm.panic_on_oom": "0",
    "net.bridge.bridge-nf-call-iptables": "1",
    "net.ipv4.ip_forward": "1",
}
NEEDED_MODULES = {"overlay", "br_netfilter", "nf_conntrack", "iscsi_tcp"}

# A disk of 16 MB over iSCSI, from a target on the machine itself: discover it, log in, write, read back, log out.
ISCSI = r"""
set -euo pipefail
name=iqn.2026-11.test.hearth:disk
truncate -s 16M /var/tmp/disk.img
systemd-run --quiet --unit=hearth-test-target /usr/sbin/tgtd -f
trap 'systemctl stop hearth-test-target; rm -f /var/tmp/disk.img' EXIT
for try in $(seq 60); do tgtadm --lld iscsi --op show --mode sys >/dev/null 2>&1 && break; sleep 1; done
tgtadm --lld iscsi --op new --mode target --tid 1 -T "$name"
tgtadm --lld iscsi --op new --mode logicalunit --tid 1 --lun 1 -b /var/tmp/disk.img
tgtadm --lld iscsi --op bind --mode target --tid 1 -I ALL
iscsiadm --mode discovery --type sendtargets --portal 127.0.0.1 >&2
iscsiadm --mode node --targetname "$name" --login >&2
udevadm settle
link=(/dev/disk/by-path/*"$name"-lun-1)
disk=$(basename "$(readlink -f "${link[0]}")")
head -c 1M /dev/urandom > /var/tmp/written
dd if=/var/tmp/written of="/dev/$disk" bs=64k oflag=direct status=none
dd if="/dev/$disk" bs=64k count=16 iflag=direct status=none | cmp - /var/tmp/written >&2
printf '{"disk": "%s", "bytes": %d, "vendor": "%s"}\n' "$disk" "$(blockdev --getsize64 "/dev/$disk")" \
  "$(tr -d ' ' < "/sys/block/$disk/device/vendor")"
iscsiadm --mode node --targetname "$name" --logout >&2
iscsiadm --mode node --targetname "$name" --op delete >&2
"""


@dataclass
class Lab:
    """The machine with its inventory, and what the role says it brings to it."""

    machine: Machine
    inventory: Path
    wants: dict[str, Any]

    def play(self, *extra: str) -> Run:
        return play(PLAYBOOK, self.inventory, *extra)

    def look(self) -> dict[str, Any]:
        seen: dict[str, Any] = self.machine.python(LOOK, *self.settings)
        return seen

    def node_once_ready(self) -> dict[str, Any]:
        """The Node as the API of this boot shows it, as soon as it is Ready and the cluster's DNS answers."""
        kubectl = "KUBECACHEDIR=/run/kubectl-cache /usr/local/bin/k3s kubectl --request-timeout=60s"
        boot, deadline = self.machine.boot_id(), time.monotonic() + READY_S
        while True:
            assert time.monotonic() < deadline, self.machine.ssh(f"{kubectl} get nodes,pods -A -o wide; journalctl -u k3s | tail -50")
            [node] = json.loads(self.machine.ssh(f"{kubectl} get nodes -o json", timeout_s=180))["items"]
            ready = {c["type"]: c["status"] for c in node["status"]["conditions"]}["Ready"] == "True"
            if ready and node["status"]["nodeInfo"]["bootID"] == boot:
                self.machine.ssh(f"{kubectl} rollout status -n kube-system deployment/coredns --timeout={READY_S}s", timeout_s=READY_S)
                return dict(node)
            time.sleep(5)

    @property
    def settings(self) -> dict[str, str]:
        """Kernel settings that must hold, as the kernel shows them."""
        return {name: str(value) for name, value in self.wants["sysctl"].items()}


@pytest.fixture(scope="module")
def lab(inventory: Inventory, wants: dict[str, Any], vm_image: Image) -> Iterator[Lab]:
    with running(vm_image, REPORTS, memory_mib=MEMORY_MIB) as machine:
        inventory.write(
            {
                "ansible_host": "127.0.0.1",
                "ansible_port": machine.port,
                "ansible_user": "root",
                "ansible_python_interpreter": "/usr/bin/python3",
                "ansible_ssh_common_args": " ".join(machine.ssh_options()),
            }
        )
        yield Lab(machine, inventory.path, wants)


@dataclass
class Deployed:
    """Playbook runs in check mode and for real on a bare machine, and what it looked like around them."""

    bare: dict[str, Any]
    check: Run
    checked: dict[str, Any]
    real: Run
    after: dict[str, Any]


@pytest.fixture(scope="module")
def deployed(lab: Lab) -> Deployed:
    bare = lab.look()
    check = lab.play("--check", "--diff")
    checked = lab.look()
    real = lab.play()
    assert real.rc == 0, real.output[-6000:]
    return Deployed(bare, check, checked, real, lab.look())


def test_preflight_sees_a_real_machine(lab: Lab) -> None:
    """Three faults are planted: a module that no Debian kernel has, a server that nobody runs, and a clock that is ten
    minutes ahead (the hosts of the bed have this machine's). It finds just these.

    Cgroup controllers, modules, ports, disk, memory and routes are those of a real machine, and in order.
    """
    faults = {"host_kernel_modules": ["overlay", "zfs"], "k3s_release_url": f"http://{CONTROLLER}:1"}
    lab.machine.ssh("date --set='+10 minutes'")
    run = lab.play("--tags", "preflight", "-e", json.dumps(faults))
    lab.machine.ssh("date --set='-10 minutes'")
    assert run.rc == 2, run.output[-6000:]
    assert "3 problems to solve first" in run.output, run.output[-6000:]
    assert re.search(r"The clock is (59\d|60\d) s ahead of the controller's\.", run.output), run.output[-6000:]
    assert "has no zfs" in run.output
    assert f"http://{CONTROLLER}:1/" in run.output, run.output[-6000:]


def test_check_mode_changes_nothing(deployed: Deployed) -> None:
    """It says as many changes as the real run then makes, and makes none."""
    assert deployed.check.rc == 0, deployed.check.output[-6000:]
    assert differences(deployed.bare, deployed.checked) == []
    assert deployed.check.count("changed") == deployed.real.count("changed") > 2, deployed.check.output[-6000:]


def ready(lab: Lab) -> str:
    """Assert that modules, settings and the initiator are there now, and return the initiator's name."""
    seen = lab.look()
    there = {name.replace("-", "_") for name in [*seen["modules"], *seen["built in"]]}
    assert set(lab.wants["modules"]) - there == set()
    assert seen["settings"] == lab.settings
    assert lab.machine.ssh("systemctl is-active iscsid.service").split() == ["active"]
    name = [w for w in lab.machine.ssh("cat /etc/iscsi/initiatorname.iscsi").splitlines() if w.startswith("InitiatorName=")]
    assert len(name) == 1
    assert name[0].startswith("InitiatorName=iqn."), name
    return name[0]


def test_modules_sysctl_and_iscsi_are_loaded_and_survive_a_reboot(lab: Lab, deployed: Deployed) -> None:
    """Not there before, there after the run, there after a reboot without a run, and a disk comes over iSCSI."""
    assert set(lab.wants["modules"]) >= NEEDED_MODULES
    assert lab.settings.items() >= NEEDED_SETTINGS.items()
    before = deployed.bare
    assert not NEEDED_MODULES & {*before["modules"], *before["built in"]}, "loaded before the role ran: nothing is shown"
    assert "iscsid.service" not in {name for name, state in before["units"].items() if state.startswith("active")}
    assert before["settings"]["kernel.panic"] == "0"

    name = ready(lab)
    lab.machine.reboot()
    assert ready(lab) == name, "another initiator name after the reboot: a target would refuse it"

    disk = json.loads(lab.machine.ssh(ISCSI))
    assert disk == {"disk": disk["disk"], "bytes": 16 << 20, "vendor": "IET"}
    assert disk["disk"].startswith("sd")


def test_second_run_changes_nothing(lab: Lab, deployed: Deployed) -> None:
    """After the reboot, if the test before ran: what did not survive it would be changed again here."""
    assert deployed.real.count("changed") > 2
    before = lab.look()
    run = lab.play()
    assert run.rc == 0, run.output[-6000:]
    assert run.count("changed") == 0, run.output[-6000:]
    assert differences(before, lab.look()) == []


def test_a_node_comes_back_by_itself_after_a_reboot(lab: Lab, deployed: Deployed) -> None:
    """k3s as site.yml installs it, on a kernel of its own: nobody runs anything after the reboot."""
    assert deployed.real.rc == 0
    run = play("site.yml", lab.inventory, "--tags", "k3s", timeout_s=1800)
    assert run.rc == 0, run.output[-6000:]
    first = lab.node_once_ready()
    lab.machine.reboot()
    second = lab.node_once_ready()
    assert second["status"]["nodeInfo"]["bootID"] == lab.machine.boot_id() != first["status"]["nodeInfo"]["bootID"]
    assert second["metadata"]["uid"] == first["metadata"]["uid"], "the same node, with its data"
