"""Module email_whitelist against a cluster in memory."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any

import pytest
from ansible_collections.homelab.hearth.plugins.module_utils import _k8s
from ansible_collections.homelab.hearth.plugins.module_utils._k8s import ClusterError, NoClusterError
from ansible_collections.homelab.hearth.plugins.module_utils._lock import locked
from ansible_collections.homelab.hearth.plugins.module_utils._whitelist import REVISION
from ansible_collections.homelab.hearth.plugins.modules import email_whitelist, email_whitelist_info

from tests.unit.fake_cluster import FakeCluster

KEY = ("ConfigMap", "public-ingress", "oauth2-proxy-emails")
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    fake = FakeCluster()
    monkeypatch.setattr(email_whitelist, "Cluster", fake.connect)
    monkeypatch.setattr(email_whitelist_info, "Cluster", fake.connect)
    monkeypatch.setattr(_k8s.time, "sleep", lambda seconds: None)
    return fake


def put(cluster: FakeCluster, text: str | None, **more: str) -> None:
    cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "public-ingress"}})
    data = {**({} if text is None else {"restricted_user_access": text}), **more}
    meta = {"name": "oauth2-proxy-emails", "namespace": "public-ingress", "annotations": {"theirs": "kept"}}
    cluster.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data})
    cluster.writes.clear()


def text_of(cluster: FakeCluster) -> str:
    return str(cluster.objects[KEY]["data"]["restricted_user_access"])


def revision(cluster: FakeCluster) -> str:
    return str(cluster.objects[KEY]["data"][REVISION])


def test_a_guest_who_comes_and_goes_does_not_leave_what_was_there_before(cluster: FakeCluster, run_module: Run) -> None:
    """The kubelet writes nothing anew when the volume is as it wrote it last, and then no proxy says that it has read it."""
    put(cluster, "ann@example.org\n")
    run_module(email_whitelist.main, emails=["ben@example.org"])
    first = dict(cluster.objects[KEY]["data"])
    for state in ("absent", "present"):
        run_module(email_whitelist.main, state=state, emails=["ben@example.org"])
    last = dict(cluster.objects[KEY]["data"])
    assert text_of(cluster) == first["restricted_user_access"]
    assert last != first
    run_module(email_whitelist.main, emails=["ben@example.org"])
    assert cluster.objects[KEY]["data"] == last, "nothing to do is no new revision"


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
    assert cluster.objects[KEY]["data"] == {
        "restricted_user_access": "# family\nann@example.org\nben@example.org\n", "banner": "hello", REVISION: revision(cluster),
    }  # fmt: skip
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


@pytest.mark.parametrize("there", [False, True])
def test_exactly_nobody_is_an_empty_list_and_not_a_missing_one(cluster: FakeCluster, run_module: Run, there: bool) -> None:
    if there:
        put(cluster, "# family\nann@example.org\n")
    result = run_module(email_whitelist.main, state="exact", emails=[], create_namespace=True)
    assert (result["changed"], result["emails"]) == (True, [])
    assert text_of(cluster) == ("# family\n" if there else "")
    assert not run_module(email_whitelist.main, state="exact", emails=[])["changed"]


def test_exactly_these_keeps_comments_and_the_order_of_those_who_stay(cluster: FakeCluster, run_module: Run) -> None:
    put(cluster, "# family\nann@example.org\nben@example.org\n# friends\ncy@example.org\n")
    result = run_module(email_whitelist.main, state="exact", emails=["Dee@example.org", "cy@example.org", "ann@example.org"])
    assert (result["added"], result["removed"]) == (["dee@example.org"], ["ben@example.org"])
    assert text_of(cluster) == "# family\nann@example.org\n# friends\ncy@example.org\ndee@example.org\n"


def test_a_role_makes_the_list_without_naming_anybody(cluster: FakeCluster, run_module: Run) -> None:
    """The sign-in proxy does not start without the file."""
    arguments = {"emails": [], "allow_empty": True, "create_namespace": True}
    assert run_module(email_whitelist.main, **arguments)["changed"]
    assert text_of(cluster) == ""
    assert not run_module(email_whitelist.main, **arguments)["changed"]
    run_module(email_whitelist.main, emails=["ann@example.org"])
    assert not run_module(email_whitelist.main, **arguments)["changed"], "who was added later stays"
    assert text_of(cluster) == "ann@example.org\n"


def test_a_lost_key_is_refused_because_the_proxy_still_has_the_list(cluster: FakeCluster, run_module: Run) -> None:
    put(cluster, None, banner="hello")
    for state in ("present", "absent"):
        result = run_module(email_whitelist.main, state=state, emails=["ann@example.org"])
        assert result["failed"]
        assert "has lost its key restricted_user_access" in result["msg"]
        assert "state=exact" in result["msg"]
    assert cluster.writes == []
    assert run_module(email_whitelist.main, state="absent", emails=["ann@example.org"], repair=True)["changed"]
    assert cluster.objects[KEY]["data"] == {"banner": "hello", "restricted_user_access": "", REVISION: revision(cluster)}


def mount(cluster: FakeCluster) -> None:
    meta = {"name": "oauth2-proxy-chat-1", "namespace": "public-ingress"}
    volumes = [{"configMap": {"name": "oauth2-proxy-emails"}}]
    cluster.create({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"volumes": volumes}})


def test_the_pods_that_mount_the_list_are_told(cluster: FakeCluster, run_module: Run) -> None:
    put(cluster, "")
    mount(cluster)
    result = run_module(email_whitelist.main, emails=["ann@example.org"])
    assert result["pods"] == ["public-ingress/oauth2-proxy-chat-1"]
    again = run_module(email_whitelist.main, emails=["ann@example.org"])
    assert (again["changed"], again["pods"]) == (False, [])


def test_a_run_that_died_before_it_told_the_pods_is_made_good(cluster: FakeCluster, run_module: Run) -> None:
    put(cluster, "")
    mount(cluster)
    assert run_module(email_whitelist.main, emails=["ann@example.org"], refresh_pods=False)["pods"] == []
    result = run_module(email_whitelist.main, emails=["ann@example.org"])
    assert (result["changed"], result["pods"]) == (False, ["public-ingress/oauth2-proxy-chat-1"])


def test_the_info_module_reads_and_tells_what_is_wrong(cluster: FakeCluster, run_module: Run) -> None:
    missing = run_module(email_whitelist_info.main)
    assert (missing["exists"], missing["emails"], missing["changed"]) == (False, [], False)
    put(cluster, "# family\nann@example.org\nben@example.org,guest\n")
    found = run_module(email_whitelist_info.main)
    assert (found["exists"], found["emails"]) == (True, ["ann@example.org"])
    assert found["problems"] == [{"line": 3, "problem": "holds a comma, which makes the proxy ignore the whole list"}]
    assert found["text"].startswith("# family\n")
    assert cluster.writes == []


def test_the_info_module_tells_of_a_lockdown_and_of_the_list_after_it(cluster: FakeCluster, run_module: Run) -> None:
    put(cluster, "ann@example.org\n")
    assert run_module(email_whitelist_info.main)["locked"] is False
    cluster.objects[KEY] = locked(cluster.objects[KEY], "2026-11-21T20:00:00Z", {"restricted_user_access"})
    found = run_module(email_whitelist_info.main)
    assert (found["locked"], found["exists"], found["emails"]) == (True, True, ["ann@example.org"])


def test_the_info_module_fails_without_a_cluster(run_module: Run, tmp_path: Any) -> None:
    result = run_module(email_whitelist_info.main, check=True, kubeconfig=str(tmp_path / "none"))
    assert result["failed"]
    assert result["msg"].startswith("There is no kubeconfig at ")


@pytest.mark.parametrize("there", [False, True])
def test_check_mode_tells_and_writes_nothing(cluster: FakeCluster, run_module: Run, there: bool) -> None:
    if there:
        put(cluster, "ann@example.org\n")
    result = run_module(email_whitelist.main, check=True, emails=["ben@example.org"], create_namespace=True)
    assert result["changed"]
    assert result["added"] == ["ben@example.org"]
    assert result["diff"]["after"].endswith("ben@example.org\n")
    assert cluster.writes == []
    real = run_module(email_whitelist.main, emails=["ben@example.org"], create_namespace=True)
    assert {name: real[name] for name in ("changed", "added", "emails")} == {name: result[name] for name in ("changed", "added", "emails")}


def test_check_mode_where_there_is_no_cluster_yet(monkeypatch: pytest.MonkeyPatch, run_module: Run) -> None:
    def nobody(module: Any, field_manager: str) -> None:
        raise NoClusterError("no cluster answers at 192.0.2.1:6443 (no answer)")

    monkeypatch.setattr(email_whitelist, "Cluster", nobody)
    result = run_module(email_whitelist.main, check=True, emails=["ann@example.org"])
    assert (result["changed"], result["added"]) == (True, ["ann@example.org"])
    assert result["cluster"] == "no cluster answers at 192.0.2.1:6443 (no answer)"
    assert run_module(email_whitelist.main, emails=["ann@example.org"])["failed"]


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


def test_twenty_operators_at_the_same_time_leave_twenty_people(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    put(cluster, "")
    lock, people = threading.Lock(), [f"p{number}@example.org" for number in range(20)]
    together = threading.Barrier(len(people))
    begun: set[int] = set()
    refused = []
    read, write = cluster.get, cluster.replace

    def slow_read(api_version: str, kind: str, name: str, namespace: str | None = None) -> Any:
        found = read(api_version, kind, name, namespace)
        if threading.get_ident() not in begun:
            begun.add(threading.get_ident())
            # All read before the first writes, so that nineteen of twenty hold an old version.
            together.wait(timeout=30)
        return found

    def one_at_a_time(definition: Any) -> Any:
        with lock:
            try:
                return write(definition)
            except ClusterError as error:
                refused.append(error.status)
                raise

    monkeypatch.setattr(cluster, "get", slow_read)
    monkeypatch.setattr(cluster, "replace", one_at_a_time)
    params = {"state": "present", "namespace": KEY[1], "name": KEY[2], "key": "restricted_user_access", "repair": False,
              "allow_empty": False, "create_namespace": False, "refresh_pods": False}  # fmt: skip
    with concurrent.futures.ThreadPoolExecutor(len(people)) as pool:
        done = [pool.submit(email_whitelist.change, cluster, params, [person]) for person in people]
        assert all(future.result()["changed"] for future in done)
    assert sorted(text_of(cluster).split()) == sorted(people)
    assert refused.count(409) >= len(people) - 1


def test_a_list_that_never_rests_is_an_error_and_not_a_loop(cluster: FakeCluster, run_module: Run) -> None:
    put(cluster, "")
    count = iter(range(10_000))

    def always_faster() -> None:
        cluster._store("other", {**cluster.objects[KEY], "data": {"restricted_user_access": f"p{next(count)}@example.org\n"}})

    cluster.before_replace = always_faster
    result = run_module(email_whitelist.main, emails=["ann@example.org"])
    assert result["failed"]
    assert result["msg"] == f"The list was changed by others {_k8s.RACES} times in a row; run again"


def test_a_malformed_list_is_refused_with_line_and_way_out(cluster: FakeCluster, run_module: Run) -> None:
    put(cluster, "ann@example.org\nben@example.org,guest\n")
    for state in ("present", "absent", "exact"):
        result = run_module(email_whitelist.main, state=state, emails=["cy@example.org"])
        assert result["failed"]
        assert "line 2: holds a comma" in result["msg"]
        assert "Mend it with repair=true or kubectl -n public-ingress edit configmap oauth2-proxy-emails" in result["msg"]
    assert cluster.writes == []


def test_a_malformed_list_is_mended_when_asked_and_the_removed_person_is_out(cluster: FakeCluster, run_module: Run) -> None:
    put(cluster, "ann@example.org\nben@example.org,guest\nthe whole street\n")
    checked = run_module(email_whitelist.main, state="absent", emails=["ann@example.org"], repair=True, check=True)
    assert cluster.writes == []
    result = run_module(email_whitelist.main, state="absent", emails=["ann@example.org"], repair=True)
    assert text_of(cluster) == "# mended: ben@example.org,guest\nben@example.org\n# not an address: the whole street\n"
    assert (result["removed"], result["added"]) == (["ann@example.org"], ["ben@example.org"])
    assert [mend["line"] for mend in result["mended"]] == [2, 3]
    assert {**result, "pods": []} == {**checked, "pods": []} | {"invocation": result["invocation"]}
    again = run_module(email_whitelist.main, state="absent", emails=["ann@example.org"], repair=True)
    assert (again["changed"], again["mended"]) == (False, [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"emails": []}, "No address given; say who, for example -e email=ann@example.org"),
        ({"emails": [], "state": "absent"}, "No address given"),
        # Only a list that is given, and empty, means nobody.
        ({"state": "exact"}, "No address given"),
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
