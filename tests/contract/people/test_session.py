"""A session that ends while somebody is writing, and one that a person ends."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from chain import ANN, BOB, CHAT_URL
from hops import Hops
from playwright.sync_api import Page, Route, expect

from tests.browser.visitor import (
    DESKTOP,
    PATIENCE_MS,
    PHONE,
    House,
    Visitor,
    ask,
    expect_chat_of,
    expect_streamed_answer,
    last_answer,
    shot,
    sign_out,
)

KEPT = "Your sign-in has ended; what you wrote is still here."
QUESTION = "a question worth keeping"
Enter = Callable[..., Visitor]


def expect_draft_kept(page: Page, text: str = QUESTION) -> None:
    expect(page.locator("#ended")).to_contain_text(KEPT)
    expect(page.locator("#ended")).to_be_visible(timeout=PATIENCE_MS)
    expect(page.locator("#draft")).to_have_value(text)
    expect(page.locator(".problem:visible")).to_have_count(0)


def sign_in_beside(page: Page) -> Page:
    with page.expect_popup() as opened:
        page.get_by_role("link", name="Sign in again").click()
    return opened.value


def expect_to_go_on(page: Page, text: str = QUESTION) -> None:
    """The question is where it was, and can be asked now."""
    expect(page.locator("#ended")).to_be_hidden(timeout=PATIENCE_MS)
    expect(page.locator("#draft")).to_have_value(text)
    page.locator("#draft").press("Enter")
    expect_streamed_answer(page, "I am the demo provider", "counts of words.")


def test_a_session_that_ends_in_the_middle_keeps_the_question(visitor: Visitor, house: House) -> None:
    """The page gets 401 and goes nowhere; signing in again happens beside it."""
    page = visitor.open_chat(ANN)
    ask(page, "first")
    expect(last_answer(page)).to_contain_text("counts of words.", timeout=PATIENCE_MS)
    visitor.end_session()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    with page.expect_response("**/v1/chat/completions") as refused:
        ask(page, QUESTION)
    assert refused.value.status == 401
    expect_draft_kept(page)
    assert [url for url in asked if not url.startswith(f"{house.chat_url}/")] == [], "the page went to the provider"
    expect(page.locator(".from-person .body")).to_have_text(["first"])
    beside = sign_in_beside(page)
    beside.wait_for_event("close", timeout=PATIENCE_MS)
    expect_to_go_on(page)
    expect(page.locator(".from-person .body")).to_have_text(["first", QUESTION])


def test_signed_in_again_in_another_tab(visitor: Visitor) -> None:
    page = visitor.open_chat(ANN)
    visitor.end_session()
    ask(page, QUESTION)
    expect_draft_kept(page)
    visitor.open_chat(ANN)
    expect_to_go_on(page)


def test_what_is_written_meanwhile_is_kept_too(visitor: Visitor) -> None:
    page = visitor.open_chat(ANN)
    visitor.end_session()

    def write_on(route: Route) -> None:
        page.fill("#draft", "and more")
        route.continue_()

    page.route("**/v1/chat/completions", write_on)
    ask(page, QUESTION)
    expect_draft_kept(page, f"{QUESTION}\nand more")


def test_a_removed_person_keeps_the_draft_and_sees_whom_to_ask(visitor: Visitor, hops: Hops) -> None:
    """The first answer after the removal is the proxy's page with 403, then 401; back on the list, the draft can be sent."""
    page = visitor.open_chat(ANN)
    hops.people.set(BOB)
    try:
        with page.expect_response("**/v1/chat/completions") as first:
            ask(page, QUESTION)
        expect_draft_kept(page)
        with page.expect_response("**/v1/chat/completions") as second:
            page.locator("#draft").press("Enter")
        expect_draft_kept(page)
        assert (first.value.status, second.value.status) == (403, 401)
        beside = sign_in_beside(page)
        expect(beside.get_by_role("heading")).to_have_text("This account may not come in")
        beside.close()
    finally:
        hops.people.set(ANN, BOB)
    sign_in_beside(page)
    expect_to_go_on(page)


def test_somebody_else_signs_in_beside_a_chat(visitor: Visitor) -> None:
    """Nothing of one person's chat is sent in another's name without being asked."""
    page = visitor.open_chat(ANN)
    visitor.end_session()
    ask(page, QUESTION)
    visitor.use_account(BOB)
    sign_in_beside(page)
    words = f"You are signed in as {BOB} now. This chat was begun as {ANN}."
    expect(page.get_by_role("region", name="Conversation")).to_contain_text(words)
    shot(page, "access-1280-light-other")
    page.get_by_role("button", name="New chat").last.click()
    expect(page.locator("#draft")).to_have_value("")
    expect_chat_of(page, BOB)


def test_signing_out_ends_the_session_and_clears_every_tab(visitor: Visitor) -> None:
    page, other = visitor.open_chat(ANN), visitor.open_chat(ANN)
    ask(other, "said in the other tab")
    expect(last_answer(other)).to_contain_text("I am the demo", timeout=PATIENCE_MS)
    page.fill("#draft", "left behind")
    sign_out(page)
    assert visitor.session() is None
    for tab in (page, other):
        expect(tab.get_by_role("heading", name="You are signed out")).to_be_visible(timeout=PATIENCE_MS)
        expect(tab.locator("#draft")).to_be_hidden()
        expect(tab.locator(".message")).to_have_count(0)
        expect(tab.locator("#draft")).to_have_value("")
    page.get_by_role("link", name="Sign in").click()
    expect_chat_of(page, ANN)


def test_another_account_after_signing_out(visitor: Visitor) -> None:
    visitor.use_account(ANN, also=BOB)
    page = visitor.context.new_page()
    page.goto(CHAT_URL)
    expect_chat_of(page, ANN)
    sign_out(page)
    page.get_by_role("link", name="Use another account").click()
    page.get_by_role("link", name=BOB).click()
    expect_chat_of(page, BOB)


def test_another_account_at_once(visitor: Visitor) -> None:
    visitor.use_account(ANN, also=BOB)
    page = visitor.context.new_page()
    page.goto(CHAT_URL)
    page.get_by_role("button", name="Your account").click()
    page.get_by_role("button", name="Use another account").click()
    page.get_by_role("link", name=BOB).click()
    expect_chat_of(page, BOB)


def test_a_sign_out_that_fails_is_told(visitor: Visitor) -> None:
    page = visitor.open_chat(ANN)
    page.route("**/oauth2/sign_out", lambda route: route.fulfill(status=302, headers={"Location": "/"}))
    page.get_by_role("button", name="Your account").click()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("dialog")).to_contain_text("The server did not sign you out. Try again.")
    assert visitor.session() is not None


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["1280", "360"])
def test_the_end_of_a_session_as_seen(enter: Enter, size: dict[str, int], scheme: str) -> None:
    visitor = enter(viewport=size, color_scheme=scheme)
    page = visitor.open_chat(ANN)
    page.get_by_role("button", name="Your account").click()
    shot(page, f"access-{size['width']}-{scheme}-account")
    page.keyboard.press("Escape")
    visitor.end_session()
    ask(page, QUESTION)
    expect_draft_kept(page)
    shot(page, f"access-{size['width']}-{scheme}-ended")
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"], "the page scrolls sideways"
