# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filters around sign-in and front door. Documentation: access_middlewares.yml and its neighbours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.hearth.plugins.module_utils import _access


def access_middlewares(access: Mapping[str, Any], limits: Mapping[str, Any], signin_url: str) -> dict[str, Any]:
    """See access_middlewares.yml."""
    return dict(_access.middlewares(access, limits, signin_url))


def traefik_arguments(static: Mapping[str, Any]) -> list[str]:
    """See traefik_arguments.yml."""
    try:
        return list(_access.arguments(static))
    except _access.TraefikError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """Ansible's entry to this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"access_middlewares": access_middlewares, "traefik_arguments": traefik_arguments}
