"""The HTTP surface, over raw sockets: odd headers, odd bodies, odd addresses."""

from __future__ import annotations

import http.client
import json
import socket
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from gateway_support import TOKEN, Gateway, wait_for

HELLO = json.dumps({"model": "sonnet", "messages": [{"role": "user", "content": "Hi"}]})


def exchange(gateway: Gateway, *lines: str, body: str | bytes = HELLO, path: str = "/v1/chat/completions") -> Any:
    """Send exactly these header lines; return (status, headers, body)."""
    raw = body.encode() if isinstance(body, str) else body
    head = [f"POST {path} HTTP/1.1", "Host: gateway", "Content-Type: application/json", *lines]
    if not any(line.lower().startswith(("content-length", "transfer-encoding")) for line in lines):
        head.append(f"Content-Length: {len(raw)}")
    with socket.create_connection(gateway.address, timeout=20) as sock:
        sock.sendall("\r\n".join([*head, "", ""]).encode("latin-1") + raw)
        response = http.client.HTTPResponse(sock)
        response.begin()
        content = response.read()
    return response.status, response.headers, content


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ([f"Authorization: Bearer {TOKEN}"], 200),
        ([f"authorization: bearer {TOKEN}"], 200),
        ([f"X-Api-Key: {TOKEN}"], 200),
        ([], 401),
        (["Authorization: Bearer"], 401),
        (["Authorization: Basic b3BlcmF0b3I6eA=="], 401),
        ([f"Authorization: Bearer {TOKEN}x"], 401),
        ([f"Authorization: {TOKEN}"], 401),
        ([f"Authorization: Bearer {TOKEN}", f"X-Api-Key: {TOKEN}"], 400),
        (["Authorization: Bearer wrong", f"X-Api-Key: {TOKEN}"], 400),
        ([f"Authorization: Bearer {TOKEN}", "Authorization: Bearer wrong"], 400),
        ([f"X-Api-Key: {TOKEN}", "X-Api-Key: wrong"], 400),
        ([f"X-Api-Key: {TOKEN}, {TOKEN}"], 400),
        (["X-Api-Key: t\xf6ken"], 401),
        # Identity is never a plain header.
        (["X-Forwarded-Email: ann@example.org", "X_Forwarded_Email: ann@example.org"], 401),
        (["X-Forwarded-User: operator", "X-Hearth-End-User: ann@example.org"], 401),
    ],
)
def test_credentials_in_every_spelling(shared: Gateway, lines: list[str], status: int) -> None:
    got, headers, body = exchange(shared, *lines)
    assert got == status, body
    if status == 401:
        assert headers["WWW-Authenticate"] == "Bearer"
        assert json.loads(body)["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"model": "sonnet"}', b'"' + b"[" * 9000])
def test_bodies_that_are_no_request(shared: Gateway, body: bytes) -> None:
    status, _, content = exchange(shared, f"X-Api-Key: {TOKEN}", body=body)
    assert status == 400
    assert set(json.loads(content)["error"]) == {"message", "type", "param", "code"}


def test_deep_nesting_is_no_crash(shared: Gateway) -> None:
    deep = '{"model":"sonnet","messages":' + "[" * 100_000 + "]" * 100_000 + "}"
    assert exchange(shared, f"X-Api-Key: {TOKEN}", body=deep)[0] == 400


def test_chunked_bodies_are_read(shared: Gateway) -> None:
    raw = HELLO.encode()
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(raw[i : i + 7]), raw[i : i + 7]) for i in range(0, len(raw), 7))
    status, _, content = exchange(shared, f"X-Api-Key: {TOKEN}", "Transfer-Encoding: chunked", body=chunks + b"0\r\n\r\n")
    assert status == 200, content


def test_too_large(own: Any) -> None:
    gateway = own(server={"max_body_bytes": 5000})
    big = json.dumps({"model": "sonnet", "messages": [{"role": "user", "content": "x" * 6000}]})
    status, _, content = exchange(gateway, f"X-Api-Key: {TOKEN}", body=big)
    assert (status, json.loads(content)["error"]["code"]) == (413, "request_too_large")
    # Announced or not: a chunked body does not tell its length.
    raw = b"%x\r\n%s\r\n0\r\n\r\n" % (len(big), big.encode())
    status, _, content = exchange(gateway, f"X-Api-Key: {TOKEN}", "Transfer-Encoding: chunked", body=raw)
    assert (status, json.loads(content)["error"]["code"]) == (413, "request_too_large")


def test_ten_megabytes_go_through(shared: Gateway) -> None:
    """A large conversation, near what the vendor allows."""
    big = json.dumps({"model": "sonnet", "max_tokens": 5, "messages": [{"role": "user", "content": "word " * 2_000_000}]})
    status, _, content = exchange(shared, f"X-Api-Key: {TOKEN}", body=big)
    assert status == 200
    assert json.loads(content)["usage"]["prompt_tokens"] == 2_000_000


def test_wrong_content_type(shared: Gateway) -> None:
    connection = http.client.HTTPConnection(*shared.address, timeout=10)
    connection.request("POST", "/v1/chat/completions", HELLO, {"X-Api-Key": TOKEN, "Content-Type": "text/plain"})
    response = connection.getresponse()
    assert response.status == 415
    assert json.loads(response.read())["error"]["code"] == "unsupported_media_type"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200), ("GET", "/healthz", 200), ("GET", "/readyz", 200), ("GET", "/openapi.json", 200),
        ("HEAD", "/", 200), ("GET", "/static/app.js", 200), ("GET", "/static/../app.py", 404),
        ("GET", "/static/%2e%2e/__init__.py", 404), ("GET", "/metrics", 404),
        ("GET", "/v1/models/", 404), ("PUT", "/v1/models", 405), ("OPTIONS", "/v1/chat/completions", 405),
        ("TRACE", "/", 405), ("GET", "/%00", 404), ("GET", "/" + "x" * 5000, 404),
    ],
)  # fmt: skip
def test_addresses(shared: Gateway, method: str, path: str, status: int) -> None:
    connection = http.client.HTTPConnection(*shared.address, timeout=10)
    connection.request(method, path)
    response = connection.getresponse()
    body = response.read()
    assert response.status == status, body
    if status in (404, 405):
        assert json.loads(body)["error"]["type"] == "invalid_request_error"
    assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_the_page_is_locked_down(shared: Gateway) -> None:
    connection = http.client.HTTPConnection(*shared.address, timeout=10)
    connection.request("GET", "/")
    headers = connection.getresponse().headers
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert headers["Referrer-Policy"] == "no-referrer"


def test_streams_are_not_to_be_buffered(shared: Gateway) -> None:
    body = json.dumps({**json.loads(HELLO), "stream": True})
    status, headers, content = exchange(shared, f"X-Api-Key: {TOKEN}", body=body)
    assert status == 200 and content.endswith(b"data: [DONE]\n\n")
    assert headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert headers["Cache-Control"] == "no-cache, no-transform"
    assert headers["X-Accel-Buffering"] == "no"


def test_pieces_arrive_when_they_are_written(shared: Gateway) -> None:
    """The first word is there long before the last: nothing between vendor and client collects."""
    long = [{"role": "user", "content": "word " * 20}]
    body = json.dumps({"model": "x-slow", "stream": True, "messages": long})
    connection = http.client.HTTPConnection(*shared.address, timeout=20)
    started = time.monotonic()
    connection.request("POST", "/v1/chat/completions", body, {"X-Api-Key": TOKEN, "Content-Type": "application/json"})
    response = connection.getresponse()
    first = 0.0
    received = b""
    while piece := response.read1(65536):
        received += piece
        if not first and b'"content":"You"' in received:
            first = time.monotonic() - started
    whole = time.monotonic() - started
    # 4 s lie between them at the vendor; a busy machine may be late with the first.
    assert 0 < first < whole - 1


def test_metrics_are_on_their_own_port_only(shared: Gateway) -> None:
    assert "hearth_build_info{" in shared.metrics()
    host, _, port = shared.metrics_url.removeprefix("http://").removesuffix("/metrics").rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    connection.request("GET", "/v1/models")
    assert connection.getresponse().status == 404
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    connection.request("HEAD", "/metrics")
    answer = connection.getresponse()
    assert (answer.status, int(answer.headers["Content-Length"]) > 1000, answer.read()) == (200, True, b"")


def test_a_client_that_sends_nothing_holds_up_nobody(shared: Gateway) -> None:
    idle = [socket.create_connection(shared.address) for _ in range(50)]
    try:
        for sock in idle:
            sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-")
        assert exchange(shared, f"X-Api-Key: {TOKEN}")[0] == 200
    finally:
        for sock in idle:
            sock.close()


def test_slow_uploads_hold_up_nobody_else(own: Any) -> None:
    gateway = own(server={"max_open_requests": 20})
    (gateway.tokens / "other").write_text("other-token-0123456789")
    wait_for(lambda: gateway.metric("hearth_valid_tokens") == 2, "the other token")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    slow = [socket.create_connection(gateway.address, timeout=20) for _ in range(200)]
    for sock in slow:
        sock.sendall(head.encode())
    time.sleep(5)
    refused = 0
    for sock in slow:
        sock.settimeout(0.01)
        with suppress(TimeoutError):
            refused += b" 503 " in sock.recv(65536)
    assert refused == 195  # as many may be under way of one sender; ten of all
    with urllib.request.urlopen(f"{gateway.url}/healthz", timeout=5) as answer:
        assert answer.status == 200
    assert exchange(gateway, f"Authorization: Bearer {TOKEN}")[0] == 503
    assert exchange(gateway, "Authorization: Bearer other-token-0123456789")[0] == 200
    with urllib.request.urlopen(f"{gateway.url}/healthz", timeout=5) as answer:
        assert answer.status == 200
    for sock in slow:
        sock.close()
    wait_for(lambda: exchange(gateway, f"Authorization: Bearer {TOKEN}")[0] == 200, "the sender to be let in again")


def test_many_requests_at_once_are_no_slow_uploads(shared: Gateway) -> None:
    with ThreadPoolExecutor(60) as pool:
        found = list(pool.map(lambda _: exchange(shared, f"Authorization: Bearer {TOKEN}")[0], range(180)))
    assert set(found) == {200}


def large(model: str, **more: Any) -> bytes:
    messages = [{"role": "system", "content": "x" * 20_000_000}, {"role": "user", "content": "One two three four five"}]
    return json.dumps({"model": model, "messages": messages, **more}).encode()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (large("x-normal"), 200),
        (large("x-normal", stream=True), 200),
        (large("x-500"), 502),
        (large("nobody"), 404),
        (large("x-normal")[:-1] + b"!", 400),
    ],
    ids=["answered", "streamed", "vendor's fault", "no such model", "no JSON"],
)
def test_the_memory_of_large_requests_is_given_back_however_they_end(shared: Gateway, body: bytes, status: int) -> None:
    """Three of these may be in work at a time."""
    for _ in range(5):
        assert exchange(shared, f"X-Api-Key: {TOKEN}", body=body)[0] == status


def test_many_large_requests_at_once_do_not_use_up_the_memory(own: Any) -> None:
    gateway = own()
    body = large("x-slow")[:-1]

    def ask(_number: int) -> int | None:
        """The status, or None if the connection was closed while the body was being sent."""
        with suppress(OSError, http.client.HTTPException):
            status: int = exchange(gateway, f"X-Api-Key: {TOKEN}", body=body + b"}")[0]
            return status
        return None

    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(ask, range(10)))
    assert found.count(200) >= 3 and set(found) <= {200, 503, None}, found
    status = Path(f"/proc/{gateway.process.pid}/status").read_text()
    peak_kib = int(status.partition("VmHWM:")[2].split()[0])
    assert peak_kib < 450 * 1024  # the role gives the pod 512 MiB
    assert exchange(gateway, f"X-Api-Key: {TOKEN}")[0] == 200
