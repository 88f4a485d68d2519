"""What a host looks like from outside, as JSON: run by `python3 -` on the host, standard library only.

    python3 - files       hashes of files, links, users, mounts, network links, firewall, packages
    python3 - processes   pid and start time of k3s, its children, shims and pods (unchanged by a rerun)

Two observations are compared with `differences` on the controller. What is left out is named here, each with
its reason: a comparison that leaves out too much shows nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

# Kernel views, and places whose whole purpose is to change while a machine runs.
VOLATILE = {
    "/proc", "/sys", "/dev", "/run", "/tmp", "/var/tmp",  # noqa: S108  (excluded, not used)
    "/var/log",  # the journal of the very run that is being looked at
    "/var/cache",  # apt's and debconf's caches, ldconfig's and fontconfig's
    "/var/lib/apt",  # package lists: refreshed by any apt run, also by the system's own timer
    "/var/lib/systemd",  # timers' stamps, random seed
    "/root/.ansible",  # Ansible's own scratch space
    "/root/.ssh",  # known hosts and agents of the session
    "/var/lib/private", "/lost+found",
}
# Written by dpkg itself whenever anything was installed and removed again; the packages are compared by name.
DPKG = ("/var/lib/dpkg/", "/var/lib/ucf/", "/var/lib/pam/")
# Rewritten by ldconfig and by dpkg triggers with the same meaning; the inputs are compared.
TRIGGERED = {
    "/etc/ld.so.cache", "/etc/mtab", "/etc/resolv.conf", "/etc/machine-id", "/etc/.pwd.lock",
    "/etc/group-", "/etc/passwd-", "/etc/shadow-", "/etc/gshadow-", "/etc/subuid-", "/etc/subgid-",
}


# The session that looks, and what systemd starts and ends by itself.
SHORT_LIVED = ("sshd", "ps ", "python3 -", "/usr/bin/python3", "/bin/sh", "[", "(sd-", "systemd-userwork", "bash -c")


def run(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return ""


def tree() -> dict[str, str]:
    """Path -> kind, mode, owner and content hash (or link target)."""
    seen: dict[str, str] = {}
    for top, folders, names in os.walk("/"):
        folders[:] = sorted(f for f in folders if os.path.join(top, f) not in VOLATILE)
        for name in [*folders, *names]:
            path = os.path.join(top, name)
            if path.startswith(DPKG) or path in TRIGGERED or path.endswith(".pyc") or name == "__pycache__":
                continue
            try:
                info = os.lstat(path)
                if stat.S_ISLNK(info.st_mode):
                    what = "-> " + os.readlink(path)
                elif stat.S_ISREG(info.st_mode):
                    what = hashlib.sha256(Path(path).read_bytes()).hexdigest() if info.st_size < 64 << 20 else f"{info.st_size} bytes"
                else:
                    what = ""
            except OSError:
                continue  # gone between listing and reading: a temporary file
            seen[path] = f"{stat.filemode(info.st_mode)} {info.st_uid}:{info.st_gid} {what}".rstrip()
    return seen


def files() -> dict[str, object]:
    if shutil.which("nft", path="/usr/sbin:/usr/bin") is None:
        sys.exit("nft is missing on the host: the firewall would be compared empty with empty")
    links = [w.split(":")[1].strip().split("@")[0] for w in run("ip", "-o", "link").splitlines()]
    rules = [line for line in run("nft", "list", "ruleset").splitlines() if "counter packets" not in line]
    rules += [line for line in run("iptables-save").splitlines() if not line.startswith(("#", ":"))]
    return {
        "files": tree(),
        "users": sorted(Path("/etc/passwd").read_text().splitlines()),
        "groups": sorted(Path("/etc/group").read_text().splitlines()),
        "mounts": sorted({line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()}),
        "links": sorted(links),
        "firewall": rules,
        "namespaces": sorted(run("ip", "netns").splitlines()),
        "packages": sorted(run("dpkg-query", "-W", "-f", "${Package} ${Version}\n").splitlines()),
        "units": sorted(run("systemctl", "list-unit-files", "--state=enabled", "--no-legend", "--plain").splitlines()),
    }


def processes() -> dict[str, object]:
    """Start time of every long-lived process but Ansible's, ssh's and ours."""
    rows = {}
    for line in run("ps", "-eo", "pid,lstart,args", "--no-headers").splitlines():
        pid, rest = line.split(None, 1)
        start, arguments = rest[:24], rest[24:].strip()
        if arguments.startswith(SHORT_LIVED) or any(word in arguments for word in ("ansible", "sftp-server", "systemd --user", "apt")):
            continue
        rows[pid] = f"{start} {arguments[:100]}"
    return {"processes": rows}


def differences(before: dict[str, object], after: dict[str, object]) -> list[str]:
    """One line for each thing that is new, gone or changed between two observations."""
    found = []
    for part in sorted(set(before) | set(after)):
        one, two = before.get(part), after.get(part)
        if isinstance(one, dict) and isinstance(two, dict):
            found += [f"{part}: gone {k}: {one[k]}" for k in sorted(set(one) - set(two))]
            found += [f"{part}: new {k}: {two[k]}" for k in sorted(set(two) - set(one))]
            found += [f"{part}: changed {k}: {one[k]} => {two[k]}" for k in sorted(set(one) & set(two)) if one[k] != two[k]]
        elif isinstance(one, list) and isinstance(two, list):
            found += [f"{part}: gone {x}" for x in one if x not in two] + [f"{part}: new {x}" for x in two if x not in one]
    return found


if __name__ == "__main__":
    json.dump(files() if sys.argv[1:] == ["files"] else processes(), sys.stdout)
