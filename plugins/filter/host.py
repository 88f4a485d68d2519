"""Filters of the host role. Documentation: host_plan.yml and its neighbours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.homelab.hearth.plugins.module_utils import _plan


def host_plan(
    survey: Mapping[str, Any], packages: Sequence[str], modules: Sequence[str], sysctl: Mapping[str, Any]
) -> dict[str, Any]:
    """See host_plan.yml."""
    plan: dict[str, Any] = _plan.host_plan(survey, packages=packages, modules=modules, sysctl=sysctl)
    return plan


def host_state_with_packages(state: Mapping[str, Any], before: Sequence[str], after: Sequence[str]) -> dict[str, Any]:
    """See host_state_with_packages.yml."""
    grown: dict[str, Any] = _plan.with_packages(state, before, after)
    return grown


def only_keys(mapping: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """See only_keys.yml."""
    return {key: mapping[key] for key in keys if key in mapping}


def as_link(item: Mapping[str, Any], folder: str, target: str) -> dict[str, str]:
    """See as_link.yml."""
    return {"path": f"{folder}/{item['key']}", "state": "link", "target": target}


def as_problem(text: str, fix: str) -> dict[str, str]:
    """See as_problem.yml."""
    return {"problem": text, "fix": fix}


class FilterModule:
    """Ansible's entry to this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "as_link": as_link,
            "as_problem": as_problem,
            "host_plan": host_plan,
            "host_state_with_packages": host_state_with_packages,
            "only_keys": only_keys,
        }
