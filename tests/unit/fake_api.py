"""The cluster in memory behind HTTPS, as an API server: for whole playbooks, which run in processes of their own.

Knows the kinds that the modules about people use, and speaks `v4.channel.k8s.io` for commands in pods.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import yaml
from ansible_collections.homelab.hearth.plugins.module_utils._exec import ExecError
from ansible_collections.homelab.hearth.plugins.module_utils._k8s import ClusterError

from tests.unit.fake_gateway import FakeGateway

KINDS = {
    "/api/v1": {"configmaps": "ConfigMap", "secrets": "Secret", "pods": "Pod", "namespaces": "Namespace"},
    "/apis/apps/v1": {"deployments": "Deployment"},
}
# RFC 6455: what a server adds to the client's key to show that it speaks WebSocket.
GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def frame(payload: bytes, opcode: int = 2) -> bytes:
    length = len(payload)
    head = bytes([0x80 | opcode, length]) if length < 126 else bytes([0x80 | opcode, 126]) + length.to_bytes(2, "big")
    return head + payload


def read_frame(stream: Any) -> bytes:
    first, second = stream.read(2)
    assert first == 0x82 and second & 0x80, "a client sends binary frames, masked"
    length = second & 0x7F
    if length == 126:
        length = int.from_bytes(stream.read(2), "big")
    mask, masked = stream.read(4), stream.read(length)
    return bytes(byte ^ mask[index % 4] for index, byte in enumerate(masked))


def accept_of(key: str) -> str:
    return base64.b64encode(hashlib.sha1((key + GUID).encode()).digest()).decode()  # noqa: S324  (the protocol's choice)


def certificate(directory: Path) -> tuple[Path, Path]:
    """Certificate and key of a server on 127.0.0.1."""
    key, pem = directory / "api.key", directory / "api.crt"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
               "-subj", "/CN=api", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(pem)]
    subprocess.run(command, check=True, capture_output=True)
    return pem, key


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeApi

    def log_message(self, *args: Any) -> None:
        pass

    def _say(self, status: int, content: Any) -> None:
        payload = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        self.server.requests.append(self.path)
        if parts.path in KINDS:
            names = KINDS[parts.path].items()
            return self._say(200, {"resources": [{"name": n, "kind": k, "namespaced": k != "Namespace"} for n, k in names]})
        prefix = next(prefix for prefix in KINDS if parts.path.startswith(prefix + "/"))
        steps, query = parts.path.removeprefix(prefix + "/").split("/"), parse_qs(parts.query)
        namespace = steps[1] if steps[0] == "namespaces" and len(steps) > 2 else None
        kind, *rest = steps[2:] if namespace else steps
        if rest[1:] == ["exec"]:
            return self._exec(str(namespace), rest[0], parts.query)
        cluster = self.server.gateway.cluster
        with self.server.lock:
            cluster.dry_run = "dryRun" in query
            try:
                if rest[1:] == ["log"]:
                    return self._say(200, "\n".join(cluster.logs(str(namespace), rest[0], "", False, 10)))
                return self._object(prefix.split("/", 2)[2], KINDS[prefix][kind], namespace, rest, query, body)
            except ClusterError as error:
                return self._say(error.status or 500, {"message": str(error)})

    def _object(self, version: str, kind: str, namespace: str | None, rest: list[str], query: dict[str, list[str]], body: bytes) -> None:
        cluster, definition = self.server.gateway.cluster, json.loads(body or b"{}")
        if self.command == "POST":
            return self._say(201, cluster.create(definition))
        if not rest:
            return self._say(200, {"items": cluster.find(version, kind, query.get("labelSelector", [""])[0], namespace)})
        found = cluster.get(version, kind, rest[0], namespace)
        if found is None:
            return self._say(404, {"message": f"{kind} {rest[0]} not found"})
        if self.command == "PUT":
            return self._say(200, cluster.replace(definition))
        if self.command == "PATCH":
            return self._say(200, cluster.merge(found, definition))
        if self.command == "DELETE":
            cluster.delete(found)
        return self._say(200, found)

    def _exec(self, namespace: str, pod: str, query: str) -> None:
        asked = parse_qsl(query, keep_blank_values=True)
        command = [value for name, value in asked if name == "command"]
        accept = accept_of(self.headers["Sec-WebSocket-Key"])
        self.wfile.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n")
        self.wfile.write(f"Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n".encode())
        line = read_frame(self.rfile)[1:].decode().rstrip("\n")
        said, status = b"\1", {"status": "Success"}
        try:
            with self.server.lock:
                said += self.server.gateway.execute(None, namespace, pod, dict(asked)["container"], command, line).encode()
        except ExecError as error:
            cause = {"reason": "ExitCode", "message": str(error.code)}
            said, status = b"\2" + error.said.encode(), {"status": "Failure", "details": {"causes": [cause]}}  # type: ignore[dict-item]
        self.wfile.write(frame(said) + frame(b"\3" + json.dumps(status).encode()) + frame((1000).to_bytes(2, "big"), opcode=8))
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.rfile.read(1)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815


class FakeApi(http.server.ThreadingHTTPServer):
    """Serves a house. `kubeconfig` is the file that leads to it."""

    daemon_threads = True

    def __init__(self, gateway: FakeGateway, directory: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.gateway, self.requests, self.lock = gateway, list[str](), threading.Lock()
        pem, key = certificate(directory)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem, key)
        # The handshake in the connection's own thread: whoever only looks whether somebody listens must not hold up the others.
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.kubeconfig = directory / "kubeconfig"
        cluster = {"server": f"https://127.0.0.1:{self.server_address[1]}", "certificate-authority": str(pem)}
        document = {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "c", "user": {"token": "t"}}],
        }
        self.kubeconfig.write_text(yaml.safe_dump(document))
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Somebody who connects and says nothing is no error."""
