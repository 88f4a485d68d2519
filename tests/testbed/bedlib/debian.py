"""Debian from the machine's own apt sources: the hosts' root file system, and single packages unpacked.

No address of a package registry is written here: what the machine installs from is read from its
configuration.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from . import cache
from .common import TESTBED, BedError, run

SUITE = "bookworm"
HOSTFILES = TESTBED / "hostfiles"

# What Debian's installer puts on every machine, as far as a role could notice its absence. Nothing that the
# roles install, and nothing that k3s brings itself (iptables, conntrack, socat).
HOST_PACKAGES = (
    "systemd,systemd-sysv,dbus,udev,openssh-server,sudo,python3,python3-apt,ca-certificates,apt,netbase,tzdata,"
    "iproute2,iputils-ping,nftables,kmod,procps,less"
)
PYTHON_PACKAGES = "python3,python3-venv,ca-certificates"
SLIM = (
    '--aptopt=Acquire::Languages "none"',
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-include=/usr/share/doc/*/copyright",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
)


def apt_sources() -> list[str]:
    """The machine's own apt source lines for Debian's suite, one-line style.

    $HEARTH_BED_APT_SOURCES names a file to use instead, for a machine that runs another distribution.
    """
    given = os.environ.get("HEARTH_BED_APT_SOURCES")
    if given:
        return [line for line in Path(given).read_text().splitlines() if line.startswith("deb ")]
    suites = {SUITE, f"{SUITE}-updates", f"{SUITE}-security"}
    found: list[str] = []
    folder = Path("/etc/apt/sources.list.d")
    for file in [Path("/etc/apt/sources.list"), *sorted(folder.glob("*.list"))]:
        if file.exists():
            for line in file.read_text().splitlines():
                words = re.sub(r"\[[^]]*\]", "", line).split()
                if len(words) >= 4 and words[0] == "deb" and words[2].split("/")[0] in suites:
                    found.append(line)
    for file in sorted(folder.glob("*.sources")):
        for paragraph in re.split(r"\n\s*\n", file.read_text()):
            text = "\n".join(line for line in paragraph.splitlines() if not line.startswith("#"))
            fields = dict(re.findall(r"^([A-Za-z-]+):[ \t]*(.*)$", text, re.MULTILINE))
            if "deb" not in fields.get("Types", "").split() or fields.get("Enabled", "yes") == "no":
                continue
            signed = f"[signed-by={fields['Signed-By']}] " if "Signed-By" in fields else ""
            for suite in fields.get("Suites", "").split():
                if suite in suites:
                    for address in fields["URIs"].split():
                        found.append(f"deb {signed}{address} {suite} {fields.get('Components', 'main')}")
    if not found:
        raise BedError(f"this machine has no apt source for Debian {SUITE}: name a file with one in HEARTH_BED_APT_SOURCES")
    return sorted(set(found))


def machine_bundle() -> Path:
    """The certificates that this machine trusts: a proxy before the registries may have one of its own."""
    return Path(os.environ.get("SSL_CERT_FILE") or "/etc/ssl/certs/ca-certificates.crt")


def certificates(bundle: str) -> list[str]:
    """Each PEM certificate of a bundle, normalised so that two bundles can be compared."""
    found = re.findall(r"-----BEGIN CERTIFICATE-----\s.*?-----END CERTIFICATE-----", bundle, re.DOTALL)
    return ["\n".join(line.strip() for line in pem.splitlines() if line.strip()) + "\n" for pem in found]


def host_inputs() -> list[str | bytes | Path]:
    """Everything that the hosts' root file system is made of."""
    return [
        *apt_sources(),
        HOST_PACKAGES,
        *SLIM,
        HOSTFILES,
        platform.release(),
        machine_bundle(),
        *cache.texts(_bootstrap, trust_machine, _built_in_modules),
    ]


def _bootstrap(packages: str, target: Path, log: Path) -> None:
    """Unpack Debian into `target`, a folder or a .tar file."""
    with tempfile.TemporaryDirectory(prefix="hearth-bed-") as scratch:
        sources = Path(scratch) / "bed.list"
        sources.write_text("\n".join(apt_sources()) + "\n")
        run("mmdebstrap", "--variant=minbase", *SLIM, f"--include={packages}", SUITE, target, sources, log=log)


def trust_machine(root: Path) -> None:
    """Give the tree the certificates that only this machine knows: apt and pip then work behind its proxy."""
    known = set(certificates((root / "etc/ssl/certs/ca-certificates.crt").read_text()))
    extra = [pem for pem in certificates(machine_bundle().read_text()) if pem not in known]
    folder = root / "usr/local/share/ca-certificates"
    folder.mkdir(parents=True, exist_ok=True)
    for number, pem in enumerate(extra):
        (folder / f"machine-{number}.crt").write_text(pem)
    run("chroot", root, "update-ca-certificates")
    # pip brings its own bundle and would not see them.
    (root / "etc/pip.conf").write_text("[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n")


def _built_in_modules(root: Path) -> None:
    """Let modprobe succeed for what is compiled into this machine's kernel, and fail for what is not there.

    Without /lib/modules every modprobe fails, also for br_netfilter in a kernel that has it built in.
    """
    release = platform.release()
    folder = root / "lib/modules" / release
    folder.mkdir(parents=True)
    names = {path.name for path in Path("/sys/module").iterdir()}
    config = Path("/proc/config.gz")
    if config.exists():
        options = set(re.findall(r"^CONFIG_([A-Z0-9_]+)=y$", gzip.decompress(config.read_bytes()).decode(), re.M))
        # Modules without parameters have no folder in /sys/module; these are the ones that k3s or a role asks
        # for.
        wanted = {
            "OVERLAY_FS": "overlay", "BRIDGE_NETFILTER": "br_netfilter", "NF_CONNTRACK": "nf_conntrack",
            "NF_TABLES": "nf_tables", "VXLAN": "vxlan", "VETH": "veth", "BRIDGE": "bridge", "TUN": "tun",
            "IP_NF_IPTABLES_LEGACY": "ip_tables", "IP_NF_FILTER": "iptable_filter", "IP_NF_NAT": "iptable_nat",
            "NF_NAT": "nf_nat", "NETFILTER_XT_MATCH_COMMENT": "xt_comment",
            "ISCSI_TCP": "iscsi_tcp", "DM_CRYPT": "dm_crypt", "WIREGUARD": "wireguard",
        }  # fmt: skip
        names |= {module for option, module in wanted.items() if option in options}
        names -= {module for option, module in wanted.items() if option not in options}
    (folder / "modules.builtin").write_text("".join(f"kernel/built-in/{name}.ko\n" for name in sorted(names)))
    (folder / "modules.order").write_text("")
    run("chroot", root, "depmod", release)


def build_host(folder: Path) -> None:
    """The root file system that every host starts from, as a folder `root`."""
    root = folder / "root"
    _bootstrap(HOST_PACKAGES, root, folder / "log")
    trust_machine(root)
    _built_in_modules(root)
    shutil.copy(HOSTFILES / "bed-kernel", root / "usr/local/sbin/bed-kernel")
    shutil.copy(HOSTFILES / "bed-kernel.service", root / "etc/systemd/system/bed-kernel.service")
    run("chroot", root, "systemctl", "enable", "bed-kernel.service")
    # Every host gets keys of its own. rsa and ecdsa are left out: sshd then offers the one kind known_hosts
    # has.
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    # An address that nobody routes waits for nothing; these two would delay every boot.
    run("chroot", root, "systemctl", "mask", "systemd-networkd-wait-online.service", "console-getty.service")
    # mmdebstrap empties the package lists and leaves the folder fresh: apt's cache_valid_time would skip the
    # update.
    os.utime(root / "var/lib/apt/lists", (946684800, 946684800))
    (root / "etc/machine-id").write_text("")
    for leftover in ("etc/hostname", "etc/resolv.conf"):
        (root / leftover).unlink(missing_ok=True)


def python_inputs() -> list[str | bytes | Path]:
    """Everything that the Python base image's file system is made of."""
    return [
        *apt_sources(),
        PYTHON_PACKAGES,
        *SLIM,
        machine_bundle(),
        *cache.texts(_bootstrap, trust_machine, build_python_layer),
    ]


def build_python_layer(folder: Path) -> None:
    """The file system of the Python base image as `layer.tar`, the same bytes for the same packages."""
    root = folder / "root"
    _bootstrap(PYTHON_PACKAGES, root, folder / "log")
    trust_machine(root)
    run(
        "tar", "--create", "--file", folder / "layer.tar", "--directory", root, "--sort=name", "--numeric-owner",
        "--mtime=@946684800", "--exclude=./dev/*", "--exclude=./var/cache/apt/*", "--exclude=./var/lib/apt/lists/*",
        "--exclude=./var/log/*", ".",
    )  # fmt: skip
    shutil.rmtree(root)


@contextlib.contextmanager
def unpacked(*packages: str) -> Iterator[Path]:
    """The files of Debian packages in a scratch folder, nothing installed; apt checks their signatures."""
    with tempfile.TemporaryDirectory(prefix="hearth-bed-") as scratch:
        folder = Path(scratch)
        folder.chmod(0o755)  # apt downloads as its own user
        run("apt-get", "-qq", "download", *packages, cwd=folder)
        archives = sorted(folder.glob("*.deb"))
        if len(archives) != len(packages):
            raise BedError(f"asked apt for {len(packages)} packages and got {len(archives)}: {', '.join(packages)}")
        for archive in archives:
            run("dpkg", "-x", archive, folder / "root")
        yield folder / "root"
