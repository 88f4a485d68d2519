"""The floor: the parts that the gateway is made of, with nothing of the gateway in them.

    python tests/bench/gateway/floor.py VENDOR_CHAT_URL DATABASE_FILE

granian, started as the gateway starts it; one route of Flask; orjson; one durable row in SQLite before the vendor is called;
one request to the vendor on a connection that is kept, whose stream is put together. There is no identity, no check of
the request, no limit, no price, no settlement, no metric, no log, no time limit and no second provider, and whatever is
unusual ends it. What it adds to the direct way on some machine, no gateway made of these parts can undercut there.
"""

from __future__ import annotations

import gc
import secrets
import socket
import sqlite3
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import orjson
from flask import Flask, Response, request

from hearth_gateway import server
from hearth_gateway.config import ServerConfig

# Longer than any run of the bench.
_LIFE_S = 24 * 3600


class Intents:
    """One row a request, on disk when ``write`` returns; one writer at a time, as SQLite has it."""

    def __init__(self, path: str) -> None:
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("CREATE TABLE intents (id INTEGER PRIMARY KEY, request TEXT NOT NULL)")

    def write(self) -> None:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.execute("INSERT INTO intents (request) VALUES (?)", (secrets.token_hex(12),))
            self._connection.execute("COMMIT")


class Vendor:
    """OpenAI's chat completions at one address."""

    def __init__(self, url: str) -> None:
        where = urlsplit(url)
        self._address = (where.hostname, where.port)
        self._head = f"POST {where.path} HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Type: application/json\r\nContent-Length: ".encode()
        self._idle: list[socket.socket] = []

    def ask(self, messages: Any) -> tuple[str, Any]:
        """The text of the answer and the vendor's own count."""
        body = orjson.dumps(
            {"model": "mock", "messages": messages, "max_tokens": 1000, "stream": True, "stream_options": {"include_usage": True}}
        )
        connection = self._connection()
        connection.sendall(b"%b%d\r\n\r\n%b" % (self._head, len(body), body))
        received = b""
        while not received.endswith(b"\r\n0\r\n\r\n"):
            received += connection.recv(65536)
        self._idle.append(connection)
        texts, usage = [], None
        for event in _unchunked(received.partition(b"\r\n\r\n")[2]).split(b"\n\n"):
            if event.startswith(b"data: {"):
                piece = orjson.loads(event[6:])
                usage = piece.get("usage") or usage
                if piece["choices"]:
                    texts.append(piece["choices"][0]["delta"].get("content") or "")
        return "".join(texts), usage

    def _connection(self) -> socket.socket:
        try:
            return self._idle.pop()
        except IndexError:
            connection = socket.create_connection(self._address)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection


def _unchunked(body: bytes) -> bytes:
    pieces = []
    while body:
        size, _, body = body.partition(b"\r\n")
        pieces.append(body[: int(size, 16)])
        body = body[int(size, 16) + 2 :]
    return b"".join(pieces)


def application(vendor: Vendor, intents: Intents) -> Flask:
    app = Flask("floor")

    @app.post("/v1/chat/completions")
    def chat() -> Response:
        asked = orjson.loads(request.get_data())
        intents.write()
        text, usage = vendor.ask(asked["messages"])
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        answer = {"id": "floor", "object": "chat.completion", "created": 0, "model": asked["model"], "choices": [choice], "usage": usage}
        return Response(orjson.dumps(answer), content_type="application/json")

    return app


def main(vendor_url: str, database: str) -> None:
    app = application(Vendor(vendor_url), Intents(database))
    listening = server.listen("127.0.0.1:0", "floor")
    server._take_turns()
    gc.collect()
    gc.freeze()
    gateway: Any = SimpleNamespace(app=app, log=None)
    server._start_worker(gateway, ServerConfig(), listening, server._native.WorkerSignal())
    print(f"floor on http://{server.address_of(listening)}", flush=True)
    time.sleep(_LIFE_S)


if __name__ == "__main__":
    main(*sys.argv[1:])
