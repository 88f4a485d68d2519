"""Waiting for what k3s's helm does, against a cluster in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from ansible_collections.homelab.hearth.plugins.modules import cluster_wait

from tests.unit.fake_cluster import FakeCluster, Object

Run = Callable[..., dict[str, Any]]
WANTED = {"name": "traefik", "namespace": "kube-system", "arguments": ["--a=1", "--b=2"]}


def deployment(*arguments: str, available: int = 1) -> Object:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "traefik", "namespace": "kube-system", "generation": 1},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app.kubernetes.io/name": "traefik"}},
            "template": {"spec": {"containers": [{"name": "traefik", "args": list(arguments)}]}},
        },
        "status": {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "availableReplicas": available},
    }


def pod() -> Object:
    waiting = {"reason": "CrashLoopBackOff", "message": "back-off"}
    status = {"name": "traefik", "restartCount": 3, "ready": False, "state": {"waiting": waiting}}
    labels = {"app.kubernetes.io/name": "traefik"}
    return {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "traefik-1", "namespace": "kube-system", "labels": labels},
        "spec": {}, "status": {"phase": "Running", "containerStatuses": [status]},
    }  # fmt: skip


def put(cluster: FakeCluster, stored: Object) -> None:
    meta = {"creationTimestamp": "t1", **stored["metadata"]}
    cluster.objects[(stored["kind"], "kube-system", stored["metadata"]["name"])] = {**stored, "metadata": meta}


class Clock:
    """Time passes only by sleeping; `then` happens on the way."""

    def __init__(self) -> None:
        self.now, self.then = 0.0, {}  # type: float, dict[float, Callable[[], None]]

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for when in [when for when in self.then if when <= self.now]:
            self.then.pop(when)()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(cluster_wait.time, "sleep", made.sleep)
    monkeypatch.setattr(cluster_wait.time, "monotonic", made.monotonic)
    return made


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    fake = FakeCluster()
    monkeypatch.setattr(cluster_wait, "Cluster", fake.connect)
    return fake


@pytest.fixture
def wait(run_module: Run, clock: Clock) -> Run:
    def run(**arguments: Any) -> dict[str, Any]:
        return run_module(cluster_wait.main, timeout_s=60, **arguments)

    return run


def test_it_waits_until_all_of_it_is_there(cluster: FakeCluster, wait: Run, clock: Clock) -> None:
    cluster.unknown_kinds = {"Middleware"}
    clock.then = {
        10.0: cluster.unknown_kinds.clear,
        20.0: lambda: put(cluster, deployment("--a=1")),
        30.0: lambda: put(cluster, deployment("--a=1", "--b=2", "--of-the-chart", available=0)),
        40.0: lambda: put(cluster, deployment("--a=1", "--b=2", "--of-the-chart")),
    }
    result = wait(kinds=["traefik.io/v1alpha1/Middleware"], deployment=WANTED)
    assert result["waited_s"] == 40 and result["changed"] is False
    assert cluster.writes == []


def test_nothing_to_wait_for_takes_no_time(cluster: FakeCluster, wait: Run) -> None:
    put(cluster, deployment("--a=1", "--b=2"))
    assert wait(kinds=["v1/Pod"], deployment=WANTED)["waited_s"] == 0


def test_a_kind_that_never_comes(cluster: FakeCluster, wait: Run) -> None:
    cluster.unknown_kinds = {"Middleware"}
    result = wait(kinds=["v1/Pod", "traefik.io/v1alpha1/Middleware"], hint="Look at the job")
    assert result["msg"] == "After 60 s the cluster does not know traefik.io/v1alpha1/Middleware. Look at the job"


@pytest.mark.parametrize(("stored", "lack"), [
    (None, "is not there"),
    (deployment("--a=1"), "was not given --b=2"),
    (deployment("--a=1", "--b=2", available=0), "is not ready: "),
])
def test_a_deployment_that_never_comes(cluster: FakeCluster, wait: Run, stored: Object | None, lack: str) -> None:
    if stored:
        put(cluster, stored)
    assert f"After 60 s Deployment kube-system/traefik {lack}" in wait(deployment=WANTED)["msg"]


def test_many_missing_arguments_are_shortened(cluster: FakeCluster, wait: Run) -> None:
    put(cluster, deployment())
    wanted = {**WANTED, "arguments": [f"--{n}" for n in range(9)]}
    assert "was not given --0, --1, --2 and 6 more" in wait(deployment=wanted)["msg"]


def test_a_setting_that_was_taken_away_is_waited_for_too(cluster: FakeCluster, wait: Run, clock: Clock) -> None:
    """All that is asked for is there from the beginning: only what is left over shows that helm has not been at work."""
    trusted = "--entryPoints.web.forwardedHeaders.trustedIPs="
    put(cluster, deployment("--a=1", "--b=2", trusted + "192.0.2.0/24"))
    wanted = {**WANTED, "no_arguments": [trusted]}
    assert f"still has {trusted}192.0.2.0/24" in wait(deployment=wanted)["msg"]
    clock.then = {clock.now + 10: lambda: put(cluster, deployment("--a=1", "--b=2"))}
    assert wait(deployment=wanted)["waited_s"] == 10


def test_another_version_with_the_same_arguments_is_waited_for(cluster: FakeCluster, wait: Run) -> None:
    """An upgrade that helm cannot carry out left the old Traefik, and the run said that the new one runs."""
    old, new = "docker.io/library/traefik@sha256:" + "0" * 64, "mirror.home.arpa/traefik@sha256:" + "1" * 64
    made = deployment("--a=1", "--b=2")
    [container] = made["spec"]["template"]["spec"]["containers"]
    container["image"] = old
    put(cluster, made)
    assert f"still has the image {old}" in wait(deployment={**WANTED, "image": new})["msg"]
    container["image"] = "docker.io/library/traefik:v3.7.14@sha256:" + "1" * 64
    put(cluster, made)
    assert wait(deployment={**WANTED, "image": new})["waited_s"] == 0


def test_the_newest_pod_says_why(cluster: FakeCluster, wait: Run) -> None:
    """A Traefik that is too old for a flag ends at once: its log is what the operator has to read."""
    put(cluster, deployment("--a=1", "--b=2", available=0))
    put(cluster, pod())
    cluster.log_lines = {"traefik-1": ["field not found, node: aliasHeadersStrategy"]}
    message = wait(deployment=WANTED, hint="Look at the job")["msg"]
    assert "pod traefik-1: " in message and "  field not found, node: aliasHeadersStrategy" in message
    assert message.endswith("Look at the job")


def test_check_mode_looks_at_nothing(wait: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_wait, "Cluster", None)
    assert wait(check=True, deployment=WANTED)["changed"] is False
