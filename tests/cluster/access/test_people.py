"""The playbooks about people on a running house: what changes, when it counts, and who notices."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from browser import Browser
from chain import ANN, APP, BOB, CHAT_URL, choose, sign_in

from tests.cluster.access.deployed import NOTICED_S, Deployed, note, until
from tests.cluster.access.load import Answer

pytestmark = pytest.mark.timeout(600)
GUEST, RENAMED = "guest@home.test", "renamed@home.test"
MODELS = f"{CHAT_URL}/v1/models"
CROWD = [f"crowd{number}@home.test" for number in range(20)]
# Longer than any of the playbooks takes on a busy machine.
WORDS = 900


def gets_in(deployed: Deployed, person: str) -> bool:
    return sign_in(deployed.browser(), deployed.provider, person, f"{CHAT_URL}/").status == 200


def status(browser: Browser) -> int:
    # By a copy: with the refusal comes the end of the cookie.
    return browser.clone().send(MODELS).status


def test_somebody_is_let_in_and_out_again(deployed: Deployed) -> None:
    checked = deployed.done("add_user", "--check", email=GUEST)
    assert (checked.count("changed"), GUEST in deployed.listed()) == (1, False)
    assert not gets_in(deployed, GUEST)
    added = deployed.done("add_user", email=GUEST, alias="Guest")
    effective_s = until(lambda: gets_in(deployed, GUEST), "the guest to get in", NOTICED_S)
    assert added.count("changed") == 1
    again = [deployed.done("add_user", *arguments, email=GUEST) for arguments in ((), ("--check",))]
    assert [run.count("changed") for run in again] == [0, 0]
    shown = deployed.done("list_users")
    assert f"{GUEST}: may sign in" in shown.output and "called Guest" in shown.output
    assert shown.count("changed") == 0
    note("add", play_s=added.took_s, rerun_s=again[0].took_s, list_s=shown.took_s, effective_after_s=effective_s)

    guest, ann = deployed.signed_in(GUEST), deployed.signed_in(ANN)
    assert sign_in(guest, deployed.provider, GUEST, f"https://{APP}/").status == 200
    answer, of_ann = Answer(guest, WORDS), Answer(ann, WORDS)
    checked = deployed.done("remove_user", "--check", email=GUEST)
    assert (checked.count("changed"), status(guest), answer.is_alive()) == (1, 200, True)
    removed = deployed.done("remove_user", email=GUEST)
    ended = time.monotonic()
    refused_s = until(lambda: status(guest) == 403, "the guest to be refused", NOTICED_S)
    cut_s = answer.cut_after(ended, NOTICED_S)
    note("remove", play_s=removed.took_s, refused_after_s=refused_s, cut_after_s=cut_s)
    assert removed.count("changed") == 1
    # At every door of the house, with the page that says whom to ask; and nobody else notices.
    for url in (f"{CHAT_URL}/", MODELS, f"https://{APP}/", f"https://{APP}/api/x"):
        reply = guest.clone().send(url)
        assert (reply.status, b"may not come in" in reply.body) == (403, True), url
    assert not gets_in(deployed, GUEST)
    assert (status(ann), of_ann.is_alive()) == (200, True)
    assert deployed.done("remove_user", email=GUEST).count("changed") == 0
    # Ends Ann's answer too, which would go on for minutes.
    deployed.done("sign_out", email=ANN)
    of_ann.cut_after(time.monotonic(), NOTICED_S)


def test_what_cannot_be_done_is_told_and_changes_nothing(deployed: Deployed) -> None:
    before = deployed.listed()
    for name, variables, said in (
        ("remove_user", {"email": "nobody@home.test"}, "nobody here has the address nobody@home.test"),
        ("rename_user", {"from": ANN, "to": BOB}, "a person of their own already"),
        ("sign_out", {"email": "nobody@home.test"}, "nobody here has the address nobody@home.test"),
    ):
        run = deployed.run(name, **variables)
        assert run.rc != 0, name
        assert said.lower() in " ".join(run.output.lower().split()), run.output[-2000:]
        assert run.count("changed") == 0
    assert deployed.listed() == before


def test_somebody_has_another_address_now(deployed: Deployed) -> None:
    deployed.done("add_user", email=GUEST, alias="Guest")
    guest = deployed.signed_in(GUEST)
    renamed = deployed.done("rename_user", **{"from": GUEST, "to": RENAMED})
    effective_s = until(lambda: gets_in(deployed, RENAMED), "the new address to get in", NOTICED_S)
    until(lambda: status(guest) == 403, "the old address to be refused", NOTICED_S)
    note("rename", play_s=renamed.took_s, effective_after_s=effective_s)
    assert (GUEST in deployed.listed(), RENAMED in deployed.listed()) == (False, True)
    assert f"{RENAMED}: may sign in; called Guest" in " ".join(deployed.done("list_users").output.split())
    deployed.done("remove_user", email=RENAMED, delete_data=True)


def test_a_lost_device_is_signed_out(deployed: Deployed) -> None:
    ann, bob = deployed.signed_in(ANN), deployed.signed_in(BOB)
    stolen = ann.clone()
    of_ann, of_bob = Answer(ann, WORDS), Answer(bob, 150)
    run = deployed.done("sign_out", email=ANN)
    ended = time.monotonic()
    refused_s = until(lambda: status(stolen) == 401, "the stolen cookie to be refused", NOTICED_S)
    cut_s = of_ann.cut_after(ended, NOTICED_S)
    note("sign-out", play_s=run.took_s, refused_after_s=refused_s, cut_after_s=cut_s)
    # Sessions cannot be ended one by one: Bob signs in once more, and his answer runs to its end.
    assert status(bob.clone()) == 401
    for person in (ANN, BOB):
        assert gets_in(deployed, person)
    of_bob.join(120)
    assert of_bob.whole


def test_twenty_people_are_added_at_the_same_time(deployed: Deployed) -> None:
    before, started = deployed.listed(), deployed.starts_of_the_gateway()
    with ThreadPoolExecutor(len(CROWD)) as pool:
        began = time.monotonic()
        runs = list(pool.map(lambda person: deployed.run("add_user", email=person), CROWD))
        took_s = time.monotonic() - began
    assert [run.output[-1500:] for run in runs if run.rc != 0] == []
    # Each of them ran a command in the gateway's container, within its memory.
    assert deployed.starts_of_the_gateway() == started
    assert [run.count("changed") for run in runs] == [1] * len(CROWD)
    assert sorted(deployed.listed()) == sorted([*before, *CROWD])
    assert gets_in(deployed, CROWD[-1])
    removed = deployed.done("remove_user", email=CROWD)
    assert removed.count("changed") == 1
    assert deployed.listed() == before
    note("crowd", all_s=took_s, slowest_s=max(run.took_s for run in runs), remove_all_s=removed.took_s)


def test_the_provider_is_not_asked_to_vouch_for_the_unverified(deployed: Deployed) -> None:
    """On the cluster's own way to the provider (TLS, the authority of the bed): an address that is not verified is nobody's."""
    browser = deployed.browser()
    choose(browser, deployed.provider, ANN, email_verified="false")
    reply = browser.follow(browser.send(f"{CHAT_URL}/"))
    choose(browser, deployed.provider, ANN)
    assert reply.status == 500
    assert status(browser) == 401
