"""Changes while listed people use the house: nobody of them is refused, and what shall end ends in time."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from browser import Browser
from chain import ANN, APP, BOB, CHAT_URL, NAMES, sign_in
from identity import who

from tests.cluster.access.deployed import NOTICED_S, Deployed, note, until
from tests.cluster.access.load import Answer, Asking, load
from tests.cluster.support import ROOT

pytestmark = pytest.mark.timeout(1200)
EDITS = 500
OPERATOR = NAMES["gateway"]["tokens"]["operator"]


def counted(asking: list[Asking]) -> dict[str, float]:
    return {"requests": sum(one.sent for one in asking), "slowest_s": max(one.slowest_s for one in asking)}


def test_a_rotation_refuses_nobody_and_ends_the_old_token(deployed: Deployed) -> None:
    old = deployed.token()
    assert deployed.accepts(old)
    through_the_old_pod = Answer(deployed.signed_in(), 150)
    with load(deployed, ANN, BOB) as asking:
        run = deployed.done("rotate_token", name=NAMES["gateway"]["tokens"]["proxy"])
        refused_s = until(lambda: not deployed.accepts(old), "the old token to be refused", NOTICED_S)
        time.sleep(NOTICED_S)
    new = deployed.token()
    note("rotate", play_s=run.took_s, refused_after_s=refused_s, **counted(asking))
    assert [failure for one in asking for failure in one.failures] == []
    assert min(one.sent for one in asking) > 50
    assert new != old
    assert deployed.accepts(new)
    # An answer that began before is the person's and not the token's; its pod waits for it.
    through_the_old_pod.join(120)
    assert through_the_old_pod.whole


def test_five_hundred_changes_of_the_list_refuse_nobody(deployed: Deployed) -> None:
    before = deployed.listed()
    kubeconfig = deployed.bed.variables()["k3s_kubeconfig"]
    with load(deployed, ANN, BOB, every_s=0.2) as asking:
        done = subprocess.run([sys.executable, str(Path(__file__).with_name("edits.py")), kubeconfig, str(EDITS)], cwd=ROOT,
                              capture_output=True, text=True, check=False, timeout=900)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    measured = json.loads(done.stdout)
    note("edits", **measured, **counted(asking))
    assert measured["changed"] == EDITS
    assert [failure for one in asking for failure in one.failures] == []
    assert min(one.sent for one in asking) > 50
    assert deployed.listed() == before
    # The last list holds: nobody who came and went in between is in.
    assert sign_in(deployed.browser(), deployed.provider, "guest249@home.test", f"{CHAT_URL}/").status == 403


def status_of(browser: Browser, *headers: tuple[str, str]) -> int:
    return browser.send(f"{CHAT_URL}/v1/models", *headers).status


def test_lockdown_refuses_everybody_and_its_end_lets_them_in_again(deployed: Deployed) -> None:
    ann, app = deployed.signed_in(), deployed.browser()
    assert sign_in(app, deployed.provider, BOB, f"https://{APP}/").status == 200
    program = ("X-Api-Key", deployed.token(OPERATOR))
    gateway, token = deployed.at_the_gateway(), deployed.token()
    answer = Answer(ann, 900)

    def doors() -> dict[str, bool]:
        """Which are open, without any change of the cookies."""
        return {
            "a person": who(ann.clone()) == ANN,
            "an app": app.clone().send(f"https://{APP}/").status == 200,
            "a program": status_of(gateway, program) == 200,
            "the proxy's token": deployed.accepts(token),
        }

    open_to_all, shut = dict.fromkeys(doors(), True), dict.fromkeys(doors(), False)
    assert doors() == open_to_all
    assert deployed.done("lockdown", "--check").count("changed") == 1
    assert doors() == open_to_all
    locked = deployed.done("lockdown")
    ended = time.monotonic()
    assert "-e lifted=true" in locked.output
    shut_s = until(lambda: doors() == shut, "everybody to be refused", NOTICED_S)
    cut_s = answer.cut_after(ended, NOTICED_S)
    assert deployed.done("lockdown").count("changed") == 0
    # Whoever runs site.yml now is told, and opens nothing.
    site = deployed.deploy("--tags", "access")
    assert site.rc != 0
    assert doors() == shut
    lifted = deployed.done("lockdown", lifted=True)
    open_s = until(lambda: doors() == open_to_all, "everybody to be let in again", NOTICED_S)
    assert deployed.token() == token
    note("lockdown", play_s=locked.took_s, shut_after_s=shut_s, cut_after_s=cut_s, lift_play_s=lifted.took_s, open_after_s=open_s)
