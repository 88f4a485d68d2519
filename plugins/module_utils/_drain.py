# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which pods leave a node, and which stay. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.homelab.hearth.plugins.module_utils._conditions import is_ready

Object = Mapping[str, Any]
HOSTNAME = "kubernetes.io/hostname"


def nodes_of(volume: Object) -> set[str]:
    """Nodes, by their name or their label of the host, that alone reach a volume's data; empty when any node does."""
    terms = ((volume["spec"].get("nodeAffinity") or {}).get("required") or {}).get("nodeSelectorTerms") or []
    return {
        value
        for term in terms
        for rule in [*(term.get("matchExpressions") or []), *(term.get("matchFields") or [])]
        if rule.get("key") in (HOSTNAME, "metadata.name") and rule.get("operator") == "In"
        for value in rule.get("values") or []
    }


def names_of(node: Object) -> set[str]:
    """What a volume may call the node."""
    return {node["metadata"]["name"], (node["metadata"].get("labels") or {}).get(HOSTNAME, "")} - {""}


def folder_of(volume: Object) -> str:
    """Where a volume lies on its host; empty for one that is no folder."""
    return str((volume["spec"].get("hostPath") or volume["spec"].get("local") or {}).get("path", ""))


def bound_volumes(node: Object, volumes: Iterable[Object]) -> dict[str, Object]:
    """Volumes whose data lie on this node alone, by `namespace/name` of their claim."""
    found = {}
    for volume in volumes:
        claim, names = volume.get("spec", {}).get("claimRef") or {}, nodes_of(volume)
        if claim and names and names <= names_of(node):
            found[f"{claim['namespace']}/{claim['name']}"] = volume
    return found


def _owner(pod: Object) -> str:
    return next((owner["kind"] for owner in pod["metadata"].get("ownerReferences") or [] if owner.get("controller")), "")


def _claims(pod: Object) -> set[str]:
    namespace = pod["metadata"]["namespace"]
    return {
        f"{namespace}/{volume['persistentVolumeClaim']['claimName']}"
        for volume in pod["spec"].get("volumes") or []
        if volume.get("persistentVolumeClaim")
    }


def title(pod: Object) -> str:
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"


def leaving(pods: Iterable[Object], bound: Mapping[str, str], *, for_good: bool) -> list[Object]:
    """The pods to be sent elsewhere.

    A pod of a DaemonSet, one that has ended, and one that the kubelet made of a file would not go elsewhere. While k3s is
    only restarted, a pod goes on; so one whose volume lies on this node, or that nobody would make again, is better left
    in peace. for_good: the node is being removed, so these leave too.
    """
    found = []
    for pod in pods:
        if pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            continue
        if "kubernetes.io/config.mirror" in (pod["metadata"].get("annotations") or {}) or _owner(pod) == "DaemonSet":
            continue
        if not for_good and (not _owner(pod) or _claims(pod) & set(bound)):
            continue
        found.append(pod)
    return found


def has_a_place(nodes: Sequence[Object], name: str) -> bool:
    """Whether any other node is Ready and open, so that pods have somewhere to go."""
    return any(node["metadata"]["name"] != name and is_ready(node) and not node.get("spec", {}).get("unschedulable") for node in nodes)
