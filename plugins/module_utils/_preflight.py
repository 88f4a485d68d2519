"""Judge surveys of hosts against what the roles want of them. Pure. Private to the collection.

A role says what it wants in its entry point `wants` (a fact `_<role>_wants`), the module host_survey says what is
there, and `problems` compares. Nothing here touches a host, so every sentence an operator may read has a unit test.

Keys of one role's wants, all optional:
    part            words for messages: whose wish it is
    supported_os    list of {id, version}: distributions and their oldest version
    architectures   list of names
    systemd, default_route, clock, hostname   true when it is needed
    memory_mb                                 so much is used; the roles' figures are added up
    cores                                     at least so many
    disks           list of {path, free_mb, why, mount}: mount is the mount point it must lie on, empty for any
    ports           list of {port, protocol, why, owners}
    modules         kernel modules that must be there or loadable
    cgroups         controllers that must be enabled
    networks        list of {cidr, why} that no foreign route may cover
    python          {version: [3, 11], venv: true}
    pins            list of {name, kind, version, given: {arch: sha256}}
    k3s             {version, kind, datastore, config, node_name}: compared with what is installed, and among the hosts
    probe           handed to host_survey
    refused         list of {problem, fix}: what the role already knows is wrong
"""

from __future__ import annotations

import ipaddress
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.homelab.hearth.plugins.module_utils import _k3s, _renamed
from ansible_collections.homelab.hearth.plugins.module_utils._problem import Problem, problem

# Bootstrap data tolerates three seconds between servers; certificates that are "not yet valid" appear soon after.
MAX_SKEW_S = 2.0

# Variables that belong to no single role.
COMMON_VARIABLES = frozenset({"hearth_allow_unpinned", "hearth_render_dir"})


# -- one host ---------------------------------------------------------------------------------------------------


def _system(survey: Mapping[str, Any], want: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    system = survey["system"]
    supported = want.get("supported_os", [])
    if supported:
        found = [s for s in supported if s["id"] == system["os"]["id"]]
        names = ", ".join(f"{s['id'].capitalize()} {s['version']}" for s in supported)
        shown = system["os"]["name"] or "this system"
        if not found:
            yield f"{shown} is not supported", f"use one of: {names} (or newer)"
        elif _k3s.version_tuple(system["os"]["version"]) < _k3s.version_tuple(found[0]["version"]):
            yield f"{shown} is too old", f"upgrade it to {found[0]['id'].capitalize()} {found[0]['version']} or newer"
    architectures = want.get("architectures", [])
    if architectures and system["architecture"] not in architectures:
        yield f"the processor is {system['machine']}", f"use a machine with {' or '.join(architectures)}"
    if want.get("systemd") and not system["systemd"]:
        yield "systemd does not run here", "use a system that was booted by systemd"
    if system["cores"] < want.get("cores", 0):
        yield f"{system['cores']} processor cores, {want['part']} needs {want['cores']}", "use a larger machine"
    missing = [c for c in want.get("cgroups", []) if c not in system["cgroups"]["controllers"]]
    if missing:
        yield (
            f"the kernel runs without the cgroup controllers {', '.join(missing)}",
            f"add {' '.join('cgroup_enable=' + c for c in missing)} to the kernel command line and reboot",
        )
    wanted = want.get("python")
    if wanted:
        yield from _python(system["python"], wanted)


def _python(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    version = ".".join(str(n) for n in found["version"])
    needed = ".".join(str(n) for n in wanted["version"])
    if list(found["version"][: len(wanted["version"])]) < list(wanted["version"]):
        yield f"{found['executable']} is Python {version}", f"install Python {needed} or newer and run the play with it"
    elif wanted.get("venv") and not found["venv"]:
        yield (
            f"{found['executable']} cannot make virtual environments",
            "install them: apt install python3-venv",
        )


def _clock(survey: Mapping[str, Any], want: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    low, high = survey["clock"]["skew_s"]
    # Only what cannot be explained by a slow connection counts: the difference lies somewhere between the bounds.
    off = low if low > 0 else high if high < 0 else 0.0
    if want.get("clock") and abs(off) > MAX_SKEW_S:
        yield (
            f"the clock is {abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} the controller's",
            "set the clocks of both: apt install systemd-timesyncd, then timedatectl set-ntp true",
        )


def _network(survey: Mapping[str, Any], want: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    network = survey["network"]
    if want.get("default_route") and not network["default_route"]:
        yield "there is no default route", "add one; without internet a dummy is enough: ip route add default dev <interface>"
    ours = {(p["protocol"], p["port"]): p for p in network["ports"]}
    for port in want.get("ports", []):
        found = ours.get((port.get("protocol", "tcp"), port["port"]))
        if found and not found["free"] and not found["ours"]:
            holder = found.get("process") or "another program"
            # A program that somebody started by hand over ssh counts as part of ssh: never tell people to stop that.
            unit = "" if found.get("unit", "") in ("ssh.service", "sshd.service") else found.get("unit", "")
            yield (
                f"port {port['port']} ({port['why']}) is held by {holder}{f' ({unit})' if unit else ''}",
                port.get("fix") or (f"stop it: systemctl disable --now {unit}" if unit else "stop that program"),
            )
    k3s = survey.get("k3s", {})
    if k3s.get("units"):
        return  # its own routes lie in these networks
    for wanted in want.get("networks", []):
        network_wanted = ipaddress.ip_network(wanted["cidr"])
        for route in network["routes"]:
            destination = ipaddress.ip_network(route["destination"])
            if destination.prefixlen and destination.overlaps(network_wanted):
                yield (
                    f"{route['destination']} on {route['interface']} overlaps {wanted['cidr']} ({wanted['why']})",
                    f"remove that route, or choose another network ({wanted['fix']})",
                )


def _disks(survey: Mapping[str, Any], want: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for disk in want.get("disks", []):
        found = survey["paths"]["disks"].get(disk["path"])
        if found and disk.get("mount") and found["mount"] != disk["mount"]:
            yield (
                f"nothing is mounted at {disk['mount']}: {disk['path']} would lie on the disk of {found['mount']}",
                f"mount the disk there (a line in /etc/fstab, then mount {disk['mount']}), or leave k3s_data_mount empty",
            )
            continue
        if found and found["free_mb"] < disk["free_mb"]:
            yield (
                f"{found['free_mb']} MB of free space under {disk['path']} ({disk['why']}), {disk['free_mb']} MB are needed",
                f"free space on {found['mount']}, or use another disk",
            )


def _modules(survey: Mapping[str, Any], want: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    absent = [m for m in want.get("modules", []) if survey["kernel"]["modules"].get(m) == "absent"]
    if not absent:
        return
    names = ", ".join(absent)
    if survey["system"]["reboot_pending"]:
        yield (
            f"the modules of the running kernel {survey['system']['kernel']} are gone ({names}): it was replaced",
            "reboot the host, or set host_reboot_enabled: true and let the play do it",
        )
    else:
        yield (
            f"the kernel {survey['system']['kernel']} has no {names}",
            "use a kernel with these modules (Debian's linux-image-amd64, linux-image-arm64)",
        )


def _k3s_installed(survey: Mapping[str, Any], want: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    wanted, found = want.get("k3s"), survey.get("k3s")
    if not wanted or not found:
        return
    if found["kind"] and found["kind"] != wanted["kind"]:
        yield (
            f"this host runs a k3s {found['kind']}, the inventory makes it a {wanted['kind']}",
            "put it into the other group, or take k3s off it first: playbooks/reset.yml",
        )
    if found["version"] and found["version"] != wanted["version"]:
        yield from _version_step(found["version"], wanted["version"])
    if found["datastore"] and wanted["kind"] == "agent":
        yield (
            "this host has the data of a cluster's server, and the inventory makes it an agent",
            "take k3s off it first: playbooks/remove_node.yml, or playbooks/reset.yml with --limit",
        )
    if found["token_matches"] is False:
        yield (
            "k3s_token is not the token this cluster was made with",
            "keep the old one, or run `k3s token rotate` on the server first and set k3s_token to the new one afterwards",
        )
    download = found.get("download")
    if download and not download["ok"]:
        yield (
            f"{download['url']} cannot be had: {download['error']}",
            "open the way to it, or set k3s_release_url to a mirror, or k3s_airgap_dir to a folder with the files",
        )


def _version_step(installed: str, wanted: str) -> Iterable[tuple[str, str]]:
    old, new = _k3s.version_tuple(installed), _k3s.version_tuple(wanted)
    if len(old) < 4 or len(new) < 4:
        return
    # `+k3s2` counts: the last number is a release of its own.
    if new < old:
        yield (
            f"k3s {installed} is installed and {wanted} is older",
            "k3s cannot go back in place; set k3s_version to the installed one or a newer one",
        )
    elif new[:2] > (old[0], old[1] + 1):
        yield (
            f"from k3s {installed} to {wanted} is more than one minor version",
            f"go one minor version at a time: first a v{old[0]}.{old[1] + 1} release",
        )


def _pins(survey: Mapping[str, Any], want: Mapping[str, Any], look_up: Callable[..., dict[str, Any]]) -> Iterable[tuple[str, str]]:
    arch = survey["system"]["architecture"]
    for pin in want.get("pins", []):
        if pin.get("given", {}).get(arch):
            continue
        found = look_up(pin["name"], pin["kind"], pin["version"], arch)
        if found["problem"]:
            add = "" if found["listed"] else f" add={pin['name']}@{pin['version']}"
            yield (
                f"{pin['name']} {pin['version']} for {arch} is not pinned: {found['problem']}",
                f"run `make resolve-pins{add}` on a machine with internet{pin.get('or_else', '')}, or set "
                "hearth_allow_unpinned: true and trust the source",
            )


def _memory(survey: Mapping[str, Any], wants: Sequence[Mapping[str, Any]]) -> Iterable[tuple[str, str]]:
    parts = [want for want in wants if want.get("memory_mb")]
    needed = sum(want["memory_mb"] for want in parts)
    if survey["system"]["memory_mb"] < needed:
        listed = ", ".join(f"{want['part']} {want['memory_mb']}" for want in parts)
        yield (
            f"{survey['system']['memory_mb']} MB of memory, {needed} MB are needed ({listed})",
            "add memory, or switch parts off",
        )


def host_problems(
    host: str,
    survey: Mapping[str, Any],
    wants: Sequence[Mapping[str, Any]],
    *,
    look_up: Callable[..., dict[str, Any]],
    unpinned_allowed: bool = False,
) -> list[Problem]:
    """Everything on one host that stands in the way, in the order of the wants."""
    found: list[Problem] = [problem(host, *answer) for answer in _memory(survey, wants)]
    for want in wants:
        answers = [(r["problem"], r["fix"]) for r in want.get("refused", [])]
        for judge in (_system, _clock, _network, _disks, _modules, _k3s_installed):
            answers += judge(survey, want)
        if not unpinned_allowed:
            answers += _pins(survey, want, look_up)
        found += [problem(host, *answer) for answer in answers]
    # Two roles may want the same thing; it is one problem.
    return [p for i, p in enumerate(found) if p not in found[:i]]


# -- all hosts ----------------------------------------------------------------------------------------------------


def node_name(survey: Mapping[str, Any]) -> str:
    """Name under which k3s registers the host: its host name in lower case."""
    return str(survey["system"]["hostname"]).lower()


def node_name_of(variables: Mapping[str, Any]) -> str:
    """Name of a host's node: the one of the inventory, or else what the host is called; unseen, its name in the inventory."""
    survey = (variables.get("_preflight_survey") or {}).get("survey")
    seen = node_name(survey) if survey else variables["inventory_hostname"]
    return str(variables.get("k3s_node_name") or seen)


def name_problems(names: Mapping[str, str]) -> list[Problem]:
    """Node names by host -> what is wrong with them: taken twice, or not usable as a name in Kubernetes."""
    found = []
    counts = Counter(names.values())
    for host, name in names.items():
        if name in ("localhost", "") or not re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?", name):
            found.append(
                problem(host, f"the host name {name or '(empty)'} cannot be the name of a node", "set one: hostnamectl set-hostname NAME")
            )
        elif counts[name] > 1:
            others = ", ".join(sorted(h for h, n in names.items() if n == name and h != host))
            found.append(
                problem(host, f"the host name {name} is also that of {others}", "give each host its own: hostnamectl set-hostname NAME")
            )
    return found


def variable_problems(host: str, variables: Iterable[str], known: Iterable[str]) -> list[Problem]:
    """Variables that begin like one of ours and are none, or are known by another name: they would silently do nothing."""
    all_known = set(known) | COMMON_VARIABLES
    prefixes = {name.split("_", 1)[0] + "_" for name in all_known}
    found = []
    for name in sorted(set(variables)):
        if name in _renamed.RENAMED:
            found.append(problem(host, f"the variable {name} is called otherwise here", f"use {_renamed.RENAMED[name]}"))
            continue
        if name in all_known or name.split("_", 1)[0] + "_" not in prefixes or name == "host_key_checking":
            continue
        near = _k3s.nearest(name, all_known)
        fix = f"did you mean {near}?" if near else "remove it; docs/variables.md lists all"
        found.append(problem(host, f"there is no variable {name}", fix))
    return found


# What a template of an inventory has where a person is to write.
PLACEHOLDER = "CHANGE-ME"


def value_problems(host: str, values: Mapping[str, Any]) -> list[Problem]:
    """Variables that nobody filled in, or that are made of others that are not there.

    values: name -> value; an exception stands for a value that cannot be worked out.
    """
    found = []
    for name, value in sorted(values.items()):
        if isinstance(value, Exception):
            reason = " ".join(str(value).split())
            found.append(
                problem(
                    host,
                    f"{name} cannot be worked out: {reason}",
                    "give what is missing; secrets go into vault.yml, see vault.yml.example",
                )
            )
        elif isinstance(value, str) and PLACEHOLDER in value:
            found.append(problem(host, f"{name} was not filled in", f"write the right value in place of {PLACEHOLDER}"))
    return found


def skew_problems(clocks: Mapping[str, Sequence[float]]) -> list[Problem]:
    """Hosts whose clocks differ from the first one's. clocks: host -> smallest and largest difference to the controller."""
    found = []
    hosts = list(clocks)
    for host in hosts[1:]:
        (low, high), (first_low, first_high) = clocks[host], clocks[hosts[0]]
        # Each difference lies between two bounds; so does that of two hosts.
        between = (low - first_high, high - first_low)
        off = between[0] if between[0] > 0 else between[1] if between[1] < 0 else 0.0
        if abs(off) > MAX_SKEW_S:
            found.append(
                problem(
                    host,
                    f"its clock is {abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} that of {hosts[0]}, and servers that differ by "
                    "more than three do not take each other's certificates",
                    "set the clocks of both: apt install systemd-timesyncd, then timedatectl set-ntp true",
                )
            )
    return found


def notes(host: str, survey: Mapping[str, Any]) -> list[str]:
    """What an operator should know and what stops nothing."""
    found = []
    if survey["clock"]["synchronised"] is False:
        found.append("no time service keeps the clock (apt install systemd-timesyncd)")
    if survey["system"]["swap_mb"]:
        found.append(f"{survey['system']['swap_mb']} MB of swap: k3s runs with it, but memory limits of pods become soft")
    if survey["network"]["firewalls"]:
        firewalls = ", ".join(survey["network"]["firewalls"])
        found.append(f"{firewalls} is on: it must let 6443/tcp, 10250/tcp, 10.42.0.0/16 and 10.43.0.0/16 through")
    dropins = survey.get("k3s", {}).get("dropins", [])
    if dropins:
        found.append(f"files that are not ours override k3s settings: {', '.join(dropins)}")
    return [f"{host}: {note}" for note in found]


def _paragraph(text: str, first: str, rest: str) -> list[str]:
    """Text wrapped to a terminal; addresses and commands stay whole, so that they can be copied."""
    return textwrap.wrap(text, 100, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False)


def _sentence(text: str) -> str:
    return text if text[-1] in ".?!" else text + "."


def report(problems: Sequence[Problem]) -> str:
    """Problems as text for a person: by host, each with its fix."""
    hosts = list(dict.fromkeys(p["host"] for p in problems))
    count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
    lines = [f"{count} to solve first. Nothing has been changed."]
    for host in hosts:
        lines += ["", f"{host}:"]
        for found in (p for p in problems if p["host"] == host):
            text = found["problem"]
            if text.split()[0].isalpha():  # not the name of a setting, not an address: those stay as they are
                text = text[0].upper() + text[1:]
            lines += _paragraph(_sentence(text), "  * ", "    ")
            lines += _paragraph(_sentence("Fix: " + found["fix"]), "    ", "         ")
    return "\n".join(lines)
