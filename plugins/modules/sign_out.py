#!/usr/bin/python
# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""End every session of the sign-in, and the open answers of some people."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: sign_out
short_description: Sign people out on every device
version_added: 0.2.0
description:
  - A session is a cookie in the browser and nothing on the server, so one person's sessions cannot be ended alone. New secrets
    for the cookies end all of them, also one that was copied from a device that is lost. Everybody signs in once more; who is
    still signed in at the identity provider notices a moment's redirect.
  - Then the open answers of the people in O(emails) are cut. Those of others run to their end.
  - Does not take access away. Whoever can sign in as that person at the identity provider comes in again.
options:
  emails:
    description: The people whom this is about.
    type: list
    elements: str
    required: true
  wait_s:
    description: How long the new pods of the sign-in proxy may take, in seconds.
    type: float
    default: 240
extends_documentation_fragment:
  - homelab.hearth.kubeconfig
attributes:
  check_mode:
    support: full
    description: The API server runs the changes dry.
  diff_mode:
    support: none
    description: Secrets are only made anew.
requirements:
  - websocket-client
author:
  - The Hearth developers (@hearth)
"""

EXAMPLES = r"""
- name: Ann lost her phone
  homelab.hearth.sign_out:
    kubeconfig: ~/.kube/hearth.yaml
    emails: ann@example.org
  delegate_to: localhost
"""

RETURN = r"""
restarted:
  description: Deployments that got, or would get, new pods.
  returned: always
  type: list
  elements: str
"""

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.hearth.plugins.module_utils import _names
from ansible_collections.homelab.hearth.plugins.module_utils._emails import EmailError, normalise_all
from ansible_collections.homelab.hearth.plugins.module_utils._k8s import AUTH_SPEC, Cluster, ClusterError, until_undisturbed
from ansible_collections.homelab.hearth.plugins.module_utils._objects import title
from ansible_collections.homelab.hearth.plugins.module_utils._people import NOTICED_S, Gateway, PeopleError
from ansible_collections.homelab.hearth.plugins.module_utils._rollout import RolloutError, readers, restart, wait
from ansible_collections.homelab.hearth.plugins.module_utils._sentence import sentence
from ansible_collections.homelab.hearth.plugins.module_utils._token import encode, generate
from ansible_collections.homelab.hearth.plugins.module_utils._whitelist import people_in


def require_known(cluster: Cluster, gateway: Gateway, emails: list[str]) -> None:
    """Refuse an address that nobody has: a misspelt one would sign everybody out for nothing.

    :raises PeopleError: names it.
    """
    stored = cluster.get("v1", "ConfigMap", _names.WHITELIST, _names.ACCESS_NAMESPACE)
    listed, _problems = people_in(stored, _names.WHITELIST_KEY)
    known = gateway.people()
    strangers = [email for email in emails if email not in listed and email not in known]
    if strangers:
        raise PeopleError(f"nobody here has the address {', '.join(strangers)} (list_users.yml shows who is); nothing was changed")


def new_cookie_secret(cluster: Cluster, instance: str) -> bool:
    """Give an instance of the sign-in proxy a new secret for its cookies; False when there is no such instance."""

    def attempt() -> bool:
        stored = cluster.get("v1", "Secret", instance, _names.ACCESS_NAMESPACE)
        if stored is None or _names.COOKIE_KEY not in (stored.get("data") or {}):
            return False
        cluster.replace({**stored, "data": {**stored["data"], _names.COOKIE_KEY: encode(generate())}})
        return True

    return bool(until_undisturbed(attempt, f"the Secret {instance}"))


def run(module: AnsibleModule) -> dict[str, Any]:
    emails = normalise_all(module.params["emails"])
    if not emails:
        raise PeopleError("no address given; say who, for example -e email=ann@example.org")
    cluster = Cluster(module, "hearth-sign-out")
    if not readers(cluster, _names.ACCESS_NAMESPACE, _names.SIGN_IN_INSTANCES[0]):
        raise PeopleError(
            f"there is no sign-in in this cluster (Deployment {_names.ACCESS_NAMESPACE}/{_names.SIGN_IN_INSTANCES[0]}): "
            "set oauth2_proxy_chat_host and run site.yml first"
        )
    gateway = Gateway(cluster)
    require_known(cluster, gateway, emails)
    pending: list[Any] = []
    restarted: list[str] = []
    for instance in _names.SIGN_IN_INSTANCES:
        if new_cookie_secret(cluster, instance):
            found, changed = restart(cluster, _names.ACCESS_NAMESPACE, instance)
            pending += found
            # In a check the Secret is still the old one, and says of pods that were restarted before that they have it.
            restarted += [title(reader) for reader in found] if cluster.dry_run else changed
    if not cluster.dry_run:
        # At last: before that, an old cookie would begin the next answer at once.
        wait(cluster, pending, module.params["wait_s"])
        for email in emails:
            gateway.person("set", email, "--not-before", "now")
        time.sleep(NOTICED_S)
    return {"changed": True, "restarted": restarted}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "emails": {"type": "list", "elements": "str", "required": True},
            "wait_s": {"type": "float", "default": 240},
            **AUTH_SPEC,
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**run(module))
    except (ClusterError, EmailError, PeopleError, RolloutError) as error:
        module.fail_json(msg=sentence(error))


if __name__ == "__main__":
    main()
