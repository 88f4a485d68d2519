"""What the stand-ins for vendors share: an HTTP server that checks, answers, records, and fails on demand.

A vendor is a `Vendor`: it checks the request, makes the answer, and says how its errors look. The faults,
the framing and the record are here and the same for all. Standard library only; the real thing is none of it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import ssl
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol

MAX_BODY_BYTES = 32 * 1024 * 1024

Json = dict[str, Any]


class RefusedError(Exception):
    """What the vendor would answer instead of doing it. ``kind`` is the vendor's name for the error."""

    def __init__(self, message: str, status: int = 400, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


def need(condition: object, message: str) -> None:
    if not condition:
        raise RefusedError(message)


def words_in(value: Any, skip: tuple[str, ...] = ("type", "role", "data")) -> int:
    """One token per word: what a test can count itself."""
    if isinstance(value, str):
        return len(value.split())
    if isinstance(value, dict):
        return sum(words_in(item, skip) for key, item in value.items() if key not in skip)
    return sum(words_in(item, skip) for item in value) if isinstance(value, list) else 0


@dataclass(frozen=True)
class Frame:
    """One event of a stream: its name (empty for none), its data, and whether it carries answer text."""

    name: str
    data: str
    is_text: bool = False

    def encode(self) -> bytes:
        head = f"event: {self.name}\n" if self.name else ""
        return f"{head}data: {self.data}\n\n".encode()

    def encode_oddly(self, indented: str) -> bytes:
        """Legal SSE as nobody expects it."""
        head = f"event:{self.name}\r\n" if self.name else ""
        lines = (f"data:{' ' if number % 2 else ''}{line}\r\n" for number, line in enumerate(indented.split("\n")))
        return f"{head}id: 7\r\nretry: 10\r\n{''.join(lines)}\r\n".encode()


class Answer(Protocol):
    """The answer to one request, as a stream and as a document."""

    def frames(self) -> Iterable[Frame]: ...

    def document(self) -> Json: ...


class Vendor(Protocol):
    """One vendor's API. ``errors`` maps a scenario to status, kind and message of an error response."""

    name: str
    errors: dict[str, tuple[int, str, str]]
    heartbeat: bytes

    def check(self, path: str, headers: Any, raw: bytes, api_key: str) -> Json:
        """The parsed body. Raises ``RefusedError``, also for what this mock does not know."""

    def answer(self, path: str, body: Json, scenario: str) -> Answer | Json:
        """An ``Answer`` that can be streamed, or the document itself."""

    def error(self, status: int, kind: str, message: str) -> Json: ...

    def error_frame(self, kind: str, message: str) -> Frame: ...

    def last_user_text(self, body: Json) -> str: ...


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def __init__(
        self, vendor: Vendor, address: tuple[str, int], api_key: str, record: Path | None, tls: ssl.SSLContext | None, pace_s: float
    ) -> None:
        super().__init__(address, Handler)
        self.vendor = vendor
        self.api_key = api_key
        self.tls = tls
        self.pace_s = pace_s  # seconds after each piece of text
        self._record_file = record
        self._lock = threading.Lock()
        self._asked = 0  # POST requests begun

    def finish_request(self, request: Any, client_address: Any) -> None:
        # In the connection's own thread: a client that stalls in the handshake holds up nobody else.
        if self.tls is not None:
            request.settimeout(10)
            request = self.tls.wrap_socket(request, server_side=True)
        request.settimeout(120)
        super().finish_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave are part of the tests; anything else is a fault of this mock."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            print(f"mock: {type(error).__name__}: {error}", file=sys.stderr, flush=True)

    def begin(self) -> int:
        """The number of a request that begins, from 0."""
        with self._lock:
            self._asked += 1
            return self._asked - 1

    @property
    def asked(self) -> int:
        return self._asked

    def record(self, **fields: Any) -> None:
        if self._record_file is None:
            return
        with self._lock, self._record_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(fields) + "\n")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each small event waits 40 ms for the acknowledgement of the last
    server: Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        self._json(200 if self.path == "/healthz" else 404, {"mock": True, "asked": self.server.asked})

    def do_POST(self) -> None:
        vendor = self.server.vendor
        self._number, self._started = self.server.begin(), time.monotonic()
        self._outcome, self._sent = "complete", 0
        length = int(self.headers.get("content-length") or 0)
        if length > MAX_BODY_BYTES:
            self._error(413, "request_too_large", "Request exceeds the maximum size")
            return
        raw = self.rfile.read(length)
        body: Any = None
        scenario = "normal"
        try:
            try:
                body = _parsed(raw)
                scenario = self._scenario(body)
                body = vendor.check(self.path, self.headers, raw, self.server.api_key)
                self._answer(body, scenario)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise RefusedError(f"malformed request: {type(error).__name__}") from error
        except RefusedError as error:
            self._outcome = str(error)
            self._error(error.status, error.kind, str(error))
        except OSError:
            self._outcome = "client-left"
            self.close_connection = True
        finally:
            self.server.record(**self._metadata(body, scenario, len(raw)))

    def _scenario(self, body: Any) -> str:
        if not isinstance(body, dict) or not isinstance(body.get("model"), str):
            return "normal"
        return self.headers.get("x-mock-scenario") or body["model"].partition("+")[2] or "normal"

    def _metadata(self, body: Any, scenario: str, size: int) -> Json:
        """What was sent, never what was said: lengths, names and kinds only."""
        known = body if isinstance(body, dict) else {}
        messages = known.get("messages")
        messages = [message for message in messages if isinstance(message, dict)] if isinstance(messages, list) else []
        return {
            "number": self._number,  # in the order of the beginnings; the records are in that of the ends
            "scenario": scenario,
            "path": self.path,
            "outcome": self._outcome,
            "seconds": round(time.monotonic() - self._started, 3),
            "events_sent": self._sent,
            "body_bytes": size,
            "keys": sorted(known),
            "model": known.get("model"),
            "stream": known.get("stream"),
            "max_tokens": known.get("max_tokens"),
            "user": known.get("user") or (known.get("metadata") or {}).get("user_id"),
            "roles": [message.get("role") for message in messages],
            "blocks": [
                [block.get("type") for block in message["content"]] for message in messages if isinstance(message.get("content"), list)
            ],
            "tools": len(known.get("tools") or []),
            "headers": sorted(name.lower() for name in self.headers),
            "finished_at": time.time(),
        }

    # --- answers

    def _answer(self, body: Json, scenario: str) -> None:
        vendor = self.server.vendor
        if scenario == "close":
            self.close_connection = True
            return
        if scenario == "slow-headers":
            self._sleep_while_connected(10)
        if scenario in vendor.errors:
            status, kind, message = vendor.errors[scenario]
            self._error(status, kind, message, {"retry-after": "7"} if scenario == "429" else {})
            self._outcome = f"{status} {kind}: {message}"
            return
        if scenario == "quote":
            raise RefusedError(f"messages.0: cannot use {vendor.last_user_text(body)!r} here")
        if scenario == "html":
            self._send(502, "text/html", b"<html><body>Bad gateway</body></html>")
            return
        answer = vendor.answer(self.path, body, scenario)
        if isinstance(answer, dict):
            self._json(200, answer)
        elif not body.get("stream") or scenario == "json":
            self._json(200, answer.document())
        else:
            self._stream(answer, scenario)

    def _stream(self, answer: Answer, scenario: str) -> None:
        compress = scenario == "gzip"
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.send_header("request-id", "req_mock")
        if compress:
            self.send_header("content-encoding", "gzip")
        self.end_headers()
        if compress:
            self._chunk(gzip.compress(b"".join(frame.encode() for frame in answer.frames())))
        elif scenario == "garbage":
            self._chunk(b"\x00\xffthis is not an event stream\ndata: neither is this\n\n")
        elif scenario == "odd-sse":
            for piece in _odd(answer.frames()):
                self._chunk(piece)
        elif not self._frames(answer, scenario):
            return  # the body stays visibly incomplete
        self._chunk(b"")

    def _frames(self, answer: Answer, scenario: str) -> bool:
        """Send the events, with the scenario's fault when it is due; False if the connection is to break."""
        texts = 0
        for frame in answer.frames():
            if frame.is_text and texts in (0, 2):
                over = self._fault_before(scenario) if texts == 0 else self._fault_after(scenario)
                if over is not None:
                    return over
            texts += frame.is_text
            self._chunk(frame.encode())
            self._sent += 1
            if frame.is_text and (scenario == "slow" or self.server.pace_s):
                self._sleep_while_connected(0.2 if scenario == "slow" else self.server.pace_s)
            if scenario == "eof" and texts == 2:
                break
        return True

    def _fault_before(self, scenario: str) -> bool | None:
        """The fault due before any text: None for none, else whether the body still ends in order."""
        vendor = self.server.vendor
        if scenario in ("error-before", "overloaded"):
            kind = "overloaded_error" if scenario == "overloaded" else "api_error"
            self._chunk(vendor.error_frame(kind, "Mock failure").encode())
            return True
        if scenario == "silent":
            self._sleep_while_connected(60)
            return False
        if scenario in ("pings", "thinking-pings"):
            for _ in range(6):
                self._chunk(vendor.heartbeat)
                self._sleep_while_connected(0.5)
        if scenario == "big-event":
            self._chunk(b"data: " + b"x" * 5_000_000 + b"\n\n")
        return None

    def _fault_after(self, scenario: str) -> bool | None:
        """Like ``_fault_before``, for the faults due after two pieces of text."""
        if scenario == "error-after":
            self._chunk(self.server.vendor.error_frame("api_error", "Mock failure").encode())
            return True
        if scenario == "cut":
            self.close_connection = True
            return False
        if scenario == "silent-after":
            self._sleep_while_connected(60)
            return False
        if scenario == "garbage-after":
            self._chunk(b'data: {"type": "content_block_delta", "delta": {"ty\n\n')
            return True
        return None

    def _sleep_while_connected(self, seconds: float) -> None:
        """Sleep, but notice within 50 ms that the client has gone: the record has to say when."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.connection.settimeout(min(left, 0.05))
            try:
                if not self.connection.recv(1):
                    raise ConnectionResetError("the client left")
            except (TimeoutError, ssl.SSLWantReadError):
                continue
            finally:
                self.connection.settimeout(120)

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _json(self, status: int, value: Json, headers: dict[str, str] | None = None) -> None:
        self._send(status, "application/json", json.dumps(value).encode(), headers)

    def _error(self, status: int, kind: str, message: str, headers: dict[str, str] | None = None) -> None:
        self._json(status, self.server.vendor.error(status, kind, message), headers)

    def _send(self, status: int, content_type: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _parsed(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return None  # the vendor's own check says what is wrong


def _odd(frames: Iterable[Frame]) -> Iterable[bytes]:
    """CR LF, comments, multi-line data, no last blank line; cut every 7 bytes, which splits characters too."""
    data = b"\xef\xbb\xbf: a comment\r\n\r\n"
    for frame in frames:
        parsed = _parsed(frame.data.encode())
        data += frame.encode_oddly(frame.data if parsed is None else json.dumps(parsed, ensure_ascii=False, indent=1))
    data = data.removesuffix(b"\r\n\r\n")
    return (data[start : start + 7] for start in range(0, len(data), 7))


def serve(vendor: Vendor, description: str) -> None:
    """The command line of a mock: prints one line with its address, then serves until it is killed."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--bind", required=True, metavar="ADDRESS:PORT", help="port 0 chooses one")
    parser.add_argument("--api-key", required=True)
    parser.add_argument("--cert", help="PEM certificate chain; with --key the mock speaks HTTPS")
    parser.add_argument("--key", help="PEM private key")
    parser.add_argument("--record", type=Path, metavar="FILE")
    parser.add_argument("--pace-s", type=float, default=0.0, help="pause after each piece of text, as a vendor has")
    arguments = parser.parse_args()
    if bool(arguments.cert) != bool(arguments.key):
        parser.error("--cert and --key go together")
    tls = None
    if arguments.cert:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(arguments.cert, arguments.key)
    host, _, port = arguments.bind.rpartition(":")
    server = Server(vendor, (host.strip("[]"), int(port)), arguments.api_key, arguments.record, tls, arguments.pace_s)
    scheme = "https" if tls else "http"
    print(f"mock {vendor.name} (a stand-in) on {scheme}://{host}:{server.server_address[1]}", flush=True)
    server.serve_forever()
