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
  - Each change also writes a new value to the key C(_revision). Without it, proxies would not read a list again that they
    had just before, and nobody could tell whether they have it.
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
  - homelab.hearth.whitelist
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
from ansible_collections.homelab.hearth.plugins.module_utils._emails import EmailError, normalise_all
from ansible_collections.homelab.hearth.plugins.module_utils._k8s import AUTH_SPEC, Cluster, ClusterError, NoClusterError
from ansible_collections.homelab.hearth.plugins.module_utils._sentence import sentence
from ansible_collections.homelab.hearth.plugins.module_utils._whitelist import LIST_SPEC, WhitelistError, change, changed_text, outcome


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
        return {**outcome(params, None, *changed_text(params, None, emails)), "cluster": str(error)}
    result: dict[str, Any] = change(cluster, params, emails)
    return result


def argument_spec() -> dict[str, Any]:
    return {
        "state": {"type": "str", "choices": ["present", "absent", "exact"], "default": "present"},
        "emails": {"type": "list", "elements": "str"},
        "repair": {"type": "bool", "default": False},
        "allow_empty": {"type": "bool", "default": False},
        **LIST_SPEC,
        "create_namespace": {"type": "bool", "default": False},
        "refresh_pods": {"type": "bool", "default": True},
        **AUTH_SPEC,
    }


def main() -> None:
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    try:
        module.exit_json(**run(module))
    except (ClusterError, EmailError, WhitelistError) as error:
        module.fail_json(msg=sentence(error))


if __name__ == "__main__":
    main()
