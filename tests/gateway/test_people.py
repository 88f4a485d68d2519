"""People, with the service running: what an operator does with `hearth-gateway person` counts within 5 s."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from gateway_support import SOURCE, TOKEN, Gateway, Mock, wait_for
from people_support import ANN, BOB, HOUSE, NOTICED_S, PROXY, Answer, auth, me, person, start_person

from hearth_gateway.__main__ import turn


@pytest.fixture
def gateway(own: Callable[..., Gateway]) -> Gateway:
    gateway = own(tokens={"proxy": ["proxy"], "end_users": ["house"]}, start=False)
    (gateway.tokens / "proxy").write_text(PROXY)
    (gateway.tokens / "house").write_text(HOUSE)
    gateway.start()
    return gateway


def test_disabled_in_the_middle_of_an_answer(gateway: Gateway, vendor: Mock) -> None:
    asked = vendor.asked()
    ann, bob = Answer(gateway, auth(ANN)).begun(), Answer(gateway, auth(BOB)).begun()
    assert person(gateway, "disable", ANN)["changed"] is True
    since = time.monotonic()
    ann.cut(since, "person_refused")
    status, body = me(gateway, ANN)
    assert (status, body["error"]["code"], body["error"]["type"]) == (403, "person_refused", "permission_error")
    assert me(gateway, BOB)[0] == 200
    assert person(gateway, "disable", ANN)["changed"] is False
    said = len(bob.text)
    wait_for(lambda: len(bob.text) > said, "the other answer to go on")
    assert person(gateway, "enable", ANN)["person"]["state"] == "active"
    wait_for(lambda: me(gateway, ANN)[0] == 200, "the person to be let in again", NOTICED_S)
    # The vendor was told to stop, too.
    mine = ("client-left", asked)
    wait_for(lambda: mine in [(record["outcome"], record["number"]) for record in vendor.records()], "the vendor's connection to be cut")


def test_disabled_while_the_vendor_is_silent(gateway: Gateway) -> None:
    gateway.stop()
    gateway.config["timeouts"] = {"connect_s": 2, "first_token_s": 30, "idle_s": 30, "total_s": 60}
    gateway.config_file.write_text(json.dumps(gateway.config))
    gateway.restart()
    answer = Answer(gateway, auth(ANN), "x-silent-after").begun()
    person(gateway, "disable", ANN)
    answer.cut(time.monotonic(), "person_refused")


def test_not_before(gateway: Gateway) -> None:
    answer = Answer(gateway, auth(ANN)).begun()
    person(gateway, "set", ANN, "--not-before", "now")
    answer.cut(time.monotonic(), "person_refused")
    assert me(gateway, ANN)[0] == 200  # the proxy vouches again (docs/decisions/0010)
    person(gateway, "set", ANN, "--not-before", "2999-01-01T00:00:00+00:00")
    wait_for(lambda: me(gateway, ANN)[0] == 403, "the person to be refused", NOTICED_S)
    person(gateway, "set", ANN, "--not-before", "none")
    wait_for(lambda: me(gateway, ANN)[0] == 200, "the person to be let in again", NOTICED_S)


def test_what_is_known_of_a_person(gateway: Gateway) -> None:
    limits = {"requests_per_minute": 7, "money_per_day_usd": "0.5"}
    assert person(gateway, "list") == {"people": []}
    made = person(gateway, "set", "-", "--alias", "Ann", "--limits", json.dumps(limits), stdin="Ann@Example.ORG\n")
    assert made["changed"] is True
    assert made["person"] | {"first_seen": "", "pseudonym": ""} == {
        "email": ANN, "state": "active", "alias": "Ann", "limits": limits, "not_before": None, "first_seen": "", "pseudonym": "",
    }  # fmt: skip
    wait_for(lambda: me(gateway, ANN)[1].get("alias") == "Ann", "the alias", NOTICED_S)
    assert me(gateway, ANN)[1] == {
        "email": ANN, "alias": "Ann", "state": "active", "door": "browser", "program": None,
        "limits": {"requests_per_minute": 7, "tokens_per_day": None, "money_per_day_usd": "0.5", "money_per_month_usd": None},
    }  # fmt: skip
    # Somebody new has a record from the first request on, through either door.
    assert me(gateway, BOB)[0] == 200
    named = httpx.get(f"{gateway.url}/api/me", headers={"x-api-key": HOUSE, "x-hearth-end-user": "carol@example.org"})
    assert named.json()["email"] == "carol@example.org"
    assert [item["email"] for item in person(gateway, "list")["people"]] == [ANN, BOB, "carol@example.org"]
    assert person(gateway, "set", ANN)["changed"] is False
    person(gateway, "disable", ANN)
    again = person(gateway, "set", ANN, "--active")
    assert (again["changed"], again["before"]["state"], again["person"]["state"]) == (True, "disabled", "active")
    assert person(gateway, "set", ANN, "--active")["changed"] is False
    assert person(gateway, "set", ANN, "--alias", "", "--limits", "none")["person"]["limits"] is None


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["disable", "ann"], "the address must be one address"),
        (["disable", "ann@example.org,bob@example.org"], "the address holds commas"),
        (["set", ANN, "--limits", "{"], "--limits: "),
        (["set", ANN, "--limits", '{"requests_per_hour": 1}'], "known are requests_per_minute"),
        (["set", ANN, "--limits", '{"requests_per_minute": 0}'], "requests_per_minute: "),
        (["set", ANN, "--limits", '{"requests_per_minute": 99999999999999999999}'], "less than or equal to 1000000"),
        (["set", ANN, "--limits", '{"tokens_per_day": 9999999999999999999}'], "less than or equal to 1000000000000000"),
        (["set", ANN, "--limits", '{"requests_per_minute": true}'], "requests_per_minute: "),
        (["set", ANN, "--alias", "x" * 65], "--alias must be"),
        (["set", ANN, "--not-before", "tomorrow"], "--not-before must be"),
        (["set", ANN, "--not-before", "2026-11-21T18:00:00"], "with its zone"),
        (["set", ANN, "--not-before", "9999-12-31T23:59:59-05:00"], "the years 1970 to 9999"),
        (["set", ANN, "--not-before", "0001-01-01T00:00:00+23:59"], "the years 1970 to 9999"),
        (["set", ANN, "--not-before", "1969-12-31T23:59:59+00:00"], "the years 1970 to 9999"),
    ],
)
def test_wrong_arguments_change_nothing(shared: Gateway, arguments: list[str], problem: str) -> None:
    said = person(shared, *arguments, status=2)
    assert problem in said and "Traceback" not in said
    assert person(shared, "list") == {"people": []}


def test_a_moment_that_no_calendar_has_hides_nobody(own: Callable[..., Gateway]) -> None:
    gateway = own(start=False)
    latest = person(gateway, "set", ANN, "--not-before", "9999-12-31T23:59:59+00:00")["person"]["not_before"]
    person(gateway, "set", BOB, "--not-before", "1970-01-01T02:00:00+02:00")
    assert latest == "9999-12-31T23:59:59.000+00:00"
    for stored, shown in ((10**17, latest), (-(10**17), "1970-01-01T00:00:00.000+00:00")):
        with sqlite3.connect(gateway.database) as database:
            database.execute("UPDATE people SET not_before_ms = ? WHERE email = ?", (stored, ANN))
        assert [entry["not_before"] for entry in person(gateway, "list")["people"]] == [shown, "1970-01-01T00:00:00.000+00:00"]


def test_a_store_that_cannot_be_used_is_told(own: Callable[..., Gateway]) -> None:
    gateway = own(start=False)
    gateway.database.mkdir()
    assert "cannot be used" in person(gateway, "list", status=1)


def test_forgetting_a_person(gateway: Gateway) -> None:
    assert person(gateway, "delete-data", BOB)["changed"] is False
    answer = Answer(gateway, auth(ANN)).begun()
    for email in (ANN, BOB):
        short = {"model": "sonnet", "messages": [{"role": "user", "content": "Hi"}]}
        assert httpx.post(f"{gateway.url}/v1/chat/completions", headers=auth(email), json=short).status_code == 200
    wait_for(lambda: len(gateway.rows()) == 2, "the rows of the short answers")
    tokens = sum(row["output_tokens"] for row in gateway.rows())
    since = time.monotonic()
    done = person(gateway, "delete-data", ANN)
    assert done["changed"] is True and done["known"] is True and not done["kept_disabled"]
    # In the store it is over, or there would be no row of it; what its reader was told may still be on its way.
    rows = gateway.rows()
    answer.cut(since, "person_refused")
    assert {row["person"] for row in rows} == {None, BOB}
    assert len(rows) == 3 and sum(row["output_tokens"] for row in rows) >= tokens
    assert [item["email"] for item in person(gateway, "list")["people"]] == [BOB]
    left = b"".join(path.read_bytes() for path in gateway.directory.glob("hearth.db*"))
    assert BOB.encode() in left and ANN.encode() not in left
    assert me(gateway, ANN)[0] == 200  # a new person, if the sign-in proxy lets them in


# --- tokens --------------------------------------------------------------------------------------


def test_a_removed_token_ends_its_open_answer(gateway: Gateway) -> None:
    operator, house = Answer(gateway, {"x-api-key": TOKEN}).begun(), Answer(gateway, {"x-api-key": HOUSE}).begun()
    (gateway.tokens / "operator").unlink()
    since = time.monotonic()
    operator.cut(since, "invalid_api_key")
    assert httpx.get(f"{gateway.url}/v1/models", headers={"x-api-key": TOKEN}).status_code == 401
    assert house.is_alive()
    (gateway.tokens / "operator").write_text(TOKEN)
    wait_for(lambda: httpx.get(f"{gateway.url}/v1/models", headers={"x-api-key": TOKEN}).status_code == 200, "the token", NOTICED_S)


def test_a_removed_token_has_no_share_of_its_limit(own: Callable[..., Gateway]) -> None:
    gateway = own(limits={"program": {"tokens_per_day": 1_000_000}})
    short = {"model": "sonnet", "messages": [{"role": "user", "content": "Hi"}]}
    assert httpx.post(f"{gateway.url}/v1/chat/completions", headers={"x-api-key": TOKEN}, json=short).status_code == 200
    gateway.settled_rows()
    share = 'hearth_limit_used_ratio{limit="tokens_per_day",scope="program",subject="operator"}'
    assert gateway.metric(share) > 0
    (gateway.tokens / "operator").rename(gateway.tokens / "operator.previous")
    time.sleep(2)
    assert share in gateway.metrics(), "its former value is the same token"
    (gateway.tokens / "operator.previous").unlink()
    wait_for(lambda: share not in gateway.metrics(), "the share of the token to go", NOTICED_S)
    (gateway.tokens / "operator").write_text(TOKEN)
    wait_for(lambda: share in gateway.metrics(), "the share of the token that is back", NOTICED_S)


def test_the_kill_switch_cuts_everybody(gateway: Gateway) -> None:
    answers = [Answer(gateway, auth(ANN)), Answer(gateway, auth(BOB)), Answer(gateway, {"x-api-key": TOKEN})]
    for answer in answers:
        answer.begun()
    for path in gateway.tokens.iterdir():
        path.unlink()
    since = time.monotonic()
    for answer in answers:
        answer.cut(since, "invalid_api_key")
    assert me(gateway, ANN)[0] == 401


def test_a_rotation_costs_nobody_an_answer(gateway: Gateway) -> None:
    answers = [Answer(gateway, auth(ANN)), Answer(gateway, {"x-api-key": TOKEN})]
    for answer in answers:
        answer.begun()
    (gateway.tokens / "proxy").write_text(PROXY + "-2")
    (gateway.tokens / "operator").write_text(TOKEN + "-2")
    wait_for(lambda: me(gateway, ANN)[0] == 401, "the old token to be refused", NOTICED_S)
    said = [len(answer.text) for answer in answers]
    wait_for(lambda: all(len(answer.text) > before for answer, before in zip(answers, said, strict=True)), "the answers to go on")


# --- what vendors and readers see ----------------------------------------------------------------


def test_vendors_see_a_pseudonym(gateway: Gateway, vendor: Mock) -> None:
    def user(headers: dict[str, str]) -> Any:
        before = vendor.asked()
        body = {"model": "sonnet", "messages": [{"role": "user", "content": "Hi"}], "user": "chosen-by-the-client"}
        assert httpx.post(f"{gateway.url}/v1/chat/completions", headers=headers, json=body).status_code == 200
        record = vendor.next_record(before)
        assert ANN not in json.dumps(record)
        return record["user"]

    known = {item["email"]: item["pseudonym"] for item in [person(gateway, "set", email)["person"] for email in (ANN, BOB)]}
    assert user(auth(ANN)) == known[ANN] == user({"x-api-key": HOUSE, "x-hearth-end-user": ANN})
    assert user(auth(BOB)) == known[BOB] != known[ANN]
    gateway.stop()
    gateway.restart()
    assert user(auth(ANN)) == known[ANN]  # the key outlives the process


@pytest.fixture(scope="module")
def transparency(tmp_path_factory: pytest.TempPathFactory, vendor: Mock) -> Iterator[tuple[Gateway, dict[str, Any]]]:
    os.environ["HEARTH_IMAGE_DIGEST"] = "sha256:" + "ab" * 32
    try:
        gateway = Gateway(tmp_path_factory.mktemp("transparency"), vendor.url)
    finally:
        del os.environ["HEARTH_IMAGE_DIGEST"]
    yield gateway, httpx.get(f"{gateway.url}/api/transparency", headers={"x-api-key": TOKEN}).json()
    gateway.stop()


def test_transparency_is_measured(transparency: tuple[Gateway, dict[str, Any]]) -> None:
    gateway, report = transparency
    off = {"configured": False, "in_effect": False}
    assert report["flags"] == {"admin_chat_access": off, "admin_export": off, "community_sharing": off}
    assert report["process"]["core_dumps"] is False and report["process"]["traced"] is False
    assert report["process"]["log_handlers"] == []
    assert set(report["process"]["files_written"]) == {path.name for path in gateway.directory.glob("hearth.db*")}
    assert report["image_digest"] == "sha256:" + "ab" * 32
    env = {**os.environ, "PYTHONPATH": str(SOURCE)}
    code = subprocess.run([sys.executable, "-m", "hearth_gateway", "code-hash"], capture_output=True, text=True, check=True, env=env)
    assert report["code_sha256"] == code.stdout.strip()
    sees = report["who_sees_words"]
    assert sees["others"] == []
    assert sees["by_model"]["sonnet"] == [
        {"provider": "anthropic", "model": "claude-sonnet-4-5-20250929", "host": "127.0.0.1", "may_pass_on": False}
    ]
    assert sees["by_model"]["demo"] == [{"provider": "demo", "model": "demo", "host": None, "may_pass_on": False}]


def test_there_is_no_way_to_anybodys_content(transparency: tuple[Gateway, dict[str, Any]]) -> None:
    """Every address of the process is on this list, and none of them gives back what somebody else wrote."""
    known = {"/", "/static/<name>", "/healthz", "/readyz", "/openapi.json", "/api/me", "/api/usage", "/api/transparency"}
    known |= {"/v1/chat/completions", "/v1/messages", "/v1/models", "/v1/models/<model>", "/v1/embeddings", "/v1/images/generations"}
    assert set(transparency[1]["routes"]) <= known


def resident_mib(process: subprocess.Popen[str]) -> float:
    """What a process has in memory for itself alone, as its container's limit counts it."""
    rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_")) / 1024


def test_many_at_once_take_turns_and_wait_in_little_memory(gateway: Gateway) -> None:
    """They run in the container of the service: twenty whole ones are more than its memory, and it would be killed."""
    crowd = [f"crowd{number}@example.org" for number in range(10)]
    options = ("--config", str(gateway.config_file), "--json")
    # Other tests run beside this one and take their turns, too.
    with turn(SOURCE / "hearth_gateway" / "__main__.py", 60):
        runs = [start_person("set", "-", *options) for _ in crowd]
        for run, email in zip(runs, crowd, strict=True):
            assert run.stdin is not None
            run.stdin.write(f"{email}\n")
            run.stdin.flush()
        time.sleep(1)
        assert [run.poll() for run in runs] == [None] * len(crowd)
        assert max(resident_mib(run) for run in runs) < 10
        killed = runs.pop()
        killed.kill()
        killed.communicate()
    assert [run.communicate(timeout=60)[1] for run in runs] == [""] * len(runs)
    assert [item["email"] for item in person(gateway, "list")["people"]] == crowd[:-1]


def test_whose_turn_never_comes_is_told(tmp_path: Path) -> None:
    lock = tmp_path / "file"
    lock.touch()
    with turn(lock, 1), pytest.raises(TimeoutError, match=r"^other `person` commands have run here for 0 s; run again$"), turn(lock, 0.2):
        pytest.fail("two had the lock")
    with turn(lock, 0.2):
        pass
