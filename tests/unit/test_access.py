"""What stands at the front door, as pure functions: Traefik's flags and Middlewares, refusals of the sign-in's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.hearth.plugins.filter import access

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
    made = access.access_middlewares(NAMES, LIMITS, "http://x/")
    stripped = made["strip"]["headers"]["customRequestHeaders"]
    assert set(NAMES["identity_headers"]) < set(stripped) and set(stripped.values()) == {""}
    assert "stsSeconds" not in made["strip"]["headers"]
    assert made["chat"]["headers"]["customRequestHeaders"] == {"Authorization": "", "X-Api-Key": ""}


def test_apps_get_identity_from_the_sign_in_alone() -> None:
    forward = access.access_middlewares(NAMES, LIMITS, "http://signin:4180/")["signin"]["forwardAuth"]
    assert forward["address"] == "http://signin:4180/"
    assert forward["trustForwardHeader"] is False
    # What is set for the app must be a name that is taken away from the client.
    assert set(forward["authResponseHeaders"]) <= set(NAMES["identity_headers"])


def test_addresses_are_counted_by_who_connects_or_by_what_the_edge_wrote() -> None:
    plain = access.access_middlewares(NAMES, LIMITS, "http://x/")
    assert plain["rate"]["rateLimit"] == {"average": 5, "burst": 10, "sourceCriterion": {"ipStrategy": {"ipv6Subnet": 64}}}
    edge = access.access_middlewares(NAMES, {**LIMITS, "edge": True, "hsts_s": 60}, "http://x/")
    for kind, setting in (("rate", "rateLimit"), ("open", "inFlightReq")):
        assert edge[kind][setting]["sourceCriterion"] == {"ipStrategy": {"depth": 1, "ipv6Subnet": 64}}
    assert edge["strip"]["headers"]["stsSeconds"] == 60
