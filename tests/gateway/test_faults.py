"""What can go wrong between the gateway and a vendor, over real sockets: what the client sees, and when."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from bad_servers import Deaf
from gateway_support import Gateway, Mock, wait_for

HELLO: Any = [{"role": "user", "content": "Hello, dear friends"}]
Make = Callable[..., Gateway]


# A word takes 0.2 s: an answer that is still being written when the test, on a busy machine, gets to what it asks meanwhile.
LONG: Any = [{"role": "user", "content": "word " * 40}]
# What can be told at once is, and does not wait for one of these; a busy machine's "at once" is a part of them.
PATIENT = {"connect_s": 25, "first_token_s": 25}
AT_ONCE_S = 12


def ask(gateway: Gateway, model: str = "sonnet", stream: bool = False, messages: Any = HELLO) -> Any:
    return gateway.client().chat.completions.create(model=model, messages=messages, stream=stream)


def failure(gateway: Gateway, model: str = "sonnet", stream: bool = False) -> tuple[openai.APIStatusError, float]:
    """The error of a request that must fail, and the seconds until it came."""
    started = time.monotonic()
    with pytest.raises(openai.APIStatusError) as caught:
        ask(gateway, model, stream)
    return caught.value, time.monotonic() - started


# --- it cannot be reached ---------------------------------------------------------------------


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
    error, seconds = failure(own(vendor_url=tls_vendor.url, timeouts=PATIENT))
    assert (error.status_code, error.code) == (504, "upstream_unreachable")
    assert "certificate" in error.message and seconds < AT_ONCE_S


def test_tls_to_a_server_that_speaks_none(own: Make, vendor: Mock) -> None:
    error, seconds = failure(own(vendor_url=vendor.url.replace("http:", "https:"), timeouts=PATIENT))
    assert error.code == "upstream_unreachable" and "TLS" in error.message and seconds < AT_ONCE_S


def test_refused(own: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    error, seconds = failure(own(vendor_url=f"http://127.0.0.1:{port}", timeouts=PATIENT))
    assert error.code == "upstream_unreachable" and "refused" in error.message and seconds < AT_ONCE_S


def test_a_name_that_does_not_exist(own: Make) -> None:
    # How long a resolver takes to say no is the machine's business.
    error, _ = failure(own(vendor_url="http://vendor.invalid", timeouts=PATIENT))
    assert error.code == "upstream_unreachable" and "name" in error.message


def test_slow_headers_meet_the_first_token_limit(own: Make) -> None:
    gateway = own(timeouts={"first_token_s": 1})
    for stream in (False, True):
        error, seconds = failure(gateway, "x-slow-headers", stream)
        assert (error.status_code, error.code) == (504, "upstream_timeout")
        assert 1 <= seconds < 6, "the vendor's headers come after 10 s"


def test_silence_before_the_first_word(own: Make) -> None:
    gateway = own(timeouts={"first_token_s": 1})
    error, seconds = failure(gateway, "x-silent", stream=True)
    assert error.code == "upstream_timeout" and "begin" in error.message and 1 <= seconds < 6


def test_reasoning_that_shows_nothing_is_an_answer_that_has_begun(own: Make) -> None:
    target = {"provider": "anthropic", "model": "mock+thinking-pings", "max_output_tokens": 1000}
    gateway = own(timeouts={"first_token_s": 1}, models={"hidden": [target]}, breaker={"failures": 1})
    assert ask(gateway, "hidden").choices[0].message.content == "You said: Hello, dear friends"
    started = time.monotonic()
    words = [chunk.choices[0].delta.content for chunk in ask(gateway, "hidden", stream=True) if chunk.choices]
    assert "".join(word or "" for word in words) == "You said: Hello, dear friends" and time.monotonic() - started > 2.5


def test_headers_go_out_early_so_that_proxies_do_not_give_up(own: Make) -> None:
    gateway = own(server={"headers_after_s": 0.5}, timeouts={"first_token_s": 6})
    started = time.monotonic()
    stream = ask(gateway, "x-silent", stream=True)
    assert time.monotonic() - started < 5
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


def raw_stream(gateway: Gateway, model: str) -> bytes:
    """The bytes of a streamed answer, as they came."""
    client = gateway.client()
    with client.chat.completions.with_streaming_response.create(model=model, messages=HELLO, stream=True) as response:
        return b"".join(response.iter_bytes())


# --- a large request ---------------------------------------------------------------------------

# More than all buffers on the way together.
LARGE: Any = [{"role": "user", "content": "word " * 4_000_000}, {"role": "assistant", "content": "Read."}, *HELLO]
TLS = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])


def deaf(own: Make, server: Deaf, second_vendor: Mock, certificates: Path) -> Gateway:
    gateway = own(vendor_url=server.url, second_url=second_vendor.url, timeouts={**PATIENT, "first_token_s": 3}, start=False)
    gateway.config["providers"] = with_ca(gateway, certificates / "ca.crt")
    gateway.save()
    gateway.start()
    return gateway


@TLS
def test_a_large_request_arrives(own: Make, vendor: Mock, tls_vendor: Mock, certificates: Path, tls: bool) -> None:
    mock = tls_vendor if tls else vendor
    plain = own(vendor_url=mock.url, start=False)
    gateway = own(vendor_url=mock.url, providers=with_ca(plain, certificates / "ca.crt"), timeouts=PATIENT)

    def arrived() -> int:
        return sum(record["body_bytes"] > 20_000_000 for record in mock.records())

    before = arrived()
    for _ in range(2):
        assert ask(gateway, messages=LARGE).choices[0].message.content == "You said: Hello, dear friends"
    wait_for(lambda: arrived() == before + 2, "the records of both")


@TLS
def test_a_vendor_that_does_not_take_the_request(own: Make, second_vendor: Mock, certificates: Path, tls: bool) -> None:
    with Deaf(certificates=certificates if tls else None) as server:
        gateway = deaf(own, server, second_vendor, certificates)
        started = time.monotonic()
        answer = gateway.client().chat.completions.with_raw_response.create(model="f-normal", messages=LARGE)
        seconds = time.monotonic() - started
    assert answer.headers["x-hearth-provider"] == "litellm"
    assert answer.headers["x-hearth-failover"] == "anthropic=upstream_timeout"
    assert 3 <= seconds < 20, "as long as for one that takes it and is silent, and no longer"


@TLS
def test_a_refusal_before_the_request_is_taken(own: Make, second_vendor: Mock, certificates: Path, tls: bool) -> None:
    refusal = b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\n{}"
    with Deaf(refusal, certificates if tls else None) as server:
        gateway = deaf(own, server, second_vendor, certificates)
        with pytest.raises(openai.APIStatusError) as caught:
            ask(gateway, "f-normal", messages=LARGE)
    assert (caught.value.status_code, caught.value.code) == (413, "request_too_large")


def test_heartbeats_while_the_vendor_is_silent(shared: Gateway) -> None:
    pieces = raw_stream(shared, "x-silent-after").split(b"\n\n")
    assert pieces.count(b":") >= 2


# --- load and limits ---------------------------------------------------------------------------


def test_when_full_it_says_so_at_once_and_stays_healthy(own: Make) -> None:
    gateway = own(server={"max_open_requests": 2})
    streams = [ask(gateway, "x-slow", stream=True, messages=LONG) for _ in range(2)]
    error, seconds = failure(gateway)
    assert (error.status_code, error.code) == (503, "gateway_busy")
    assert error.response.headers["retry-after"] == "2" and seconds < 5, "it does not wait for one of the two to end"
    assert gateway.client().models.list().data
    for stream in streams:
        list(stream)
    wait_for(lambda: gateway.metric("hearth_open_requests") == 0, "the answers to be counted out")
    assert ask(gateway).choices


LONG_HELLO: Any = [{"role": "user", "content": "Hello, dear friends, and all who read this"}]


def test_many_streams_at_a_time(shared: Gateway) -> None:
    texts: list[str] = []
    client = shared.client()  # one for all: to make forty is most of the work

    def run() -> None:
        chunks = client.chat.completions.create(model="x-slow", messages=LONG_HELLO, stream=True)
        texts.append("".join(chunk.choices[0].delta.content or "" for chunk in chunks))

    threads = [threading.Thread(target=run) for _ in range(40)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == [f"You said: {LONG_HELLO[0]['content']}"] * 40
    # One after the other they would need 80 s.
    assert time.monotonic() - started < 40


def test_connections_to_the_vendor_are_used_again(own: Make, vendor: Mock) -> None:
    gateway = own()
    for _ in range(5):
        ask(gateway)
    connections = Path(f"/proc/{gateway.process.pid}/net/tcp").read_text()
    port = f"{int(vendor.url.rpartition(':')[2]):04X}"
    established = re.findall(rf"\d: \S+ 0100007F:{port} 01 ", connections)
    assert len(established) >= 1
