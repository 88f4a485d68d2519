"""What stands at the front door, as pure functions: Traefik's flags and Middlewares, refusals of the sign-in's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.hearth.plugins.filter import access
from ansible_collections.homelab.hearth.plugins.module_utils import _access_problems

ROOT = Path(__file__).resolve().parents[2]
NAMES = yaml.safe_load((ROOT / "contract" / "names.yml").read_text())["access"]
LIMITS: dict[str, Any] = {"rate_per_s": 5, "rate_burst": 10, "open_requests": 7, "hsts_s": 0, "edge": False}


def test_static_settings_become_flags() -> None:
    static = {
        "api": {"dashboard": False},
        "entryPoints": {"websecure": {"address": ":8443", "http": {"tls": {}, "middlewares": ["a@file", "b@file"]}}},
        "empty": [],
        "number": 5,
        "domains": [{"main": "example.org", "sans": ["*.example.org"]}],
    }
    assert access.traefik_arguments(static) == [
        "--api.dashboard=false",
        "--entryPoints.websecure.address=:8443",
        "--entryPoints.websecure.http.tls=true",
        "--entryPoints.websecure.http.middlewares=a@file,b@file",
        "--number=5",
        "--domains[0].main=example.org",
        "--domains[0].sans=*.example.org",
    ]


@pytest.mark.parametrize("value", ["a,b", ["a,b"], "a\nb"])
def test_what_a_flag_would_split_is_refused(value: Any) -> None:
    with pytest.raises(AnsibleFilterError, match=r"x\.y: .* holds a comma or a line break"):
        access.traefik_arguments({"x": {"y": value}})


def test_every_identity_header_is_taken_from_what_a_client_sends() -> None:
    headers = access.door_middlewares(NAMES, LIMITS)["strip"]["headers"]
    stripped = headers["customRequestHeaders"]
    assert set(NAMES["identity_headers"]) < set(stripped) and set(stripped.values()) == {""}
    # Steers the sign-in proxies, and comes through from a trusted forwarder.
    assert "X-Forwarded-Uri" in stripped
    assert headers["customResponseHeaders"] == {"Gap-Auth": ""}
    assert "stsSeconds" not in headers
    assert access.door_middlewares(NAMES, {**LIMITS, "hsts_s": 60})["strip"]["headers"]["stsSeconds"] == 60


def test_the_chat_takes_no_credential_but_the_session() -> None:
    assert access.route_middlewares(NAMES, "http://x/")["chat"]["headers"]["customRequestHeaders"] == {"Authorization": "", "X-Api-Key": ""}


def test_apps_get_identity_from_the_sign_in_alone() -> None:
    forward = access.route_middlewares(NAMES, "http://signin:4180/")["signin"]["forwardAuth"]
    assert forward["address"] == "http://signin:4180/"
    assert forward["trustForwardHeader"] is False
    # What is set for the app must be a name that is taken away from the client.
    assert set(forward["authResponseHeaders"]) <= set(NAMES["identity_headers"])


def test_addresses_are_counted_by_who_connects_or_by_what_the_edge_wrote() -> None:
    plain = access.door_middlewares(NAMES, LIMITS)
    assert plain["rate"]["rateLimit"] == {"average": 5, "burst": 10, "sourceCriterion": {"ipStrategy": {"ipv6Subnet": 64}}}
    edge = access.door_middlewares(NAMES, {**LIMITS, "edge": True})
    for kind, setting in (("rate", "rateLimit"), ("open", "inFlightReq")):
        assert edge[kind][setting]["sourceCriterion"] == {"ipStrategy": {"depth": 1, "ipv6Subnet": 64}}
    assert edge["open"]["inFlightReq"]["amount"] == 7


def test_the_address_of_the_sign_in_is_that_of_its_service() -> None:
    where = f"http://{NAMES['apps']['name']}.{NAMES['namespace']}.svc:{NAMES['port']}/"
    assert NAMES["signin_url"] == where


DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(("image", "repository"), [
    (f"docker.io/library/traefik@{DIGEST}", "library/traefik"),
    (f"docker.io/library/traefik:v3.7.14@{DIGEST}", "library/traefik"),
    (f"registry.lan:5000/a/b/traefik@{DIGEST}", "a/b/traefik"),
])
def test_an_image_in_the_parts_that_the_chart_takes(image: str, repository: str) -> None:
    parts = access.traefik_image_parts(image)
    assert parts == {"registry": image.split("/")[0], "repository": repository, "digest": DIGEST}


@pytest.mark.parametrize(("image", "fault"), [
    ("docker.io/library/traefik:v3.7.14", "is not given by digest"),
    (f"docker.io/library/traefik@{DIGEST[:-1]}", "is not given by digest"),
    (f"library/traefik@{DIGEST}", "does not begin with its registry"),
    (f"traefik@{DIGEST}", "does not begin with its registry"),
])
def test_an_image_that_the_chart_would_take_for_another_is_refused(image: str, fault: str) -> None:
    with pytest.raises(AnsibleFilterError, match=fault):
        access.traefik_image_parts(image)


def test_the_proxies_may_go_to_the_provider_and_browsers_go_to_its_pages() -> None:
    provider = {
        "issuer_url": "https://id.example.net/realm", "login_url": "https://login.example.net/x", "redeem_url": "https://id.example.net/token",
        "jwks_url": "https://keys.example.net:8443/jwks", "userinfo_url": "",
    }  # fmt: skip
    assert [row["url"] for row in access.signin_egress(provider)] == ["https://id.example.net", "https://keys.example.net:8443"]


@pytest.mark.parametrize(("settings", "refused"), [
    ({"standard_logging": False}, ["settings.standard_logging"]),
    ({"standard_logging_format": "[{{.Timestamp}}]"}, ["settings.standard_logging_format"]),
    ({"standard_logging": True, "standard_logging_format": "{{.Message}}", "auth_logging": False, "silence_ping_logging": True}, []),
])
def test_the_log_by_which_a_changed_list_is_seen_to_be_read_stays(settings: dict[str, Any], refused: list[str]) -> None:
    """Without it every playbook about people fails after 20 s, though all is well."""
    assert [problem.partition(":")[0] for problem in _access_problems._settings({"settings": settings})] == refused


@pytest.mark.parametrize("key", ["additionalArguments", "globalArguments", "ports", "experimental"])
def test_values_of_the_chart_that_would_open_what_flags_close_are_refused(key: str) -> None:
    [problem] = _access_problems._values({"values": {key: ["--entryPoints.websecure.forwardedHeaders.trustedIPs=0.0.0.0/0"]}})
    assert problem.startswith(f"values.{key}: ")


def test_apps_are_routes_to_a_service_or_to_a_server() -> None:
    apps = [
        {"host": "home.example.org", "address": "192.168.1.30:8123"},
        {"host": "six.example.org", "address": "[2001:db8::7]:80"},
        {"host": "board.example.org", "service": "headlamp.kube-system:80", "pods": {"app": "headlamp"}},
    ]
    assert access.protected_app_routes(apps, "houses") == [
        {"name": "home-example-org", "host": "home.example.org", "namespace": "houses", "backend": "home-example-org",
         "address": "192.168.1.30", "port": 8123},
        {"name": "six-example-org", "host": "six.example.org", "namespace": "houses", "backend": "six-example-org",
         "address": "2001:db8::7", "port": 80},
        {"name": "board-example-org", "host": "board.example.org", "namespace": "kube-system", "backend": "headlamp", "port": 80,
         "pods": {"app": "headlamp"}},
    ]


@pytest.mark.parametrize("address", ["127.0.0.1:80", "169.254.169.254:80", "[::1]:80", "0.0.0.0:80", "192.168.1.1:0", "192.168.1.1:70000"])
def test_an_address_that_is_no_server_of_the_house_is_refused(address: str) -> None:
    [problem] = access.protected_app_problems([{"host": "a.example.org", "address": address}], "example.org", [])
    assert "is not an IP address with a port" in problem


def test_all_problems_of_all_apps_are_told_at_once() -> None:
    apps = [{"host": "a.example.org", "service": "x"}, {"host": "chat.example.org", "address": "192.168.1.1:80", "pods": {"a": "b"}}]
    assert len(access.protected_app_problems(apps, "example.org", ["chat.example.org"])) == 3
