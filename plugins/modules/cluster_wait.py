#!/usr/bin/python
# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Wait for what somebody else does in the cluster, such as k3s's helm."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: cluster_wait
short_description: Wait for what somebody else does in the cluster
version_added: 0.2.0
description:
  - Waits until the cluster knows kinds, and until a Deployment that is not ours runs with arguments that we asked for. k3s
    installs its own parts by helm, some time after its API answers; a HelmChartConfig is a wish that helm carries out.
  - When time is up, fails with what is missing and, for a Deployment, with the reason of its newest pod and its last log
    lines. Changes nothing, and does not wait in check mode.
options:
  kinds:
    description: Kinds that the cluster must know, as C(apiVersion/Kind).
    type: list
    elements: str
    default: []
  deployment:
    description: A Deployment that must have been rolled out.
    type: dict
    suboptions:
      name:
        description: Its name.
        type: str
        required: true
      namespace:
        description: Its namespace.
        type: str
        required: true
      arguments:
        description: Arguments that its first container must have.
        type: list
        elements: str
        default: []
      no_arguments:
        description: >-
          Beginnings of arguments that it must not have. A setting that was taken away leaves nothing that could be waited for.
        type: list
        elements: str
        default: []
      image:
        description: Image that its first container must have. Of one by digest the digest counts, wherever it is pulled from.
        type: str
  hint:
    description: Where to look when time is up; the end of the message.
    type: str
    default: ""
  timeout_s:
    description: How long all of it may take, in seconds.
    type: int
    default: 300
  sleep_s:
    description: Pause between two looks, in seconds.
    type: float
    default: 2
extends_documentation_fragment:
  - homelab.hearth.kubeconfig
attributes:
  check_mode:
    support: full
    description: Looks at nothing, because what is waited for may only come with the run.
  diff_mode:
    support: none
    description: Changes nothing.
author:
  - The Hearth developers (@hearth)
"""

EXAMPLES = r"""
- name: Wait until Traefik runs with our settings
  homelab.hearth.cluster_wait:
    kubeconfig: ~/.kube/hearth.yaml
    kinds: [traefik.io/v1alpha1/IngressRoute]
    deployment:
      name: traefik
      namespace: kube-system
      arguments: [--entryPoints.web.http.aliasHeadersStrategy=delete]
  delegate_to: localhost
"""

RETURN = r"""
waited_s:
  description: How long it took, in seconds.
  returned: always
  type: float
"""

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.hearth.plugins.module_utils._k8s import (
    AUTH_SPEC,
    Cluster,
    ClusterError,
)
from ansible_collections.homelab.hearth.plugins.module_utils._objects import Object, not_ready, pod_problem
from ansible_collections.homelab.hearth.plugins.module_utils._sentence import sentence

FIELD_MANAGER = "hearth"
LOG_LINES = 15
# How many missing arguments are shown: one is enough to see which settings are not there yet.
SHOWN = 3


class WaitError(Exception):
    """What did not come in time, in words for the operator."""


def missing_kinds(cluster: Cluster, kinds: list[str]) -> list[str]:
    split = [kind.rpartition("/") for kind in kinds]
    return [f"{version}/{kind}" for version, _slash, kind in split if not cluster.knows(version, kind)]


def lack_of(deployment: Object | None, wanted: dict[str, Any]) -> str | None:
    """Why a Deployment does not run as asked for, or None when it does."""
    if deployment is None:
        return "is not there"
    [container, *_others] = deployment["spec"]["template"]["spec"]["containers"]
    given = set(container.get("args") or [])
    missing = [argument for argument in wanted["arguments"] if argument not in given]
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        return f"was not given {', '.join(missing[:SHOWN])}{more}"
    left = sorted(argument for argument in given if argument.startswith(tuple(wanted["no_arguments"])))
    if left:
        return f"still has {', '.join(left[:SHOWN])}"
    image, runs = str(wanted["image"] or ""), str(container.get("image") or "")
    if image and runs.rpartition("@")[2] != image.rpartition("@")[2]:
        return f"still has the image {runs}"
    unready = not_ready(deployment)
    return f"is not ready: {unready}" if unready else None


def newest_pod(cluster: Cluster, deployment: Object) -> Object | None:
    labels = deployment["spec"]["selector"]["matchLabels"]
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    pods = cluster.find("v1", "Pod", selector, deployment["metadata"]["namespace"])
    living = [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]
    return max(living, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), default=None)


def why(cluster: Cluster, deployment: Object | None) -> str:
    """What the newest pod suffers from; empty when it suffers from nothing."""
    pod = newest_pod(cluster, deployment) if deployment else None
    problem = pod_problem(pod) if pod else None
    if pod is None or problem is None:
        return ""
    meta = pod["metadata"]
    text = f"; pod {meta['name']}: {problem.text}"
    lines = cluster.logs(meta["namespace"], meta["name"], problem.container, problem.restarted, LOG_LINES) if problem.container else []
    return text + ("; its last log lines:\n" + "\n".join(f"  {line}" for line in lines) + "\n" if lines else "")


def look(cluster: Cluster, params: dict[str, Any]) -> tuple[str | None, Object | None]:
    """What is missing (None: nothing), and the Deployment if there is one."""
    unknown = missing_kinds(cluster, params["kinds"])
    if unknown:
        return f"the cluster does not know {', '.join(unknown)}", None
    wanted = params["deployment"]
    if not wanted:
        return None, None
    found = cluster.get("apps/v1", "Deployment", wanted["name"], wanted["namespace"])
    lack = lack_of(found, wanted)
    return (f"Deployment {wanted['namespace']}/{wanted['name']} {lack}" if lack else None), found


def wait(module: AnsibleModule) -> None:
    """Look again and again.

    :raises WaitError: time is up.
    """
    params = module.params
    deadline = time.monotonic() + params["timeout_s"]
    while True:
        # Anew each time: one that is kept remembers which kinds the cluster did not know.
        cluster = Cluster(module, FIELD_MANAGER)
        lack, deployment = look(cluster, params)
        if lack is None:
            return
        if time.monotonic() > deadline:
            hint = f". {params['hint']}" if params["hint"] else ""
            raise WaitError(f"after {params['timeout_s']} s {lack}{why(cluster, deployment)}{hint}")
        time.sleep(params["sleep_s"])


def argument_spec() -> dict[str, Any]:
    return {
        "kinds": {"type": "list", "elements": "str", "default": []},
        "deployment": {
            "type": "dict",
            "options": {
                "name": {"type": "str", "required": True},
                "namespace": {"type": "str", "required": True},
                "arguments": {"type": "list", "elements": "str", "default": []},
                "no_arguments": {"type": "list", "elements": "str", "default": []},
                "image": {"type": "str"},
            },
        },
        "hint": {"type": "str", "default": ""},
        "timeout_s": {"type": "int", "default": 300},
        "sleep_s": {"type": "float", "default": 2},
        **AUTH_SPEC,
    }


def main() -> None:
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    start = time.monotonic()
    try:
        if not module.check_mode:
            wait(module)
    except (ClusterError, WaitError) as error:
        module.fail_json(msg=sentence(error))
    module.exit_json(changed=False, waited_s=round(time.monotonic() - start, 1))


if __name__ == "__main__":
    main()
