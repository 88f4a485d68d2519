"""The hosts: Debian with systemd as first process, in systemd-nspawn, each with its own disk, network and
cgroups.

A host's disk is two folders: `upper`, what it changed of the shared base system (an overlay), and `var`, its
/var on the machine's own file system, because containerd cannot put overlayfs on overlayfs.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from . import cgroups, net
from .common import TESTBED, BedError, copy_tree, remove_tree, run, say, write
from .debian import certificates
from .state import Bed

EXIT_REBOOT = 133  # nspawn with --keep-unit ends with this when its host rebooted
BOOT_DEADLINE_S = 90


class Disk:
    """Writes into a host's disk before it boots, on top of the base system."""

    def __init__(self, bed: Bed, host: str) -> None:
        self.base = Path(bed.hostfs)
        self.upper = bed.host_dir(host) / "upper"

    def put(self, name: str, text: str, mode: int = 0o644) -> None:
        """Write a file; folders above it keep the mode they have in the base, which an overlay would hide."""
        self._folders(Path(name).parent)
        write(self.upper / name, text, mode)

    def link(self, name: str, target: str) -> None:
        self._folders(Path(name).parent)
        (self.upper / name).symlink_to(target)

    def _folders(self, folder: Path) -> None:
        for part in [*reversed(folder.parents), folder]:
            if not (self.upper / part).is_dir():
                (self.upper / part).mkdir()
                if (self.base / part).is_dir():
                    shutil.copystat(self.base / part, self.upper / part)
                    owner = (self.base / part).stat()
                    os.chown(self.upper / part, owner.st_uid, owner.st_gid)


def prepare(bed: Bed, host: str) -> None:
    """Make the disk of a host that has never booted."""
    folder = bed.host_dir(host)
    (folder / "upper").mkdir(parents=True)
    shutil.copystat(bed.hostfs, folder / "upper")
    copy_tree(Path(bed.hostfs) / "var", folder / "var")
    disk = Disk(bed, host)
    disk.put("etc/hostname", f"{host}\n")
    disk.put("etc/hosts", f"127.0.0.1\tlocalhost\n127.0.1.1\t{host}\n::1\tlocalhost ip6-localhost ip6-loopback\n")
    disk.put("etc/resolv.conf", Path("/etc/resolv.conf").read_text())
    disk.put("root/.ssh/authorized_keys", (bed.folder / "id_ed25519.pub").read_text(), 0o600)
    (disk.upper / "root/.ssh").chmod(0o700)
    for suffix, mode in (("", 0o600), (".pub", 0o644)):
        key = (bed.folder / f"hostkeys/{host}{suffix}").read_text()
        disk.put(f"etc/ssh/ssh_host_ed25519_key{suffix}", key, mode)
    # The bed's own authority, as on a machine whose administrator trusts their mirror.
    authority = (bed.folder / "ca.crt").read_text()
    bundle = (Path(bed.hostfs) / "etc/ssl/certs/ca-certificates.crt").read_text()
    disk.put("usr/local/share/ca-certificates/hearth-bed.crt", authority)
    disk.put("etc/ssl/certs/ca-certificates.crt", "".join([*certificates(bundle), authority]))
    disk.link("etc/ssl/certs/hearth-bed.pem", "/usr/local/share/ca-certificates/hearth-bed.crt")
    subject = run("openssl", "x509", "-noout", "-subject_hash", "-in", bed.folder / "ca.crt").stdout.strip()
    disk.link(f"etc/ssl/certs/{subject}.0", "hearth-bed.pem")


def keys(bed: Bed) -> None:
    """Make the bed's ssh key, a key for each host, and the files by which ssh knows them."""
    for path, comment in [
        (bed.folder / "id_ed25519", f"bed-{bed.name}"),
        *((bed.folder / "hostkeys" / host, host) for host in bed.hosts),
    ]:
        path.parent.mkdir(exist_ok=True)
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path)
    known: list[str] = []
    config = [
        "Host *",
        "  User root",
        f"  IdentityFile {bed.folder / 'id_ed25519'}",
        "  IdentitiesOnly yes",
        f"  UserKnownHostsFile {bed.folder / 'known_hosts'}",
        "  StrictHostKeyChecking yes",
        "  LogLevel ERROR",
        "",
    ]
    for host in bed.hosts:
        kind, key, _ = (bed.folder / f"hostkeys/{host}.pub").read_text().split()
        known.append(f"{host},{bed.address(host)} {kind} {key}\n")
        config += [
            f"Host {host} {bed.address(host)}",
            f"  HostName {bed.address(host)}",
            f"  HostKeyAlias {host}",
            "",
        ]
    write(bed.folder / "known_hosts", "".join(known))
    write(bed.folder / "ssh_config", "\n".join(config))


def start(bed: Bed, host: str) -> None:
    """Switch a host on; returns before it has booted. Its supervisor outlives this process."""
    name = bed.cgroup(host)
    if cgroups.pids(name):
        raise BedError(f"{host} of bed {bed.name} is on already")
    cgroups.create(name)
    with (bed.host_dir(host) / "console.log").open("a") as log:
        # The child joins its cgroup itself before it becomes anything: `down` finds it there, or has removed
        # the cgroup and the child cannot start. There is no moment in between.
        subprocess.Popen(
            [sys.executable, str(TESTBED / "bed"), "supervise", "--name", bed.name, host],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=lambda: cgroups.join(name),
            cwd="/",
        )


def supervise(bed: Bed, host: str) -> int:
    """Run a host until it is switched off: the loop around systemd-nspawn. Runs in the host's own cgroup."""
    leader: subprocess.Popen[bytes] | None = None

    def orderly(_signal: int, _frame: object) -> None:
        if leader is not None:
            leader.terminate()  # nspawn passes it on as systemd's signal for an orderly stop

    signal.signal(signal.SIGTERM, orderly)
    folder = bed.host_dir(host)
    for part in ("work", "root"):
        remove_tree(folder / part)
        (folder / part).mkdir()
    while True:
        net.host_up(bed, host)
        cgroups.prune(bed.cgroup(host))
        # The overlay is mounted in a mount namespace of its own: nothing of it shows on the machine, and it
        # is gone with the last process of the host, however that ended.
        mount = f"lowerdir={bed.hostfs},upperdir={folder}/upper,workdir={folder}/work"
        script = 'mount -t overlay overlay -o "$1" "$2"; shift 2; exec "$@"'
        nspawn = [
            "systemd-nspawn",
            "--quiet",
            "--boot",
            f"--directory={folder}/root",
            f"--machine={bed.machine(host)}",
            f"--hostname={host}",
            "--register=no",
            "--keep-unit",
            "--settings=no",
            f"--network-namespace-path=/run/netns/{bed.namespace(host)}",
            "--capability=all",
            # runc joins a session keyring, which nspawn's filter refuses by default.
            "--system-call-filter=@keyring bpf perf_event_open",
            "--resolv-conf=off",
            "--private-users=no",
            "--link-journal=no",
            "--console=pipe",
            "--bind=/dev/kmsg",
            f"--bind={folder}/var:/var",
        ]
        leader = subprocess.Popen(
            [
                "unshare",
                "--mount",
                "--propagation=private",
                "sh",
                "-ec",
                script,
                "sh",
                mount,
                f"{folder}/root",
                *nspawn,
            ],
            stdin=subprocess.DEVNULL,
            env={
                "PATH": os.environ["PATH"],
                "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network",
                "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "0",
            },
        )
        code = leader.wait()
        if code != EXIT_REBOOT:
            net.host_down(bed, host)
            return code


def power_off(bed: Bed, host: str) -> None:
    """Pull the plug: every process ends at the same moment and nothing is written any more."""
    cgroups.remove(bed.cgroup(host))
    net.host_down(bed, host)


def renew(bed: Bed, host: str) -> None:
    """Put a machine that has never booted into a host's place, and switch it on. It has the name and the ssh keys of the old one."""
    power_off(bed, host)
    for part in ("upper", "var"):
        remove_tree(bed.host_dir(host) / part)
    prepare(bed, host)
    start(bed, host)


def stop(bed: Bed, host: str, deadline_s: float = 60) -> None:
    """Shut a host down in good order; raises BedError when it does not end in time."""
    supervisor = _supervisor(bed, host)
    if supervisor is not None:
        os.kill(supervisor, signal.SIGTERM)
    end = time.monotonic() + deadline_s
    while cgroups.pids(bed.cgroup(host)):
        if time.monotonic() > end:
            raise BedError(f"{host} did not shut down in {deadline_s:.0f} s; `bed power-off {host}` pulls the plug")
        time.sleep(0.1)
    power_off(bed, host)


def _supervisor(bed: Bed, host: str) -> int | None:
    for pid in cgroups.pids(bed.cgroup(host)):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            if "supervise" in words and words[-2] == host:
                return pid
    return None


def is_on(bed: Bed, host: str) -> bool:
    return bool(cgroups.pids(bed.cgroup(host)))


def answers(bed: Bed, host: str) -> bool:
    """Whether the host's sshd greets."""
    try:
        with socket.create_connection((bed.address(host), 22), timeout=1) as connection:
            connection.settimeout(1)
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def ssh(bed: Bed, host: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a host and return it with its text."""
    return run("ssh", "-F", bed.folder / "ssh_config", host, "--", *command, check=False)


def wait_for_boot(bed: Bed, hosts: list[str]) -> None:
    """Return when every host has booted completely; BedError with the console's end when one has not."""
    end = time.monotonic() + BOOT_DEADLINE_S
    pending = list(hosts)
    while pending:
        for host in list(pending):
            if not is_on(bed, host):
                raise BedError(f"{host} ended while it booted:\n{_console(bed, host)}")
            if answers(bed, host):
                said = ssh(bed, host, "systemctl", "is-system-running", "--wait").stdout.strip()
                if said in ("running", "degraded"):
                    if said == "degraded":
                        failed = ssh(bed, host, "systemctl", "--failed", "--plain", "--no-legend").stdout
                        say(f"  {host}: units failed at boot: {failed.strip()}")
                    pending.remove(host)
        if pending and time.monotonic() > end:
            raise BedError(f"{pending[0]} did not boot in {BOOT_DEADLINE_S} s:\n{_console(bed, pending[0])}")
        if pending:
            time.sleep(0.1)


def _console(bed: Bed, host: str) -> str:
    log = bed.host_dir(host) / "console.log"
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:]) if log.exists() else "(no console)"


def forget(name: str) -> None:
    """Remove what systemd-nspawn leaves on the machine for the hosts of a bed."""
    for folder in Path("/run/systemd/nspawn").glob(f"*/bed-{name}.h*"):
        with contextlib.suppress(OSError):
            folder.rmdir() if folder.is_dir() else folder.unlink()


def snapshot(bed: Bed, tag: str) -> None:
    """Copy the disks of all hosts under a tag; running hosts are shut down in good order and restarted."""
    target = bed.folder / "snapshots" / tag
    partial = target.with_name(f".{tag}")
    running = [host for host in bed.hosts if is_on(bed, host)]
    for host in running:
        stop(bed, host)
    remove_tree(partial)
    partial.mkdir(parents=True)
    for host in bed.hosts:
        (partial / host).mkdir()
        for part in ("upper", "var"):
            copy_tree(bed.host_dir(host) / part, partial / host / part)
    write(partial / "running.json", json.dumps(running))
    remove_tree(target)
    partial.rename(target)
    for host in running:
        start(bed, host)
    wait_for_boot(bed, running)


def restore(bed: Bed, tag: str) -> None:
    """Put the disks of a snapshot back and start the hosts that ran when it was taken."""
    source = bed.folder / "snapshots" / tag
    if not source.is_dir():
        tags = sorted(path.name for path in (bed.folder / "snapshots").glob("[!.]*"))
        raise BedError(f"bed {bed.name} has no snapshot {tag}; it has: {', '.join(tags) or 'none'}")
    for host in bed.hosts:
        power_off(bed, host)
        for part in ("upper", "var"):
            remove_tree(bed.host_dir(host) / part)
            copy_tree(source / host / part, bed.host_dir(host) / part)
    running: list[str] = json.loads((source / "running.json").read_text())
    for host in running:
        start(bed, host)
    wait_for_boot(bed, running)
