"""People with a browser at the door of a house: they sign in, ask, and leave.

Nothing here knows how the house is run: the same steps are taken against processes on this machine (tests/contract) and
against a cluster. Who somebody is at the provider is said to `tests/mocks/oidc_provider.py`.
"""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Playwright, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
REPORTS = Path(os.environ.get("HEARTH_REPORTS") or ROOT / "build" / "reports")
CHROMIUM = os.environ.get("HEARTH_CHROMIUM", "/usr/bin/chromium")
PATIENCE_MS = 30_000
expect.set_options(timeout=PATIENCE_MS)  # Playwright's own 5 s are less than a busy machine takes for a page
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 360, "height": 740}
TLS_TIMEOUT_S = 10


@dataclass(frozen=True)
class House:
    """Where visitors go.

    `front` (address:port) is where every host of `domain` is found, whatever DNS says; `elsewhere` has other hosts' addresses.
    `authority` is the certificate (PEM) of who vouches for the hosts; without one the browser takes any certificate.
    `provider_url` is the sign-in provider as the browser reaches it, and `provider_authority` who vouches for it, if it is one that
    the browser does not know.
    """

    chat_url: str
    provider_url: str
    domain: str
    front: str
    cookie: str
    authority: Path | None = None
    provider_authority: Path | None = None
    elsewhere: Mapping[str, str] = field(default_factory=dict)

    def url(self, name: str) -> str:
        """Of a host directly below the domain."""
        port = urlsplit(self.chat_url).port
        return f"https://{name}.{self.domain}" + (f":{port}" if port else "")

    @cached_property
    def arguments(self) -> list[str]:
        """What Chromium has to be told to find this house and to trust it."""
        # The first that fits counts.
        rules = [f"MAP {host} {address}" for host, address in (*self.elsewhere.items(), (f"*.{self.domain}", self.front))]
        # Chromium's own sandbox needs what containers and root do not have; the pages are our own.
        told = ["--no-sandbox", f"--host-resolver-rules={','.join(rules)}"]
        keys = []
        if self.authority:
            keys.append(_served_key(self.front, urlsplit(self.chat_url).hostname, self.authority))
        if self.provider_authority:
            provider = urlsplit(self.provider_url)
            keys.append(_served_key(provider.netloc, provider.hostname, self.provider_authority))
        return told + ([f"--ignore-certificate-errors-spki-list={','.join(keys)}"] if keys else [])


def _served_key(place: str, name: str | None, authority: Path) -> str:
    """The hash of the public key that is served at a place (address:port) for that host name.

    Chromium reads its authorities from a database that not every machine can write. So OpenSSL judges the certificate
    here (chain, date and name; raises `ssl.SSLError`), and Chromium is told to take this key and no other.
    """
    address, _, port = place.rpartition(":")
    context = ssl.create_default_context(cafile=str(authority))
    plain = socket.create_connection((address, int(port)), TLS_TIMEOUT_S)
    with context.wrap_socket(plain, server_hostname=name) as tls:
        served = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")
    key = served.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(key).digest()).decode()


@contextmanager
def chromium(house: House) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = launch(playwright, house)
        yield browser
        browser.close()


def launch(playwright: Playwright, house: House) -> Browser:
    return playwright.chromium.launch(executable_path=CHROMIUM, args=house.arguments)


class Visitor:
    """One person's browser, with cookies of its own. `options` are Playwright's for a context (viewport, color_scheme, …)."""

    def __init__(self, browser: Browser, house: House, **options: Any) -> None:
        self.house = house
        self.context: BrowserContext = browser.new_context(ignore_https_errors=house.authority is None, **{"viewport": DESKTOP, **options})
        self.context.set_default_timeout(PATIENCE_MS)
        # For who reads a failure: pytest shows what was printed.
        self.context.on("console", lambda said: print(f"console {said.type}: {said.text}"))
        self.context.on("weberror", lambda fault: print(f"page error: {fault.error}"))
        self.context.on("requestfailed", lambda request: print(f"{request.method} {request.url}: {request.failure}"))

    def use_account(self, person: str, **more: str) -> None:
        """Whom the provider signs in from this browser. `also` names accounts that it offers when asked to let choose; further
        parameters are the provider's faults."""
        page = self.context.new_page()
        answer = page.goto(f"{self.house.provider_url}/as?{urlencode({'user': person, **more})}")
        assert answer is not None and answer.ok, f"the provider says {answer and answer.status}"
        page.close()

    def sign_in(self, person: str, url: str = "") -> Page:
        """Open the chat (or another page of the house) as this person; returns where that ends, let in or not."""
        self.use_account(person)
        page = self.context.new_page()
        page.goto(url or self.house.chat_url)
        return page

    def open_chat(self, person: str) -> Page:
        """The same, for somebody who gets in: returns when a question can be asked."""
        page = self.sign_in(person)
        expect_chat_of(page, person)
        return page

    def two_tabs_at_once(self, person: str) -> list[Page]:
        """Two tabs on their way to the chat: both stand at the provider before either comes back."""
        self.use_account(person, wait_s="1")
        tabs = [self.context.new_page() for _ in range(2)]
        for tab in tabs:
            tab.evaluate(f"setTimeout(() => location.href = {self.house.chat_url!r})")
        return tabs

    def end_session(self) -> None:
        """As when the cookie expires."""
        self.context.clear_cookies(name=self.house.cookie)

    def session(self) -> dict[str, Any] | None:
        """The chat's cookie with its attributes, or None."""
        found = [dict(cookie) for cookie in self.context.cookies(self.house.chat_url) if cookie.get("name") == self.house.cookie]
        return found[0] if found else None

    def close(self) -> None:
        self.context.close()


def expect_chat_of(page: Page, person: str) -> None:
    """The chat page is up, and the gateway knows whose it is."""
    expect(page.locator("#model")).to_be_enabled(timeout=PATIENCE_MS)
    expect(page.locator("#who")).to_contain_text(person, timeout=PATIENCE_MS)


def ask(page: Page, text: str, model: str = "demo") -> None:
    """Send a question; does not wait for its answer."""
    page.select_option("#model", model)
    page.fill("#draft", text)
    page.keyboard.press("Enter")


def last_answer(page: Page) -> Locator:
    return page.locator(".from-model .body").last


# The last answer as it is when its beginning is there. Looked at inside the page: on a busy machine the way to the test and back
# takes longer than the rest of the answer.
_BEGINNING = """([begins, patience]) => new Promise((done) => {
  const until = performance.now() + patience;
  const look = () => {
    const text = [...document.querySelectorAll('.from-model .body')].at(-1)?.innerText ?? '';
    if (text.includes(begins) || performance.now() > until) done(text);
    else setTimeout(look, 20);
  };
  look();
})"""


def beginning(page: Page, begins: str) -> str:
    text: str = page.evaluate(_BEGINNING, [begins, PATIENCE_MS])
    return text


def expect_streamed_answer(page: Page, begins: str, ends: str) -> None:
    """The beginning is there while the end is not, and then the end comes too."""
    first = beginning(page, begins)
    assert begins in first, f"no answer began; there was {first!r}"
    assert ends not in first, "it came in one piece"
    expect(last_answer(page)).to_contain_text(ends, timeout=PATIENCE_MS)


# Of what can be seen: text fainter than WCAG AA asks for, links and buttons that are no target for a thumb, and a page wider than
# the screen. A translucent colour is mixed with what is below it, as a screen does.
_UNREADABLE = """() => {
  const wrong = [];
  const parse = (text) => {
    const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
    return text.startsWith('color(srgb') ? [r * 255, g * 255, b * 255, a] : [r, g, b, a];
  };
  const over = (front, back) => front.slice(0, 3).map((value, at) => value * front[3] + back[at] * (1 - front[3]));
  const canvas = matchMedia('(prefers-color-scheme: dark)').matches ? [18, 18, 18] : [255, 255, 255];
  const page = (it) => it ? over(parse(getComputedStyle(it).backgroundColor), page(it.parentElement)) : canvas;
  const opacity = (it) => it ? Number(getComputedStyle(it).opacity) * opacity(it.parentElement) : 1;
  const light = (colour) => colour.map((value) => value / 255)
    .map((value) => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, at) => sum + value * [0.2126, 0.7152, 0.0722][at], 0);
  for (const it of document.body.querySelectorAll('*')) {
    if (!it.checkVisibility()) continue;
    const words = [...it.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE).map((node) => node.data).join('').trim();
    const box = it.getBoundingClientRect();
    if (it.matches('button, a.button, a.choice') && box.height < 40) wrong.push(`${words}: ${box.height} px high`);
    if (!words) continue;
    const back = page(it), front = parse(getComputedStyle(it).color);
    const [low, high] = [light(back), light(over([...front.slice(0, 3), front[3] * opacity(it)], back))].sort((a, b) => a - b);
    const contrast = (high + 0.05) / (low + 0.05);
    if (contrast < 4.5) wrong.push(`${words}: contrast ${contrast.toFixed(1)}`);
    if (parseFloat(getComputedStyle(it).fontSize) < 13) wrong.push(`${words}: ${getComputedStyle(it).fontSize}`);
  }
  const wider = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  if (wider > 0) wrong.push(`${wider} px wider than the screen`);
  return wrong;
}"""


def unreadable(page: Page) -> list[str]:
    """What somebody would have trouble with."""
    found: list[str] = page.evaluate(_UNREADABLE)
    return found


def shot(page: Page, name: str) -> None:
    """A screenshot for people to look at, in build/reports."""
    REPORTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(REPORTS / f"{name}.png"))


def sign_out(page: Page) -> None:
    page.get_by_role("button", name="Your account").click()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="You are signed out")).to_be_visible(timeout=PATIENCE_MS)
