"""Modules person and person_info against a cluster and a gateway in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.homelab.hearth.plugins.module_utils import _k8s, _names, _people, _whitelist
from ansible_collections.homelab.hearth.plugins.module_utils._exec import ExecError
from ansible_collections.homelab.hearth.plugins.modules import person, person_info

from tests.unit.fake_cluster import FakeCluster
from tests.unit.fake_gateway import FakeGateway

NAMES = yaml.safe_load((Path(__file__).resolve().parents[2] / "contract" / "names.yml").read_text())
LIST = ("ConfigMap", "public-ingress", "oauth2-proxy-emails")
ANN, BEN = "ann@example.org", "ben@example.org"
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> FakeGateway:
    fake = FakeCluster()
    made = FakeGateway(fake)
    for module in (person, person_info):
        monkeypatch.setattr(module, "Cluster", fake.connect)
    monkeypatch.setattr(_people, "execute", made.execute)
    for where in (_k8s, _people, _whitelist, person):
        monkeypatch.setattr(where.time, "sleep", lambda seconds: None)
    return made


@pytest.fixture
def do(run_module: Run) -> Run:
    def run(state: str = "present", emails: Any = ANN, **arguments: Any) -> dict[str, Any]:
        return run_module(person.main, state=state, emails=emails, **arguments)

    return run


def listed(house: FakeGateway) -> list[str]:
    return str(house.cluster.objects[LIST]["data"]["restricted_user_access"]).split()


def test_the_names_are_those_of_the_contract() -> None:
    gateway, access = NAMES["gateway"], NAMES["access"]
    assert (NAMES["namespace"], gateway["deployment"]) == (_names.GATEWAY_NAMESPACE, _names.GATEWAY)
    assert gateway["container"] == _names.GATEWAY
    assert (gateway["command"], gateway["config_file"]) == (_names.GATEWAY_COMMAND, _names.GATEWAY_CONFIG_FILE)
    assert (gateway["config"]["config_map"], gateway["config"]["key"]) == (_names.GATEWAY_CONFIG_MAP, _names.GATEWAY_CONFIG_KEY)
    assert gateway["tokens"]["secret"] == _names.TOKENS_SECRET
    assert access["namespace"] == _names.ACCESS_NAMESPACE
    assert access["whitelist"] == {"config_map": _names.WHITELIST, "key": _names.WHITELIST_KEY}
    assert (access["chat"]["name"], access["apps"]["name"]) == _names.SIGN_IN_INSTANCES
    assert access["secret_keys"]["cookie"] == _names.COOKIE_KEY


# --- present


def test_a_new_person_is_known_to_the_gateway_before_they_are_in_the_list(house: FakeGateway, do: Run) -> None:
    house.put_list("# family\n")
    result = do(emails="Ann@Example.org", alias="Ann", daily_limit_usd="2.50")
    assert (result["changed"], result["done"]) == (True, [f"{ANN} may sign in now."])
    assert house.cluster.objects[LIST]["data"]["restricted_user_access"] == f"# family\n{ANN}\n"
    # The house's ceiling of the month stays in force beside the one of the day.
    assert house.people[ANN]["limits"] == {"money_per_month_usd": "20", "money_per_day_usd": "2.5"}
    assert (house.people[ANN]["alias"], house.people[ANN]["state"]) == ("Ann", "active")


def test_a_second_time_changes_nothing(house: FakeGateway, do: Run) -> None:
    house.put_list("")
    do(alias="Ann", daily_limit_usd="2.50")
    house.cluster.writes.clear()
    house.calls.clear()
    result = do(alias="Ann", daily_limit_usd="2.5")
    assert (result["changed"], result["done"]) == (False, [f"{ANN} could sign in already."])
    assert house.cluster.writes == []
    assert house.calls == [["person", "list"]]


def test_only_what_a_gateway_has_to_notice_is_waited_for(house: FakeGateway, do: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads the record of somebody new when they first come; a person it knows it has in memory."""
    slept: list[float] = []
    monkeypatch.setattr(person.time, "sleep", slept.append)
    house.put_list("")
    do()
    assert sum(slept) == 0
    do(alias="Ann")
    assert sum(slept) > 1


def test_addresses_go_to_standard_input_only(house: FakeGateway, do: Run) -> None:
    house.put_list("")
    do(emails=[ANN, BEN])
    assert house.lines == [ANN, BEN]
    assert "@" not in str(house.calls)


def test_who_is_let_in_as_they_are_costs_the_gateway_one_command(house: FakeGateway, do: Run) -> None:
    """Each starts a process in its pod, which takes the better part of a second."""
    house.put_list("")
    assert do(alias="Ann")["changed"]
    assert not do(alias="Ann")["changed"]
    assert [call[1] for call in house.calls] == ["set", "set"]
    result = do(alias="Anna")
    assert result["changed"] and '"alias": "Ann"' in result["diff"][1]["before"] and '"alias": "Anna"' in result["diff"][1]["after"]


def test_who_was_switched_off_is_switched_on_again(house: FakeGateway, do: Run) -> None:
    house.put_list("")
    house.put_person(ANN, "disabled", alias="Ann")
    assert do()["changed"]
    assert (house.people[ANN]["state"], house.people[ANN]["alias"]) == ("active", "Ann")


def test_the_houses_limits_again(house: FakeGateway, do: Run) -> None:
    house.put_list(ANN)
    house.put_person(ANN, limits={"money_per_day_usd": "1"})
    assert do(daily_limit_usd="none")["changed"]
    assert house.people[ANN]["limits"] is None
    assert not do(daily_limit_usd="none")["changed"]


def test_check_mode_tells_and_changes_nothing(house: FakeGateway, do: Run) -> None:
    house.put_list("")
    result = do(check=True, diff=True, daily_limit_usd="1")
    assert result["changed"]
    assert house.people == {} and listed(house) == [] and house.cluster.writes == []
    assert result["diff"][0]["after"] == f"{ANN}\n"
    assert '"money_per_day_usd": "1"' in result["diff"][1]["after"]
    do()
    assert not do(check=True)["changed"]


def test_it_ends_when_the_proxy_has_read_the_list_and_says_when_not(
    house: FakeGateway, do: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.put_list("")
    house.read_again("oauth2-proxy-chat-1")
    # The fake's times are text without a second: every pod is older than the write.
    monkeypatch.setattr(_whitelist, "written_at", lambda stored: "t999999")
    for _run in ("first", "again"):
        result = do(wait_s=0.05)
        assert result["failed"]
        assert "pod public-ingress/oauth2-proxy-apps-1 has not read it" in result["msg"]
    house.read_again()
    assert not do(wait_s=0.05).get("failed")
    house.read_again("oauth2-proxy-chat-1")
    monkeypatch.setattr(_whitelist, "written_at", lambda stored: "2026-01-01T00:00:00Z")
    assert not do(wait_s=0.05).get("failed"), "logs need not reach back for ever"


def test_strangers_at_the_door_do_not_hide_that_the_list_was_read(
    house: FakeGateway, do: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """oauth2-proxy says a line for each request without a session; a robot makes thousands within the hour that is looked at."""
    house.put_list("")
    for lines in house.cluster.log_lines.values():
        lines += ["[oauthproxy.go:1064] No valid authentication in request. Initiating login."] * 5000
    monkeypatch.setattr(_whitelist, "written_at", lambda stored: "t999999")
    assert not do(wait_s=0.05).get("failed")


@pytest.mark.parametrize(
    ("created", "status", "later"),
    [
        ("10:00:00", {"containerStatuses": [{"state": {"running": {"startedAt": "10:00:01"}}}]}, False),
        ("10:00:00", {"containerStatuses": [{"state": {"running": {"startedAt": "12:00:01"}}}]}, True),
        ("10:00:00", {"containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}, True),
        ("10:00:00", {"phase": "Pending"}, True),
        ("12:00:01", {}, True),
        ("10:00:00", {"containerStatuses": [{"state": {"running": {"startedAt": "12:00:00"}}}]}, True),
    ],
)
def test_who_starts_after_the_change_need_not_say_that_they_read_it(created: str, status: dict[str, Any], later: bool) -> None:
    assert _whitelist.reads_later({"metadata": {"creationTimestamp": created}, "status": status}, "12:00:00") is later


# --- absent


def test_removing_ends_both_and_keeps_what_was_used(house: FakeGateway, do: Run) -> None:
    house.put_list(f"{ANN}\n{BEN}\n")
    house.put_person(ANN, alias="Ann")
    house.rows[ANN] = 3
    result = do("absent")
    assert (result["changed"], result["done"]) == (True, [f"{ANN} is refused from now on, open answers are cut."])
    assert listed(house) == [BEN]
    assert (house.people[ANN]["state"], house.people[ANN]["alias"], house.rows) == ("disabled", "Ann", {ANN: 3})
    again = do("absent")
    assert (again["changed"], again["done"]) == (False, [f"{ANN} was refused already."])


def test_who_never_came_in_is_switched_off_too(house: FakeGateway, do: Run) -> None:
    """Their browser may hold a session: the gateway must not take them for somebody new."""
    house.put_list(ANN)
    do("absent")
    assert house.people[ANN]["state"] == "disabled"


def test_deleting_what_is_stored(house: FakeGateway, do: Run) -> None:
    house.put_list(ANN)
    house.put_person(ANN, alias="Ann")
    house.rows[ANN] = 3
    assert do("absent", delete_data=True)["done"][-1].startswith(f"What was stored of {ANN} is deleted")
    assert (house.people[ANN]["state"], house.people[ANN]["alias"], house.rows) == ("disabled", None, {})
    assert not do("absent", delete_data=True)["changed"]


def test_a_stranger_is_refused_and_nobody_else_touched(house: FakeGateway, do: Run) -> None:
    house.put_list(ANN)
    result = do("absent", [ANN, "bne@example.org"])
    assert result["failed"] and "nobody here has the address bne@example.org" in result["msg"].lower()
    assert listed(house) == [ANN] and house.people == {}


def test_a_broken_list_does_not_keep_the_gateway_from_refusing(house: FakeGateway, do: Run) -> None:
    house.put_list(f'{ANN}\n"x\n')
    house.put_person(ANN)
    result = do("absent")
    assert result["failed"] and "The gateway refuses ann@example.org already, but" in result["msg"]
    assert house.people[ANN]["state"] == "disabled"
    assert "line 2" in do("present", BEN)["msg"] and BEN not in house.people


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        # The proxy takes the quotes off and lets Ann in; nobody else has noted her.
        ({"restricted_user_access": f'"{ANN}"\n{BEN}\n'}, "line 1: holds a quote"),
        # The proxy goes on with the list that it read last, and Ann may be in that.
        ({}, "has lost its key restricted_user_access"),
    ],
)
def test_who_may_be_in_although_no_plain_line_names_them_is_refused_by_the_gateway(
    house: FakeGateway, do: Run, data: dict[str, str], problem: str
) -> None:
    house.put_list("")
    house.cluster.objects[LIST]["data"] = data
    result = do("absent")
    assert result["failed"] and "The gateway refuses ann@example.org already, but" in result["msg"] and problem in result["msg"]
    assert house.people[ANN]["state"] == "disabled"


@pytest.mark.parametrize(("state", "to"), [("present", None), ("renamed", "ann@example.net")])
def test_a_list_that_lost_its_key_is_told_before_anything_is_changed(house: FakeGateway, do: Run, state: str, to: str | None) -> None:
    house.put_list("")
    house.cluster.objects[LIST]["data"] = {}
    assert "has lost its key restricted_user_access" in do(state, to=to)["msg"]
    assert house.people == {}


# --- renamed


def test_a_new_address_takes_the_place_alias_and_limits_of_the_old_one(house: FakeGateway, do: Run) -> None:
    house.put_list(f"# family\n{ANN}\n{BEN}\n")
    house.put_person(ANN, alias="Ann", limits={"tokens_per_day": 5})
    assert do("renamed", to="Ann@example.net")["changed"]
    assert house.cluster.objects[LIST]["data"]["restricted_user_access"] == f"# family\nann@example.net\n{BEN}\n"
    new = house.people["ann@example.net"]
    assert (new["state"], new["alias"], new["limits"]) == ("active", "Ann", {"tokens_per_day": 5})
    assert house.people[ANN]["state"] == "disabled"
    assert not do("renamed", to="ann@example.net")["changed"]


def test_what_was_used_goes_along_and_no_address_stands_in_a_command_line(house: FakeGateway, do: Run) -> None:
    house.put_list(ANN)
    house.put_person(ANN)
    house.rows[ANN] = 7
    result = do("renamed", to="ann@example.net")
    assert house.rows == {"ann@example.net": 7}
    assert "What was used so far counts for ann@example.net." in " ".join(result["done"])
    assert (["person", "rename", "-"], f"{ANN} ann@example.net") in list(zip(house.calls, house.lines, strict=True))


def test_answers_that_were_still_open_are_told(house: FakeGateway, do: Run) -> None:
    house.put_list(ANN)
    house.put_person(ANN)
    house.open_rows = 2
    assert "2 answers were still being written" in " ".join(do("renamed", to="ann@example.net")["done"])
    # They are moved by a second run, which is a change then.
    house.open_rows, house.rows = 0, {ANN: 2}
    assert do("renamed", to="ann@example.net")["changed"]
    assert house.rows["ann@example.net"] == 2


def test_a_check_of_a_rename_moves_nothing(house: FakeGateway, do: Run) -> None:
    house.put_list(ANN)
    house.put_person(ANN, alias="Ann")
    result = do("renamed", to="ann@example.net", check=True)
    assert result["changed"] and list(house.people) == [ANN] and house.people[ANN]["state"] == "active"
    assert '"alias": "Ann"' in result["diff"][1]["after"]


def test_somebody_whom_the_gateway_has_never_seen_is_renamed_in_the_list(house: FakeGateway, do: Run) -> None:
    house.put_list(ANN)
    assert do("renamed", to="ann@example.net")["changed"]
    assert (house.people["ann@example.net"]["state"], house.people[ANN]["state"]) == ("active", "disabled")
    assert not do("renamed", to="ann@example.net")["changed"]


def test_a_rename_that_broke_off_is_finished(house: FakeGateway, do: Run) -> None:
    house.put_list("ann@example.net")
    house.put_person(ANN)
    house.put_person("ann@example.net")
    assert do("renamed", to="ann@example.net")["changed"]
    assert house.people[ANN]["state"] == "disabled"


@pytest.mark.parametrize(
    ("text", "to", "message"),
    [
        (f"{ANN}\n{BEN}\n", BEN, "is a person of their own already"),
        (BEN, "ann@example.net", "nobody here has the address ann@example.org"),
        # Not a rename that is done already: nobody has ever had that address.
        (BEN, BEN, "nobody here has the address ann@example.org"),
        (ANN, ANN, "are the same address"),
        (ANN, "ann", "an address has exactly one @"),
        (ANN, None, "takes one address and the new one"),
    ],
)
def test_renames_that_cannot_be_meant(house: FakeGateway, do: Run, text: str, to: str | None, message: str) -> None:
    house.put_list(text)
    result = do("renamed", to=to)
    assert result["failed"] and message in result["msg"].replace("Nobody", "nobody").replace("From", "from")
    assert house.people == {} and house.cluster.writes == []


# --- refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"emails": "ann"}, "'ann': an address has exactly one @"),
        ({"emails": []}, "No address given; say who"),
        ({"emails": [ANN, BEN], "alias": "Ann"}, "Alias: several people cannot have one short name"),
        ({"daily_limit_usd": "two"}, "'two' is not a sum of dollars"),
        ({"daily_limit_usd": "-1"}, "'-1' is not a sum of dollars"),
        ({"daily_limit_usd": "NaN"}, "'NaN' is not a sum of dollars"),
    ],
)
def test_what_cannot_be_meant_is_told_in_a_sentence(house: FakeGateway, do: Run, arguments: dict[str, Any], message: str) -> None:
    house.put_list("")
    result = do(**arguments)
    assert result["failed"] and message in result["msg"]
    assert house.people == {} and house.cluster.writes == []


def test_without_sign_in_or_gateway_it_says_which_is_missing(house: FakeGateway, do: Run, run_module: Run) -> None:
    assert "There is no list of people (ConfigMap public-ingress/oauth2-proxy-emails)" in do()["msg"]
    assert "There is no list of people" in run_module(person_info.main)["msg"]
    house.put_list("")
    house.cluster.objects[("Pod", "hearth", "gateway-1")]["status"] = {}
    assert "No pod of the gateway is ready" in do()["msg"]
    del house.cluster.objects[("Deployment", "hearth", "gateway")]
    assert "There is no gateway in this cluster (Deployment hearth/gateway)" in do()["msg"]


def test_the_gateways_own_words_are_passed_on(house: FakeGateway, do: Run) -> None:
    house.put_list("")
    house.refuse = ExecError("cannot", 2, "hearth-gateway: the table of people cannot be used: locked")
    assert do()["msg"] == "The gateway refuses: the table of people cannot be used: locked"
    house.refuse = ExecError("cannot run hearth-gateway in pod hearth/gateway-1: it ended with status 137", 137, "")
    assert do()["msg"].startswith("The gateway's command was killed in its pod, most likely for want of memory: raise gateway_resources")
    assert listed(house) == []


# --- who is there


def test_the_list_of_people_names_what_does_not_fit_together(house: FakeGateway, run_module: Run) -> None:
    house.put_list(f"{ANN}\n{BEN}\nnew@example.org\n")
    house.put_person(ANN, alias="Ann", limits={"money_per_day_usd": "2.5"})
    house.put_person(BEN, "disabled")
    house.put_person("old@example.org")
    result = run_module(person_info.main)
    assert not result["changed"]
    ann, ben, new, old = result["lines"]
    assert ann == f"{ANN}: may sign in; called Ann; money_per_day_usd 2.5; since 2026-11-01"
    assert "switched off in the gateway: run add_user.yml or remove_user.yml" in ben
    assert new == "new@example.org: may sign in; has not come in yet"
    assert "not in the list, but not switched off" in old
    assert house.cluster.writes == []
