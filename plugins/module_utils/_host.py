"""What a Linux host says about itself: parsers of /proc, /sys and dpkg text. Private to the collection.

Every function here is pure: text in, plain data out. The module `host_survey` does the reading, so that each
parser can be tested on text recorded from other machines.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any

# Kernel option that compiles a module in. Only needed where neither /sys/module nor modules.builtin tells, as on
# kernels without module support. A module that is not listed stays "unknown" there.
KERNEL_OPTIONS = {
    "br_netfilter": "CONFIG_BRIDGE_NETFILTER",
    "dm_crypt": "CONFIG_DM_CRYPT",
    "ip_tables": "CONFIG_IP_NF_IPTABLES",
    "iptable_filter": "CONFIG_IP_NF_FILTER",
    "iptable_nat": "CONFIG_IP_NF_NAT",
    "iscsi_tcp": "CONFIG_ISCSI_TCP",
    "nf_conntrack": "CONFIG_NF_CONNTRACK",
    "nf_tables": "CONFIG_NF_TABLES",
    "nfs": "CONFIG_NFS_FS",
    "overlay": "CONFIG_OVERLAY_FS",
    "veth": "CONFIG_VETH",
    "vxlan": "CONFIG_VXLAN",
    "wireguard": "CONFIG_WIREGUARD",
}

ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}

_LISTEN = "0A"


def architecture(machine: str) -> str:
    """`uname -m` -> the name that releases and image platforms use; an unknown machine is returned as it is."""
    return ARCHITECTURES.get(machine, machine)


def parse_os_release(text: str) -> dict[str, Any]:
    """Content of /etc/os-release -> {id, id_like, version, codename, name}."""
    values: dict[str, str] = {}
    for line in text.splitlines():
        key, separator, value = line.partition("=")
        if separator and not key.startswith("#"):
            values[key.strip()] = value.strip().strip('"').strip("'")
    return {
        "id": values.get("ID", ""),
        "id_like": values.get("ID_LIKE", "").split(),
        "version": values.get("VERSION_ID", ""),
        "codename": values.get("VERSION_CODENAME", ""),
        "name": values.get("PRETTY_NAME", ""),
    }


def parse_meminfo(text: str) -> dict[str, int]:
    """Content of /proc/meminfo -> {memory_mb, swap_mb} in MiB."""
    found = {name: int(kib) // 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB", text, re.M)}
    return {"memory_mb": found.get("MemTotal", 0), "swap_mb": found.get("SwapTotal", 0)}


def parse_listeners(text: str, protocol: str) -> list[dict[str, Any]]:
    """Content of /proc/net/{tcp,tcp6,udp,udp6} -> [{port, protocol, inode}] of the sockets that receive.

    TCP sockets count when they listen; UDP has no such state, a bound socket without a peer receives.
    """
    listeners = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 10:
            continue
        peer_port = fields[2].rpartition(":")[2]
        if (protocol == "tcp" and fields[3] != _LISTEN) or (protocol == "udp" and peer_port != "0000"):
            continue
        listeners.append({"port": int(fields[1].rpartition(":")[2], 16), "protocol": protocol, "inode": fields[9]})
    return listeners


def parse_routes(text: str) -> list[dict[str, str]]:
    """Content of /proc/net/route -> [{destination (CIDR), gateway, interface}], IPv4 only, as the kernel lists them."""

    def address(word: str) -> str:
        return str(ipaddress.IPv4Address(bytes.fromhex(word)[::-1]))

    routes = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 8:
            continue
        network = ipaddress.IPv4Network((address(fields[1]), address(fields[7])), strict=False)
        routes.append({"destination": str(network), "gateway": address(fields[2]), "interface": fields[0]})
    return routes


def parse_cgroups(text: str, unified_controllers: str | None) -> dict[str, Any]:
    """Content of /proc/cgroups and of the unified hierarchy's cgroup.controllers -> {version, controllers}.

    Version 2 means that the unified hierarchy holds the controllers. On version 1 a controller counts when it is
    enabled, whatever it is mounted on.
    """
    if unified_controllers is not None and unified_controllers.split():
        return {"version": 2, "controllers": sorted(unified_controllers.split())}
    enabled = []
    for line in text.splitlines():
        fields = line.split()
        if len(fields) == 4 and not line.startswith("#") and fields[3] == "1":
            enabled.append(fields[0])
    return {"version": 1, "controllers": sorted(enabled)}


def parse_kernel_config(text: str) -> dict[str, str]:
    """Content of a kernel's .config -> option name -> y, m or the value; options that are not set are missing."""
    return dict(re.findall(r"^(CONFIG_\w+)=(.*)$", text, re.M))


def _same_name(path: str) -> str:
    """`kernel/net/bridge/br-netfilter.ko.xz:` -> `br_netfilter`: the kernel treats - and _ alike."""
    return re.sub(r"\.ko(\.\w+)?$", "", path.split(":")[0].rpartition("/")[2]).replace("-", "_")


def module_state(
    name: str,
    *,
    loaded: set[str],
    sysfs: set[str],
    builtin_list: str | None,
    dependency_list: str | None,
    config: dict[str, str] | None,
    filesystems: set[str],
) -> str:
    """How the running kernel stands to one module.

    loaded: names in /proc/modules. sysfs: names in /sys/module. builtin_list, dependency_list: content of
    modules.builtin and modules.dep of the running release, None where the file is missing. config: options of the
    kernel, None where unknown. filesystems: names in /proc/filesystems.

    Returns loaded, builtin, available (a file that modprobe can load), absent, or unknown (nothing tells).
    """
    wanted = name.replace("-", "_")
    if wanted in {n.replace("-", "_") for n in loaded}:
        return "loaded"
    if wanted in {n.replace("-", "_") for n in sysfs} or wanted in filesystems:
        return "builtin"
    if builtin_list is not None and wanted in {_same_name(line) for line in builtin_list.splitlines()}:
        return "builtin"
    if dependency_list is not None and wanted in {_same_name(line) for line in dependency_list.splitlines()}:
        return "available"
    option = KERNEL_OPTIONS.get(wanted)
    if config is not None and option is not None:
        # "m" without a module file for this kernel: the package was removed, or the kernel was replaced.
        return "builtin" if config.get(option) == "y" else "absent"
    return "absent" if dependency_list is not None else "unknown"


def parse_dpkg_status(text: str) -> dict[str, str]:
    """Content of /var/lib/dpkg/status -> package name -> version, of what is installed."""
    installed = {}
    for paragraph in text.split("\n\n"):
        if "\nStatus: install ok installed" not in paragraph:
            continue
        name = re.search(r"^Package: (\S+)", paragraph, re.M)
        version = re.search(r"^Version: (\S+)", paragraph, re.M)
        if name and version:
            installed[name.group(1)] = version.group(1)
    return installed


def removable_packages(ours: set[str], text: str) -> list[str]:
    """Those of our packages that nothing else installed depends on, from the content of /var/lib/dpkg/status.

    `apt remove` would take along whatever depends on a removed package, also what a person installed since.
    Alternatives and virtual packages count as needed: rather one package too many stays than one too many goes.
    """
    installed = parse_dpkg_status(text)
    needs: dict[str, set[str]] = {}
    provides: dict[str, set[str]] = {}
    for paragraph in text.split("\n\n"):
        name = re.search(r"^Package: (\S+)", paragraph, re.M)
        if not name or name.group(1) not in installed:
            continue
        fields = re.findall(r"^(?:Pre-)?Depends: (.*)$", paragraph, re.M)
        needs[name.group(1)] = {re.sub(r"[\s(:].*", "", w.strip()) for f in fields for w in re.split(r"[,|]", f)}
        virtual = re.search(r"^Provides: (.*)$", paragraph, re.M)
        names = {re.sub(r"[\s(:].*", "", w.strip()) for w in virtual.group(1).split(",")} if virtual else set()
        provides[name.group(1)] = names | {name.group(1)}
    keep: set[str] = set()
    while True:
        foreign = [n for n in installed if n not in ours or n in keep]
        wanted = {w for n in foreign for w in needs.get(n, set())}
        needed = {n for n in ours - keep if provides.get(n, set()) & wanted}
        if not needed:
            return sorted((ours - keep) & set(installed))
        keep |= needed


def dpkg_interrupted(text: str) -> bool:
    """Whether dpkg was stopped in the middle (power cut): a package is neither installed nor gone."""
    states = re.findall(r"^Status: \S+ \S+ (\S+)", text, re.M)
    return any(state in ("half-installed", "unpacked", "half-configured") for state in states)


def parse_systemctl_show(text: str) -> dict[str, dict[str, str]]:
    """Output of `systemctl show --property=Id,… a b` -> unit name -> property -> value."""
    units: dict[str, dict[str, str]] = {}
    for block in text.strip().split("\n\n"):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if "Id" in values:
            units[values["Id"]] = values
    return units


def unit_of_cgroup(text: str) -> str:
    """Content of /proc/<pid>/cgroup -> the innermost systemd service, or an empty string."""
    services = re.findall(r"/([^/\n]+\.service)(?=/|\n|$)", text)
    return str(services[-1]) if services else ""


def mount_of(path: str, mountinfo: str) -> dict[str, str]:
    """The mount that a path lies on, from /proc/self/mountinfo -> {mount, filesystem, source}."""
    best = {"mount": "/", "filesystem": "", "source": ""}
    for line in mountinfo.splitlines():
        left, _separator, right = line.partition(" - ")
        fields, rest = left.split(), right.split()
        if len(fields) < 5 or len(rest) < 2:
            continue
        mount = fields[4].replace("\\040", " ")
        inside = path == mount or path.startswith(mount.rstrip("/") + "/")
        # Later lines cover earlier ones at the same place.
        if inside and len(mount) >= len(best["mount"]):
            best = {"mount": mount, "filesystem": rest[0], "source": rest[1]}
    return best


def sysctl_path(key: str) -> str:
    """`net.ipv4.ip_forward` -> its file below /proc/sys. A key with slashes keeps its dots (interface names)."""
    return "/proc/sys/" + (key if "/" in key else key.replace(".", "/"))
