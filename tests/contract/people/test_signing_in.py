"""Signing in, out, and in as somebody else, as a person sees it in a browser."""

from __future__ import annotations

import dataclasses
import ssl
from pathlib import Path

import pytest
from chain import ANN, APP, BOB, CHAT_URL, EVE, Certificate
from playwright.sync_api import expect

from tests.browser.visitor import House, Visitor, ask, expect_chat_of, expect_streamed_answer


def test_a_listed_person_signs_in_and_gets_a_streamed_answer(visitor: Visitor) -> None:
    page = visitor.open_chat(ANN)
    ask(page, "Hello there")
    expect_streamed_answer(page, "I am the demo provider", "counts of words.")


def test_an_unlisted_person_sees_whom_to_ask_and_can_take_another_account(visitor: Visitor) -> None:
    visitor.use_account(EVE, also=BOB)
    page = visitor.context.new_page()
    answer = page.goto(CHAT_URL)
    assert answer is not None
    assert answer.status == 403
    assert visitor.session() is None
    expect(page.get_by_role("heading")).to_have_text("This account may not come in")
    expect(page.get_by_role("main")).to_contain_text("ask the person who runs this server")
    page.get_by_role("link", name="Use another account").click()
    page.get_by_role("link", name=BOB).click()
    expect_chat_of(page, BOB)


def test_two_tabs_sign_in_at_once(visitor: Visitor) -> None:
    for tab in visitor.two_tabs_at_once(ANN):
        expect_chat_of(tab, ANN)


def test_the_cookie_is_out_of_reach_of_scripts_and_siblings(visitor: Visitor, house: House) -> None:
    page = visitor.open_chat(ANN)
    cookie = visitor.session()
    assert cookie is not None
    assert (cookie["httpOnly"], cookie["secure"], cookie["sameSite"], cookie["path"]) == (True, True, "Lax", "/")
    assert cookie["domain"] == house.chat_url.removeprefix("https://"), "a leading dot would hand it to every sub-domain"
    assert house.cookie not in page.evaluate("document.cookie")


def test_an_app_is_behind_the_same_door(visitor: Visitor) -> None:
    visitor.use_account(ANN)
    page = visitor.context.new_page()
    answer = page.goto(f"https://{APP}/deep?x=1")
    assert answer is not None
    assert (answer.status, page.url) == (200, f"https://{APP}/deep?x=1")
    assert answer.json()["target"] == "/deep?x=1"


def test_these_visitors_take_no_other_certificate(house: House, tmp_path: Path) -> None:
    """What the tests above would be worth without it."""
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate verify failed"):
        _ = dataclasses.replace(house, authority=Certificate.make(tmp_path).authority).arguments
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        _ = dataclasses.replace(house, chat_url="https://chat.elsewhere.test").arguments
