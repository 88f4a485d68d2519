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
  - Adds people to, or removes them from, the list of addresses that the sign-in proxy lets in. The list is one key of
    a ConfigMap, a plain text with one address a line.
  - Comments and order are kept. Addresses are compared and written in lower case.
  - A list that the proxy would ignore or misread is refused with the number of the line, because such a list silently
    keeps the former one in force, and a removed person stays in. O(repair) mends it.
  - The key is never removed, since the proxy would go on with the list that it read last. A list without addresses lets
    nobody in.
  - Two operators at once lose nothing. A write names the version that it read, and starts again when another was faster.
options:
  state:
    description: V(present) adds, V(absent) removes, V(exact) makes the list hold these addresses and no others.
    type: str
    choices: [present, absent, exact]
    default: present
  emails:
    description: >-
      Addresses; also one text with commas in between. Needed, unless O(allow_empty) is set; with O(state=exact) an empty
      list means nobody.
    type: list
    elements: str
  repair:
    description: >-
      Mend a malformed list. The first address of a line stays, what else the line holds becomes a comment, and so
      does a line without an address. A ConfigMap that lost its key gets it back.
    type: bool
    default: false
  allow_empty:
    description: Let O(emails) be empty. A list that is missing is then made without addresses, so that the proxy can start.
    type: bool
    default: false
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
    description: Create the namespace when it is missing and the list is to be written.
    type: bool
    default: false
  refresh_pods:
    description: >-
      Have the kubelets bring the list into the pods that mount it at once, by an annotation of the pods, instead of at
      their next round (a minute or more).
    type: bool
    default: true
extends_documentation_fragment:
  - homelab.hearth.kubeconfig
attributes:
  check_mode:
    support: full
    description: The API server runs the change dry. Where there is no cluster yet, says what would be written.
  diff_mode:
    support: full
    description: Before and after of the list.
seealso:
  - module: homelab.hearth.email_whitelist_info
author:
  - The Hearth developers (@hearth)
"""

EXAMPLES = r"""
- name: Let two people in
  homelab.hearth.email_whitelist:
    kubeconfig: ~/.kube/hearth.yaml
    emails: [ann@example.org, ben@example.org]
  delegate_to: localhost

- name: Only these people, whatever somebody added by hand, and also when the list is malformed
  homelab.hearth.email_whitelist:
    kubeconfig: ~/.kube/hearth.yaml
    state: exact
    emails: [ann@example.org]
    repair: true
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
mended:
  description: Lines that were, or would be, mended.
  returned: always
  type: list
  elements: dict
  contains:
    line:
      description: Number of the line, as it was.
      type: int
    problem:
      description: What was wrong with it.
      type: str
    became:
      description: What stands there now.
      type: str
pods:
  description: Pods whose kubelet was told to bring the new list.
  returned: always
  type: list
  elements: str
cluster:
  description: Empty, or in check mode why no cluster was asked.
  returned: always
  type: str
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.hearth.plugins.module_utils._emails import (
    EmailError,
    MalformedListError,
    Mend,
    listed,
    mended,
    normalise_all,
    readable,
    with_absent,
    with_exactly,
    with_present,
)
from ansible_collections.homelab.hearth.plugins.module_utils._k8s import (
    AUTH_SPEC,
    LABELS,
    Cluster,
    ClusterError,
    NoClusterError,
    Object,
    ensure_namespace,
    hurry,
    until_undisturbed,
)

CHANGES = {"present": with_present, "absent": with_absent, "exact": with_exactly}


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


def _change(params: dict[str, Any], before: str | None, emails: list[str]) -> tuple[str | None, list[Mend]]:
    """The list after the change, and what was mended in it. None is no list at all.

    :raises MalformedListError: it is malformed, and was not to be mended.
    """
    if before is None and params["state"] == "absent" and not params["allow_empty"]:
        return None, []
    plain, mends = mended(before or "") if params["repair"] else (before or "", [])
    return CHANGES[params["state"]](plain, emails), mends


def _list_in(existing: Object | None, params: dict[str, Any]) -> str | None:
    """The text of the list, None when there is none yet.

    :raises WhitelistError: the ConfigMap is there and holds no list where it should.
    """
    if existing is None:
        return None
    where = f"ConfigMap {params['namespace']}/{params['name']}"
    if params["key"] in (existing.get("binaryData") or {}):
        raise WhitelistError(f"the key {params['key']} of {where} holds binary data, not a list")
    text = (existing.get("data") or {}).get(params["key"])
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
    name, namespace, key = params["name"], params["namespace"], params["key"]
    existing = cluster.get("v1", "ConfigMap", name, namespace)
    before = _list_in(existing, params)
    try:
        after, mends = _change(params, before, emails)
    except MalformedListError as error:
        raise WhitelistError(
            f"the list in ConfigMap {namespace}/{name} is malformed, so the proxy may be using an older one: {error}. "
            f"Mend it with repair=true or kubectl -n {namespace} edit configmap {name}, then run again"
        ) from None
    if existing is not None and after is None:
        # Without the key the proxy keeps an old list: where there is a ConfigMap, there is a list in it.
        after = ""
    result = outcome(params, before, after, mends)
    if not result["changed"]:
        return result
    if existing is not None:
        # The resourceVersion of what was read stays in it: the API server refuses if it is no longer the newest.
        cluster.replace({**existing, "data": {**(existing.get("data") or {}), key: after}})
    elif ensure_namespace(cluster, namespace, params["create_namespace"], "deploy the sign-in proxy first"):
        meta = {"name": name, "namespace": namespace, "labels": LABELS}
        cluster.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {key: after}})
    return result


def change(cluster: Cluster, params: dict[str, Any], emails: list[str]) -> dict[str, Any]:
    result: dict[str, Any] = until_undisturbed(lambda: _attempt(cluster, params, emails), "the list")
    if params["refresh_pods"]:
        # Also when nothing changed: a run that was broken off may have written and told nobody.
        result["pods"] = hurry(cluster, "ConfigMap", params["namespace"], params["name"])
    return result


def run(module: AnsibleModule) -> dict[str, Any]:
    params = module.params
    emails = normalise_all(params["emails"] or [])
    nobody_meant = params["state"] == "exact" and params["emails"] is not None
    if not emails and not params["allow_empty"] and not nobody_meant:
        raise WhitelistError("no address given; say who, for example -e email=ann@example.org")
    try:
        cluster = Cluster(module, "hearth-email-whitelist")
    except NoClusterError as error:
        if not module.check_mode:
            raise
        return {**outcome(params, None, *_change(params, None, emails)), "cluster": str(error)}
    return change(cluster, params, emails)


def argument_spec() -> dict[str, Any]:
    return {
        "state": {"type": "str", "choices": ["present", "absent", "exact"], "default": "present"},
        "emails": {"type": "list", "elements": "str"},
        "repair": {"type": "bool", "default": False},
        "allow_empty": {"type": "bool", "default": False},
        "namespace": {"type": "str", "default": "public-ingress"},
        "name": {"type": "str", "default": "oauth2-proxy-emails"},
        "key": {"type": "str", "default": "restricted_user_access", "no_log": False},
        "create_namespace": {"type": "bool", "default": False},
        "refresh_pods": {"type": "bool", "default": True},
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
