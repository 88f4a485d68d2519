"""C1 to C6, C28, C29: signing in and out at the chat's instance, past Traefik."""

from __future__ import annotations

import base64
import re
import threading
from urllib.parse import parse_qs, urlsplit

import pytest
from browser import Browser, Cookie
from chain import ANN, CHAT_COOKIE, CHAT_URL, EVE, Proxy, callback, choose, sign_in
from conftest import MakeProxy

API = [("/v1/models", ()), ("/api/me", ()), ("/", ("application/json",)), ("/x", ("text/html, application/json",)),
       ("/x", ("text/html", "application/json"))]  # fmt: skip
PAGES = [("/", ()), ("/v1", ()), ("/x/v1/models", ()), ("/", ("application/json;q=0.9",)), ("/", ("*/*",))]
DAY_S = 24 * 3600


def is_csrf(cookie: Cookie) -> bool:
    return re.fullmatch(rf"{re.escape(CHAT_COOKIE)}_[A-Za-z0-9_-]{{8}}_csrf", cookie.name) is not None


def session_set(cookies: list[Cookie]) -> bool:
    return any(cookie.name == CHAT_COOKIE and cookie.value for cookie in cookies)


def test_c1_a_page_sends_to_the_provider(chat: Proxy) -> None:
    reply = chat.browser().send(f"{CHAT_URL}/deep/link?a=1&b=%2F")
    assert reply.status == 302
    target = urlsplit(reply.location)
    assert f"{target.scheme}://{target.netloc}{target.path}" == f"{chat.provider}/authorize"
    query = {name: values[0] for name, values in parse_qs(target.query).items()}
    assert query["client_id"] == "hearth"
    assert query["redirect_uri"] == f"{CHAT_URL}/oauth2/callback"
    assert query["response_type"] == "code"
    assert set(query["scope"].split()) == {"openid", "email"}
    assert query["state"].endswith(":/deep/link?a=1&b=%2F")
    assert query["code_challenge_method"] == "S256"
    assert len(base64.urlsafe_b64decode(query["code_challenge"] + "=")) == 32
    assert query["nonce"]
    [cookie] = reply.cookies()
    assert is_csrf(cookie)
    assert cookie.attributes["samesite"].lower() == "lax"
    assert {"httponly", "secure"} <= cookie.attributes.keys()
    assert "domain" not in cookie.attributes
    assert "no-store" in reply.header("Cache-Control")


def test_c1_each_sign_in_has_secrets_of_its_own(chat: Proxy) -> None:
    queries = [parse_qs(urlsplit(chat.browser().send(f"{CHAT_URL}/").location).query) for _ in range(2)]
    for name in ("state", "nonce", "code_challenge"):
        assert queries[0][name] != queries[1][name]


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize(("path", "accept"), API)
def test_c2_a_program_gets_401(chat: Proxy, method: str, path: str, accept: tuple[str, ...]) -> None:
    reply = chat.browser().send(f"{CHAT_URL}{path}", *[("Accept", value) for value in accept], method=method)
    assert (reply.status, reply.header("Content-Type"), reply.body) == (401, "application/json", b"{}")
    assert reply.all("Set-Cookie") == []


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(("path", "accept"), PAGES)
def test_c2_everything_else_is_a_page(chat: Proxy, method: str, path: str, accept: tuple[str, ...]) -> None:
    reply = chat.browser().send(f"{CHAT_URL}{path}", *[("Accept", value) for value in accept], method=method)
    assert reply.status == 302


def test_c2_x_requested_with_makes_no_api_call(chat: Proxy) -> None:
    assert chat.browser().send(f"{CHAT_URL}/", ("X-Requested-With", "XMLHttpRequest")).status == 302


def test_c3_a_listed_person_comes_in(chat: Proxy) -> None:
    browser = chat.browser()
    reply = callback(browser, chat.provider, ANN, f"{CHAT_URL}/deep?x=1")
    assert reply.status == 302
    assert reply.header("Location") == "/deep?x=1"
    cleared, [made] = [c for c in reply.cookies() if is_csrf(c)], [c for c in reply.cookies() if not is_csrf(c)]
    assert [c.attributes["max-age"] for c in cleared] == ["0"]
    assert made.name == CHAT_COOKIE
    assert made.name.startswith("__Host-")
    assert {"httponly", "secure"} <= made.attributes.keys()
    assert (made.attributes["path"], made.attributes["samesite"].lower()) == ("/", "lax")
    assert "domain" not in made.attributes
    assert int(made.attributes["max-age"]) == 7 * DAY_S
    assert len(made.name + made.value) < 4000
    assert browser.send(reply.location).json()["target"] == "/deep?x=1"


def test_c3_the_address_is_compared_without_case(chat: Proxy) -> None:
    browser = chat.browser()
    assert sign_in(browser, chat.provider, "Ann@Home.Test", f"{CHAT_URL}/").status == 200


def test_c3b_two_tabs_sign_in_at_once(chat: Proxy) -> None:
    browser = chat.browser()
    choose(browser, chat.provider, ANN)
    starts = [browser.send(f"{CHAT_URL}/tab{number}") for number in range(2)]
    backs = [browser.send(start.location) for start in starts]
    for number in (1, 0):
        ended = browser.send(backs[number].location)
        assert (ended.status, ended.header("Location")) == (302, f"/tab{number}")


def test_c3_many_at_once(chat: Proxy) -> None:
    statuses: list[int] = []

    def person() -> None:
        statuses.append(sign_in(chat.browser(), chat.provider, ANN, f"{CHAT_URL}/").status)

    threads = [threading.Thread(target=person) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 8


def test_c3_a_callback_is_good_once(chat: Proxy) -> None:
    browser = chat.browser()
    choose(browser, chat.provider, ANN)
    back = browser.send(browser.send(f"{CHAT_URL}/").location)
    before = browser.clone()
    assert browser.send(back.location).status == 302
    again = before.send(back.location)
    assert again.status == 500
    assert not session_set(again.cookies())


def test_c4_somebody_who_is_not_on_the_list(chat: Proxy) -> None:
    reply = callback(chat.browser(), chat.provider, EVE, f"{CHAT_URL}/")
    assert reply.status == 403
    assert reply.header("Content-Type").startswith("text/html")
    assert "This account may not come in" in reply.body.decode()
    assert "/oauth2/start?prompt=select_account" in reply.body.decode()
    assert not session_set(reply.cookies())


def test_c4_an_address_that_only_looks_like_a_listed_one(chat: Proxy) -> None:
    for address in ("ann@home.test@evil.test", "ann@home.test.evil.test", "xann@home.test", "ann@home.tes"):
        reply = callback(chat.browser(), chat.provider, address, f"{CHAT_URL}/")
        assert reply.status in (403, 500), address
        assert not session_set(reply.cookies())


@pytest.mark.parametrize(
    ("fault", "statuses"),
    [
        ({"email_verified": "false"}, {500}),
        ({"broken": "true"}, {500}),
        ({"audience": "wrong"}, {500}),
        ({"issuer": "wrong"}, {500}),
        ({"expired": "true"}, {500}),
        ({"redeem": "refused"}, {500}),
        ({"state": "none"}, {500}),
        ({"nonce": "wrong"}, {403, 500}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_c5_what_the_provider_may_do_wrong(chat: Proxy, fault: dict[str, str], statuses: set[int]) -> None:
    person = "bob@home.test"
    browser = chat.browser()
    reply = callback(browser, chat.provider, person, f"{CHAT_URL}/", **fault)
    choose(browser, chat.provider, person)  # faults are the address's: take it away again
    assert reply.status in statuses
    assert reply.header("Content-Type").startswith("text/html")
    assert not session_set(reply.cookies())


def test_c5_the_provider_says_no(chat: Proxy) -> None:
    reply = callback(chat.browser(), chat.provider, "nobody", f"{CHAT_URL}/")
    assert reply.status == 403
    assert not session_set(reply.cookies())


def test_c5_without_the_cookie_of_the_sign_in(chat: Proxy) -> None:
    browser = chat.browser()
    choose(browser, chat.provider, ANN)
    back = browser.send(browser.send(f"{CHAT_URL}/").location)
    reply = chat.browser().send(back.location)
    assert reply.status == 403
    assert not session_set(reply.cookies())


def test_c5_the_state_of_another_browser(chat: Proxy) -> None:
    """Somebody sends Ann a link that would sign her in as them."""
    mallory, ann = chat.browser(), chat.browser()
    choose(mallory, chat.provider, "bob@home.test")
    back = mallory.send(mallory.send(f"{CHAT_URL}/").location)
    ann.send(f"{CHAT_URL}/")
    reply = ann.send(back.location)
    assert reply.status in (403, 500)
    assert not session_set(reply.cookies())


def test_c5_the_cookie_of_one_sign_in_does_not_end_another(chat: Proxy) -> None:
    browser = chat.browser()
    choose(browser, chat.provider, ANN)
    first, second = (browser.send(f"{CHAT_URL}/") for _ in range(2))
    [mine], [other] = first.cookies(), second.cookies()
    back = browser.send(first.location)
    forged = Browser(browser.routes)
    forged.keep([Cookie(mine.name, other.value, mine.domain, mine.attributes)])
    reply = forged.send(back.location)
    assert reply.status in (403, 500)
    assert not session_set(reply.cookies())


def test_c5_the_whole_state_counts(chat: Proxy) -> None:
    """The cookie is named after its first letters only."""
    browser = chat.browser()
    choose(browser, chat.provider, ANN)
    back = browser.send(browser.send(f"{CHAT_URL}/").location).location
    [state] = parse_qs(urlsplit(back).query)["state"]
    forged = back.replace(state[8:20], "A" * 12)
    assert forged != back
    reply = browser.send(forged)
    assert reply.status in (403, 500)
    assert not session_set(reply.cookies())


ELSEWHERE = ["https://evil.test/", "//evil.test", "/\\evil.test", "https://hearth.test.evil.test/", "https://hearth.test@evil.test/",
             "javascript:alert(1)", "/a//evil.test", "/a/..//evil.test", "http:evil.test", "\\\\evil.test"]  # fmt: skip


@pytest.mark.parametrize("target", ELSEWHERE)
def test_c6_no_redirect_leads_elsewhere(chat: Proxy, target: str) -> None:
    browser = chat.browser()
    choose(browser, chat.provider, ANN)
    quoted = target.replace("\\", "%5C").replace("/", "%2F").replace(":", "%3A")
    asked = [(f"{CHAT_URL}/oauth2/start?rd={quoted}", ()), (f"{CHAT_URL}/oauth2/start", (("X-Auth-Request-Redirect", target),))]
    for url, headers in asked:
        ended = browser.send(browser.send(browser.send(url, *headers).location).location)
        assert (ended.status, ended.header("Location")) == (302, "/")
        out = browser.send(url.replace("/start", "/sign_out"), *headers)
        assert (out.status, out.header("Location")) == (302, "/")


def test_c6_a_path_here_is_followed(chat: Proxy) -> None:
    browser = chat.browser()
    choose(browser, chat.provider, ANN)
    ended = browser.send(browser.send(browser.send(f"{CHAT_URL}/oauth2/start?rd=%2Fnew%3Fx%3D1").location).location)
    assert ended.header("Location") == "/new?x=1"


def test_c6_a_state_made_by_a_client_leads_nowhere_else(chat: Proxy) -> None:
    browser = chat.browser()
    choose(browser, chat.provider, ANN)
    start = browser.send(f"{CHAT_URL}/")
    back = browser.send(start.location).location
    forged = re.sub(r"%3A%2F", "%3Ahttps%3A%2F%2Fevil.test%2F", back)
    assert forged != back
    ended = browser.send(forged)
    assert (ended.status, ended.header("Location")) == (302, "/")


def test_another_account_can_be_asked_for(chat: Proxy) -> None:
    for asked, sent in (("select_account", ["select_account"]), ("none", []), ("consent", [])):
        query = parse_qs(urlsplit(chat.browser().send(f"{CHAT_URL}/oauth2/start?prompt={asked}").location).query)
        assert query.get("prompt", []) == sent
    # Not by any page that somebody links to.
    assert "prompt" not in parse_qs(urlsplit(chat.browser().send(f"{CHAT_URL}/?prompt=select_account").location).query)


def test_c28_sign_out(chat: Proxy) -> None:
    browser = chat.signed_in()
    copy = browser.clone()
    reply = browser.send(f"{CHAT_URL}/oauth2/sign_out?rd=%2Fbye")
    assert (reply.status, reply.header("Location")) == (302, "/bye")
    assert [c.attributes["max-age"] for c in reply.cookies() if c.name == CHAT_COOKIE] == ["0"]
    assert browser.send(f"{CHAT_URL}/").status == 302
    # The other side of cookies without a store: who has a copy stays in.
    assert copy.send(f"{CHAT_URL}/").status == 200


@pytest.mark.parametrize(
    "spoil",
    [
        lambda value: value[:-3] + ("AAA" if not value.endswith("AAA") else "BBB"),
        lambda value: value[: len(value) // 2],
        lambda value: ("B" if value[0] == "A" else "A") + value[1:],
        lambda value: "",
        lambda value: "x",
        lambda value: value + "AAAA",
    ],
    ids=["signature", "truncated", "content", "empty", "short", "longer"],
)
def test_c29_a_cookie_that_was_changed(chat: Proxy, spoil: object) -> None:
    browser = chat.signed_in()
    [(key, cookie)] = [item for item in browser.jar.items() if item[1].name == CHAT_COOKIE]
    browser.jar[key] = Cookie(cookie.name, spoil(cookie.value), cookie.domain, cookie.attributes)  # type: ignore[operator]
    reply = browser.send(f"{CHAT_URL}/v1/models")
    assert reply.status == 401
    assert [c.attributes["max-age"] for c in reply.cookies() if c.name == CHAT_COOKIE] == ["0"]


def test_c29_the_cookie_of_another_secret_or_name(chat: Proxy, make_proxy: MakeProxy) -> None:
    value = chat.signed_in().session(CHAT_COOKIE)
    others = {CHAT_COOKIE: make_proxy(cookie_secret="f" * 32), "__Host-other": make_proxy(changes={CHAT_COOKIE: "__Host-other"})}
    for name, other in others.items():
        reply = other.browser().send(f"{CHAT_URL}/v1/models", ("Cookie", f"{name}={value}"))
        assert reply.status == 401
        assert [c.name for c in reply.cookies()] == [name]


def test_c29_a_cookie_ends(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(changes={'cookie_expire = "168h"': 'cookie_expire = "2s"'})
    browser = proxy.signed_in()
    kept = browser.session(CHAT_COOKIE)
    threading.Event().wait(3.1)
    reply = browser.send(f"{CHAT_URL}/v1/models", ("Cookie", f"{CHAT_COOKIE}={kept}"), cookies=False)
    assert reply.status == 401


def test_c29_every_replica_takes_the_cookie(chat: Proxy, make_proxy: MakeProxy) -> None:
    browser = chat.signed_in()
    other = make_proxy().browser()
    other.jar = browser.jar
    assert other.send(f"{CHAT_URL}/").status == 200
