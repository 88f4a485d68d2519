"""What the host role has to do, and what it must remember to undo it. Pure. Private to the collection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def host_plan(
    survey: Mapping[str, Any],
    *,
    packages: Sequence[str],
    modules: Sequence[str],
    sysctl: Mapping[str, Any],
) -> dict[str, Any]:
    """Compare a survey of the host with what is wanted.

    Returns missing_packages, load_modules, set_sysctl (name to value), blocked_modules (wanted, and this kernel
    cannot load them), reboot_needed, and state: the memory to keep in /var/lib/hearth/host-state.json. The state
    only ever grows; what the first run found stays "before" for all later ones.
    """
    installed = survey["packages"]["installed"]
    module_states = survey["kernel"]["modules"]
    live = survey["kernel"]["sysctl"]
    wanted_sysctl = {key: " ".join(str(value).split()) for key, value in sysctl.items()}

    missing = [name for name in packages if name not in installed]
    load = [name for name in modules if module_states.get(name) == "available"]
    blocked = [name for name in modules if module_states.get(name) == "absent"]
    differing = {key: value for key, value in wanted_sysctl.items() if live.get(key) != value}

    old = survey["state"]
    before: dict[str, Any] = dict(old.get("sysctl", {}))
    for key in differing:
        # None: the setting comes with a module that is not loaded yet, so there is nothing to go back to.
        before.setdefault(key, live.get(key))
    paths = dict(old.get("paths", {}))
    for path, content in survey["paths"]["content"].items():
        paths.setdefault(path, content)
    services = dict(old.get("services", {}))
    for name, state in survey["services"].items():
        services.setdefault(name, {"active": state["active"], "enabled": state["enabled"]})
    return {
        "missing_packages": missing,
        "load_modules": load,
        "blocked_modules": blocked,
        "set_sysctl": differing,
        "reboot_needed": bool(blocked) and survey["system"]["reboot_pending"],
        "state": {
            "format": 1,
            "packages": sorted({*old.get("packages", []), *missing}),
            "modules": sorted({*old.get("modules", []), *load}),
            "sysctl": before,
            "paths": paths,
            "services": services,
        },
    }


def with_packages(state: Mapping[str, Any], before: Sequence[str], after: Sequence[str]) -> dict[str, Any]:
    """The state after packages were installed: what came along as a dependency is remembered too."""
    return {**state, "packages": sorted({*state["packages"], *(set(after) - set(before))})}
