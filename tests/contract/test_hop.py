"""C10b, C12b, C26, C27 with the real gateway at the end: which hop a request came through."""

from __future__ import annotations

import threading
import time
import urllib.request
from collections.abc import Iterator

import pytest
from chain import ANN, APP, CHAT_URL, TOKEN, Proxy
from conftest import targets
from gateway_support import Mock, wait_for
from hops import PROGRAM, Hops
from identity import AS_EVE, EVIL, PROTECTED, cases, credential, dashed, doubled, forged, odd, who
from upstream import Upstream

NEXT = "next-proxy-token-0123456789"
QUESTION = b'{"model": "x-normal", "stream": true, "messages": [{"role": "user", "content": "hello"}]}'
JSON = (("Content-Type", "application/json"),)
REFUSED_S = 5
# Longer than Traefik's pause between two changes of its configuration, and than the files provider's.
FOLLOWED_S = 3


@pytest.fixture(scope="module")
def hops(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, dict[str, str]], upstream: Upstream, provider: str, vendor: Mock
) -> Iterator[Hops]:
    made = Hops(tmp_path_factory.mktemp("hops"), files, upstream, provider, vendor)
    yield made
    made.stop()


def test_the_gateway_knows_the_person(hops: Hops) -> None:
    reply = hops.traefik.signed_in(hops.provider).send(f"{CHAT_URL}/api/me")
    assert (reply.json()["email"], reply.json()["door"]) == (ANN, "browser")


def test_c7_the_gateway_folds_the_case(hops: Hops) -> None:
    assert who(hops.traefik.signed_in(hops.provider, "Ann@Home.Test")) == ANN


def test_an_answer_is_streamed_to_the_person(hops: Hops) -> None:
    ann = hops.traefik.signed_in(hops.provider)
    reply = ann.send(f"{CHAT_URL}/v1/chat/completions", *JSON, ("Origin", CHAT_URL), method="POST", body=QUESTION)
    assert reply.status == 200
    assert reply.body.rstrip().endswith(b"data: [DONE]")


def test_a_sibling_host_cannot_spend(hops: Hops) -> None:
    """A page of another host of the house: the browser may send the cookie along, and says whose page it is."""
    ann = hops.traefik.signed_in(hops.provider)
    for told in ((("Origin", f"https://{APP}"),), (("Sec-Fetch-Site", "same-site"),), (("Origin", "null"),)):
        assert ann.send(f"{CHAT_URL}/v1/chat/completions", *JSON, *told, method="POST", body=QUESTION).status == 403, told


@pytest.mark.parametrize("name", PROTECTED)
def test_c8_no_spelling_makes_another_person(hops: Hops, name: str) -> None:
    """Here granian reads the headers, which folds underscores: who the caller is counts, not what arrived."""
    ann = hops.traefik.signed_in(hops.provider)
    value = AS_EVE if name == "Authorization" else EVIL
    for spelling in (*dashed(name), *odd(name)):
        for headers in ([(spelling, value)], [(spelling, value)] * 2, [(spelling, f"{ANN},{value}")]):
            assert who(ann, *headers) in (ANN, "400"), headers


def test_c10b_past_traefik_a_connection_header_makes_nobody(hops: Hops) -> None:
    ann = hops.chat.signed_in()
    assert who(ann) == ANN
    assert who(ann, ("Connection", "Authorization")) == "401"
    assert who(ann, ("Connection", "Authorization"), ("Authorization", AS_EVE)) == "401"


def test_c12b_people_see_no_metrics(hops: Hops) -> None:
    ann = hops.traefik.signed_in(hops.provider)
    for path in ("/metrics", "/debug/status", "/metrics/"):
        assert ann.send(f"{CHAT_URL}{path}").status == 404, path


@pytest.mark.parametrize("headers", forged(TOKEN).values(), ids=forged(TOKEN).keys())
def test_c26_straight_at_the_gateway_nothing_forged_is_accepted(hops: Hops, headers: list[tuple[str, str]]) -> None:
    """With no NetworkPolicy enforced: whoever reaches the pod still needs the token."""
    assert who(hops.direct(), *headers, url="http://gateway/api/me") == "401"


@pytest.mark.parametrize("headers", doubled(TOKEN, PROGRAM))
def test_c26_two_credentials_are_none(hops: Hops, headers: list[tuple[str, str]]) -> None:
    assert who(hops.direct(), *headers, url="http://gateway/api/me") in ("400", "401")


def test_c26_the_right_one_is_accepted(hops: Hops) -> None:
    """What the tests above would be worth without it."""
    for spelling in cases("Authorization"):
        assert who(hops.direct(), (spelling, credential(ANN)), url="http://gateway/api/me") == ANN


def test_c27_a_token_with_a_newline_is_no_token(hops: Hops) -> None:
    proxy = hops.replica(f"{TOKEN}\n")
    assert who(proxy.signed_in()) == "401"


def asked(proxy: Proxy) -> bool:
    """Whether anybody was led to this instance; a counter shows once it has counted."""
    with urllib.request.urlopen(f"http://127.0.0.1:{proxy.metrics_port}/metrics", timeout=10) as answer:
        return "\noauth2_proxy_requests_total{" in answer.read().decode()


def test_c27_a_rotation_refuses_nobody(hops: Hops) -> None:
    """The gateway learns the new value beside the old one, new pods take over, the old ones leave, the old value goes."""
    ann = hops.traefik.signed_in(hops.provider)
    answers: list[str] = []
    done = threading.Event()

    def ask() -> None:
        browser = ann.clone()
        while not done.is_set():
            answers.append(who(browser))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    tokens = hops.gateway.tokens
    (tokens / "proxy.previous").write_text(TOKEN)
    (tokens / "proxy").write_text(NEXT)
    hops.wait_for_tokens(4)
    replicas = [hops.replica(NEXT) for _ in range(2)]
    hops.traefik.point(targets(replicas[0].url, hops.apps.url, replicas[0].url))
    wait_for(lambda: asked(replicas[0]), "Traefik to lead to the new ones")
    time.sleep(FOLLOWED_S)
    hops.chat.terminate()
    assert hops.chat.process is not None
    assert hops.chat.process.wait(10) == 0
    (tokens / "proxy.previous").unlink()
    ended = time.monotonic()
    direct = hops.direct()
    wait_for(lambda: who(direct, ("Authorization", credential(ANN)), url="http://gateway/api/me") == "401", "the old token to be refused")
    assert time.monotonic() - ended <= REFUSED_S
    done.set()
    for thread in threads:
        thread.join()
    assert len(answers) > 20
    assert set(answers) == {ANN}
    # Sessions live on, on every replica.
    for replica in replicas:
        browser = replica.browser()
        browser.jar = ann.jar
        assert who(browser) == ANN


def test_c27_the_kill_switch(hops: Hops) -> None:
    """The other end of the scale: without any token of the proxy everybody is refused, without a restart of anything."""
    ann = hops.traefik.signed_in(hops.provider)
    assert who(ann) == ANN
    token = hops.gateway.tokens / "proxy"
    value = token.read_text()
    token.unlink()
    wait_for(lambda: who(ann) == "401", "everybody to be refused", REFUSED_S)
    token.write_text(value)
    wait_for(lambda: who(ann) == ANN, "people to be let in again", REFUSED_S)
