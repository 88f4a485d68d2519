"""The machine itself: what it says when it does not come up, and that nothing of it stays, however it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.support import REPORTS, ROOT
from tests.testbed.bedlib.common import cache_dir
from tests.vm.image import Image
from tests.vm.machine import MachineError, running

pytestmark = pytest.mark.timeout(600)

# A program of its own, so that it can be killed: starts a machine, and ends itself before the machine is up.
KILLED = """
import os, signal, sys
from pathlib import Path
from tests.vm import machine
from tests.vm.image import Image

def die(self):
    print(self.process.pid, self.folder, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

machine.Machine.wait = die
with machine.running(Image(Path(sys.argv[1])), Path(sys.argv[2])):
    pass
"""


class WithoutDrivers(Image):
    """The same image with an initrd that holds nothing: the kernel cannot find its disk."""

    @property
    def initrd(self) -> Path:
        return self.folder / "host_key.pub"


class WithoutKernel(Image):
    """The same image with a kernel that does not exist: QEMU ends at once."""

    @property
    def kernel(self) -> Path:
        return Path("/nonexistent/vmlinuz")


def processes_with(word: str) -> list[str]:
    """Command lines of running processes that hold the word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_text(errors="replace").replace("\0", " ")
        except OSError:  # it ended while we looked
            continue
        if word in text:
            found.append(text)
    return found


def runs() -> set[Path]:
    return set((cache_dir() / "vm").glob("run-*"))


def test_a_machine_that_panics_says_so_at_once_and_leaves_nothing(vm_image: Image) -> None:
    before = runs()
    begun = time.monotonic()
    with pytest.raises(MachineError, match=r"the kernel has panicked(.|\n)*VFS: Unable to mount root fs"), \
            running(WithoutDrivers(vm_image.folder), REPORTS / "vm-panic"):  # fmt: skip
        pytest.fail("a machine without a disk came up")
    assert time.monotonic() - begun < 200, "it waited for the deadline although the console said all"
    assert runs() - before == set()
    assert processes_with(str(REPORTS / "vm-panic")) == []


def test_what_qemu_says_reaches_the_reader(vm_image: Image) -> None:
    with pytest.raises(MachineError, match=r"QEMU did not start(.|\n)*/nonexistent/vmlinuz"), \
            running(WithoutKernel(vm_image.folder), REPORTS / "vm-no-kernel"):  # fmt: skip
        pytest.fail("a machine without a kernel came up")


def test_a_killed_run_takes_its_machine_along_and_the_next_one_removes_its_disk(vm_image: Image) -> None:
    reports = REPORTS / "vm-killed"
    done = subprocess.run([sys.executable, "-c", KILLED, str(vm_image.folder), str(reports)], cwd=ROOT, check=False,
                          capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid, folder = done.stdout.split()
    end = time.monotonic() + 10
    while processes_with(str(reports)) and time.monotonic() < end:
        time.sleep(0.1)
    assert processes_with(str(reports)) == [], f"QEMU ({pid}) outlived the run"
    assert (Path(folder) / "disk.qcow2").exists(), "the disk of the killed run is gone: nothing is shown"
    with pytest.raises(MachineError), running(WithoutKernel(vm_image.folder), REPORTS / "vm-no-kernel"):
        pytest.fail("a machine without a kernel came up")
    assert not Path(folder).exists()
