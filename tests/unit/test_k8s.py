"""The client wrapper where there is no cluster, or not the one that was meant. The rest runs in `make test-cluster`."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ansible_collections.homelab.hearth.plugins.module_utils import _k8s


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
    assert time.monotonic() - started < 2


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
