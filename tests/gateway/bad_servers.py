"""Servers that fail below HTTP, for what a mock vendor cannot do: each is a context manager with a ``url``."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest


class _Server:
    """Accepts connections and hands each to ``serve`` in a thread of its own; counts them."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.connections = 0
        self.closing = False
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.closing = True
        self.listener.close()

    def serve(self, connection: socket.socket) -> None:
        raise NotImplementedError

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            self.serve(connection)


def reset(connection: socket.socket) -> None:
    """Close with a TCP reset: no goodbye."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


class Gate(_Server):
    """Forwards to ``target`` (host:port) while it is ``up``, else resets each new connection.

    What comes back waits while ``passing`` is not set: an answer then takes as long as the test wants it to.
    """

    def __init__(self, target: str, up: bool = False) -> None:
        self.up = up
        self.passing = threading.Event()
        self.passing.set()
        host, _, port = target.removeprefix("http://").rpartition(":")
        self._target = (host, int(port))
        super().__init__()

    def serve(self, connection: socket.socket) -> None:
        if not self.up:
            reset(connection)
            return
        with socket.create_connection(self._target) as onward:
            back = threading.Thread(target=_pump, args=(onward, connection, self.passing), daemon=True)
            back.start()
            _pump(connection, onward)
            back.join()


def _pump(source: socket.socket, sink: socket.socket, passing: threading.Event | None = None) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            if passing is not None:
                passing.wait()
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


class Script(_Server):
    """Reads a request, then sends ``pieces``, ``pause_s`` apart, and closes."""

    def __init__(self, *pieces: bytes, pause_s: float = 0.0) -> None:
        self.pieces = pieces
        self.pause_s = pause_s
        super().__init__()

    def serve(self, connection: socket.socket) -> None:
        connection.recv(65536)
        for piece in self.pieces:
            if self.closing:
                return
            connection.sendall(piece)
            if self.pause_s:
                time.sleep(self.pause_s)


def dripping_head() -> Script:
    """Response headers that never end: a byte every tenth of a second."""
    return Script(*(bytes([byte]) for byte in b"HTTP/1.1 200 OK\r\nx-slow: " + b"." * 300), pause_s=0.1)


def event_stream(*events: bytes) -> Script:
    return Script(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n", *events)


@contextlib.contextmanager
def refusing() -> Iterator[str]:
    """The address of a port that nobody listens on. It stays bound, so that nobody else takes it."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{holder.getsockname()[1]}"


@contextlib.contextmanager
def not_accepting() -> Iterator[str]:
    """The address of a listener whose queue is full: the handshake of TCP never ends."""
    with contextlib.ExitStack() as held:
        listener = held.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = held.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate authority of our own and a certificate for 127.0.0.1 signed by it."""
    assert shutil.which("openssl"), "openssl is missing: run `make setup`"
    directory = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    ec = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *ec, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=test CA", "-days", "2",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign")  # fmt: skip
    openssl("req", *ec, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=vendor")
    (directory / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    openssl("x509", "-req", "-in", "server.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
            "-out", "server.crt", "-days", "2", "-extfile", "names")  # fmt: skip
    return directory


class Tls(_Server):
    """Finishes the TLS handshake with a certificate that only ``certificates/ca.crt`` vouches for, then says nothing."""

    def __init__(self, certificates: Path) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificates / "server.crt", certificates / "server.key")
        super().__init__()
        self.url = self.url.replace("http:", "https:")

    def serve(self, connection: socket.socket) -> None:
        with self._context.wrap_socket(connection, server_side=True) as secured:
            secured.recv(1)


class Deaf(_Server):
    """Says ``words`` and then holds the connection without ever reading from it. With ``certificates``, after TLS's handshake."""

    def __init__(self, words: bytes = b"", certificates: Path | None = None) -> None:
        self.words = words
        self._context: ssl.SSLContext | None = None
        if certificates is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(certificates / "server.crt", certificates / "server.key")
        super().__init__()
        if certificates is not None:
            self.url = self.url.replace("http:", "https:")

    def serve(self, connection: socket.socket) -> None:
        with self._context.wrap_socket(connection, server_side=True) if self._context is not None else connection as held:
            held.sendall(self.words)
            while not self.closing:
                time.sleep(0.05)
