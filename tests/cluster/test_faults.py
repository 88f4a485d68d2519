"""Faults on purpose, each on the way of a first run; then a plain rerun repairs it.

One host goes through all of them in order: each test leaves it in the broken state of its fault, the next
begins there, and the last run must end in a streamed answer. That is harder than a fresh host for each.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.support import REPORTS, ROOT, Bed, collect, play

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def faulty() -> Iterator[Bed]:
    bed = Bed("faults")
    bed.call("down", check=False)
    bed.call("up", "-n", "1", "--with", "services", timeout_s=900)
    yield bed
    collect(bed, "logs")
    bed.call("down")


def site(bed: Bed, **variables: Any) -> Any:
    extra = [part for name, value in variables.items() for part in ("-e", f"{name}={value}")]
    return play("site.yml", bed.inventory, *extra)


def sentence(output: str) -> str:
    """What the operator reads: the fatal lines of the run."""
    start = output.find("[ERROR]")
    return output[start if start >= 0 else 0:]


def test_an_unreachable_host_is_told_by_name(faulty: Bed, tmp_path: Path) -> None:
    inventory = tmp_path / "inventory.yml"
    loaded = yaml.safe_load(faulty.inventory.read_text())
    hosts = loaded["all"]["children"]["k3s_cluster"]["children"]["servers"]["hosts"]
    address = hosts["h1"]["ansible_host"]
    # the same inventory, with an address of the lab where nobody lives
    hosts["h1"]["ansible_host"] = address.rsplit(".", 1)[0] + ".250"
    inventory.write_text(yaml.safe_dump(loaded))
    run = play("site.yml", inventory, env={"ANSIBLE_TIMEOUT": "5"})
    assert run.rc != 0
    assert "h1" in run.recap, run.output[-3000:]
    assert run.recap["h1"]["unreachable"] == 1


def test_a_wrong_checksum_stops_before_anything_is_installed(faulty: Bed) -> None:
    run = play("site.yml", faulty.inventory, "-e", '{"k3s_sha256": {"amd64": "' + "0" * 64 + '"}}')
    assert run.rc != 0
    assert "checksum" in run.output.lower(), sentence(run.output)[-3000:]
    assert faulty.ssh("ls /usr/local/bin").split() == []


def test_a_cut_download_leaves_nothing_half_installed(faulty: Bed) -> None:
    url = faulty.variables()["k3s_release_url"].removesuffix("/k3s") + "/faults/cut/k3s"
    run = site(faulty, k3s_release_url=url)
    assert run.rc != 0
    assert faulty.ssh("ls /usr/local/bin").split() == [], sentence(run.output)[-3000:]


def test_a_full_disk_is_said_and_leaves_nothing_half_installed(faulty: Bed) -> None:
    faulty.ssh("mount -t tmpfs -o size=20m tmpfs /usr/local/bin")
    try:
        run = site(faulty)
        assert run.rc != 0
        assert "space" in run.output.lower(), sentence(run.output)[-3000:]
        assert "k3s" not in faulty.ssh("ls -A /usr/local/bin").split()
    finally:
        faulty.ssh("umount /usr/local/bin")


def test_power_lost_in_the_middle_of_the_first_run_is_repaired_by_a_rerun(faulty: Bed) -> None:
    command = [str(ROOT / ".venv" / "bin" / "ansible-playbook"), "site.yml", "-i", str(faulty.inventory)]
    log = REPORTS / "faults-power.log"
    REPORTS.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as sink:
        running = subprocess.Popen(command, cwd=ROOT, stdout=sink, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 300
        # the moment k3s has begun to write its datastore and certificates
        while time.monotonic() < deadline and running.poll() is None:
            if faulty.ssh("test -s /var/lib/rancher/k3s/server/db/state.db && echo yes", check=False).strip() == "yes":
                break
            time.sleep(0.3)
        assert running.poll() is None, log.read_text()[-3000:]
        faulty.call("power-off", "h1")
        running.wait(timeout=300)
    assert running.returncode != 0
    faulty.call("power-on", "h1")
    run = site(faulty)
    assert run.rc == 0, run.output[-6000:]
    again = site(faulty)
    assert again.rc == 0, again.output[-6000:]
    assert again.count("changed") == 0, again.output[-6000:]


def test_a_deleted_file_and_a_changed_unit_are_repaired_by_a_rerun(faulty: Bed) -> None:
    faulty.ssh("rm /etc/rancher/k3s/config.yaml && sed -i s/RestartSec=5s/RestartSec=50s/ /etc/systemd/system/k3s.service")
    run = site(faulty)
    assert run.rc == 0, run.output[-6000:]
    assert "RestartSec=5s" in faulty.ssh("systemctl cat k3s")
    assert faulty.ssh("stat -c %a /etc/rancher/k3s/config.yaml").strip() == "600"
    assert site(faulty).count("changed") == 0
