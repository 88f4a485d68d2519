"""What can go wrong between the gateway and a vendor, over real sockets: what the client sees, and when."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from gateway_support import TOKEN, Gateway, Mock, wait_for

HELLO: Any = [{"role": "user", "content": "Hello, dear friends"}]
Make = Callable[..., Gateway]


def ask(gateway: Gateway, model: str = "sonnet", stream: bool = False) -> Any:
    return gateway.client().chat.completions.create(model=model, messages=HELLO, stream=stream)


def failure(gateway: Gateway, model: str = "sonnet", stream: bool = False) -> tuple[openai.APIStatusError, float]:
    """The error of a request that must fail, and the seconds until it came."""
    started = time.monotonic()
    with pytest.raises(openai.APIStatusError) as caught:
        ask(gateway, model, stream)
    return caught.value, time.monotonic() - started


# --- it cannot be reached ---------------------------------------------------------------------


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def tls_vendor(certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mock]:
    options = ("--cert", str(certificates / "server.crt"), "--key", str(certificates / "server.key"))
    mock = Mock(tmp_path_factory.mktemp("tls-vendor"), *options)
    yield mock
    mock.stop()


def with_ca(gateway: Gateway, ca_file: Path) -> list[dict[str, Any]]:
    providers: list[dict[str, Any]] = [dict(item) for item in gateway.config["providers"]]
    providers[0]["ca_file"] = str(ca_file)
    return providers


def test_https_with_a_private_authority(own: Make, tls_vendor: Mock, certificates: Path) -> None:
    plain = own(vendor_url=tls_vendor.url, start=False)
    gateway = own(vendor_url=tls_vendor.url, providers=with_ca(plain, certificates / "ca.crt"))
    assert ask(gateway).choices[0].message.content == "You said: Hello, dear friends"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in ask(gateway, "x-slow", stream=True))
    assert text == "You said: Hello, dear friends"


def test_a_certificate_nobody_vouches_for(own: Make, tls_vendor: Mock) -> None:
    error, seconds = failure(own(vendor_url=tls_vendor.url))
    assert (error.status_code, error.code) == (504, "upstream_unreachable")
    assert "certificate" in error.message and seconds < 2


def test_tls_to_a_server_that_speaks_none(own: Make, vendor: Mock) -> None:
    error, seconds = failure(own(vendor_url=vendor.url.replace("http:", "https:")))
    assert error.code == "upstream_unreachable" and "TLS" in error.message and seconds < 3


def test_refused(own: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    error, seconds = failure(own(vendor_url=f"http://127.0.0.1:{port}"))
    assert error.code == "upstream_unreachable" and "refused" in error.message and seconds < 1


def test_a_name_that_does_not_exist(own: Make) -> None:
    error, seconds = failure(own(vendor_url="http://vendor.invalid"))
    assert error.code == "upstream_unreachable" and "name" in error.message and seconds < 3


def test_slow_headers_meet_the_first_token_limit(own: Make) -> None:
    gateway = own(timeouts={"first_token_s": 1})
    for stream in (False, True):
        error, seconds = failure(gateway, "x-slow-headers", stream)
        assert (error.status_code, error.code) == (504, "upstream_timeout")
        assert 1 <= seconds < 2


def test_silence_before_the_first_word(own: Make) -> None:
    gateway = own(timeouts={"first_token_s": 1})
    error, seconds = failure(gateway, "x-silent", stream=True)
    assert error.code == "upstream_timeout" and "begin" in error.message and 1 <= seconds < 2


def test_headers_go_out_early_so_that_proxies_do_not_give_up(own: Make) -> None:
    gateway = own(server={"headers_after_s": 0.5}, timeouts={"first_token_s": 2})
    started = time.monotonic()
    stream = ask(gateway, "x-silent", stream=True)
    assert time.monotonic() - started < 1.5
    assert "x-hearth-provider" not in stream.response.headers, "nobody knows yet who will serve"
    with pytest.raises(openai.APIError, match="begin to answer"):
        list(stream)


# --- it answers, but how -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scenario", "status", "code"),
    [
        ("garbage", 502, "upstream_protocol"),
        ("big-event", 502, "upstream_protocol"),
        ("html", 502, "upstream_error"),
        ("close", 504, "upstream_unreachable"),
    ],
)
def test_nonsense_before_the_first_word(shared: Gateway, scenario: str, status: int, code: str) -> None:
    before = shared.settled_rows()
    for number, stream in enumerate((False, True)):
        error, _ = failure(shared, f"x-{scenario}", stream)
        assert (error.status_code, error.code) == (status, code)
        row = shared.wait_row(before + number)
        assert row["outcome"].startswith("upstream_") and row["first_token_ms"] is None


@pytest.mark.parametrize("scenario", ["cut", "eof", "error-after", "silent-after", "garbage-after"])
def test_a_fault_in_the_middle_of_an_answer_that_is_waited_for(shared: Gateway, scenario: str) -> None:
    """Without a stream nothing was shown yet: a status code can still tell the truth."""
    before = shared.settled_rows()
    error, _ = failure(shared, f"x-{scenario}")
    assert error.status_code in (502, 504)
    assert shared.wait_row(before)["outcome"] != "ok"


def raw_stream(gateway: Gateway, model: str) -> bytes:
    """The bytes of a streamed answer, as they came."""
    client = gateway.client()
    with client.chat.completions.with_streaming_response.create(model=model, messages=HELLO, stream=True) as response:
        return b"".join(response.iter_bytes())


def test_only_a_whole_answer_ends_with_done(shared: Gateway) -> None:
    whole = raw_stream(shared, "sonnet")
    assert whole.endswith(b"data: [DONE]\n\n") and b"error" not in whole
    for scenario in ("cut", "eof", "error-after", "silent-after", "garbage-after"):
        broken = raw_stream(shared, f"x-{scenario}")
        last = broken.strip().split(b"\n\n")[-1]
        assert last.startswith(b'data: {"error":{"message":'), scenario
        assert b"[DONE]" not in broken and b'"finish_reason":"' not in broken, scenario


def test_heartbeats_while_the_vendor_is_silent(shared: Gateway) -> None:
    pieces = raw_stream(shared, "x-silent-after").split(b"\n\n")
    assert pieces.count(b":") >= 2


def test_partial_usage_of_a_broken_answer_is_kept(shared: Gateway) -> None:
    before = shared.settled_rows()
    raw_stream(shared, "x-cut")
    row = shared.wait_row(before)
    assert (row["outcome"], row["input_tokens"], row["output_tokens"]) == ("upstream_interrupted", 3, 1)
    assert row["first_token_ms"] is not None


# --- another provider takes over ---------------------------------------------------------------


TAKEN_OVER = ["401", "429", "500", "529", "error-before", "close", "garbage", "silent"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, vendor: Mock) -> Iterator[Gateway]:
    """Each alias `both-<scenario>` has the failing vendor first and the demo second."""
    demo = {"provider": "demo", "model": "demo"}
    models = {
        f"both-{name}": [{"provider": "anthropic", "model": f"mock+{name}", "max_output_tokens": 100}, demo]
        for name in [*TAKEN_OVER, "cut"]
    }
    gateway = Gateway(tmp_path_factory.mktemp("pairs"), vendor.url, models=models, timeouts={"first_token_s": 1})
    yield gateway
    gateway.stop()


@pytest.mark.parametrize("scenario", TAKEN_OVER)
def test_the_next_provider_takes_over_before_the_first_word(pairs: Gateway, scenario: str) -> None:
    before = pairs.settled_rows()
    response = pairs.client().chat.completions.with_raw_response.create(model=f"both-{scenario}", messages=HELLO, max_tokens=5)
    assert response.headers["x-hearth-provider"] == "demo" and response.headers["x-hearth-attempts"] == "2"
    wait_for(lambda: len(pairs.rows()) == before + 2, "two rows")
    rows = pairs.rows()[before:]
    assert [(row["provider"], row["leg"], row["outcome"] == "ok") for row in rows] == [
        ("anthropic", 1, False),
        ("demo", 2, True),
    ]
    assert rows[0]["request_id"] == rows[1]["request_id"] == response.headers["x-request-id"]


def test_nobody_takes_over_after_the_first_word(pairs: Gateway) -> None:
    assert b"demo provider" not in raw_stream(pairs, "both-cut")
    with pytest.raises(openai.InternalServerError):
        ask(pairs, "both-cut")


# --- the client leaves -------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ["slow", "silent-after"])
def test_a_client_that_leaves_cancels_at_the_vendor(own: Make, vendor: Mock, scenario: str) -> None:
    gateway = own(timeouts={"idle_s": 20})
    before = len(vendor.records())
    body = f'{{"model":"x-{scenario}","stream":true,"messages":[{{"role":"user","content":"{"word " * 60}"}}]}}'
    with socket.create_connection(gateway.address) as client:
        client.sendall(
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nx-api-key: {TOKEN}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        received = b""
        while b'"content":"You"' not in received:
            received += client.recv(65536)
    left = time.time()
    record = vendor.next_record(before)
    assert record["outcome"] == "client-left"
    assert record["finished_at"] - left < 1.5
    row = gateway.wait_row(0)
    assert (row["outcome"], row["input_tokens"]) == ("cancelled", 60)
    assert gateway.metric("hearth_open_requests") == 0


# --- load and limits ---------------------------------------------------------------------------


def test_when_full_it_says_so_at_once_and_stays_healthy(own: Make) -> None:
    gateway = own(server={"max_open_requests": 2})
    streams = [ask(gateway, "x-slow", stream=True) for _ in range(2)]
    error, seconds = failure(gateway)
    assert (error.status_code, error.code) == (503, "gateway_busy")
    assert error.response.headers["retry-after"] == "2" and seconds < 1
    assert gateway.client().models.list().data
    for stream in streams:
        list(stream)
    assert ask(gateway).choices


def test_many_streams_at_a_time(shared: Gateway) -> None:
    texts: list[str] = []

    def run() -> None:
        texts.append("".join(chunk.choices[0].delta.content or "" for chunk in ask(shared, "x-slow", stream=True)))

    threads = [threading.Thread(target=run) for _ in range(40)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == ["You said: Hello, dear friends"] * 40
    # One after the other they would need 40 s.
    assert time.monotonic() - started < 20


def test_connections_to_the_vendor_are_used_again(own: Make, vendor: Mock) -> None:
    gateway = own()
    for _ in range(5):
        ask(gateway)
    connections = Path(f"/proc/{gateway.process.pid}/net/tcp").read_text()
    port = f"{int(vendor.url.rpartition(':')[2]):04X}"
    established = re.findall(rf"\d: \S+ 0100007F:{port} 01 ", connections)
    assert len(established) >= 1
