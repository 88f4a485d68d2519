#!/usr/bin/python
# Copyright: The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: look at a host, change nothing."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: host_survey
short_description: Look at a host, in one go
version_added: 0.1.0
description:
  - Reads what the roles of this collection need to know of a host, and changes nothing.
  - One call replaces the gathering of facts and a dozen small tasks. Only the parts named in O(gather) are read.
  - Needs Python on the host, and root to name the owner of a port that another user holds.
author:
  - The Hearth developers (@hearth)
attributes:
  check_mode:
    support: full
    description: It never changes anything.
  diff_mode:
    support: none
    description: There is nothing to compare.
options:
  gather:
    description: Parts to read.
    type: list
    elements: str
    choices: [system, clock, network, kernel, packages, services, paths, k3s, state]
    default: [system, clock, network, kernel, packages, services, paths, k3s, state]
  disk_paths:
    description: Paths whose file system is measured. A path that does not exist yet counts for the nearest folder above it.
    type: list
    elements: str
    default: []
  ports:
    description: Ports that somebody wants to use.
    type: list
    elements: dict
    default: []
    suboptions:
      port:
        description: Number of the port.
        type: int
        required: true
      protocol:
        description: Protocol of the port.
        type: str
        choices: [tcp, udp]
        default: tcp
      owners:
        description: >-
          Who may hold it: a systemd unit (V(k3s.service)), or a path that the program or one of its arguments
          begins with.
        type: list
        elements: str
        default: []
  modules:
    description: Kernel modules to ask about.
    type: list
    elements: str
    default: []
  sysctl:
    description: Names of kernel settings to read.
    type: list
    elements: str
    default: []
  packages:
    description: Debian packages to ask about.
    type: list
    elements: str
    default: []
  list_packages:
    description: Return the names of all installed packages too.
    type: bool
    default: false
  services:
    description: systemd units to ask about.
    type: list
    elements: str
    default: []
  paths:
    description: Paths to ask about.
    type: list
    elements: str
    default: []
  globs:
    description: Patterns of paths, as the shell has them, whose matches are wanted.
    type: list
    elements: str
    default: []
  data_dir:
    description: Data directory of k3s.
    type: str
    default: /var/lib/rancher/k3s
  hash_binary:
    description: Return the sha256 of the k3s binary.
    type: bool
    default: false
  token:
    description: Token that the inventory gives, to be compared with the one in use. Only the comparison is returned.
    type: str
    default: ""
  probe:
    description: A download whose source shall be tried, by architecture. Nothing is tried when the host needs no download.
    type: dict
    suboptions:
      version:
        description: Version of k3s that is wanted. A host that runs it needs no download.
        type: str
        required: true
      urls:
        description: Address by architecture (V(amd64), V(arm64)).
        type: dict
        required: true
  earlier:
    description:
      - What this module returned for the same host before. When it is less than a minute old and answers all that is
        asked here, it is returned again and the host is left alone.
      - Give it only where nothing can have changed the host in between. Clock and network are always looked at anew.
    type: dict
"""

EXAMPLES = r"""
- name: Look at the host
  homelab.hearth.host_survey:
    disk_paths: [/var/lib/rancher]
    ports:
      - port: 6443
        owners: [k3s.service]
    modules: [overlay, br_netfilter]
  register: _survey

- name: Show how much the clock is off
  ansible.builtin.debug:
    var: _survey.survey.clock.skew_s
"""

RETURN = r"""
survey:
  description: What was found. A part that was not asked for is missing.
  returned: success
  type: dict
  contains:
    system:
      description: >-
        hostname, architecture (amd64, arm64 or what uname says), machine, cores, memory_mb, swap_mb, kernel,
        os (id, id_like, version, codename, name), systemd, reboot_pending, cgroups (version, controllers),
        python (executable, version, venv).
      type: dict
    clock:
      description: epoch (seconds), synchronised, and skew_s (the smallest and largest difference to the controller that fits).
      type: dict
    network:
      description: routes (destination, gateway, interface), default_route, ports (port, protocol, free, ours, process, unit), firewalls.
      type: dict
    kernel:
      description: modules (name to loaded, builtin, available, absent or unknown) and sysctl (name to value, null where it does not exist).
      type: dict
    packages:
      description: >-
        installed (name to version) of those asked for, interrupted (dpkg was stopped in the middle), removable (brought by
        the host role, and needed by nothing else), and all when wanted.
      type: dict
    services:
      description: Unit name to active, enabled and exists.
      type: dict
    paths:
      description: >-
        content (path to missing, empty or used), disks (path to mount, filesystem, free_mb, total_mb) and globs (pattern to
        the paths that match).
      type: dict
    k3s:
      description: >-
        version, sha256, units, kind (server, agent or empty), active, datastore (sqlite, etcd or empty), joined, token_file
        and node_password (whether there is one), ca_sha256 (fingerprint of the cluster's authority), config (settings in our
        config.yaml that decide about the host's place, and those that cannot be changed), kubeconfig, dropins, links (name to
        absent, ours or foreign), token_matches (true, false or null), download.
      type: dict
    state:
      description: What the host role remembers in /var/lib/hearth/host-state.json, empty when there is none.
      type: dict
asked:
  description: What was asked, without token and probe, for O(earlier).
  returned: success
  type: dict
looked_at:
  description: When the host was looked at, in seconds of the controller's clock.
  returned: success
  type: float
"""

import contextlib
import ctypes
import ctypes.util
import glob
import gzip
import hashlib
import hmac
import importlib.util
import json
import os
import pathlib
import platform
import shutil
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.hearth.plugins.module_utils import _host, _k3s, _topology

K3S = pathlib.Path("/usr/local/bin/k3s")
STATE = pathlib.Path("/var/lib/hearth/host-state.json")


def read(path: str | pathlib.Path) -> str | None:
    """Content of a small text file, None when it cannot be read."""
    try:
        return pathlib.Path(path).read_text(errors="replace")
    except OSError:
        return None


def command(module: AnsibleModule, *words: str) -> str:
    """Standard output of a command, empty when it is missing or fails."""
    program = shutil.which(words[0], path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    if program is None:
        return ""
    code, output, _error = module.run_command([program, *words[1:]])
    return str(output) if code == 0 else ""


# -- system -----------------------------------------------------------------------------------------------------


def survey_system() -> dict[str, Any]:
    kernel = platform.release()
    trees = [p.name for p in pathlib.Path("/lib/modules").glob("*") if (p / "modules.dep").exists()]
    return {
        "hostname": platform.node(),
        "machine": platform.machine(),
        "architecture": _host.architecture(platform.machine()),
        "cores": os.cpu_count() or 1,
        **_host.parse_meminfo(read("/proc/meminfo") or ""),
        "kernel": kernel,
        # Modules for other kernels only: the running one was replaced on disk, and modprobe finds nothing.
        "reboot_pending": bool(trees) and kernel not in trees,
        "os": _host.parse_os_release(read("/etc/os-release") or read("/usr/lib/os-release") or ""),
        "systemd": pathlib.Path("/run/systemd/system").is_dir(),
        "cgroups": _host.parse_cgroups(read("/proc/cgroups") or "", read("/sys/fs/cgroup/cgroup.controllers")),
        "python": {
            "executable": sys.executable,
            "version": list(sys.version_info[:3]),
            # Debian splits venv: the module is there, the part that puts pip into it is not.
            "venv": all(importlib.util.find_spec(name) is not None for name in ("venv", "ensurepip")),
        },
    }


# -- clock ------------------------------------------------------------------------------------------------------


def survey_clock() -> dict[str, Any]:
    return {"epoch": time.time(), "synchronised": clock_synchronised()}


def clock_synchronised() -> bool | None:
    """Whether the kernel knows of a time service that keeps the clock; None where it cannot be asked."""
    libc_name = ctypes.util.find_library("c")
    if libc_name is None:
        return None
    libc = ctypes.CDLL(libc_name, use_errno=True)
    # struct timex begins with `modes`; all zero means: read only. 512 bytes hold it on every architecture.
    buffer = ctypes.create_string_buffer(512)
    state = libc.adjtimex(buffer)
    return None if state < 0 else state != 5  # TIME_ERROR: the clock is not synchronised


# -- network ----------------------------------------------------------------------------------------------------


def survey_network(module: AnsibleModule) -> dict[str, Any]:
    routes = _host.parse_routes(read("/proc/net/route") or "")
    default = [r for r in routes if r["destination"] == "0.0.0.0/0"]
    wanted = module.params["ports"]
    firewalls = [name for name in ("ufw", "firewalld") if firewall_active(module, name)] if wanted else []
    return {
        "routes": routes,
        "default_route": default[0] if default else None,
        "ports": survey_ports(wanted),
        "firewalls": firewalls,
    }


def firewall_active(module: AnsibleModule, name: str) -> bool:
    if name == "ufw":
        return "ENABLED=yes" in (read("/etc/ufw/ufw.conf") or "")
    return bool(shutil.which("firewalld")) and command(module, "systemctl", "is-active", name).strip() == "active"


def survey_ports(wanted: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each wanted port: is it free, and if not, who holds it and is that one of its owners."""
    listeners: list[dict[str, Any]] = []
    for table, protocol in (("tcp", "tcp"), ("tcp6", "tcp"), ("udp", "udp"), ("udp6", "udp")):
        listeners += _host.parse_listeners(read(f"/proc/net/{table}") or "", protocol)
    taken = {(e["protocol"], e["port"]): e["inode"] for e in listeners}
    inodes = {taken[key] for key in ((w["protocol"], w["port"]) for w in wanted) if key in taken}
    holders = socket_holders(inodes) if inodes else {}
    result = []
    for want in wanted:
        inode = taken.get((want["protocol"], want["port"]))
        entry = {"port": want["port"], "protocol": want["protocol"], "free": inode is None, "ours": False}
        if inode is not None:
            pid = holders.get(inode)
            entry.update(describe_process(pid, want["owners"]))
        result.append(entry)
    return result


def socket_holders(inodes: set[str]) -> dict[str, int]:
    """Inode of a socket -> process id, for the inodes given."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[str, int] = {}
    for folder in pathlib.Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        # A process may end while we look, and a foreign one may not show its files.
        with contextlib.suppress(OSError):
            for link in os.scandir(folder / "fd"):
                with contextlib.suppress(OSError):
                    target = os.readlink(link.path)
                    if target in wanted:
                        found[wanted[target]] = int(folder.name)
        if len(found) == len(wanted):
            break
    return found


def describe_process(pid: int | None, owners: list[str]) -> dict[str, Any]:
    """Name and unit of a process, and whether it is one of the owners. Its arguments are compared, never returned."""
    if pid is None:
        return {"process": "", "unit": "", "ours": False}
    unit = _host.unit_of_cgroup(read(f"/proc/{pid}/cgroup") or "")
    try:
        program = os.readlink(f"/proc/{pid}/exe")
    except OSError:
        program = ""
    arguments = (read(f"/proc/{pid}/cmdline") or "").split("\0")
    ours = unit in owners or any(
        word.startswith(owner) for owner in owners if owner.startswith("/") for word in [program, *arguments]
    )
    return {"process": (read(f"/proc/{pid}/comm") or "").strip(), "unit": unit, "ours": ours}


# -- kernel -----------------------------------------------------------------------------------------------------


def survey_kernel(module: AnsibleModule) -> dict[str, Any]:
    names = module.params["modules"]
    values = {key: read(_host.sysctl_path(key)) for key in module.params["sysctl"]}
    result: dict[str, Any] = {"sysctl": {k: None if v is None else " ".join(v.split()) for k, v in values.items()}}
    result["modules"] = {}
    if names:
        tree = f"/lib/modules/{platform.release()}"
        filesystems = {line.split()[-1] for line in (read("/proc/filesystems") or "").splitlines() if line.split()}
        known: dict[str, Any] = {
            "loaded": {line.split()[0] for line in (read("/proc/modules") or "").splitlines() if line},
            "sysfs": {p.name for p in pathlib.Path("/sys/module").glob("*")},
            "builtin_list": read(f"{tree}/modules.builtin"),
            "dependency_list": read(f"{tree}/modules.dep"),
            "config": kernel_config(),
            "filesystems": filesystems,
        }
        result["modules"] = {name: _host.module_state(name, **known) for name in names}
    return result


def kernel_config() -> dict[str, str] | None:
    try:
        text = gzip.decompress(pathlib.Path("/proc/config.gz").read_bytes()).decode(errors="replace")
    except OSError:
        found = read(f"/boot/config-{platform.release()}")
        if found is None:
            return None
        text = found
    config: dict[str, str] = _host.parse_kernel_config(text)
    return config


# -- packages, services, paths ------------------------------------------------------------------------------------


def survey_packages(module: AnsibleModule) -> dict[str, Any]:
    status = read("/var/lib/dpkg/status") or ""
    installed = _host.parse_dpkg_status(status)
    journal = [p for p in pathlib.Path("/var/lib/dpkg/updates").glob("*") if p.name.isdigit()]
    result: dict[str, Any] = {
        "installed": {n: installed[n] for n in module.params["packages"] if n in installed},
        "interrupted": bool(journal) or _host.dpkg_interrupted(status),
        "removable": _host.removable_packages(set(survey_state().get("packages", [])), status),
    }
    if module.params["list_packages"]:
        result["all"] = sorted(installed)
    return result


def survey_services(module: AnsibleModule) -> dict[str, Any]:
    names = module.params["services"]
    if not names:
        return {}
    shown = command(module, "systemctl", "show", "--property=Id,ActiveState,UnitFileState,LoadState", *names)
    units = _host.parse_systemctl_show(shown)
    return {
        name: {
            "exists": units.get(name, {}).get("LoadState") == "loaded",
            "active": units.get(name, {}).get("ActiveState") == "active",
            "enabled": units.get(name, {}).get("UnitFileState", "").startswith("enabled"),
        }
        for name in names
    }


def survey_paths(module: AnsibleModule) -> dict[str, Any]:
    mounts = read("/proc/self/mountinfo") or ""
    disks = {}
    for path in module.params["disk_paths"]:
        existing = pathlib.Path(path)
        while not existing.exists():
            existing = existing.parent
        usage = os.statvfs(existing)
        disks[path] = {
            **_host.mount_of(os.path.realpath(existing), mounts),
            "free_mb": usage.f_bavail * usage.f_frsize // 2**20,
            "total_mb": usage.f_blocks * usage.f_frsize // 2**20,
        }
    return {
        "content": {p: path_content(pathlib.Path(p)) for p in module.params["paths"]},
        "disks": disks,
        "globs": {pattern: sorted(glob.glob(pattern)) for pattern in module.params["globs"]},
    }


def path_content(path: pathlib.Path) -> str:
    """missing, empty (a folder with nothing in it), or used."""
    if not path.exists():
        return "missing"
    return "empty" if path.is_dir() and not any(path.iterdir()) else "used"


# -- k3s ----------------------------------------------------------------------------------------------------------


class Digest(threading.Thread):
    """sha256 of a file, beside everything else: hashing k3s takes as long as all the rest, and needs no lock of Python's."""

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__(daemon=True)
        self.path, self.digest = path, hashlib.sha256()
        self.complete = False
        self.start()

    def run(self) -> None:
        with contextlib.suppress(OSError), self.path.open("rb") as source:
            while block := source.read(1 << 20):
                self.digest.update(block)
            self.complete = True

    def result(self) -> str:
        """64 hexadecimal digits, empty when the file cannot be read."""
        self.join()
        return self.digest.hexdigest() if self.complete else ""


def survey_k3s(module: AnsibleModule, digest: Digest | None) -> dict[str, Any]:
    data = pathlib.Path(module.params["data_dir"])
    units = sorted(p.stem for p in pathlib.Path("/etc/systemd/system").glob("k3s*.service"))
    text = "\n".join(read(f"/etc/systemd/system/{unit}.service") or "" for unit in units)
    shown = command(module, "systemctl", "show", "--property=Id,ActiveState", *[f"{u}.service" for u in units]) if units else ""
    states = _host.parse_systemctl_show(shown)
    version = _k3s.parse_version(command(module, str(K3S), "--version")) if K3S.exists() else ""
    datastore = ""
    # An empty etcd folder exists on SQLite servers too; the write-ahead log is what tells.
    if (data / "server/db/etcd/member/wal").is_dir():
        datastore = "etcd"
    elif (data / "server/db/state.db").exists():
        datastore = "sqlite"
    dropins = [str(p) for pattern in ("*.yaml", "*.yml") for p in pathlib.Path("/etc/rancher/k3s/config.yaml.d").glob(pattern)]
    dropins += [str(p) for unit in units for p in pathlib.Path(f"/etc/systemd/system/{unit}.service.d").glob("*.conf")]
    dropins += [p for unit in units or ["k3s"] for p in (f"/etc/default/{unit}", f"/etc/sysconfig/{unit}") if pathlib.Path(p).exists()]
    kind = "server" if "k3s server" in text else "agent" if "k3s agent" in text else ""
    return {
        "version": version,
        "sha256": digest.result() if digest else "",
        "units": units,
        "kind": kind,
        "active": any(s.get("ActiveState") == "active" for s in states.values()),
        "datastore": datastore,
        # An agent has its certificate from a server; the key alone is there before anybody has answered.
        "joined": bool(datastore) if kind == "server" else (data / "agent/client-kubelet.crt").exists(),
        "ca_sha256": authority(data),
        # By it k3s knows a node again; a host that was set up anew has none.
        "node_password": pathlib.Path("/etc/rancher/node/password").exists(),
        "token_file": bool((read("/etc/rancher/k3s/token") or "").strip()),
        "config": own_config(read("/etc/rancher/k3s/config.yaml") or ""),
        "kubeconfig": pathlib.Path("/etc/rancher/k3s/k3s.yaml").exists(),
        "dropins": sorted(dropins),
        "links": {name: link_state(name) for name in ("kubectl", "crictl", "ctr")},
        "token_matches": token_matches(module.params["token"], data),
        "download": probe_download(module.params["probe"], version),
    }


# Settings that decide about the host's place in the cluster, and those that k3s reads once. No secret is among them.
SHOWN_KEYS = {"server", "cluster-init", *_topology.FIXED_KEYS}


def own_config(text: str) -> dict[str, Any]:
    config: dict[str, Any] = _k3s.read_own_config(text)
    return {key: value for key, value in config.items() if key in SHOWN_KEYS or key == "token-file"}


def authority(data: pathlib.Path) -> str:
    """sha256 of the cluster's authority: hosts of one cluster trust the same one. It is public; empty where there is none."""
    for path in (data / "server/tls/server-ca.crt", data / "agent/server-ca.crt"):
        text = read(path)
        if text:
            return hashlib.sha256(text.strip().encode()).hexdigest()
    return ""


def link_state(name: str) -> str:
    """absent, ours (a link to k3s), or foreign (a file of that name, or such a command elsewhere)."""
    link = pathlib.Path("/usr/local/bin") / name
    if link.is_symlink() and os.readlink(link) in ("k3s", str(K3S)):
        return "ours"
    elsewhere = shutil.which(name, path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/snap/bin")
    return "foreign" if elsewhere or link.is_symlink() or link.exists() else "absent"


def token_matches(token: str, data: pathlib.Path) -> bool | None:
    """Whether the given token is the one that the data was made with; None when either is missing."""
    in_use = read(data / "server" / "token")
    if not token or not in_use:
        return None
    return hmac.compare_digest(_k3s.token_secret(in_use).encode(), _k3s.token_secret(token).encode())


def probe_download(probe: dict[str, Any] | None, version: str) -> dict[str, Any] | None:
    """Try the download's address with a HEAD request: {url, ok, seconds, error}. None when no download is needed."""
    url = (probe or {}).get("urls", {}).get(_host.architecture(platform.machine()))
    if not probe or not url or version == probe["version"]:
        return None
    start = time.monotonic()
    error = ""
    try:
        request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "hearth"})  # noqa: S310
        with urllib.request.urlopen(request, timeout=15, context=ssl.create_default_context()):  # noqa: S310
            pass
    except urllib.error.HTTPError as failure:
        error = f"answers {failure.code} {failure.reason}"
    except (OSError, ValueError) as failure:
        reason = getattr(failure, "reason", failure)
        error = getattr(reason, "strerror", None) or str(reason)
    return {"url": url, "ok": not error, "seconds": round(time.monotonic() - start, 2), "error": error}


def survey_state() -> dict[str, Any]:
    try:
        state = json.loads(STATE.read_text())
    except (OSError, ValueError):
        # A file cut off by a power failure is worth nothing; the role writes it anew.
        return {}
    return state if isinstance(state, dict) else {}


def main() -> None:
    parts = ["system", "clock", "network", "kernel", "packages", "services", "paths", "k3s", "state"]
    module = AnsibleModule(
        argument_spec={
            "gather": {"type": "list", "elements": "str", "choices": parts, "default": parts},
            "disk_paths": {"type": "list", "elements": "str", "default": []},
            "ports": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "port": {"type": "int", "required": True},
                    "protocol": {"type": "str", "choices": ["tcp", "udp"], "default": "tcp"},
                    "owners": {"type": "list", "elements": "str", "default": []},
                },
            },
            "modules": {"type": "list", "elements": "str", "default": []},
            "sysctl": {"type": "list", "elements": "str", "default": []},
            "packages": {"type": "list", "elements": "str", "default": []},
            "list_packages": {"type": "bool", "default": False},
            "services": {"type": "list", "elements": "str", "default": []},
            "paths": {"type": "list", "elements": "str", "default": []},
            "globs": {"type": "list", "elements": "str", "default": []},
            "data_dir": {"type": "str", "default": "/var/lib/rancher/k3s"},
            "hash_binary": {"type": "bool", "default": False},
            "token": {"type": "str", "default": "", "no_log": True},
            "probe": {
                "type": "dict",
                "options": {"version": {"type": "str", "required": True}, "urls": {"type": "dict", "required": True}},
            },
            # For the action part, which answers with it; it never comes here.
            "earlier": {"type": "dict"},
        },
        supports_check_mode=True,
    )
    digest = Digest(K3S) if module.params["hash_binary"] and "k3s" in module.params["gather"] else None
    readers = {
        "system": survey_system,
        "clock": survey_clock,
        "network": lambda: survey_network(module),
        "kernel": lambda: survey_kernel(module),
        "packages": lambda: survey_packages(module),
        "services": lambda: survey_services(module),
        "paths": lambda: survey_paths(module),
        "k3s": lambda: survey_k3s(module, digest),
        "state": survey_state,
    }
    module.exit_json(changed=False, survey={part: readers[part]() for part in module.params["gather"]})


if __name__ == "__main__":
    main()
