"""Module manifests against a cluster in memory."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from ansible_collections.homelab.hearth.plugins.module_utils._k8s import ClusterError, NoClusterError
from ansible_collections.homelab.hearth.plugins.modules import gateway_token, manifests

from tests.unit.fake_cluster import FakeCluster, Object

LABELS = {"app.kubernetes.io/managed-by": "hearth", "hearth.homelab/component": "gateway"}
Run = Callable[..., dict[str, Any]]


def made(kind: str, name: str, namespace: str | None = "hearth", **more: Any) -> Object:
    meta: dict[str, Any] = {"name": name, "labels": dict(LABELS)}
    if namespace:
        meta["namespace"] = namespace
    return {"apiVersion": "v1", "kind": kind, "metadata": meta, **more}


def ready(stored: Object) -> None:
    """The controllers of a cluster, in one line: what is applied is ready at once."""
    if stored["kind"] == "Deployment":
        generation = stored["metadata"]["generation"]
        stored["status"] = {"observedGeneration": generation, "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1}


NAMESPACE = made("Namespace", "hearth", None)
CONFIG = made("ConfigMap", "config", data={"a": "1"})
DEPLOYMENT = made("Deployment", "gateway", spec={"replicas": 1, "selector": {"matchLabels": {"app": "gateway"}}})
ALL = [DEPLOYMENT, CONFIG, NAMESPACE]
SECRETS: list[Object] = [
    {"name": "tokens", "namespace": "hearth", "generated": ["operator"]},
    {"name": "keys", "namespace": "hearth", "data": {"anthropic": "sk-ant-fixture"}},
]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    fake = FakeCluster()
    fake.on_apply = ready
    monkeypatch.setattr(manifests, "Cluster", fake.connect)
    monkeypatch.setattr(manifests.time, "sleep", lambda seconds: None)
    return fake


@pytest.fixture
def apply(run_module: Run) -> Run:
    def run(definitions: list[Object] | None = None, **arguments: Any) -> dict[str, Any]:
        return run_module(manifests.main, component="gateway", definitions=ALL if definitions is None else definitions, **arguments)

    return run


def value(cluster: FakeCluster, secret: str, key: str) -> str:
    return base64.b64decode(cluster.objects[("Secret", "hearth", secret)]["data"][key]).decode()


def test_everything_is_made_in_an_order_that_works(cluster: FakeCluster, apply: Run) -> None:
    result = apply(secrets=SECRETS)
    assert cluster.writes == [
        "apply Namespace hearth", "apply Secret tokens", "apply Secret keys", "apply ConfigMap config", "apply Deployment gateway",
    ]  # fmt: skip
    assert result["changed"]
    assert result["created"][0] == "Namespace hearth"
    assert result["unchanged"] == 0


def test_a_second_time_changes_nothing(cluster: FakeCluster, apply: Run) -> None:
    apply(secrets=SECRETS)
    token, versions = value(cluster, "tokens", "operator"), {k: v["metadata"]["resourceVersion"] for k, v in cluster.objects.items()}
    result = apply(secrets=SECRETS)
    assert not result["changed"]
    assert result["unchanged"] == 5
    assert result["diff"] == []
    assert value(cluster, "tokens", "operator") == token
    assert {k: v["metadata"]["resourceVersion"] for k, v in cluster.objects.items()} == versions


def test_a_generated_value_is_long_and_without_newline(cluster: FakeCluster, apply: Run) -> None:
    apply(secrets=SECRETS)
    token = value(cluster, "tokens", "operator")
    assert len(token) >= 43
    assert token == token.strip()


def test_no_value_of_a_secret_is_in_the_result(cluster: FakeCluster, apply: Run) -> None:
    results = [apply(secrets=SECRETS, diff=True)]
    changed = [{**SECRETS[0]}, {**SECRETS[1], "data": {"anthropic": "sk-ant-other"}}]
    results.append(apply(secrets=changed, diff=True))
    assert results[1]["updated"] == ["Secret hearth/keys"]
    token = value(cluster, "tokens", "operator")
    for result in results:
        text = json.dumps(result)
        for secret in (token, "sk-ant-fixture", "sk-ant-other"):
            assert secret not in text
            assert base64.b64encode(secret.encode()).decode() not in text


def test_a_key_that_is_no_longer_given_is_removed(cluster: FakeCluster, apply: Run) -> None:
    apply(secrets=SECRETS)
    apply(secrets=[SECRETS[0], {"name": "keys", "namespace": "hearth"}])
    assert cluster.objects[("Secret", "hearth", "keys")]["data"] == {}


def test_a_rotated_token_goes_with_its_name_from_the_inventory(
    cluster: FakeCluster, apply: Run, run_module: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rotation made a second owner of the key, so that applying without it alone would leave the door open."""
    monkeypatch.setattr(gateway_token, "Cluster", cluster.connect)

    def token(name: str, state: str) -> None:
        assert run_module(gateway_token.main, name=name, state=state, secret="tokens")["changed"]

    def keys() -> list[str]:
        return sorted(cluster.objects[("Secret", "hearth", "tokens")]["data"])

    apply(secrets=MORE_TOKENS)
    token("kitchen", "rotated")
    token("made-by-hand", "present")
    assert not apply(secrets=MORE_TOKENS)["changed"], "a run in the middle of a rotation leaves it alone"
    assert keys() == ["kitchen", "kitchen.previous", "made-by-hand", "operator"]
    checked = apply(secrets=SECRETS, check=True, diff=True)
    assert checked["updated"] == ["Secret hearth/tokens"]
    assert keys() == ["kitchen", "kitchen.previous", "made-by-hand", "operator"]
    done = apply(secrets=SECRETS, diff=True)
    assert keys() == ["made-by-hand", "operator"]
    assert (done["updated"], done["diff"]) == (checked["updated"], checked["diff"])
    assert not apply(secrets=SECRETS)["changed"]


def mounting(name: str, *names: str) -> Object:
    volumes = [{"name": secret, "secret": {"secretName": secret}} for secret in names]
    return made("Pod", name, spec={"volumes": [{"name": "tmp", "emptyDir": {}}, *volumes]})


MORE_TOKENS = [{**SECRETS[0], "generated": ["operator", "kitchen"]}, SECRETS[1]]


def test_pods_get_the_files_of_a_changed_secret_at_once(cluster: FakeCluster, apply: Run) -> None:
    apply(secrets=SECRETS)
    for pod in (mounting("a", "tokens", "keys"), mounting("b", "keys")):
        cluster.create(pod)
    cluster.writes.clear()
    apply(secrets=SECRETS)
    assert not [write for write in cluster.writes if "Pod" in write], "a run that changes nothing writes nothing"
    apply(secrets=MORE_TOKENS)
    assert [write for write in cluster.writes if "Pod" in write] == ["annotate Pod a"]


def test_check_mode_tells_of_a_changed_secret_and_leaves_the_pods_alone(cluster: FakeCluster, apply: Run) -> None:
    apply(secrets=SECRETS)
    cluster.create(mounting("a", "tokens"))
    cluster.writes.clear()
    assert apply(secrets=MORE_TOKENS, check=True)["updated"] == ["Secret hearth/tokens"]
    assert cluster.writes == []


def test_what_is_no_longer_rendered_is_pruned_and_nothing_else(cluster: FakeCluster, apply: Run) -> None:
    other = made("ConfigMap", "others")
    other["metadata"]["labels"] = {"app.kubernetes.io/managed-by": "hearth", "hearth.homelab/component": "monitoring"}
    owned = made("ConfigMap", "owned")
    owned["metadata"]["ownerReferences"] = [{"kind": "CronJob"}]
    apply([*ALL, made("Service", "old"), made("PersistentVolumeClaim", "data")], secrets=SECRETS)
    for definition in (other, owned):
        cluster.create(definition)
    result = apply(secrets=SECRETS[:1])
    assert result["pruned"] == ["Secret hearth/keys", "Service hearth/old"]
    names = {name for _, _, name in cluster.objects}
    assert {"others", "owned", "data", "config"} <= names, "volume claims, other components and owned objects stay"
    assert not apply(secrets=SECRETS[:1])["changed"]


MONITOR = {**made("ServiceMonitor", "gateway"), "apiVersion": "monitoring.coreos.com/v1"}
OPTIONAL = ["monitoring.coreos.com/v1/ServiceMonitor"]


@pytest.mark.parametrize("check", [False, True])
def test_an_optional_kind_is_left_out_where_the_cluster_does_not_know_it(cluster: FakeCluster, apply: Run, check: bool) -> None:
    cluster.unknown_kinds = {"ServiceMonitor"}
    result = apply([*ALL, MONITOR], optional_kinds=OPTIONAL, check=check)
    assert "ServiceMonitor hearth/gateway" not in result["created"]
    assert len(result["created"]) == len(ALL)


def test_an_optional_kind_is_applied_where_the_cluster_knows_it(cluster: FakeCluster, apply: Run) -> None:
    assert "ServiceMonitor hearth/gateway" in apply([*ALL, MONITOR], optional_kinds=OPTIONAL)["created"]
    assert not apply([*ALL, MONITOR], optional_kinds=OPTIONAL)["changed"]
    assert apply(ALL)["pruned"] == ["ServiceMonitor hearth/gateway"]


def test_pruning_can_be_switched_off(cluster: FakeCluster, apply: Run) -> None:
    apply([*ALL, made("Service", "old")])
    assert not apply(prune=False)["changed"]


@pytest.mark.parametrize("deployed", [False, True])
def test_check_mode_tells_the_truth_and_writes_nothing(cluster: FakeCluster, apply: Run, deployed: bool) -> None:
    if deployed:
        apply([*ALL, made("Service", "old")], secrets=SECRETS)
        cluster.writes.clear()
    changed = made("ConfigMap", "config", data={"a": "2"})
    result = apply([DEPLOYMENT, changed, NAMESPACE], secrets=SECRETS, check=True, diff=True)
    assert cluster.writes == []
    assert result["changed"]
    if deployed:
        assert (result["created"], result["updated"], result["pruned"]) == ([], ["ConfigMap hearth/config"], ["Service hearth/old"])
        assert "a: '1'" in result["diff"][0]["before"]
        assert "a: '2'" in result["diff"][0]["after"]
    else:
        assert len(result["created"]) == 5, "the namespace is not there yet, and that is no failure"


def test_check_mode_without_a_cluster_says_what_would_be_made(monkeypatch: pytest.MonkeyPatch, apply: Run) -> None:
    def nobody(module: Any, field_manager: str) -> None:
        raise NoClusterError("no cluster answers at 192.0.2.1:6443 (no answer)")

    monkeypatch.setattr(manifests, "Cluster", nobody)
    result = apply(secrets=SECRETS, check=True)
    assert result["changed"]
    assert result["cluster"] == "no cluster answers at 192.0.2.1:6443 (no answer)"
    assert "Deployment hearth/gateway" in result["created"]
    assert "Secret hearth/keys" in result["created"]
    assert "replicas: 1" in json.dumps(result["diff"])
    assert "sk-ant-fixture" not in json.dumps(result)
    failed = apply(secrets=SECRETS)
    assert failed["failed"]
    assert failed["msg"] == "No cluster answers at 192.0.2.1:6443 (no answer)"


def test_check_mode_without_a_cluster_promises_no_optional_kind(monkeypatch: pytest.MonkeyPatch, apply: Run) -> None:
    def nobody(module: Any, field_manager: str) -> FakeCluster:
        raise NoClusterError("nobody answers")

    monkeypatch.setattr(manifests, "Cluster", nobody)
    assert len(apply([*ALL, MONITOR], optional_kinds=OPTIONAL, check=True)["created"]) == len(ALL)


def test_it_waits_until_the_workload_is_ready(cluster: FakeCluster, apply: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.on_apply = None
    looks = []

    def time_passes(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            ready(cluster.objects[("Deployment", "hearth", "gateway")])

    monkeypatch.setattr(manifests.time, "sleep", time_passes)
    assert apply(wait_sleep_s=0.5)["changed"]
    assert looks == [0.5] * 3


def broken_pod(cluster: FakeCluster, **status: Any) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "gateway-1", "namespace": "hearth", "labels": {"app": "gateway"}}}
    cluster.create(NAMESPACE)
    cluster.create({**pod, "status": {"containerStatuses": [{"name": "gateway", "ready": False, **status}]}})


def test_a_crashing_pod_ends_the_wait_with_its_last_log_lines(cluster: FakeCluster, apply: Run) -> None:
    cluster.on_apply = None
    crash = {"terminated": {"exitCode": 2, "reason": "Error"}}
    broken_pod(cluster, restartCount=3, state={"waiting": {"reason": "CrashLoopBackOff"}}, lastState=crash)
    cluster.log_lines["gateway-1"] = [f"line {n}" for n in range(40)]
    result = apply()
    assert result["failed"]
    assert "Deployment hearth/gateway is not ready" in result["msg"]
    assert "pod gateway-1: container gateway ended with status 2, 3 restart(s)" in result["msg"]
    assert "line 39" in result["msg"]
    assert "line 24" not in result["msg"], "the last fifteen lines are enough"


def test_when_time_is_up_the_reason_is_named(cluster: FakeCluster, apply: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.on_apply = None
    broken_pod(cluster, state={"waiting": {"reason": "ErrImageNeverPull", "message": "image is not present"}})
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(manifests.time, "monotonic", lambda: next(clock))
    result = apply(wait_timeout_s=60)
    assert result["failed"]
    assert "after 60 s" in result["msg"]
    assert "ErrImageNeverPull: image is not present" in result["msg"]


def test_nothing_is_pruned_when_the_new_version_does_not_come_up(cluster: FakeCluster, apply: Run) -> None:
    apply([*ALL, made("Service", "old")])
    cluster.on_apply = None
    cluster.objects[("Deployment", "hearth", "gateway")]["status"] = {}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "hearth", "labels": {"app": "gateway"}}}
    status = {"name": "gateway", "ready": False, "state": {"waiting": {"reason": "InvalidImageName"}}}
    cluster.create({**pod, "status": {"containerStatuses": [status]}})
    changed = made("Deployment", "gateway", spec={"replicas": 1, "selector": {"matchLabels": {"app": "gateway"}}, "paused": False})
    result = apply([changed, CONFIG, NAMESPACE])
    assert result["failed"]
    assert ("Service", "hearth", "old") in cluster.objects


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        (made("Secret", "s", data={"k": "dg=="}), "a Secret among the manifests"),
        ({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}}, "lacks the label"),
        ({"apiVersion": "v1", "kind": "Service", "metadata": {}}, "lacks apiVersion, kind or metadata.name"),
    ],
)
def test_what_must_not_be_applied_is_refused_before_anything_is_written(
    cluster: FakeCluster, apply: Run, definition: Object, message: str
) -> None:
    result = apply([*ALL, definition])
    assert result["failed"]
    assert message in result["msg"]
    assert cluster.writes == []


# -- volumes of nodes that are gone -----------------------------------------------------------------------------------

CLAIM = made("PersistentVolumeClaim", "data", spec={"resources": {"requests": {"storage": "1Gi"}}})


@pytest.fixture
def bound(cluster: FakeCluster, apply: Run) -> FakeCluster:
    """The claim is bound to a volume that lies on h4 alone."""
    apply([*ALL, CLAIM])
    rule = {"key": "kubernetes.io/hostname", "operator": "In", "values": ["h4"]}
    affinity = {"required": {"nodeSelectorTerms": [{"matchExpressions": [rule]}]}}
    cluster.apply(made("PersistentVolume", "pv-1", None, spec={"nodeAffinity": affinity}))
    cluster.objects["PersistentVolumeClaim", "hearth", "data"]["spec"]["volumeName"] = "pv-1"
    cluster.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "h1", "labels": {"kubernetes.io/hostname": "h1"}}})
    cluster.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-4", "labels": {"kubernetes.io/hostname": "h4"}}})
    cluster.writes.clear()
    return cluster


def test_a_volume_whose_node_is_gone_is_told_before_anything_is_applied(bound: FakeCluster, apply: Run) -> None:
    del bound.objects["Node", None, "node-4"]
    said = apply([*ALL, CLAIM], lost_volumes_way_out="-e gateway_volume_lost=true")["msg"]
    assert said.startswith("The data of PersistentVolumeClaim hearth/data lie on node h4 alone, and the cluster has no such node any more.")
    assert said.endswith("begin with an empty volume: -e gateway_volume_lost=true")
    assert bound.writes == []


def test_an_empty_volume_takes_the_place_of_a_lost_one(bound: FakeCluster, apply: Run) -> None:
    del bound.objects["Node", None, "node-4"]
    result = apply([*ALL, CLAIM], lost_volumes="replace")
    assert bound.writes == ["delete PersistentVolume pv-1", "delete PersistentVolumeClaim data", "apply PersistentVolumeClaim data"]
    assert (result["pruned"], result["created"]) == (["PersistentVolumeClaim hearth/data"],) * 2
    assert "volumeName" not in bound.objects["PersistentVolumeClaim", "hearth", "data"]["spec"]


@pytest.mark.parametrize("choice", ["fail", "replace"])
def test_a_volume_whose_node_is_known_stays(bound: FakeCluster, apply: Run, choice: str) -> None:
    apply([*ALL, CLAIM], lost_volumes=choice)
    assert not [write for write in bound.writes if write.startswith("delete")]


def test_a_check_of_a_lost_volume_deletes_nothing(bound: FakeCluster, apply: Run) -> None:
    del bound.objects["Node", None, "node-4"]
    result = apply([*ALL, CLAIM], lost_volumes="replace", check=True)
    assert result["pruned"] == ["PersistentVolumeClaim hearth/data"]
    assert bound.writes == []


def test_who_may_not_see_nodes_is_not_stopped(bound: FakeCluster, apply: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    del bound.objects["Node", None, "node-4"]
    seen = bound.find

    def find(api_version: str, kind: str, selector: str, namespace: str | None = None) -> list[Object]:
        if kind == "Node":
            raise ClusterError("cannot list Node: HTTP 403: forbidden", 403)
        return seen(api_version, kind, selector, namespace)

    monkeypatch.setattr(bound, "find", find)
    assert "failed" not in apply([*ALL, CLAIM])


def test_a_claim_that_a_pod_has_is_told_in_time(bound: FakeCluster, apply: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    del bound.objects["Node", None, "node-4"]
    clock = iter(range(10_000))
    monkeypatch.setattr(manifests.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(bound, "delete", lambda _definition, grace_s=None: None)
    said = apply([*ALL, CLAIM], lost_volumes="replace")["msg"]
    assert said == "PersistentVolumeClaim hearth/data was deleted and is still there after 180 s: a pod has it"
