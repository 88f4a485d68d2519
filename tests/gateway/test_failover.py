"""Another provider takes over, over real sockets: which fault leads where, how long it takes, and what is told.

Both kinds of provider fail, and both client formats ask. Times: the machine that runs this may be busy,
which only ever adds; so the best of a few tries must keep the limit, against a healthy request as baseline.
"""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from bad_servers import Gate, Script, Tls, dripping_head, event_stream, not_accepting, refusing
from gateway_support import API_KEY, BREAKER_PAUSE_S, SOURCE, TOKEN, Gateway, Mock, wait_for

HELLO = [{"role": "user", "content": "Hello, dear friends"}]
ECHO = "You said: Hello, dear friends"
CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
ROUTES = pytest.mark.parametrize("route", [CHAT, MESSAGES], ids=["chat", "messages"])
# What a failover may cost beside the configured limit. Less than any of the limits, which it must not cost where it need not.
SLACK_S = 0.5
TRIES = 6
Make = Callable[..., Gateway]


@dataclass
class Answer:
    """One HTTP response. Header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        if "choices" in self.json:
            return str(self.json["choices"][0]["message"]["content"])
        return "".join(block.get("text", "") for block in self.json["content"])

    @property
    def served(self) -> tuple[str | None, str | None, str | None]:
        """Provider, attempts and the reasons on the way, as the headers tell."""
        return tuple(self.headers.get(f"x-hearth-{name}") for name in ("provider", "attempts", "failover"))  # type: ignore[return-value]


def ask(gateway: Gateway, model: str, route: str = CHAT, *, stream: bool = False, messages: Any = HELLO, **headers: str) -> Answer:
    body = json.dumps({"model": model, "max_tokens": 100, "stream": stream, "messages": messages})
    if gateway.config["breaker"]["open_s"] == BREAKER_PAUSE_S:
        gateway.breakers_over()  # the last request's fault may have opened one
    sent = {"x-api-key": TOKEN, "Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    connection = http.client.HTTPConnection(*gateway.address, timeout=60)
    with contextlib.closing(connection):
        started = time.monotonic()
        connection.request("POST", route, body, sent)
        response = connection.getresponse()
        raw = response.read()
        seconds = time.monotonic() - started
    return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, raw, seconds)


def added_s(gateway: Gateway, model: str, limit_s: float, route: str = CHAT) -> float:
    """By how much the failing first provider delays the second one's answer: the best of a few tries."""
    baseline = min(ask(gateway, "y-normal", route).seconds for _ in range(3))
    best = float("inf")
    for _ in range(TRIES):
        answer = ask(gateway, model, route)
        assert "breaker_open" not in (answer.served[2] or ""), "the fault was not met, so its time was not taken"
        best = min(best, answer.seconds - baseline)
        if best <= limit_s + SLACK_S:
            break
    return best


# --- before the first content ------------------------------------------------------------------

CONNECT_S, FIRST_TOKEN_S = 0.8, 1.0
# scenario of the first vendor: (reasons on the way, the configured limit that it may cost)
FAULTS: dict[str, tuple[list[str], float]] = {
    "401": (["upstream_auth"], 0),
    "402": (["upstream_auth"], 0),
    "403": (["upstream_auth"], 0),
    "404": (["upstream_model_unavailable"], 0),
    "408": (["upstream_timeout"], 0),
    "429": (["upstream_rate_limited"], 0),
    "429-bare": (["upstream_rate_limited"], 0),
    # One more request to the same provider, after a short pause that is within the slack.
    "500": (["upstream_error"] * 2, 0),
    "502": (["upstream_error"] * 2, 0),
    "503": (["upstream_error"] * 2, 0),
    "529": (["upstream_overloaded"], 0),
    "html": (["upstream_error"] * 2, 0),
    "error-before": (["upstream_error"] * 2, 0),
    "overloaded": (["upstream_overloaded"], 0),
    "close": (["upstream_unreachable"], 0),
    "garbage": (["upstream_protocol"], 0),
    "big-event": (["upstream_protocol"], 1.0),  # its first 4 MiB have to arrive before it is too big
    "silent": (["upstream_timeout"], FIRST_TOKEN_S),
    "pings": (["upstream_timeout"], FIRST_TOKEN_S),
    "slow-headers": (["upstream_timeout"], FIRST_TOKEN_S),
}
# Below HTTP, for providers of both kinds.
CONNECTIONS: dict[str, tuple[list[str], float]] = {
    "refused": (["upstream_unreachable"], 0),
    "reset": (["upstream_unreachable"], 0),
    "name": (["upstream_unreachable"], CONNECT_S),  # how long a resolver takes to say no is the machine's business
    "wrong-ca": (["upstream_unreachable"], 0),
    "no-tls": (["upstream_unreachable"], 0),
    "not-accepting": (["upstream_unreachable"], CONNECT_S),
    "dripping-head": (["upstream_timeout"], FIRST_TOKEN_S),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, vendor: Mock, second_vendor: Mock, certificates: Path) -> Iterator[Gateway]:
    """Short limits, and for each way to be unreachable a provider of each kind: the models `<kind>-<way>`."""
    gateway = Gateway(
        tmp_path_factory.mktemp("pair"),
        vendor.url,
        second_url=second_vendor.url,
        start=False,
        timeouts={"connect_s": CONNECT_S, "first_token_s": FIRST_TOKEN_S, "idle_s": 1, "total_s": 20},
    )
    with contextlib.ExitStack() as servers:
        urls = {
            "refused": servers.enter_context(refusing()),
            "reset": servers.enter_context(Gate(vendor.url)).url,
            "name": "http://vendor.invalid",
            "wrong-ca": servers.enter_context(Tls(certificates)).url,
            "no-tls": vendor.url.replace("http:", "https:"),
            "not-accepting": servers.enter_context(not_accepting()),
            "dripping-head": servers.enter_context(dripping_head()).url,
        }
        second = gateway.config["models"]["y-normal"]
        for kind in ("anthropic", "openai"):
            for way, url in urls.items():
                name = f"{kind}-{way}"
                key = str(gateway.directory / "key")
                gateway.config["providers"].append({"name": name, "kind": kind, "base_url": url, "api_key_file": key})
                gateway.config["models"][name] = [{"provider": name, "model": "any", "max_output_tokens": 100}, *second]
        gateway.config_file.write_text(yaml.safe_dump(gateway.config))
        gateway.start()
        yield gateway
        assert gateway.terminate() == 0
        assert gateway.events("unexpected-error") == []


@pytest.mark.parametrize("scenario", FAULTS)
def test_a_fault_before_the_first_content_goes_on_to_the_next(pair: Gateway, scenario: str) -> None:
    reasons, limit_s = FAULTS[scenario]
    before = pair.settled_rows()
    answer = ask(pair, f"f-{scenario}")
    assert (answer.status, answer.text) == (200, ECHO)
    assert answer.served == ("litellm", str(len(reasons) + 1), ",".join(f"anthropic={reason}" for reason in reasons))
    assert answer.headers["x-hearth-model"] == "mock+normal"
    pair.settled_rows()
    rows = pair.rows()[before:]
    assert [(row["provider"], row["leg"], row["outcome"]) for row in rows] == [
        *(("anthropic", leg, reason) for leg, reason in enumerate(reasons, 1)),
        ("litellm", len(reasons) + 1, "ok"),
    ]
    assert {row["request_id"] for row in rows} == {answer.headers["x-request-id"]}
    assert added_s(pair, f"f-{scenario}", limit_s) <= limit_s + SLACK_S


@pytest.mark.parametrize("way", CONNECTIONS)
@pytest.mark.parametrize("kind", ["anthropic", "openai"])
def test_a_provider_that_cannot_be_reached(pair: Gateway, kind: str, way: str) -> None:
    reasons, limit_s = CONNECTIONS[way]
    answer = ask(pair, f"{kind}-{way}")
    assert (answer.status, answer.text) == (200, ECHO)
    assert answer.served == ("litellm", "2", ",".join(f"{kind}-{way}={reason}" for reason in reasons))
    assert added_s(pair, f"{kind}-{way}", limit_s) <= limit_s + SLACK_S


@ROUTES
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("scenario", ["429", "overloaded", "silent"])
def test_both_formats_and_streams_too(pair: Gateway, route: str, scenario: str, stream: bool) -> None:
    answer = ask(pair, f"f-{scenario}", route, stream=stream)
    assert answer.status == 200
    assert answer.served == ("litellm", "2", f"anthropic={FAULTS[scenario][0][0]}")
    if stream:
        assert is_whole(answer.body, route) and b"friends" in answer.body
    else:
        assert answer.text == ECHO


def test_what_is_wrong_with_the_request_goes_nowhere_else(pair: Gateway, second_vendor: Mock) -> None:
    before = second_vendor.asked()
    for scenario, status in (("400", 400), ("413", 413)):
        answer = ask(pair, f"f-{scenario}")
        assert (answer.status, answer.served) == (status, ("anthropic", "1", None))
    assert second_vendor.asked() == before


@pytest.mark.parametrize("in_stream", [False, True], ids=["status", "event"])
def test_an_account_without_money_is_passed_over(own: Make, second_vendor: Mock, in_stream: bool) -> None:
    """Anthropic says it with a 400 and the type of a broken request, and says it to everybody until somebody pays."""
    words = b"Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to upgrade or purchase credits."
    error = b'{"type":"error","error":{"type":"invalid_request_error","message":"%b"}}' % words
    head = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
    with event_stream(b"event: error\ndata: " + error + b"\n\n") if in_stream else Script(head % len(error) + error) as server:
        gateway = own(vendor_url=server.url, second_url=second_vendor.url)
        answer = ask(gateway, "f-normal")
        assert (answer.status, answer.text) == (200, ECHO)
        assert answer.served == ("litellm", "2", "anthropic=upstream_auth")
        alone = ask(gateway, "x-normal")
        assert (alone.status, alone.json["error"]["code"]) == (502, "upstream_auth")
        assert b"credit" not in alone.body and b"Billing" not in alone.body


def test_a_body_of_ten_megabytes_goes_on_too(pair: Gateway, second_vendor: Mock) -> None:
    before = second_vendor.asked()
    long = [{"role": "user", "content": "word " * 2_000_000}, {"role": "assistant", "content": "Read."}, *HELLO]
    answer = ask(pair, "f-500", messages=long)
    assert (answer.status, answer.text) == (200, ECHO)
    assert second_vendor.next_record(before)["body_bytes"] > 10_000_000


def test_an_event_just_below_the_cap_and_just_above(own: Make, second_vendor: Mock) -> None:
    cap = 4 * 1024 * 1024

    def script(size: int) -> list[bytes]:
        head = b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"'
        return [
            b'data: {"type":"message_start","message":{"usage":{"input_tokens":3,"output_tokens":1}}}\n\n',
            b'data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}\n\n',
            b"data: " + head + b"x" * (size - len(head) - len(b'"}}')) + b'"}}\n\n',
            b'data: {"type":"content_block_stop","index":0}\n\n',
            b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":9}}\n\n',
            b'data: {"type":"message_stop"}\n\n',
        ]

    for size, provider in ((1024 * 1024, "anthropic"), (cap - 64, "anthropic"), (cap + 64, "litellm")):
        with event_stream(*script(size)) as server:
            answer = ask(own(vendor_url=server.url, second_url=second_vendor.url), "f-normal")
            assert (answer.status, answer.headers["x-hearth-provider"]) == (200, provider), size
            assert provider == "litellm" or len(answer.text) > size - 200


# --- after the first content -------------------------------------------------------------------


def is_whole(body: bytes, route: str) -> bool:
    """Whether a stream claims to be complete."""
    return b"data: [DONE]" in body if route == CHAT else b"message_stop" in body


@ROUTES
@pytest.mark.parametrize("provider", ["x", "y", "f"])
@pytest.mark.parametrize("scenario", ["cut", "eof", "error-after", "silent-after", "garbage-after"])
def test_a_fault_after_the_first_content_is_shown_and_nobody_takes_over(
    pair: Gateway, second_vendor: Mock, route: str, provider: str, scenario: str
) -> None:
    before = second_vendor.asked()
    answer = ask(pair, f"{provider}-{scenario}", route, stream=True)
    assert answer.status == 200
    assert answer.served[1:] == ("1", None)
    last = answer.body.strip().split(b"\n\n")[-1]
    assert last.startswith(b'data: {"error":' if route == CHAT else b"event: error\n"), last[:80]
    assert not is_whole(answer.body, route) and b'"finish_reason":"' not in answer.body
    assert b"You" in answer.body
    if provider == "f":
        assert second_vendor.asked() == before
    whole = ask(pair, f"{provider}-{scenario}", route)
    assert whole.status in (502, 504), "without a stream nothing was shown yet: the status can tell"


@ROUTES
@pytest.mark.parametrize("provider", ["x", "y"])
def test_partial_usage_of_a_broken_answer_is_kept(pair: Gateway, route: str, provider: str) -> None:
    before = pair.settled_rows()
    ask(pair, f"{provider}-cut", route, stream=True)
    row = pair.wait_row(before)
    assert row["outcome"] == "upstream_interrupted" and row["output_tokens"] >= 1 and row["input_tokens"] >= 3


# --- what the caller is told -------------------------------------------------------------------


def with_models(gateway: Gateway, **models: list[tuple[str, str]]) -> Gateway:
    """Start it with these models only: each a list of (provider, scenario)."""
    del gateway.config["embedding_models"], gateway.config["image_models"]
    gateway.config["models"] = {
        alias: [{"provider": provider, "model": f"mock+{scenario}", "max_output_tokens": 1000} for provider, scenario in targets]
        for alias, targets in models.items()
    }
    gateway.config_file.write_text(yaml.safe_dump(gateway.config))
    gateway.start()
    return gateway


STRICT = {"failures": 3, "open_s": 10, "max_open_s": 300}


def test_when_all_are_limited_the_soonest_is_told_and_nobody_is_asked(own: Make, vendor: Mock, second_vendor: Mock) -> None:
    gateway = own(second_url=second_vendor.url, breaker=STRICT, start=False)
    with_models(gateway, both=[("anthropic", "429"), ("litellm", "429")])
    before = vendor.asked(), second_vendor.asked()
    answer = ask(gateway, "both")
    assert (answer.status, answer.headers["retry-after"]) == (429, "7")
    assert answer.served == ("litellm", "2", "anthropic=upstream_rate_limited,litellm=upstream_rate_limited")
    for route, kind in ((CHAT, "server_error"), (MESSAGES, "overloaded_error")):
        answer = ask(gateway, "both", route)
        assert answer.status == 503 and answer.json["error"]["type"] == kind
        assert answer.served == (None, None, "anthropic=breaker_open,litellm=breaker_open")
        assert answer.headers["retry-after"].isdigit() and 1 <= int(answer.headers["retry-after"]) <= 7
    assert (vendor.asked(), second_vendor.asked()) == (before[0] + 1, before[1] + 1)
    ready = get(gateway.url + "/readyz")
    assert (ready.status, ready.json["checks"]["providers"]) == (503, "open")
    wait_for(lambda: get(gateway.url + "/readyz").status == 200, "a time when somebody may be asked again")


@pytest.mark.parametrize("provider", ["anthropic", "litellm"])
def test_a_date_to_retry_after_is_told_in_seconds_and_kept(own: Make, provider: str) -> None:
    date = email.utils.formatdate(time.time() + 100, usegmt=True).encode()
    reply = b"HTTP/1.1 429 Too Many Requests\r\nretry-after: %b\r\nconnection: close\r\ncontent-length: 0\r\n\r\n" % date
    with Script(reply) as server:
        gateway = with_models(own(vendor_url=server.url, second_url=server.url, breaker=STRICT, start=False), one=[(provider, "normal")])
        limited, turned_away = ask(gateway, "one"), ask(gateway, "one")
        assert (limited.status, turned_away.status) == (429, 503)
        for answer in (limited, turned_away):
            assert 80 <= int(answer.headers["retry-after"]) <= 100
        assert server.connections == 1, "the breaker waits as long"


def get(url: str) -> Answer:
    address, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(address, timeout=20)
    with contextlib.closing(connection):
        connection.request("GET", f"/{path}")
        response = connection.getresponse()
        return Answer(response.status, {}, response.read(), 0)


def test_a_caller_may_want_this_provider_or_none(pair: Gateway, second_vendor: Mock) -> None:
    before = second_vendor.asked()
    for stream in (False, True):
        answer = ask(pair, "f-529", stream=stream, x_hearth_no_fallback="true")
        assert (answer.status, answer.served) == (503, ("anthropic", "1", "anthropic=upstream_overloaded"))
    broken = ask(pair, "f-cut", stream=True, x_hearth_no_fallback="true")
    assert broken.status == 200 and not is_whole(broken.body, CHAT)
    assert second_vendor.asked() == before
    assert ask(pair, "f-529", x_hearth_no_fallback="false").served[0] == "litellm"
    assert ask(pair, "f-529", x_hearth_no_fallback="maybe").status == 400


def test_failovers_are_counted(pair: Gateway) -> None:
    name = 'hearth_failovers_total{provider="anthropic",reason="upstream_overloaded"}'
    before = pair.metric(name)
    ask(pair, "f-529")
    ask(pair, "f-529", x_hearth_no_fallback="true")
    assert pair.metric(name) == before + 1


# --- the breaker -------------------------------------------------------------------------------


def test_an_open_provider_gets_no_request_and_recovery_is_one_probe(own: Make, vendor: Mock, second_vendor: Mock) -> None:
    # The gate holds the answer to the probe back until all the others have theirs.
    with Gate(vendor.url) as gate:
        gateway = own(
            vendor_url=gate.url,
            second_url=second_vendor.url,
            breaker={"failures": 3, "open_s": 6, "max_open_s": 6},
            timeouts={"first_token_s": 25},
        )
        state = 'hearth_breaker_state{model="mock+pings",provider="anthropic"}'
        for _ in range(3):
            assert ask(gateway, "f-pings").served == ("litellm", "2", "anthropic=upstream_unreachable")
        assert gate.connections == 3 and gateway.metric(state) == 2
        for route in (CHAT, MESSAGES, CHAT):
            assert ask(gateway, "f-pings", route).served == ("litellm", "1", "anthropic=breaker_open")
        assert gate.connections == 3
        assert gateway.metric('hearth_failovers_total{provider="anthropic",reason="breaker_open"}') == 3
        assert get(gateway.url + "/readyz").status == 200, "the second provider still serves"

        gate.up = True
        gate.passing.clear()
        wait_for(lambda: gateway.metric(state) == 1, "the end of the pause")
        before = vendor.asked()
        answers: list[Answer] = []
        threads = [threading.Thread(target=lambda: answers.append(ask(gateway, "f-pings"))) for _ in range(20)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(answers) == 19, "all but the probe to be answered")
        gate.passing.set()
        for thread in threads:
            thread.join()
        served = sorted(answer.served for answer in answers)
        assert served == [("anthropic", "1", None), *[("litellm", "1", "anthropic=breaker_open")] * 19]
        assert vendor.asked() == before + 1, "one probe, and no more"
        assert vendor.next_record(before)["scenario"] == "pings"
        assert gateway.metric(state) == 0
        assert ask(gateway, "f-pings").served == ("anthropic", "1", None)
    changes = [(event["state"], event["reason"]) for event in gateway.events("breaker")]
    assert changes == [("open", "upstream_unreachable"), ("half_open", "upstream_unreachable"), ("closed", "upstream_unreachable")]


def test_a_refused_key_is_left_alone_until_it_changes(own: Make, vendor: Mock, second_vendor: Mock) -> None:
    gateway = own(second_url=second_vendor.url, breaker={"failures": 3, "open_s": 300, "max_open_s": 300}, start=False)
    key = gateway.directory / "key"
    key.write_text("sk-ant-a-key-of-yesterday")
    gateway.start()
    before = vendor.asked()
    assert ask(gateway, "f-normal").served == ("litellm", "2", "anthropic=upstream_auth")
    for _ in range(3):
        assert ask(gateway, "f-normal").served == ("litellm", "1", "anthropic=breaker_open")
    assert vendor.asked() == before + 1
    key.write_text(API_KEY)
    wait_for(lambda: ask(gateway, "f-normal").served == ("anthropic", "1", None), "the new key to be tried")


# --- how it is ---------------------------------------------------------------------------------


def status_command(gateway: Gateway, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hearth_gateway", "status", "--config", str(gateway.config_file), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(SOURCE)}, timeout=60)


def test_status_for_people_and_programs(own: Make, second_vendor: Mock) -> None:
    # Open for longer than it takes to ask the command twice.
    gateway = own(second_url=second_vendor.url, breaker={"failures": 3, "open_s": 200, "max_open_s": 300}, start=False)
    with_models(gateway, both=[("anthropic", "529"), ("litellm", "normal")])
    # The command reads the address in the configuration. Written there now: nobody can take a port that is in use.
    bind = gateway.metrics_url.removeprefix("http://").removesuffix("/metrics")
    gateway.config["server"]["metrics_bind"] = bind
    gateway.save()
    told = status_command(gateway)
    assert told.returncode == 0 and ": ok, up " in told.stdout and "anthropic (anthropic)" in told.stdout, told.stderr
    ask(gateway, "both", messages=[{"role": "user", "content": "a very private sentence"}])
    told = status_command(gateway)
    assert told.returncode == 3
    assert "mock+529  open: upstream_overloaded, tried again in" in told.stdout
    report = json.loads(status_command(gateway, "--json").stdout)
    assert report == {**get(f"http://{bind}/debug/status").json, "uptime_s": report["uptime_s"], "providers": report["providers"]}
    assert report["status"] == "degraded" and report["checks"] == {"store": "ok", "providers": "ok", "shutdown": "ok"}
    anthropic = next(provider for provider in report["providers"] if provider["name"] == "anthropic")["models"][0]
    assert (anthropic["breaker"], anthropic["reason"]) == ("open", "upstream_overloaded") and 0 < anthropic["wait_s"] <= 200
    for said in (told.stdout, json.dumps(report), get(f"http://{bind}/debug/status?all=1").body.decode()):
        assert "private" not in said and "operator" not in said and API_KEY not in said
    assert get(f"{gateway.url}/debug/status").status == 404, "never on the port of users"
    assert gateway.terminate() == 0
    told = status_command(gateway)
    assert (told.returncode, told.stdout) == (1, "") and f"nobody answers at http://{bind}/debug/status" in told.stderr
    gateway.config_file.write_text("server: {}")
    assert status_command(gateway).returncode == 2


# --- the client leaves -------------------------------------------------------------------------


def without_limits(directory: Path, vendor: Mock, second_vendor: Mock, headers_after_s: float) -> Iterator[Gateway]:
    """No limit of its own ends a silence here."""
    gateway = Gateway(
        directory,
        vendor.url,
        second_url=second_vendor.url,
        server={"headers_after_s": headers_after_s},
        timeouts={"idle_s": 20, "first_token_s": 20},
    )
    yield gateway
    gateway.stop()


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory, vendor: Mock, second_vendor: Mock) -> Iterator[Gateway]:
    yield from without_limits(tmp_path_factory.mktemp("patient"), vendor, second_vendor, 0.2)


@pytest.fixture(scope="module")
def unhurried(tmp_path_factory: pytest.TempPathFactory, vendor: Mock, second_vendor: Mock) -> Iterator[Gateway]:
    """No stream begins before its first word."""
    yield from without_limits(tmp_path_factory.mktemp("unhurried"), vendor, second_vendor, 20)


def send(gateway: Gateway, route: str, model: str, stream: bool, content: Any = "word " * 60) -> socket.socket:
    """A connection on which the request has been sent."""
    client = socket.create_connection(gateway.address)
    body = json.dumps({"model": model, "stream": stream, "max_tokens": 100, "messages": [{"role": "user", "content": content}]})
    client.sendall(
        f"POST {route} HTTP/1.1\r\nHost: x\r\nx-api-key: {TOKEN}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    )
    return client


@ROUTES
@pytest.mark.parametrize("provider", ["x", "y"])
@pytest.mark.parametrize(("scenario", "stream"), [("slow", False), ("silent-after", False), ("silent", False), ("silent", True)])
def test_a_client_that_leaves_before_its_response_began_cancels_too(
    unhurried: Gateway, vendor: Mock, second_vendor: Mock, route: str, provider: str, scenario: str, stream: bool
) -> None:
    gateway, rows = unhurried, unhurried.settled_rows()
    mock = vendor if provider == "x" else second_vendor
    before = mock.asked()
    with send(gateway, route, f"{provider}-{scenario}", stream):
        wait_for(lambda: mock.asked() > before, "the vendor to be asked")
        time.sleep(0.7)
    left = time.time()
    record = mock.next_record(before)
    assert record["outcome"] == "client-left"
    assert record["finished_at"] - left < 2
    assert gateway.wait_row(rows)["outcome"] == "cancelled"
    wait_for(lambda: gateway.metric("hearth_open_requests") == 0, "the request to be counted out")


def test_a_client_of_many_words_is_known_by_when_they_had_come(unhurried: Gateway, vendor: Mock, second_vendor: Mock) -> None:
    """And not by when they were understood, which takes a while: then it fits no connection, and one that waits beside it
    may be its own."""
    gateway, before, others = unhurried, vendor.asked(), second_vendor.asked()
    words = [{"type": "text", "text": "word"}] * 100_000
    with send(gateway, "/v1/chat/completions", "y-silent", stream=False, content=words):
        wait_for(lambda: second_vendor.asked() > others, "the first to wait")
        with send(gateway, "/v1/chat/completions", "x-silent", stream=False, content=words):
            wait_for(lambda: vendor.asked() > before, "the vendor to be asked")
            time.sleep(1.2)
        left = time.time()
        record = vendor.next_record(before)
        assert record["outcome"] == "client-left"
        assert record["finished_at"] - left < 8, "what ends the silence otherwise comes after 20 s"
        assert gateway.metric("hearth_open_requests") == 1, "who stays is not taken for who left"
    wait_for(lambda: gateway.metric("hearth_open_requests") == 0, "both to be counted out")


def test_who_stays_gets_the_answer_when_others_leave(unhurried: Gateway, vendor: Mock) -> None:
    """Also where nobody can tell whose connection is whose, as all came at the same moment."""
    gateway, rows = unhurried, unhurried.settled_rows()
    clients = [send(gateway, "/v1/chat/completions", "x-slow", stream=False) for _ in range(8)]
    time.sleep(0.7)
    for client in clients[::2]:
        client.close()
    time.sleep(0.7)
    late = send(gateway, "/v1/chat/completions", "x-slow", stream=False)
    for client in [*clients[1::2], late]:
        with client:
            client.settimeout(60)
            received = b""
            while not received.endswith(b"}"):
                piece = client.recv(65536)
                assert piece, received
                received += piece
            assert received.startswith(b"HTTP/1.1 200 ") and b'"finish_reason":"stop"' in received
    wait_for(lambda: gateway.metric("hearth_open_requests") == 0, "all to be counted out")
    assert gateway.settled_rows() == rows + 9


@ROUTES
@pytest.mark.parametrize("provider", ["x", "y"])
@pytest.mark.parametrize("scenario", ["slow", "silent-after", "silent"])
def test_a_client_that_leaves_cancels_at_the_vendor(
    patient: Gateway, vendor: Mock, second_vendor: Mock, route: str, provider: str, scenario: str
) -> None:
    gateway, rows = patient, patient.settled_rows()
    mock = vendor if provider == "x" else second_vendor
    before = mock.asked()
    with send(gateway, route, f"{provider}-{scenario}", stream=True) as client:
        received = b""
        # Silence before the first word: the response has begun by then, and nothing but heartbeats is in it.
        while (b"\r\n\r\n" if scenario == "silent" else b"You") not in received:
            received += client.recv(65536)
    left = time.time()
    record = mock.next_record(before)
    assert record["outcome"] == "client-left"
    # 1 s is the promise. The vendor notices within 0.05 s more, and a busy machine takes its own time.
    assert record["finished_at"] - left < 2
    row = gateway.wait_row(rows)
    assert row["outcome"] == "cancelled" and (scenario == "silent" or row["output_tokens"] >= 1)
    wait_for(lambda: gateway.metric("hearth_open_requests") == 0, "the request to be counted out")
