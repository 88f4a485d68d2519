"""Filter `homelab.hearth.pin`: one entry of the lock file contract/pins.yml. Documentation: pin.yml."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.hearth.plugins.module_utils import _pins


@lru_cache(maxsize=1)
def _lock() -> list[dict[str, Any]]:
    """The lock, read once a run: preflight and three roles look things up in it."""
    pins: list[dict[str, Any]] = _pins.load()
    return pins


def pin(name: str, version: str, kind: str = "image", arch: str = "amd64") -> dict[str, Any]:
    """See pin.yml."""
    try:
        found: dict[str, Any] = _pins.lookup(_lock(), str(name), str(kind), str(version), str(arch))
    except _pins.PinError as error:
        raise AnsibleFilterError(str(error)) from error
    return found


class FilterModule:
    """Ansible's entry to this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"pin": pin}
