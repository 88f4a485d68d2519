#!/usr/bin/python
# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Bring all objects of one component to what was rendered, in one go."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: manifests
short_description: Bring all objects of one component to what was rendered
version_added: 0.1.0
description:
  - Applies all objects of a component server-side, in one process and over one connection. Then it waits for all
    workloads together, and deletes what carries the component's labels but is no longer rendered.
  - In check mode the API server runs every change dry, so that the diff is what it would store. Where there is no
    cluster yet, or the namespace is still to be made, the module says what would be created instead of failing.
  - Secrets are handed over apart. Their values appear in no diff, result or message, only fingerprints do; a value
    that is to be generated is made once and kept. Pods that mount a Secret that changed are annotated, because
    otherwise the kubelet brings them its new files up to a minute and a half later.
  - A workload that does not become ready fails with the reason of its newest pod and its last log lines.
options:
  component:
    description: Whose objects these are; the value of O(component_label).
    type: str
    required: true
  definitions:
    description: The objects. Each carries the labels that pruning looks for. Secrets are refused here.
    type: list
    elements: dict
    default: []
  secrets:
    description: Secrets of the component.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the Secret.
        type: str
        required: true
      namespace:
        description: Namespace of the Secret.
        type: str
        required: true
      labels:
        description: Labels beside those that pruning looks for.
        type: dict
        default: {}
      data:
        description: Values that are given, as text. A key that is no longer given is removed.
        type: dict
        default: {}
      generated:
        description: Keys whose values are generated when absent (43 characters, 256 bits), and kept otherwise.
        type: list
        elements: str
        default: []
  optional_kinds:
    description: >-
      Kinds, as C(apiVersion/Kind), whose objects are left out where the cluster does not know the kind. Others of an
      unknown kind are an error.
    type: list
    elements: str
    default: []
  prune:
    description: Delete objects of the component that are no longer rendered.
    type: bool
    default: true
  prune_kinds:
    description: >-
      Kinds that are looked through, as C(apiVersion/Kind). Namespaces and volume claims are not among them: what
      holds data is deleted by hand.
    type: list
    elements: str
    default:
      - v1/ConfigMap
      - v1/Secret
      - v1/Service
      - v1/ServiceAccount
      - apps/v1/DaemonSet
      - apps/v1/Deployment
      - apps/v1/StatefulSet
      - batch/v1/CronJob
      - batch/v1/Job
      - networking.k8s.io/v1/Ingress
      - networking.k8s.io/v1/NetworkPolicy
      - policy/v1/PodDisruptionBudget
      - autoscaling/v2/HorizontalPodAutoscaler
      - rbac.authorization.k8s.io/v1/Role
      - rbac.authorization.k8s.io/v1/RoleBinding
      - rbac.authorization.k8s.io/v1/ClusterRole
      - rbac.authorization.k8s.io/v1/ClusterRoleBinding
      - monitoring.coreos.com/v1/ServiceMonitor
      - discovery.k8s.io/v1/EndpointSlice
      - traefik.io/v1alpha1/IngressRoute
      - traefik.io/v1alpha1/Middleware
  lost_volumes:
    description: >-
      What becomes of a volume claim whose data lie on one node alone that the cluster no longer knows. V(fail) says so before anything is
      applied. V(replace) deletes claim and volume, so that an empty one is made.
    type: str
    choices: [fail, replace]
    default: fail
  lost_volumes_way_out:
    description: How the operator chooses V(replace), for the message.
    type: str
    default: "lost_volumes: replace"
  wait_timeout_s:
    description: How long all workloads together may take to become ready, in seconds. V(0) does not wait.
    type: int
    default: 180
  wait_sleep_s:
    description: Pause between two looks, in seconds.
    type: float
    default: 1
  field_manager:
    description: Name under which the API server records which fields are ours.
    type: str
    default: hearth
  managed_by:
    description: Value of the label C(app.kubernetes.io/managed-by) that pruning looks for.
    type: str
    default: hearth
  component_label:
    description: Key of the label that names the component.
    type: str
    default: hearth.homelab/component
extends_documentation_fragment:
  - homelab.hearth.kubeconfig
attributes:
  check_mode:
    support: full
    description: Server-side dry run.
  diff_mode:
    support: full
    description: Before and after of every object that changes; fingerprints for Secrets.
author:
  - The Hearth developers (@hearth)
"""

EXAMPLES = r"""
- name: Apply what was rendered
  homelab.hearth.manifests:
    kubeconfig: ~/.kube/hearth.yaml
    component: gateway
    definitions: "{{ lookup('ansible.builtin.template', 'gateway.yaml.j2') | from_yaml_all }}"
    secrets:
      - name: gateway-tokens
        namespace: hearth
        generated: [operator]
  delegate_to: localhost
"""

RETURN = r"""
created:
  description: Objects that were, or would be, created.
  returned: always
  type: list
  elements: str
updated:
  description: Objects that were, or would be, changed.
  returned: always
  type: list
  elements: str
pruned:
  description: Objects that were, or would be, deleted because they are no longer rendered.
  returned: always
  type: list
  elements: str
unchanged:
  description: How many objects were as wanted already.
  returned: always
  type: int
cluster:
  description: Empty, or in check mode why no cluster was asked.
  returned: always
  type: str
"""

import base64
import functools
import http.client
import secrets
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.hearth.plugins.module_utils import _drain
from ansible_collections.homelab.hearth.plugins.module_utils._k8s import (
    AUTH_SPEC,
    Cluster,
    ClusterError,
    NoClusterError,
    hurry,
    until_undisturbed,
)
from ansible_collections.homelab.hearth.plugins.module_utils._lock import locked_since
from ansible_collections.homelab.hearth.plugins.module_utils._objects import (
    DefinitionError,
    Object,
    PodProblem,
    check,
    comparable,
    in_order,
    not_ready,
    pod_problem,
    redacted,
    title,
)
from ansible_collections.homelab.hearth.plugins.module_utils._sentence import sentence
from ansible_collections.homelab.hearth.plugins.module_utils._token import PREVIOUS

try:
    import yaml
except ImportError:
    yaml = None  # type: ignore[assignment]

GENERATED_BYTES = 32
# On a Secret: the keys that were generated for it.
GENERATED_KEYS = "hearth.homelab/generated-keys"
LOG_LINES = 15
# A claim stays as long as a pod has it, and the pods of a node that is gone are collected within a minute.
CLAIM_GONE_S = 180


class ManifestsError(Exception):
    """Why the component is not as rendered, in words for the operator."""


def _readable(value: Object) -> str:
    """An object as YAML for a diff: texts of several lines stay texts of several lines."""
    if not value:
        return ""

    class Dumper(yaml.SafeDumper):
        pass

    def text(dumper: Any, content: str) -> Any:
        return dumper.represent_scalar("tag:yaml.org,2002:str", content, style="|" if "\n" in content else None)

    Dumper.add_representer(str, text)
    return str(yaml.dump(value, Dumper=Dumper, sort_keys=True, width=120))


class Changes:
    """What happened, or would happen, to each object."""

    def __init__(self) -> None:
        self.created: list[str] = []
        self.updated: list[str] = []
        self.pruned: list[str] = []
        self.unchanged = 0
        self.diff: list[dict[str, str]] = []

    def note(self, name: str, before: Object, after: Object) -> None:
        if before == after:
            self.unchanged += 1
            return
        (self.updated if before and after else self.created if after else self.pruned).append(name)
        self.diff.append({"before_header": name, "after_header": name, "before": _readable(before), "after": _readable(after)})

    def result(self) -> dict[str, Any]:
        return {
            "changed": bool(self.created or self.updated or self.pruned),
            "created": self.created,
            "updated": self.updated,
            "pruned": self.pruned,
            "unchanged": self.unchanged,
            "diff": self.diff,
        }


def _encode(value: Any) -> str:
    return base64.b64encode(str(value).encode()).decode()


def secret_definition(wanted: dict[str, Any], labels: dict[str, str], existing: Object | None) -> tuple[Object, list[str]]:
    """The Secret to apply, and the values that were made or kept for it (for the module's list of things never to print)."""
    kept = (existing or {}).get("data") or {}
    data = {key: _encode(value) for key, value in wanted["data"].items()}
    values = []
    for key in wanted["generated"]:
        # An empty value is none: somebody created the key and never filled it.
        data[key] = kept.get(key) or _encode(secrets.token_urlsafe(GENERATED_BYTES))
        values.append(base64.b64decode(data[key]).decode())
    meta = {"name": wanted["name"], "namespace": wanted["namespace"], "labels": {**wanted["labels"], **labels}}
    if wanted["generated"]:
        meta["annotations"] = {GENERATED_KEYS: " ".join(sorted(wanted["generated"]))}
    definition = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": meta,
        "type": "Opaque",
        "data": data,
    }
    return definition, values


def stale_keys(wanted: Object, existing: Object | None, stored: Object) -> set[str]:
    """Keys that were generated for a Secret, are no longer wanted, and are still in it.

    Applying without a key removes it only if nobody else wrote it. A token that gateway_token rotated has two owners, and
    would stay valid after the inventory dropped it. Keys that were never generated here are somebody else's, and stay.
    """
    annotations = ((existing or {}).get("metadata") or {}).get("annotations") or {}
    gone = set(annotations.get(GENERATED_KEYS, "").split()) - set(wanted["data"])
    return {key for key in stored.get("data") or {} if key in gone or key.removesuffix(PREVIOUS) in gone}


def kind_of(definition: Object) -> str:
    """As options name it: C(apiVersion/Kind)."""
    return f"{definition['apiVersion']}/{definition['kind']}"


class Run:
    """One run of the module against a cluster that answers."""

    def __init__(self, module: AnsibleModule, cluster: Cluster, labels: dict[str, str]) -> None:
        self.module, self.params, self.cluster, self.labels = module, module.params, cluster, labels
        self.changes = Changes()
        self.missing_namespaces: set[str] = set()
        self.changed_secrets: list[Object] = []
        optional = self.params["optional_kinds"]
        self.definitions = [
            d for d in self.params["definitions"] if kind_of(d) not in optional or cluster.knows(d["apiVersion"], d["kind"])
        ]

    def _apply(self, definition: Object, existing: Object | None, view: Any) -> Object:
        name = title(definition)
        if definition["metadata"].get("namespace") in self.missing_namespaces:
            # Check mode: the dry run of an object in a namespace that is only about to be made is refused.
            self.changes.note(name, {}, view(definition))
            return definition
        stored = self.cluster.apply(definition)
        if definition["kind"] == "Secret" and (stale := stale_keys(definition, existing, stored)):
            stored = {**stored, "data": {key: value for key, value in stored["data"].items() if key not in stale}}
            if not self.cluster.dry_run:
                stored = self.cluster.replace(stored)
        if definition["kind"] == "Namespace" and existing is None and self.cluster.dry_run:
            self.missing_namespaces.add(definition["metadata"]["name"])
        self.changes.note(name, view(existing), view(stored))
        return stored

    def _existing(self, definition: Object) -> Object | None:
        meta = definition["metadata"]
        return self.cluster.get(definition["apiVersion"], definition["kind"], meta["name"], meta.get("namespace"))

    def _secret(self, wanted: dict[str, Any]) -> None:
        """Apply one Secret, with what was generated for it before.

        :raises ClusterError: with status 409 when somebody else wrote in between.
        """
        existing = self.cluster.get("v1", "Secret", wanted["name"], wanted["namespace"])
        if locked_since(existing):
            # New tokens would be made in the place of those that stand aside, and open the doors to whoever gets them.
            raise ManifestsError(
                f"the house is locked down since {locked_since(existing)} (Secret {wanted['namespace']}/{wanted['name']}): "
                "run lockdown.yml -e lifted=true first"
            )
        definition, values = secret_definition(wanted, self.labels, existing)
        if existing is not None:
            # What is kept is what was read. A rotation or a lockdown that comes in between must not be undone by it.
            definition["metadata"]["resourceVersion"] = existing["metadata"]["resourceVersion"]
        self.module.no_log_values.update(values)
        stored = self._apply(definition, existing, redacted)
        if existing and redacted(existing) != redacted(stored):
            self.changed_secrets.append(stored["metadata"])

    # --- volumes of nodes that are gone

    def _lost(self) -> list[tuple[Object, Object, str]]:
        """Claims with their volume and the node that it was on, where the cluster no longer knows that node."""
        found = []
        known: set[str] = set()
        for definition in self.definitions:
            claim = self._existing(definition) if definition["kind"] == "PersistentVolumeClaim" else None
            name = ((claim or {}).get("spec") or {}).get("volumeName")
            volume = self.cluster.get("v1", "PersistentVolume", name) if name else None
            if claim is None or volume is None:
                continue
            nodes = _drain.nodes_of(volume)
            if nodes and not known:
                known = set().union(*map(_drain.names_of, self.cluster.find("v1", "Node", "")))
            if nodes and not nodes & known:
                found.append((claim, volume, ", ".join(sorted(nodes))))
        return found

    def replace_lost_volumes(self) -> None:
        """Nothing to do in a cluster that knows all of its nodes.

        :raises ManifestsError: a volume is lost, and nobody said that an empty one shall take its place.
        """
        try:
            lost = self._lost()
        except ClusterError as error:
            if error.status != http.client.FORBIDDEN:  # who may not look at nodes and volumes can find out nothing
                raise
            return
        for claim, _volume, node in lost:
            if self.params["lost_volumes"] == "fail":
                raise ManifestsError(
                    f"the data of {title(claim)} lie on node {node} alone, and the cluster has no such node any more. If its disk is "
                    "there, let it join again under this name. If the data are lost, begin with an empty volume: "
                    + self.params["lost_volumes_way_out"]
                )
        for claim, volume, _node in lost:
            # First the volume, which is marked and waits for its claim: else a provisioner would try to clean up on a node that is gone.
            self.cluster.delete(volume)
            self.cluster.delete(claim)
            self.changes.note(title(claim), comparable(claim), {})
        deadline = time.monotonic() + CLAIM_GONE_S
        while not self.cluster.dry_run and (left := [title(claim) for claim, _volume, _node in lost if self._existing(claim)]):
            if time.monotonic() > deadline:
                raise ManifestsError(f"{', '.join(left)} was deleted and is still there after {CLAIM_GONE_S} s: a pod has it")
            time.sleep(self.params["wait_sleep_s"])

    def apply(self) -> list[Object]:
        """Namespaces, then Secrets, then the rest; returns the workloads to wait for."""
        ordered = in_order(self.definitions)
        namespaces = [d for d in ordered if d["kind"] == "Namespace"]
        for definition in namespaces:
            self._apply(definition, self._existing(definition), comparable)
        for wanted in self.params["secrets"]:
            until_undisturbed(functools.partial(self._secret, wanted), f"Secret {wanted['namespace']}/{wanted['name']}")
        stored = [self._apply(d, self._existing(d), comparable) for d in ordered if d["kind"] != "Namespace"]
        return [] if self.cluster.dry_run else [s for s in stored if not_ready(s)]

    def hurry(self) -> None:
        """Bring changed Secrets into the running pods now.

        By itself a kubelet does so within a minute and a half: for so long a token that was removed would still open the
        door, after the run that removed it has ended.
        """
        for meta in self.changed_secrets:
            hurry(self.cluster, "Secret", meta["namespace"], meta["name"])

    def prune(self) -> None:
        wanted = {(d["kind"], d["metadata"].get("namespace"), d["metadata"]["name"]) for d in self.definitions}
        wanted |= {("Secret", s["namespace"], s["name"]) for s in self.params["secrets"]}
        selector = ",".join(f"{key}={value}" for key, value in sorted(self.labels.items()))
        for kind in self.params["prune_kinds"]:
            api_version, _slash, kind_name = kind.rpartition("/")
            for found in self.cluster.find(api_version, kind_name, selector):
                meta = found["metadata"]
                # What has an owner goes with it (a Job of a CronJob); what is going already needs no second push.
                if meta.get("ownerReferences") or meta.get("deletionTimestamp"):
                    continue
                if (kind_name, meta.get("namespace"), meta["name"]) in wanted:
                    continue
                self.cluster.delete(found)
                self.changes.note(title(found), redacted(found) if kind_name == "Secret" else comparable(found), {})

    # --- waiting

    def _newest_pod(self, workload: Object) -> Object | None:
        labels = ((workload.get("spec") or {}).get("selector") or {}).get("matchLabels") or {}
        if workload["kind"] == "Job":
            labels = {"batch.kubernetes.io/job-name": workload["metadata"]["name"]}
        selector = ",".join(f"{key}={value}" for key, value in labels.items())
        pods = self.cluster.find("v1", "Pod", selector, workload["metadata"]["namespace"])
        living = [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]
        return max(living, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), default=None)

    def _explain(self, workload: Object, lack: str, late: bool) -> tuple[str, bool]:
        """Why a workload is not ready, and whether waiting is in vain."""
        waited = f" after {self.params['wait_timeout_s']} s" if late else ""
        text = f"{title(workload)} is not ready{waited}: {lack}"
        pod = self._newest_pod(workload)
        if pod is None:
            return f"{text}; it has no pod (kubectl -n {workload['metadata']['namespace']} describe its ReplicaSet)", False
        problem: PodProblem | None = pod_problem(pod)
        if problem is None:
            return text, False
        text += f"; pod {pod['metadata']['name']}: {problem.text}"
        if problem.container:
            meta = pod["metadata"]
            lines = self.cluster.logs(meta["namespace"], meta["name"], problem.container, problem.restarted, LOG_LINES)
            if lines:
                text += "; its last log lines:\n" + "\n".join(f"  {line}" for line in lines)
        return text, problem.hopeless

    def wait(self, pending: list[Object]) -> None:
        """Wait for all workloads together.

        :raises ManifestsError: time is up, or a pod fails in a way that waiting does not mend.
        """
        timeout_s, sleep_s = self.params["wait_timeout_s"], self.params["wait_sleep_s"]
        if not timeout_s:
            return
        deadline = time.monotonic() + timeout_s
        while pending:
            time.sleep(sleep_s)
            late = time.monotonic() > deadline
            reports = []
            still = []
            for workload in pending:
                now = self._existing(workload)
                if now is None:
                    raise ManifestsError(f"{title(workload)} was deleted by somebody while it was being waited for")
                lack = not_ready(now)
                if lack is None:
                    continue
                still.append(now)
                text, hopeless = self._explain(now, lack, late)
                if late or hopeless:
                    reports.append(text)
            if reports:
                raise ManifestsError("; ".join(reports))
            pending = still


def without_cluster(params: dict[str, Any], why: str) -> dict[str, Any]:
    """Check mode where no cluster answers: everything would be created, as rendered."""
    changes = Changes()
    for definition in in_order([d for d in params["definitions"] if kind_of(d) not in params["optional_kinds"]]):
        changes.note(title(definition), {}, definition)
    for secret in params["secrets"]:
        keys = {**dict.fromkeys(secret["data"], "(given)"), **dict.fromkeys(secret["generated"], "(to be generated)")}
        name = f"Secret {secret['namespace']}/{secret['name']}"
        changes.note(name, {}, {"kind": "Secret", "metadata": {k: secret[k] for k in ("name", "namespace")}, "data": keys})
    return {**changes.result(), "cluster": why}


def run(module: AnsibleModule) -> dict[str, Any]:
    params = module.params
    labels = {"app.kubernetes.io/managed-by": params["managed_by"], params["component_label"]: params["component"]}
    check(params["definitions"], labels)
    try:
        cluster = Cluster(module, params["field_manager"])
    except NoClusterError as error:
        if not module.check_mode:
            raise
        return without_cluster(params, str(error))
    this = Run(module, cluster, labels)
    this.replace_lost_volumes()
    pending = this.apply()
    # Before waiting, which may fail: what was taken away is away also when the new version does not come up.
    this.hurry()
    this.wait(pending)
    # Last: when the new version does not come up, what is no longer rendered is still there.
    if params["prune"]:
        this.prune()
    return {**this.changes.result(), "cluster": ""}


def argument_spec() -> dict[str, Any]:
    return {
        "component": {"type": "str", "required": True},
        "definitions": {"type": "list", "elements": "dict", "default": []},
        "secrets": {
            "type": "list",
            "elements": "dict",
            "default": [],
            # Names, labels and keys are no secret; the values in `data` are.
            "no_log": False,
            "options": {
                "name": {"type": "str", "required": True},
                "namespace": {"type": "str", "required": True},
                "labels": {"type": "dict", "default": {}},
                "data": {"type": "dict", "default": {}, "no_log": True},
                "generated": {"type": "list", "elements": "str", "default": [], "no_log": False},
            },
        },
        "optional_kinds": {"type": "list", "elements": "str", "default": []},
        "prune": {"type": "bool", "default": True},
        "prune_kinds": {
            "type": "list",
            "elements": "str",
            "default": [
                "v1/ConfigMap",
                "v1/Secret",
                "v1/Service",
                "v1/ServiceAccount",
                "apps/v1/DaemonSet",
                "apps/v1/Deployment",
                "apps/v1/StatefulSet",
                "batch/v1/CronJob",
                "batch/v1/Job",
                "networking.k8s.io/v1/Ingress",
                "networking.k8s.io/v1/NetworkPolicy",
                "policy/v1/PodDisruptionBudget",
                "autoscaling/v2/HorizontalPodAutoscaler",
                "rbac.authorization.k8s.io/v1/Role",
                "rbac.authorization.k8s.io/v1/RoleBinding",
                "rbac.authorization.k8s.io/v1/ClusterRole",
                "rbac.authorization.k8s.io/v1/ClusterRoleBinding",
                "monitoring.coreos.com/v1/ServiceMonitor",
                "discovery.k8s.io/v1/EndpointSlice",
                "traefik.io/v1alpha1/IngressRoute",
                "traefik.io/v1alpha1/Middleware",
            ],
        },
        "lost_volumes": {"type": "str", "choices": ["fail", "replace"], "default": "fail"},
        "lost_volumes_way_out": {"type": "str", "default": "lost_volumes: replace"},
        "wait_timeout_s": {"type": "int", "default": 180},
        "wait_sleep_s": {"type": "float", "default": 1},
        "field_manager": {"type": "str", "default": "hearth"},
        "managed_by": {"type": "str", "default": "hearth"},
        "component_label": {"type": "str", "default": "hearth.homelab/component"},
        **AUTH_SPEC,
    }


def main() -> None:
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    try:
        module.exit_json(**run(module))
    except (ClusterError, DefinitionError, ManifestsError) as error:
        module.fail_json(msg=sentence(error))


if __name__ == "__main__":
    main()
