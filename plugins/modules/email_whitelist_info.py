#!/usr/bin/python
# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Who may sign in, without changing it."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: email_whitelist_info
short_description: Tell who may sign in
version_added: 0.2.0
description:
  - Reads the list of addresses that the sign-in proxy lets in.
  - A malformed list is no failure here. Its faults are returned by line, beside the addresses on the lines that are
    sound. The proxy may be using an older list then.
  - During a lockdown the list is the one that will hold again after it.
extends_documentation_fragment:
  - homelab.hearth.kubeconfig
  - homelab.hearth.whitelist
attributes:
  check_mode:
    support: full
    description: Only reads.
  diff_mode:
    support: none
    description: Nothing is changed.
seealso:
  - module: homelab.hearth.email_whitelist
author:
  - The Hearth developers (@hearth)
"""

EXAMPLES = r"""
- name: Read the list
  homelab.hearth.email_whitelist_info:
    kubeconfig: ~/.kube/hearth.yaml
  register: people
  delegate_to: localhost

- name: Refuse to go on with a list that the proxy would ignore
  ansible.builtin.assert:
    that: people.problems == []
"""

RETURN = r"""
exists:
  description: Whether there is a list. Without one the proxy does not start, or goes on with the list that it read last.
  returned: always
  type: bool
emails:
  description: Who is in the list.
  returned: always
  type: list
  elements: str
locked:
  description: Whether a lockdown keeps everybody out at the moment, whoever is in the list.
  returned: always
  type: bool
problems:
  description: What is wrong with lines that are neither an address nor a comment.
  returned: always
  type: list
  elements: dict
  contains:
    line:
      description: Number of the line.
      type: int
    problem:
      description: What is wrong with it.
      type: str
text:
  description: The list as it stands, with its comments.
  returned: always
  type: str
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.hearth.plugins.module_utils._emails import readable
from ansible_collections.homelab.hearth.plugins.module_utils._k8s import AUTH_SPEC, Cluster, ClusterError
from ansible_collections.homelab.hearth.plugins.module_utils._lock import locked_since
from ansible_collections.homelab.hearth.plugins.module_utils._sentence import sentence
from ansible_collections.homelab.hearth.plugins.module_utils._whitelist import LIST_SPEC, key_of


def run(module: AnsibleModule) -> dict[str, Any]:
    params = module.params
    cluster = Cluster(module, "hearth-email-whitelist")
    stored = cluster.get("v1", "ConfigMap", params["name"], params["namespace"])
    text = ((stored or {}).get("data") or {}).get(key_of(stored, params["key"]))
    emails, problems = readable(text or "")
    return {
        "exists": text is not None,
        "emails": emails,
        "locked": bool(locked_since(stored)),
        "problems": [{"line": number, "problem": problem} for number, problem in problems],
        "text": text or "",
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **LIST_SPEC,
            **AUTH_SPEC,
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(changed=False, **run(module))
    except ClusterError as error:
        module.fail_json(msg=sentence(error))


if __name__ == "__main__":
    main()
