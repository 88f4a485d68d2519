# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What an object of the cluster says of itself. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Object = Mapping[str, Any]


def condition(thing: Object | None, kind: str) -> Object:
    """What a node or pod says of one thing (`Ready`, `EtcdIsVoter`): its status, message and times; empty where it says nothing."""
    said = ((thing or {}).get("status") or {}).get("conditions") or []
    return next((one for one in said if one.get("type") == kind), {})


def is_ready(thing: Object | None) -> bool:
    return condition(thing, "Ready").get("status") == "True"
