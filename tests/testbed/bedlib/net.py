"""The lab network: one namespace with a bridge, one namespace a host, and one link to the machine.

Traffic between hosts stays on the bridge in the lab namespace. The machine's own namespace gets one link, one
route and one firewall table, all named after the bed, and two settings while at least one bed exists.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from .common import BedError, remove_tree, run, write
from .state import MAX_BEDS, Bed, all_beds, firewall_table, lab_namespace, link_name

# Settings of the machine while at least one bed exists, at least this high. inotify instances are counted for the
# machine's root over all hosts: with the usual 128, systemd in the fourth or fifth host finds none left.
MACHINE = {"net/ipv4/ip_forward": 1, "fs/inotify/max_user_instances": 2048}
SAVED = Path("/run/hearth-bed")
SYSCTLS = Path("/proc/sys")
NAMESPACES = Path("/run/netns")


def namespaces() -> list[str]:
    """Names of all network namespaces of this machine."""
    return sorted(path.name for path in NAMESPACES.iterdir()) if NAMESPACES.is_dir() else []


def _links() -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(run("ip", "-j", "addr").stdout)
    return found


def _uplink(index: int, end: int) -> str:
    """Address of the link between machine (end 1) and lab (end 2); four addresses a bed."""
    return f"10.77.255.{4 * index + end}"


def free_index() -> int:
    """The lowest subnet that no bed of any user has. Call with the machine lock held."""
    taken = {bed.index for bed in all_beds()}
    routes = json.loads(run("ip", "-j", "-4", "route", "show", "table", "all").stdout)
    taken_by_route = {str(route.get("dst", "")) for route in routes}
    for index in range(MAX_BEDS):
        if index not in taken and f"10.77.{index}.0/24" not in taken_by_route:
            return index
    raise BedError(f"all {MAX_BEDS} subnets of the bed are taken: `bed status --all` lists the beds")


def up(bed: Bed) -> None:
    """Make the lab. Call with the machine lock held since free_index: the route reserves the subnet."""
    lab, link = bed.lab, bed.link
    run("ip", "netns", "add", lab)
    run("ip", "link", "add", link, "type", "veth", "peer", "name", "up0", "netns", lab)
    run("ip", "addr", "add", f"{_uplink(bed.index, 1)}/30", "dev", link)
    run("ip", "link", "set", link, "up")
    run("ip", "route", "add", bed.subnet, "via", _uplink(bed.index, 2), "dev", link)
    for words in (
        "link set lo up",
        "link add br0 type bridge",
        f"addr add {bed.gateway}/24 dev br0",
        "link set br0 up",
        f"addr add {_uplink(bed.index, 2)}/30 dev up0",
        "link set up0 up",
        f"route add default via {_uplink(bed.index, 1)}",
    ):
        run("ip", "-n", lab, *words.split())
    run("nsenter", f"--net=/run/netns/{lab}", "sysctl", "-qw", "net.ipv4.ip_forward=1")
    table = firewall_table(bed.name)
    # Hosts reach the package registries through the machine, and nothing of another bed.
    run(
        "nft",
        "-f",
        "-",
        stdin=f"""
        table ip {table} {{
          chain post {{
            type nat hook postrouting priority srcnat;
            ip saddr {{ {bed.subnet}, {_uplink(bed.index, 2)} }} oifname != "{link}" masquerade
          }}
          chain between {{
            type filter hook forward priority filter;
            iifname "{link}" ip daddr 10.77.0.0/16 drop
          }}
        }}""",
    )
    raise_settings()


def raise_settings() -> None:
    """Raise what beds need of the machine; the first bed notes the old values."""
    SAVED.mkdir(exist_ok=True)
    for name, least in MACHINE.items():
        setting, saved = SYSCTLS / name, SAVED / name.replace("/", ".")
        value = int(setting.read_text())
        if not saved.exists():
            write(saved, f"{value}\n")
        if value < least:
            setting.write_text(f"{least}\n")


def restore_settings() -> None:
    """Put back what the first bed noted; for the last bed that goes."""
    for name in MACHINE:
        saved = SAVED / name.replace("/", ".")
        if saved.exists():
            (SYSCTLS / name).write_text(saved.read_text())
    remove_tree(SAVED)


def host_up(bed: Bed, host: str) -> None:
    """Make a host's namespace anew: no route or firewall rule outlives a power cut or reboot."""
    host_down(bed, host)
    namespace, port = bed.namespace(host), f"v{host}"
    run("ip", "netns", "add", namespace)
    run("ip", "-n", bed.lab, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace)
    run("ip", "-n", bed.lab, "link", "set", port, "master", "br0", "up")
    for words in (
        "link set lo up",
        f"addr add {bed.address(host)}/24 dev eth0",
        "link set eth0 up",
        f"route add default via {bed.gateway}",
    ):
        run("ip", "-n", namespace, *words.split())


def cable(bed: Bed, host: str, *, connected: bool) -> None:
    """Pull a host's network cable, or put it in again; addresses and routes of the host stay. `host_up` begins with it in."""
    run("ip", "-n", bed.lab, "link", "set", f"v{host}", "up" if connected else "down")


def host_down(bed: Bed, host: str) -> None:
    """Pull the plug first: a namespace lives on as long as a process of it does."""
    run("ip", "-n", bed.lab, "link", "del", f"v{host}", check=False)
    if bed.namespace(host) in namespaces():
        _delete(bed.namespace(host))


def _delete(namespace: str) -> None:
    # An `ip netns add` that was killed leaves its file without a namespace mounted on it; `del` refuses that.
    run("ip", "netns", "del", namespace, check=False)
    (NAMESPACES / namespace).unlink(missing_ok=True)


def down(name: str) -> None:
    """Remove the bed's network by its names; what is not there is fine. Call with the machine lock held."""
    for namespace in namespaces():
        if namespace == lab_namespace(name) or namespace.startswith(f"{lab_namespace(name)}."):
            _delete(namespace)
    link = link_name(name)
    if any(entry["ifname"] == link for entry in _links()):
        run("ip", "link", "del", link, check=False)  # the kernel may remove it with the lab just now
    end = time.monotonic() + 5
    while any(entry["ifname"] == link for entry in _links()):
        if time.monotonic() > end:
            raise BedError(f"the link {link} does not go away")
        time.sleep(0.02)
    table = firewall_table(name)
    if f"table ip {table}\n" in run("nft", "list", "tables").stdout:
        run("nft", "delete", "table", "ip", table)
    if not any(str(entry["ifname"]).startswith("bed-") for entry in _links()):
        restore_settings()
