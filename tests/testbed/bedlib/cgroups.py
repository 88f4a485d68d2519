"""An own cgroup for every host and for the services of a bed, in every hierarchy.

A host's cgroup namespace is rooted where its first process stands when nspawn starts, so the folder must
exist and be joined before. It is also how the bed finds every process again: by name, from the file system,
never from memory.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from .common import BedError

ROOT = Path("/sys/fs/cgroup")


def hierarchies() -> list[Path]:
    """Every mounted hierarchy: the version 1 controllers, name=systemd and `unified`."""
    if not (ROOT / "freezer").is_dir() or not (ROOT / "systemd").is_dir():
        raise BedError(
            f"the bed needs the cgroup version 1 hierarchies under {ROOT} (freezer, systemd, …); "
            "this machine has none, and the hosts have not been tried on pure version 2"
        )
    return sorted(path for path in ROOT.iterdir() if path.is_dir() and not path.is_symlink())


def create(name: str) -> None:
    """Make the cgroup in every hierarchy."""
    for hierarchy in hierarchies():
        folder = hierarchy / name
        folder.mkdir(exist_ok=True)
        # A new cpuset has no CPUs, and nobody can join it before it has.
        for setting in ("cpus", "mems"):
            if (folder / f"cpuset.{setting}").exists():
                (folder / f"cpuset.{setting}").write_text((hierarchy / f"cpuset.{setting}").read_text())


def join(name: str) -> None:
    """Move the calling process in. OSError when the cgroup is gone, so a bed that went down stays down."""
    for hierarchy in hierarchies():
        (hierarchy / name / "cgroup.procs").write_text(str(os.getpid()))


def existing(prefix: str) -> list[str]:
    """Names of the cgroups that begin with `prefix`, from whatever hierarchy still has one."""
    return sorted({folder.name for hierarchy in hierarchies() for folder in hierarchy.glob(f"{prefix}*")})


def pids(name: str) -> set[int]:
    """Every process in the cgroup or below it, in any hierarchy."""
    found: set[int] = set()
    for hierarchy in hierarchies():
        # os.walk passes over what vanishes while it looks, as cgroups do all the time while a host boots.
        for folder, _, _ in os.walk(hierarchy / name):
            with contextlib.suppress(OSError):
                found.update(int(line) for line in Path(folder, "cgroup.procs").read_text().split())
    # A 0 stands for a process of a PID namespace that we cannot see; killing 0 would kill ourselves.
    return found - {0, os.getpid()}


def kill(name: str, deadline_s: float = 20) -> None:
    """End everything in the cgroup at once, as a power cut would: nothing gets to run between two kills."""
    freezer = ROOT / "freezer" / name / "freezer.state"
    end = time.monotonic() + deadline_s
    while found := pids(name):
        if time.monotonic() > end:
            raise BedError(f"processes of {name} do not die: {sorted(found)}")
        with contextlib.suppress(FileNotFoundError):
            freezer.write_text("FROZEN")
            frozen_by = time.monotonic() + 1
            while freezer.read_text().strip() != "FROZEN" and time.monotonic() < frozen_by:
                time.sleep(0.005)
        for pid in pids(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(FileNotFoundError):
            freezer.write_text("THAWED")
        time.sleep(0.05)


def prune(name: str) -> None:
    """Remove the empty cgroups below `name`, which a reboot of the host leaves behind."""
    for hierarchy in hierarchies():
        for folder, _, _ in os.walk(hierarchy / name, topdown=False):
            if Path(folder) != hierarchy / name:
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()


def remove(name: str, deadline_s: float = 10) -> None:
    """Kill what is in the cgroup and remove it everywhere."""
    end = time.monotonic() + deadline_s
    while True:
        kill(name)
        left: list[str] = []
        for hierarchy in hierarchies():
            for folder, _, _ in os.walk(hierarchy / name, topdown=False):
                try:
                    Path(folder).rmdir()
                except FileNotFoundError:
                    pass
                except OSError:
                    left.append(folder)  # busy for some milliseconds after the last process died
        if not left:
            return
        if time.monotonic() > end:
            raise BedError(f"cgroups cannot be removed: {' '.join(left)}")
        time.sleep(0.05)
