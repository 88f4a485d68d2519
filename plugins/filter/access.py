# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filters around sign-in and front door. Documentation: access_middlewares.yml and its neighbours."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.hearth.plugins.module_utils import _access, _access_problems


def door_middlewares(access: Mapping[str, Any], limits: Mapping[str, Any]) -> dict[str, Any]:
    """See door_middlewares.yml."""
    return dict(_access.door_middlewares(access, limits))


def route_middlewares(access: Mapping[str, Any], signin_url: str) -> dict[str, Any]:
    """See route_middlewares.yml."""
    return dict(_access.route_middlewares(access, signin_url))


def traefik_arguments(static: Mapping[str, Any]) -> list[str]:
    """See traefik_arguments.yml."""
    try:
        return list(_access.arguments(static))
    except _access.TraefikError as error:
        raise AnsibleFilterError(str(error)) from error


def traefik_image_parts(image: str) -> dict[str, str]:
    """See traefik_image_parts.yml."""
    try:
        return dict(_access.image_parts(image))
    except _access.TraefikError as error:
        raise AnsibleFilterError(str(error)) from error


def traefik_problems(given: Mapping[str, Any]) -> list[str]:
    """See traefik_problems.yml."""
    return list(_access_problems.traefik_problems({**given, "now": datetime.datetime.now(datetime.UTC)}))


def protected_app_problems(apps: Sequence[Mapping[str, Any]], domain: str, taken: Sequence[str]) -> list[str]:
    """See protected_app_problems.yml."""
    return list(_access_problems.protected_app_problems(apps, domain, taken))


def protected_app_routes(apps: Sequence[Mapping[str, Any]], namespace: str) -> list[dict[str, Any]]:
    """See protected_app_routes.yml."""
    return list(_access.protected_app_routes(apps, namespace))


def signin_egress(provider: Mapping[str, Any]) -> list[dict[str, Any]]:
    """See signin_egress.yml."""
    return list(_access.signin_egress(provider))


def signin_problems(given: Mapping[str, Any]) -> list[str]:
    """See signin_problems.yml."""
    return list(_access_problems.signin_problems(given))


class FilterModule:
    """Ansible's entry to this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "door_middlewares": door_middlewares,
            "protected_app_problems": protected_app_problems,
            "protected_app_routes": protected_app_routes,
            "route_middlewares": route_middlewares,
            "signin_egress": signin_egress,
            "signin_problems": signin_problems,
            "traefik_arguments": traefik_arguments,
            "traefik_image_parts": traefik_image_parts,
            "traefik_problems": traefik_problems,
        }
