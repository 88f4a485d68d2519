"""What the machine looks like from outside, as JSON: run by `python3 -` on it, standard library only.

Reads everything that the roles could touch, and no more: to hash the whole disk takes two minutes on an emulated
processor. Arguments: names of kernel settings to read.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

FOLDERS = ("/etc", "/usr/local", "/var/lib/hearth", "/var/lib/rancher", "/opt", "/home")
# Rewritten by systemd and sshd sessions on their own account.
OWN_LIFE = {"/etc/machine-id", "/etc/resolv.conf", "/etc/.updated", "/etc/.pwd.lock"}


def files() -> dict[str, str]:
    """Path -> mode, owner and content hash, or the target of a link."""
    seen = {}
    for start in FOLDERS:
        for top, folders, names in os.walk(start):
            for path in (Path(top, name) for name in [*folders, *names]):
                if str(path) in OWN_LIFE:
                    continue
                info = path.lstat()
                what = ""
                if stat.S_ISLNK(info.st_mode):
                    what = f"-> {path.readlink()}"
                elif stat.S_ISREG(info.st_mode):
                    what = hashlib.sha256(path.read_bytes()).hexdigest()
                seen[str(path)] = f"{stat.filemode(info.st_mode)} {info.st_uid}:{info.st_gid} {what}".rstrip()
    return seen


def setting(name: str) -> str | None:
    """Value of a kernel setting, None when the kernel has none of that name."""
    path = Path("/proc/sys", *name.split("."))
    return " ".join(path.read_text().split()) if path.exists() else None


def systemctl(*arguments: str) -> str:
    return subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=True).stdout


def units() -> dict[str, str]:
    """Service -> state and the moment it started. Services of a session, such as ours, come and go.

    What is enabled is seen from the links in /etc: `systemctl list-unit-files` takes 11 s here.
    """
    seen = {}
    properties = "--property=Id,ActiveState,ActiveEnterTimestampMonotonic"
    for block in systemctl("show", properties, "*.service").split("\n\n"):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if not values["Id"].startswith(("user@", "user-runtime-dir@", "run-", "systemd-tmpfiles-clean", "systemd-hostnamed")):
            seen[values["Id"]] = f"{values['ActiveState']} since {values['ActiveEnterTimestampMonotonic']}"
    return seen


def main() -> None:
    json.dump(
        {
            "files": files(),
            "modules": sorted(line.split()[0] for line in Path("/proc/modules").read_text().splitlines()),
            "built in": sorted(path.name for path in Path("/sys/module").iterdir()),
            "settings": {name: setting(name) for name in sys.argv[1:]},
            "units": units(),
            "machine": {
                "packages": hashlib.sha256(Path("/var/lib/dpkg/status").read_bytes()).hexdigest(),
                "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            },
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
