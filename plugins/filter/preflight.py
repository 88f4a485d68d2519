"""Filters of the preflight role. Documentation: preflight_problems.yml and its neighbours."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.hearth.plugins.module_utils import _pins, _preflight

WANTS = re.compile(r"_[a-z][a-z0-9_]*_wants")
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
    problems += _preflight.topology_problems(servers, agents)
    names = {}
    for variables in every:
        host, survey = variables["inventory_hostname"], variables["_preflight_survey"]["survey"]
        wants = _wants(variables)
        problems += _preflight.variable_problems(host, list(variables), known_variables())
        problems += _preflight.host_problems(host, survey, wants, look_up=_look_up, unpinned_allowed=unpinned_allowed)
        if any(want.get("hostname") for want in wants):
            names[host] = variables.get("k3s_node_name") or _preflight.node_name(survey)
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
            "preflight_notes": preflight_notes,
            "preflight_problems": preflight_problems,
            "preflight_report": preflight_report,
        }
