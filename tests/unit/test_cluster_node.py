"""Module cluster_node on a cluster in memory: which pods leave, what is opened again, which node may go."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.hearth.plugins.module_utils import _drain
from ansible_collections.homelab.hearth.plugins.modules import cluster_node

Run = Callable[..., dict[str, Any]]


def node(name: str, *, server: bool = False, ready: bool = True, voter: bool = True, **spec: Any) -> dict[str, Any]:
    labels = {"kubernetes.io/hostname": name} | ({"node-role.kubernetes.io/control-plane": "true"} if server else {})
    conditions = [{"type": "Ready", "status": str(ready)}] + ([{"type": "EtcdIsVoter", "status": str(voter)}] if server else [])
    return {"metadata": {"name": name, "labels": labels, "resourceVersion": "1"}, "spec": spec, "status": {"conditions": conditions}}


def pod(
    name: str, where: str = "h2", *, owner: str = "ReplicaSet", phase: str = "Running", claim: str = "", mirror: bool = False
) -> dict[str, Any]:
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}] if claim else []
    owners = [{"kind": owner, "name": "x", "controller": True}] if owner else []
    annotations = {"kubernetes.io/config.mirror": "x"} if mirror else {}
    meta = {"name": name, "namespace": "ns", "uid": name, "ownerReferences": owners, "annotations": annotations}
    return {"metadata": meta, "spec": {"nodeName": where, "volumes": volumes}, "status": {"phase": phase}}


def volume(claim: str, where: str, key: str = "kubernetes.io/hostname") -> dict[str, Any]:
    terms = [{"matchExpressions": [{"key": key, "operator": "In", "values": [where]}]}]
    affinity = {"required": {"nodeSelectorTerms": terms}}
    return {"metadata": {"name": f"pv-{claim}"}, "spec": {"claimRef": {"namespace": "ns", "name": claim}, "nodeAffinity": affinity}}


class Cluster:
    """What `k3s kubectl --raw` would find, and what it is told to change."""

    def __init__(self, *nodes: dict[str, Any]) -> None:
        self.nodes = {n["metadata"]["name"]: n for n in nodes}
        self.pods: list[dict[str, Any]] = []
        self.volumes: list[dict[str, Any]] = []
        self.secrets = {f"{name}.node-password.k3s" for name in self.nodes}
        self.calls: list[str] = []
        self.held: dict[str, str] = {}
        self.conflicts = 0
        self.forgets = True
        self.in_use = False
        # Holder and time of the controller manager's lease, as they are seen one after another; the last one stays.
        self.leases: list[tuple[str, str]] = [("h1_x", "t1"), ("h1_x", "t2")]

    @property
    def claims(self) -> set[str]:
        return {v["spec"]["claimRef"]["name"] for v in self.volumes}

    @property
    def bound_to(self) -> dict[str, str]:
        """Volume by claim; of several that name it, the last one."""
        return {v["spec"]["claimRef"]["name"]: v["metadata"]["name"] for v in self.volumes}

    def run(self, words: list[str], data: str | None) -> tuple[int, str, str]:
        assert words[:2] == ["/usr/local/bin/k3s", "kubectl"], words
        verb, path = words[3], words[5]
        if verb != "get":
            self.calls.append(f"{verb} {path}")
        answer = getattr(self, verb)(path, json.loads(data) if data else None)
        if isinstance(answer, str):
            return 1, "", f"Error from server ({answer}): {answer} it is\n"
        return 0, json.dumps(answer), ""

    def get(self, path: str, _body: Any) -> Any:
        if path == "/api/v1/nodes":
            return {"items": list(self.nodes.values())}
        if path == "/api/v1/persistentvolumes":
            return {"items": self.volumes}
        if path.startswith("/api/v1/pods?"):
            return {"items": [p for p in self.pods if p["spec"]["nodeName"] == path.rpartition("%3D")[2]]}
        kind, name = path.split("/")[-2:]
        if kind == "leases":
            holder, renewed = self.leases.pop(0) if len(self.leases) > 1 else self.leases[0] if self.leases else ("", "")
            return {"spec": {"holderIdentity": holder, "renewTime": renewed}} if holder else "NotFound"
        if kind == "secrets":
            return {"metadata": {"name": name}} if name in self.secrets else "NotFound"
        if kind == "persistentvolumeclaims":
            return {"metadata": {"name": name}, "spec": {"volumeName": self.bound_to[name]}} if name in self.claims else "NotFound"
        return self.nodes.get(name, "NotFound")

    def replace(self, path: str, body: Any) -> Any:
        if self.conflicts:
            self.conflicts -= 1
            return "Conflict"
        self.nodes[path.rpartition("/")[2]] = body
        return body

    def create(self, path: str, body: Any) -> Any:
        assert path.endswith("/eviction") and body["kind"] == "Eviction"
        name = body["metadata"]["name"]
        if name in self.held:
            return self.held[name]
        self.pods = [p for p in self.pods if p["metadata"]["name"] != name]
        return {}

    def delete(self, path: str, _body: Any) -> Any:
        kind, name = path.split("/")[-2:]
        if kind == "secrets":
            self.secrets.discard(name)
            return {}
        if kind == "persistentvolumes":
            return {}  # marked; it goes with its claim
        if kind == "persistentvolumeclaims":
            self.volumes = [v for v in self.volumes if self.in_use or v["spec"]["claimRef"]["name"] != name]
            return {}
        if name not in self.nodes:
            return "NotFound"
        del self.nodes[name]
        if self.forgets:
            self.secrets.discard(f"{name}.node-password.k3s")
        return {}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    cluster = Cluster(node("h1", server=True), node("h2", server=True), node("h3", server=True), node("a1"))
    monkeypatch.setattr(AnsibleModule, "run_command", lambda _self, words, data=None, **_options: cluster.run(words, data))
    clock = iter(range(10_000_000))
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    return cluster


def opened(cluster: Cluster, name: str) -> bool:
    return not cluster.nodes[name]["spec"].get("unschedulable")


# -- emptying ---------------------------------------------------------------------------------------------------------


def test_pods_that_can_live_elsewhere_leave_and_the_others_go_on(run_module: Run, cluster: Cluster) -> None:
    cluster.volumes = [volume("bound", "h2"), volume("free", "h1")]
    cluster.pods = [
        pod("web"), pod("of-the-node", owner="DaemonSet"), pod("static", mirror=True), pod("done", phase="Succeeded"),
        pod("by-hand", owner=""), pod("with-its-volume-here", claim="bound"), pod("elsewhere", where="h1"),
        pod("with-a-volume", claim="free"),
    ]  # fmt: skip
    result = run_module(cluster_node.main, name="h2", state="emptied")
    assert result["left"] == ["ns/web", "ns/with-a-volume"]
    assert not opened(cluster, "h2")
    assert cluster.nodes["h2"]["metadata"]["annotations"] == {"hearth.homelab/emptied": "true"}
    left = {p["metadata"]["name"] for p in cluster.pods}
    assert left == {"of-the-node", "static", "done", "by-hand", "with-its-volume-here", "elsewhere"}


def test_for_good_everything_leaves_that_can(run_module: Run, cluster: Cluster) -> None:
    cluster.volumes = [volume("bound", "h2")]
    cluster.pods = [pod("by-hand", owner=""), pod("bound", claim="bound"), pod("of-the-node", owner="DaemonSet")]
    result = run_module(cluster_node.main, name="h2", state="emptied", for_good=True)
    assert result["left"] == ["ns/bound", "ns/by-hand"]


def test_a_budget_is_waited_for(run_module: Run, cluster: Cluster) -> None:
    cluster.pods = [pod("web")]
    cluster.held["web"] = "TooManyRequests"
    result = run_module(cluster_node.main, name="h2", state="emptied", timeout_s=20)
    assert result["failed"] is True
    assert "After 20 s these pods are still on h2: ns/web (TooManyRequests it is)" in result["msg"]
    assert "k3s_drain_timeout_s" in result["msg"]
    assert opened(cluster, "h2"), "nothing was done with the node, so it takes pods again"
    assert cluster.nodes["h2"]["metadata"]["annotations"] == {}


def test_where_pods_have_nowhere_to_go_they_go_on(run_module: Run, cluster: Cluster) -> None:
    for name in ("h1", "h3", "a1"):
        del cluster.nodes[name]
    cluster.pods = [pod("web")]
    assert run_module(cluster_node.main, name="h2", state="emptied")["changed"] is False
    assert opened(cluster, "h2") and cluster.calls == []


def test_pods_of_a_dead_node_are_told_to_go_and_nobody_waits_for_its_kubelet(
    run_module: Run, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.nodes["h2"] = node("h2", server=True, ready=False)
    cluster.pods = [pod("web")]
    monkeypatch.setattr(cluster, "create", lambda _path, _body: {})
    assert run_module(cluster_node.main, name="h2", state="emptied", for_good=True)["left"] == ["ns/web"]


def test_a_write_of_the_kubelet_in_between_is_no_failure(run_module: Run, cluster: Cluster) -> None:
    cluster.conflicts = 2
    assert run_module(cluster_node.main, name="h2", state="emptied")["changed"] is True
    cluster.conflicts = 99
    assert run_module(cluster_node.main, name="h3", state="emptied")["failed"] is True


def test_check_mode_empties_nothing(run_module: Run, cluster: Cluster) -> None:
    cluster.pods = [pod("web")]
    result = run_module(cluster_node.main, check=True, name="h2", state="emptied")
    assert (result["changed"], result["left"]) == (True, ["ns/web"])
    assert cluster.calls == []


# -- present ----------------------------------------------------------------------------------------------------------


def test_a_node_that_was_emptied_is_opened_and_changed_in_one_write(run_module: Run, cluster: Cluster) -> None:
    run_module(cluster_node.main, name="h2", state="emptied")
    cluster.calls.clear()
    change = {"labels": {"disk": "ssd"}, "annotations": {"hearth.homelab/labels": "disk"}, "unschedulable": False}
    assert run_module(cluster_node.main, name="h2", state="present", change=change)["changed"] is True
    assert cluster.calls == ["replace /api/v1/nodes/h2"]
    assert opened(cluster, "h2")
    assert cluster.nodes["h2"]["metadata"]["annotations"] == {"hearth.homelab/labels": "disk"}


def test_a_node_that_a_person_closed_stays_closed(run_module: Run, cluster: Cluster) -> None:
    cluster.nodes["h2"]["spec"]["unschedulable"] = True
    assert run_module(cluster_node.main, name="h2", state="present")["changed"] is False
    assert not opened(cluster, "h2")


@pytest.mark.parametrize(
    ("leases", "looks"),
    [
        ([("h1_x", "t1"), ("h1_x", "t2")], 2),
        # The leader was just restarted: its lease runs out, another has it, and has it still a moment later.
        ([("h1_x", "t1")] * 20 + [("h2_y", "t3"), ("h2_y", "t3"), ("h2_y", "t4")], 23),
        ([], 1),  # no election
    ],
)
def test_no_pod_leaves_while_no_controller_manager_leads(
    run_module: Run, cluster: Cluster, leases: list[tuple[str, str]], looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that is not told that a pod is leaving sends requests to where it was."""
    cluster.pods, cluster.leases = [pod("gateway")], list(leases)
    seen: list[int] = []
    get = cluster.get

    def counted(path: str, body: Any) -> Any:
        if path == cluster_node.CONTROLLERS:
            assert cluster.calls == [], "nothing is changed before"
            seen.append(1)
        return get(path, body)

    monkeypatch.setattr(cluster, "get", counted)
    assert run_module(cluster_node.main, name="h2", state="emptied")["left"] == ["ns/gateway"]
    assert len(seen) == looks


def test_a_cluster_that_nobody_leads_is_told_and_nothing_is_changed(run_module: Run, cluster: Cluster) -> None:
    cluster.pods, cluster.leases = [pod("gateway")], [("h1_x", "t1")]
    said = run_module(cluster_node.main, name="h2", state="emptied")["msg"]
    assert said.startswith("No controller manager renewed its lease within 60 s")
    assert cluster.calls == [] and opened(cluster, "h2")


# -- absent -----------------------------------------------------------------------------------------------------------


def test_a_node_goes_with_its_password(run_module: Run, cluster: Cluster) -> None:
    assert run_module(cluster_node.main, name="a1", state="absent")["changed"] is True
    assert "a1" not in cluster.nodes and "a1.node-password.k3s" not in cluster.secrets
    assert run_module(cluster_node.main, name="a1", state="absent")["changed"] is False


def test_a_password_that_k3s_leaves_behind_is_deleted(run_module: Run, cluster: Cluster) -> None:
    """A host that is set up anew under the name would be refused."""
    cluster.forgets = False
    assert run_module(cluster_node.main, name="a1", state="absent")["changed"] is True
    assert "a1.node-password.k3s" not in cluster.secrets


@pytest.mark.parametrize(
    ("sick", "forced", "word"),
    [("", False, "remove_node_forced=true"), ("", True, ""), ("h3", True, "Bring back h3 first, or remove it instead")],
)
def test_the_majority_is_kept(run_module: Run, cluster: Cluster, sick: str, forced: bool, word: str) -> None:
    if sick:
        cluster.nodes[sick] = node(sick, server=True, ready=False)
    result = run_module(cluster_node.main, name="h1", state="absent", forced=forced)
    assert ("h1" in cluster.nodes) is bool(word)
    assert word in result.get("msg", "")


def test_volumes_are_not_lost_by_the_way(run_module: Run, cluster: Cluster) -> None:
    cluster.volumes = [volume("chats", "a1"), volume("by-field", "a1", "metadata.name"), volume("other", "h1")]
    seen = run_module(cluster_node.main, name="a1", state="seen")
    assert seen["volumes"] == ["ns/by-field", "ns/chats"]
    assert "ns/by-field, ns/chats lie on a1 alone" in seen["refused"]
    assert run_module(cluster_node.main, name="a1", state="absent")["failed"] is True
    assert run_module(cluster_node.main, name="a1", state="absent", volumes="leave")["changed"] is True
    assert cluster.claims == {"chats", "by-field", "other"} and len(cluster.volumes) == 3


def test_volumes_that_may_go_take_their_claims_along(run_module: Run, cluster: Cluster) -> None:
    """A claim that stayed would bind its pods to the node that is gone, for ever."""
    cluster.volumes = [volume("chats", "a1"), volume("other", "h1")]
    assert run_module(cluster_node.main, name="a1", state="absent", volumes="delete")["volumes"] == ["ns/chats"]
    assert cluster.calls == [
        "delete /api/v1/nodes/a1", "delete /api/v1/persistentvolumes/pv-chats", "delete /api/v1/namespaces/ns/persistentvolumeclaims/chats",
    ]  # fmt: skip
    assert cluster.claims == {"other"} and [v["metadata"]["name"] for v in cluster.volumes] == ["pv-other"]


def test_a_claim_that_has_another_volume_by_now_stays(run_module: Run, cluster: Cluster) -> None:
    """A volume that is kept (reclaim policy Retain) goes on naming the claim that it had."""
    cluster.volumes = [volume("chats", "a1"), volume("chats", "h1")]
    cluster.volumes[1]["metadata"]["name"] = "pv-new"
    assert run_module(cluster_node.main, name="a1", state="absent", volumes="delete")["changed"] is True
    assert cluster.calls == ["delete /api/v1/nodes/a1", "delete /api/v1/persistentvolumes/pv-chats"]


def test_volumes_of_a_node_that_is_no_longer_known_are_found_by_its_name(run_module: Run, cluster: Cluster) -> None:
    """A host that comes back, or a removal that was cut off between the node and its claims."""
    cluster.volumes = [volume("chats", "a9"), volume("other", "h1")]
    cluster.volumes[0]["spec"]["hostPath"] = {"path": "/var/lib/rancher/k3s/storage/pvc-1", "type": "DirectoryOrCreate"}
    seen = run_module(cluster_node.main, name="a9", state="seen")
    assert (seen["exists"], seen["volumes"], seen["folders"]) == (False, ["ns/chats"], ["/var/lib/rancher/k3s/storage/pvc-1"])
    assert run_module(cluster_node.main, name="a9", state="absent", volumes="delete")["changed"] is True
    assert cluster.claims == {"other"}


def test_a_claim_that_a_pod_has_is_told(run_module: Run, cluster: Cluster) -> None:
    cluster.volumes, cluster.in_use = [volume("chats", "a1")], True
    said = run_module(cluster_node.main, name="a1", state="absent", volumes="delete")["msg"]
    assert said == "Node a1 is removed, but after 300 s pods still have the claims ns/chats"


def test_a_look_says_whether_there_is_such_a_node(run_module: Run, cluster: Cluster) -> None:
    assert run_module(cluster_node.main, name="h9", state="seen") | {"invocation": None} == {
        "changed": False, "exists": False, "ready": False, "refused": "", "left": [], "volumes": [], "folders": [], "invocation": None,
    }  # fmt: skip
    assert run_module(cluster_node.main, name="a1", state="seen")["ready"] is True
    assert cluster.calls == []


def test_what_kubectl_says_reaches_the_operator_and_nothing_else(run_module: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AnsibleModule, "run_command", lambda *_a, **_k: (1, "", "E1121 noise\nThe connection to the server was refused\n"))
    result = run_module(cluster_node.main, name="h1", state="seen")
    assert result["msg"] == "The connection to the server was refused"


def test_a_volume_that_several_nodes_hold_is_bound_to_none() -> None:
    both = volume("c", "h1")
    both["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"][0]["matchExpressions"][0]["values"] = ["h1", "h2"]
    assert _drain.bound_volumes(node("h1"), [both, {"metadata": {"name": "x"}, "spec": {}}]) == {}


