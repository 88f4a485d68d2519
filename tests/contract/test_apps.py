"""C31 to C34: any other app behind the same sign-in, through Traefik's forwardAuth."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import pytest
from browser import Browser
from chain import ANN, APP, APPS_COOKIE, AUTH, BOB, CHAT_COOKIE, CHAT_URL, DOMAIN, EVE, HOSTS, choose, sign_in, wait_for
from conftest import House, MakeProxy
from identity import EVIL, arrived, cases, dashed, odd

APP_URL, AUTH_URL, PHOTOS_URL = f"https://{APP}", f"https://{AUTH}", f"https://{HOSTS['photos']}"
TOLD = ["X-Auth-Request-Email", "X-Auth-Request-User", "X-Auth-Request-Groups", "X-Auth-Request-Preferred-Username"]


@pytest.fixture(scope="module")
def ann(house: House) -> Browser:
    return house.traefik.signed_in(house.provider, ANN, f"{APP_URL}/")


def test_c31_a_page_sends_to_the_provider_and_back(house: House) -> None:
    browser = house.traefik.browser()
    choose(browser, house.provider, ANN)
    start = browser.send(f"{APP_URL}/deep?x=1&y=%2F")
    assert start.status == 302
    query = parse_qs(urlsplit(start.location).query)
    assert start.location.startswith(f"{house.provider}/authorize")
    assert query["redirect_uri"] == [f"{AUTH_URL}/oauth2/callback"]
    assert query["code_challenge_method"] == ["S256"]
    assert query["prompt"] == ["select_account"]
    [csrf] = start.cookies()
    assert csrf.name.startswith(APPS_COOKIE)
    ended = browser.send(browser.send(start.location).location)
    assert (ended.status, ended.header("Location")) == (302, f"{APP_URL}/deep?x=1&y=%2F")
    [session] = [cookie for cookie in ended.cookies() if cookie.name == APPS_COOKIE]
    assert session.attributes["domain"].lstrip(".") == DOMAIN
    assert {"secure", "httponly"} <= session.attributes.keys()
    assert session.attributes["samesite"].lower() == "lax"
    assert browser.send(ended.location).json()["target"] == "/deep?x=1&y=%2F"


def test_c31_the_app_is_told_who(ann: Browser) -> None:
    reply = ann.send(f"{APP_URL}/x")
    assert reply.status == 200
    found = dict(arrived(reply.json()["headers"], TOLD))
    assert found["X-Auth-Request-Email"] == ANN
    assert found["X-Auth-Request-User"]
    assert found.keys() == {"X-Auth-Request-Email", "X-Auth-Request-User"}


def test_c31_one_sign_in_for_all_apps(ann: Browser) -> None:
    reply = ann.send(f"{PHOTOS_URL}/x")
    assert (reply.status, dict(reply.json()["headers"])["X-Auth-Request-Email"]) == (200, ANN)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
def test_c31_a_program_gets_401(house: House, method: str) -> None:
    browser = house.traefik.browser()
    for path, headers in (("/api/x", ()), ("/v1/x", ()), ("/x", (("Accept", "application/json"),))):
        reply = browser.send(f"{APP_URL}{path}", *headers, method=method)
        assert (reply.status, reply.body) == (401, b"{}"), path


def test_c31_every_method_passes_for_people(ann: Browser) -> None:
    for method in ("GET", "POST", "PUT", "DELETE", "PATCH"):
        reply = ann.send(f"{APP_URL}/form", method=method, body=b"a=1" if method != "GET" else b"")
        assert reply.status == 200
        assert (reply.json()["method"], reply.json()["size"]) == (method, 3 if method != "GET" else 0)


def test_c31_a_cut_off_sign_in_can_be_begun_again(house: House) -> None:
    browser = house.traefik.browser()
    choose(browser, house.provider, ANN)
    for _ in range(8):
        browser.send(f"{APP_URL}/")
    waiting = [cookie for cookie in browser.jar.values() if cookie.name.endswith("_csrf")]
    assert len(waiting) <= 6, "the Cookie header would grow until the browser is refused"
    assert sign_in(browser, house.provider, ANN, f"{APP_URL}/").status == 200


@pytest.mark.parametrize("name", [*TOLD, "X-Forwarded-Email", "X-Forwarded-User", "X-Forwarded-Groups", "X-Hearth-End-User", "Gap-Auth"])
def test_c32_a_forged_identity_is_replaced_or_gone(ann: Browser, name: str) -> None:
    for spelling in (*dashed(name), *odd(name)):
        for headers in ([(spelling, EVIL)], [(spelling, EVIL)] * 2):
            reply = ann.send(f"{APP_URL}/x", *headers)
            if reply.status != 400:
                assert reply.status == 200
                assert EVIL not in str(reply.json()["headers"]), headers


def test_c32_nor_by_a_connection_header(ann: Browser) -> None:
    for spelling in cases("X-Auth-Request-Email"):
        reply = ann.send(f"{APP_URL}/x", ("Connection", spelling), ("X-Auth-Request-Email", EVIL))
        assert (reply.status, dict(reply.json()["headers"])["X-Auth-Request-Email"]) == (200, ANN)


def test_c32_forwarded_headers_steer_nothing(house: House) -> None:
    """Traefik writes its own into what it asks the sign-in; the client's do not come along."""
    uris = [("X-Forwarded-Uri", path) for path in ("/ping", "/oauth2/callback")]
    for header in (*uris, ("X-Forwarded-Host", AUTH), ("X-Forwarded-Method", "GET")):
        reply = house.traefik.browser().send(f"{APP_URL}/deep", header)
        assert reply.status == 302, header
        state = parse_qs(urlsplit(reply.location).query)["state"][0]
        assert state.endswith(f":{APP_URL}/deep"), header


def test_c33_the_cookie_of_the_apps_does_not_open_the_chat(house: House, ann: Browser) -> None:
    value = ann.session(APPS_COOKIE)
    assert value
    assert not ann.session(CHAT_COOKIE)
    stranger = house.traefik.browser()
    for name in (APPS_COOKIE, CHAT_COOKIE):
        assert stranger.send(f"{CHAT_URL}/v1/x", ("Cookie", f"{name}={value}"), cookies=False).status == 401


def test_c33_nor_the_other_way_round(house: House) -> None:
    chat = house.traefik.signed_in(house.provider)
    value = chat.session(CHAT_COOKIE)
    stranger = house.traefik.browser()
    for name in (APPS_COOKIE, CHAT_COOKIE):
        assert stranger.send(f"{APP_URL}/api/x", ("Cookie", f"{name}={value}"), cookies=False).status == 401


def test_c33_no_app_sees_the_chats_cookie(house: House) -> None:
    both = house.traefik.signed_in(house.provider)
    sign_in(both, house.provider, ANN, f"{APP_URL}/")
    headers = dict(both.send(f"{APP_URL}/x").json()["headers"])
    assert CHAT_COOKIE not in headers.get("Cookie", "")


def test_c34_somebody_who_is_not_on_the_list(house: House) -> None:
    reply = sign_in(house.traefik.browser(), house.provider, EVE, f"{APP_URL}/")
    assert reply.status == 403
    assert "This account may not come in" in reply.body.decode()


def test_c34_a_removed_person_is_out(house: House) -> None:
    bob = house.traefik.signed_in(house.provider, BOB, f"{APP_URL}/")
    house.people.set(ANN)
    try:
        wait_for(lambda: bob.clone().send(f"{APP_URL}/x").status == 403, "Bob to be out", 2)
        page = bob.clone().send(f"{APP_URL}/deep")
        assert page.header("Content-Type").startswith("text/html")
        # On an app's host /oauth2/ belongs to the app: the page has to lead to the sign-in's own host.
        assert f"{AUTH_URL}/oauth2/start?prompt=select_account" in page.body.decode()
        assert [c.attributes["max-age"] for c in page.cookies() if c.name == APPS_COOKIE] == ["0"]
    finally:
        house.people.set(ANN, BOB)
    wait_for(lambda: bob.clone().send(f"{APP_URL}/x").status == 200, "Bob to be in again", 2)


def test_c28_signing_out_of_all_apps(house: House) -> None:
    browser = house.traefik.signed_in(house.provider, ANN, f"{APP_URL}/")
    reply = browser.send(f"{AUTH_URL}/oauth2/sign_out?rd=https%3A%2F%2F{APP}%2Fbye")
    assert (reply.status, reply.header("Location")) == (302, f"{APP_URL}/bye")
    assert browser.send(f"{APP_URL}/api/x").status == 401


@pytest.mark.parametrize("target", ["https://evil.test/", f"https://{DOMAIN}.evil.test/", f"https://evil.test#.{DOMAIN}/", "//evil.test"])
def test_c6_only_to_hosts_of_the_house(house: House, target: str) -> None:
    quoted = target.replace("/", "%2F").replace(":", "%3A").replace("#", "%23")
    reply = house.traefik.browser().send(f"{AUTH_URL}/oauth2/sign_out?rd={quoted}")
    assert (reply.status, reply.header("Location")) == (302, "/")


def test_only_forwarders_are_believed(make_proxy: MakeProxy) -> None:
    """Past Traefik, from an address outside of trusted_proxy_ips, a request counts as it came."""
    for trusted, expected in (("127.0.0.0/8", 401), ("192.0.2.0/24", 302)):
        apps = make_proxy("apps", changes={"127.0.0.0/8": trusted})
        reply = apps.browser().send(f"{AUTH_URL}/", ("X-Forwarded-Uri", "/api/x"), ("X-Forwarded-Host", APP))
        assert reply.status == expected
