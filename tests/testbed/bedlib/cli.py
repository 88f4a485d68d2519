"""The `bed` command."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from . import build, cgroups, host, inventory, net, release, services, state, tls
from .common import BedError, machine_lock, need_root, need_tools, remove_tree, say, step, write

TOOLS = {
    "ip": "iproute2",
    "nft": "nftables",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "openssl": "openssl",
    "systemd-nspawn": "systemd-container",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
}


def main() -> int:
    """Run one command; 0 when it did what was asked, 1 with one sentence on stderr when not."""
    options = _parser().parse_args()
    # Whoever ends us politely, a test runner with its time-out for one, gets the same cleaning up as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code: int = options.run(options)
        return code
    except BedError as error:
        say(f"bed: {error}")
        return 1
    except KeyboardInterrupt:
        say("bed: interrupted")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bed", description="Hosts, a network and services to test the roles on.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: object, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        added.add_argument("--name", default="bed", help="which bed (default: %(default)s)")
        return added

    added = command("build", _build, "build what beds are made of; seconds when nothing changed")
    added.add_argument("what", nargs="?", choices=("host", "all"), default="all")
    added = command("up", _up, "start a bed")
    added.add_argument("-n", type=int, required=True, dest="count", metavar="N", help="number of hosts")
    added.add_argument("--with", choices=("services",), dest="extra", help="also release server, registry, mock vendor")
    added = command("ssh", _ssh, "a shell or a command in a host")
    added.add_argument("host")
    added.add_argument("command", nargs=argparse.REMAINDER)
    added = command("status", _status, "what runs")
    added.add_argument("--json", action="store_true", dest="as_json")
    added.add_argument("--all", action="store_true", help="the names of all beds of this cache")
    added = command("power-off", _power_off, "pull the plug of a host: nothing is stopped or written")
    added.add_argument("host")
    added = command("power-on", _power_on, "start a host on the disk it has")
    added.add_argument("host")
    added = command("renew", _renew, "another machine in a host's place: same name, blank disk; it is switched on")
    added.add_argument("host")
    added = command("unplug", _unplug, "pull a host's network cable; it runs on")
    added.add_argument("host")
    added = command("plug", _plug, "put the network cable in again")
    added.add_argument("host")
    added = command("snapshot", _snapshot, "keep the disks of all hosts under a tag; running hosts are restarted")
    added.add_argument("tag")
    added = command("restore", _restore, "put the disks of a snapshot back")
    added.add_argument("tag")
    added = command("inventory", _inventory, "print the Ansible inventory of a bed")
    added.add_argument("--json", action="store_true", dest="as_json", help="in the form of a dynamic inventory")
    command("down", _down, "remove a bed with everything that belongs to it, also one that broke halfway")
    added = command("supervise", _supervise, "(internal) run a host; started by up and power-on")
    added.add_argument("host")
    return parser


def _build(options: argparse.Namespace) -> int:
    need_root()
    begun = time.monotonic()
    build.everything() if options.what == "all" else build.host_only()
    say(f"bed build {options.what}: {time.monotonic() - begun:.1f} s")
    return 0


def _up(options: argparse.Namespace) -> int:
    need_root()
    need_tools(TOOLS)
    if not 1 <= options.count <= state.MAX_HOSTS:
        raise BedError(f"a bed has 1 to {state.MAX_HOSTS} hosts")
    begun = time.monotonic()
    real = os.environ.get("HEARTH_BED_K3S")
    if real and not os.access(real, os.X_OK):
        raise BedError(f"HEARTH_BED_K3S={real} is no program")
    with_services = options.extra == "services"
    built = build.everything() if with_services else None
    hostfs = build.host_only()
    with state.hold(options.name):
        old = state.find(options.name)
        if old is not None and old.complete and (old.count, old.services) == (options.count, with_services):
            say(f"bed {old.name} is up already")
            return 0
        if old is not None or options.name in _traces():
            raise BedError(f"there is a bed {options.name} already: `bed down --name {options.name}` removes it")
        try:
            _bring_up(options.name, options.count, hostfs, built, Path(real) if real else None)
        except BaseException:
            say(f"bed {options.name} did not come up; removing what there is")
            _tear_down(options.name)
            raise
    say(f"bed {options.name}: {options.count} hosts up in {time.monotonic() - begun:.1f} s")
    return 0


def _bring_up(name: str, count: int, hostfs: Path, built: release.Built | None, real: Path | None) -> None:
    with machine_lock():
        bed = state.Bed(name, net.free_index(), count, services=built is not None, hostfs=str(hostfs))
        bed.folder.mkdir(parents=True, mode=0o700)
        bed.save()
        net.up(bed)
    tls.make(bed)
    host.keys(bed)
    with step(f"{count} hosts"):
        for name_of_host in bed.hosts:
            host.prepare(bed, name_of_host)
            host.start(bed, name_of_host)
        described: dict[str, Any] = {
            "name": bed.name,
            "subnet": bed.subnet,
            "gateway": bed.gateway,
            "hosts": {each: {"address": bed.address(each)} for each in bed.hosts},
            "builds": {"hostfs": str(hostfs)},
            "services": {},
            "stand_ins": [],
        }
        if built is not None:
            described["k3s"] = k3s = services.prepare_release(bed, built, real)
            described["services"] = running = services.start(bed, built)
            described["builds"] = {"hostfs": str(hostfs), **built.described()}
            described["stand_ins"] = [
                text
                for text, used in (
                    ("k3s: our launcher around real Kubernetes, containerd, kine", k3s["stand_in"]),
                    ("Anthropic: tests/mocks/anthropic_server.py", running["anthropic"] is not None),
                    ("sign-in provider: tests/mocks/oidc_provider.py", True),
                    ("oauth2-proxy: tests/standins/oauth2-proxy", built.oauth2_proxy_stand_in),
                )
                if used
            ]
        host.wait_for_boot(bed, bed.hosts)
    write(bed.folder / "env.json", json.dumps(described, indent=1) + "\n")
    write(bed.folder / "inventory.yml", inventory.text(bed, described), 0o600)
    bed.complete = True
    bed.save()


def _traces() -> set[str]:
    """Names of beds of which anything is there: state in this cache, or something on the machine."""
    names = {name.removeprefix("bed-") for name in net.namespaces() if name.startswith("bed-")}
    names |= {name.removeprefix("hearth-bed-") for name in cgroups.existing("hearth-bed-")}
    folders = state.beds_dir().iterdir() if state.beds_dir().is_dir() else ()
    return {name.split(".")[0] for name in names} | {folder.name for folder in folders}


def _tear_down(name: str) -> None:
    """Remove everything by its name. Needs no journal, so it works after any crash, and twice."""
    for group in cgroups.existing(state.cgroup_prefix(name)):
        cgroups.remove(group)
    with machine_lock():
        net.down(name)
    host.forget(name)
    remove_tree(state.beds_dir() / name)


def _down(options: argparse.Namespace) -> int:
    need_root()
    state.check_name(options.name)
    with state.hold(options.name):
        _tear_down(options.name)
    return 0


def _ssh(options: argparse.Namespace) -> int:
    bed = state.load(options.name)
    bed.number(options.host)
    words = options.command[1:] if options.command[:1] == ["--"] else options.command
    sys.stdout.flush()
    os.execvp("ssh", ["ssh", "-F", str(bed.folder / "ssh_config"), options.host, *words])


def _status(options: argparse.Namespace) -> int:
    if options.all:
        for each in state.all_beds():
            print(f"{each.name} {each.subnet} {each.count} hosts")
        return 0
    bed = state.find(options.name)
    if bed is None:
        found = "broken" if options.name in _traces() else "absent"
        print(json.dumps({"name": options.name, "state": found}) if options.as_json else f"bed {options.name}: {found}")
        return 0
    hosts = {each: {"address": bed.address(each), "state": _state_of(bed, each)} for each in bed.hosts}
    described = {
        "name": bed.name,
        "state": "up" if bed.complete else "broken",
        "folder": str(bed.folder),
        "subnet": bed.subnet,
        "hosts": hosts,
        "services": services.state(bed) if bed.services else {},
        "snapshots": sorted(path.name for path in (bed.folder / "snapshots").glob("[!.]*")),
    }
    if options.as_json:
        print(json.dumps(described, indent=1))
        return 0
    print(f"bed {bed.name}: {described['state']}, {bed.subnet}, {bed.folder}")
    for host_name, facts in hosts.items():
        print(f"  {host_name}  {facts['address']}  {facts['state']}")
    for service, answers in services.state(bed).items() if bed.services else ():
        print(f"  {service}: {'answers' if answers else 'does not answer'}")
    return 0


def _state_of(bed: state.Bed, name: str) -> str:
    if not host.is_on(bed, name):
        return "off"
    return "on" if host.answers(bed, name) else "booting"


def _power_off(options: argparse.Namespace) -> int:
    need_root()
    with state.hold(options.name):
        bed = state.load(options.name)
        bed.number(options.host)
        host.power_off(bed, options.host)
    return 0


def _power_on(options: argparse.Namespace) -> int:
    need_root()
    with state.hold(options.name):
        bed = state.load(options.name)
        bed.number(options.host)
        if not host.is_on(bed, options.host):
            host.start(bed, options.host)
        host.wait_for_boot(bed, [options.host])
    return 0


def _renew(options: argparse.Namespace) -> int:
    need_root()
    with state.hold(options.name):
        bed = state.load(options.name)
        bed.number(options.host)
        host.renew(bed, options.host)
        host.wait_for_boot(bed, [options.host])
    return 0


def _unplug(options: argparse.Namespace) -> int:
    return _cable(options, connected=False)


def _plug(options: argparse.Namespace) -> int:
    return _cable(options, connected=True)


def _cable(options: argparse.Namespace, *, connected: bool) -> int:
    need_root()
    with state.hold(options.name):
        bed = state.load(options.name)
        bed.number(options.host)
        if not host.is_on(bed, options.host):
            raise BedError(f"{options.host} of bed {bed.name} is off")
        net.cable(bed, options.host, connected=connected)
    return 0


def _tag(text: str) -> str:
    if not text or not text.replace("-", "").replace("_", "").isalnum():
        raise BedError(f"a tag is letters, digits, - and _: not {text!r}")
    return text


def _snapshot(options: argparse.Namespace) -> int:
    need_root()
    with state.hold(options.name):
        host.snapshot(state.load(options.name), _tag(options.tag))
    return 0


def _restore(options: argparse.Namespace) -> int:
    need_root()
    with state.hold(options.name):
        host.restore(state.load(options.name), _tag(options.tag))
    return 0


def _inventory(options: argparse.Namespace) -> int:
    bed = state.load(options.name)
    if options.as_json:
        print(json.dumps(inventory.dynamic(bed, _described(bed)), indent=1))
    else:
        print((bed.folder / "inventory.yml").read_text(), end="")
    return 0


def _described(bed: state.Bed) -> dict[str, Any]:
    """What `up` wrote into env.json."""
    described: dict[str, Any] = json.loads((bed.folder / "env.json").read_text())
    return described


def _supervise(options: argparse.Namespace) -> int:
    bed = state.find(options.name)
    if bed is None:
        raise BedError(f"there is no bed {options.name}")
    return host.supervise(bed, options.host)
