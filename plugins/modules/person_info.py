#!/usr/bin/python
# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The people of the house, as the list of the sign-in proxy and the gateway know them."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: person_info
short_description: Who may come in
version_added: 0.2.0
description:
  - Reads the list of the sign-in proxy and the gateway's own people, and puts them side by side. Changes nothing.
options: {}
extends_documentation_fragment:
  - homelab.hearth.kubeconfig
attributes:
  check_mode:
    support: full
    description: Reads only.
  diff_mode:
    support: none
    description: Nothing is changed.
requirements:
  - websocket-client
seealso:
  - module: homelab.hearth.person
author:
  - The Hearth developers (@hearth)
"""

EXAMPLES = r"""
- name: Who may come in
  homelab.hearth.person_info:
    kubeconfig: ~/.kube/hearth.yaml
  delegate_to: localhost
  register: everybody
"""

RETURN = r"""
people:
  description: Everybody whom one of the two knows, by address.
  returned: always
  type: list
  elements: dict
  contains:
    email:
      description: Address.
      type: str
    listed:
      description: Whether the sign-in proxy lets them in.
      type: bool
    state:
      description: V(active) or V(disabled) in the gateway; V(new) for who has not come in yet.
      type: str
    alias:
      description: Short name, if there is one.
      type: str
    limits:
      description: Their own ceilings; none when those of the house apply.
      type: dict
    first_seen:
      description: Since when the gateway knows them.
      type: str
lines:
  description: The same for reading, a line each.
  returned: always
  type: list
  elements: str
problems:
  description: What is wrong with lines of the list.
  returned: always
  type: list
  elements: str
locked_since:
  description: Since when the house is locked down; empty when it is not.
  returned: always
  type: str
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.hearth.plugins.module_utils import _names
from ansible_collections.homelab.hearth.plugins.module_utils._k8s import AUTH_SPEC, Cluster, ClusterError
from ansible_collections.homelab.hearth.plugins.module_utils._lock import locked_since
from ansible_collections.homelab.hearth.plugins.module_utils._people import Gateway, PeopleError, Person
from ansible_collections.homelab.hearth.plugins.module_utils._sentence import sentence
from ansible_collections.homelab.hearth.plugins.module_utils._whitelist import people_in


def together(listed: list[str], known: dict[str, Person]) -> list[Person]:
    """One entry for everybody whom the list or the gateway knows."""
    return [
        {
            "email": email,
            "listed": email in listed,
            "state": known.get(email, {}).get("state", "new"),
            **{field: known.get(email, {}).get(field) for field in ("alias", "limits", "first_seen")},
        }
        for email in sorted({*listed, *known})
    ]


def line_of(person: Person) -> str:
    may = "may sign in" if person["listed"] and person["state"] != "disabled" else "may not sign in"
    if person["listed"] and person["state"] == "disabled":
        may += " (in the list, but switched off in the gateway: run add_user.yml or remove_user.yml)"
    elif not person["listed"] and person["state"] == "active":
        may += " (not in the list, but not switched off in the gateway: run remove_user.yml)"
    parts = [f"{person['email']}: {may}"]
    parts += [f"called {person['alias']}"] if person["alias"] else []
    parts += [", ".join(f"{name} {value}" for name, value in person["limits"].items())] if person["limits"] else []
    parts += [f"since {person['first_seen'][:10]}"] if person["first_seen"] else ["has not come in yet"]
    return "; ".join(parts)


def run(module: AnsibleModule) -> dict[str, Any]:
    cluster = Cluster(module, "hearth-person")
    stored = cluster.get("v1", "ConfigMap", _names.WHITELIST, _names.ACCESS_NAMESPACE)
    if stored is None:
        raise PeopleError(
            f"there is no list of people (ConfigMap {_names.ACCESS_NAMESPACE}/{_names.WHITELIST}), so nobody can sign in yet: "
            "set oauth2_proxy_chat_host and run site.yml first"
        )
    listed, problems = people_in(stored, _names.WHITELIST_KEY)
    people = together(listed, Gateway(cluster).people())
    return {
        "people": people,
        "lines": [line_of(person) for person in people],
        "problems": [f"line {number}: {problem}" for number, problem in problems],
        "locked_since": locked_since(stored),
    }


def main() -> None:
    module = AnsibleModule(argument_spec=dict(AUTH_SPEC), supports_check_mode=True)
    try:
        module.exit_json(changed=False, **run(module))
    except (ClusterError, PeopleError) as error:
        module.fail_json(msg=sentence(error))


if __name__ == "__main__":
    main()
