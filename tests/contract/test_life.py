"""C27 and C30 at the proxy: what it reads when, how it starts, stops, and refuses to."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
from chain import ANN, CHAT_URL, TOKEN, VARIABLES, Proxy, binary, is_standin, render, wait_for
from conftest import MakeProxy
from identity import arrived, credential

END_S = 30


def test_c27_the_token_is_read_once(make_proxy: MakeProxy) -> None:
    proxy = make_proxy()
    ann = proxy.signed_in()
    proxy.token_file.write_text("another-token-0123456789")
    time.sleep(0.5)
    assert arrived(ann.send(f"{CHAT_URL}/").json()["headers"]) == [("Authorization", credential(ANN))]


def test_c27_without_the_token_it_does_not_start(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(start=False)
    proxy.token_file.unlink()
    assert proxy.spawn().wait(END_S) == 1


def test_c27_a_newline_goes_into_the_credential(make_proxy: MakeProxy) -> None:
    """Byte for byte: hence gateway_token writes none. (In a header of its own it was a 502.)"""
    ann = make_proxy(token=f"{TOKEN}\n").signed_in()
    assert arrived(ann.send(f"{CHAT_URL}/").json()["headers"]) == [("Authorization", credential(ANN, f"{TOKEN}\n"))]


def test_c30_config_test_says_yes_without_listening(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(start=False)
    with socket.create_server(("127.0.0.1", proxy.port)):
        assert proxy.spawn("--config-test").wait(END_S) == 0


def test_c30_what_google_gets_is_valid(tmp_path: Path) -> None:
    """The addresses of an ordinary installation; nothing but paths is replaced."""
    google = {name: value for name, value in VARIABLES.items() if name not in ("oauth2_proxy_provider", "oauth2_proxy_oidc")}
    rendered = render(tmp_path, google, "oauth2_proxy")
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    for name in ("chat-cookie", "apps-cookie", "client-secret", "gateway-token"):
        (secrets / name).write_text("0123456789abcdef0123456789abcdef")
    for instance, files in rendered.items():
        folder = tmp_path / f"{instance}-localised"
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text.replace("/etc/hearth", str(tmp_path)))
        command = [str(binary()), "--config-test", "--config", str(folder / "core.toml")]
        command += ["--alpha-config", str(folder / "alpha.yaml")] if instance == "chat" else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "accounts.google.com" in "".join(files.values())


@pytest.mark.parametrize(
    "changes",
    [
        {"cookie_samesite": "cookie_samesitee"},
        {"injectRequestHeaders": "injectRequestHeader"},
        {"insecureSkipNonce": "insecureSkipNonces"},
        {'cookie_expire = "168h"': 'cookie_expire = "long"'},
        {"secrets/chat-cookie": "secrets/absent"},
        {"secrets/gateway-token": "secrets/absent"},
        {"upstreamConfig:": "upstreamConfig: ["},
        {"api_routes = [": 'upstreams = ["http://x"]\napi_routes = ['},
    ],
    ids=["core key", "alpha key", "deep key", "duration", "cookie secret", "token", "no YAML", "both files"],
)
def test_c30_config_test_says_no(make_proxy: MakeProxy, changes: dict[str, str]) -> None:
    proxy = make_proxy(start=False, changes=changes)
    assert proxy.spawn("--config-test").wait(END_S) == 1
    assert proxy.spawn().wait(END_S) == 1


@pytest.mark.parametrize("secret", ["short", "f" * 64, "+" * 43 + "=", "-" * 43 + "=\n", ""])
def test_c30_a_cookie_secret_of_the_wrong_size(make_proxy: MakeProxy, secret: str) -> None:
    assert make_proxy(start=False, cookie_secret=secret).spawn("--config-test").wait(END_S) == 1


def test_c30_an_unknown_flag(make_proxy: MakeProxy) -> None:
    assert make_proxy(start=False).spawn("--pass-everything").wait(END_S) != 0


def test_c30_sigterm_lets_open_requests_finish(make_proxy: MakeProxy) -> None:
    proxy = make_proxy()
    ann = proxy.signed_in()
    connection, response = ann.open(f"{CHAT_URL}/stream?chunks=60&every_s=0.1")
    response.readline()
    proxy.terminate()
    # No pause before it stops listening: the pod's preStop has to give Traefik the time to notice.
    wait_for(lambda: _refused(proxy), "new connections to be refused", 3)
    proxy.terminate()
    assert proxy.process is not None
    assert proxy.process.poll() is None
    assert len(response.read().splitlines()) == 59
    connection.close()
    assert proxy.process.wait(END_S) == 0


def test_c30_idle_it_ends_at_once(make_proxy: MakeProxy) -> None:
    proxy = make_proxy()
    # It listens some milliseconds before it minds signals.
    assert proxy.browser().send(f"{CHAT_URL}/ping").status == 200
    proxy.terminate()
    began = time.monotonic()
    assert proxy.process is not None
    assert proxy.process.wait(END_S) == 0
    assert time.monotonic() - began < 3, "it waited for something, though nothing was open"


def _refused(proxy: Proxy) -> bool:
    try:
        socket.create_connection(proxy.address[:2], timeout=1).close()
    except (ConnectionRefusedError, ConnectionResetError):
        return True
    return False


def test_c30_metrics_only_on_their_port(chat: Proxy) -> None:
    chat.browser().send(f"{CHAT_URL}/v1/x")  # a counter shows once it has counted
    with urllib.request.urlopen(f"http://127.0.0.1:{chat.metrics_port}/metrics", timeout=5) as answer:
        assert "oauth2_proxy_requests_total" in answer.read().decode()
    assert chat.browser().send(f"{CHAT_URL}/metrics").status == 302
    assert chat.signed_in().send(f"{CHAT_URL}/metrics").json()["target"] == "/metrics"


def test_it_starts_while_the_provider_is_away(make_proxy: MakeProxy, chat: Proxy) -> None:
    """A house that loses its internet keeps its chat: people who are in stay in, across a restart too."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        proxy = make_proxy(provider=f"http://127.0.0.1:{nobody.getsockname()[1]}")
    browser = proxy.browser()
    browser.jar = chat.signed_in().jar
    assert browser.send(f"{CHAT_URL}/").status == 200


def test_an_unknown_provider_is_not_waited_for_with_discovery(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(start=False, provider="http://127.0.0.1:9", changes={"skipDiscovery: true": "skipDiscovery: false"})
    assert proxy.spawn().wait(END_S) == 1


def test_discovery_finds_the_same(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(changes={"skipDiscovery: true": "skipDiscovery: false"})
    assert proxy.signed_in().send(f"{CHAT_URL}/").status == 200


def test_the_log_names_no_secret(make_proxy: MakeProxy) -> None:
    proxy = make_proxy()
    ann = proxy.signed_in()
    ann.send(f"{CHAT_URL}/?q=a-question-of-ann")
    proxy.terminate()
    assert proxy.process is not None
    proxy.process.wait(END_S)
    said = proxy.log.read_text()
    for word in (TOKEN, *[cookie.value for cookie in ann.jar.values() if len(cookie.value) > 20], "a-question-of-ann", "code="):
        assert word not in said


def test_the_stand_in_says_what_it_is() -> None:
    said = subprocess.run([binary(), "--version"], capture_output=True, text=True, check=True).stdout
    assert said.startswith("oauth2-proxy ")
    assert is_standin() != bool(os.environ.get("OAUTH2_PROXY"))


def test_the_environment_beats_the_files(make_proxy: MakeProxy) -> None:
    """Why pods have neither envFrom nor service links. The real one lets a whole domain in; the stand-in refuses to start."""
    proxy = make_proxy(start=False)
    done = subprocess.run(
        [*proxy.command, "--config-test"], env=os.environ | {"OAUTH2_PROXY_COOKIE_EXPIRE": "never"},
        capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 1
    assert "cookie_expire" in (done.stdout + done.stderr).lower()
