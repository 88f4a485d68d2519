# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The list of people in its ConfigMap: read, change, write, and have the pods that mount it read it.

For the modules that change it. While the house is locked down (module `lockdown`) the list stands aside and the one that is
read is empty: changes then go to the one aside, and count when the lockdown is lifted.
"""

from __future__ import annotations

import datetime
import secrets
import time
from collections.abc import Callable
from typing import Any

from ansible_collections.homelab.hearth.plugins.module_utils import _names
from ansible_collections.homelab.hearth.plugins.module_utils._emails import (
    MalformedListError,
    Mend,
    listed,
    mended,
    readable,
    with_absent,
    with_exactly,
    with_present,
    with_renamed,
)
from ansible_collections.homelab.hearth.plugins.module_utils._k8s import (
    LABELS,
    Cluster,
    Object,
    ensure_namespace,
    hurry,
    until_undisturbed,
)
from ansible_collections.homelab.hearth.plugins.module_utils._lock import ASIDE, UNREAD, locked_since
from ansible_collections.homelab.hearth.plugins.module_utils._objects import mounts, written_at

# The options that say where the list is.
LIST_SPEC: dict[str, Any] = {
    "namespace": {"type": "str", "default": _names.ACCESS_NAMESPACE},
    "name": {"type": "str", "default": _names.WHITELIST},
    "key": {"type": "str", "default": _names.WHITELIST_KEY, "no_log": False},
}
CHANGES: dict[str, Callable[[str, list[str]], str]] = {
    "present": with_present,
    "absent": with_absent,
    "exact": with_exactly,
    # Two addresses: who they were, who they are.
    "renamed": lambda text, pair: with_renamed(text, pair[0], pair[1]),
}
# A key beside the list that is another after each change. A kubelet writes a volume anew when something in it differs from what
# it wrote last: without this key, somebody let in and taken out again in one second would leave a list that the proxies never
# read again, so that nothing in their logs shows that they have it.
REVISION = UNREAD + "revision"
# What the sign-in proxy says when it follows the file to its new content; it reads it in the same moment.
READ_AGAIN = "watching resumed for"
# It also says a line for each request of somebody who is not signed in: strangers write thousands in an hour, all of them
# after the one that is looked for.
LOG_BYTES = 4 * 2**20
SLEEP_S = 0.2
# By then any kubelet has brought a change by itself, and logs may not reach back as far.
BROUGHT_BY_THEN = datetime.timedelta(hours=1)


class WhitelistError(Exception):
    """Why the list was not changed."""


def outcome(params: dict[str, Any], before: str | None, after: str | None, mends: list[Mend]) -> dict[str, Any]:
    was, now = readable(before or "")[0], listed(after or "")
    where = f"ConfigMap {params['namespace']}/{params['name']}, key {params['key']}"
    return {
        # An empty list is not the same as none: without one the proxy does not start.
        "changed": before != after,
        "emails": now,
        "added": [email for email in now if email not in was],
        "removed": [email for email in was if email not in now],
        "mended": [{"line": mend.number, "problem": mend.problem, "became": mend.became} for mend in mends],
        "diff": {"before_header": where, "after_header": where, "before": before or "", "after": after or ""},
        "pods": [],
        "cluster": "",
    }


def changed_text(params: dict[str, Any], before: str | None, emails: list[str]) -> tuple[str | None, list[Mend]]:
    """The list after the change, and what was mended in it. None is no list at all.

    :raises MalformedListError: it is malformed, and was not to be mended.
    """
    if before is None and params["state"] == "absent" and not params["allow_empty"]:
        return None, []
    plain, mends = mended(before or "") if params["repair"] else (before or "", [])
    return CHANGES[params["state"]](plain, emails), mends


def revised(data: dict[str, str]) -> dict[str, str]:
    """The data of the ConfigMap, as the next revision."""
    return {**data, REVISION: secrets.token_hex(8)}


def key_of(existing: Object | None, key: str) -> str:
    """Where the list stands that is to be changed: under its key, or aside while the house is locked down."""
    return ASIDE + key if locked_since(existing) else key


def people_in(existing: Object | None, key: str) -> tuple[list[str], list[tuple[int, str]]]:
    """The addresses of the list, wherever it stands, and its other lines: their numbers and what is wrong with them."""
    text = ((existing or {}).get("data") or {}).get(key_of(existing, key))
    addresses, problems = readable(text or "")
    return addresses, problems


def list_in(existing: Object | None, params: dict[str, Any]) -> str | None:
    """The text of the list, None when there is none yet.

    :raises WhitelistError: the ConfigMap is there and holds no list where it should.
    """
    if existing is None:
        return None
    where = f"ConfigMap {params['namespace']}/{params['name']}"
    if params["key"] in (existing.get("binaryData") or {}):
        raise WhitelistError(f"the key {params['key']} of {where} holds binary data, not a list")
    text = (existing.get("data") or {}).get(key_of(existing, params["key"]))
    if text is None and params["state"] != "exact" and not params["repair"]:
        raise WhitelistError(
            f"{where} has lost its key {params['key']}, so the proxy goes on with the list that it read last. "
            "Write the whole list with state=exact, or begin with an empty one with repair=true"
        )
    return None if text is None else str(text)


def _attempt(cluster: Cluster, params: dict[str, Any], emails: list[str]) -> dict[str, Any]:
    """Read, change, write once.

    :raises ClusterError: with status 409 when somebody else wrote in between.
    """
    name, namespace = params["name"], params["namespace"]
    existing = cluster.get("v1", "ConfigMap", name, namespace)
    key = key_of(existing, params["key"])
    before = list_in(existing, params)
    try:
        after, mends = changed_text(params, before, emails)
    except MalformedListError as error:
        raise WhitelistError(
            f"the list in ConfigMap {namespace}/{name} is malformed, so the proxy may be using an older one: {error}. "
            f"Mend it with repair=true or kubectl -n {namespace} edit configmap {name}, then run again"
        ) from None
    if existing is not None and after is None:
        # Without the key the proxy keeps an old list: where there is a ConfigMap, there is a list in it.
        after = ""
    result = outcome(params, before, after, mends)
    if after is None or not result["changed"]:
        return result
    if existing is not None:
        # The resourceVersion of what was read stays in it: the API server refuses if it is no longer the newest.
        cluster.replace({**existing, "data": revised({**(existing.get("data") or {}), key: after})})
    elif ensure_namespace(cluster, namespace, params["create_namespace"], "deploy the sign-in proxy first"):
        meta = {"name": name, "namespace": namespace, "labels": LABELS}
        cluster.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": revised({key: after})})
    return result


def change(cluster: Cluster, params: dict[str, Any], emails: list[str]) -> dict[str, Any]:
    result: dict[str, Any] = until_undisturbed(lambda: _attempt(cluster, params, emails), "the list")
    if params["refresh_pods"]:
        # Also when nothing changed: a run that was broken off may have written and told nobody.
        result["pods"] = hurry(cluster, "ConfigMap", params["namespace"], params["name"])
    return result


# --- whether it is so


def reads_later(pod: Object, since: str) -> bool:
    """Whether the proxy in a pod started after the last change, or has not started yet: it reads the list when it does."""
    # Times have whole seconds. In the same second counts as after it: if it was not, the kubelet is half a second behind.
    status = pod.get("status") or {}
    if pod["metadata"]["creationTimestamp"] >= since or status.get("phase") == "Pending":
        return True
    for container in status.get("containerStatuses") or []:
        running = (container.get("state") or {}).get("running")
        if not running or str(running.get("startedAt") or "") >= since:
            return True
    return False


def unread(cluster: Cluster, namespace: str, name: str) -> list[str]:
    """Pods of the sign-in proxy that have not read the list as it is now.

    A proxy that started after the last change read it at its start. The others say in their log when they follow the file to
    its new content: nothing else outside of them shows it.
    """
    stored = cluster.get("v1", "ConfigMap", name, namespace)
    since = written_at(stored) if stored else ""
    if since < (datetime.datetime.now(datetime.UTC) - BROUGHT_BY_THEN).strftime("%Y-%m-%dT%H:%M:%SZ"):
        return []
    behind = []
    for pod in cluster.find("v1", "Pod", "", namespace):
        meta = pod["metadata"]
        if not mounts(pod, "ConfigMap", name) or reads_later(pod, since):
            continue
        container = pod["spec"]["containers"][0]["name"]
        lines = cluster.logs_since(namespace, meta["name"], container, since, LOG_BYTES)
        if not any(READ_AGAIN in line for line in lines):
            behind.append(f"{namespace}/{meta['name']}")
    return behind


def wait_until_read(cluster: Cluster, namespace: str, name: str, timeout_s: float) -> None:
    """Wait until every pod of the sign-in proxy has read the list.

    :raises WhitelistError: a pod did not say so in time.
    """
    deadline = time.monotonic() + timeout_s
    while behind := unread(cluster, namespace, name):
        if time.monotonic() > deadline:
            raise WhitelistError(
                f"the list is written, but after {timeout_s:.0f} s pod {', '.join(behind)} has not read it, so it goes by the "
                f"one before. Look at its log, and run again; kubectl -n {namespace} rollout restart deployment makes it read"
            )
        time.sleep(SLEEP_S)
