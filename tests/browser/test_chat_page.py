"""The chat page in headless Chromium, served by `hearth-gateway demo`.

Screenshots go to build/reports/chat-*.png. Every test fails on an error in the browser's console, on a
violation of the content security policy, and on a request to another host.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, ViewportSize, expect, sync_playwright

from tests.browser.visitor import DESKTOP, PHONE, unreadable

ROOT = Path(__file__).resolve().parents[2]
REPORTS = ROOT / "build" / "reports"
CHROMIUM = os.environ.get("HEARTH_CHROMIUM", "/usr/bin/chromium")
ANSWER_MS = 30_000  # the demo takes 3 s; a loaded machine needs room
expect.set_options(timeout=ANSWER_MS)  # and for a page more than Playwright's own 5 s


@contextmanager
def running_demo(directory: Path, *python: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run the demo with this Python; yields the address a person opens, token included."""
    log = (directory / "log").open("w")
    process = subprocess.Popen(
        [sys.executable, *python, "demo", "--bind", "127.0.0.1:0", "--metrics-bind", "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "files" / "gateway" / "src")},
    )
    assert process.stdout is not None
    found = re.search(r"http://\S+", process.stdout.readline())
    assert found, Path(log.name).read_text()
    yield found[0], process
    process.terminate()
    assert process.wait(20) == 0
    log.close()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_demo(tmp_path_factory.mktemp("demo"), "-m", "hearth_gateway") as (address, _):
        yield address


# For tests that do something in the middle of an answer: the same, but 7 s long, so that a busy machine is in time for it.
UNHURRIED = """
import sys
from hearth_gateway.cli import main
from hearth_gateway.providers.demo import DemoProvider
assert len(DemoProvider.__init__.__defaults__) == 1
DemoProvider.__init__.__defaults__ = (0.06,)
sys.exit(main())
"""


@pytest.fixture(scope="module")
def unhurried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_demo(tmp_path_factory.mktemp("unhurried"), "-c", UNHURRIED) as (address, _):
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Chromium's own sandbox needs what containers and root do not have; the page is our own.
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Tab:
    """A page that remembers what went wrong in it."""

    def __init__(self, browser: Browser, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        self.page = self.context.new_page()
        self.problems: list[str] = []
        self.hosts: set[str] = set()
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.problems.append(f"page error: {error}"))
        self.page.on("request", lambda request: self.hosts.add(re.sub(r"^(\w+://[^/]+).*", r"\1", request.url)))

    def _console(self, message: Any) -> None:
        # Chromium reports every failed request here too; tests of failures expect those.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.problems.append(message.text)

    def close(self) -> None:
        self.context.close()


def screen_name(screen: tuple[ViewportSize, str]) -> str:
    size, scheme = screen
    return f"{size['width']}-{scheme}"


@pytest.fixture
def tab(browser: Browser) -> Iterator[Tab]:
    tab = Tab(browser)
    yield tab
    assert tab.problems == []
    assert len(tab.hosts) <= 1, f"the page talked to {tab.hosts}"
    tab.close()


def open_page(page: Page, address: str) -> None:
    page.goto(address)
    expect(page.locator("#model")).to_be_enabled()


def ask(page: Page, text: str) -> None:
    page.fill("#draft", text)
    page.keyboard.press("Enter")


def last_answer(page: Page) -> Any:
    return page.locator(".from-model .body").last


def wait_until_answered(page: Page) -> None:
    expect(page.locator(".from-model").last.locator(".actions")).to_be_visible(timeout=ANSWER_MS)


def shot(page: Page, name: str) -> None:
    REPORTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(REPORTS / f"chat-{name}.png"))


def test_question_and_streamed_answer(tab: Tab, unhurried: str) -> None:
    page = tab.page
    open_page(page, unhurried)
    assert "token" not in page.url, "the token must leave the address bar"
    expect(page.locator("#demo-banner")).to_be_visible()
    ask(page, "Hello there")
    expect(page.locator(".from-person .body")).to_have_text("Hello there")
    # It streams: the beginning is there while the end is not.
    expect(last_answer(page)).to_contain_text("I am the demo provider")
    assert "counts of words" not in last_answer(page).inner_text()
    expect(page.locator("#send")).to_have_attribute("aria-label", "Stop")
    wait_until_answered(page)
    expect(last_answer(page)).to_contain_text("counts of words.")
    expect(last_answer(page).locator("strong").first).to_have_text("Stop")
    expect(last_answer(page).locator("pre code")).to_contain_text("curl $URL/v1/chat/completions")
    expect(page.locator("#send")).to_have_attribute("aria-label", "Send")


def test_answer_is_announced_once_and_no_live_region_streams(tab: Tab, demo: str) -> None:
    page = tab.page
    open_page(page, demo)
    page.evaluate(
        """() => { window.said = []; new MutationObserver(() => said.push(announcer.textContent))
           .observe(announcer, {childList: true, characterData: true, subtree: true}); }"""
    )
    ask(page, "Hello")
    wait_until_answered(page)
    said = page.evaluate("() => window.said")
    assert said[0] == "Answering."
    assert len(said) == 2 and "counts of words" in said[1]
    assert page.locator("#log [aria-live], #log[aria-live], #log[role=log]").count() == 0


def test_stop_keeps_what_is_there_and_offers_another_try(tab: Tab, unhurried: str) -> None:
    page = tab.page
    open_page(page, unhurried)
    ask(page, "Hello")
    expect(last_answer(page)).to_contain_text("demo provider")
    page.click("#send")
    expect(page.locator(".note")).to_have_text("You stopped this answer.")
    kept = last_answer(page).inner_text()
    assert "I am the demo provider" in kept and "counts of words" not in kept
    page.get_by_role("button", name="Try again").click()
    wait_until_answered(page)
    expect(last_answer(page)).to_contain_text("counts of words.")
    assert page.locator(".from-model").count() == 1


def test_keyboard_alone(tab: Tab, unhurried: str) -> None:
    page = tab.page
    open_page(page, unhurried)
    expect(page.locator("#draft")).to_be_focused()
    page.keyboard.type("first line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("second line")
    assert page.input_value("#draft") == "first line\nsecond line"
    page.keyboard.press("Enter")
    expect(last_answer(page)).to_contain_text("I am")
    page.keyboard.press("Escape")
    expect(page.locator(".note")).to_be_visible()
    # Everything that can be clicked can be reached, and shows that it is.
    seen = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
        shows = page.evaluate(
            """() => { const it = document.activeElement; const style = getComputedStyle(it);
               return it === document.body || it.id === 'draft' || style.outlineStyle !== 'none'; }"""
        )
        assert shows, f"no visible focus on {page.evaluate('document.activeElement.outerHTML')}"
    assert {"model", "new-chat", "theme", "privacy-open", "Copy", "Try again"} <= seen


def test_light_and_dark(browser: Browser, demo: str) -> None:
    for scheme in ("light", "dark"):
        tab = Tab(browser, color_scheme=scheme)
        open_page(tab.page, demo)
        brightness = "() => getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"
        is_light = tab.page.evaluate(brightness) > 128
        assert is_light == (scheme == "light")
        tab.page.click("#theme")
        assert (tab.page.evaluate(brightness) > 128) != is_light
        tab.page.reload()
        assert (tab.page.evaluate(brightness) > 128) != is_light, "the choice must outlive a reload"
        assert tab.problems == []
        tab.close()


@pytest.fixture(params=[(size, scheme) for size in (DESKTOP, PHONE) for scheme in ("light", "dark")], ids=screen_name)
def screen(request: pytest.FixtureRequest, browser: Browser) -> Iterator[tuple[Tab, str]]:
    """A tab, and what its screenshots are called."""
    size, scheme = request.param
    tab = Tab(browser, viewport=size, color_scheme=scheme, has_touch=size == PHONE)
    yield tab, screen_name(request.param)
    assert tab.problems == []
    tab.close()


def test_screens(screen: tuple[Tab, str], demo: str) -> None:
    tab, name = screen
    page = tab.page
    open_page(page, demo)
    shot(page, f"{name}-welcome")
    ask(page, "What can you do? And a-very-long-word-that-does-not-fit-" + "x" * 80)
    wait_until_answered(page)
    shot(page, f"{name}-answer")
    size = page.viewport_size
    assert size and page.evaluate("document.documentElement.scrollWidth") <= size["width"], "the page scrolls sideways"
    assert page.evaluate("scroller.scrollWidth - scroller.clientWidth") == 0, "the conversation scrolls sideways"
    # Wide enough, and the list of models too: `unreadable` looks at the height of buttons.
    small = page.evaluate(
        """() => [...document.querySelectorAll('header button:not([hidden]), .composer button.send, select')]
           .filter(it => it.offsetWidth < 40 || it.offsetHeight < 40).map(it => it.id)"""
    )
    assert small == [], f"too small for a thumb: {small}"
    page.click("#privacy-open")
    expect(page.locator("#privacy")).to_be_visible()
    shot(page, f"{name}-privacy")


def test_text_contrast_is_readable(browser: Browser, demo: str) -> None:
    """WCAG AA: 4.5 to 1 for the colours that carry text, in both themes."""
    for scheme in ("light", "dark"):
        tab = Tab(browser, color_scheme=scheme)
        open_page(tab.page, demo)
        colours = tab.page.evaluate(
            """() => { const style = getComputedStyle(document.documentElement);
               return Object.fromEntries(['page','raised','quiet','text','soft','accent','on-accent','bad','bad-page']
                 .map(name => [name, style.getPropertyValue('--' + name).trim()])); }"""
        )
        pairs = [("text", "page"), ("text", "raised"), ("text", "quiet"), ("soft", "page"), ("soft", "raised")]
        pairs += [("soft", "quiet"), ("on-accent", "accent"), ("bad", "bad-page"), ("accent", "page")]
        for front, back in pairs:
            assert contrast(colours[front], colours[back]) >= 4.5, f"{scheme}: {front} on {back}"
        tab.close()


def contrast(first: str, second: str) -> float:
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    digits = colour.lstrip("#")
    digits = "".join(digit * 2 for digit in digits) if len(digits) == 3 else digits
    channels = [int(digits[start : start + 2], 16) / 255 for start in (0, 2, 4)]
    linear = [value / 12.92 if value <= 0.03928 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_without_a_token_the_page_asks_for_one(tab: Tab, demo: str) -> None:
    page = tab.page
    address, _, token = demo.partition("#token=")
    page.goto(address)
    dialog = page.locator("#ask-token")
    expect(dialog).to_be_visible()
    page.fill("#token", "wrong-token-wrong-token")
    page.keyboard.press("Enter")
    expect(page.locator("#token-reason")).to_contain_text("not valid")
    shot(page, "1280-light-token")
    page.fill("#token", token)
    page.keyboard.press("Enter")
    expect(page.locator("#model")).to_be_enabled()
    expect(dialog).to_be_hidden()
    ask(page, "Hello")
    wait_until_answered(page)


PROXY = "proxy-token-0123456789abcdef"
TOKEN = "program-token-0123456789abcdef"
INSTRUCTIONS = "Be kind.\nNever promise what you cannot know: " + "say so, and say where one could look. " * 20


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a gateway that knows a sign-in proxy's token, and gives one of its models instructions."""
    directory = tmp_path_factory.mktemp("configured")
    (directory / "tokens").mkdir()
    (directory / "tokens" / "proxy").write_text(PROXY)
    (directory / "tokens" / "program").write_text(TOKEN)
    (directory / "gateway.yaml").write_text(f"""
        server: {{bind: "127.0.0.1:0", metrics_bind: "127.0.0.1:0"}}
        database_url: sqlite:///{directory}/hearth.db
        tokens: {{dir: {directory}/tokens, proxy: [proxy]}}
        providers: [{{name: demo, kind: demo}}]
        models:
          plain: [{{provider: demo, model: demo}}]
          kind: [{{provider: demo, model: demo}}]
        system_prompts: {{kind: {json.dumps(INSTRUCTIONS)}}}
    """)
    process = subprocess.Popen(
        [sys.executable, "-m", "hearth_gateway", "serve", "--config", str(directory / "gateway.yaml")],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "files" / "gateway" / "src")},
    )
    assert process.stderr is not None
    started = json.loads(process.stderr.readline())
    yield f"http://{started['bind']}"
    process.terminate()
    assert process.wait(20) == 0


def test_behind_the_sign_in_proxy_no_token_is_needed(browser: Browser, configured: str) -> None:
    """The browser's own requests, with the credential that the proxy adds to each of them."""
    credential = "Basic " + base64.b64encode(f"ann@example.org:{PROXY}".encode()).decode()
    tab = Tab(browser, extra_http_headers={"Authorization": credential})
    page = tab.page
    page.goto(configured)
    expect(page.locator("#model")).to_be_enabled()
    ask(page, "Hello")
    wait_until_answered(page)
    page.click("#privacy-open")
    expect(page.locator("#who")).to_have_text("You are signed in as ann@example.org.")
    page.keyboard.press("Escape")
    # The gateway itself knows nobody by the proxy's credential (lockdown): no token is asked for, and nothing lost.
    tab.context.set_extra_http_headers({})
    ask(page, "Still there?")
    expect(page.locator(".problem")).to_contain_text("The server lets nobody in just now.")
    expect(page.locator(".from-person .body").last).to_have_text("Still there?")
    expect(page.locator("#ask-token")).to_be_hidden()
    assert PROXY not in page.content()
    tab.context.close()


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (401, {"content-type": "application/json"}, "{}"),
        (403, {"content-type": "text/html"}, "<h1>This account may not come in</h1>"),
        (302, {"location": "https://accounts.elsewhere.test/authorize"}, ""),
    ],
    ids=["401", "403", "redirect"],
)
def test_whatever_a_sign_in_proxy_says_the_draft_stays(tab: Tab, demo: str, status: int, headers: dict[str, str], body: str) -> None:
    """And no answer is followed to another host: `tab` would tell."""
    page = tab.page
    open_page(page, demo)
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=status, headers=headers, body=body))
    ask(page, "my precious question")
    expect(page.locator("#ended")).to_be_visible()
    expect(page.locator("#draft")).to_have_value("my precious question")
    expect(page.locator(".message")).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1280, 800), (360, 740)], ids=["1280", "360"])
def test_the_instructions_of_a_model_are_shown(browser: Browser, configured: str, size: tuple[int, int], scheme: str) -> None:
    width, height = size
    tab = Tab(browser, viewport={"width": width, "height": height}, color_scheme=scheme)
    page = tab.page
    open_page(page, f"{configured}#token={TOKEN}")
    notice, text = page.locator("#instructions"), page.locator("#instructions-text")
    expect(notice).to_be_hidden()  # the model that is picked first has none
    page.select_option("#model", "kind")
    expect(notice).to_be_visible()
    expect(text).to_be_hidden()
    page.locator("#instructions summary").press("Enter")
    expect(text).to_have_text(INSTRUCTIONS, use_inner_text=True)
    shot(page, f"{width}-{scheme}-instructions")
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    # The conversation and the field to write in keep their place, however long the text is.
    assert page.evaluate("document.getElementById('scroller').clientHeight") > height / 4
    expect(page.locator("#draft")).to_be_in_viewport()
    page.select_option("#model", "plain")
    expect(notice).to_be_hidden()
    assert tab.problems == []
    tab.close()


def stream_body(*pieces: str, end: str = "data: [DONE]\n\n") -> str:
    chunks = [f'data: {{"choices": [{{"delta": {{"content": {piece}}}}}]}}\n\n' for piece in pieces]
    return "".join(chunks) + end


def answer_with(page: Page, status: int, body: str, content_type: str, headers: dict[str, str] | None = None) -> None:
    def fulfil(route: Route) -> None:
        route.fulfill(status=status, body=body, headers={"content-type": content_type, **(headers or {})})

    page.route("**/v1/chat/completions", fulfil)


@pytest.mark.parametrize(
    ("status", "body", "content_type", "words"),
    [
        (429, '{"error": {"message": "The limit is reached."}}', "application/json", "The limit is reached."),
        (502, "<html>nginx</html>", "text/html", "The server answered with an error (502)."),
        (200, stream_body('"half an "', end=""), "text/event-stream", "The connection broke"),
        (
            200,
            stream_body('"half an "', end='data: {"error": {"message": "The provider fell silent."}}\n\n'),
            "text/event-stream",
            "The provider fell silent.",
        ),
    ],
    ids=["429", "html", "cut", "error-event"],
)
def test_failures_in_plain_words_with_another_try(tab: Tab, demo: str, status: int, body: str, content_type: str, words: str) -> None:
    page = tab.page
    open_page(page, demo)
    answer_with(page, status, body, content_type)
    ask(page, "my precious question")
    problem = page.locator(".problem")
    expect(problem).to_contain_text(words)
    expect(page.locator(".from-person .body")).to_have_text("my precious question")
    shot(page, f"1280-light-problem-{status}")
    page.unroute("**/v1/chat/completions")
    problem.get_by_role("button", name="Try again").click()
    wait_until_answered(page)
    expect(last_answer(page)).to_contain_text("counts of words.")
    assert page.locator(".problem").count() == 0
    assert page.locator(".from-person").count() == 1


def test_a_model_list_that_does_not_come_can_be_tried_again(tab: Tab, demo: str) -> None:
    page = tab.page
    body = '{"error": {"message": "The gateway is restarting."}}'
    page.route("**/v1/models", lambda route: route.fulfill(status=503, content_type="application/json", body=body))
    page.goto(demo)
    expect(page.locator(".problem")).to_contain_text("The gateway is restarting.")
    expect(page.locator(".problem")).to_be_in_viewport()
    page.unroute("**/v1/models")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#model")).to_be_enabled()
    expect(page.locator("#welcome")).to_be_visible()


def test_a_server_that_never_answers_is_not_waited_for_in_silence(tab: Tab, demo: str) -> None:
    page = tab.page
    page.route("**/v1/models", lambda _route: None)
    page.goto(demo)
    expect(page.locator(".problem")).to_contain_text("The server does not answer.")
    page.unroute("**/v1/models")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#model")).to_be_enabled()


def test_server_gone_the_question_can_be_taken_back(tab: Tab, demo: str) -> None:
    page = tab.page
    open_page(page, demo)
    page.route("**/v1/chat/completions", lambda route: route.abort("connectionrefused"))
    ask(page, "my precious question")
    expect(page.locator(".problem")).to_contain_text("cannot be reached")
    page.fill("#draft", "and more")
    page.get_by_role("button", name="Edit the question").click()
    assert page.input_value("#draft") == "my precious question\nand more"
    expect(page.locator("#welcome")).to_be_visible()


def test_a_connection_that_dies_unnoticed_in_the_middle_is_told(tab: Tab, tmp_path: Path) -> None:
    """A process that is frozen looks from here like a telephone that has left the house's network."""
    page = tab.page
    page.clock.install()
    with running_demo(tmp_path, "-c", UNHURRIED) as (address, process):
        open_page(page, address)
        ask(page, "my precious question")
        expect(last_answer(page)).to_contain_text("demo provider")
        page.clock.fast_forward(35_000)
        expect(last_answer(page)).to_contain_text("What you can try")  # words that come prove the connection
        assert page.locator(".problem").count() == 0
        process.send_signal(signal.SIGSTOP)
        try:
            time.sleep(1)  # what was on its way
            page.clock.fast_forward(41_000)
            expect(page.locator(".problem")).to_contain_text("The connection broke before the answer was complete.")
        finally:
            process.send_signal(signal.SIGCONT)
        page.get_by_role("button", name="Try again").click()
        wait_until_answered(page)
        expect(last_answer(page)).to_contain_text("counts of words.")


def test_a_model_cannot_write_markup(tab: Tab, demo: str) -> None:
    page = tab.page
    open_page(page, demo)
    evil = '"<img src=x onerror=alert(1)> [x](javascript:alert(1)) ![y](https://evil.test/?q=words) <script>1</script>"'
    answer_with(page, 200, stream_body(evil), "text/event-stream")
    ask(page, "<b>bold?</b>")
    wait_until_answered(page)
    expect(page.locator(".from-person .body")).to_have_text("<b>bold?</b>")
    expect(last_answer(page)).to_contain_text("<img src=x onerror=alert(1)>")
    assert page.locator(".body img, .body script, .body a[href^='javascript']").count() == 0


def test_nothing_said_is_stored(tab: Tab, demo: str) -> None:
    page = tab.page
    open_page(page, demo)
    ask(page, "zebra-canary-4711")
    wait_until_answered(page)
    stored = page.evaluate("() => JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])")
    assert "zebra" not in stored and "demo provider" not in stored
    assert page.evaluate("async () => (await indexedDB.databases()).length") == 0
    page.reload()
    expect(page.locator("#welcome")).to_be_visible()
    assert page.locator(".message").count() == 0


def test_long_answer_follows_until_the_person_scrolls_up(tab: Tab, unhurried: str) -> None:
    page = tab.page
    page.set_viewport_size({"width": 700, "height": 420})
    open_page(page, unhurried)
    ask(page, "Hello")
    # There is something to scroll before the answer is over.
    page.evaluate(
        """() => new Promise((done) => {
             const look = () => scroller.scrollHeight - scroller.clientHeight > 150 ? done() : setTimeout(look, 20);
             look();
           })"""
    )
    expect(page.locator("#send")).to_have_attribute("aria-label", "Stop")
    at_end = "() => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 48"
    assert page.evaluate(at_end)
    page.mouse.move(350, 200)
    page.mouse.wheel(0, -2000)
    expect(page.locator("#follow")).to_be_visible()
    page.click("#follow")
    wait_until_answered(page)
    assert page.evaluate(at_end)


def test_content_security_policy_blocks_inline_code(tab: Tab, demo: str) -> None:
    page = tab.page
    open_page(page, demo)
    page.evaluate(
        """() => { const script = document.createElement('script');
           try { script.text = 'window.owned = true'; document.head.append(script); } catch (error) { /* Trusted Types */ } }"""
    )
    assert page.evaluate("() => window.owned") is None
    assert tab.problems, "the browser should have reported a violation"
    tab.problems.clear()


def test_an_old_phone_can_read_the_scripts(tab: Tab, demo: str) -> None:
    """Safari before 16.4 takes lookbehind for an error of syntax; before 16 it has no `AbortSignal.timeout`."""
    for script in (ROOT / "files/gateway/src/hearth_gateway/web/static").glob("*.js"):
        assert not re.search(r"\(\?<[=!]", script.read_text()), script.name
    page = tab.page
    page.add_init_script("delete AbortSignal.timeout")
    open_page(page, demo)
    expect(page.locator(".problem")).to_have_count(0)


@pytest.mark.parametrize("broken", ["abort", "syntax"])
def test_a_page_that_cannot_start_says_so(tab: Tab, demo: str, broken: str) -> None:
    """One of its files got lost on the way, or is beyond the browser."""
    page = tab.page
    words = page.get_by_text("This page could not start.")
    if broken == "abort":
        page.route("**/static/markdown.js", lambda route: route.abort("connectionreset"))
    else:
        page.route("**/static/markdown.js", lambda route: route.fulfill(content_type="text/javascript", body="?"))
    page.goto(demo)
    expect(words).to_be_visible()
    tab.problems.clear()
    page.unroute("**/static/markdown.js")
    page.reload()
    expect(page.locator("#model")).to_be_enabled()
    expect(words).to_have_count(0)


def test_marks_inside_a_line(tab: Tab, demo: str) -> None:
    page = tab.page
    open_page(page, demo)
    text = "**bold** *it* (*so*) 2*3*4 a*b `*code*` ***both*** [wiki](https://w.test/Foo_(bar)) [*x*](https://w.test/y) *not * this"
    answer_with(page, 200, stream_body(json.dumps(text)), "text/event-stream")
    ask(page, "marks")
    wait_until_answered(page)
    body = last_answer(page)
    expect(body.locator("strong").first).to_have_text("bold")
    expect(body.locator("p > em")).to_have_text(["it", "so"])
    expect(body.locator("code")).to_have_text("*code*")
    assert body.locator("a").evaluate_all("all => all.map(it => it.href)") == ["https://w.test/Foo_(bar)", "https://w.test/y"]
    expect(body).to_contain_text("(so) 2*3*4 a*b")
    expect(body).to_contain_text("*not * this")


def test_an_address_in_an_answer_is_a_link_without_what_ends_the_sentence(tab: Tab, demo: str) -> None:
    page = tab.page
    said = {
        "See https://w.test/a?b=c&d=1#e.": "https://w.test/a?b=c&d=1#e",
        "(https://w.test/in_brackets), ": "https://w.test/in_brackets",
        "https://w.test/Foo_(bar)!": "https://w.test/Foo_(bar)",
        "<https://w.test/enclosed>": "https://w.test/enclosed",
        "**https://w.test/bold**": "https://w.test/bold",
        "[https://w.test/shown](https://w.test/meant)": "https://w.test/meant",
        "[https://w.test/square]": "https://w.test/square",
        "https:// or `https://w.test/code` or javascript:alert(1) or https://...": None,
    }
    body = show_answer(page, demo, "\n\n".join(said))
    links = body.locator("a")
    assert links.evaluate_all("all => all.map(it => it.href)") == [address for address in said.values() if address]
    assert links.nth(5).inner_text() == "https://w.test/shown"
    expect(body.locator("p").nth(0)).to_have_text("See https://w.test/a?b=c&d=1#e.")
    expect(body.locator("p").nth(1)).to_have_text("(https://w.test/in_brackets),")
    expect(body.locator("p").nth(3)).to_have_text("https://w.test/enclosed")
    for attribute, value in (("target", "_blank"), ("rel", "noopener noreferrer")):
        assert links.evaluate_all("(all, name) => all.map(it => it.getAttribute(name))", attribute) == [value] * links.count()


def test_the_question_for_a_token_can_be_left_and_come_back_to(tab: Tab, demo: str) -> None:
    page = tab.page
    address, _, token = demo.partition("#token=")
    page.goto(address)
    expect(page.locator("#ask-token")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(".problem")).to_contain_text("This server needs an access token.")
    page.get_by_role("button", name="Enter it").click()
    # What goes wrong next is told once.
    page.route("**/v1/models", lambda route: route.abort("connectionrefused"))
    page.fill("#token", token)
    page.keyboard.press("Enter")
    expect(page.locator(".problem")).to_contain_text("cannot be reached")
    page.wait_for_timeout(300)
    expect(page.locator(".problem")).to_have_count(1)
    page.unroute("**/v1/models")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#model")).to_be_enabled()
    expect(page.locator("#welcome")).to_be_visible()


def test_a_server_without_a_model_says_so(tab: Tab, demo: str) -> None:
    page = tab.page
    page.route("**/v1/models", lambda route: route.fulfill(json={"object": "list", "data": []}))
    page.goto(demo)
    expect(page.locator(".problem")).to_contain_text("There is no model to chat with.")
    page.fill("#draft", "my precious question")
    page.click("#new-chat")  # which cannot help
    expect(page.locator(".problem")).to_be_visible()
    page.unroute("**/v1/models")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#model")).to_be_enabled()
    expect(page.locator("#send")).to_be_enabled()
    expect(page.locator("#draft")).to_have_value("my precious question")


def ending(reason: str) -> str:
    return f'data: {{"choices": [{{"delta": {{}}, "finish_reason": "{reason}"}}]}}\n\ndata: [DONE]\n\n'


@pytest.mark.parametrize(("reason", "words"), [("length", "Ask it to go on."), ("content_filter", "broke off here")])
def test_an_answer_that_the_model_did_not_finish_does_not_pass_for_a_whole_one(tab: Tab, demo: str, reason: str, words: str) -> None:
    page = tab.page
    open_page(page, demo)
    answer_with(page, 200, stream_body('"First peel the on"', end=ending(reason)), "text/event-stream")
    ask(page, "soup?")
    wait_until_answered(page)
    expect(last_answer(page)).to_have_text("First peel the on")
    expect(page.locator(".note")).to_contain_text(words)
    expect(page.locator("#announcer")).to_contain_text(words)


@pytest.mark.parametrize(("reason", "words"), [("content_filter", "declined to answer"), ("stop", "answer is empty")])
def test_an_answer_without_a_word_is_told(tab: Tab, demo: str, reason: str, words: str) -> None:
    page = tab.page
    open_page(page, demo)
    answer_with(page, 200, stream_body(end=ending(reason)), "text/event-stream")
    ask(page, "my precious question")
    expect(page.locator(".problem")).to_contain_text(words)
    page.get_by_role("button", name="Edit the question").click()
    expect(page.locator("#draft")).to_have_value("my precious question")


def show_answer(page: Page, address: str, text: str) -> Any:
    open_page(page, address)
    answer_with(page, 200, stream_body(json.dumps(text)), "text/event-stream")
    ask(page, "and?")
    wait_until_answered(page)
    return last_answer(page)


@pytest.mark.parametrize("indent", ["   ", "\t", "- ", ""], ids=["spaces", "tab", "twice", "none"])
def test_the_steps_of_a_recipe_are_counted_right(tab: Tab, demo: str, indent: str) -> None:
    """With their details below them, which a model sets further in or does not."""
    detail = "   - chop\n     - finely\n   - wash" if indent == "- " else f"{indent}- chop\n{indent}- wash"
    body = show_answer(tab.page, demo, f"To do:\n1. Prepare\n{detail}\n2. Cook\n3. Serve")
    steps = body.locator(":scope > ol > li")
    expect(steps).to_have_count(3)
    assert steps.evaluate_all("all => all.map(it => it.firstChild.textContent)") == ["Prepare", "Cook", "Serve"]
    expect(steps.first.locator(":scope > ul > li").last).to_have_text("wash")
    assert steps.first.locator("ul ul").count() == (indent == "- ")


def test_code_ends_where_it_ends(tab: Tab, demo: str) -> None:
    text = '1. Run:\n    ```python title="x.py"\n    print(1)\n      # deeper\n    ```\n\nThen **go on**.'
    body = show_answer(tab.page, demo, text)
    expect(body.locator("pre")).to_have_text("print(1)\n  # deeper", use_inner_text=True)
    expect(body.locator(".code-head span")).to_have_text("python")
    expect(body.locator(":scope > p strong")).to_have_text("go on")


def test_arabic_begins_at_the_right(tab: Tab, demo: str) -> None:
    """What is asked, what is answered, and what is being written; code stays as it is."""
    page = tab.page
    arabic = "\u0645\u0631\u062d\u0628\u0627! HTTP.\n\n1. \u0623\u0648\u0644\u0627"
    body = show_answer(page, demo, f"{arabic}\n\n```\n\u0645 = 1\n```\n\nAnd English.")
    direction = "all => all.map(it => getComputedStyle(it).direction)"
    assert body.locator(":scope > *").evaluate_all(direction) == ["rtl", "rtl", "ltr", "ltr"]
    # The number stands on the side where one begins to read.
    assert body.locator("ol").evaluate("it => parseFloat(getComputedStyle(it).paddingRight) > 0")
    page.fill("#draft", "\u0645\u0631\u062d\u0628\u0627!")
    assert page.locator("#draft").evaluate("it => getComputedStyle(it).direction") == "rtl"
    page.keyboard.press("Enter")
    assert page.locator(".from-person .body").evaluate_all(direction) == ["ltr", "rtl"]


def test_a_browser_is_not_asked_to_translate_what_was_said(tab: Tab, demo: str) -> None:
    """It would send the words to the maker of the browser. And no screen reader is told that they are English."""
    body = show_answer(tab.page, demo, "zebra")
    assert body.evaluate("it => it.translate") is False
    assert body.evaluate("it => it.closest('[lang]').lang") == ""
    assert tab.page.locator("#announcer").evaluate("it => it.translate") is False


def test_an_answer_is_said_without_signs_and_found_once(tab: Tab, demo: str) -> None:
    page = tab.page
    body = show_answer(page, demo, "## Soup\n\n- **zebra** one\n- two\n\n```sh\nls\n```")
    expect(body.locator("strong")).to_have_text("zebra")
    expect(page.locator("#announcer")).to_have_text("Soup zebra one two ls")
    # Whoever copies or searches the whole page finds it once.
    expect(page.locator("#announcer")).to_have_text("")
    assert page.evaluate("() => document.body.innerText.split('zebra').length - 1") == 1


def test_all_of_a_chat_is_printed_and_dark_on_white(tab: Tab, demo: str) -> None:
    page = tab.page
    page.emulate_media(color_scheme="dark")
    show_answer(page, demo, "A long recipe, to be sure.\n\n" * 100)
    page.click("#theme")
    page.click("#theme")  # dark by choice, not only by the system
    pages = len(re.findall(rb"/Type /Page\b", page.pdf()))
    assert pages >= 3, f"{pages} page for 100 paragraphs"
    page.emulate_media(media="print")
    assert contrast_on_white(page, ".from-model .body p") >= 7
    for gone in ("#form", ".bar", ".actions"):
        expect(page.locator(gone)).to_be_hidden()


def contrast_on_white(page: Page, place: str) -> float:
    colour = page.locator(place).first.evaluate("it => getComputedStyle(it).color.match(/\\d+/g).slice(0, 3).map(Number)")
    return contrast("#ffffff", "#" + "".join(f"{value:02x}" for value in colour))


@pytest.mark.parametrize("way", ["mouse", "thumb"])
def test_a_double_click_on_send_does_not_stop_the_answer(browser: Browser, unhurried: str, way: str) -> None:
    tab = Tab(browser, **({"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True} if way == "thumb" else {}))
    page = tab.page
    open_page(page, unhurried)
    page.fill("#draft", "Hello")
    if way == "mouse":
        page.dblclick("#send")
    else:
        box = page.locator("#send").bounding_box()
        assert box is not None
        for _ in range(2):
            page.touchscreen.tap(box["x"] + 9, box["y"] + 9)
    expect(last_answer(page)).to_contain_text("demo provider")
    expect(page.locator("#send")).to_have_attribute("aria-label", "Stop")
    page.wait_for_timeout(600)  # longer than a double click
    page.click("#send")
    expect(page.locator(".note")).to_have_text("You stopped this answer.")
    tab.close()


def test_enter_that_accepts_a_word_sends_nothing(tab: Tab, demo: str) -> None:
    """Korean, Japanese and Chinese input. Safari has ended the composition already when it tells the key."""
    page = tab.page
    open_page(page, demo)
    page.fill("#draft", "\uc548\ub155")
    for how in ("isComposing: true", "keyCode: 229"):
        page.evaluate(f"draft.dispatchEvent(new KeyboardEvent('keydown', {{key: 'Enter', bubbles: true, cancelable: true, {how}}}))")
    expect(page.locator(".message")).to_have_count(0)
    expect(page.locator("#draft")).to_have_value("\uc548\ub155")


def test_the_newest_text_stays_in_sight_when_the_keyboard_opens(browser: Browser, demo: str) -> None:
    tab = Tab(browser, viewport=PHONE, has_touch=True, is_mobile=True)
    page = tab.page
    open_page(page, demo)
    ask(page, "Hello")
    wait_until_answered(page)
    from_end = "() => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight"
    page.set_viewport_size({"width": 360, "height": 400})
    page.wait_for_function(f"() => ({from_end})() < 2 && innerHeight === 400", timeout=ANSWER_MS)
    page.fill("#draft", "a line\n" * 5)
    page.wait_for_function(f"() => ({from_end})() < 2 && draft.clientHeight > 100", timeout=ANSWER_MS)
    shot(page, "360-light-keyboard")
    # Whoever reads further up is left there.
    page.evaluate("scroller.scrollTop = 0")
    page.wait_for_timeout(200)
    page.set_viewport_size({"width": 360, "height": 740})
    page.wait_for_timeout(200)
    assert page.evaluate("scroller.scrollTop") == 0
    # And a finger that pulls down there does not load the page again, which would forget the chat.
    assert page.evaluate("getComputedStyle(document.documentElement).overscrollBehaviorY") == "none"
    tab.close()


@pytest.mark.parametrize("size", [(320, 256), (740, 200)], ids=["400-percent", "landscape-keyboard"])
def test_a_low_screen_leaves_room_for_the_conversation(browser: Browser, demo: str, size: tuple[int, int]) -> None:
    """1280 x 1024 at 400 %, and a phone on its side with the keyboard open."""
    tab = Tab(browser, viewport={"width": size[0], "height": size[1]})
    page = tab.page
    open_page(page, demo)
    ask(page, "Hello")
    wait_until_answered(page)
    shot(page, f"{size[0]}-light-low")
    assert page.evaluate("scroller.clientHeight - parseFloat(getComputedStyle(scroller).paddingTop) * 2") > 60
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0], "the page scrolls sideways"
    page.locator("#draft").scroll_into_view_if_needed()
    expect(page.locator("#draft")).to_be_in_viewport(ratio=0.9)
    tab.close()


@pytest.mark.parametrize(
    ("seconds", "said", "words"),
    [
        (691_200, "It starts again at 00:00 on 1 December.", "It starts again at 00:00 on 1 December."),
        (12, "That was quick. The next is possible in 12 s.", "That was quick. The next is possible in 12 s."),
        (30, "The provider is busy.", "The provider is busy. (It suggests to wait 30 s.)"),
    ],
)
def test_how_long_to_wait_is_said_once_and_never_in_thousands_of_seconds(tab: Tab, demo: str, seconds: int, said: str, words: str) -> None:
    page = tab.page
    open_page(page, demo)
    answer_with(page, 429, json.dumps({"error": {"message": said}}), "application/json", {"Retry-After": str(seconds)})
    ask(page, "Hello")
    expect(page.locator(".problem p")).to_have_text(words)


@pytest.mark.parametrize("phone", [False, True], ids=["desktop", "phone"])
def test_trying_again_is_for_the_newest_answer_and_opens_no_keyboard(browser: Browser, demo: str, phone: bool) -> None:
    tab = Tab(browser, has_touch=phone, is_mobile=phone)
    page = tab.page
    open_page(page, demo)
    answer_with(page, 502, "", "text/html")
    ask(page, "first")
    again = page.get_by_role("button", name="Try again")
    expect(again).to_have_count(1)
    ask(page, "second")
    expect(page.locator(".problem")).to_have_count(2)
    expect(again).to_have_count(1)  # the older one could do nothing
    page.unroute("**/v1/chat/completions")
    again.click()
    expect(page.locator("#send" if phone else "#draft")).to_be_focused()
    wait_until_answered(page)
    expect(again).to_have_count(0)
    tab.close()


def test_all_that_is_read_and_pressed_is_large_enough(screen: tuple[Tab, str], unhurried: str) -> None:
    """In every state: welcome, answering, answered, failed, the dialogs."""
    tab, name = screen
    page = tab.page
    open_page(page, unhurried)
    assert unreadable(page) == []
    ask(page, "Hello")
    page.wait_for_function("() => scroller.scrollHeight - scroller.clientHeight > 100 || innerWidth > 500", timeout=ANSWER_MS)
    page.evaluate("scroller.scrollTop = 0")
    assert unreadable(page) == []
    page.keyboard.press("Escape")
    expect(page.locator(".note")).to_be_visible()
    assert unreadable(page) == []
    answer_with(page, 502, "", "text/html")
    ask(page, "Hello")
    expect(page.locator(".problem")).to_be_visible()
    assert unreadable(page) == []
    shot(page, f"{name}-stopped-and-failed")
    page.click("#privacy-open")
    assert unreadable(page) == []


def test_the_focus_shows_in_colours_of_ones_own(tab: Tab, demo: str) -> None:
    """Windows' contrast themes take shadows away."""
    page = tab.page
    page.emulate_media(forced_colors="active")
    open_page(page, demo)
    page.focus("#draft")
    assert page.locator("#draft").evaluate("it => getComputedStyle(it).outlineStyle") == "solid"


def test_a_table_is_a_table(browser: Browser, demo: str) -> None:
    tab = Tab(browser, viewport=PHONE)
    page = tab.page
    row = "| **Soup** | 20 min<br>or more | a \\| b | " + " | ".join(["Wednesday"] * 6) + " |"
    head = "| Dish | Time | c | d | e | f | g | h | i |\n|:---|---:|---|---|---|---|---|---|---|"
    body = show_answer(page, demo, f"Here:\n{head}\n{row}\nAnd so on.")
    expect(body.locator("th").first).to_have_text("Dish")
    assert body.locator("td").nth(1).inner_text() == "20 min\nor more"
    expect(body.locator("td").nth(2)).to_have_text("a | b")
    expect(body.locator("td strong")).to_have_text("Soup")
    expect(body.locator("p")).to_have_text(["Here:", "And so on."])
    # What is wider than the screen scrolls in itself.
    shot(page, "360-light-table")
    assert page.evaluate("scroller.scrollWidth - scroller.clientWidth") == 0
    assert body.locator(".table").evaluate("it => it.scrollWidth > it.clientWidth && it.tabIndex === 0")
    assert tab.problems == []
    tab.close()


def test_a_stopped_answer_is_not_lost_from_the_conversation(tab: Tab, unhurried: str) -> None:
    """Also when something else stands below it: here a model list that does not come after another link with a token was opened."""
    page = tab.page
    open_page(page, unhurried)
    ask(page, "Hello")
    expect(last_answer(page)).to_contain_text("demo provider")
    page.keyboard.press("Escape")
    again = page.locator(".again")
    expect(again).to_be_visible()
    page.route("**/v1/models", lambda route: route.abort("connectionrefused"))
    page.evaluate("location.hash = 'another'")
    expect(page.locator(".problem")).to_be_visible()
    again.click()
    page.unroute("**/v1/models")
    page.locator(".problem").get_by_role("button", name="Try again").click()
    expect(page.locator(".problem")).to_have_count(0)
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page, "Go on")
    said = json.loads(sent.value.post_data or "")["messages"]
    assert [message["role"] for message in said] == ["user", "assistant", "user"]


def test_a_chat_does_not_go_on_unasked_under_somebody_elses_name(browser: Browser, configured: str) -> None:
    """A computer that two people use: Ann's tab is open still when Bob signs in in another one."""

    def credential(email: str) -> dict[str, str]:
        return {"Authorization": "Basic " + base64.b64encode(f"{email}:{PROXY}".encode()).decode()}

    tab = Tab(browser, extra_http_headers=credential("ann@example.org"))
    page = tab.page
    open_page(page, configured)
    ask(page, "Hello")
    wait_until_answered(page)
    # Another tab of her own disturbs nobody.
    with page.expect_response("**/api/me"):
        open_page(tab.context.new_page(), configured)
    expect(page.locator(".problem")).to_have_count(0)
    tab.context.set_extra_http_headers(credential("bob@example.org"))
    open_page(tab.context.new_page(), configured)
    expect(page.locator(".problem")).to_contain_text("You are signed in as bob@example.org now. This chat was begun as ann@example.org.")
    expect(page.locator("#who")).to_have_text("You are signed in as bob@example.org.")
    page.locator(".problem").get_by_role("button", name="New chat").click()
    expect(page.locator(".message")).to_have_count(0)
    assert tab.problems == []
    tab.close()
