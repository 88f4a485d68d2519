#!/usr/bin/python
# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The kill switch: nobody and no program comes in, until it is lifted."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: lockdown
short_description: Shut every door, or open them again
version_added: 0.2.0
description:
  - Puts the gateway's tokens aside, in one write, so that every person and every program is refused and every open answer is
    cut; and the list of people too, so that no app behind the sign-in opens. Nothing is deleted.
  - Pods of the gateway that are on their way out are ended, since they get no changes any more.
  - Ends when all pods of the gateway and of the sign-in proxy have taken it in, or says which have not.
options:
  state:
    description: V(locked) shuts the doors, V(lifted) opens them to whom they were open before.
    type: str
    choices: [locked, lifted]
    default: locked
  wait_s:
    description: How long the pods may take to get the change, in seconds.
    type: float
    default: 20
extends_documentation_fragment:
  - homelab.hearth.kubeconfig
attributes:
  check_mode:
    support: full
    description: The API server runs the changes dry.
  diff_mode:
    support: full
    description: Names of what is put aside, without values.
requirements:
  - websocket-client
author:
  - The Hearth developers (@hearth)
"""

EXAMPLES = r"""
- name: Shut every door
  homelab.hearth.lockdown:
    kubeconfig: ~/.kube/hearth.yaml
  delegate_to: localhost

- name: Open them again
  homelab.hearth.lockdown:
    kubeconfig: ~/.kube/hearth.yaml
    state: lifted
  delegate_to: localhost
"""

RETURN = r"""
locked_since:
  description: Since when the house is locked down; empty when it is not.
  returned: always
  type: str
tokens:
  description: Names of the tokens that are put aside, or count again.
  returned: always
  type: list
  elements: str
ended:
  description: Pods that were on their way out and were ended at once.
  returned: always
  type: list
  elements: str
"""

import datetime
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.hearth.plugins.module_utils import _names
from ansible_collections.homelab.hearth.plugins.module_utils._k8s import (
    AUTH_SPEC,
    Cluster,
    ClusterError,
    Object,
    hurry,
    until_undisturbed,
)
from ansible_collections.homelab.hearth.plugins.module_utils._lock import ASIDE, lifted, locked, locked_since
from ansible_collections.homelab.hearth.plugins.module_utils._objects import title
from ansible_collections.homelab.hearth.plugins.module_utils._people import Gateway, PeopleError
from ansible_collections.homelab.hearth.plugins.module_utils._sentence import sentence
from ansible_collections.homelab.hearth.plugins.module_utils._token import PREVIOUS
from ansible_collections.homelab.hearth.plugins.module_utils._whitelist import WhitelistError, revised, wait_until_read

TOKENS = ("Secret", _names.TOKENS_SECRET, _names.GATEWAY_NAMESPACE)
LIST = ("ConfigMap", _names.WHITELIST, _names.ACCESS_NAMESPACE)
# A second for the process to say goodbye. 0 would only make the API server forget the pod.
GRACE_S = 1


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def names_in(stored: Object) -> list[str]:
    """Names of the tokens of the gateway's Secret, those aside too."""
    return sorted({key.removeprefix(ASIDE).removesuffix(PREVIOUS) for key in stored.get("data") or {}})


def keys_of(stored: Object) -> str:
    return "".join(f"{key}\n" for key in sorted(stored.get("data") or {}))


class Run:
    """One run of the module."""

    def __init__(self, module: AnsibleModule, cluster: Cluster) -> None:
        self.params, self.cluster = module.params, cluster
        self.lock: bool = module.params["state"] == "locked"
        self.moment = now()
        self.diff: list[dict[str, str]] = []

    def _wanted(self, stored: Object) -> Object:
        if self.lock:
            # The sign-in proxy needs its file; without it, it would go on with the list that it has.
            return locked(stored, self.moment, [_names.WHITELIST_KEY] if stored["kind"] == "ConfigMap" else [])
        return lifted(stored) if locked_since(stored) else stored

    def _bring(self, what: tuple[str, str, str]) -> Object | None:
        """Lock or lift one object; returns it as it is then, None when there is none.

        :raises ClusterError: with status 409 when somebody else wrote in between.
        """
        kind, name, namespace = what
        stored = self.cluster.get("v1", kind, name, namespace)
        if stored is None:
            return None
        wanted = self._wanted(stored)
        if wanted != stored:
            if kind == "ConfigMap":
                wanted = {**wanted, "data": revised(wanted["data"])}
            self.cluster.replace(wanted)
            where = title(stored)
            self.diff.append({"before_header": where, "after_header": where, "before": keys_of(stored), "after": keys_of(wanted)})
        hurry(self.cluster, kind, namespace, name)
        return wanted

    def _end_leaving(self) -> list[str]:
        """End pods of the gateway that were told to go: they finish open answers, for minutes, with the tokens that they have."""
        ended = []
        gateway = Gateway(self.cluster, answering=False)
        for pod in gateway.pods(leaving=True) if self.lock else []:
            self.cluster.delete(pod, GRACE_S)
            ended.append(title(pod))
        return ended

    def _wait(self, tokens: list[str], with_list: bool) -> None:
        def as_wanted(files: dict[str, str]) -> bool:
            return not files if self.lock else set(tokens) <= set(files)

        Gateway(self.cluster, answering=False).wait_for_tokens(as_wanted, self.params["wait_s"])
        if with_list:
            wait_until_read(self.cluster, _names.ACCESS_NAMESPACE, _names.WHITELIST, self.params["wait_s"])

    def run(self) -> dict[str, Any]:
        tokens = until_undisturbed(lambda: self._bring(TOKENS), "the Secret of the tokens")
        if tokens is None:
            raise PeopleError(
                f"there is nothing to {'lock' if self.lock else 'lift'}: this cluster has no gateway "
                f"(Secret {_names.GATEWAY_NAMESPACE}/{_names.TOKENS_SECRET})"
            )
        people = until_undisturbed(lambda: self._bring(LIST), "the list of people")
        ended = self._end_leaving()
        if not self.cluster.dry_run:
            self._wait(names_in(tokens), people is not None)
        return {
            "changed": bool(self.diff or ended),
            "locked_since": locked_since(tokens),
            "tokens": names_in(tokens),
            "ended": ended,
            "diff": self.diff,
        }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["locked", "lifted"], "default": "locked"},
            "wait_s": {"type": "float", "default": 20},
            **AUTH_SPEC,
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**Run(module, Cluster(module, "hearth-lockdown")).run())
    except (ClusterError, PeopleError, WhitelistError) as error:
        module.fail_json(msg=sentence(error))


if __name__ == "__main__":
    main()
