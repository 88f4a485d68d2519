"""The disk of the virtual machine: Debian with a kernel of its own, built once and kept in the cache.

The packages that the role under test installs are baked in. In a machine without hardware virtualisation apt takes
minutes, and that a role installs its packages is shown on the bed already; here we are after what only a kernel of
its own can show.
"""

from __future__ import annotations

import contextlib
import platform
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.testbed.bedlib import cache, debian
from tests.testbed.bedlib.common import need_root, need_tools, run, step


@dataclass(frozen=True)
class Architecture:
    """One kind of processor that QEMU emulates: what Debian and QEMU call it, and what its machine has."""

    name: str
    qemu: str
    qemu_package: str
    console: str
    machine: tuple[str, ...]

    @property
    def foreign(self) -> bool:
        """Whether this machine cannot run its programs."""
        return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine()) != self.name

    @property
    def emulator(self) -> str:
        """QEMU for single programs of it."""
        return self.qemu.replace("-system", "")

    @property
    def kernel_packages(self) -> tuple[str, ...]:
        """A small kernel with the modules of Debian's usual one as far as k3s, Longhorn and Cilium ask for them. Debian's
        initramfs-tools brings the virtio and ext4 drivers that it needs to find its disk.
        """
        return (f"linux-image-cloud-{self.name}", "initramfs-tools")


AMD64 = Architecture("amd64", "qemu-system-x86_64", "qemu-system-x86", "ttyS0", ("-machine", "q35", "-cpu", "Nehalem"))
# As in AWS's first Graviton.
ARM64 = Architecture("arm64", "qemu-system-aarch64", "qemu-system-arm", "ttyAMA0", ("-machine", "virt", "-cpu", "cortex-a72"))
ARCHITECTURES = {found.name: found for found in (AMD64, ARM64)}

# A target to log in to: without one, a working iSCSI initiator cannot be told from one that merely runs.
TARGET_PACKAGES = ("tgt",)
DISK_GIB = 40
HOST_NAME = "hearth-vm"

# QEMU's user network: always these addresses, so nothing needs to be asked for.
NETWORK = """\
[Match]
Name=eth0
[Network]
Address=10.0.2.15/24
Gateway=10.0.2.2
"""
RESOLVER = "nameserver 10.0.2.3\n"
# noinit_itable: ext4 would zero its inode tables in the background for minutes and take the little CPU there is.
FSTAB = "/dev/vda / ext4 errors=remount-ro,noinit_itable 0 1\n"
# Timers that run apt or scan disks whenever they like would take the CPU, and change what a test compares.
MASKED = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "fstrim.timer", "systemd-networkd-wait-online.service",
    "tgt.service",
)  # fmt: skip
TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "qemu-img": "qemu-utils",
    "ssh-keygen": "openssh-client",
}
# The kernel runs programs of another architecture through QEMU when it is told so; Debian's package says how.
BINFMT = Path("/proc/sys/fs/binfmt_misc")
BINFMT_RULES = Path("/usr/lib/binfmt.d")


@dataclass(frozen=True)
class Image:
    """Files of a built image; all are read only, a machine writes into an overlay of its own."""

    folder: Path
    architecture: Architecture = AMD64

    @property
    def disk(self) -> Path:
        return self.folder / "disk.qcow2"

    @property
    def kernel(self) -> Path:
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.folder / "initrd.img"

    @property
    def host_key(self) -> str:
        """The public key by which the machine's sshd is recognised."""
        return (self.folder / "host_key.pub").read_text().strip()


def image(packages: Iterable[str], architecture: Architecture = AMD64) -> Image:
    """The image with `packages` installed; builds it when the cache has none made from the same inputs.

    Takes about two minutes when it builds, a foreign one ten. Raises BedError when a tool is missing or a step of the build fails.
    """
    wanted = sorted({*debian.HOST_PACKAGES.split(","), *architecture.kernel_packages, *TARGET_PACKAGES, *packages})
    inputs: list[str | bytes | Path] = [
        architecture.name,
        *debian.apt_sources(),
        *debian.SLIM,
        *wanted,
        debian.machine_bundle(),
        *cache.texts(debian.trust_machine),
        Path(__file__),
    ]

    def build(folder: Path) -> None:
        need_root()
        need_tools(TOOLS)
        with _foreign_programs(architecture) if architecture.foreign else contextlib.nullcontext():
            _build(wanted, architecture, folder)

    with cache.building():
        return Image(cache.entry("vm", inputs, build), architecture)


@contextlib.contextmanager
def _foreign_programs(architecture: Architecture) -> Iterator[None]:
    """Let this machine run programs of another architecture meanwhile. Raises BedError when it cannot."""
    need_tools({f"{architecture.emulator}-static": "qemu-user-static", "arch-test": "arch-test"})
    name = architecture.emulator
    mounted = (BINFMT / "register").exists()
    if not mounted:
        run("mount", "-t", "binfmt_misc", "none", BINFMT)
    registered = (BINFMT / name).exists()
    if not registered:
        (BINFMT / "register").write_text((BINFMT_RULES / f"{name}.conf").read_text())
    try:
        yield
    finally:
        if not registered:
            (BINFMT / name).write_text("-1")
        if not mounted:
            run("umount", BINFMT)


def _build(packages: list[str], architecture: Architecture, folder: Path) -> None:
    root = folder / "root"
    log = folder / "log"
    with step(f"vm: Debian with a kernel for {architecture.name}"):
        sources = folder / "vm.list"
        sources.write_text("\n".join(debian.apt_sources()) + "\n")
        run("mmdebstrap", "--variant=minbase", f"--architectures={architecture.name}", *debian.SLIM, f"--include={','.join(packages)}",
            debian.SUITE, root, sources, log=log)  # fmt: skip
        sources.unlink()
        debian.trust_machine(root)
    _configure(root, folder)
    with step("vm: disk"):
        raw = folder / "disk.raw"
        with raw.open("wb") as file:
            file.truncate(DISK_GIB << 30)
        run("mke2fs", "-q", "-t", "ext4", "-i", "65536", "-d", root, raw, log=log)
        run("qemu-img", "convert", "-O", "qcow2", raw, folder / "disk.qcow2", log=log)
        raw.unlink()
        shutil.rmtree(root)


def _configure(root: Path, folder: Path) -> None:
    """Give the tree a name, a network and a host key; take kernel and initrd out for QEMU, which loads them itself."""
    for name, text in {
        "etc/hostname": f"{HOST_NAME}\n",
        "etc/hosts": f"127.0.0.1 localhost\n127.0.1.1 {HOST_NAME}\n",
        "etc/fstab": FSTAB,
        "etc/resolv.conf": RESOLVER,
        "etc/systemd/network/80-qemu.network": NETWORK,
        "etc/machine-id": "",
    }.items():
        (root / name).unlink(missing_ok=True)
        (root / name).write_text(text)
    run("systemctl", f"--root={root}", "enable", "systemd-networkd.service")
    run("systemctl", f"--root={root}", "mask", *MASKED)
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", HOST_NAME, "-f", root / "etc/ssh/ssh_host_ed25519_key")
    shutil.copy(root / "etc/ssh/ssh_host_ed25519_key.pub", folder / "host_key.pub")
    for kind, pattern in {"vmlinuz": "vmlinuz-*", "initrd.img": "initrd.img-*"}.items():
        (found,) = (root / "boot").glob(pattern)
        shutil.copy(found, folder / kind)
