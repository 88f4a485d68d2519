"""C7, C9, C10b, C11, C14: what the gateway is told, and what nobody can make it hear. Past Traefik."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import pytest
from browser import Browser
from chain import ANN, BOB, CHAT, CHAT_COOKIE, CHAT_URL, NAMES, Proxy
from identity import AS_EVE, EVIL, PROTECTED, arrived, credential, dashed, odd


@pytest.fixture(scope="module")
def ann(chat: Proxy) -> Browser:
    return chat.signed_in()


def reached(browser: Browser, *headers: tuple[str, str], path: str = "/page", method: str = "GET") -> list[tuple[str, str]]:
    reply = browser.send(f"{CHAT_URL}{path}", *headers, method=method)
    assert reply.status == 200, reply.status
    return [(name, value) for name, value in reply.json()["headers"]]


def test_c7_one_credential_and_nothing_else(ann: Browser) -> None:
    headers = reached(ann, ("User-Agent", "test"), ("X-Own", "kept"))
    assert arrived(headers) == [("Authorization", credential(ANN))]
    names = [name.lower() for name, _ in headers]
    assert "cookie" not in names
    assert ("Host", CHAT) in headers
    assert ("X-Own", "kept") in headers


def test_c7_the_case_of_the_address_is_kept(chat: Proxy) -> None:
    assert arrived(reached(chat.signed_in("Ann@Home.Test"))) == [("Authorization", credential("Ann@Home.Test"))]


TARGETS = ["/a%2Fb", "/a;b=1", "/a?x=1&x=2&&y", "/?q=%7Bx%7D", "/a+b%20c", "/%E2%82%AC?%00", "/a?b?c", "/v1/models?limit=1", "/a%3Fb", "/*",
           "/?a=1;b=2", "/?%zz"]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_c7_path_and_query_byte_for_byte(ann: Browser, target: str) -> None:
    assert ann.send(f"{CHAT_URL}{target}").json()["target"] == target


def test_c7_a_header_sent_twice_arrives_as_one(ann: Browser) -> None:
    """Servers differ in which of two they take, so there are never two."""
    assert [value for name, value in reached(ann, ("X-Own", "a"), ("X-Own", "b")) if name == "X-Own"] == ["a,b"]


def test_c7_the_peer_is_appended(ann: Browser) -> None:
    headers = dict(reached(ann, ("X-Forwarded-For", "203.0.113.9")))
    assert headers["X-Forwarded-For"] == "203.0.113.9, 127.0.0.1"


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_c7_for_every_method(ann: Browser, method: str) -> None:
    assert arrived(reached(ann, ("Authorization", AS_EVE), method=method)) == [("Authorization", credential(ANN))]


@pytest.mark.parametrize("name", PROTECTED)
def test_c9_a_forged_header_vanishes(ann: Browser, name: str) -> None:
    """In every case, dash and underscore spelling; alone, twice, joined, with the right form and a wrong token."""
    value = AS_EVE if name == "Authorization" else EVIL
    for spelling in dashed(name):
        forged = [(spelling, value)]
        joined = [[(spelling, text)] for text in (f"{value},{value}", f"{BOB}, {value}", "")]
        for headers in (forged, forged * 2, forged * 3, *joined):
            assert arrived(reached(ann, *headers)) == [("Authorization", credential(ANN))], headers


def test_c9_all_of_them_at_once(ann: Browser) -> None:
    forged = [(spelling, EVIL) for name in PROTECTED for spelling in dashed(name)]
    assert arrived(reached(ann, *forged)) == [("Authorization", credential(ANN))]


def test_c9_a_second_cookie_header_reaches_nobody(ann: Browser) -> None:
    headers = reached(ann, ("Cookie", "x=1"), ("cookie", "y=2"))
    assert not [name for name, _ in headers if name.lower() == "cookie"]


@pytest.mark.parametrize("name", NAMES["access"]["identity_headers"])
def test_c9b_other_characters_pass(ann: Browser, name: str) -> None:
    """Why Traefik must delete them: the real oauth2-proxy lets them through, so the stand-in has to."""
    for spelling in odd(name)[:3]:
        found = [(sent.lower(), value) for sent, value in reached(ann, (spelling, EVIL))]
        assert (spelling.lower(), EVIL) in found


def test_c10b_a_connection_header_removes_the_credential(ann: Browser) -> None:
    """The person is then nobody to the gateway (C26): the worst that a client can do to itself."""
    for value in ("Authorization", "authorization", "close, Authorization", "Authorization, X-Own"):
        assert arrived(reached(ann, ("Connection", value))) == []


STEERING = [
    ("X-Forwarded-Uri", "/ping"),
    ("X-Forwarded-Uri", "/oauth2/callback"),
    ("X-Forwarded-Uri", "/v1/models"),
    ("X-Forwarded-Host", "auth.hearth.test"),
    ("X-Forwarded-Proto", "http"),
    ("X-Forwarded-For", "127.0.0.1"),
    ("X-Forwarded-Method", "OPTIONS"),
    ("X-Real-Ip", "127.0.0.1"),
    ("X-Original-Url", "/ping"),
    ("Forwarded", "for=127.0.0.1;host=auth.hearth.test"),
    ("User-Agent", "GoogleHC/1.0"),
]


@pytest.mark.parametrize(("name", "value"), STEERING)
def test_c11_no_header_opens_a_door(chat: Proxy, name: str, value: str) -> None:
    page = chat.browser().send(f"{CHAT_URL}/x", (name, value))
    assert page.status == 302
    assert page.location.startswith(chat.provider)
    query = parse_qs(urlsplit(page.location).query)
    assert query["state"][0].endswith(":/x")
    assert query["redirect_uri"] == [f"{CHAT_URL}/oauth2/callback"]
    api = chat.browser().send(f"{CHAT_URL}/v1/models", (name, value))
    assert (api.status, api.body) == (401, b"{}")


def test_c11_no_method_opens_a_door(chat: Proxy) -> None:
    for header in ("X-HTTP-Method-Override", "X-Forwarded-Method"):
        assert chat.browser().send(f"{CHAT_URL}/v1/models", (header, "OPTIONS"), method="POST").status == 401


def test_c11_no_credential_of_a_program_opens_a_door(chat: Proxy) -> None:
    """Programs go to the gateway itself; at the front door there are sessions only."""
    for header in (("Authorization", credential(ANN)), ("Authorization", "Bearer x"), ("X-Api-Key", "x"), ("X-Forwarded-Email", ANN)):
        assert chat.browser().send(f"{CHAT_URL}/v1/models", header).status == 401


def test_c14_every_answer_says_who(ann: Browser) -> None:
    assert ann.send(f"{CHAT_URL}/").header("Gap-Auth") == ANN
    assert not ann.clone().send(f"{CHAT_URL}/", cookies=False).header("Gap-Auth")


def test_a_cookie_of_the_same_name_twice(chat: Proxy, ann: Browser) -> None:
    """A sibling host that sets a second cookie of our name keeps a person out at worst; it never makes them another."""
    own = ann.session(CHAT_COOKIE)
    for line in (f"{CHAT_COOKIE}=evil; {CHAT_COOKIE}={own}", f"{CHAT_COOKIE}={own}; {CHAT_COOKIE}=evil"):
        reply = chat.browser().send(f"{CHAT_URL}/v1/x", ("Cookie", line))
        assert reply.status in (200, 401)
        if reply.status == 200:
            assert arrived(reply.json()["headers"]) == [("Authorization", credential(ANN))]
