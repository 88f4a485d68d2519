"""Filters of the preflight role. Documentation: preflight_problems.yml and its neighbours."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.hearth.plugins.module_utils import _pins, _preflight, _topology

WANTS = re.compile(r"_[a-z][a-z0-9_]*_wants")
# Variables of our inventories' templates that belong to no role.
OF_INVENTORIES = re.compile(r"ansible_(host|user)|(graviton|vault)_[a-z0-9_]+")
ROLES = Path(__file__).resolve().parents[2] / "roles"


@lru_cache(maxsize=1)
def known_variables() -> frozenset[str]:
    """Every variable of every role, from their argument_specs: the one list that documentation is made from too."""
    names: set[str] = set()
    for path in ROLES.glob("*/meta/argument_specs.yml"):
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=_pins.FAST_LOADER)  # noqa: S506  (a safe loader)
        for entry in document["argument_specs"].values():
            names.update(entry.get("options") or {})
    return frozenset(names)


@lru_cache(maxsize=1)
def _lock() -> list[dict[str, Any]]:
    pins: list[dict[str, Any]] = _pins.load()
    return pins


def _look_up(name: str, kind: str, version: str, arch: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = _pins.lookup(_lock(), name, kind, version, arch)
    except _pins.PinError as error:
        raise AnsibleFilterError(str(error)) from error
    return found


def _wants(variables: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What the roles said: facts named _<role>_wants. Role variables do not show in hostvars, facts do."""
    return [variables[name] for name in sorted(variables) if WANTS.fullmatch(name)]


def inventory_problems(hosts: Iterable[Mapping[str, Any]], servers: Sequence[str] = (), agents: Sequence[str] = ()) -> list[dict[str, str]]:
    """See inventory_problems.yml."""
    problems: list[dict[str, str]] = _topology.group_problems(servers, agents)
    for variables in hosts:
        host, names = variables["inventory_hostname"], list(variables)
        problems += _preflight.variable_problems(host, names, known_variables())
        mine = known_variables().intersection(names) | {name for name in names if OF_INVENTORIES.fullmatch(name)}
        problems += _preflight.value_problems(host, {name: _value(variables, name) for name in mine})
    # What the whole group has wrong is said once.
    return [p for i, p in enumerate(problems) if not any(_same(p, other) for other in problems[:i])]


def _same(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    return (one["problem"], one["fix"]) == (other["problem"], other["fix"])


def _value(variables: Mapping[str, Any], name: str) -> Any:
    try:
        return variables[name]
    except Exception as error:  # whatever a template of the inventory can do wrong
        return error


def _cluster_problems(hosts: Sequence[Mapping[str, Any]], servers: Sequence[str], agents: Sequence[str]) -> list[dict[str, str]]:
    """What is wrong among the hosts, as opposed to on one of them."""
    wants = {variables["inventory_hostname"]: want["k3s"] for variables in hosts for want in _wants(variables) if want.get("k3s")}
    if not wants:
        return []
    by_name = {variables["inventory_hostname"]: variables for variables in hosts}
    seen = {host: _topology.member_of(variables) for host, variables in by_name.items() if host in wants}
    members = [seen.get(host, _topology.Member(host, "")) for host in servers]
    here = [host for host in servers if host in wants]
    problems: list[dict[str, str]] = _topology.founding_problems(members, wants[here[0]].get("datastore", "") if here else "")
    problems += _topology.one_cluster_problems(seen.values())
    problems += _topology.equal_problems(
        {host: wants[host].get("config", {}) for host in here},
        {host: [str(by_name[host].get(name, "")) for name in ("k3s_token", "k3s_agent_token")] for host in here},
    )
    problems += _topology.version_problems({host: want["version"] for host, want in wants.items()}, agents)
    for host, want in wants.items():
        name = _preflight.node_name(by_name[host]["_preflight_survey"]["survey"])
        problems += _topology.fixed_problems(host, seen[host].k3s.get("config") or {}, want.get("config", {}), name)
    clocks = {host: by_name[host]["_preflight_survey"]["survey"]["clock"]["skew_s"] for host in wants}
    off_the_controller = [host for host, (low, high) in clocks.items() if low > _preflight.MAX_SKEW_S or high < -_preflight.MAX_SKEW_S]
    problems += _preflight.skew_problems({host: clock for host, clock in clocks.items() if host not in off_the_controller})
    return problems


def preflight_problems(
    hosts: Iterable[Mapping[str, Any]],
    servers: Sequence[str] = (),
    agents: Sequence[str] = (),
    unreachable: Sequence[str] = (),
    unpinned_allowed: bool = False,
) -> list[dict[str, str]]:
    """See preflight_problems.yml."""
    every = list(hosts)
    problems: list[dict[str, str]] = [
        {"host": host, "problem": "it does not answer over ssh", "fix": f"switch it on, and try: ssh {host}"} for host in unreachable
    ]
    problems += _cluster_problems(every, servers, agents)
    names = {}
    for variables in every:
        host, survey = variables["inventory_hostname"], variables["_preflight_survey"]["survey"]
        wants = _wants(variables)
        problems += _preflight.host_problems(host, survey, wants, look_up=_look_up, unpinned_allowed=unpinned_allowed)
        if any(want.get("hostname") for want in wants):
            names[host] = _preflight.node_name_of(variables)
    problems += _preflight.name_problems(names)
    return problems


def preflight_notes(hosts: Iterable[Mapping[str, Any]]) -> list[str]:
    """See preflight_notes.yml."""
    found: list[str] = []
    for variables in hosts:
        if any(want.get("systemd") for want in _wants(variables)):
            found += _preflight.notes(variables["inventory_hostname"], variables["_preflight_survey"]["survey"])
    return found


def preflight_report(problems: Sequence[dict[str, str]]) -> str:
    """See preflight_report.yml."""
    text: str = _preflight.report(problems)
    return text


class FilterModule:
    """Ansible's entry to this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "inventory_problems": inventory_problems,
            "preflight_notes": preflight_notes,
            "preflight_problems": preflight_problems,
            "preflight_report": preflight_report,
        }
