"""The pages that people see when something is in the way: what they say, and that they can be read on a phone and at night.

Screenshots go to build/reports/access-*.png.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from chain import ANN, APP, AUTH, BOB, CHAT_URL, EVE, free_port, wait_for
from conftest import targets
from hops import Hops
from playwright.sync_api import Page, expect
from upstream import Upstream

from tests.browser.visitor import DESKTOP, PATIENCE_MS, PHONE, House, Visitor, shot, sign_out, unreadable

SCHEMES = ("light", "dark")


def look(page: Page, name: str) -> None:
    """At both sizes and in both schemes: nothing to scroll for sideways, nothing faint, every button large enough for a thumb."""
    for size in (DESKTOP, PHONE):
        page.set_viewport_size({"width": size["width"], "height": size["height"]})
        for scheme in SCHEMES:
            page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
            shot(page, f"access-{size['width']}-{scheme}-{name}")
            assert unreadable(page) == [], f"{name}, {size['width']}, {scheme}"


def test_not_on_the_list(visitor: Visitor) -> None:
    page = visitor.sign_in(EVE)
    expect(page.get_by_role("main")).to_contain_text("ask the person who runs this server")
    look(page, "403")


def test_not_on_the_list_of_an_app(visitor: Visitor) -> None:
    """The page stands on the app's host, and leads to the sign-in's own."""
    page = visitor.sign_in(EVE, f"https://{APP}/deep?x=1")
    expect(page.get_by_role("heading")).to_have_text("This account may not come in")
    look(page, "403-app")
    visitor.use_account(BOB)
    page.get_by_role("link", name="Use another account").click()
    page.wait_for_url(f"https://{AUTH}/", timeout=PATIENCE_MS)
    page.goto(f"https://{APP}/deep?x=1")
    expect(page.locator("body")).to_contain_text(BOB)


def test_the_provider_refuses(visitor: Visitor) -> None:
    page = visitor.sign_in("nobody")
    expect(page.get_by_role("heading")).to_have_text("That did not work")
    look(page, "refused")
    visitor.use_account(ANN)
    page.get_by_role("link", name="Sign in again").click()
    expect(page.locator("#who")).to_contain_text(ANN, timeout=PATIENCE_MS)


def test_a_sign_in_that_goes_wrong(visitor: Visitor) -> None:
    visitor.use_account(ANN, broken="true")
    page = visitor.context.new_page()
    answer = page.goto(CHAT_URL)
    assert answer is not None
    assert answer.status == 500
    expect(page.get_by_role("heading")).to_have_text("That did not work")
    look(page, "500")


@pytest.fixture
def gateway_gone(hops: Hops, upstream: Upstream) -> Iterator[None]:
    """A chat instance whose gateway does not answer, in the place of the other."""
    dead = hops.replica_before(f"http://127.0.0.1:{free_port()}")
    ann = hops.traefik.signed_in(hops.provider)
    for chat, status in ((dead, 502), (hops.chat, 200)):
        hops.traefik.point(targets(chat.url, hops.apps.url, upstream.url))
        wait_for(lambda: ann.send(f"{CHAT_URL}/api/me").status == status, f"Traefik to lead to {chat.directory}")  # noqa: B023
        if chat is dead:
            yield


@pytest.mark.usefixtures("gateway_gone")
def test_the_gateway_does_not_answer(visitor: Visitor) -> None:
    page = visitor.sign_in(ANN)
    expect(page.get_by_role("heading")).to_have_text("Nobody answers")
    look(page, "502")


def test_after_signing_in_beside_the_chat(visitor: Visitor, house: House) -> None:
    """For browsers in which a window cannot close itself."""
    page = visitor.open_chat(ANN)
    page.goto(f"{house.chat_url}/static/back.html")
    expect(page.get_by_role("heading")).to_have_text("You are signed in again")
    look(page, "back")


def test_signed_out(visitor: Visitor) -> None:
    page = visitor.open_chat(ANN)
    sign_out(page)
    look(page, "gone")
    expect(page.get_by_role("link")).to_have_text(["Sign in", "Use another account"])
