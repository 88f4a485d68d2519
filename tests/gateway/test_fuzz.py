"""Random and mutated requests: whatever is sent, no 5xx is of our making, nothing crashes, nothing is left open.

`HEARTH_FUZZ=100000` sets how many requests go through the application in process (default 5,000); a twentieth
of that goes over real sockets. `HEARTH_FUZZ_SEED` repeats a run; the seed is part of every failure.
"""

from __future__ import annotations

import io
import json
import os
import random
import select
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fuzzing import CORPUS, HOUSE, PROXY, TOKEN, FuzzVendor, HastyClock, Mutator, Request, run
from gateway_support import Gateway, Mock, wait_for

from hearth_gateway.app import Gateway as Application
from hearth_gateway.app import create_app
from hearth_gateway.config import parse_config
from hearth_gateway.errors import Kind, Owner
from hearth_gateway.telemetry.log import Log

REQUESTS = int(os.environ.get("HEARTH_FUZZ", "5000"))
SEED = int(os.environ.get("HEARTH_FUZZ_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
# Whoever fails on our side names the kind; these are the ones that are somebody else's fault.
UPSTREAM = {kind.spec.code for kind in Kind if kind.spec.owner is Owner.PROVIDER}


@pytest.fixture
def log() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def application(tmp_path: Path, log: io.StringIO) -> Iterator[Application]:
    (tmp_path / "tokens").mkdir()
    for name, token in (("operator", TOKEN), ("house", HOUSE), ("proxy", PROXY)):
        (tmp_path / "tokens" / name).write_text(token)
    (tmp_path / "key").write_text("sk-ant-0123456789abcdef")
    config = parse_config(f"""
        server: {{max_body_bytes: 200000}}
        database_url: sqlite:///{tmp_path}/hearth.db
        tokens: {{dir: {tmp_path}/tokens, proxy: [proxy], end_users: [house]}}
        providers:
          - {{name: anthropic, kind: anthropic, base_url: "https://anthropic.invalid", api_key_file: {tmp_path}/key}}
          - {{name: openai, kind: openai, base_url: "https://openai.invalid", api_key_file: {tmp_path}/key}}
        models:
          sonnet: [{{provider: anthropic, model: claude-sonnet-4-5-20250929}}, {{provider: openai, model: b, max_output_tokens: 999}}]
          other: [{{provider: openai, model: b, max_output_tokens: 999}}]
        embedding_models: {{embed: [{{provider: openai, model: e}}]}}
        image_models: {{draw: [{{provider: openai, model: d}}]}}
        breaker: {{failures: 100, open_s: 0.01, max_open_s: 0.01}}
    """)
    gateway = create_app(config, clock=HastyClock(), transport=FuzzVendor, log=Log(log))
    yield gateway
    assert gateway.close() == 0


def code_of(body: bytes) -> str:
    """The error's code in OpenAI's format, its type in Anthropic's."""
    error = json.loads(body)["error"]
    return str(error.get("code") or error["type"])


def fuzz(application: Application, log: io.StringIO, count: int, seed: int) -> Counter[int]:
    chance = random.Random(seed)
    mutator = Mutator(chance)
    statuses: Counter[int] = Counter()
    for number in range(count):
        request = mutator.request()
        where = f"seed {seed}, request {number}: {request}"
        try:
            status, body = run(application.app, request)
        except Exception as error:
            pytest.fail(f"{type(error).__name__} came out of the application; {where}")
        statuses[status] += 1
        if status >= 500 and request.path != "/readyz":
            assert FuzzVendor.chance is not None, f"{status} although the vendor was right: {body!r}; {where}"
            assert status != 500 and (code_of(body) in UPSTREAM or request.path.startswith("/v1/messages")), f"{status}: {body!r}; {where}"
        if "unexpected-error" in log.getvalue():
            pytest.fail(f"an exception was caught: {log.getvalue()[-1500:]}; {where}")
        log.seek(0)
        log.truncate()
    return statuses


@pytest.mark.timeout(3000)
def test_any_request_with_a_vendor_that_is_right(application: Application, log: io.StringIO) -> None:
    FuzzVendor.chance = None
    statuses = fuzz(application, log, REQUESTS // 2, SEED)
    print(f"seed {SEED}: {dict(sorted(statuses.items()))}")
    # The requests are not all refused at the door: a good part gets to the vendor and back.
    assert statuses[200] > REQUESTS // 20 and statuses[400] > REQUESTS // 20
    assert {401, 403, 404, 405, 413, 415} - set(statuses) == set() or REQUESTS < 50_000
    assert application.lifecycle.open == 0


@pytest.mark.timeout(3000)
def test_any_request_with_a_vendor_that_sends_garbage(application: Application, log: io.StringIO) -> None:
    FuzzVendor.chance = random.Random(SEED + 1)
    try:
        statuses = fuzz(application, log, REQUESTS - REQUESTS // 2, SEED + 2)
    finally:
        FuzzVendor.chance = None
    print(f"seed {SEED}: {dict(sorted(statuses.items()))}")
    # Some of each were met; how many is chance (24 of 5,000 were seen).
    assert statuses[200] > REQUESTS // 40 and statuses[502] > REQUESTS // 1000
    assert application.lifecycle.open == 0


def test_what_is_sent_unchanged_is_right(application: Application) -> None:
    """Or the fuzz would only try the door."""
    FuzzVendor.chance = None
    for path, value in CORPUS:
        headers = (("x-api-key", TOKEN), ("Content-Type", "application/json"))
        status, body = run(
            application.app, Request("GET" if value is None else "POST", path, headers, json.dumps(value).encode() if value else b"")
        )
        assert status == 200, (path, body)


def nested(levels: int) -> str:
    return '{"a":' * levels + "1" + "}" * levels


def deep_requests(model: str, levels: int) -> list[tuple[str, str]]:
    """Requests with a value of that many levels, in all places that are carried verbatim."""
    value = nested(levels)
    chat, message = f'"model":"{model}"', f'"model":"{model}","max_tokens":9'
    hi = '{"role":"user","content":"Hi"}'
    cached = f'{{"role":"user","content":[{{"type":"text","text":"Hi","cache_control":{value}}}]}}'
    used = f'{{"role":"assistant","content":[{{"type":"tool_use","id":"c","name":"t","input":{value}}}]}}'
    result = '{"role":"user","content":[{"type":"tool_result","tool_use_id":"c","content":"r"}]}'
    return [
        ("/v1/chat/completions", f'{{{chat},"messages":[{cached}]}}'),
        (
            "/v1/chat/completions",
            f'{{{chat},"messages":[{hi}],"tools":[{{"type":"function","function":{{"name":"t","parameters":{value}}}}}]}}',
        ),
        (
            "/v1/chat/completions",
            f'{{{chat},"messages":[{hi}],"response_format":{{"type":"json_schema","json_schema":{{"name":"x","schema":{value}}}}}}}',
        ),
        ("/v1/messages", f'{{{message},"messages":[{cached}]}}'),
        ("/v1/messages", f'{{{message},"messages":[{hi},{used},{result}]}}'),
        ("/v1/messages", f'{{{message},"messages":[{hi}],"tools":[{{"name":"t","input_schema":{value}}}]}}'),
        ("/v1/messages", f'{{{message},"messages":[{hi}],"output_config":{{"format":{{"type":"json_schema","schema":{value}}}}}}}'),
    ]


def post(application: Application, path: str, body: str) -> tuple[int, bytes]:
    headers = (("x-api-key", TOKEN), ("Content-Type", "application/json"))
    return run(application.app, Request("POST", path, headers, body.encode()))


@pytest.mark.parametrize("model", ["sonnet", "other"])
def test_what_is_nested_too_deeply_is_refused_with_its_reason(application: Application, model: str) -> None:
    """orjson reads deeper than it writes: such a request was ours to refuse and ended in a 500."""
    FuzzVendor.chance = None
    for path, body in deep_requests(model, 190):
        assert post(application, path, body)[0] == 200, body[:200]
    for levels in (201, 240, 260, 1000):
        for path, body in deep_requests(model, levels):
            status, answer = post(application, path, body)
            assert status == 400 and "nested too deeply" in json.loads(answer)["error"]["message"], (levels, body[:200], answer)
    for path in ("/v1/embeddings", "/v1/images/generations"):
        assert post(application, path, f'{{"model":"embed","prompt":"x","input":{nested(260)}}}')[0] == 400


@pytest.mark.parametrize("model", ["sonnet", "other"])
@pytest.mark.parametrize("levels", [240, 260, 1000, 1100])
def test_arguments_nested_too_deeply_end_no_conversation(application: Application, model: str, levels: int) -> None:
    """A model made them, as it may make broken JSON: they are carried as text."""
    FuzzVendor.chance = None
    call = {"id": "c", "type": "function", "function": {"name": "t", "arguments": nested(levels)}}
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "r"},
    ]
    assert post(application, "/v1/chat/completions", json.dumps({"model": model, "messages": turns}))[0] == 200


@pytest.mark.parametrize("value", ["50", True, 1.5, [50]])
def test_a_number_that_is_none_is_refused_by_its_name(application: Application, value: object) -> None:
    FuzzVendor.chance = None
    body = {"model": "draw", "prompt": "x", "output_compression": value}
    status, answer = post(application, "/v1/images/generations", json.dumps(body))
    assert status == 400
    assert json.loads(answer)["error"]["param"] == "output_compression"
    assert json.loads(answer)["error"]["message"] == "`output_compression` must be a whole number."


# --- over the socket ---------------------------------------------------------------------------------


def raw(mutator: Mutator) -> bytes:
    """The bytes of a request, sometimes broken as HTTP too."""
    chance = mutator.chance
    request = mutator.request()
    lines = [f"{request.method} {request.path} HTTP/1.1", "Host: fuzz", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in request.headers]
    lines.append(f"Content-Length: {len(request.body) if chance.random() < 0.97 else chance.choice((-1, 0, 10**9, 'x'))}")
    data = "\r\n".join([*lines, "", ""]).encode("latin-1") + request.body
    if chance.random() < 0.3:
        data = mutator._broken(data)
    return data


def answer_to(address: tuple[str, int], data: bytes) -> bytes:
    """What the server says until it closes; a client that has sent less than it announced leaves after a moment."""
    received = b""
    with socket.create_connection(address, timeout=20) as sock:
        try:
            sock.sendall(data)
            if not select.select([sock], [], [], 0.3)[0]:
                sock.shutdown(socket.SHUT_WR)
            while piece := sock.recv(65536):
                received += piece
                if len(received) > 1_000_000:
                    break
        except (ConnectionResetError, BrokenPipeError):
            pass  # refused in the middle of what we sent
    return received


@pytest.mark.timeout(1500)
def test_any_bytes_over_the_socket(tmp_path: Path, vendor: Mock) -> None:
    gateway = Gateway(tmp_path, vendor.url, start=False, tokens={"proxy": ["proxy"], "end_users": ["house"]})
    for name, token in (("fuzz", TOKEN), ("house", HOUSE), ("proxy", PROXY)):
        (gateway.tokens / name).write_text(token)
    gateway.start()
    try:
        mutator = Mutator(random.Random(SEED + 3))
        requests = [raw(mutator) for _ in range(REQUESTS // 20)]
        started = time.monotonic()
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda data: answer_to(gateway.address, data), requests))
        statuses: Counter[str] = Counter()
        for data, received in zip(requests, answers, strict=True):
            status = received[9:12].decode(errors="replace") if received.startswith(b"HTTP/1.") else "none"
            statuses[status] += 1
            assert not status.startswith("5"), f"seed {SEED}: {received[:300]!r} to {data!r}"
        print(f"seed {SEED}: {dict(sorted(statuses.items()))} in {time.monotonic() - started:.0f} s")
        assert statuses["200"] > len(requests) // 20
        wait_for(lambda: gateway.metric("hearth_open_requests") == 0, "open requests to end")
        assert gateway.events("unexpected-error") == []
        assert gateway.terminate() == 0
    finally:
        gateway.stop()
