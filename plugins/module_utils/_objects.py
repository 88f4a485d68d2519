# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Kubernetes objects as plain dictionaries: what counts as a change, and when a workload is ready. Pure."""

from __future__ import annotations

import base64
import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]

# Kept by the API server for itself; none of it is in what we render.
_SERVER_FIELDS = ("creationTimestamp", "deletionGracePeriodSeconds", "generation", "managedFields", "resourceVersion", "selfLink", "uid")
_REVISION = "deployment.kubernetes.io/revision"

# Written in this order: what others mount or live in comes first.
_ORDER = {
    "Namespace": 0,
    "CustomResourceDefinition": 1,
    "ServiceAccount": 2,
    "ConfigMap": 2,
    "PersistentVolumeClaim": 2,
    "NetworkPolicy": 2,
}
_WORKLOADS = ("DaemonSet", "Deployment", "Job", "StatefulSet")
_LAST = 9

# Reasons for which waiting longer is in vain. Others (an image that is still being imported, a volume that is
# still being made) mend themselves.
_HOPELESS = ("InvalidImageName",)
_CRASHES_BEFORE_GIVING_UP = 2


class DefinitionError(Exception):
    """Rendered objects that must not be applied; all faults in one text."""


def title(definition: Mapping[str, Any]) -> str:
    """`Kind namespace/name`, or `Kind name` for objects outside namespaces."""
    meta = definition["metadata"]
    name = f"{meta['namespace']}/{meta['name']}" if meta.get("namespace") else meta["name"]
    return f"{definition['kind']} {name}"


def check(definitions: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> None:
    """Refuse what could not be applied or, later, not be pruned.

    :param labels: every object must carry these: pruning finds objects by them.
    :raises DefinitionError: with every fault.
    """
    faults, seen = [], set()
    for number, definition in enumerate(definitions, start=1):
        meta = definition.get("metadata") or {}
        if not definition.get("apiVersion") or not definition.get("kind") or not meta.get("name"):
            faults.append(f"object {number} lacks apiVersion, kind or metadata.name")
            continue
        name = title(definition)
        if definition["kind"] == "Secret":
            faults.append(f"{name}: a Secret among the manifests would be shown in the diff; hand it over as a secret")
        if name in seen:
            faults.append(f"{name}: rendered twice")
        seen.add(name)
        missing = {key for key, value in labels.items() if (meta.get("labels") or {}).get(key) != value}
        if missing:
            faults.append(f"{name}: lacks the label(s) {', '.join(f'{key}={labels[key]}' for key in sorted(missing))}")
    if faults:
        raise DefinitionError("; ".join(faults))


def in_order(definitions: Sequence[Object]) -> list[Object]:
    """Namespaces first, workloads last, otherwise as given."""

    def rank(definition: Object) -> int:
        kind = definition["kind"]
        return _LAST if kind in _WORKLOADS else _ORDER.get(kind, _LAST - 1)

    return sorted(definitions, key=rank)


def comparable(stored: Mapping[str, Any] | None) -> Object:
    """A copy without what the API server keeps for itself, so that two of them differ only where it matters."""
    if stored is None:
        return {}
    plain: Object = copy.deepcopy(dict(stored))
    plain.pop("status", None)
    meta = plain.get("metadata", {})
    for field in _SERVER_FIELDS:
        meta.pop(field, None)
    annotations = meta.get("annotations")
    if annotations:
        # Counted up by a controller after each change of the pod template.
        annotations.pop(_REVISION, None)
        if not annotations:
            del meta["annotations"]
    return plain


def fingerprint(encoded: str) -> str:
    """A stand-in for a secret value in diffs: equal values have equal fingerprints, and no value is shown."""
    return "sha256:" + hashlib.sha256(base64.b64decode(encoded)).hexdigest()[:8]


def redacted(stored: Mapping[str, Any] | None) -> Object:
    """`comparable` for Secrets: values become fingerprints."""
    plain = comparable(stored)
    if plain.get("data"):
        plain["data"] = {key: fingerprint(value) for key, value in plain["data"].items()}
    return plain


def written_at(stored: Mapping[str, Any]) -> str:
    """When the object was last changed, to the second, as the API server tells it; empty when it does not."""
    return max((str(entry.get("time") or "") for entry in stored["metadata"].get("managedFields") or []), default="")


def mounts(pod: Mapping[str, Any], kind: str, name: str) -> bool:
    """Whether a pod that is not ending has this ConfigMap or Secret as a volume, alone or among others."""
    if pod["metadata"].get("deletionTimestamp") or (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
        return False
    # A volume calls a Secret's name secretName, a part of a projected volume calls it name.
    source, field = ("secret", "secretName") if kind == "Secret" else ("configMap", "name")
    for volume in (pod.get("spec") or {}).get("volumes") or []:
        parts = (volume.get("projected") or {}).get("sources") or []
        if (volume.get(source) or {}).get(field) == name or any((part.get(source) or {}).get("name") == name for part in parts):
            return True
    return False


def not_ready(stored: Mapping[str, Any]) -> str | None:
    """What a workload still lacks, or None when it is as wanted. Other kinds are ready when they are stored."""
    kind, spec, status = stored["kind"], stored.get("spec") or {}, stored.get("status") or {}
    if kind not in _WORKLOADS:
        return None
    if kind == "Job":
        wanted = spec.get("completions", 1)
        return None if status.get("succeeded", 0) >= wanted else f"{status.get('succeeded', 0)} of {wanted} completed"
    if status.get("observedGeneration", 0) < stored["metadata"].get("generation", 0):
        return "its controller has not seen the change yet"
    if kind == "DaemonSet":
        wanted = status.get("desiredNumberScheduled", 0)
        counts = (status.get("updatedNumberScheduled", 0), status.get("numberAvailable", 0))
    else:
        wanted = spec.get("replicas", 1)
        available = "availableReplicas" if kind == "Deployment" else "readyReplicas"
        counts = (status.get("updatedReplicas", 0), status.get(available, 0))
        # updatedReplicas counts new pods only: an old one may still be serving.
        if status.get("replicas", 0) > wanted:
            return f"{status['replicas'] - wanted} pod(s) of the version before still run"
    if counts[0] < wanted:
        return f"{counts[0]} of {wanted} pods are of this version"
    if counts[1] < wanted:
        return f"{counts[1]} of {wanted} pods are ready"
    return None


@dataclass(frozen=True)
class PodProblem:
    """Why a pod does not become ready."""

    text: str
    container: str | None
    # The container ended and runs again: what went wrong stands in the log of the run before.
    restarted: bool
    hopeless: bool


def pod_problem(pod: Mapping[str, Any]) -> PodProblem | None:
    """The first thing that keeps a pod from being ready, or None."""
    status = pod.get("status") or {}
    containers = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    for container in containers:
        name, state = container["name"], container.get("state") or {}
        ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated") or {}
        waiting = state.get("waiting") or {}
        reason = waiting.get("reason")
        restarts = container.get("restartCount", 0)
        crashed = bool(ended) and ended.get("exitCode", 0) != 0
        if crashed and not container.get("ready"):
            why = f"container {name} ended with status {ended.get('exitCode')}"
            why += f" ({ended['reason']})" if ended.get("reason") not in (None, "Error") else ""
            restarted = "running" in state
            return PodProblem(f"{why}, {restarts} restart(s)", name, restarted, restarts >= _CRASHES_BEFORE_GIVING_UP)
        if reason and reason not in ("ContainerCreating", "PodInitializing"):
            message = f": {waiting['message']}" if waiting.get("message") else ""
            return PodProblem(f"container {name}: {reason}{message}", name, False, reason in _HOPELESS)
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return PodProblem(f"no node takes it: {condition.get('message')}", None, False, False)
    for container in containers:
        if not container.get("ready") and not (container.get("state") or {}).get("terminated"):
            return PodProblem(f"container {container['name']} is not ready yet", container["name"], False, False)
    return None
