"""C12, C13: which addresses the proxy answers itself, and how it cleans the others."""

from __future__ import annotations

import pytest
from browser import Browser
from chain import ANN, CHAT_URL, Proxy


@pytest.fixture(scope="module")
def ann(chat: Proxy) -> Browser:
    return chat.signed_in()


@pytest.mark.parametrize("path", ["/ping", "/ready"])
def test_c12_probes(chat: Proxy, path: str) -> None:
    reply = chat.browser().send(f"{CHAT_URL}{path}")
    assert (reply.status, reply.body) == (200, b"OK")


def test_c12_robots(chat: Proxy) -> None:
    reply = chat.browser().send(f"{CHAT_URL}/robots.txt")
    assert reply.status == 200
    assert b"Disallow: /" in reply.body


def test_c12_auth_only(chat: Proxy, ann: Browser) -> None:
    assert chat.browser().send(f"{CHAT_URL}/oauth2/auth").status == 401
    assert ann.send(f"{CHAT_URL}/oauth2/auth").status == 202


def test_c12_user_info(chat: Proxy, ann: Browser) -> None:
    assert chat.browser().send(f"{CHAT_URL}/oauth2/userinfo").status == 401
    reply = ann.send(f"{CHAT_URL}/oauth2/userinfo")
    assert (reply.status, reply.header("Content-Type")) == (200, "application/json")
    assert reply.json()["email"] == ANN
    assert reply.json()["user"]
    assert "no-store" in reply.header("Cache-Control")


ORDINARY = ["/oauth2/x", "/oauth2", "/oauth2x", "/metrics", "/pingx", "/ping/", "/robots.txt/", "/readyz", "/favicon.ico"]


@pytest.mark.parametrize("path", ORDINARY)
def test_c12_everything_else_is_for_people_who_are_in(chat: Proxy, ann: Browser, path: str) -> None:
    assert chat.browser().send(f"{CHAT_URL}{path}").status == 302
    assert ann.send(f"{CHAT_URL}{path}").json()["target"] == path


@pytest.mark.parametrize(
    ("path", "cleaned"),
    [("//", "/"), ("//x", "/x"), ("/a//b", "/a/b"), ("/a/./b", "/a/b"), ("/a/../b", "/b"), ("/../x", "/x"), ("/v1/../ping", "/ping")],
)
def test_c13_a_path_is_cleaned_for_everybody(chat: Proxy, ann: Browser, path: str, cleaned: str) -> None:
    for browser in (chat.browser(), ann):
        reply = browser.send(f"{CHAT_URL}{path}?q=1")
        assert (reply.status, reply.header("Location")) == (301, f"{cleaned}?q=1")


@pytest.mark.parametrize(("path", "cleaned"), [("/a/%2e%2e/b", "/b"), ("/%2e/x", "/x"), ("/a/%2E%2E/%2e%2e/b", "/b")])
def test_c13_encoded_dots_never_reach_the_gateway(ann: Browser, path: str, cleaned: str) -> None:
    reply = ann.send(f"{CHAT_URL}{path}")
    assert (reply.status, reply.header("Location")) == (301, cleaned)


@pytest.mark.parametrize("path", ["/a%2Fb", "/a;b", "/a%3Bb", "/a%20b", "/a.b/..c", "/a/"])
def test_c13_what_is_clean_stays(ann: Browser, path: str) -> None:
    assert ann.send(f"{CHAT_URL}{path}").json()["target"] == path


def test_c13_an_encoded_path_opens_no_door(chat: Proxy) -> None:
    for path in ("/%70ing", "/ping%2F", "/%6Fauth2/auth", "/robots%2Etxt"):
        assert chat.browser().send(f"{CHAT_URL}{path}").status == 302, path
