#!/usr/bin/python
# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Who may sign in: the list of addresses in a ConfigMap."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: email_whitelist
short_description: Who may sign in
version_added: 0.1.0
description:
  - Adds people to, removes them from, or lists the addresses that the sign-in proxy lets in. The list is one key of a
    ConfigMap, a plain text with one address a line.
  - Comments and order are kept. Addresses are compared and written in lower case.
  - A list that the proxy would ignore or misread is refused with the number of the line, because such a list silently
    keeps the former one in force, and a removed person stays in.
  - Two operators at once lose nothing. A write names the version that it read, and starts again when another was faster.
options:
  state:
    description: V(present) adds, V(absent) removes, V(list) only reads.
    type: str
    choices: [present, absent, list]
    default: present
  emails:
    description: Addresses; also one text with commas in between.
    type: list
    elements: str
    default: []
  namespace:
    description: Namespace of the ConfigMap.
    type: str
    default: public-ingress
  name:
    description: Name of the ConfigMap.
    type: str
    default: oauth2-proxy-emails
  key:
    description: Key of the list in the ConfigMap.
    type: str
    default: restricted_user_access
  create_namespace:
    description: Create the namespace when it is missing and an address is to be added.
    type: bool
    default: false
extends_documentation_fragment:
  - homelab.hearth.kubeconfig
attributes:
  check_mode:
    support: full
    description: The API server runs the change dry.
  diff_mode:
    support: full
    description: Before and after of the list.
author:
  - The Hearth developers (@hearth)
"""

EXAMPLES = r"""
- name: Let two people in
  homelab.hearth.email_whitelist:
    kubeconfig: ~/.kube/hearth.yaml
    emails: [ann@example.org, ben@example.org]
  delegate_to: localhost

- name: Read the list
  homelab.hearth.email_whitelist:
    kubeconfig: ~/.kube/hearth.yaml
    state: list
  register: people
  delegate_to: localhost
"""

RETURN = r"""
emails:
  description: Who may sign in now, or would.
  returned: always
  type: list
  elements: str
added:
  description: Who was not in the list before.
  returned: always
  type: list
  elements: str
removed:
  description: Who is no longer in the list.
  returned: always
  type: list
  elements: str
"""

import secrets
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.hearth.plugins.module_utils._emails import (
    EmailError,
    MalformedListError,
    listed,
    normalise_all,
    with_absent,
    with_present,
)
from ansible_collections.homelab.hearth.plugins.module_utils._k8s import (
    AUTH_SPEC,
    Cluster,
    ClusterError,
)

# Labels of what we make. No component label: no role renders this object, so none may prune it.
LABELS = {"app.kubernetes.io/part-of": "hearth", "app.kubernetes.io/managed-by": "hearth"}
CONFLICT = 409
# Enough for twenty operators at once; each attempt costs some 10 ms.
ATTEMPTS = 60


class WhitelistError(Exception):
    """Why the list was not changed."""


def changed_text(state: str, text: str, emails: list[str]) -> str:
    """The list after the change."""
    change = {"present": with_present, "absent": with_absent}.get(state)
    return text if change is None else str(change(text, emails))


def outcome(params: dict[str, Any], before: str, after: str) -> dict[str, Any]:
    was, now = listed(before), listed(after)
    where = f"ConfigMap {params['namespace']}/{params['name']}, key {params['key']}"
    return {
        "changed": before != after,
        "emails": now,
        "added": [email for email in now if email not in was],
        "removed": [email for email in was if email not in now],
        "diff": {"before_header": where, "after_header": where, "before": before, "after": after},
    }


def _ensure_namespace(cluster: Cluster, name: str, create: bool) -> bool:
    """Whether the namespace is there (now). False only in check mode: then it would be created."""
    if cluster.get("v1", "Namespace", name) is not None:
        return True
    if not create:
        raise WhitelistError(f"there is no namespace {name}: deploy the sign-in proxy first")
    try:
        cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": LABELS}})
    except ClusterError as error:
        # Another operator made it in this very moment.
        if error.status != CONFLICT:
            raise
    return not cluster.dry_run


def _attempt(cluster: Cluster, params: dict[str, Any], emails: list[str]) -> dict[str, Any]:
    """Read, change, write once.

    :raises ClusterError: with status 409 when somebody else wrote in between.
    """
    name, namespace, key = params["name"], params["namespace"], params["key"]
    existing = cluster.get("v1", "ConfigMap", name, namespace)
    if existing is not None and key in (existing.get("binaryData") or {}):
        raise WhitelistError(f"the key {key} of ConfigMap {namespace}/{name} holds binary data, not a list")
    before = str(((existing or {}).get("data") or {}).get(key) or "")
    try:
        after = changed_text(params["state"], before, emails)
        result = outcome(params, before, after)
    except MalformedListError as error:
        raise WhitelistError(
            f"the list in ConfigMap {namespace}/{name} is malformed, so the proxy may be using an older one: {error}. "
            f"Mend it with kubectl -n {namespace} edit configmap {name}, then run again"
        ) from None
    if not result["changed"]:
        return result
    if existing is not None:
        # The resourceVersion of what was read stays in it: the API server refuses if it is no longer the newest.
        cluster.replace({**existing, "data": {**(existing.get("data") or {}), key: after}})
    elif _ensure_namespace(cluster, namespace, params["create_namespace"]):
        meta = {"name": name, "namespace": namespace, "labels": LABELS}
        cluster.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {key: after}})
    return result


def run(module: AnsibleModule) -> dict[str, Any]:
    params = module.params
    emails = normalise_all(params["emails"])
    if not emails and params["state"] != "list":
        raise WhitelistError("no address given; say who, for example -e email=ann@example.org")
    cluster = Cluster(module, "hearth-email-whitelist")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _attempt(cluster, params, emails)
        except ClusterError as error:
            if error.status != CONFLICT:
                raise
        # Apart by chance, so that the same two do not meet again.
        time.sleep(secrets.randbelow(20 + 10 * min(attempt, 20)) / 1000)
    raise WhitelistError(f"the list was changed by others {ATTEMPTS} times in a row; run again")


def argument_spec() -> dict[str, Any]:
    return {
        "state": {"type": "str", "choices": ["present", "absent", "list"], "default": "present"},
        "emails": {"type": "list", "elements": "str", "default": []},
        "namespace": {"type": "str", "default": "public-ingress"},
        "name": {"type": "str", "default": "oauth2-proxy-emails"},
        "key": {"type": "str", "default": "restricted_user_access", "no_log": False},
        "create_namespace": {"type": "bool", "default": False},
        **AUTH_SPEC,
    }


def main() -> None:
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    try:
        module.exit_json(**run(module))
    except (ClusterError, EmailError, WhitelistError) as error:
        text = str(error)
        module.fail_json(msg=text[:1].upper() + text[1:])


if __name__ == "__main__":
    main()
