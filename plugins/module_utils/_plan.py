"""What the host role has to do, what it must remember to undo it, and which look at a host answers another. Pure."""

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


# -- one look for several roles -------------------------------------------------------------------------------------

# The roles look within seconds of each other when there is nothing to do. Whoever took longer did something.
EARLIER_IS_GOOD_FOR_S = 60

# Lists in a question of `host_survey` -> where the answer stands, by name: part and key in it ("" is the part itself).
_ANSWERS = {
    "modules": ("kernel", "modules"),
    "sysctl": ("kernel", "sysctl"),
    "packages": ("packages", "installed"),
    "services": ("services", ""),
    "paths": ("paths", "content"),
    "disk_paths": ("paths", "disks"),
    "globs": ("paths", "globs"),
}
# These change from one moment to the next.
_FLEETING = {"clock", "network"}


def known_already(earlier: Mapping[str, Any], asked: Mapping[str, Any], now: float) -> dict[str, Any] | None:
    """The survey that `host_survey` would return for `asked`, out of an earlier answer of it; None when it has to look.

    earlier: {survey, asked, looked_at} of the same host. It must be young and hold an answer to all that is asked; that
    nobody changed the host since is for the caller to know. What was not asked is left out, as if the host had been asked.
    """
    survey, before = earlier.get("survey"), earlier.get("asked")
    if not survey or before is None or not 0 <= now - earlier.get("looked_at", 0) < EARLIER_IS_GOOD_FOR_S:
        return None
    parts = asked.get("gather")
    if not parts or not set(parts) <= set(survey) or set(parts) & _FLEETING or asked.get("token") or asked.get("probe"):
        return None
    lists = {name: list(asked.get(name) or []) for name in _ANSWERS}
    if any(not set(names) <= set(before.get(name) or []) for name, names in lists.items()):
        return None
    if any(asked.get(switch) and not before.get(switch) for switch in ("hash_binary", "list_packages")):
        return None
    if "k3s" in parts and asked.get("data_dir") != before.get("data_dir"):
        return None
    known = {part: survey[part] for part in parts}
    for name, (part, key) in _ANSWERS.items():
        if part not in known:
            continue
        answers = known[part][key] if key else known[part]
        kept = {word: value for word, value in answers.items() if word in lists[name]}
        known[part] = {**known[part], key: kept} if key else kept
    return known
