"""The processes of the access chain on this machine: oauth2-proxy or its stand-in, the provider, Traefik.

What they read is what the roles render for a cluster; only paths, addresses and host names of services are replaced
(`localised`), and each replacement must have found what it replaces.
"""

from __future__ import annotations

import datetime
import functools
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from browser import Address, Browser, Reply

from plugins.module_utils import _certificates

ROOT = Path(__file__).resolve().parents[2]
STANDIN = ROOT / "tests" / "standins" / "oauth2-proxy"
PROVIDER = ROOT / "tests" / "mocks" / "oidc_provider.py"
NAMES = yaml.safe_load((ROOT / "contract" / "names.yml").read_text())

CHAT, AUTH, APP, DOMAIN = "chat.hearth.test", "auth.hearth.test", "app.hearth.test", "hearth.test"
IDP = "https://idp.hearth.test"
CHAT_URL = f"https://{CHAT}"
ANN, BOB, EVE = "ann@home.test", "bob@home.test", "eve@home.test"
TOKEN = "proxy-token-0123456789abcdef"
COOKIE_SECRET = "0123456789abcdef0123456789abcdef"
CLIENT_SECRET = "client-secret-0123456789"
CHAT_COOKIE, APPS_COOKIE = NAMES["access"]["chat"]["cookie"], NAMES["access"]["apps"]["cookie"]
T = TypeVar("T")

HOSTS = {"chat": CHAT, "auth": AUTH, "app": APP, "photos": f"photos.{DOMAIN}"}
# Where they lead is put in when the ports are known.
ROUTES = [
    {"name": name, "host": host, "url": f"http://{name}.route.test", "middlewares": {"chat": ["chat"], "auth": []}.get(name, ["signin"])}
    for name, host in HOSTS.items()
]
# What an operator with a provider of their own would write, and apps on the same domain.
VARIABLES = {
    "oauth2_proxy_chat_host": CHAT,
    "oauth2_proxy_apps_domain": DOMAIN,
    "oauth2_proxy_provider": "oidc",
    "oauth2_proxy_client_id": "hearth",
    "oauth2_proxy_client_secret": CLIENT_SECRET,
    "oauth2_proxy_oidc": {
        "name": "the house",
        "email_verified": True,
        "issuer_url": IDP,
        "login_url": f"{IDP}/authorize",
        "redeem_url": f"{IDP}/token",
        "userinfo_url": f"{IDP}/userinfo",
        "jwks_url": f"{IDP}/jwks",
    },
    "traefik_files_routes": ROUTES,
}


def wait_for(probe: Callable[[], T], what: str, timeout_s: float = 20) -> T:
    """Poll until the probe returns something true."""
    deadline = time.monotonic() + timeout_s
    while not (found := probe()):
        assert time.monotonic() < deadline, f"timed out: {what}"
        time.sleep(0.01)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@functools.cache
def binary() -> Path:
    """OAUTH2_PROXY=/path/to/the/real/one, else the stand-in, compiled now (seconds, then from Go's cache)."""
    given = os.environ.get("OAUTH2_PROXY")
    if given:
        assert os.access(given, os.X_OK), f"OAUTH2_PROXY={given} is no program"
        return Path(given)
    made = ROOT / "build" / "standins" / "oauth2-proxy"
    made.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off"}
    command = ["go", "build", "-trimpath", "-buildvcs=false", "-mod=readonly", "-o", str(made), "."]
    done = subprocess.run(command, cwd=STANDIN, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return made


def is_standin() -> bool:
    return "standin" in subprocess.run([binary(), "--version"], capture_output=True, text=True, check=True).stdout


ROLES = {"oauth2_proxy": ("chat", "apps"), "traefik": ("front",)}


def render(target: Path, variables: Mapping[str, Any], *roles: str) -> dict[str, dict[str, str]]:
    """The files as the roles make them: `chat`, `apps` (instances of oauth2-proxy) and `front` (Traefik), each by file name."""
    chosen = roles or tuple(ROLES)
    tasks = [{"ansible.builtin.include_role": {"name": f"homelab.hearth.{role}", "tasks_from": "files"}} for role in chosen]
    written = {
        **variables,
        "oauth2_proxy_files_dir": str(target),
        "traefik_files_dir": str(target / "front"),
        "ansible_python_interpreter": sys.executable,
    }
    (target / "play.yml").write_text(yaml.safe_dump([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}]))
    (target / "variables.yml").write_text(yaml.safe_dump(written))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ANSIBLE_")} | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "localhost,", "-c", "local", "-e", f"@{target}/variables.yml"]
    done = subprocess.run([*command, str(target / "play.yml")], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    folders = [folder for role in chosen for folder in ROLES[role]]
    return {folder: {f.name: f.read_text() for f in sorted((target / folder).iterdir())} for folder in folders}


class Whitelist:
    """A ConfigMap mounted as a directory: a change is a new folder, a renamed link, and the old folder removed."""

    def __init__(self, directory: Path, *people: str) -> None:
        self.directory, self._numbers = directory, itertools.count()
        directory.mkdir(parents=True)
        self.key = NAMES["access"]["whitelist"]["key"]
        self.set(*people)
        (directory / self.key).symlink_to(f"..data/{self.key}")

    def set(self, *people: str) -> None:
        self.write("".join(f"{person}\n" for person in people))

    def write(self, text: str | bytes | None) -> None:
        """None: the key is gone."""
        folder = self.directory / f"..{next(self._numbers)}"
        folder.mkdir()
        if text is not None:
            (folder / self.key).write_bytes(text.encode() if isinstance(text, str) else text)
        data, fresh = self.directory / "..data", self.directory / "..data_tmp"
        old = data.resolve() if data.exists() else None
        fresh.symlink_to(folder.name)
        fresh.rename(data)
        if old:
            shutil.rmtree(old)


class Provider:
    """The stand-in for an OpenID Connect provider, as a process."""

    def __init__(self, directory: Path) -> None:
        secret = directory / "provider-secret"
        secret.write_text(CLIENT_SECRET)
        self.process = subprocess.Popen(
            [sys.executable, str(PROVIDER), "--client-secret-file", str(secret)], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        found = re.search(r"http://\S+", self.process.stdout.readline())
        assert found, "the provider did not start"
        self.url = found[0]

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


class Proxy:
    """One instance of oauth2-proxy. `changes` are further replacements in its files, old text to new."""

    def __init__(
        self, directory: Path, instance: str, files: Mapping[str, str], *, upstream: str, provider: str, people: Whitelist,
        token: str = TOKEN, cookie_secret: str = COOKIE_SECRET, changes: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.directory, self.people, self.provider = directory, people, provider
        self.port, self.metrics_port = free_port(), free_port()
        (directory / "secrets").mkdir(parents=True)
        (directory / "config").mkdir()
        self.token_file = directory / "secrets" / "gateway-token"
        for name, content in {f"{instance}-cookie": cookie_secret, "client-secret": CLIENT_SECRET, "gateway-token": token}.items():
            (directory / "secrets" / name).write_text(content)
        access = NAMES["access"]
        gateway = NAMES["gateway"]["service"]
        replaced = {
            "/etc/hearth/whitelist": str(people.directory),
            "/etc/hearth": str(directory),
            f"0.0.0.0:{access['port']}": f"127.0.0.1:{self.port}",
            f"0.0.0.0:{access['metrics_service']['port']}": f"127.0.0.1:{self.metrics_port}",
            IDP: provider,
        }
        replaced |= (
            {f"http://{gateway['name']}.{NAMES['namespace']}:{gateway['port']}": upstream}
            if instance == "chat"
            else {"10.42.0.0/16": "127.0.0.0/8"}
        )
        localised(directory / "config", files, {**replaced, **(changes or {})})
        self.command = [str(binary()), "--config", str(directory / "config" / "core.toml")]
        if instance == "chat":
            self.command += ["--alpha-config", str(directory / "config" / "alpha.yaml")]
        self.log = directory / "log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> Address:
        return Address("127.0.0.1", self.port)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def spawn(self, *options: str) -> subprocess.Popen[bytes]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("OAUTH2_PROXY")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([*self.command, *options], stdout=log, stderr=log, env=environment)
        return self.process

    def start(self) -> Proxy:
        process = self.spawn()

        def up() -> bool:
            assert process.poll() is None, f"oauth2-proxy ended:\n{self.log.read_text()}"
            return listens(self.port)

        wait_for(up, "oauth2-proxy to listen")
        return self

    def browser(self) -> Browser:
        """One that reaches this instance past Traefik."""
        return Browser({CHAT: self.address, AUTH: self.address})

    def signed_in(self, person: str = ANN) -> Browser:
        browser = self.browser()
        reply = callback(browser, self.provider, person, f"{CHAT_URL}/")
        assert reply.status == 302, (reply.status, reply.body[:300])
        return browser

    def terminate(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
        if self.process is not None:
            self.process.wait()


@dataclass(frozen=True)
class Certificate:
    """Files of a certificate for every host of the house, by an authority of its own: what the role `traefik` makes for a LAN."""

    authority: Path
    certificate: Path
    key: Path

    @classmethod
    def make(cls, directory: Path) -> Certificate:
        now = datetime.datetime.now(datetime.UTC)
        authority = _certificates.new_authority(now, "Hearth of the tests")
        pair = _certificates.new_certificate(authority, [f"*.{DOMAIN}"], now)
        made = cls(directory / "authority.pem", directory / "certificate.pem", directory / "key.pem")
        for path, text in ((made.authority, authority.certificate), (made.certificate, pair.certificate), (made.key, pair.key)):
            path.write_text(text)
        return made


def localised(target: Path, files: Mapping[str, str], replaced: Mapping[str, str]) -> None:
    """Write the files with the replacements made; one that finds nothing is a mistake in the test."""
    joined = "\0".join(files.values())
    for old, new in replaced.items():
        assert old in joined, f"{old!r} stands in none of the rendered files"
        joined = joined.replace(old, new)
    for name, text in zip(files, joined.split("\0"), strict=True):
        # In one step: a Traefik that follows the file would read half of one, and know no route for a moment.
        beside = target.with_name(f"{target.name}.{name}")
        beside.write_text(text)
        beside.replace(target / name)


def choose(browser: Browser, provider: str, person: str, **faults: str) -> None:
    """Who signs in next from this browser, and what goes wrong then."""
    query = "&".join(f"{k}={v}" for k, v in {"user": person, **faults}.items())
    assert browser.send(f"{provider}/as?{query}").status == 200


def sign_in(browser: Browser, provider: str, person: str, url: str, **faults: str) -> Reply:
    """Open the page, go through the provider, and return where that ends."""
    choose(browser, provider, person, **faults)
    return browser.follow(browser.send(url))


def callback(browser: Browser, provider: str, person: str, url: str, **faults: str) -> Reply:
    """The same up to the answer of the proxy's callback."""
    choose(browser, provider, person, **faults)
    to_provider = browser.send(url)
    assert to_provider.status == 302, to_provider.status
    back = browser.send(to_provider.location)
    assert back.status == 302, (back.status, back.body)
    return browser.send(back.location)


class Traefik:
    """The real Traefik with what the role renders. `targets` says where the services of ROUTES are."""

    def __init__(
        self, directory: Path, files: Mapping[str, str], targets: Mapping[str, str], changes: Mapping[str, str] | None = None
    ) -> None:
        directory.mkdir(parents=True)
        self.directory, self.files, self.log = directory, files, directory / "log"
        self.port, self.plain_port = free_port(), free_port()
        [dynamic] = re.findall(r"filename: (\S+)", files["static.yaml"])
        access = NAMES["access"]
        self.replaced = {
            dynamic: str(directory / "dynamic.yaml"),
            "watch: false": "watch: true",
            "127.0.0.1:8443": f"127.0.0.1:{self.port}",
            "127.0.0.1:8080": f"127.0.0.1:{self.plain_port}",
            f"http://{access['apps']['name']}.{access['namespace']}.svc:{access['port']}": targets["auth"],
            **(changes or {}),
        }
        self.point(targets)
        program = shutil.which("traefik", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        assert program, "traefik is missing: run `make setup`"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([program, f"--configFile={directory}/static.yaml"], stdout=log, stderr=log)
        wait_for(lambda: listens(self.port) and self._routes(), f"Traefik to have routes, see {self.log}")

    def point(self, targets: Mapping[str, str]) -> None:
        """Lead the routes to these addresses; a running Traefik follows."""
        localised(self.directory, self.files, {**self.replaced, **{f"http://{name}.route.test": url for name, url in targets.items()}})

    def _routes(self) -> bool:
        try:
            return self.browser().send(f"{CHAT_URL}/ping").status == 200
        except OSError:  # it listens before it has a certificate
            return False

    def browser(self) -> Browser:
        """One that comes through the front door, for every host of the house."""
        secure = {host: Address("127.0.0.1", self.port, tls=True) for host in HOSTS.values()}
        return Browser(secure)

    def signed_in(self, provider: str, person: str = ANN, url: str = f"{CHAT_URL}/") -> Browser:
        browser = self.browser()
        reply = sign_in(browser, provider, person, url)
        assert reply.status == 200, (reply.status, reply.body[:300])
        return browser

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(1)
        except subprocess.TimeoutExpired:  # it waits for its grace time, which is long
            self.process.kill()
            self.process.wait()
