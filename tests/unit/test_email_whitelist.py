"""Module email_whitelist against a cluster in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from ansible_collections.homelab.hearth.plugins.modules import email_whitelist

from tests.unit.fake_cluster import FakeCluster

KEY = ("ConfigMap", "public-ingress", "oauth2-proxy-emails")
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    fake = FakeCluster()
    monkeypatch.setattr(email_whitelist, "Cluster", fake.connect)
    monkeypatch.setattr(email_whitelist.time, "sleep", lambda seconds: None)
    return fake


def put(cluster: FakeCluster, text: str | None, **more: str) -> None:
    cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "public-ingress"}})
    data = {**({} if text is None else {"restricted_user_access": text}), **more}
    meta = {"name": "oauth2-proxy-emails", "namespace": "public-ingress", "annotations": {"theirs": "kept"}}
    cluster.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data})
    cluster.writes.clear()


def text_of(cluster: FakeCluster) -> str:
    return str(cluster.objects[KEY]["data"]["restricted_user_access"])


def test_the_first_person_makes_namespace_and_list(cluster: FakeCluster, run_module: Run) -> None:
    result = run_module(email_whitelist.main, emails="Ann@Example.org,ben@example.org", create_namespace=True)
    assert (result["changed"], result["added"], result["removed"]) == (True, ["ann@example.org", "ben@example.org"], [])
    assert text_of(cluster) == "ann@example.org\nben@example.org\n"
    assert cluster.writes == ["create Namespace public-ingress", "create ConfigMap oauth2-proxy-emails"]


def test_a_second_time_writes_nothing(cluster: FakeCluster, run_module: Run) -> None:
    put(cluster, "ann@example.org\n")
    result = run_module(email_whitelist.main, emails=["ANN@example.org"])
    assert not result["changed"]
    assert cluster.writes == []


def test_other_keys_and_annotations_stay(cluster: FakeCluster, run_module: Run) -> None:
    put(cluster, "# family\nann@example.org\n", banner="hello")
    run_module(email_whitelist.main, emails=["ben@example.org"])
    assert cluster.objects[KEY]["data"] == {"restricted_user_access": "# family\nann@example.org\nben@example.org\n", "banner": "hello"}
    assert cluster.objects[KEY]["metadata"]["annotations"] == {"theirs": "kept"}


def test_removing_the_last_person_keeps_the_key(cluster: FakeCluster, run_module: Run) -> None:
    """Without the key the proxy would go on with the list it read last."""
    put(cluster, "ann@example.org\n")
    result = run_module(email_whitelist.main, state="absent", emails=["ann@example.org"])
    assert result["removed"] == ["ann@example.org"]
    assert text_of(cluster) == ""


def test_removing_from_a_list_that_is_not_there_changes_nothing(cluster: FakeCluster, run_module: Run) -> None:
    assert not run_module(email_whitelist.main, state="absent", emails=["ann@example.org"])["changed"]
    assert cluster.objects == {}


def test_listing_only_reads(cluster: FakeCluster, run_module: Run) -> None:
    put(cluster, "# family\nann@example.org\n")
    result = run_module(email_whitelist.main, state="list")
    assert (result["changed"], result["emails"]) == (False, ["ann@example.org"])


@pytest.mark.parametrize("there", [False, True])
def test_check_mode_tells_and_writes_nothing(cluster: FakeCluster, run_module: Run, there: bool) -> None:
    if there:
        put(cluster, "ann@example.org\n")
    result = run_module(email_whitelist.main, check=True, emails=["ben@example.org"], create_namespace=True)
    assert result["changed"]
    assert result["added"] == ["ben@example.org"]
    assert result["diff"]["after"].endswith("ben@example.org\n")
    assert cluster.writes == []


def test_two_operators_at_once_lose_nobody(cluster: FakeCluster, run_module: Run) -> None:
    put(cluster, "ann@example.org\n")
    others = iter(["ben@example.org", "cy@example.org"])

    def somebody_else_is_faster() -> None:
        person = next(others, None)
        if person is not None:
            cluster._store("other", {**cluster.objects[KEY], "data": {"restricted_user_access": text_of(cluster) + f"{person}\n"}})

    cluster.before_replace = somebody_else_is_faster
    result = run_module(email_whitelist.main, emails=["dee@example.org"])
    assert result["emails"] == ["ann@example.org", "ben@example.org", "cy@example.org", "dee@example.org"]
    assert text_of(cluster).split() == result["emails"]


def test_a_list_that_never_rests_is_an_error_and_not_a_loop(cluster: FakeCluster, run_module: Run) -> None:
    put(cluster, "")
    count = iter(range(10_000))

    def always_faster() -> None:
        cluster._store("other", {**cluster.objects[KEY], "data": {"restricted_user_access": f"p{next(count)}@example.org\n"}})

    cluster.before_replace = always_faster
    result = run_module(email_whitelist.main, emails=["ann@example.org"])
    assert result["failed"]
    assert "changed by others" in result["msg"]


def test_a_malformed_list_is_refused_with_line_and_way_out(cluster: FakeCluster, run_module: Run) -> None:
    put(cluster, "ann@example.org\nben@example.org,guest\n")
    for state in ("present", "absent", "list"):
        result = run_module(email_whitelist.main, state=state, emails=["cy@example.org"])
        assert result["failed"]
        assert "line 2: holds a comma" in result["msg"]
        assert "kubectl -n public-ingress edit configmap oauth2-proxy-emails" in result["msg"]
    assert cluster.writes == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"emails": []}, "No address given; say who, for example -e email=ann@example.org"),
        ({"emails": ["ann"]}, "exactly one @"),
        ({"emails": ["*@example.org"]}, "no wildcards"),
        ({"emails": ["ann@example.org"]}, "There is no namespace public-ingress: deploy the sign-in proxy first"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_sentence(cluster: FakeCluster, run_module: Run, arguments: dict[str, Any], message: str) -> None:
    result = run_module(email_whitelist.main, **arguments)
    assert result["failed"]
    assert message in result["msg"]
    assert cluster.writes == []


def test_no_kubeconfig_is_a_sentence(run_module: Run, tmp_path: Any) -> None:
    result = run_module(email_whitelist.main, emails=["ann@example.org"], kubeconfig=str(tmp_path / "none"))
    assert result["failed"]
    assert result["msg"] == f"There is no kubeconfig at {tmp_path}/none: deploy the cluster first, or name another file"
