"""The whole chain with the real gateway at its end."""

from __future__ import annotations

from pathlib import Path

from browser import Address, Browser
from chain import ANN, BOB, TOKEN, Proxy, Traefik, Whitelist
from conftest import UNBOUNDED, maker, targets
from gateway_support import Gateway, Mock, wait_for
from upstream import Upstream

PROGRAM = "program-token-0123456789abcdef"


class Hops:
    """Traefik, one chat instance and the real gateway."""

    def __init__(self, base: Path, files: dict[str, dict[str, str]], upstream: Upstream, provider: str, vendor: Mock) -> None:
        (base / "gateway").mkdir()
        self.provider = provider
        self.gateway = Gateway(base / "gateway", vendor.url, tokens={"proxy": ["proxy"], "end_users": ["house"]})
        for name, token in (("proxy", TOKEN), ("house", PROGRAM)):
            (self.gateway.tokens / name).write_text(token)
        self.wait_for_tokens(3)
        self.people = Whitelist(base / "whitelist", ANN, BOB)
        self.made: list[Proxy] = []
        self._make = maker(base, files, upstream, provider, self.made)
        self.chat, self.apps = self.replica(TOKEN), self._make("apps", people=self.people)
        self.traefik = Traefik(base / "front", files["front"], targets(self.chat.url, self.apps.url, upstream.url), UNBOUNDED)

    def replica(self, token: str) -> Proxy:
        return self.replica_before(self.gateway.url, token)

    def replica_before(self, upstream: str, token: str = TOKEN) -> Proxy:
        return self._make("chat", upstream=upstream, people=self.people, token=token)

    def wait_for_tokens(self, count: int) -> None:
        wait_for(lambda: self.gateway.metric("hearth_valid_tokens") == count, "the tokens to be read")

    def direct(self) -> Browser:
        """At the gateway itself, as a pod that a NetworkPolicy should have stopped and nobody did."""
        host, port = self.gateway.address
        return Browser({"gateway": Address(host, port)})

    def stop(self) -> None:
        self.traefik.stop()
        for proxy in self.made:
            proxy.stop()
        self.gateway.stop()
