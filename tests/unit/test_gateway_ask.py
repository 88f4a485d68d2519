"""Module gateway_ask against a small real HTTP server, plain and behind TLS with a client certificate."""

from __future__ import annotations

import base64
import datetime as dt
import http.server
import ipaddress
import json
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.homelab.hearth.plugins.module_utils import _ask, _kubeconfig
from ansible_collections.homelab.hearth.plugins.modules import gateway_ask
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Run = Callable[..., dict[str, Any]]
TOKEN = "token-of-the-test"
PROXY = "/api/v1/namespaces/hearth/services/gateway:8080/proxy"


def event(text: str) -> bytes:
    return b"data: " + json.dumps({"model": "sonnet", "choices": [{"index": 0, "delta": {"content": text}}]}).encode() + b"\n\n"


END = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


class Server(http.server.ThreadingHTTPServer):
    """Answers as told: `pieces` are written one by one, an Exception in them breaks the connection."""

    daemon_threads = True
    pieces: list[bytes | Exception]
    status = 200
    body = b""
    content_type = "text/event-stream"
    pause_s = 0.02
    models: dict[str, Any]
    prefix = ""
    seen: list[tuple[str, dict[str, str], Any]]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *args: Any) -> None:
        pass

    def plain(self, status: int, body: bytes, content_type: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.server.seen.append((self.path, dict(self.headers), None))
        if self.path == "/api/v1/namespaces/hearth/secrets/gateway-tokens":
            self.plain(200, json.dumps({"data": {"operator": base64.b64encode(TOKEN.encode()).decode()}}).encode())
        elif self.path == f"{self.server.prefix}/v1/models":
            self.plain(200, json.dumps(self.server.models).encode())
        else:
            status = {"kind": "Status", "message": "not found", "code": 404}
            self.plain(404, json.dumps(status).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, dict(self.headers), body))
        if self.headers.get("x-api-key") != TOKEN:
            self.plain(401, b'{"error": {"message": "Unknown token.", "code": "invalid_api_key"}}')
            return
        if self.server.status != 200:
            self.plain(self.server.status, self.server.body)
            return
        self.send_response(200)
        self.send_header("Content-Type", self.server.content_type)
        self.send_header("x-hearth-provider", "anthropic")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in self.server.pieces:
            if isinstance(piece, Exception):
                self.close_connection = True
                self.connection.shutdown(2)
                return
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            self.wfile.flush()
            time.sleep(self.server.pause_s)
        self.wfile.write(b"0\r\n\r\n")


def serve(context: ssl.SSLContext | None = None, prefix: str = "") -> Server:
    server = Server(("127.0.0.1", 0), Handler)
    server.pieces = [event("A hearth "), event("keeps "), event("people warm."), END]
    server.models = {"object": "list", "data": [{"id": "sonnet"}, {"id": "haiku"}]}
    server.seen, server.prefix = [], prefix
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture
def gateway() -> Iterator[Server]:
    server = serve()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def ask(gateway: Server, run_module: Run) -> Run:
    def run(**arguments: Any) -> dict[str, Any]:
        given = {"url": f"http://127.0.0.1:{gateway.server_port}", "token": TOKEN, "timeout_s": 5, **arguments}
        return run_module(gateway_ask.main, **given)

    return run


def test_an_answer_with_its_provider_model_and_times(ask: Run, gateway: Server) -> None:
    result = ask(question="What for?")
    assert result["answer"] == "A hearth keeps people warm."
    assert (result["model"], result["provider"]) == ("sonnet", "anthropic")
    assert (result["chunks"], result["arrivals"]) == (3, 3)
    assert 0 <= result["first_token_ms"] < result["total_ms"]
    assert not result["changed"]
    path, headers, body = gateway.seen[-1]
    assert path == "/v1/chat/completions"
    assert body == {"model": "sonnet", "stream": True, "messages": [{"role": "user", "content": "What for?"}]}
    assert "Authorization" not in headers


def test_a_model_that_is_named_is_asked(ask: Run, gateway: Server) -> None:
    ask(model="haiku")
    assert [(path, body["model"]) for path, _, body in gateway.seen if body] == [("/v1/chat/completions", "haiku")]


def test_check_mode_asks_nothing(ask: Run, gateway: Server) -> None:
    result = ask(check=True)
    assert (result["asked"], result["changed"]) == (False, False)
    assert gateway.seen == []


def test_the_token_is_not_in_the_result(ask: Run) -> None:
    assert TOKEN not in json.dumps(ask())


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([event("a") + event("b") + END], r"came in 1 piece\(s\), at least 2 are expected: something .* buffers it"),
        ([event("a"), event("b")], r"ended without \[DONE\] after 2 chunks"),
        ([event("a"), event("b"), OSError()], "broke after 2 chunks"),
        ([event("a"), b'data: {"error": {"message": "The provider stopped."}}\n\n'], "error after 1 chunks: The provider stopped."),
        ([event("a"), b"event: error\ndata: {}\n\n"], "with an error after 1 chunks"),
        ([event("a"), b"data: <html>\n\n"], "not JSON after 1 chunks"),
        ([b'data: {"choices":[{"delta":{},"finish_reason":"refusal"}]}\n\ndata: [DONE]\n\n'], r"without a word \(finish reason: refusal\)"),
        ([], r"ended without \[DONE\] after 0 chunks"),
    ],
)
def test_an_answer_that_is_not_whole_or_not_streamed_fails(ask: Run, gateway: Server, pieces: list[Any], message: str) -> None:
    gateway.pieces = pieces
    result = ask()
    assert result["failed"]
    assert re.search(message, result["msg"]), result["msg"]


def test_silence_fails_in_the_time_given(ask: Run, gateway: Server) -> None:
    gateway.pieces, gateway.pause_s = [event("a"), event("b"), END], 20
    started = time.monotonic()
    result = ask(timeout_s=0.5)
    assert time.monotonic() - started < 15
    assert result["failed"]
    assert "after 1 chunks" in result["msg"]


def test_a_stream_that_never_ends_fails_in_the_time_given(ask: Run, gateway: Server) -> None:
    gateway.pieces, gateway.pause_s = [event("a")] * 1000, 0.05
    result = ask(timeout_s=0.5)
    assert result["failed"]
    assert "not complete after 0.5 s" in result["msg"]


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (502, {"error": {"message": "x", "code": "upstream_auth"}}, "The model provider refused the API key: put a valid key into"),
        (503, {"error": {"message": "The gateway is shutting down.", "code": "shutting_down"}}, "HTTP 503: The gateway is shutting down."),
        (503, {"kind": "Status", "message": "no endpoints available"}, "No pod of the gateway is ready behind its Service"),
        (401, {"kind": "Status", "message": "Unauthorized"}, "The API server refused the kubeconfig's credentials"),
        (403, {"kind": "Status", "message": "forbidden"}, "The API server did not pass the question on"),
    ],
)
def test_a_refusal_names_who_refused_and_the_fix(ask: Run, gateway: Server, status: int, body: dict[str, Any], message: str) -> None:
    gateway.status, gateway.body = status, json.dumps(body).encode()
    result = ask()
    assert result["failed"]
    assert message in result["msg"]


def test_a_wrong_token_is_named(ask: Run) -> None:
    result = ask(token="wrong", model="sonnet")
    assert result["msg"] == "The gateway refused the token (HTTP 401: Unknown token.)."


def test_an_answer_that_is_no_stream_is_named(ask: Run, gateway: Server) -> None:
    gateway.content_type = "application/json"
    assert "not an event stream" in ask()["msg"]


def test_a_gateway_without_models_is_named(ask: Run, gateway: Server) -> None:
    gateway.models = {"data": []}
    assert "offers no model" in ask()["msg"]


def test_nobody_there_is_named(run_module: Run) -> None:
    result = run_module(gateway_ask.main, url="http://127.0.0.1:1", token=TOKEN, timeout_s=2)
    assert result["msg"] == "127.0.0.1:1 cannot be reached: Connection refused."


@pytest.mark.parametrize("content", [None, "\n"])
def test_a_token_file_that_is_missing_or_empty_is_named(ask: Run, tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content)
    result = ask(token=None, token_file=str(file))
    assert result["failed"]
    assert ("token is empty" if content else "cannot be read") in result["msg"]


# ---------------------------------------------------------------------------------------- through an API server


class Authority:
    """A certificate authority that lives as long as a test."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._make(self.key, "ca", self.key, None, [x509.BasicConstraints(ca=True, path_length=None)])

    def _make(self, key: Any, name: str, signer: Any, issuer: Any, extensions: list[Any]) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer or subject).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - dt.timedelta(minutes=5))
        builder = builder.not_valid_after(now + dt.timedelta(hours=1))
        for extension in extensions:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(signer, hashes.SHA256())

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def issue(self, name: str) -> tuple[str, str]:
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        certificate = self._make(key, name, self.key, self.certificate.subject, [names])
        private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()
        return certificate.public_bytes(serialization.Encoding.PEM).decode(), private


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def api(authority: Authority, tmp_path: Path) -> Iterator[Server]:
    certificate, key = authority.issue("server")
    pair = tmp_path / "server.pem"
    pair.write_text(certificate + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair)
    context.load_verify_locations(cadata=authority.pem)
    context.verify_mode = ssl.CERT_REQUIRED
    server = serve(context, PROXY)
    yield server
    server.shutdown()
    server.server_close()


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.fixture
def kubeconfig(api: Server, authority: Authority, tmp_path: Path) -> Path:
    certificate, key = authority.issue("admin")
    document = {
        "current-context": "hearth",
        "clusters": [
            {"name": "c", "cluster": {"server": f"https://127.0.0.1:{api.server_port}", "certificate-authority-data": b64(authority.pem)}}
        ],
        "users": [{"name": "u", "user": {"client-certificate-data": b64(certificate), "client-key-data": b64(key)}}],
        "contexts": [{"name": "hearth", "context": {"cluster": "c", "user": "u"}}],
    }
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(document))
    return path


def changed(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    document = yaml.safe_load(path.read_text())
    change(document)
    path.write_text(yaml.safe_dump(document))
    return path


def through(run_module: Run, kubeconfig: Path, **arguments: Any) -> dict[str, Any]:
    secret = {"name": "gateway-tokens", "key": "operator"}
    return run_module(gateway_ask.main, **{"kubeconfig": str(kubeconfig), "token_secret": secret, "timeout_s": 5, **arguments})


def test_through_the_service_proxy_with_the_token_of_a_secret(api: Server, kubeconfig: Path, run_module: Run) -> None:
    result = through(run_module, kubeconfig)
    assert result["answer"] == "A hearth keeps people warm."
    assert result["arrivals"] == 3
    assert [path for path, _, _ in api.seen][-1] == f"{PROXY}/v1/chat/completions"
    assert TOKEN not in json.dumps(result)


def test_files_beside_the_kubeconfig_count_too(api: Server, authority: Authority, kubeconfig: Path, run_module: Run) -> None:
    certificate, key = authority.issue("admin")
    for name, text in (("ca.crt", authority.pem), ("me.crt", certificate), ("me.key", key)):
        (kubeconfig.parent / name).write_text(text)

    def use_files(document: dict[str, Any]) -> None:
        cluster = document["clusters"][0]["cluster"]
        del cluster["certificate-authority-data"]
        cluster["certificate-authority"] = "ca.crt"
        document["users"][0]["user"] = {"client-certificate": "me.crt", "client-key": "me.key"}

    assert through(run_module, changed(kubeconfig, use_files))["chunks"] == 3


def plugin(*words: str, **more: Any) -> dict[str, Any]:
    return {"apiVersion": _kubeconfig.PLUGIN_VERSIONS[0], "command": words[0], "args": list(words[1:]), **more}


def fetched_by(spec: dict[str, Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda document: document["users"][0].update(user={"exec": spec})


def test_no_temporary_file_keeps_the_key(api: Server, kubeconfig: Path, run_module: Run, tmp_path: Path, monkeypatch: Any) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(_kubeconfig.tempfile, "tempdir", str(scratch))
    through(run_module, kubeconfig)
    assert list(scratch.iterdir()) == []


def test_another_authority_is_not_trusted(api: Server, kubeconfig: Path, run_module: Run) -> None:
    foreign = Authority().pem

    def change(document: dict[str, Any]) -> None:
        document["clusters"][0]["cluster"]["certificate-authority-data"] = b64(foreign)

    result = through(run_module, changed(kubeconfig, change))
    assert result["failed"]
    assert "is not trusted" in result["msg"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["users"][0].update(user={"auth-provider": {"name": "gcp"}}), "neither a client certificate nor a token"),
        (fetched_by({"command": "aws"}), "a plugin of version None; known are client.authentication"),
        (fetched_by(plugin("no-such-command", installHint="Get it\nthere.")), "cannot be run (No such file or directory): Get it there."),
        (fetched_by(plugin("true", interactiveMode="Always")), "wants to ask somebody"),
        (fetched_by(plugin("sh", "-c", "echo secret; echo log in first >&2; exit 3")), "failed: log in first"),
        (fetched_by(plugin("echo", '{"kind": "secret"}')), "answers with something that is no ExecCredential"),
        (fetched_by(plugin("cat")), "answers with something that is no ExecCredential"),
        (lambda d: d.update({"current-context": "other"}), "no context named 'other'"),
        (lambda d: d["clusters"][0]["cluster"].update(server="http://127.0.0.1:1"), "names no https server"),
        (lambda d: d["users"][0]["user"].update({"client-key-data": "%%"}), "not base64"),
        (lambda d: d["users"][0]["user"].update({"client-key-data": b64("none")}), "cannot be used"),
    ],
)
def test_a_kubeconfig_that_does_not_do_is_named(
    api: Server, kubeconfig: Path, run_module: Run, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    result = through(run_module, changed(kubeconfig, change))
    assert result["failed"]
    assert message in result["msg"]
    assert "secret" not in result["msg"]


# What a plugin of a cloud does: it looks at what it is told, and prints what lies beside it.
PLUGIN = """#!/usr/bin/env python3
import json, os, pathlib, sys
asked = json.loads(os.environ["KUBERNETES_EXEC_INFO"])
here = pathlib.Path(__file__).parent
(here / "asked.json").write_text(json.dumps({"info": asked, "arguments": sys.argv[1:], "region": os.environ["REGION"]}))
print((here / "answer.json").read_text())
"""


@pytest.mark.parametrize("version", _kubeconfig.PLUGIN_VERSIONS)
def test_a_plugin_gives_the_certificate(api: Server, authority: Authority, kubeconfig: Path, run_module: Run, version: str) -> None:
    script = kubeconfig.parent / "bin" / "plugin"
    script.parent.mkdir()
    script.write_text(PLUGIN)
    script.chmod(0o700)
    certificate, key = authority.issue("admin")
    answer = {"kind": "ExecCredential", "apiVersion": version, "status": {"clientCertificateData": certificate, "clientKeyData": key}}
    (script.parent / "answer.json").write_text(json.dumps(answer))
    env = [{"name": "REGION", "value": "eu-central-1"}]
    user = plugin("bin/plugin", "get-token", apiVersion=version, env=env, provideClusterInfo=True)
    path = changed(kubeconfig, fetched_by(user))
    assert through(run_module, path)["chunks"] == 3
    asked = json.loads((script.parent / "asked.json").read_text())
    assert (asked["arguments"], asked["region"]) == (["get-token"], "eu-central-1")
    assert (asked["info"]["apiVersion"], asked["info"]["kind"]) == (version, "ExecCredential")
    assert asked["info"]["spec"]["interactive"] is False
    assert asked["info"]["spec"]["cluster"]["server"] == f"https://127.0.0.1:{api.server_port}"


def test_a_plugin_gives_a_token(kubeconfig: Path) -> None:
    answer = {"kind": "ExecCredential", "apiVersion": _kubeconfig.PLUGIN_VERSIONS[0], "status": {"token": "t0ken"}}
    path = changed(kubeconfig, fetched_by(plugin("echo", json.dumps(answer))))
    assert _kubeconfig.read_kubeconfig(path, yaml.safe_load).headers == {"Authorization": "Bearer t0ken"}


def test_a_token_in_the_file_comes_before_a_plugin(kubeconfig: Path) -> None:
    path = changed(kubeconfig, lambda d: d["users"][0].update(user={"token": "mine", "exec": plugin("false")}))
    assert _kubeconfig.read_kubeconfig(path, yaml.safe_load).headers == {"Authorization": "Bearer mine"}


@pytest.mark.parametrize(("text", "message"), [(None, "no kubeconfig at"), ("[1, 2]", "is not a kubeconfig"), ("a: [", "cannot be read")])
def test_a_file_that_is_no_kubeconfig_is_named(run_module: Run, tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "kubeconfig"
    if text is not None:
        path.write_text(text)
    result = through(run_module, path)
    assert result["failed"]
    assert message in result["msg"]


@pytest.mark.parametrize(
    ("secret", "message"), [({"name": "none", "key": "operator"}, "cannot be read"), ({"name": "gateway-tokens", "key": "x"}, "no key 'x'")]
)
def test_a_missing_secret_or_key_is_named(api: Server, kubeconfig: Path, run_module: Run, secret: dict[str, str], message: str) -> None:
    result = through(run_module, kubeconfig, token_secret=secret)
    assert result["failed"]
    assert message in result["msg"]


# ---------------------------------------------------------------------------------------- events


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_come_out_whole_however_the_bytes_are_cut(size: int) -> None:
    raw = b": comment\r\ndata: one\r\n\r\nevent: error\ndata: two\ndata: lines\n\ndata:three\r\rid: 4\ndata: \xed\x95\x9c\n\n"
    pieces = iter([raw[i : i + size] for i in range(0, len(raw), size)])
    assert list(_ask.events(pieces)) == [("message", "one"), ("error", "two\nlines"), ("message", "three"), ("message", "한")]
