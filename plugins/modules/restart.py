#!/usr/bin/python
# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""New pods for the workloads that read a Secret at their start only."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: restart
short_description: New pods for what reads a Secret at its start only
version_added: 0.2.0
description:
  - Finds the Deployments, StatefulSets and DaemonSets whose pods get one of the Secrets, as files or as environment, and
    replaces the pods that were made with another content of it, by an annotation of the pod template. New pods start beside the
    old ones, or in their place, as the workload says.
  - Ends when only new pods run and new requests reach only these. Called again, it changes nothing.
options:
  secrets:
    description: Names of Secrets.
    type: list
    elements: str
    required: true
  namespaces:
    description: Namespaces in which they are.
    type: list
    elements: str
    required: true
  only_outdated:
    description: >-
      Leave those alone whose pods all started after the Secret was last changed. Otherwise what was never restarted here gets
      new pods once, since nothing shows what it started with.
    type: bool
    default: false
  wait_s:
    description: How long the new pods may take, in seconds.
    type: float
    default: 240
extends_documentation_fragment:
  - homelab.hearth.kubeconfig
attributes:
  check_mode:
    support: full
    description: The API server runs the change dry. Where there is no cluster yet, nothing would be restarted.
  diff_mode:
    support: none
    description: C(restarted) says it.
author:
  - The Hearth developers (@hearth)
"""

EXAMPLES = r"""
- name: The sign-in proxy reads its token anew
  homelab.hearth.restart:
    kubeconfig: ~/.kube/hearth.yaml
    secrets: [gateway-token-proxy]
    namespaces: [public-ingress]
  delegate_to: localhost
"""

RETURN = r"""
restarted:
  description: Workloads that got, or would get, new pods.
  returned: always
  type: list
  elements: str
readers:
  description: Workloads that read one of the Secrets.
  returned: always
  type: list
  elements: str
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.hearth.plugins.module_utils._k8s import AUTH_SPEC, Cluster, ClusterError, NoClusterError
from ansible_collections.homelab.hearth.plugins.module_utils._objects import title
from ansible_collections.homelab.hearth.plugins.module_utils._rollout import RolloutError, restart, wait
from ansible_collections.homelab.hearth.plugins.module_utils._sentence import sentence


def run(module: AnsibleModule) -> dict[str, Any]:
    params = module.params
    try:
        cluster = Cluster(module, "hearth-restart")
    except NoClusterError:
        if not module.check_mode:
            raise
        return {"changed": False, "restarted": [], "readers": []}
    readers, restarted = [], []
    for namespace in params["namespaces"]:
        for secret in params["secrets"]:
            found, changed = restart(cluster, namespace, secret, params["only_outdated"])
            readers += found
            restarted += changed
    if not cluster.dry_run:
        wait(cluster, readers, params["wait_s"])
    return {"changed": bool(restarted), "restarted": sorted(set(restarted)), "readers": sorted({title(reader) for reader in readers})}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            # Names.
            "secrets": {"type": "list", "elements": "str", "required": True, "no_log": False},
            "namespaces": {"type": "list", "elements": "str", "required": True},
            "only_outdated": {"type": "bool", "default": False},
            "wait_s": {"type": "float", "default": 240},
            **AUTH_SPEC,
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**run(module))
    except (ClusterError, RolloutError) as error:
        module.fail_json(msg=sentence(error))


if __name__ == "__main__":
    main()
