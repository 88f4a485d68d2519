"""People with a real browser at the door of a house that runs in a cluster: the steps of tests/browser/visitor.py."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from chain import ANN, APP, BOB, CHAT_URL, EVE
from playwright.sync_api import Browser, expect

from tests.browser.visitor import (
    PATIENCE_MS,
    House,
    Visitor,
    ask,
    chromium,
    expect_chat_of,
    expect_streamed_answer,
    last_answer,
    shot,
)
from tests.cluster.access.deployed import NOTICED_S, Deployed, note

pytestmark = pytest.mark.timeout(300)
GUEST = "visitor@home.test"
WORDS = [f"word{number}" for number in range(60)]


@pytest.fixture(scope="module")
def house(deployed: Deployed) -> House:
    return deployed.house


@pytest.fixture(scope="module")
def chrome(house: House) -> Iterator[Browser]:
    with chromium(house) as launched:
        yield launched


@pytest.fixture
def visitor(chrome: Browser, house: House) -> Iterator[Visitor]:
    made = Visitor(chrome, house)
    yield made
    made.close()


def test_a_listed_person_signs_in_and_gets_a_streamed_answer_on_the_cluster(visitor: Visitor) -> None:
    page = visitor.open_chat(ANN)
    # Two seconds of the vendor's stand-in, word by word.
    ask(page, " ".join(WORDS), model="sonnet")
    expect_streamed_answer(page, WORDS[0], WORDS[-1])
    shot(page, "access-cluster-answer")


def test_an_unlisted_person_gets_the_page_that_says_whom_to_ask_on_the_cluster(visitor: Visitor) -> None:
    visitor.use_account(EVE, also=BOB)
    page = visitor.context.new_page()
    answer = page.goto(CHAT_URL)
    assert answer is not None
    assert (answer.status, visitor.session()) == (403, None)
    expect(page.get_by_role("heading")).to_have_text("This account may not come in")
    page.get_by_role("link", name="Use another account").click()
    page.get_by_role("link", name=BOB).click()
    expect_chat_of(page, BOB)


def test_two_tabs_that_sign_in_at_once_both_get_in_on_the_cluster(visitor: Visitor) -> None:
    for tab in visitor.two_tabs_at_once(ANN):
        expect_chat_of(tab, ANN)


def test_a_session_that_ends_in_the_middle_keeps_the_question_on_the_cluster(visitor: Visitor) -> None:
    page = visitor.open_chat(ANN)
    visitor.end_session()
    with page.expect_response("**/v1/chat/completions") as refused:
        ask(page, "a question worth keeping", model="sonnet")
    assert refused.value.status == 401
    expect(page.locator("#ended")).to_be_visible()
    expect(page.locator("#draft")).to_have_value("a question worth keeping")
    with page.expect_popup():
        page.get_by_role("link", name="Sign in again").click()
    expect(page.locator("#ended")).to_be_hidden(timeout=PATIENCE_MS)
    page.locator("#draft").press("Enter")
    expect(last_answer(page)).to_contain_text("worth keeping", timeout=PATIENCE_MS)


def test_an_app_opens_after_the_same_sign_in_on_the_cluster(visitor: Visitor) -> None:
    page = visitor.sign_in(ANN, f"https://{APP}/deep?x=1")
    expect(page.locator("body")).to_contain_text('"target": "/deep?x=1"')


def test_somebody_who_is_removed_while_an_answer_comes_sees_it_end_on_the_cluster(visitor: Visitor, deployed: Deployed) -> None:
    deployed.done("add_user", email=GUEST)
    page = visitor.open_chat(GUEST)
    ask(page, " ".join(f"word{number}" for number in range(900)), model="slow")
    expect(last_answer(page)).to_contain_text("word0")
    run = deployed.done("remove_user", email=GUEST, delete_data=True)
    ended = time.monotonic()
    # The page notices that the answer was broken off: the button to stop it goes.
    expect(page.get_by_role("button", name="Stop")).to_be_hidden(timeout=NOTICED_S * 1000)
    note("remove-in-browser", play_s=run.took_s, page_knows_after_s=time.monotonic() - ended)
    assert "word899" not in last_answer(page).inner_text()
    answer = page.goto(CHAT_URL)
    assert answer is not None
    assert answer.status == 403
