#!/usr/bin/python
# Copyright: The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: one node of the cluster, seen from a server: labelled, emptied, opened, removed."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: cluster_node
short_description: Label, empty, open or remove a node of the cluster
version_added: 0.3.0
description:
  - Runs on a server of the cluster, with the credentials that k3s keeps there.
  - V(present) makes the given change, and opens the node again when this module emptied it.
  - V(emptied) closes the node to new pods and sends its pods elsewhere, within their disruption budgets. Pods that cannot live
    elsewhere stay, unless O(for_good). When a pod does not leave in time, the node is opened again and the module fails.
    First it waits until a controller manager leads, without which requests would be sent to pods that are gone.
  - V(absent) deletes the node, with which k3s deletes its password and, for a server, its member of etcd. See O(volumes).
author:
  - The Hearth developers (@hearth)
attributes:
  check_mode:
    support: full
    description: Says what would change.
  diff_mode:
    support: none
    description: There is no text to compare.
options:
  name:
    description: Name of the node.
    type: str
    required: true
  state:
    description: What the node shall be. V(seen) only looks.
    type: str
    choices: [seen, present, emptied, absent]
    required: true
  change:
    description: What is to change with V(present), as the filter P(homelab.hearth.k3s_node_change#filter) says it.
    type: dict
    default: {}
  for_good:
    description: The node is being removed, so all pods leave that would not come back by themselves here.
    type: bool
    default: false
  forced:
    description: Remove a healthy server although an even number of servers stays.
    type: bool
    default: false
  volumes:
    description: >-
      What becomes of volumes that lie on this node alone when it is removed. V(keep) refuses to remove it. V(delete) deletes them and their
      claims, which whoever needs them makes anew. V(leave) leaves both, for a host that comes back under this name.
    type: str
    choices: [keep, leave, delete]
    default: keep
  restored:
    description: The cluster was just restored, and this node is one of those that did not come back. Nothing is asked about it.
    type: bool
    default: false
  timeout_s:
    description: Seconds until the pods must have left, or the node's traces must be gone.
    type: int
    default: 300
"""

EXAMPLES = r"""
- name: Empty a node
  homelab.hearth.cluster_node:
    name: h2
    state: emptied
  delegate_to: h1
"""

RETURN = r"""
exists:
  description: Whether there was such a node.
  returned: success
  type: bool
ready:
  description: Whether it was Ready.
  returned: success
  type: bool
refused:
  description: Why the node may not be removed, with the way out; empty when it may.
  returned: success
  type: str
left:
  description: Pods that were sent elsewhere.
  returned: success
  type: list
  elements: str
volumes:
  description: Claims whose data lie on this node alone, also where the cluster no longer knows the node.
  returned: success
  type: list
  elements: str
folders:
  description: Where those data lie on the host.
  returned: success
  type: list
  elements: str
"""

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.hearth.plugins.module_utils import _conditions, _drain, _k3s_node, _topology
from ansible_collections.homelab.hearth.plugins.module_utils._kubectl import Kubectl, KubectlError
from ansible_collections.homelab.hearth.plugins.module_utils._sentence import sentence

Object = dict[str, Any]
ATTEMPTS = 5
ETCD_ROLE = "node-role.kubernetes.io/etcd"
SERVER_ROLE = "node-role.kubernetes.io/control-plane"
CONTROLLERS = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/kube-controller-manager"
# Who takes over waits until the lease of the one before has run out (15 s), and an election may have to be repeated.
LED_WITHIN_S = 60


class NodeError(Exception):
    """What stands in the way, in words for the operator."""


class Node:
    """One node, by its name."""

    def __init__(self, kubectl: Kubectl, name: str, timeout_s: int) -> None:
        self.kubectl, self.name, self.timeout_s = kubectl, name, timeout_s
        self.path = f"/api/v1/nodes/{name}"

    def read(self) -> Object | None:
        found: Object | None = self.kubectl.get(self.path)
        return found

    def write(self, change: Object) -> None:
        """Make a change; anew when somebody else wrote in between, which the kubelet does all the time."""
        for attempt in range(1, ATTEMPTS + 1):
            node = self.read()
            if node is None:
                raise NodeError(f"there is no node {self.name}")
            try:
                self.kubectl.replace(self.path, _k3s_node.with_change(node, change))
                return
            except KubectlError as error:
                if error.reason != "Conflict" or attempt == ATTEMPTS:
                    raise

    def pods(self) -> list[Object]:
        found: list[Object] = self.kubectl.items(f"/api/v1/pods?fieldSelector=spec.nodeName%3D{self.name}")
        return found

    def volumes(self, node: Object | None) -> dict[str, Object]:
        """By claim. A node that is not known would be called by its name."""
        known = node or {"metadata": {"name": self.name}}
        found: dict[str, Object] = _drain.bound_volumes(known, self.kubectl.items("/api/v1/persistentvolumes"))
        return found


def votes(node: Object) -> bool:
    """Whether a server is healthy. One on SQLite has no condition of etcd."""
    return bool(_conditions.is_ready(node) and _conditions.condition(node, "EtcdIsVoter").get("status", "True") == "True")


def refusal(kubectl: Kubectl, node: Object, volumes: dict[str, Object], params: dict[str, Any]) -> str:
    """Why the node may not be removed; empty when it may."""
    nodes = kubectl.items("/api/v1/nodes")
    servers = {n["metadata"]["name"]: votes(n) for n in nodes if SERVER_ROLE in (n["metadata"].get("labels") or {})}
    said = str(_topology.removal_refusal(node["metadata"]["name"], servers, forced=params["forced"]))
    if said:
        return said
    if volumes and params["volumes"] == "keep":
        return (
            f"the data of {', '.join(sorted(volumes))} lie on {node['metadata']['name']} alone and would be lost. Move them first, or "
            "say that they may go: -e remove_node_delete_volumes=true"
        )
    return ""


def evict(kubectl: Kubectl, pod: Object) -> str:
    """Ask a pod to leave. Returns why it may not yet, empty when it was asked."""
    meta = pod["metadata"]
    body = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": meta["name"], "namespace": meta["namespace"]},
        "deleteOptions": {"preconditions": {"uid": meta["uid"]}},
    }
    try:
        kubectl.create(f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}/eviction", body)
    except KubectlError as error:
        if error.reason in ("NotFound", "Conflict"):
            return ""
        if error.reason == "TooManyRequests":
            return str(error)
        raise
    return ""


def until_led(kubectl: Kubectl) -> None:
    """Wait until a controller manager is at work.

    When the server that leads is restarted, its lease has to run out before another takes over. For so long nobody tells the
    nodes that a pod is leaving, and requests are still sent to it when it is gone.

    :raises NodeError: nobody leads.
    """
    deadline = time.monotonic() + LED_WITHIN_S
    seen: tuple[str, str] | None = None
    while (lease := kubectl.get(CONTROLLERS)) is not None:  # without an election there is no lease
        holder, renewed = lease["spec"].get("holderIdentity", ""), lease["spec"].get("renewTime", "")
        if seen is not None and holder and holder == seen[0] and renewed != seen[1]:
            return
        if seen is None or holder != seen[0]:
            seen = (holder, renewed)
        if time.monotonic() > deadline:
            raise NodeError(
                f"no controller manager renewed its lease within {LED_WITHIN_S} s, and without one the nodes are not told which pods "
                "leave. See `journalctl -u k3s` on the servers"
            )
        time.sleep(0.5)


def empty(node: Node, for_good: bool) -> list[str]:
    """Close the node and send its pods away.

    :raises NodeError: some did not leave in time; the node is open again.
    """
    seen = node.read()
    if seen is None:
        raise NodeError(f"there is no node {node.name}")
    until_led(node.kubectl)
    node.write({"annotations": {_k3s_node.ANNOTATION_EMPTIED: "true"}, "unschedulable": True})
    bound = node.volumes(seen)
    asked: dict[str, str] = {}
    refused: dict[str, str] = {}
    # The kubelet of a node that does not run would never say that a pod has ended.
    alive = _conditions.is_ready(seen)
    deadline = time.monotonic() + node.timeout_s
    while True:
        pods = _drain.leaving(node.pods(), bound, for_good=for_good)
        for pod in pods:
            if pod["metadata"]["uid"] in asked or pod["metadata"].get("deletionTimestamp"):
                continue
            why = evict(node.kubectl, pod)
            if why:
                refused[_drain.title(pod)] = why
            else:
                asked[pod["metadata"]["uid"]] = _drain.title(pod)
                refused.pop(_drain.title(pod), None)
        if not pods or (not alive and not refused):
            return sorted(asked.values())
        if time.monotonic() > deadline:
            node.write({"annotations": {_k3s_node.ANNOTATION_EMPTIED: None}, "unschedulable": False})
            raise NodeError(too_late(node, pods, refused))
        time.sleep(1)


def too_late(node: Node, pods: list[Object], refused: dict[str, str]) -> str:
    names = [_drain.title(pod) for pod in pods[:5]]
    listed = ", ".join(f"{name} ({refused[name]})" if name in refused else name for name in names)
    more = f" and {len(pods) - 5} more" if len(pods) > 5 else ""
    return (
        f"after {node.timeout_s} s these pods are still on {node.name}: {listed}{more}. The node was opened again. Give them more time "
        "(k3s_drain_timeout_s), or a second replica"
    )


def remove(node: Node) -> None:
    """Delete the node and wait until k3s has forgotten it.

    :raises NodeError: its password or its member of etcd is still there.
    """
    node.kubectl.delete(node.path)
    secret = f"/api/v1/namespaces/kube-system/secrets/{node.name}.node-password.k3s"
    deadline = time.monotonic() + min(node.timeout_s, 60)
    while node.read() is not None or node.kubectl.get(secret) is not None:
        if time.monotonic() > deadline:
            if node.read() is None:
                # An old k3s without the controller that does it: a new host of that name would be refused.
                node.kubectl.delete(secret)
                return
            raise NodeError(f"node {node.name} was deleted and is still there; is k3s still running on it?")
        time.sleep(1)


def delete_volumes(node: Node, volumes: dict[str, Object]) -> None:
    """Delete the claims and their volumes, and wait until they are gone: a claim stays as long as a pod has it.

    :raises NodeError: a claim is still in use.
    """
    claims = {}
    for claim, volume in volumes.items():
        namespace, _slash, name = claim.partition("/")
        path = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}"
        # First the volume, which is marked and waits for its claim: else a provisioner would try to clean up on a node that is gone.
        node.kubectl.delete(f"/api/v1/persistentvolumes/{volume['metadata']['name']}")
        found = node.kubectl.get(path)
        # A volume that was kept may remember a claim whose namesake has another volume by now.
        if found is not None and found["spec"].get("volumeName") == volume["metadata"]["name"]:
            claims[claim] = path
            node.kubectl.delete(path)
    deadline = time.monotonic() + node.timeout_s
    while left := sorted(claim for claim, path in claims.items() if node.kubectl.get(path) is not None):
        if time.monotonic() > deadline:
            raise NodeError(f"node {node.name} is removed, but after {node.timeout_s} s pods still have the claims {', '.join(left)}")
        time.sleep(1)


def carry_out(module: AnsibleModule, node: Node, seen: Object | None, volumes: dict[str, Object]) -> tuple[bool, list[str]]:
    """Make it so. Returns whether anything changed, and the pods that left."""
    params = module.params
    annotations = (seen or {}).get("metadata", {}).get("annotations") or {}
    emptied_by_us = _k3s_node.ANNOTATION_EMPTIED in annotations
    if params["state"] == "present":
        change = {name: part for name, part in params["change"].items() if part is not None}
        if emptied_by_us:
            change["annotations"] = {**change.get("annotations", {}), _k3s_node.ANNOTATION_EMPTIED: None}
            change["unschedulable"] = False
        if change and not module.check_mode:
            node.write(change)
        return bool(change), []
    if params["state"] == "emptied":
        if seen is None:
            return False, []
        if module.check_mode:
            return True, [_drain.title(pod) for pod in _drain.leaving(node.pods(), volumes, for_good=params["for_good"])]
        if not params["for_good"] and not _drain.has_a_place(node.kubectl.items("/api/v1/nodes"), node.name):
            return False, []  # pods that have nowhere to go are better left running
        return True, empty(node, params["for_good"])
    if params["state"] == "absent":
        doomed = volumes if params["volumes"] == "delete" else {}
        if not module.check_mode:
            if seen is not None:
                remove(node)
            delete_volumes(node, doomed)
        return seen is not None or bool(doomed), []
    return False, []


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["seen", "present", "emptied", "absent"], "required": True},
            "change": {"type": "dict", "default": {}},
            "for_good": {"type": "bool", "default": False},
            "forced": {"type": "bool", "default": False},
            "volumes": {"type": "str", "choices": ["keep", "leave", "delete"], "default": "keep"},
            "restored": {"type": "bool", "default": False},
            "timeout_s": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    kubectl = Kubectl(module)
    node = Node(kubectl, module.params["name"], module.params["timeout_s"])
    try:
        seen = node.read()
        volumes = node.volumes(seen) if module.params["state"] != "present" else {}
        asked = module.params["state"] in ("seen", "absent") and not module.params["restored"]
        refused = refusal(kubectl, seen, volumes, module.params) if seen and asked else ""
        if refused and module.params["state"] == "absent":
            raise NodeError(refused)
        changed, left = carry_out(module, node, seen, volumes)
    except (KubectlError, NodeError) as error:
        module.fail_json(msg=sentence(error))
    module.exit_json(
        changed=changed,
        exists=seen is not None,
        ready=_conditions.is_ready(seen),
        refused=refused,
        left=left,
        volumes=sorted(volumes),
        folders=sorted(filter(None, map(_drain.folder_of, volumes.values()))),
    )


if __name__ == "__main__":
    main()
