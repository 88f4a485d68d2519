"""Single functions of k3s-killall.sh and k3s-uninstall.sh. As a whole they run on the bed (tests/cluster/test_reset.py)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

FILES = Path(__file__).resolve().parents[2] / "roles" / "k3s" / "files"


def call(script: str, until: str, function: str, data_dir: Path) -> str:
    """Run one function after the script's beginning: nothing else of it may run on this machine."""
    beginning, found, _rest = (FILES / script).read_text().partition(f"\n{until}")
    assert found, f"{script} has no line {until!r} any more"
    done = subprocess.run(["bash", "-c", f"{beginning}\n{function}"], env={"PATH": "/usr/bin:/bin", "K3S_DATA_DIR": str(data_dir)},
                          capture_output=True, text=True, check=True, timeout=60)  # fmt: skip
    return done.stdout


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A data directory on another disk, which the usual path leads to by a link."""
    (tmp_path / "disk" / "k3s" / "data").mkdir(parents=True)
    (tmp_path / "rancher").symlink_to(tmp_path / "disk")
    return tmp_path / "rancher" / "k3s"


def test_pods_are_found_when_the_data_directory_is_reached_by_a_link(linked: Path) -> None:
    """Otherwise they go on: through a reset, and with their volumes while a restore puts the cluster back in time."""
    shim = linked / "data" / "containerd-shim"
    shutil.copy("/bin/sleep", shim)
    with subprocess.Popen([shim, "60"]) as process:
        found = call("k3s-killall.sh", "# The given processes", "release_processes", linked)
        process.kill()
    assert found.split() == [str(process.pid)]


def test_the_data_go_when_the_data_directory_is_a_link(tmp_path: Path, linked: Path) -> None:
    (tmp_path / "disk" / "k3s" / "token").write_text("secret")
    (tmp_path / "link").symlink_to(linked)
    call("k3s-uninstall.sh", "K3S_KILLALL=", 'drop_data "$DATA_DIR"', tmp_path / "link")
    assert list((tmp_path / "disk").iterdir()) == []
