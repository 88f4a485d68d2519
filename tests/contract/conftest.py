"""The chain once for all tests that leave it as it was, and a maker for those that do not."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "gateway"), str(HERE.parents[1] / "files" / "gateway" / "src")]

from chain import ANN, BOB, VARIABLES, Certificate, Provider, Proxy, Traefik, Whitelist, render  # noqa: E402
from gateway_support import own, vendor  # noqa: E402
from upstream import Upstream  # noqa: E402

__all__ = ["own", "vendor"]


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate.make(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory, certificate: Certificate) -> dict[str, dict[str, str]]:
    """What the roles write, `localised` later by each process for itself."""
    served = {"traefik_files_certificate": str(certificate.certificate), "traefik_files_private_key": str(certificate.key)}
    return render(tmp_path_factory.mktemp("rendered"), VARIABLES | served)


@pytest.fixture(scope="session")
def upstream() -> Iterator[Upstream]:
    server = Upstream()
    yield server
    server.shutdown()


@pytest.fixture(scope="session")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    process = Provider(tmp_path_factory.mktemp("provider"))
    yield process.url
    process.stop()


MakeProxy = Callable[..., Proxy]


def maker(base: Path, files: dict[str, dict[str, str]], upstream: Upstream, provider: str, made: list[Proxy]) -> MakeProxy:
    numbers = itertools.count()

    def make(instance: str = "chat", *, start: bool = True, people: Whitelist | None = None, **options: object) -> Proxy:
        directory = base / f"{instance}-{next(numbers)}"
        people = people or Whitelist(directory / "whitelist", ANN, BOB)
        settings = {"upstream": upstream.url, "provider": provider, **options}
        proxy = Proxy(directory, instance, files[instance], people=people, **settings)  # type: ignore[arg-type]
        made.append(proxy)
        return proxy.start() if start else proxy

    return make


@pytest.fixture
def make_proxy(tmp_path: Path, files: dict[str, dict[str, str]], upstream: Upstream, provider: str) -> Iterator[MakeProxy]:
    """Makes instances of the test's own."""
    made: list[Proxy] = []
    yield maker(tmp_path, files, upstream, provider, made)
    for proxy in made:
        proxy.stop()


@pytest.fixture(scope="session")
def chat(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, dict[str, str]], upstream: Upstream, provider: str
) -> Iterator[Proxy]:
    """A chat instance in front of the telling upstream, with Ann and Bob on its list."""
    made: list[Proxy] = []
    yield maker(tmp_path_factory.mktemp("chat"), files, upstream, provider, made)()
    for proxy in made:
        proxy.stop()


@dataclass(frozen=True)
class House:
    """The whole chain with Traefik in front, and one list for both instances, as in a cluster."""

    traefik: Traefik
    chat: Proxy
    apps: Proxy
    people: Whitelist
    provider: str


@pytest.fixture(scope="session")
def house(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, dict[str, str]], upstream: Upstream, provider: str
) -> Iterator[House]:
    """Its bounds on requests are lifted: thousands come from one address here, and a test of its own looks at them."""
    base = tmp_path_factory.mktemp("house")
    made: list[Proxy] = []
    people = Whitelist(base / "whitelist", ANN, BOB)
    make = maker(base, files, upstream, provider, made)
    chat, apps = make("chat", people=people), make("apps", people=people, cookie_secret="a" * 32)
    traefik = Traefik(base / "front", files["front"], targets(chat.url, apps.url, upstream.url), UNBOUNDED)
    yield House(traefik, chat, apps, people, provider)
    traefik.stop()
    for proxy in made:
        proxy.stop()


UNBOUNDED = {'"average": 50': '"average": 100000', '"burst": 200': '"burst": 100000'}


def targets(chat: str, apps: str, app: str) -> dict[str, str]:
    return {"chat": chat, "auth": apps, "app": app, "photos": app}
