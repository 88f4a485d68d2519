"""One house for all tests with a real browser, and a browser that finds and trusts it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import evil
import pytest
from chain import CHAT_COOKIE, CHAT_URL, DOMAIN, Certificate
from evil import Evil
from gateway_support import Mock
from hops import Hops
from playwright.sync_api import Browser
from upstream import Upstream

from tests.browser.visitor import House, Visitor, chromium

Enter = Callable[..., Visitor]


@pytest.fixture(scope="session")
def hops(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, dict[str, str]], upstream: Upstream, provider: str, vendor: Mock
) -> Iterator[Hops]:
    made = Hops(tmp_path_factory.mktemp("people"), files, upstream, provider, vendor)
    yield made
    made.stop()


@pytest.fixture(scope="session")
def sibling(certificate: Certificate) -> Iterator[Evil]:
    server = Evil(certificate)
    yield server
    server.shutdown()


@pytest.fixture(scope="session")
def house(hops: Hops, certificate: Certificate, sibling: Evil) -> House:
    front = f"127.0.0.1:{hops.traefik.port}"
    elsewhere = {evil.HOST: sibling.address}
    return House(CHAT_URL, hops.provider, DOMAIN, front, CHAT_COOKIE, certificate.authority, elsewhere=elsewhere)


@pytest.fixture(scope="session")
def browser(house: House) -> Iterator[Browser]:
    with chromium(house) as launched:
        yield launched


@pytest.fixture
def enter(browser: Browser, house: House) -> Iterator[Enter]:
    """Makes visitors, each with a browser of their own."""
    made: list[Visitor] = []

    def make(**options: Any) -> Visitor:
        made.append(Visitor(browser, house, **options))
        return made[-1]

    yield make
    for visitor in made:
        visitor.close()


@pytest.fixture
def visitor(enter: Enter) -> Visitor:
    return enter()
