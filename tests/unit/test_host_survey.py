"""Module host_survey on this machine: it finds what is here, and returns no secret."""

from __future__ import annotations

import http.server
import json
import os
import platform
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.homelab.hearth.plugins.module_utils import _host
from ansible_collections.homelab.hearth.plugins.modules import host_survey

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


def test_a_taken_port_is_told_with_its_holder(run_module: Run, listener: int) -> None:
    found = run_module(host_survey.main, gather=["network"], ports=[{"port": listener}])["survey"]["network"]["ports"]
    assert found[0]["free"] is False
    assert found[0]["ours"] is False
    assert found[0]["process"]


def test_a_port_held_by_its_owner_is_ours(run_module: Run, listener: int) -> None:
    owner = os.path.dirname(os.readlink(f"/proc/{os.getpid()}/exe"))
    found = run_module(host_survey.main, gather=["network"], ports=[{"port": listener, "owners": [owner]}])
    assert found["survey"]["network"]["ports"][0]["ours"] is True


def test_a_free_port_is_free(run_module: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = int(server.getsockname()[1])
    found = run_module(host_survey.main, gather=["network"], ports=[{"port": port}])
    assert found["survey"]["network"]["ports"][0] == {"port": port, "protocol": "tcp", "free": True, "ours": False}


def test_only_the_parts_asked_for_are_read(run_module: Run) -> None:
    result = run_module(host_survey.main, gather=["system"])
    assert list(result["survey"]) == ["system"]
    assert result["changed"] is False
    assert result["survey"]["system"]["machine"] == platform.machine()
    assert result["survey"]["system"]["memory_mb"] > 0


def test_a_path_that_does_not_exist_yet_counts_for_the_folder_above_it(run_module: Run, tmp_path: Path) -> None:
    path = str(tmp_path / "not" / "yet")
    found = run_module(host_survey.main, gather=["paths"], disk_paths=[path])["survey"]["paths"]["disks"][path]
    assert 0 < found["free_mb"] <= found["total_mb"]


def test_missing_empty_and_used_paths(run_module: Run, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "x").write_text("")
    (tmp_path / "empty").mkdir()
    paths = [str(tmp_path / name) for name in ("missing", "empty", "used", "used/x")]
    found = run_module(host_survey.main, gather=["paths"], paths=paths)["survey"]["paths"]["content"]
    assert list(found.values()) == ["missing", "empty", "used", "used"]


@pytest.mark.parametrize(("text", "expected"), [("", {}), ("{", {}), ("[1]", {}), ('{"format": 1}', {"format": 1})])
def test_a_broken_memory_is_no_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, expected: dict[str, Any]) -> None:
    """A power cut can leave half a file."""
    (tmp_path / "state.json").write_text(text)
    monkeypatch.setattr(host_survey, "STATE", tmp_path / "state.json")
    assert host_survey.survey_state() == expected


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "token").write_text("K10" + "a" * 64 + "::server:in-use-0123456789\n")
    return tmp_path


@pytest.mark.parametrize(
    ("token", "expected"), [("in-use-0123456789", True), ("another-0123456789", False), ("", None)]
)
def test_the_token_is_compared_and_never_returned(run_module: Run, data: Path, token: str, expected: bool | None) -> None:
    result = run_module(host_survey.main, gather=["k3s"], data_dir=str(data), token=token)
    assert result["survey"]["k3s"]["token_matches"] is expected
    assert "in-use-0123456789" not in json.dumps(result)


def test_a_token_without_data_cannot_be_compared(tmp_path: Path) -> None:
    assert host_survey.token_matches("given-0123456789abc", tmp_path) is None


def test_the_datastore_is_etcd_only_when_its_log_is_there(run_module: Run, tmp_path: Path) -> None:
    def datastore() -> str:
        return str(run_module(host_survey.main, gather=["k3s"], data_dir=str(tmp_path))["survey"]["k3s"]["datastore"])

    assert datastore() == ""
    (tmp_path / "server" / "db" / "etcd").mkdir(parents=True)
    (tmp_path / "server" / "db" / "state.db").write_text("")
    assert datastore() == "sqlite", "an empty etcd folder exists on SQLite servers too"
    (tmp_path / "server" / "db" / "etcd" / "member" / "wal").mkdir(parents=True)
    assert datastore() == "etcd"


class Mirror(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(200 if self.path == "/there" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture
def mirror() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def probe(url: str, version: str = "v1.36.4+k3s1") -> dict[str, Any]:
    return {"version": version, "urls": {_host.architecture(platform.machine()): url}}


def test_a_download_source_that_answers(mirror: str) -> None:
    found = host_survey.probe_download(probe(f"{mirror}/there"), "")
    assert found is not None
    assert found["ok"] is True
    assert found["seconds"] >= 0


@pytest.mark.parametrize(("path", "word"), [("/gone", "404")])
def test_a_download_source_without_the_file(mirror: str, path: str, word: str) -> None:
    found = host_survey.probe_download(probe(mirror + path), "")
    assert found is not None
    assert found["ok"] is False
    assert word in found["error"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x", "https://127.0.0.1:1/x", "no-address"])
def test_a_download_source_out_of_reach(url: str) -> None:
    found = host_survey.probe_download(probe(url), "")
    assert found is not None
    assert found["ok"] is False
    assert found["error"]


def test_nothing_is_tried_when_nothing_is_to_be_downloaded() -> None:
    assert host_survey.probe_download(probe("http://127.0.0.1:1/x"), "v1.36.4+k3s1") is None
    assert host_survey.probe_download(None, "") is None
    assert host_survey.probe_download({"version": "v1", "urls": {}}, "") is None
