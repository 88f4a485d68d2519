"""The client wrapper where there is no cluster, or not the one that was meant. The rest runs in `make test-cluster`."""

from __future__ import annotations

import http.client
import http.server
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ansible_collections.homelab.hearth.plugins.module_utils import _k8s

from tests.unit.fake_cluster import FakeCluster, Object


def kubeconfig(path: Path, server: str = "https://127.0.0.1:6443", context: str = "hearth") -> str:
    document = {
        "current-context": context,
        "contexts": [{"name": "hearth", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }
    path.write_text(yaml.safe_dump(document))
    return str(path)


def connect(path: str) -> Any:
    return _k8s.Cluster(SimpleNamespace(params={"kubeconfig": path, "context": None}), "hearth")


@pytest.mark.parametrize(
    ("server", "address"),
    [
        ("https://127.0.0.1:6443", ("127.0.0.1", 6443)),
        ("https://api.example.org", ("api.example.org", 443)),
        ("https://[2001:db8::1]:6443/", ("2001:db8::1", 6443)),
    ],
)
def test_the_address_of_the_api_server(tmp_path: Path, server: str, address: tuple[str, int]) -> None:
    assert _k8s.api_address(kubeconfig(tmp_path / "k", server)) == address


def test_a_context_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(_k8s.ClusterError, match="no context 'other'"):
        _k8s.api_address(kubeconfig(tmp_path / "k", context="other"))


@pytest.mark.parametrize("text", ["", "[]", "a: [", "contexts: 1"])
def test_a_file_that_is_no_kubeconfig_is_named_without_its_content(tmp_path: Path, text: str) -> None:
    (tmp_path / "k").write_text(text)
    with pytest.raises(_k8s.ClusterError, match="is not a kubeconfig"):
        _k8s.api_address(str(tmp_path / "k"))


def test_no_file_is_no_cluster(tmp_path: Path) -> None:
    with pytest.raises(_k8s.NoClusterError, match="there is no kubeconfig at"):
        connect(str(tmp_path / "none"))


def test_nobody_there_is_no_cluster_and_told_at_once(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(_k8s.NoClusterError, match=r"no cluster answers at 127\.0\.0\.1:1 \(Connection refused\)"):
        connect(kubeconfig(tmp_path / "k", "https://127.0.0.1:1"))
    # What the client does by itself is to try three times more, with pauses and time limits of minutes.
    assert time.monotonic() - started < 15


def test_a_host_that_is_switched_off_costs_seconds_and_not_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_k8s, "CONNECT_TIMEOUT_S", 0.2)
    with socket.socket() as deaf:
        # A listener that accepts nobody, with its queue full: connecting to it gets no answer at all.
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        port = deaf.getsockname()[1]
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        try:
            with pytest.raises(_k8s.NoClusterError, match="no answer"):
                connect(kubeconfig(tmp_path / "k", f"https://127.0.0.1:{port}"))
        finally:
            for one in waiting:
                one.close()


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ('{"message": "namespaces \\"x\\" not found"}', 'HTTP 404: namespaces "x" not found'),
        ("<html>", "HTTP 404: Not Found"),
        (None, "HTTP 404: Not Found"),
    ],
)
def test_the_api_servers_own_words_are_passed_on(body: str | None, text: str) -> None:
    assert _k8s._explain(SimpleNamespace(body=body, status=404, reason="Not Found")) == text


def test_the_kubeconfig_is_the_one_given_else_that_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("given", "ansible", "first", "home/.kube/config"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("K8S_AUTH_KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBECONFIG", raising=False)
    assert _k8s._kubeconfig_path(None) == tmp_path / "home" / ".kube" / "config"
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path / 'missing'}:{tmp_path / 'first'}")
    assert _k8s._kubeconfig_path(None) == tmp_path / "first"
    monkeypatch.setenv("K8S_AUTH_KUBECONFIG", str(tmp_path / "ansible"))
    assert _k8s._kubeconfig_path(None) == tmp_path / "ansible"
    assert _k8s._kubeconfig_path(str(tmp_path / "given")) == tmp_path / "given"


# --- the verbs, against a server that answers as told. Without TLS: that part is tested with gateway_ask.


class Api(http.server.ThreadingHTTPServer):
    daemon_threads = True
    # What to answer next, before the ordinary answers: (status, headers, body), or None to hang up without a word.
    next: list[tuple[int, dict[str, str], Any] | None]
    seen: list[tuple[str, str, dict[str, str], Any]]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Api

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.seen.append((self.command, self.path, dict(self.headers), json.loads(body) if body else None))
        kinds = {
            "/api/v1": [("configmaps", "ConfigMap", True), ("namespaces", "Namespace", False), ("pods/log", "Pod", True)],
            "/apis/apps/v1": [("deployments", "Deployment", True)],
        }
        status: int = 200
        headers: dict[str, str] = {}
        content: Any = {"kind": "ConfigMap", "metadata": {"name": "a"}}
        if self.server.next:
            said = self.server.next.pop(0)
            if said is None:
                self.close_connection = True
                return
            status, headers, content = said
        elif self.path in kinds:
            content = {"resources": [{"name": n, "kind": k, "namespaced": ns} for n, k, ns in kinds[self.path]]}
        elif self.path.startswith("/apis/none"):
            status = 404
        payload = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(payload))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(payload)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    server = Api(("127.0.0.1", 0), Handler)
    server.next, server.seen = [], []
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def plain(host: str, port: int, timeout: float, context: ssl.SSLContext) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(host, port, timeout=timeout)

    monkeypatch.setattr(_k8s.http.client, "HTTPSConnection", plain)
    monkeypatch.setattr(_k8s.time, "sleep", lambda seconds: None)
    yield server
    server.shutdown()
    server.server_close()


def cluster(api: Api, path: Path, check_mode: bool = False) -> Any:
    config = kubeconfig(path / "k", f"https://127.0.0.1:{api.server_address[1]}")
    return _k8s.Cluster(SimpleNamespace(params={"kubeconfig": config, "context": None}, check_mode=check_mode), "hearth")


CONFIG = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "hearth"}}
GONE: tuple[int, dict[str, str], Any] = (404, {}, {"kind": "Status", "message": "not found"})


@pytest.mark.parametrize("check_mode", [False, True])
def test_every_verb_has_its_address_and_in_check_mode_stores_nothing(api: Api, tmp_path: Path, check_mode: bool) -> None:
    one = cluster(api, tmp_path, check_mode)
    one.apply(CONFIG)
    one.create(CONFIG)
    one.replace(CONFIG)
    one.delete(CONFIG)
    dry = "&dryRun=All" if check_mode else ""
    base = "/api/v1/namespaces/hearth/configmaps"
    assert [(verb, path) for verb, path, _, _ in api.seen] == [
        ("GET", "/api/v1"),
        ("PATCH", f"{base}/a?fieldManager=hearth&force=true{dry}"),
        ("POST", f"{base}?fieldManager=hearth{dry}"),
        ("PUT", f"{base}/a?fieldManager=hearth{dry}"),
        ("DELETE", f"{base}/a"),
    ]
    assert api.seen[1][2]["Content-Type"] == "application/apply-patch+yaml"
    assert api.seen[1][2]["Authorization"] == "Bearer t"
    assert api.seen[1][3] == CONFIG
    assert api.seen[4][3].get("dryRun") == (["All"] if check_mode else None)


def test_what_is_not_there_is_none_and_a_kind_nobody_knows_is_an_error(api: Api, tmp_path: Path) -> None:
    one = cluster(api, tmp_path)
    assert one.get("v1", "ConfigMap", "a", "hearth") is not None
    api.next = [GONE]
    assert one.get("v1", "ConfigMap", "b", "hearth") is None
    with pytest.raises(_k8s.ClusterError, match="knows no Thing of none/v1"):
        one.get("none/v1", "Thing", "a", "hearth")
    assert one.find("none/v1", "Thing", "a=b") == []
    api.next = [GONE]
    one.delete(CONFIG)


def test_a_list_that_may_not_be_read_is_an_error_and_not_an_empty_list(api: Api, tmp_path: Path) -> None:
    """Otherwise pruning would find nothing to prune, and say so."""
    one = cluster(api, tmp_path)
    api.next = [(403, {}, {"message": "forbidden"})]
    with pytest.raises(_k8s.ClusterError, match="HTTP 403: forbidden"):
        one.find("apps/v1", "Deployment", "a=b")


def test_refused_credentials_are_called_that(api: Api, tmp_path: Path) -> None:
    one = cluster(api, tmp_path)
    api.next = [(401, {}, {"message": "Unauthorized"})]
    with pytest.raises(_k8s.ClusterError, match=r"refuses the kubeconfig's credentials \(HTTP 401: Unauthorized\)"):
        one.get("v1", "Namespace", "a")


def test_a_connection_that_was_closed_meanwhile_is_opened_again(api: Api, tmp_path: Path) -> None:
    one = cluster(api, tmp_path)
    one.apply(CONFIG)
    api.next = [None]
    one.apply(CONFIG)
    assert [verb for verb, _, _, _ in api.seen] == ["GET", "PATCH", "PATCH", "PATCH"]
    api.next = [None]
    with pytest.raises(_k8s.ClusterError, match="does not answer"):
        one.create(CONFIG)
    one.apply(CONFIG)
    api.next = [None, None]
    with pytest.raises(_k8s.ClusterError, match="does not answer"):
        one.apply(CONFIG)


def test_a_busy_server_is_asked_again_and_not_for_ever(api: Api, tmp_path: Path) -> None:
    busy = (429, {"Retry-After": "1"}, {"message": "slow down"})
    one = cluster(api, tmp_path)
    one.apply(CONFIG)
    api.next = [busy, busy]
    one.create(CONFIG)
    api.next = [busy] * 10
    with pytest.raises(_k8s.ClusterError, match="HTTP 429: slow down"):
        one.apply(CONFIG)
    assert len(api.next) == 10 - _k8s.ATTEMPTS


def test_an_annotation_is_merged_into_what_is_there(api: Api, tmp_path: Path) -> None:
    one = cluster(api, tmp_path)
    one.annotate({**CONFIG, "data": {"a": "1"}}, {"seen": "7"})
    verb, path, headers, body = api.seen[-1]
    assert (verb, path) == ("PATCH", "/api/v1/namespaces/hearth/configmaps/a?fieldManager=hearth")
    assert headers["Content-Type"] == "application/merge-patch+json"
    assert body["metadata"] == {"name": "a", "namespace": "hearth", "annotations": {"seen": "7"}}
    assert "data" not in body
    api.next = [GONE]
    one.annotate(CONFIG, {"seen": "7"})
    api.next = [(403, {}, {"message": "forbidden"})]
    with pytest.raises(_k8s.ClusterError, match="cannot annotate ConfigMap hearth/a: HTTP 403: forbidden"):
        one.annotate(CONFIG, {"seen": "7"})


# --- what modules do with the verbs, in memory


def test_a_change_starts_again_while_others_are_faster_and_only_then(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(_k8s.time, "sleep", pauses.append)
    answers = iter([409, 409, 200])

    def attempt() -> str:
        status = next(answers)
        if status != 200:
            raise _k8s.ClusterError("refused", status)
        return "done"

    assert _k8s.until_undisturbed(attempt, "the list") == "done"
    assert len(pauses) == 2
    answers = iter([403])
    with pytest.raises(_k8s.ClusterError, match="refused"):
        _k8s.until_undisturbed(attempt, "the list")
    answers = iter([409] * 1000)
    with pytest.raises(_k8s.ClusterError, match=f"the list was changed by others {_k8s.RACES} times in a row; run again"):
        _k8s.until_undisturbed(attempt, "the list")


def pod(name: str, *volumes: Object, **more: Any) -> Object:
    return {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "hearth"}, "spec": {"volumes": list(volumes)}, **more,
    }  # fmt: skip


def test_only_pods_that_mount_the_changed_thing_are_told_and_each_once() -> None:
    fake = FakeCluster()
    fake.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "hearth"}})
    fake.create({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "tokens", "namespace": "hearth"}, "data": {}})
    own, others = {"secret": {"secretName": "tokens"}}, {"configMap": {"name": "tokens"}}
    fake.create(pod("reader", {"emptyDir": {}}, own))
    fake.create(pod("projected", {"projected": {"sources": [{"serviceAccountToken": {}}, {"secret": {"name": "tokens"}}]}}))
    fake.create(pod("other-kind", others))
    fake.create(pod("finished", own, status={"phase": "Succeeded"}))
    fake.create(pod("without"))
    assert _k8s.hurry(fake, "Secret", "hearth", "tokens") == ["hearth/reader", "hearth/projected"]
    assert _k8s.hurry(fake, "Secret", "hearth", "tokens") == [], "they have this version already"
    fake.replace({**fake.objects[("Secret", "hearth", "tokens")], "data": {"a": "YQ=="}})
    assert _k8s.hurry(fake, "Secret", "hearth", "tokens") == ["hearth/reader", "hearth/projected"]
    assert _k8s.hurry(fake, "Secret", "hearth", "absent") == []


def test_a_pod_that_began_after_the_change_has_it_already() -> None:
    fake = FakeCluster()
    fake.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "hearth"}})
    fake.create({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "tokens", "namespace": "hearth"}, "data": {}})
    for name in ("before", "in-the-same-second", "after"):
        fake.create(pod(name, {"secret": {"secretName": "tokens"}}))
    fake.objects[("Secret", "hearth", "tokens")]["metadata"]["managedFields"] = [{"time": "2026-11-21T10:00:05Z"}, {"manager": "x"}]
    for name, second in (("before", 4), ("in-the-same-second", 5), ("after", 6)):
        fake.objects[("Pod", "hearth", name)]["metadata"]["creationTimestamp"] = f"2026-11-21T10:00:0{second}Z"
    assert _k8s.hurry(fake, "Secret", "hearth", "tokens") == ["hearth/before", "hearth/in-the-same-second"]


def test_the_annotation_of_a_long_name_is_one_that_the_api_server_takes() -> None:
    fake = FakeCluster()
    name = "a" * 52 + "-.-" + "b" * 40
    fake.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "hearth"}})
    fake.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "hearth"}})
    fake.create(pod("reader", {"configMap": {"name": name}}))
    assert _k8s.hurry(fake, "ConfigMap", "hearth", name)
    (key,) = fake.objects[("Pod", "hearth", "reader")]["metadata"]["annotations"]
    assert key == "hearth.homelab/configmap-" + "a" * 52


@pytest.mark.parametrize(("create", "check_mode", "there"), [(True, False, True), (True, True, False)])
def test_a_missing_namespace_is_made_when_asked(create: bool, check_mode: bool, there: bool) -> None:
    fake = FakeCluster()
    fake.dry_run = check_mode
    assert _k8s.ensure_namespace(fake, "hearth", create, "deploy it first") is there
    assert (("Namespace", None, "hearth") in fake.objects) is there
    with pytest.raises(_k8s.ClusterError, match="there is no namespace other: deploy it first"):
        _k8s.ensure_namespace(fake, "other", False, "deploy it first")
