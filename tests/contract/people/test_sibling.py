"""What a hostile page of a sibling host can do to a person who is signed in.

`evil.hearth.test` is another origin than `chat.hearth.test` but the same *site*: SameSite=Lax lets Ann's cookie come along with
whatever it makes her browser send. It must not spend, write, delete or read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import evil
import pytest
from chain import ANN, APP, APPS_COOKIE, BOB, CHAT_COOKIE, CHAT_URL, DOMAIN, EVE
from evil import Evil
from gateway_support import Mock
from hops import Hops
from playwright.sync_api import Browser, Page, Response, expect

from tests.browser.visitor import House, Visitor, expect_chat_of

QUESTION = json.dumps({"model": "sonnet", "messages": [{"role": "user", "content": "spend"}]})
ASKING = ("/v1/chat/completions", "/v1/messages")
# What a request may come to that carries Ann's cookie, and one that does not.
REFUSED, NOBODY = {403, 405, 415}, {401}


class Attack:
    """Ann with her chat in one tab, and the hostile page in another."""

    def __init__(self, visitor: Visitor, hops: Hops, vendor: Mock, sibling: Evil) -> None:
        self.visitor, self.hops, self.vendor, self.sibling = visitor, hops, vendor, sibling
        self.chat = visitor.open_chat(ANN)
        self.session = visitor.session()
        self.asked, self.rows = vendor.asked(), hops.gateway.settled_rows()
        self.page = visitor.context.new_page()
        self.answers: list[tuple[str, str, int]] = []
        self.page.on("response", self._note)
        self.open("<!doctype html><title>Evil</title>")

    def _note(self, response: Response) -> None:
        if response.url.startswith(CHAT_URL):
            self.answers.append((response.request.method, response.url, response.status))

    def open(self, html: str) -> Page:
        self.sibling.pages["/"] = html
        self.page.goto(f"{evil.URL}/")
        self.answers.clear()
        return self.page

    def statuses(self, *methods: str) -> set[int]:
        return {status for method, _, status in self.answers if method in methods}

    def check_nothing_happened(self) -> None:
        assert self.vendor.asked() == self.asked, "something was asked, and paid"
        assert self.hops.gateway.settled_rows() == self.rows
        assert self.visitor.session() == self.session
        assert self.session is not None
        assert all(self.session["value"] not in headers.get("Cookie", "") for headers in self.sibling.told)
        self.chat.reload()
        expect_chat_of(self.chat, ANN)


@pytest.fixture
def attack(visitor: Visitor, hops: Hops, vendor: Mock, sibling: Evil) -> Iterator[Attack]:
    sibling.pages.clear()
    sibling.cookies.clear()
    sibling.told.clear()
    begun = Attack(visitor, hops, vendor, sibling)
    yield begun
    begun.check_nothing_happened()


FETCH = """async ([url, options]) => {
  try {
    const answer = await fetch(url, {credentials: 'include', ...options});
    return answer.type === 'opaque' || answer.type === 'opaqueredirect' ? 'opaque' : await answer.text();
  } catch (error) { return 'blocked'; }
}"""
SIMPLE = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x")


@pytest.mark.parametrize("path", ASKING)
def test_it_cannot_ask_in_the_persons_name(attack: Attack, path: str) -> None:
    """The requests that a browser sends without asking first arrive with the cookie, and are refused."""
    for kind in SIMPLE:
        for mode in ("no-cors", "cors"):
            options = {"method": "POST", "mode": mode, "headers": {"Content-Type": kind}, "body": QUESTION}
            assert attack.page.evaluate(FETCH, [CHAT_URL + path, options]) in ("opaque", "blocked")
    attack.page.evaluate("([url, body]) => navigator.sendBeacon(url, new Blob([body], {type: 'text/plain'}))", [CHAT_URL + path, QUESTION])
    attack.page.wait_for_timeout(200)
    # Refused by the gateway, who saw Ann: else the cookie did not come along and this shows nothing.
    assert attack.statuses("POST") == {415}, attack.answers


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_the_browser_asks_first_and_is_told_nothing(attack: Attack, method: str) -> None:
    """JSON, another method or a header of one's own: a preflight goes ahead, without cookie, and allows nothing."""
    for path in (*ASKING, "/api/me"):
        options = {"method": method, "mode": "cors", "headers": {"Content-Type": "application/json", "X-Any": "1"}, "body": QUESTION}
        assert attack.page.evaluate(FETCH, [CHAT_URL + path, options]) == "blocked"
    assert attack.statuses(method) == set(), "it was sent in spite of the preflight"


def test_it_cannot_read(attack: Attack) -> None:
    for path in ("/api/me", "/v1/models", "/", "/oauth2/userinfo", "/static/app.js"):
        for mode in ("cors", "no-cors"):
            assert attack.page.evaluate(FETCH, [CHAT_URL + path, {"mode": mode}]) in ("opaque", "blocked"), path
    # Elements that load across origins: none of them comes to anything, whether Ann is signed in or not.
    loaded = attack.page.evaluate("""chat => Promise.all([['script', 'src', '/static/app.js'], ['img', 'src', '/static/icon.svg'],
        ['script', 'src', '/v1/models'], ['link', 'href', '/static/style.css']].map(([tag, name, path]) => new Promise((done) => {
          const it = document.createElement(tag);
          if (tag === 'link') it.rel = 'stylesheet';
          it.onload = () => done(path + ' loaded');
          it.onerror = () => done('error');
          it[name] = chat + path;
          document.head.append(it);
        })))""", CHAT_URL)
    assert set(loaded) == {"error"}


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_a_form_that_sends_itself(attack: Attack, kind: str) -> None:
    """A navigation of the whole window: the cookie comes along, and the answer replaces the page."""
    for path in ASKING:
        name, value = QUESTION[:-2] + ', "x": "', '"}]}'
        page = attack.open(f"<!doctype html><form method=post enctype={kind} action={CHAT_URL}{path}><input></form>")
        page.evaluate("([name, value]) => Object.assign(document.querySelector('input'), {name, value})", [name, value])
        with page.expect_navigation():
            page.evaluate("document.forms[0].submit()")
        assert {status for method, _, status in attack.answers if method == "POST"} <= REFUSED, attack.answers


def test_a_form_in_a_frame(attack: Attack) -> None:
    page = attack.open(
        f"<!doctype html><iframe name=inside></iframe><form target=inside method=post enctype=text/plain action={CHAT_URL}{ASKING[0]}>"
        "<input name=x></form>"
    )
    with page.expect_response(f"{CHAT_URL}{ASKING[0]}") as refused:
        page.evaluate("document.forms[0].submit()")
    assert refused.value.status in REFUSED


def test_the_chat_shows_in_no_frame(attack: Attack) -> None:
    """Clickjacking: what is not shown cannot be clicked."""
    page = attack.open("<!doctype html>" + "".join(
        f"<{tag} {name}={CHAT_URL}{path}></{tag}>"
        for tag, name in (("iframe", "src"), ("iframe sandbox=allow-scripts", "src"), ("object", "data"), ("embed", "src"))
        for path in ("/", "/static/back.html")
    ))  # fmt: skip
    page.wait_for_load_state("networkidle")
    shown = [frame for frame in page.frames[1:] if frame.locator("h1, h2").count()]
    assert [frame.url for frame in shown if frame.url.startswith(CHAT_URL)] == []


def test_a_window_that_it_opens_is_out_of_its_hands(attack: Attack) -> None:
    with attack.page.expect_popup() as opened:
        attack.page.evaluate(f"window.held = window.open('{CHAT_URL}/')")
    expect_chat_of(opened.value, ANN)
    assert attack.page.evaluate("held.closed") is True, "the opener still has a hold on the chat"
    assert opened.value.evaluate("window.opener") is None
    # Nor does the chat listen to it on the channel of its own tabs, which is one for each origin.
    attack.page.evaluate("new BroadcastChannel('hearth-account').postMessage('signed out')")
    opened.value.wait_for_timeout(200)
    expect(opened.value.locator("#draft")).to_be_visible()


def test_there_is_no_websocket_to_misuse(attack: Attack) -> None:
    """A websocket is bound by no same-origin rule; a browser sends the cookie along."""
    for path in ("/", "/v1/chat/completions", "/api/me"):
        ended = attack.page.evaluate(
            """url => new Promise((done) => {
              const socket = new WebSocket(url);
              socket.onopen = () => done('open');
              socket.onerror = () => done('refused');
            })""",
            CHAT_URL.replace("https:", "wss:") + path,
        )
        assert ended == "refused", path


def tossed(value: str) -> list[str]:
    """Cookies that a sibling would like the chat to be sent: for the parent domain, under every name that could be taken for ours."""
    names = [CHAT_COOKIE, CHAT_COOKIE.lower(), f"{CHAT_COOKIE}_csrf", CHAT_COOKIE.removeprefix("__Host-"), f" {CHAT_COOKIE}"]
    names.append(f"={CHAT_COOKIE}")  # without a name: sent as its value alone, which then reads as ours
    scopes = [f"; Domain={DOMAIN}", f"; Domain={DOMAIN}; Path=/api", f"; Domain=chat.{DOMAIN}", ""]
    return [f"{name}={value}; Secure{'' if 'Path' in scope else '; Path=/'}{scope}" for name in names for scope in scopes]


@pytest.fixture
def session_of_eve(browser: Browser, house: House, hops: Hops) -> Iterator[str]:
    """A session that is good, and whose owner would like Ann to use it."""
    hops.people.set(ANN, BOB, EVE)
    eve = Visitor(browser, house)
    eve.open_chat(EVE)
    session = eve.session()
    eve.close()
    assert session is not None
    yield session["value"]
    hops.people.set(ANN, BOB)


def test_tossed_cookies_change_nobodys_session(attack: Attack, session_of_eve: str) -> None:
    """By header and by script: Ann must not write into Eve's account."""
    attack.sibling.cookies[:] = tossed(session_of_eve)
    page = attack.open("<!doctype html><title>Evil</title>")
    page.evaluate("cookies => { for (const cookie of cookies) document.cookie = cookie; }", attack.sibling.cookies)
    sent = {cookie.get("name") for cookie in attack.visitor.context.cookies(f"{CHAT_URL}/api/me")}
    assert sent - {CHAT_COOKIE}, "no cookie of the sibling reaches the chat: the test shows nothing"
    me = attack.chat.evaluate("async () => (await fetch('/api/me', {headers: {Accept: 'application/json'}})).json()")
    assert me["email"] == ANN


def cookie_named(visitor: Visitor, name: str) -> dict[str, Any]:
    return next(dict(cookie) for cookie in visitor.context.cookies() if cookie.get("name") == name)


def test_the_cookie_of_one_door_does_not_open_the_other(visitor: Visitor, browser: Browser, house: House) -> None:
    """An app behind the sign-in sees its visitors' cookie; put in the place of the other, it is worth nothing."""
    visitor.open_chat(ANN)
    visitor.sign_in(ANN, f"https://{APP}/")
    chat, app = cookie_named(visitor, CHAT_COOKIE), cookie_named(visitor, APPS_COOKIE)
    assert chat["value"] != app["value"]
    # In a browser that the provider does not know: in Ann's own, the page's icon alone is enough to be signed in anew.
    thief = Visitor(browser, house)
    page = thief.context.new_page()
    page.set_extra_http_headers({"Accept": "application/json"})
    for url, own, other in ((f"{house.chat_url}/api/me", chat, app), (f"https://{APP}/api/me", app, chat)):
        for value, status in ((other["value"], 401), (own["value"], 200)):
            thief.context.add_cookies([{"name": own["name"], "value": value, "domain": own["domain"], "path": "/", "secure": True}])
            answer = page.goto(url)
            assert answer is not None
            assert answer.status == status, url
    thief.close()
