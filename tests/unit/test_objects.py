"""What counts as a change, and when a workload is ready."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from ansible_collections.homelab.hearth.plugins.module_utils import _objects as objects

LABELS = {"app.kubernetes.io/managed-by": "hearth", "hearth.homelab/component": "gateway"}


def thing(kind: str, name: str, **more: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": "hearth", "labels": dict(LABELS)}, **more}


def test_all_faults_of_what_was_rendered_are_told_at_once() -> None:
    unlabelled = thing("Service", "b")
    unlabelled["metadata"]["labels"] = {"hearth.homelab/component": "other"}
    definitions = [thing("Secret", "s"), thing("Service", "a"), thing("Service", "a"), unlabelled, {"kind": "Service"}]
    with pytest.raises(objects.DefinitionError) as caught:
        objects.check(definitions, LABELS)
    text = str(caught.value)
    assert "Secret hearth/s: a Secret among the manifests would be shown" in text
    assert "Service hearth/a: rendered twice" in text
    assert "Service hearth/b: lacks the label(s) app.kubernetes.io/managed-by=hearth, hearth.homelab/component=gateway" in text
    assert "object 5 lacks" in text


def test_namespaces_come_first_and_workloads_last() -> None:
    kinds = ["Deployment", "Service", "ConfigMap", "Namespace", "ServiceAccount", "Job"]
    ordered = [d["kind"] for d in objects.in_order([thing(kind, "x") for kind in kinds])]
    assert ordered == ["Namespace", "ConfigMap", "ServiceAccount", "Service", "Deployment", "Job"]


def test_what_the_api_server_keeps_for_itself_is_no_change() -> None:
    before = thing("Deployment", "gateway", spec={"replicas": 1}, status={"replicas": 1})
    before["metadata"] |= {"resourceVersion": "7", "generation": 2, "uid": "u", "creationTimestamp": "t", "managedFields": []}
    before["metadata"]["annotations"] = {"deployment.kubernetes.io/revision": "3"}
    after = thing("Deployment", "gateway", spec={"replicas": 1})
    assert objects.comparable(before) == objects.comparable(after)
    assert before["metadata"]["resourceVersion"] == "7", "the original stays as it is"
    assert objects.comparable(None) == {}


def test_a_diff_of_a_secret_shows_that_a_value_changed_and_no_value() -> None:
    def secret(value: str) -> dict[str, Any]:
        return thing("Secret", "s", data={"key": base64.b64encode(value.encode()).decode()})

    one, other = objects.redacted(secret("sk-ant-one")), objects.redacted(secret("sk-ant-other"))
    assert one != other
    assert one == objects.redacted(secret("sk-ant-one"))
    assert "sk-ant" not in str(one)
    assert base64.b64encode(b"sk-ant-one").decode() not in str(one)


def deployment(wanted: int = 1, **status: int) -> dict[str, Any]:
    made = thing("Deployment", "gateway", spec={"replicas": wanted}, status=status)
    made["metadata"]["generation"] = 2
    return made


@pytest.mark.parametrize(
    ("workload", "lack"),
    [
        (deployment(observedGeneration=2, updatedReplicas=1, availableReplicas=1, replicas=1), None),
        (deployment(observedGeneration=1, updatedReplicas=1, availableReplicas=1, replicas=1), "not seen the change"),
        (deployment(observedGeneration=2, updatedReplicas=1, availableReplicas=1, replicas=2), "version before"),
        (deployment(observedGeneration=2, replicas=1), "0 of 1 pods are of this version"),
        (deployment(observedGeneration=2, updatedReplicas=1, replicas=1), "0 of 1 pods are ready"),
        (deployment(), "not seen the change"),
        (deployment(wanted=0, observedGeneration=2), None),
        (thing("ConfigMap", "c"), None),
        (thing("Job", "j", status={"succeeded": 1}), None),
        (thing("Job", "j"), "0 of 1 completed"),
        (thing("DaemonSet", "d", status={"desiredNumberScheduled": 2, "updatedNumberScheduled": 2, "numberAvailable": 1}), "1 of 2"),
        (thing("StatefulSet", "s", spec={"replicas": 1}, status={"replicas": 1, "updatedReplicas": 1, "readyReplicas": 1}), None),
    ],
)
def test_a_workload_is_ready_when_only_its_new_pods_serve(workload: dict[str, Any], lack: str | None) -> None:
    said = objects.not_ready(workload)
    assert said is None if lack is None else said is not None and lack in said


def pod(**container: Any) -> dict[str, Any]:
    return {"metadata": {"name": "p"}, "status": {"containerStatuses": [{"name": "gateway", "ready": False, **container}]}}


def test_a_crash_is_hopeless_after_the_third_time_and_its_log_is_the_one_before() -> None:
    ended = {"terminated": {"exitCode": 2, "reason": "Error"}}
    first = objects.pod_problem(pod(restartCount=0, state=ended))
    again = objects.pod_problem(pod(restartCount=1, state={"running": {}}, lastState=ended))
    third = objects.pod_problem(pod(restartCount=2, state={"waiting": {"reason": "CrashLoopBackOff"}}, lastState=ended))
    assert first and again and third
    assert (first.hopeless, first.restarted) == (False, False)
    assert (again.hopeless, again.restarted) == (False, True)
    assert third.hopeless
    assert "ended with status 2, 2 restart(s)" in third.text


def test_an_image_that_is_still_being_imported_is_worth_waiting_for() -> None:
    problem = objects.pod_problem(pod(state={"waiting": {"reason": "ErrImageNeverPull", "message": "not present"}}))
    assert problem and not problem.hopeless
    assert problem.text == "container gateway: ErrImageNeverPull: not present"


def test_a_pod_that_no_node_takes_says_why() -> None:
    condition = {"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available: 1 Insufficient memory."}
    problem = objects.pod_problem({"metadata": {"name": "p"}, "status": {"conditions": [condition]}})
    assert problem and "Insufficient memory" in problem.text


def test_a_memory_limit_is_named() -> None:
    problem = objects.pod_problem(pod(restartCount=1, state={"terminated": {"exitCode": 137, "reason": "OOMKilled"}}))
    assert problem and "status 137 (OOMKilled)" in problem.text


def test_a_good_pod_has_no_problem() -> None:
    good = {"metadata": {"name": "p"}, "status": {"containerStatuses": [{"name": "g", "ready": True, "state": {"running": {}}}]}}
    assert objects.pod_problem(good) is None
