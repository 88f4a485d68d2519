"""The same chain in headless Chromium: sign-in as a person sees it, and what a hostile page of a sibling host can do."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from chain import ANN, APP, BOB, CHAT_COOKIE, CHAT_URL, DOMAIN, EVE
from gateway_support import Mock
from playwright.sync_api import BrowserContext, Page, expect, sync_playwright
from test_hop import Hops
from upstream import Upstream

CHROMIUM = os.environ.get("HEARTH_CHROMIUM", "/usr/bin/chromium")
PATIENCE_MS = 30_000
EVIL_URL = f"https://evil.{DOMAIN}"


@pytest.fixture(scope="module")
def hops(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, dict[str, str]], upstream: Upstream, provider: str, vendor: Mock
) -> Iterator[Hops]:
    made = Hops(tmp_path_factory.mktemp("browser"), files, upstream, provider, vendor)
    yield made
    made.stop()


@pytest.fixture
def context(hops: Hops) -> Iterator[BrowserContext]:
    """A browser that finds every host of the house at Traefik. Its certificate is Traefik's own."""
    rules = f"--host-resolver-rules=MAP *.{DOMAIN} 127.0.0.1:{hops.traefik.port}"
    with sync_playwright() as playwright:
        # Chromium's own sandbox needs what containers and root do not have; the pages are our own.
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", rules])
        yield chromium.new_context(ignore_https_errors=True)
        chromium.close()


def choose(context: BrowserContext, hops: Hops, person: str, faults: str = "") -> None:
    """Who the provider will say it is."""
    page = context.new_page()
    page.goto(f"{hops.provider}/as?user={person}{faults}")
    page.close()


def open_chat(context: BrowserContext, hops: Hops, person: str = ANN) -> Page:
    choose(context, hops, person)
    page = context.new_page()
    page.goto(CHAT_URL)
    expect(page.locator("#model")).to_be_enabled(timeout=PATIENCE_MS)
    return page


def ask(page: Page, text: str) -> None:
    page.select_option("#model", "demo")
    page.fill("#draft", text)
    page.keyboard.press("Enter")


def test_a_listed_person_signs_in_and_gets_a_streamed_answer(context: BrowserContext, hops: Hops) -> None:
    page = open_chat(context, hops)
    expect(page.locator("#who")).to_contain_text(ANN)
    ask(page, "Hello there")
    answer = page.locator(".from-model .body").last
    expect(answer).to_contain_text("I am the demo provider", timeout=PATIENCE_MS)
    assert "counts of words" not in answer.inner_text(), "it came in one piece"
    expect(answer).to_contain_text("counts of words.", timeout=PATIENCE_MS)


def test_an_unlisted_person_sees_whom_to_ask_and_can_take_another_account(context: BrowserContext, hops: Hops) -> None:
    choose(context, hops, EVE)
    page = context.new_page()
    answer = page.goto(CHAT_URL)
    assert answer is not None
    assert answer.status == 403
    expect(page.get_by_role("heading")).to_have_text("This account may not come in")
    choose(context, hops, BOB)
    page.get_by_role("link", name="Use another account").click()
    expect(page.locator("#who")).to_contain_text(BOB, timeout=PATIENCE_MS)


def test_two_tabs_sign_in_at_once(context: BrowserContext, hops: Hops) -> None:
    # Both stand at the provider before either comes back.
    choose(context, hops, ANN, "&wait_s=1")
    tabs = [context.new_page() for _ in range(2)]
    for tab in tabs:
        tab.evaluate(f"setTimeout(() => location.href = {CHAT_URL!r})")
    for tab in tabs:
        expect(tab.locator("#who")).to_contain_text(ANN, timeout=PATIENCE_MS)


def test_a_session_that_ends_in_the_middle_keeps_the_question(context: BrowserContext, hops: Hops) -> None:
    page = open_chat(context, hops)
    context.clear_cookies(name=CHAT_COOKIE)
    with page.expect_response("**/v1/chat/completions") as refused:
        ask(page, "a question worth keeping")
    assert refused.value.status == 401
    conversation = page.get_by_role("region", name="Conversation")
    expect(conversation.get_by_text("You are not signed in any more.")).to_be_visible()
    expect(page.get_by_role("button", name="Sign in again")).to_be_visible()
    expect(page.locator(".from-person .body")).to_have_text("a question worth keeping")


# Everything that a page can make a browser send, without asking the person.
ATTACKS = """async chat => {
  const question = JSON.stringify({model: 'sonnet', messages: [{role: 'user', content: 'spend'}]});
  const wanted = [
    ['/v1/chat/completions', {method: 'POST', mode: 'no-cors', body: question}],
    ['/v1/chat/completions', {method: 'POST', mode: 'no-cors', body: new Blob([question], {type: 'text/plain'})}],
    ['/v1/chat/completions', {method: 'POST', mode: 'cors', headers: {'Content-Type': 'application/json'}, body: question}],
    ['/v1/messages', {method: 'POST', mode: 'no-cors', body: question}],
    ['/api/me', {mode: 'cors'}],
    ['/api/me', {method: 'DELETE', mode: 'cors'}],
    ['/v1/models', {mode: 'cors'}],
  ];
  const read = [];
  for (const [path, options] of wanted) {
    try {
      const answer = await fetch(chat + path, {credentials: 'include', ...options});
      read.push(answer.type === 'opaque' ? 'opaque' : await answer.text());
    } catch (error) { read.push('blocked'); }
  }
  navigator.sendBeacon(chat + '/v1/chat/completions', new Blob([question], {type: 'text/plain'}));
  for (const scope of ['; domain=.hearth.test', ''])
    document.cookie = '__Host-hearth=evil; path=/; secure' + scope;
  return read;
}"""
FORM = f"""<!doctype html><form method=post enctype=text/plain action={CHAT_URL}/v1/chat/completions>
<input name='{{"model":"sonnet","messages":[{{"role":"user","content":"spend"}}],"x":"' value='"}}'></form>"""


def test_a_hostile_sibling_can_neither_spend_nor_write_nor_read(context: BrowserContext, hops: Hops, vendor: Mock) -> None:
    """evil.hearth.test is the same *site* as the chat, so Ann's cookie comes along; the gateway has to refuse."""
    chat = open_chat(context, hops)
    kept = [cookie for cookie in context.cookies(CHAT_URL) if cookie["name"] == CHAT_COOKIE]
    asked, rows = len(vendor.records()), hops.gateway.settled_rows()
    context.route(f"{EVIL_URL}/**", lambda route: route.fulfill(body=FORM, content_type="text/html"))
    evil = context.new_page()
    statuses: list[tuple[str, int]] = []
    evil.on("response", lambda answer: statuses.append((answer.request.method, answer.status)))
    evil.goto(f"{EVIL_URL}/")
    statuses.clear()
    read = evil.evaluate(ATTACKS, CHAT_URL)
    assert set(read) <= {"opaque", "blocked"}, read
    with evil.expect_navigation():
        evil.evaluate("document.forms[0].submit()")
    answered = {status for method, status in statuses if method in ("POST", "DELETE")}
    assert answered <= {401, 403, 415}, statuses
    assert answered & {403, 415}, "no attack came with Ann's cookie: the test shows nothing"
    assert len(vendor.records()) == asked
    assert hops.gateway.settled_rows() == rows
    assert [cookie for cookie in context.cookies(CHAT_URL) if cookie["name"] == CHAT_COOKIE] == kept
    chat.reload()
    expect(chat.locator("#who")).to_contain_text(ANN, timeout=PATIENCE_MS)


def test_a_sibling_cannot_put_the_chat_into_a_frame(context: BrowserContext, hops: Hops) -> None:
    open_chat(context, hops)
    body = f"<!doctype html><iframe src={CHAT_URL}/></iframe>"
    context.route(f"{EVIL_URL}/**", lambda route: route.fulfill(body=body, content_type="text/html"))
    evil = context.new_page()
    evil.goto(f"{EVIL_URL}/")
    assert evil.frames[1].url != f"{CHAT_URL}/" or evil.frames[1].locator("#draft").count() == 0


def test_an_app_is_behind_the_same_door(context: BrowserContext, hops: Hops) -> None:
    choose(context, hops, ANN)
    page = context.new_page()
    answer = page.goto(f"https://{APP}/deep?x=1")
    assert answer is not None
    assert (answer.status, page.url) == (200, f"https://{APP}/deep?x=1")
    assert answer.json()["target"] == "/deep?x=1"
