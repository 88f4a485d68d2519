"""The other end of the chain: a server that tells what reached it, byte for byte, and misbehaves on demand.

`/…`                     200 and a document: method, target, headers in order and as spelled, size and hash of the body
`/stream?…`              `chunks` times a line with the time it was sent at, `every_s` apart, as `type`; ends well
`/die?…`                 the same, but the connection is closed in the middle of the body
`/late?seconds=`         the document, after so long
`/sized?…`               a stream with Content-Length
`/ws`                    takes a websocket upgrade and sends the document in one text frame, then echoes bytes
"""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

BLOCK = 64 * 1024
WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Upstream

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def answer(self) -> None:
        # self.path would have its leading slashes folded.
        target = self.requestline.split(" ")[1]
        url = urlsplit(target)
        options = dict(parse_qsl(url.query))
        body = self._body()
        seen = {
            "method": self.command,
            "target": target,
            "headers": self.headers.items(),
            "size": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
        }
        with self.server.lock:
            self.server.requests.append(seen)
        match url.path:
            case "/stream" | "/die" | "/sized":
                self._stream(url.path, options)
            case "/ws":
                self._websocket(seen)
            case "/late":
                time.sleep(float(options["seconds"]))
                self._document(seen)
            case _:
                self._document(seen)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = do_OPTIONS = answer  # noqa: N815  (http.server's names)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _document(self, seen: dict[str, Any]) -> None:
        data = json.dumps(seen).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Gap-Auth", "upstream@home.test") if "x-say-gap-auth" in self.headers else None
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _stream(self, path: str, options: dict[str, str]) -> None:
        count, every_s = int(options.get("chunks", 10)), float(options.get("every_s", 0.05))
        line_size = 32
        self.send_response(200)
        self.send_header("Content-Type", options.get("type", "text/event-stream"))
        if path == "/sized":
            self.send_header("Content-Length", str(count * line_size))
        else:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for _ in range(count):
                line = f"{time.time():.6f}".ljust(line_size - 1) + "\n"
                self.wfile.write((line if path == "/sized" else f"{line_size:x}\r\n{line}\r\n").encode())
                self._wait(every_s)
        except (OSError, EOFError):
            self.server.left.append(time.time())
            self.close_connection = True
            return
        if path == "/stream":
            self.wfile.write(b"0\r\n\r\n")
        elif path == "/die":
            self.close_connection = True

    def _wait(self, seconds: float) -> None:
        """Sleep, and raise EOFError when the other side goes away meanwhile."""
        self.connection.settimeout(seconds)
        try:
            if not self.connection.recv(1):
                raise EOFError
        except TimeoutError:
            pass
        finally:
            self.connection.settimeout(None)

    def _websocket(self, seen: dict[str, Any]) -> None:
        key = self.headers.get("Sec-WebSocket-Key", "").encode()
        accept = base64.b64encode(hashlib.sha1(key + WEBSOCKET_GUID, usedforsecurity=False).digest()).decode()
        self.send_response(101)
        for name, value in (("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", accept)):
            self.send_header(name, value)
        self.end_headers()
        data = json.dumps(seen).encode()
        self.wfile.write(b"\x81\x7e" + len(data).to_bytes(2, "big") + data)
        while block := self.connection.recv(BLOCK):
            self.wfile.write(block)
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the name is the parent's)
        """Quiet: what was asked stands in `requests`."""


class Upstream(ThreadingHTTPServer):
    """A running upstream in a thread; `requests` is what reached it, `left` when clients of its streams went away."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, host: str = "127.0.0.1") -> None:
        super().__init__((host, 0), Handler)
        self.lock = threading.Lock()
        self.requests: list[dict[str, Any]] = []
        self.left: list[float] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle is what some tests do."""
