"""No word of a conversation is left anywhere: not in a log, a row, a metric, an error or a file.

Unique phrases go through every route, in success and in each failure; then every place where something
could have been left is searched, in plain text and in common encodings. The search itself is tested first
by planting a phrase in each of those places.
"""

from __future__ import annotations

import base64
import json
import socket
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gateway_support import SCENARIOS, TOKEN, Gateway

QUESTION = "zebra-quartz-4711 asked this"
SYSTEM = "walrus-onyx-0815 is the rule"
ARGUMENT = "lynx-topaz-2342"
PHRASES = (QUESTION, SYSTEM, ARGUMENT)
# The mock's answer to QUESTION starts with this; the demo's with the other.
ANSWERS = (f"You said: {QUESTION}", "I am the demo provider")

WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": ARGUMENT, "parameters": {"type": "object"}},
}
CHAT: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": QUESTION},
        {
            "role": "assistant",
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": f'{{"x": "{ARGUMENT}"}}'}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": ARGUMENT},
        {"role": "user", "content": QUESTION},
    ],
    "tools": [WEATHER],
}


def encodings(phrase: str) -> Iterator[bytes]:
    """The forms in which a phrase could have been written down."""
    key = phrase.split(" ")[0]  # without spaces: those change in URLs and logs
    raw = key.encode()
    yield raw
    yield key.encode("utf-16-le")
    yield urllib.parse.quote(key).encode()
    yield raw.hex().encode()
    for shift in range(3):  # base64 depends on where in the text the phrase begins
        coded = base64.b64encode(b"\0" * shift + raw)
        yield coded[4 if shift else 0 : len(coded) - 4]


def found_in(data: bytes) -> list[str]:
    return [phrase for phrase in PHRASES if any(form in data for form in encodings(phrase))]


Sink = Callable[[Gateway], bytes]


def files(gateway: Gateway) -> bytes:
    """Every file below the gateway's directory: database, WAL, temporary files, whatever it made."""
    data = b""
    for path in sorted(gateway.directory.rglob("*")):
        if path.is_file():
            data += str(path).encode() + path.read_bytes()
    return data


def deleted_files(gateway: Gateway) -> bytes:
    """Files that were opened and removed, but are still there for the process."""
    data = b""
    for link in Path(f"/proc/{gateway.process.pid}/fd").iterdir():
        try:
            target = link.readlink()
            if str(target).endswith("(deleted)"):
                data += link.read_bytes()
        except OSError:
            continue  # closed meanwhile
    return data


SINKS: dict[str, Sink] = {
    "log": lambda gateway: "".join(gateway.log_lines).encode(),
    "metrics": lambda gateway: gateway.metrics().encode(),
    "rows": lambda gateway: json.dumps(gateway.rows()).encode(),
    "files": files,
    "deleted files": deleted_files,
    "arguments": lambda gateway: Path(f"/proc/{gateway.process.pid}/cmdline").read_bytes(),
    "environment": lambda gateway: Path(f"/proc/{gateway.process.pid}/environ").read_bytes(),
}


@pytest.mark.parametrize("form", range(7))
@pytest.mark.parametrize("phrase", PHRASES)
def test_the_search_finds_each_form(phrase: str, form: int) -> None:
    planted = list(encodings(phrase))[form]
    assert found_in(b"before " + planted + b" after") == [phrase]
    assert found_in(b"before after") == []


def test_the_search_finds_what_is_planted_in_each_place(own: Callable[..., Gateway]) -> None:
    gateway = own()
    for name, sink in SINKS.items():
        assert found_in(sink(gateway)) == [], name
    gateway.log_lines.append(QUESTION)
    (gateway.temp / "spool").write_text(SYSTEM)
    with sqlite3.connect(gateway.database) as connection:
        connection.execute("CREATE TABLE x (y TEXT)")
        connection.execute("INSERT INTO x VALUES (?)", (ARGUMENT,))
    assert found_in(SINKS["log"](gateway)) == [QUESTION]
    assert {SYSTEM, ARGUMENT} <= set(found_in(SINKS["files"](gateway)))
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys, tempfile; f = tempfile.TemporaryFile(); f.write(sys.argv[1].encode());"
         " f.flush(); print(flush=True); sys.stdin.read()", ARGUMENT],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={"HINT": SYSTEM},
    )  # fmt: skip
    assert child.stdout is not None
    child.stdout.readline()
    own_process, gateway.process = gateway.process, child
    assert found_in(SINKS["deleted files"](gateway)) == [ARGUMENT]
    assert found_in(SINKS["arguments"](gateway)) == [ARGUMENT]
    assert found_in(SINKS["environment"](gateway)) == [SYSTEM]
    child.communicate("")
    gateway.process = own_process


def send(gateway: Gateway, path: str, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, bytes, str]:
    """Status, body and headers; whatever the answer is."""
    request = urllib.request.Request(
        gateway.url + path,
        body or None,
        {"x-api-key": TOKEN, "Content-Type": "application/json", **(headers or {})},
    )
    try:
        with urllib.request.urlopen(request, timeout=40) as response:
            return response.status, response.read(), str(response.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read(), str(error.headers)


def chat(model: str, **changes: Any) -> bytes:
    return json.dumps({**CHAT, "model": model, **changes}).encode()


def test_nothing_is_left_anywhere(own: Callable[..., Gateway]) -> None:
    gateway = own(timeouts={"first_token_s": 1, "idle_s": 1}, server={"max_body_bytes": 100_000, "headers_after_s": 0.5})
    quoted = urllib.parse.quote(QUESTION)

    # Every outcome a vendor can bring about, whole and streamed.
    for scenario in SCENARIOS:
        for stream in (False, True):
            status, body, headers = send(gateway, "/v1/chat/completions", chat(f"x-{scenario}", stream=stream))
            assert found_in(headers.encode()) == []
            if status != 200:
                assert found_in(body) == [], f"{scenario} ({status}): {body!r}"
    assert send(gateway, "/v1/chat/completions", chat("demo"))[0] == 200

    # Every way in which a request can be wrong, with the phrases in the wrong place.
    wrong: list[tuple[str, bytes, dict[str, str]]] = [
        ("/v1/chat/completions", chat(QUESTION), {}),
        ("/v1/chat/completions", chat("sonnet", **{QUESTION: 1, "n": 2}), {}),
        ("/v1/chat/completions", chat("sonnet", stop=[QUESTION] * 9), {}),
        ("/v1/chat/completions", chat("sonnet", tool_choice={"function": {"name": QUESTION}}), {}),
        ("/v1/chat/completions", chat("sonnet", messages=[{"role": QUESTION, "content": "x"}]), {}),
        ("/v1/chat/completions", chat("sonnet", messages=[*CHAT["messages"][:3]]), {}),
        ("/v1/chat/completions", chat("sonnet", messages=[{"role": "user", "content": [{"type": QUESTION}]}]), {}),
        ("/v1/chat/completions", f'{{"model": "sonnet", "messages": "{QUESTION}'.encode(), {}),
        ("/v1/chat/completions", QUESTION.encode(), {"Content-Type": "text/plain"}),
        ("/v1/chat/completions", chat("sonnet") + b" " * 200_000, {}),
        ("/v1/chat/completions", chat("sonnet"), {"x-api-key": quoted}),
        ("/v1/chat/completions", chat("sonnet"), {"Authorization": f"Bearer {quoted}"}),
        (f"/v1/{quoted}?q={quoted}", b"", {"User-Agent": QUESTION, "Referer": f"http://x/{quoted}"}),
        (f"/static/{quoted}", b"", {}),
        (f"/v1/models?q={quoted}", b"", {"Cookie": QUESTION, "X-Request-Id": QUESTION}),
    ]
    for path, body, extra in wrong:
        status, answer, headers = send(gateway, path, body, extra)
        assert status != 500, path
        assert found_in(answer + headers.encode()) == [], f"{path} ({status}): {answer!r}"

    # A client that hangs up, and bytes that are no HTTP.
    for data in (chat("x-slow", stream=True), QUESTION.encode() + b"\r\n\r\n"):
        with socket.create_connection(gateway.address) as sock:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nx-api-key: {TOKEN}\r\nContent-Type: application/json\r\n"
            sock.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data if data[:1] == b"{" else data)
            sock.recv(100)

    answered = {row["outcome"] for row in gateway.rows()}
    assert {"ok", "upstream_timeout", "upstream_protocol", "upstream_interrupted"} <= answered
    for name, sink in SINKS.items():
        data = sink(gateway)
        if name in ("log", "metrics", "rows", "files"):
            assert data, f"nothing to search in: {name}"
        assert found_in(data) == [], name
        for text in ANSWERS:
            assert text.encode() not in data, name
    assert gateway.terminate() == 0
    assert found_in(SINKS["log"](gateway) + SINKS["files"](gateway)) == []
    assert gateway.events("unexpected-error") == []


def test_secrets_are_not_left_either(shared: Gateway) -> None:
    shared.client().models.list()
    seen = SINKS["log"](shared) + SINKS["metrics"](shared) + SINKS["rows"](shared)
    assert TOKEN.encode() not in seen and b"sk-ant-" not in seen
