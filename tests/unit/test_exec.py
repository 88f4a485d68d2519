"""Running a command in a pod, against an endpoint that speaks as the API server does. On a real one it runs in `make test-cluster`."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from ansible_collections.homelab.hearth.plugins.module_utils import _exec
from ansible_collections.homelab.hearth.plugins.module_utils._exec import ExecError, execute
from ansible_collections.homelab.hearth.plugins.module_utils._k8s import ClusterError

from tests.unit.fake_api import accept_of, certificate, frame, read_frame

STDIN, STDOUT, STDERR, STATUS = 0, 1, 2, 3
SUCCESS = {"kind": "Status", "status": "Success"}
ENDED_WITH_2 = {"status": "Failure", "reason": "NonZeroExitCode", "details": {"causes": [{"reason": "ExitCode", "message": "2"}]}}
Answer = list[tuple[int, bytes]]


class Endpoint:
    """Takes one connection over TLS: looks at the request, reads one message, answers as told, and closes."""

    def __init__(self, directory: Path) -> None:
        self.pem, key = certificate(directory)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(self.pem, key)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.answer: Answer = []
        self.refusal: tuple[int, Any] | None = None
        self.request = ""
        self.headers: dict[str, str] = {}
        self.got = b""
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        # A client that never comes, does not trust the certificate, or has gone, is no fault of the endpoint.
        with contextlib.suppress(OSError):
            plain, _peer = self._listening.accept()
            self._talk(plain)

    def _talk(self, plain: socket.socket) -> None:
        with self._context.wrap_socket(plain, server_side=True) as connection, connection.makefile("rwb") as stream:
            self.request = stream.readline().decode().split()[1]
            for line in iter(lambda: stream.readline().decode().strip(), ""):
                name, _colon, value = line.partition(":")
                self.headers[name.lower()] = value.strip()
            if self.refusal:
                status, body = self.refusal
                text = body if isinstance(body, bytes) else json.dumps(body).encode()
                stream.write(f"HTTP/1.1 {status} No\r\nContent-Length: {len(text)}\r\n\r\n".encode() + text)
                return
            accept = accept_of(self.headers["sec-websocket-key"])
            stream.write("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                         f"Sec-WebSocket-Accept: {accept}\r\n"
                         f"Sec-WebSocket-Protocol: {self.headers['sec-websocket-protocol']}\r\n\r\n".encode())
            stream.flush()
            with contextlib.suppress(ValueError):  # it hung up without a word
                self.got = read_frame(stream)
            for channel, content in self.answer:
                stream.write(frame(bytes([channel]) + content))
            # A ping in between is the library's business; then the end.
            stream.write(frame(b"", opcode=9) + frame((1000).to_bytes(2, "big"), opcode=8))
            stream.flush()
            # As a server does: it is the client who hangs up.
            with contextlib.suppress(OSError):
                connection.settimeout(2)
                while stream.read(1):
                    pass

    def close(self) -> None:
        # Closing alone would leave a thread waiting that waits already.
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(5)


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[Endpoint]:
    made = Endpoint(tmp_path)
    yield made
    made.close()


@pytest.fixture
def run(endpoint: Endpoint) -> Callable[..., str]:
    context = ssl.create_default_context(cafile=str(endpoint.pem))
    server = SimpleNamespace(url=f"https://127.0.0.1:{endpoint.port}", context=context, headers={"Authorization": "Bearer t"})

    def call(line: str = "ann@example.org", command: tuple[str, ...] = ("/opt/hearth/bin/hearth-gateway", "person", "set", "-")) -> str:
        return str(execute(SimpleNamespace(server=server), "hearth", "gateway-1", "gateway", command, line))

    return call


def test_a_command_gets_its_line_and_gives_its_output(endpoint: Endpoint, run: Callable[..., str]) -> None:
    endpoint.answer = [(STDIN, b""), (STDOUT, b'{"a"'), (STDERR, b"a warning"), (STDOUT, b": 1}" + b" " * 200)]
    endpoint.answer += [(STATUS, json.dumps(SUCCESS).encode())]
    assert json.loads(run()) == {"a": 1}
    assert endpoint.got == b"\0ann@example.org\n"
    parts = urlsplit(endpoint.request)
    assert parts.path == "/api/v1/namespaces/hearth/pods/gateway-1/exec"
    query = parse_qsl(parts.query)
    assert [value for name, value in query if name == "command"] == ["/opt/hearth/bin/hearth-gateway", "person", "set", "-"]
    assert {("container", "gateway"), ("stdin", "true"), ("stdout", "true"), ("stderr", "true")} <= set(query)
    assert (endpoint.headers["authorization"], endpoint.headers["sec-websocket-protocol"]) == ("Bearer t", "v4.channel.k8s.io")
    assert "ann@" not in f"{endpoint.request} {endpoint.headers}" and "ann%40" not in endpoint.request


def test_a_command_that_fails_says_why(endpoint: Endpoint, run: Callable[..., str]) -> None:
    endpoint.answer = [(STDERR, b"hearth-gateway: the address "), (STDERR, b"is none\n"), (STATUS, json.dumps(ENDED_WITH_2).encode())]
    with pytest.raises(ExecError) as caught:
        run()
    assert (caught.value.code, caught.value.said) == (2, "hearth-gateway: the address is none")
    assert str(caught.value) == (
        "cannot run hearth-gateway in pod hearth/gateway-1: it ended with status 2: hearth-gateway: the address is none"
    )


def test_a_command_that_never_ran_is_not_one_that_failed(endpoint: Endpoint, run: Callable[..., str]) -> None:
    endpoint.answer = [(STATUS, json.dumps({"status": "Failure", "reason": "InternalError", "message": "no such file"}).encode())]
    with pytest.raises(ClusterError, match="no such file") as caught:
        run()
    assert not isinstance(caught.value, ExecError)


def test_an_end_without_a_last_word_is_no_success(endpoint: Endpoint, run: Callable[..., str]) -> None:
    endpoint.answer = [(STDOUT, b"{}")]
    with pytest.raises(ClusterError, match="the connection ended before the command did; run again"):
        run()


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (403, {"message": 'pods "gateway-1" is forbidden'}, 'HTTP 403: pods "gateway-1" is forbidden'),
        (404, {"message": 'pods "gateway-1" not found'}, 'HTTP 404: pods "gateway-1" not found'),
        (502, b"<html>", "HTTP 502: no WebSocket"),
    ],
)
def test_a_refusal_is_told_in_the_api_servers_words(
    endpoint: Endpoint, run: Callable[..., str], status: int, body: Any, message: str
) -> None:
    endpoint.refusal = (status, body)
    with pytest.raises(ClusterError, match=message) as caught:
        run()
    assert caught.value.status == status


def test_silence_ends_in_an_error(endpoint: Endpoint, run: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_exec, "ANSWER_TIMEOUT_S", 0.5)
    # The endpoint waits for a message that never comes, and says nothing.
    monkeypatch.setattr(_exec.websocket.WebSocket, "send_binary", lambda self, payload: None)
    with pytest.raises(ClusterError, match="the connection broke"):
        run()


def test_another_certificate_is_not_talked_to(endpoint: Endpoint) -> None:
    context, headers = ssl.create_default_context(), {"Authorization": "Bearer t"}
    server = SimpleNamespace(url=f"https://127.0.0.1:{endpoint.port}", context=context, headers=headers)
    with pytest.raises(ClusterError, match="the API server does not answer"):
        execute(SimpleNamespace(server=server), "hearth", "gateway-1", "gateway", ["true"])
    assert endpoint.headers == {}


def test_a_proxy_of_the_environment_is_not_asked(endpoint: Endpoint, run: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    endpoint.answer = [(STATUS, json.dumps(SUCCESS).encode())]
    assert run() == ""


def test_without_the_library_it_says_which_is_missing(run: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_exec, "websocket", None)
    with pytest.raises(ClusterError, match="websocket-client"):
        run()
