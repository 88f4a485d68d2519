# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The kill switch, as data of a Secret or ConfigMap. Pure: no Ansible, no Kubernetes.

What opens a door is moved to a key that nobody reads, in the same object and so in one write: there is no moment, and
no place where a run can die, in which a token or an address exists in neither place or in both. The gateway takes a file
for a token only if its name begins with a letter or a digit; keys that begin with an underscore open nothing and stay.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

Object = dict[str, Any]

# An annotation: since when the doors are shut.
LOCKED_SINCE = "hearth.homelab/locked-since"
UNREAD = "_"
ASIDE = UNREAD + "locked."


def locked_since(stored: Object | None) -> str:
    """When the object was locked; empty when it is not."""
    return str((((stored or {}).get("metadata") or {}).get("annotations") or {}).get(LOCKED_SINCE) or "")


def locked(stored: Object, now: str, emptied: Collection[str] = ()) -> Object:
    """The object with everything in it put aside.

    Locked already: what was added since goes aside too, so that locking again always shuts every door.

    :param emptied: keys that must stay there, without content, because a reader needs the file.
    """
    made = copy.deepcopy(stored)
    data = made.get("data") or {}
    aside = {key: value for key, value in data.items() if key.startswith(UNREAD)}
    for key, value in data.items():
        # An empty list of people is what locking left, and must not replace the one that was put aside.
        if not key.startswith(UNREAD) and not (key in emptied and not value and ASIDE + key in aside):
            aside[ASIDE + key] = value
    made["data"] = {**aside, **dict.fromkeys(emptied, "")}
    annotations = made["metadata"].setdefault("annotations", {})
    annotations[LOCKED_SINCE] = annotations.get(LOCKED_SINCE) or now
    return made


def lifted(stored: Object) -> Object:
    """The object as it was before it was locked."""
    made = copy.deepcopy(stored)
    data = made.get("data") or {}
    back = {key.removeprefix(ASIDE): value for key, value in data.items() if key.startswith(ASIDE)}
    made["data"] = {**{key: value for key, value in data.items() if not key.startswith(ASIDE)}, **back}
    annotations = made["metadata"].get("annotations") or {}
    annotations.pop(LOCKED_SINCE, None)
    return made
