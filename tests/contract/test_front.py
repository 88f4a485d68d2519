"""C8, C10, C11, C14, C21 to C25, C35 through the front door: the real Traefik with what the role renders."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from browser import Address, Browser
from chain import ANN, APP, AUTH, CHAT, CHAT_URL, HOSTS, NAMES, Traefik
from conftest import House, MakeProxy, targets
from identity import AS_EVE, EVIL, PROTECTED, arrived, credential, dashed, odd
from test_headers import STEERING
from test_streams import CHUNKS, UPGRADE, check_broken_stream, check_delays, check_large_body, check_leaving, delays
from upstream import Upstream


@pytest.fixture(scope="module")
def ann(house: House) -> Browser:
    return house.traefik.signed_in(house.provider)


def test_a_person_comes_in_and_is_one_credential(ann: Browser) -> None:
    reply = ann.send(f"{CHAT_URL}/deep?x=1")
    assert reply.status == 200
    assert arrived(reply.json()["headers"]) == [("Authorization", credential(ANN))]
    assert reply.json()["target"] == "/deep?x=1"


@pytest.mark.parametrize("name", PROTECTED)
def test_c8_no_spelling_gets_through(ann: Browser, name: str) -> None:
    """Dash, underscore, dot, `!`, `~` and the rest, in every case, twice, with commas."""
    value = AS_EVE if name == "Authorization" else EVIL
    for spelling in (*dashed(name), *odd(name)):
        for headers in ([(spelling, value)], [(spelling, value)] * 2, [(spelling, f"{ANN},{value}")]):
            reply = ann.send(f"{CHAT_URL}/page", *headers)
            if reply.status != 400:
                assert reply.status == 200
                assert arrived(reply.json()["headers"]) == [("Authorization", credential(ANN))], headers


def test_c8_the_cookie_reaches_nobody(ann: Browser) -> None:
    names = [name.lower() for name, _ in ann.send(f"{CHAT_URL}/", ("Coo.kie", "x"), ("X", "y")).json()["headers"]]
    assert "cookie" not in names


def test_c10_a_connection_header_changes_nothing(ann: Browser) -> None:
    for value in ("Authorization", "keep-alive, authorization", "X-Forwarded-For", "Authorization, Authorization"):
        reply = ann.send(f"{CHAT_URL}/", ("Connection", value))
        assert reply.status == 200, value
        assert arrived(reply.json()["headers"]) == [("Authorization", credential(ANN))]
    # Of what a client sends it can take away its own session, as if it had sent none.
    assert ann.clone().send(f"{CHAT_URL}/v1/x", ("Connection", "Cookie")).status == 401


@pytest.mark.parametrize(("name", "value"), STEERING)
def test_c11_no_header_opens_a_door(house: House, name: str, value: str) -> None:
    page = house.traefik.browser().send(f"{CHAT_URL}/x", (name, value))
    assert page.status == 302
    assert page.location.startswith(house.provider)
    assert house.traefik.browser().send(f"{CHAT_URL}/v1/models", (name, value)).status == 401


def test_c11_where_somebody_comes_from_is_what_traefik_saw(ann: Browser) -> None:
    forged = {"X-Forwarded-For": "203.0.113.9", "X-Real-Ip": "203.0.113.9", "X-Forwarded-Host": "evil.test", "X-Forwarded-Proto": "ftp"}
    headers = dict(ann.send(f"{CHAT_URL}/", *forged.items()).json()["headers"])
    assert "203.0.113.9" not in headers.values()
    assert headers["X-Forwarded-For"] == "127.0.0.1, 127.0.0.1"
    assert (headers["X-Forwarded-Host"], headers["X-Forwarded-Proto"]) == (CHAT, "https")


def test_c14_no_answer_says_who(ann: Browser) -> None:
    for headers in ((), (("X-Say-Gap-Auth", "1"),)):
        assert not ann.send(f"{CHAT_URL}/", *headers).all("Gap-Auth")


def test_c21_each_chunk_arrives_when_it_is_made(ann: Browser) -> None:
    for kind in ("text/event-stream", "application/x-ndjson"):
        check_delays(ann, f"{CHAT_URL}/stream?chunks={CHUNKS}&every_s=0.03&type={kind}")


def test_c23_a_client_that_leaves_is_noticed(ann: Browser, upstream: Upstream) -> None:
    check_leaving(ann, upstream)


def test_c24_a_broken_stream_is_no_finished_one(ann: Browser) -> None:
    check_broken_stream(ann)


def test_c25_a_large_body_passes(ann: Browser) -> None:
    check_large_body(ann)


def test_c25_websockets(house: House, ann: Browser) -> None:
    connection, response = ann.open(f"{CHAT_URL}/ws", *UPGRADE)
    assert response.status == 101
    connection.close()
    assert house.traefik.browser().send(f"{CHAT_URL}/ws", *UPGRADE).status == 302


@pytest.mark.parametrize("host", [*HOSTS.values(), "unknown.hearth.test"])
def test_c35_plain_http_goes_to_https(house: House, host: str) -> None:
    plain = Browser({host: Address("127.0.0.1", house.traefik.plain_port)})
    for method in ("GET", "POST"):
        reply = plain.send(f"http://{host}/a?b=1", method=method)
        assert reply.status in (301, 308)
        assert reply.header("Location") == f"https://{host}/a?b=1"
        assert not reply.all("Set-Cookie")


def test_an_unknown_host_leads_nowhere(house: House) -> None:
    stray = Browser({"unknown.hearth.test": Address("127.0.0.1", house.traefik.port, tls=True)})
    assert stray.send("https://unknown.hearth.test/").status == 404


def test_long_headers_are_refused_at_the_door(house: House) -> None:
    # An address that the proxy answers itself, or it would be the upstream that refuses.
    statuses = [house.traefik.browser().send(f"{CHAT_URL}/ping", ("X-Large", "x" * size)).status for size in (10_000, 100_000)]
    assert statuses == [200, 431]


def test_the_log_holds_neither_queries_nor_headers(house: House) -> None:
    browser = house.traefik.signed_in(house.provider)
    marker = f"marker{time.time_ns()}"
    browser.send(f"{CHAT_URL}/logged-{marker}?q=query-{marker}", ("X-Header", f"header-{marker}"), ("User-Agent", f"agent-{marker}"))
    deadline = time.monotonic() + 30
    while f"logged-{marker}" not in house.traefik.log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    said = house.traefik.log.read_text()
    assert f"logged-{marker}" in said
    secrets = [cookie.value for cookie in browser.jar.values() if len(cookie.value) > 20]
    for word in (f"query-{marker}", f"header-{marker}", f"agent-{marker}", "code=", "state=", *secrets):
        assert word not in said


FLOOD = 1000
AVERAGE, BURST = 50, 200  # of the role: requests a second from one address, and at once


def test_a_flood_before_sign_in_leaves_a_chat_alone(
    tmp_path: Path, files: dict[str, dict[str, str]], make_proxy: MakeProxy, upstream: Upstream, provider: str
) -> None:
    """With the bounds as they are delivered, per address: the flood comes from one, the chat from another."""
    chat, apps = make_proxy("chat"), make_proxy("apps")
    traefik = Traefik(tmp_path / "front", files["front"], targets(chat.url, apps.url, upstream.url))
    try:
        ann = traefik.signed_in(provider)
        found: list[float] = []
        stream = threading.Thread(target=lambda: found.extend(delays(ann, f"{CHAT_URL}/stream?chunks=100&every_s=0.05")))
        stream.start()
        statuses: list[int] = []

        def flood() -> None:
            # All of 127/8 is this machine; Traefik sees the address.
            browser = Browser(traefik.browser().routes, source="127.0.0.9")
            statuses.extend(browser.send(f"{CHAT_URL}/v1/models").status for _ in range(FLOOD // 4))

        began = time.monotonic()
        threads = [threading.Thread(target=flood) for _ in range(4)]
        for thread in threads:
            thread.start()
        asked = [ann.clone().send(f"{CHAT_URL}/v1/x").status for _ in range(20)]
        for thread in threads:
            thread.join()
        flood_s = time.monotonic() - began
        stream.join()
    finally:
        traefik.stop()
    assert set(statuses) <= {401, 429}
    # What may pass is the burst and what is allowed in each second. A slow machine's flood is a thin one.
    assert statuses.count(401) <= BURST + AVERAGE * (flood_s + 1)
    assert 429 in statuses
    assert asked == [200] * 20
    assert len(found) == 100
    # A flood is work for this machine, too: some lines may meet it, the others arrive when they are made.
    assert sorted(found)[-10] < 1, sorted(found)[-10:]
    assert max(found) < 3, max(found)


def test_both_hosts_of_the_sign_in_answer(house: House) -> None:
    assert house.traefik.browser().send(f"https://{AUTH}/ping").status == 200
    assert house.traefik.browser().send(f"https://{APP}/").status == 302


def test_what_the_names_say_is_what_is_deleted(files: dict[str, dict[str, str]]) -> None:
    """One list for all: no name is stripped at one hop and forgotten at another."""
    dynamic = files["front"]["dynamic.yaml"]
    alpha = files["chat"]["alpha.yaml"]
    for name in NAMES["access"]["identity_headers"]:
        assert json.dumps(name) in dynamic
        assert f"- name: {name}\n" in alpha
