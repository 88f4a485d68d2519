"""No word of a conversation is left anywhere: not in a log, a row, a metric, an error, a header or a file.

Unique phrases go through every route, in success and in each failure; then every sink of the registry
(canary.py) is searched, in plain text and in common encodings. The registry itself is tested first: one leak
is planted in each sink in each form, and all must be found.
"""

from __future__ import annotations

import base64
import io
import json
import signal
import socket
import sqlite3
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from canary import NEVER_EMPTY, SINKS, Watched, search, search_all, written
from gateway_support import SCENARIOS, SECOND_SCENARIOS, TOKEN, Gateway, Mock, wait_for

from hearth_gateway.app import create_app
from hearth_gateway.config import parse_config
from hearth_gateway.telemetry.log import Log

QUESTION = "Zebra/Qu\xe4rtz+4711 asked"
SYSTEM = "Walrus/\xd6nyx+0815 rules"
ARGUMENT = "Lynx/T\xf6paz+2342 argues"
PHRASES = (QUESTION, SYSTEM, ARGUMENT)
PROXY = "proxy-token-0123456789abcdef"
ANN = "ann@canary.example"

TOOL_CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": json.dumps({"x": ARGUMENT})}}
SCHEMA = {"type": "object", "properties": {ARGUMENT: {"type": "string", "description": SYSTEM}}}
CHAT: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "tool_calls": [TOOL_CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": ARGUMENT},
        {"role": "user", "content": QUESTION},
    ],
    "tools": [{"type": "function", "function": {"name": "weather", "description": ARGUMENT, "parameters": SCHEMA}}],
    "user": QUESTION,
}
MESSAGES: dict[str, Any] = {
    "max_tokens": 500,
    "system": SYSTEM,
    "messages": [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "weather", "input": {"x": ARGUMENT}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": ARGUMENT}]},
        {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
    ],
    "tools": [{"name": "weather", "description": ARGUMENT, "input_schema": SCHEMA}],
    "metadata": {"user_id": QUESTION},
}


@pytest.fixture
def watched(tmp_path: Path, vendor: Mock, second_vendor: Mock) -> Iterator[Watched]:
    made = Watched(
        tmp_path, vendor.url, start=False, second_url=second_vendor.url,
        timeouts={"connect_s": 2, "first_token_s": 1, "idle_s": 1, "total_s": 8},
        server={"max_body_bytes": 100_000, "headers_after_s": 0.5}, tokens={"proxy": ["proxy"]},
    )  # fmt: skip
    (made.tokens / "proxy").write_text(PROXY)
    made.start()
    yield made
    made.stop()


# --- the registry ------------------------------------------------------------------------------------


@pytest.mark.parametrize("phrase", PHRASES)
def test_the_search_finds_each_form(phrase: str) -> None:
    leaks = written(phrase)
    assert len(leaks) == 17
    for name, leak in leaks.items():
        assert search(b"\x00\xff" + leak + b"\n", PHRASES), name
    assert search(b"before after", PHRASES) == []


def test_a_leak_in_any_sink_and_form_is_found(watched: Watched) -> None:
    watched.send("/v1/models", b"", {"x-api-key": TOKEN})
    assert search_all(watched, PHRASES) == []
    planted = 0
    for name, sink in SINKS.items():
        for form, leak in written(QUESTION).items():
            if not sink.carries(leak):
                continue
            with sink.plant(watched, leak):
                assert search(sink.read(watched), PHRASES), f"{name} hides a leak in the form {form}"
            assert search(sink.read(watched), PHRASES) == [], f"{name} was not left as it was found ({form})"
            planted += 1
    # 11 sinks hold any bytes, the other 3 what fits on a line of ASCII.
    assert planted == 11 * 17 + 3 * 11


def test_a_sink_that_cannot_be_read_is_no_clean_sink(watched: Watched) -> None:
    watched.stop()
    watched.database.unlink()
    for path in (watched.temp, watched.work):
        path.rmdir()
    watched.directory = watched.directory / "gone"
    for name in ("raw", "bodies", "headers"):
        delattr(watched, name)  # kept by the test itself; that something arrives there is NEVER_EMPTY's business
    for name, sink in SINKS.items():
        with pytest.raises((OSError, AttributeError, sqlite3.Error)):
            sink.read(watched)
            pytest.fail(f"{name} was read although it is not there")


# --- the traffic ---------------------------------------------------------------------------------------


def body(template: dict[str, Any], model: str, **changes: Any) -> bytes:
    return json.dumps({**template, "model": model, **changes}).encode()


def person() -> dict[str, str]:
    credential = base64.b64encode(f"{ANN}:{PROXY}".encode()).decode()
    return {"Authorization": f"Basic {credential}", "Sec-Fetch-Site": "same-origin"}


PROGRAM = {"x-api-key": TOKEN}


def every_outcome() -> Iterator[tuple[str, bytes, dict[str, str]]]:
    """Every outcome a vendor can bring about: both formats, both vendors, whole and streamed, alone and with a fallback."""
    for stream in (False, True):
        for scenario in SCENARIOS:
            yield "/v1/chat/completions", body(CHAT, f"x-{scenario}", stream=stream), PROGRAM
            yield "/v1/messages", body(MESSAGES, f"x-{scenario}", stream=stream), PROGRAM
            yield "/v1/chat/completions", body(CHAT, f"f-{scenario}", stream=stream), person()
        for scenario in SECOND_SCENARIOS:
            yield "/v1/chat/completions", body(CHAT, f"y-{scenario}", stream=stream), PROGRAM
    for scenario in ("", *(f"-{name}" for name in SECOND_SCENARIOS)):
        yield "/v1/embeddings", json.dumps({"model": f"embed{scenario}", "input": QUESTION}).encode(), PROGRAM
        yield "/v1/images/generations", json.dumps({"model": f"draw{scenario}", "prompt": QUESTION}).encode(), PROGRAM
    yield "/v1/chat/completions", body(CHAT, "demo"), person()


def every_mistake() -> Iterator[tuple[str, bytes, dict[str, str]]]:
    """Every way in which a request can be wrong, with the phrases in the wrong place."""
    quoted = urllib.parse.quote(QUESTION)
    chat = "/v1/chat/completions"
    yield chat, body(CHAT, QUESTION), PROGRAM
    yield chat, body(CHAT, "sonnet", **{QUESTION: 1, "n": 2}), PROGRAM
    yield chat, body(CHAT, "sonnet", stop=[QUESTION] * 9), PROGRAM
    yield chat, body(CHAT, "sonnet", tool_choice={"function": {"name": QUESTION}}), PROGRAM
    yield chat, body(CHAT, "sonnet", messages=[{"role": QUESTION, "content": "x"}]), PROGRAM
    yield chat, body(CHAT, "sonnet", messages=CHAT["messages"][:3]), PROGRAM
    yield chat, body(CHAT, "sonnet", messages=[{"role": "user", "content": [{"type": QUESTION}]}]), PROGRAM
    yield chat, body(CHAT, "sonnet", temperature=QUESTION, max_tokens=QUESTION, stream=QUESTION), PROGRAM
    yield chat, body(CHAT, "sonnet", response_format={"type": QUESTION}), PROGRAM
    yield chat, body(CHAT, "sonnet", tools=[{"type": QUESTION, "function": {"name": QUESTION}}]), PROGRAM
    picture = {"type": "image_url", "image_url": {"url": f"https://{quoted}/{quoted}"}}
    yield chat, body(CHAT, "sonnet", messages=[{"role": "user", "content": [picture]}]), PROGRAM
    yield chat, f'{{"model": "sonnet", "messages": "{QUESTION}'.encode(), PROGRAM
    yield chat, QUESTION.encode("utf-16"), PROGRAM
    yield chat, QUESTION.encode(), {**PROGRAM, "Content-Type": "text/plain"}
    yield chat, body(CHAT, "sonnet") + b" " * 200_000, PROGRAM
    yield chat, body(CHAT, "sonnet"), {"x-api-key": quoted}
    yield chat, body(CHAT, "sonnet"), {"Authorization": f"Bearer {quoted}"}
    yield chat, body(CHAT, "sonnet"), {"Authorization": "Basic " + base64.b64encode(QUESTION.encode()).decode()}
    yield chat, body(CHAT, "sonnet"), {**PROGRAM, "x-hearth-end-user": quoted}
    yield chat, body(CHAT, "sonnet"), {**person(), "Sec-Fetch-Site": quoted}
    yield chat, body(CHAT, "sonnet"), {**person(), "Origin": f"https://{quoted}"}
    yield "/v1/messages", body(MESSAGES, "sonnet", messages=[{"role": QUESTION, "content": QUESTION}]), PROGRAM
    yield "/v1/messages", body(MESSAGES, QUESTION, **{QUESTION: QUESTION}), PROGRAM
    yield "/v1/messages", body(MESSAGES, "sonnet", tool_choice={"type": "tool", "name": QUESTION}), PROGRAM
    yield "/v1/embeddings", json.dumps({"model": QUESTION, "input": QUESTION}).encode(), PROGRAM
    yield "/v1/embeddings", json.dumps({"model": "embed", "input": [[QUESTION]]}).encode(), PROGRAM
    yield "/v1/images/generations", json.dumps({"model": "draw", "prompt": [QUESTION], "size": QUESTION}).encode(), PROGRAM
    yield f"/v1/{quoted}?q={quoted}", b"", {**PROGRAM, "User-Agent": quoted, "Referer": f"http://x/{quoted}"}
    for path in (f"/static/{quoted}", f"/v1/models?q={quoted}", f"/v1/models/{quoted}", f"/api/me?{quoted}", f"/api/usage?days={quoted}"):
        yield path, b"", {**PROGRAM, "Cookie": quoted, "X-Request-Id": quoted, "X-Forwarded-Email": quoted}
    for path in ("/", "/api/transparency", "/openapi.json", "/readyz", "/healthz"):
        yield f"{path}?{quoted}", b"", PROGRAM


def hang_up(gateway: Gateway, data: bytes, whole: bool = True) -> None:
    """A client that leaves in the middle of the answer, or of its own request."""
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nx-api-key: {TOKEN}\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(data)}\r\n\r\n"
    with socket.create_connection(gateway.address) as sock:
        sock.sendall(head.encode() + (data if whole else data[: len(data) // 2]))
        if whole:
            sock.recv(100)


@pytest.mark.timeout(400)
def test_nothing_is_left_anywhere(watched: Watched, vendor: Mock) -> None:
    with ThreadPoolExecutor(8) as pool:
        statuses = set(pool.map(lambda request: watched.send(*request)[0], every_outcome()))
    assert {200, 400, 413, 429, 502, 503, 504} <= statuses
    for request in every_mistake():
        status, answer = watched.send(*request)
        assert status < 500, (request[0], answer)
    hang_up(watched, body(CHAT, "x-slow", stream=True))
    hang_up(watched, body(CHAT, "x-silent-after", stream=True))
    hang_up(watched, body(CHAT, "x-slow", stream=True), whole=False)
    with socket.create_connection(watched.address) as sock:
        sock.sendall(QUESTION.encode() + b"\r\n\r\n")
        sock.recv(100)

    # The phrases were really there: the vendor's echo holds the question.
    status, answer = watched.send("/v1/chat/completions", body(CHAT, "sonnet"), PROGRAM)
    assert status == 200 and QUESTION in json.loads(answer)["choices"][0]["message"]["content"]
    watched.settled_rows()
    outcomes = {row["outcome"] for row in watched.rows()}
    assert {"ok", "cancelled", "upstream_timeout", "upstream_protocol", "upstream_interrupted"} <= outcomes
    assert watched.events("unexpected-error") == []
    for name in NEVER_EMPTY:
        assert SINKS[name].read(watched), f"nothing to search in: {name}"
    assert search_all(watched, PHRASES) == []
    # People are known in the database and nowhere else; secrets are nowhere.
    secrets = (ANN, TOKEN, PROXY, "sk-ant-test")
    kept = {"rows", "database files", "open files"}
    assert [hit for name, sink in SINKS.items() if name not in kept for hit in search(sink.read(watched), secrets)] == []
    assert search(SINKS["rows"].read(watched), secrets[1:]) == []

    limits = Path(f"/proc/{watched.process.pid}/limits").read_text()
    assert [line.split()[4:6] for line in limits.splitlines() if line.startswith("Max core file size")] == [["1", "1"]]

    # The end of a process is where buffers are flushed.
    assert watched.terminate() == 0
    for name in ("standard error", "standard output", "rows", "database files", "temporary files", "working directory", "core dumps"):
        assert search(SINKS[name].read(watched), PHRASES) == [], name


@pytest.mark.parametrize("how", [signal.SIGSEGV, signal.SIGABRT])
def test_a_crash_leaves_nothing(watched: Watched, how: signal.Signals) -> None:
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(hang_up_after, watched, body(CHAT, "x-slow", stream=True))
        wait_for(lambda: watched.metric("hearth_open_requests") == 1, "the answer to begin")
        watched.process.send_signal(how)
        assert watched.wait() == -how
        reading.result(20)
    for name in ("standard error", "standard output", "rows", "database files", "temporary files", "working directory", "core dumps"):
        assert search(SINKS[name].read(watched), PHRASES) == [], name


def hang_up_after(gateway: Gateway, data: bytes) -> None:
    """Read until the gateway is gone."""
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nx-api-key: {TOKEN}\r\nContent-Type: application/json\r\n"
    with socket.create_connection(gateway.address, timeout=20) as sock:
        sock.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        try:
            while sock.recv(65536):
                pass
        except ConnectionResetError:
            pass


@pytest.mark.parametrize("where", ["chat.parse_chat_request", "answering._wants_fallback", "answering.json_body"])
def test_an_exception_that_quotes_the_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """A bug of ours, with the words in the exception: neither the answer nor the log repeats them."""
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "operator").write_text(TOKEN)
    log = io.StringIO()
    config = parse_config(f"""
        database_url: sqlite:///{tmp_path}/hearth.db
        tokens: {{dir: {tmp_path}/tokens}}
        providers: [{{name: demo, kind: demo}}]
        models: {{demo: [{{provider: demo, model: demo}}]}}
    """)
    gateway = create_app(config, log=Log(log))

    def bug(*_arguments: Any, **_options: Any) -> Any:
        try:
            raise KeyError(SYSTEM)
        except KeyError as error:
            raise ValueError(QUESTION) from error

    monkeypatch.setattr(f"hearth_gateway.api.{where}", bug)
    headers = {**PROGRAM, "Content-Type": "application/json"}
    response = gateway.app.test_client().post("/v1/chat/completions", data=body(CHAT, "demo"), headers=headers)
    gateway.close()
    assert response.status_code == 500
    assert "unexpected-error" in log.getvalue() and "ValueError" in log.getvalue()
    seen = response.get_data() + str(response.headers).encode() + log.getvalue().encode() + (tmp_path / "hearth.db").read_bytes()
    assert search(seen, PHRASES) == []
