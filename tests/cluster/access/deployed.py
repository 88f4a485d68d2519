"""A house on the bed with front door and sign-in, deployed by site.yml: how tests get at each hop of it."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from browser import Address, Browser
from chain import ANN, APP, AUTH, BOB, CHAT, CHAT_COOKIE, CHAT_URL, DOMAIN, NAMES, free_port, listens, sign_in
from identity import credential, who
from upstream import Upstream

from tests.browser.visitor import House
from tests.cluster.support import REPORTS, Bed, Run, play

ACCESS, GATEWAY = NAMES["access"], NAMES["gateway"]
KEPT = bool(os.environ.get("HEARTH_KEEP_BED"))
# The longest that something may go on after the playbook that ended it.
NOTICED_S = 5
T = TypeVar("T")


def until(probe: Callable[[], T], what: str, timeout_s: float = 20) -> float:
    """Poll until the probe returns something true; the seconds that it took."""
    began = time.monotonic()
    while not probe():
        assert time.monotonic() - began < timeout_s, f"not within {timeout_s} s: {what}"
        time.sleep(0.05)
    return time.monotonic() - began


def note(name: str, **measured: Any) -> None:
    """Measured values go into the report folder, for the documentation."""
    REPORTS.mkdir(parents=True, exist_ok=True)
    (REPORTS / f"access-{name}.json").write_text(json.dumps(measured, indent=2) + "\n")


class Deployed:
    """Front door, sign-in and gateway on the host h1. `app` is a server of the house behind the sign-in."""

    def __init__(self, bed: Bed) -> None:
        self.bed = bed
        self.address = str(bed.described["hosts"]["h1"]["address"])
        self.app = Upstream(bed.address_of_this_machine())
        self.provider = str(bed.variables()["oauth2_proxy_oidc"]["issuer_url"])
        self._tunnels: dict[tuple[str, int], tuple[subprocess.Popen[bytes], Address]] = {}

    # --- deploying, and the playbooks

    @property
    def variables(self) -> dict[str, Any]:
        return {
            "oauth2_proxy_chat_host": CHAT,
            "oauth2_proxy_apps_domain": DOMAIN,
            "oauth2_proxy_emails": [ANN, BOB],
            "protected_app_apps": [{"host": APP, "address": urlsplit(self.app.url).netloc}],
            # Thousands of requests come from one address here. What the bounds do is shown in tests/contract.
            "traefik_rate_per_s": 100_000,
            "traefik_rate_burst": 100_000,
            "gateway_models": {
                "sonnet": [{"provider": "anthropic", "model": "claude-sonnet-4-5-20250929"}],
                "slow": [{"provider": "anthropic", "model": "mock+slow", "max_output_tokens": 4000}],
            },
        }

    def deploy(self, *arguments: str) -> Run:
        return play("site.yml", self.bed.inventory, *arguments, "-e", json.dumps(self.variables), timeout_s=900)

    def run(self, name: str, /, *arguments: str, **variables: Any) -> Run:
        """One of the playbooks about people or tokens."""
        return play(f"playbooks/{name}.yml", self.bed.inventory, *arguments, "-e", json.dumps(variables), timeout_s=300)

    def done(self, name: str, /, *arguments: str, **variables: Any) -> Run:
        """The same, for one that has to succeed."""
        run = self.run(name, *arguments, **variables)
        assert run.rc == 0, run.output[-4000:]
        return run

    # --- what stands in the cluster

    def get(self, kind: str, name: str, namespace: str) -> dict[str, Any]:
        return dict(json.loads(self.bed.kubectl("get", kind, name, "-n", namespace, "-o", "json")))

    def pods(self, namespace: str, **labels: str) -> list[dict[str, Any]]:
        """Those that are not on their way out."""
        selector = ",".join(f"{key}={value}" for key, value in labels.items())
        listed = json.loads(self.bed.kubectl("get", "pods", "-n", namespace, "-l", selector, "-o", "json"))["items"]
        return [pod for pod in listed if "deletionTimestamp" not in pod["metadata"]]

    def gateway_pods(self) -> list[dict[str, Any]]:
        return self.pods(NAMES["namespace"], **{"app.kubernetes.io/name": GATEWAY["deployment"]})

    def starts_of_the_gateway(self) -> dict[str, int]:
        """How often each of its containers was started again."""
        pods = self.gateway_pods()
        return {pod["metadata"]["name"]: sum(c["restartCount"] for c in pod["status"]["containerStatuses"]) for pod in pods}

    def token(self, name: str = GATEWAY["tokens"]["proxy"]) -> str:
        data = self.get("secret", GATEWAY["tokens"]["secret"], NAMES["namespace"])["data"]
        return base64.b64decode(data[name]).decode()

    def listed(self) -> list[str]:
        """The lines of the list of people that are addresses."""
        stored = self.get("configmap", ACCESS["whitelist"]["config_map"], ACCESS["namespace"])
        return [line for line in stored["data"][ACCESS["whitelist"]["key"]].splitlines() if line and not line.startswith("#")]

    # --- ways to the hops

    @property
    def front(self) -> dict[str, Address]:
        host, _, port = urlsplit(self.provider).netloc.partition(":")
        return {**dict.fromkeys((CHAT, AUTH, APP), Address(self.address, 443, tls=True)), host: Address(host, int(port), tls=True)}

    def browser(self) -> Browser:
        """Through the front door."""
        return Browser(self.front)

    def signed_in(self, person: str = ANN) -> Browser:
        browser = self.browser()
        reply = sign_in(browser, self.provider, person, f"{CHAT_URL}/")
        assert reply.status == 200, (reply.status, reply.body[:300])
        return browser

    def past_traefik(self, browser: Browser | None = None) -> Browser:
        """Straight at the pod of the chat's sign-in proxy, with the cookies of that browser."""
        [pod] = self.pods(ACCESS["namespace"], **{"app.kubernetes.io/instance": "chat"})
        other = Browser({**self.front, CHAT: self.tunnel(pod, ACCESS["port"])})
        other.jar = dict(browser.jar) if browser else {}
        return other

    def at_the_gateway(self) -> Browser:
        """Straight at the gateway's pod, which goes by the chat's name there."""
        [pod] = self.gateway_pods()
        return Browser({CHAT: self.tunnel(pod, GATEWAY["service"]["port"])})

    def tunnel(self, pod: dict[str, Any], port: int) -> Address:
        """A port of this machine that leads to a pod, from the host that it runs on: no Service, no NetworkPolicy in between."""
        place = (str(pod["status"]["podIP"]), port)
        if place not in self._tunnels:
            near = free_port()
            command = ["ssh", "-F", str(self.bed.state / "ssh_config"), "-N", "-o", "ExitOnForwardFailure=yes",
                       "-L", f"127.0.0.1:{near}:{place[0]}:{port}", "h1"]  # fmt: skip
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            self._tunnels[place] = (process, Address("127.0.0.1", near))
            until(lambda: listens(near), "the tunnel to listen")
        return self._tunnels[place][1]

    @cached_property
    def house(self) -> House:
        """For visitors with a real browser."""
        authority = Path(self.bed.variables()["traefik_ca_file"])
        return House(CHAT_URL, self.provider, DOMAIN, f"{self.address}:443", CHAT_COOKIE, authority, self.bed.state / "ca.crt")

    def accepts(self, token: str) -> bool:
        """Whether the gateway takes this token as the proxy's."""
        said = who(self.at_the_gateway(), ("Authorization", credential(ANN, token)))
        assert said in (ANN, "401"), said
        return said == ANN

    def close(self) -> None:
        for process, _ in self._tunnels.values():
            process.terminate()
            process.wait()
        self.app.shutdown()
