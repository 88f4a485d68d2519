"""Module k3s_join, against real TLS servers: who is asked, who is taken, and what is said when nobody is there."""

from __future__ import annotations

import http.server
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.homelab.hearth.plugins.modules import k3s_join

from tests.unit.fake_api import certificate

Run = Callable[..., dict[str, Any]]
PEM = "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n"


class Server:
    """A listener with TLS that answers /cacerts with a text."""

    def __init__(self, text: str, folder: Path) -> None:
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append((self.path, self.headers.get("Authorization", "")))
                self.send_response(200 if self.path == "/cacerts" else 401)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_arguments: Any) -> None:
                pass

        self.asked: list[tuple[str, str]] = []
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate(folder))
        self.http.socket = context.wrap_socket(self.http.socket, server_side=True)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"https://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[str], Server]]:
    running: list[Server] = []

    def start(text: str) -> Server:
        running.append(Server(text, tmp_path))
        return running[-1]

    yield start
    for server in running:
        server.http.shutdown()
        server.http.server_close()


@pytest.fixture
def nobody() -> str:
    """An address where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"https://127.0.0.1:{probe.getsockname()[1]}"


def test_the_first_that_answers_is_taken(run_module: Run, serve: Callable[[str], Server], nobody: str) -> None:
    two, three = serve(PEM.format("A")), serve(PEM.format("A"))
    candidates = [{"name": "h1", "url": nobody}, {"name": "h2", "url": two.url}, {"name": "h3", "url": three.url}]
    result = run_module(k3s_join.main, candidates=candidates)
    assert (result["url"], result["name"], result["changed"]) == (two.url, "h2", False)
    assert two.asked == [("/cacerts", "")], "nothing but the authority is asked for, and nothing is shown"


def test_a_given_address_is_written_down_and_a_host_behind_it_is_named(run_module: Run, serve: Callable[[str], Server]) -> None:
    address, one = serve(PEM.format("A")), serve(PEM.format("A"))
    result = run_module(k3s_join.main, candidates=[{"url": address.url}, {"name": "h1", "url": one.url}])
    assert (result["url"], result["name"]) == (address.url, "h1")


def test_nobody_there_is_said_with_every_address_and_the_way_out(run_module: Run, nobody: str) -> None:
    result = run_module(k3s_join.main, candidates=[{"name": "h1", "url": nobody}])
    assert result["failed"] is True
    for word in (nobody, "connection refused", "systemctl start k3s", "6443/tcp"):
        assert word in result["msg"], result["msg"]


def test_before_the_first_run_check_mode_finds_nobody_and_goes_on(run_module: Run, nobody: str) -> None:
    result = run_module(k3s_join.main, check=True, candidates=[{"name": "h1", "url": nobody}])
    assert (result["url"], result["name"]) == ("", "")


def test_two_clusters_are_not_joined(run_module: Run, serve: Callable[[str], Server]) -> None:
    one, two = serve(PEM.format("A")), serve(PEM.format("B"))
    result = run_module(k3s_join.main, candidates=[{"name": "h1", "url": one.url}, {"name": "h2", "url": two.url}])
    assert result["failed"] is True
    assert "different clusters" in result["msg"] and "playbooks/reset.yml" in result["msg"]


def test_a_given_address_that_leads_elsewhere_is_told(run_module: Run, serve: Callable[[str], Server]) -> None:
    other, one = serve("<html>a router</html>"), serve(PEM.format("A"))
    result = run_module(k3s_join.main, candidates=[{"url": other.url}, {"name": "h1", "url": one.url}])
    assert result["failed"] is True
    assert "The address in k3s_registration_address does not lead to a server" in result["msg"]


def test_something_that_is_no_k3s_is_passed_over(run_module: Run, serve: Callable[[str], Server]) -> None:
    other, one = serve("hello"), serve(PEM.format("A"))
    result = run_module(k3s_join.main, candidates=[{"name": "h1", "url": other.url}, {"name": "h2", "url": one.url}])
    assert result["name"] == "h2"
