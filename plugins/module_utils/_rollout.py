# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""New pods for the workloads that read a Secret at their start only."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable
from typing import Any

from ansible_collections.homelab.hearth.plugins.module_utils._k8s import Cluster
from ansible_collections.homelab.hearth.plugins.module_utils._objects import (
    Object,
    mounts,
    not_ready,
    pod_problem,
    title,
    written_at,
)

SLEEP_S = 0.5
# What has pods by a template. Many charts run a program with a volume as a StatefulSet.
WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet")
# How long the kubelet may take from a pod's deletion to its preStop hook.
KUBELET_S = 1.0


class RolloutError(Exception):
    """Why the new pods do not run, in words for the operator."""


def uses(deployment: Object, secret: str) -> bool:
    """Whether the pods of a workload get a Secret, as files or as environment."""
    spec = deployment["spec"]["template"]["spec"]
    if mounts({"metadata": {}, "spec": spec}, "Secret", secret):
        return True
    for container in [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]:
        sources = [source.get("secretRef") for source in container.get("envFrom") or []]
        sources += [(variable.get("valueFrom") or {}).get("secretKeyRef") for variable in container.get("env") or []]
        if any((source or {}).get("name") == secret for source in sources):
            return True
    return False


def mark(secret: Object) -> dict[str, str]:
    """The annotation of pods that were made with this content. Equal contents have equal marks, and no value is shown."""
    content = json.dumps(secret.get("data") or {}, sort_keys=True).encode()
    # The part behind the slash has at most 63 characters and ends in a letter or digit.
    key = f"started-with-{secret['metadata']['name']}"[:63].rstrip("-._")
    return {f"hearth.homelab/{key}": hashlib.sha256(content).hexdigest()[:16]}


def readers(cluster: Cluster, namespace: str, secret: str) -> list[Object]:
    return [found for kind in WORKLOADS for found in cluster.find("apps/v1", kind, "", namespace) if uses(found, secret)]


def _started_before(cluster: Cluster, deployment: Object, since: str) -> bool:
    """Whether a pod that stays runs since before a time, as the API server writes it. In that same second counts as after it."""
    for pod in _pods(cluster, deployment):
        if not pod["metadata"].get("deletionTimestamp"):
            for container in (pod.get("status") or {}).get("containerStatuses") or []:
                started = str(((container.get("state") or {}).get("running") or {}).get("startedAt") or "")
                if started and started < since:
                    return True
    return False


def restart(cluster: Cluster, namespace: str, secret: str, only_outdated: bool = False) -> tuple[list[Object], list[str]]:
    """Begin to replace the pods that were made with another content of the Secret.

    :param only_outdated: leave those alone that all started after the Secret was last changed, marked or not.
    :returns: every workload that reads it, to be waited for, and the titles of those that were changed.
    """
    stored = cluster.get("v1", "Secret", secret, namespace)
    if stored is None:
        return [], []
    wanted, found, changed = mark(stored), [], []
    for deployment in readers(cluster, namespace, secret):
        template = deployment["spec"]["template"]
        fresh = only_outdated and not _started_before(cluster, deployment, written_at(stored))
        if not fresh and not wanted.items() <= ((template.get("metadata") or {}).get("annotations") or {}).items():
            change = {"spec": {"template": {"metadata": {"annotations": wanted}}}}
            deployment = {"apiVersion": "apps/v1", "kind": deployment["kind"], **cluster.merge(deployment, change)}
            changed.append(title(deployment))
        found.append(deployment)
    return found, changed


def _pods(cluster: Cluster, deployment: Object) -> list[Object]:
    labels = deployment["spec"]["selector"]["matchLabels"]
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    pods: list[Object] = cluster.find("v1", "Pod", selector, deployment["metadata"]["namespace"])
    return pods


def _why(cluster: Cluster, deployment: Object) -> str:
    pods = _pods(cluster, deployment)
    problems = [problem.text for pod in pods if not pod["metadata"].get("deletionTimestamp") and (problem := pod_problem(pod))]
    return f"; {problems[-1]}" if problems else ""


def _listens_s(pod: Object) -> float:
    """How long a pod that was told to leave may still get new requests: while its preStop hook sleeps, so that they are not lost."""
    hooks = [(container.get("lifecycle") or {}).get("preStop") or {} for container in pod["spec"]["containers"]]
    sleeps = [float(hook["sleep"]["seconds"]) for hook in hooks if hook.get("sleep")]
    return max(sleeps) + KUBELET_S if sleeps else 0.0


def _wait_for_leaving(cluster: Cluster, deployments: list[Object]) -> None:
    """Wait until no pod that leaves gets new requests. What is open there may take minutes more, and is not waited for."""
    # Seconds of this machine's clock: the cluster's may differ.
    until: dict[str, float] = {}
    while True:
        now = time.monotonic()
        leaving = [pod for one in deployments for pod in _pods(cluster, one) if pod["metadata"].get("deletionTimestamp")]
        if now >= max((until.setdefault(title(pod), now + _listens_s(pod)) for pod in leaving), default=now):
            return
        time.sleep(SLEEP_S)


def wait(cluster: Cluster, deployments: Iterable[Object], timeout_s: float) -> None:
    """Wait until only new pods run, and new requests reach only these.

    :raises RolloutError: time is up. The old pods go on then.
    """
    deadline = time.monotonic() + timeout_s
    replaced = list(deployments)
    pending = list(replaced)
    while pending:
        still: list[Any] = []
        for one in pending:
            now = cluster.get("apps/v1", one["kind"], one["metadata"]["name"], one["metadata"]["namespace"])
            lack = not_ready(now) if now else None
            if now is not None and lack is not None:
                still.append((now, lack))
        if still and time.monotonic() > deadline:
            [(first, lack), *_others] = still
            raise RolloutError(
                f"{title(first)} has no new pods after {timeout_s:.0f} s, so the old ones go on: {lack}{_why(cluster, first)}; "
                "mend that and run again"
            )
        pending = [deployment for deployment, _lack in still]
        if pending:
            time.sleep(SLEEP_S)
    # A workload is complete before its old pods are gone, and what was sent to one of them still comes with the old content.
    _wait_for_leaving(cluster, replaced)
