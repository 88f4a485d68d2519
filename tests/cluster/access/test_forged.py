"""Forged identities at every hop of a running cluster. Nobody enforces a NetworkPolicy on the bed: each hop is on its own."""

from __future__ import annotations

import json

import pytest
from browser import Browser
from chain import ANN, APP, NAMES, sign_in
from identity import AS_EVE, EVIL, PROTECTED, arrived, cases, credential, dashed, doubled, forged, odd, who

from tests.cluster.access.deployed import Deployed

pytestmark = pytest.mark.timeout(600)
BUSYBOX = "docker.io/rancher/mirrored-library-busybox:bed"
OPERATOR = NAMES["gateway"]["tokens"]["operator"]


@pytest.fixture(scope="module")
def ann(deployed: Deployed) -> Browser:
    return deployed.signed_in()


@pytest.fixture(scope="module")
def past_traefik(deployed: Deployed, ann: Browser) -> Browser:
    return deployed.past_traefik(ann)


@pytest.fixture(scope="module")
def at_the_gateway(deployed: Deployed) -> Browser:
    return deployed.at_the_gateway()


def attempts(name: str, *, every: bool) -> list[list[tuple[str, str]]]:
    """A name in all its spellings: alone, twice, with a comma. Without `every`, only spellings with other characters alone."""
    value = AS_EVE if name == "Authorization" else EVIL
    spelled = [[(spelling, value)] for spelling in (*dashed(name), *odd(name))]
    if every:
        spelled += [[(spelling, value)] * 2 for spelling in (*dashed(name), *odd(name))]
        spelled += [[(spelling, f"{ANN},{value}")] for spelling in (*dashed(name), *odd(name))]
    return spelled


def test_policies_are_there_and_nobody_enforces_them(deployed: Deployed) -> None:
    """What the tests below rely on: the ways that a policy forbids are open here."""
    policies = json.loads(deployed.bed.kubectl("get", "networkpolicy", "-A", "-o", "json"))["items"]
    assert {p["metadata"]["namespace"] for p in policies} >= {NAMES["namespace"], NAMES["access"]["namespace"]}
    gateway = f"http://{NAMES['gateway']['service']['name']}.{NAMES['namespace']}:{NAMES['gateway']['service']['port']}/api/me"
    stray = ("run", "stray", f"--image={BUSYBOX}", "--restart=Never", "--rm", "--attach", "--quiet", "--pod-running-timeout=60s")
    said = deployed.bed.kubectl(*stray, "--command", "--", "sh", "-c", f"wget -qO- {gateway} 2>&1; true")
    assert "401" in said, said


@pytest.mark.parametrize("name", PROTECTED)
def test_through_the_front_door_no_spelling_makes_another_person(ann: Browser, name: str) -> None:
    for headers in attempts(name, every=True):
        assert who(ann, *headers) in (ANN, "400"), headers


@pytest.mark.parametrize("name", PROTECTED)
def test_past_traefik_no_spelling_makes_another_person(past_traefik: Browser, name: str) -> None:
    for headers in attempts(name, every=True):
        assert who(past_traefik, *headers) in (ANN, "400"), headers


def test_without_a_session_no_header_opens_a_door(deployed: Deployed) -> None:
    for browser in (deployed.browser(), deployed.past_traefik()):
        for name in PROTECTED:
            for headers in attempts(name, every=False):
                assert who(browser, *headers) in ("401", "400"), headers
        assert who(browser, ("Authorization", credential(ANN, deployed.token()))) == "401", "the right token is no session"


def test_a_connection_header_makes_nobody_and_not_another(ann: Browser, past_traefik: Browser) -> None:
    for value in ("Authorization", "close, Authorization"):
        assert who(ann, ("Connection", value)) == ANN
        assert who(past_traefik, ("Connection", value)) == "401"
        assert who(past_traefik, ("Connection", value), ("Authorization", AS_EVE)) == "401"


def test_straight_at_the_gateway_nothing_forged_is_accepted(deployed: Deployed, at_the_gateway: Browser) -> None:
    token = deployed.token()
    for title, headers in forged(token).items():
        assert who(at_the_gateway, *headers) == "401", title
    for headers in doubled(token, deployed.token(OPERATOR)):
        assert who(at_the_gateway, *headers) in ("400", "401"), headers
    for name in PROTECTED:
        for headers in attempts(name, every=True):
            assert who(at_the_gateway, *headers) in ("400", "401"), headers


def test_a_program_becomes_no_person(deployed: Deployed, at_the_gateway: Browser) -> None:
    own = ("X-Api-Key", deployed.token(OPERATOR))
    program = who(at_the_gateway, own)
    for name in PROTECTED[:-1]:
        for headers in attempts(name, every=False):
            assert who(at_the_gateway, own, *headers) in (program, "400", "401"), headers


def test_straight_at_the_gateway_the_right_one_is_accepted(deployed: Deployed, at_the_gateway: Browser) -> None:
    """What the tests above would be worth without it."""
    for spelling in cases("Authorization"):
        assert who(at_the_gateway, (spelling, credential(ANN, deployed.token()))) == ANN


def test_no_forged_identity_reaches_an_app(deployed: Deployed) -> None:
    browser = deployed.browser()
    assert sign_in(browser, deployed.provider, ANN, f"https://{APP}/").status == 200
    told = [*NAMES["access"]["signed_in_headers"], *NAMES["access"]["identity_headers"]]
    for name in NAMES["access"]["identity_headers"]:
        for headers in attempts(name, every=False):
            reply = browser.send(f"https://{APP}/forged", *headers)
            assert reply.status in (200, 400), headers
            if reply.status == 200:
                seen = {value for _, value in arrived(reply.json()["headers"], told)}
                assert EVIL not in seen and ANN in seen, headers
