"""Modules lockdown, sign_out and restart, and what gateway_token and manifests do about a lockdown, in memory."""

from __future__ import annotations

import base64
import contextlib
import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ansible_collections.homelab.hearth.plugins.module_utils import _k8s, _people, _rollout, _whitelist
from ansible_collections.homelab.hearth.plugins.module_utils._lock import ASIDE, LOCKED_SINCE, lifted, locked
from ansible_collections.homelab.hearth.plugins.module_utils._whitelist import REVISION
from ansible_collections.homelab.hearth.plugins.modules import (
    email_whitelist,
    gateway_token,
    lockdown,
    manifests,
    person,
    person_info,
    restart,
    sign_out,
)

from tests.unit.fake_cluster import FakeCluster, Object
from tests.unit.fake_gateway import FakeGateway, pod

NAMES = yaml.safe_load((Path(__file__).resolve().parents[2] / "contract" / "names.yml").read_text())
LIST = ("ConfigMap", "public-ingress", "oauth2-proxy-emails")
TOKENS = ("Secret", "hearth", "gateway-tokens")
ANN, BEN = "ann@example.org", "ben@example.org"
PROXY, OPERATOR = "p" * 43, "o" * 43
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> FakeGateway:
    fake = FakeCluster()
    made = FakeGateway(fake)
    for module in (email_whitelist, gateway_token, lockdown, manifests, person, person_info, restart, sign_out):
        monkeypatch.setattr(module, "Cluster", fake.connect)
    monkeypatch.setattr(_people, "execute", made.execute)
    for where in (_k8s, _people, _rollout, _whitelist):
        monkeypatch.setattr(where.time, "sleep", lambda seconds: None)
    made.put_list(f"# family\n{ANN}\n")
    made.put_tokens(proxy=PROXY, operator=OPERATOR)
    return made


def data(house: FakeGateway, key: tuple[str, str, str]) -> dict[str, str]:
    return dict(house.cluster.objects[key]["data"])


def marks(house: FakeGateway, instance: str) -> dict[str, str]:
    template = house.cluster.objects[("Deployment", "public-ingress", f"oauth2-proxy-{instance}")]["spec"]["template"]
    return dict(template["metadata"].get("annotations") or {})


# --- the kill switch


def test_locking_leaves_no_token_and_no_address_and_lifting_brings_all_back(house: FakeGateway, run_module: Run) -> None:
    tokens, people = data(house, TOKENS), data(house, LIST)
    result = run_module(lockdown.main, diff=True)
    assert (result["changed"], result["tokens"], bool(result["locked_since"])) == (True, ["operator", "proxy"], True)
    assert not any(name[0].isalnum() for name in data(house, TOKENS)), "a file that the gateway would take for a token"
    assert data(house, LIST)["restricted_user_access"] == "", "the proxy needs the file, with nobody in it"
    assert PROXY not in str(result) and base64.b64encode(PROXY.encode()).decode() not in str(result)
    revision = data(house, LIST)[REVISION]
    again = run_module(lockdown.main)
    assert (again["changed"], again["locked_since"]) == (False, result["locked_since"])
    assert data(house, LIST)[REVISION] == revision
    back = run_module(lockdown.main, state="lifted")
    assert (back["changed"], back["locked_since"], back["tokens"]) == (True, "", ["operator", "proxy"])
    assert (data(house, TOKENS), data(house, LIST)) == (tokens, people | {REVISION: data(house, LIST)[REVISION]})
    assert data(house, LIST)[REVISION] != revision, "lifted at once: the proxies read the same list once more, and say so"
    assert not run_module(lockdown.main, state="lifted")["changed"]


def test_the_names_are_those_of_the_contract() -> None:
    assert NAMES["lockdown"] == {"annotation": LOCKED_SINCE, "prefix": ASIDE}
    assert not ASIDE[0].isalnum(), "the gateway takes a file for a token whose name begins with a letter or digit"


def test_each_object_is_locked_in_one_write(house: FakeGateway, run_module: Run) -> None:
    """Between two writes, a run that dies would lose tokens or leave a door open."""
    run_module(lockdown.main)
    replaced = [write for write in house.cluster.writes if not write.startswith("annotate")]
    assert replaced == ["replace Secret gateway-tokens", "replace ConfigMap oauth2-proxy-emails"]


def test_a_token_being_rotated_comes_back_with_both_values() -> None:
    stored: Object = {"kind": "Secret", "metadata": {"name": "t"}, "data": {"proxy": "new", "proxy.previous": "old"}}
    shut = locked(stored, "now")
    assert set(shut["data"]) == {ASIDE + "proxy", ASIDE + "proxy.previous"}
    assert lifted(shut)["data"] == stored["data"]


def test_what_was_written_by_hand_meanwhile_is_shut_out_too(house: FakeGateway) -> None:
    shut = locked({"kind": "Secret", "metadata": {"name": "t"}, "data": {"proxy": "old"}}, "then")
    shut["data"]["sneaked-in"] = "x"
    again = locked(shut, "now")
    assert set(again["data"]) == {ASIDE + "proxy", ASIDE + "sneaked-in"}
    assert again["metadata"]["annotations"][LOCKED_SINCE] == "then"


def test_a_check_changes_nothing(house: FakeGateway, run_module: Run) -> None:
    before = data(house, TOKENS), data(house, LIST)
    assert run_module(lockdown.main, check=True)["changed"]
    assert (data(house, TOKENS), data(house, LIST)) == before


def test_a_pod_that_is_leaving_is_ended(house: FakeGateway, run_module: Run) -> None:
    """It gets no changed files any more, and would finish open answers for minutes."""
    leaving = pod(house.deployment, "gateway-0")
    leaving["metadata"]["deletionTimestamp"] = "2026-11-21T17:00:00Z"
    house.cluster.create(leaving)
    assert run_module(lockdown.main)["ended"] == ["Pod hearth/gateway-0"]
    assert ("Pod", "hearth", "gateway-0") not in house.cluster.objects
    assert ("Pod", "hearth", "gateway-1") in house.cluster.objects


def test_it_does_not_say_locked_while_a_pod_still_has_tokens(house: FakeGateway, run_module: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(house, "_hashes", lambda: {"proxy": "still there"})
    result = run_module(lockdown.main, wait_s=0.05)
    assert result["failed"] and "pod gateway-1 has not got it" in result["msg"]


def test_a_pod_that_does_not_answer_does_not_count_as_locked(house: FakeGateway, run_module: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: Any) -> str:
        raise _k8s.ClusterError("the connection broke")

    monkeypatch.setattr(_people, "execute", broken)
    assert "pod gateway-1 has not got it" in run_module(lockdown.main, wait_s=0.05)["msg"]


def test_without_a_gateway_there_is_nothing_to_lock(house: FakeGateway, run_module: Run) -> None:
    del house.cluster.objects[TOKENS]
    assert "There is nothing to lock: this cluster has no gateway" in run_module(lockdown.main)["msg"]


def test_two_at_once_lose_nothing(house: FakeGateway, run_module: Run) -> None:
    """A token that is made between the reading and the writing goes aside too."""

    def faster() -> None:
        house.cluster.before_replace = None
        stored = house.cluster.objects[TOKENS]
        house.cluster._store("other", {**stored, "data": {**stored["data"], "kitchen": "a2l0Y2hlbg=="}})

    house.cluster.before_replace = faster
    assert run_module(lockdown.main)["tokens"] == ["kitchen", "operator", "proxy"]
    assert not any(name[0].isalnum() for name in data(house, TOKENS))


@pytest.mark.parametrize("meanwhile", ["rotated", "locked"])
def test_a_deployment_does_not_undo_what_comes_in_its_middle(
    house: FakeGateway, run_module: Run, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    """It keeps the values that it read: written back, they would end a rotation half done, or open locked doors."""
    begun: list[str] = []
    read = house.cluster.get

    def read_and_then(api_version: str, kind: str, name: str, namespace: str | None = None) -> Any:
        found = read(api_version, kind, name, namespace)
        if name == "gateway-tokens" and not begun:
            begun.append(name)
            if meanwhile == "rotated":
                run_module(gateway_token.main, name="proxy", state="rotated")
            else:
                run_module(lockdown.main)
        return found

    monkeypatch.setattr(house.cluster, "get", read_and_then)
    secrets = [{"name": "gateway-tokens", "namespace": "hearth", "generated": ["proxy", "operator"]}]
    result = run_module(manifests.main, component="gateway", definitions=[], secrets=secrets, prune=False)
    tokens = data(house, TOKENS)
    if meanwhile == "locked":
        assert "The house is locked down since" in result["msg"] and not any(name[0].isalnum() for name in tokens)
    else:
        assert base64.b64decode(tokens["proxy.previous"]).decode() == PROXY != base64.b64decode(tokens["proxy"]).decode()


# --- while it is locked


def test_people_can_be_removed_and_added_and_nobody_gets_in_by_that(house: FakeGateway, run_module: Run) -> None:
    run_module(lockdown.main)
    assert run_module(person.main, emails=[ANN], state="absent")["emails"] == []
    added = run_module(person.main, emails=[BEN])
    assert added["emails"] == [BEN] and added["locked_since"]
    assert run_module(person_info.main)["locked_since"]
    assert data(house, LIST)["restricted_user_access"] == ""
    run_module(lockdown.main, state="lifted")
    assert data(house, LIST)["restricted_user_access"] == f"# family\n{BEN}\n"


def test_no_token_is_made_in_the_place_of_those_aside(house: FakeGateway, run_module: Run) -> None:
    run_module(lockdown.main)
    before = data(house, TOKENS)
    for state in ("present", "rotated", "settled"):
        assert "The house is locked down since" in run_module(gateway_token.main, name="proxy", state=state)["msg"]
    secret = {"name": "gateway-tokens", "namespace": "hearth", "generated": ["operator", "proxy"]}
    result = run_module(manifests.main, component="gateway", definitions=[], secrets=[secret])
    assert "The house is locked down since" in result["msg"] and "lockdown.yml -e lifted=true" in result["msg"]
    assert data(house, TOKENS) == before


@pytest.mark.parametrize("rotating", [False, True])
def test_a_token_that_leaked_can_be_removed_while_all_is_shut_and_does_not_come_back(
    house: FakeGateway, run_module: Run, rotating: bool
) -> None:
    if rotating:
        run_module(gateway_token.main, name="proxy", state="rotated")
    run_module(lockdown.main)
    assert run_module(gateway_token.main, name="proxy", state="absent", check=True)["changed"]
    result = run_module(gateway_token.main, name="proxy", state="absent", wait_s=0.05, diff=True)
    assert result["changed"] and PROXY not in str(result)
    assert not run_module(gateway_token.main, name="proxy", state="absent")["changed"]
    assert run_module(lockdown.main, state="lifted")["tokens"] == ["operator"]
    assert not any(name.startswith("proxy") for name in data(house, TOKENS))


# --- tokens that have arrived


def test_a_rotation_waits_until_the_gateway_has_the_new_value(house: FakeGateway, run_module: Run) -> None:
    assert not run_module(gateway_token.main, name="proxy", state="rotated", deliver=False, wait_s=0.05).get("failed")
    house.kubelet = False
    result = run_module(gateway_token.main, name="proxy", state="settled", wait_s=0.05)
    assert result["failed"] and "pod gateway-1 has not got it" in result["msg"]


def test_a_removed_token_is_waited_for_too(house: FakeGateway, run_module: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not run_module(gateway_token.main, name="operator", state="absent", wait_s=0.05).get("failed")
    monkeypatch.setattr(house, "_hashes", lambda: {"proxy": "x", "proxy.previous": "y"})
    assert "has not got it" in run_module(gateway_token.main, name="proxy", state="absent", wait_s=0.05)["msg"]


# --- new pods


def test_a_changed_secret_gives_its_readers_new_pods_once(house: FakeGateway, run_module: Run) -> None:
    run_module(gateway_token.main, name="proxy", consumers=["public-ingress"])
    arguments = {"secrets": ["gateway-token-proxy"], "namespaces": ["public-ingress"]}
    result = run_module(restart.main, **arguments)
    assert result["restarted"] == result["readers"] == ["Deployment public-ingress/oauth2-proxy-chat"]
    [(name, value)] = marks(house, "chat").items()
    assert name == "hearth.homelab/started-with-gateway-token-proxy" and len(value) == 16
    assert marks(house, "apps") == {}
    assert not run_module(restart.main, **arguments)["changed"]
    run_module(gateway_token.main, name="proxy", state="rotated")
    assert run_module(restart.main, check=True, **arguments)["changed"]
    assert marks(house, "chat") == {name: value}
    assert run_module(restart.main, **arguments)["changed"]


def test_what_started_after_the_change_is_left_alone_when_only_the_outdated_are_meant(house: FakeGateway, run_module: Run) -> None:
    """site.yml asks for it after each deployment: a second run must not give anybody new pods."""
    run_module(gateway_token.main, name="proxy", consumers=["public-ingress"])
    arguments = {"secrets": ["oauth2-proxy-chat", "gateway-token-proxy"], "namespaces": ["public-ingress"], "only_outdated": True}
    running = house.cluster.objects[("Pod", "public-ingress", "oauth2-proxy-chat-1")]["status"]

    def written(secret: str, at: str) -> None:
        house.cluster.objects[("Secret", "public-ingress", secret)]["metadata"]["managedFields"] = [{"time": at}]

    written("gateway-token-proxy", "2026-11-22T10:00:00Z")
    running["containerStatuses"] = [{"state": {"running": {"startedAt": "2026-11-22T10:00:00Z"}}}]
    assert not run_module(restart.main, **arguments)["changed"]
    # Somebody removed the token, or deleted the Secret, and the next run made another.
    written("gateway-token-proxy", "2026-11-22T11:00:00Z")
    assert run_module(restart.main, check=True, **arguments)["restarted"] and marks(house, "chat") == {}
    assert run_module(restart.main, **arguments)["restarted"] == ["Deployment public-ingress/oauth2-proxy-chat"]
    assert list(marks(house, "chat")) == ["hearth.homelab/started-with-gateway-token-proxy"]
    # The mark says it now, also while the old pod is still there.
    assert not run_module(restart.main, **arguments)["changed"]


def test_a_check_before_there_is_a_cluster_restarts_nothing(run_module: Run, tmp_path: Path) -> None:
    arguments = {"secrets": ["s"], "namespaces": ["n"], "kubeconfig": str(tmp_path / "none")}
    assert run_module(restart.main, check=True, **arguments)["restarted"] == []
    assert "There is no kubeconfig" in run_module(restart.main, **arguments)["msg"]


def test_the_sign_in_is_restarted_for_every_secret_that_it_reads() -> None:
    """Without it, a token or a cookie's secret that was made anew would never reach the running proxies."""
    role = Path(__file__).resolve().parents[2] / "roles" / "oauth2_proxy"
    tasks = yaml.safe_load((role / "tasks" / "main.yml").read_text())
    modules = [next((key for key in task if "." in key), "") for task in tasks]
    assert modules.index("ansible.builtin.include_role") < modules.index("homelab.hearth.restart")
    asked = tasks[modules.index("homelab.hearth.restart")]["homelab.hearth.restart"]
    assert asked["only_outdated"] is True
    assert "_oauth2_proxy_secrets" in asked["secrets"] and "_oauth2_proxy_token_secret" in asked["secrets"]


@pytest.mark.parametrize("kind", ["StatefulSet", "DaemonSet"])
def test_programs_of_other_kinds_get_new_pods_too(house: FakeGateway, run_module: Run, kind: str) -> None:
    """Their charts decide that. Left out, they would show the old value after it is refused."""
    counts = {"readyReplicas": 1, "desiredNumberScheduled": 1, "updatedNumberScheduled": 1, "numberAvailable": 1}
    made = copy.deepcopy(house.cluster.objects[("Deployment", "public-ingress", "oauth2-proxy-chat")])
    made["kind"], made["metadata"] = kind, {"name": "open-webui", "namespace": "public-ingress"}
    made["status"] |= counts
    house.cluster.create(made)
    run_module(gateway_token.main, name="proxy", consumers=["public-ingress"])
    arguments = {"secrets": ["gateway-token-proxy"], "namespaces": ["public-ingress"]}
    assert f"{kind} public-ingress/open-webui" in run_module(restart.main, **arguments)["restarted"]
    assert not run_module(restart.main, **arguments)["changed"]
    house.cluster.objects[(kind, "public-ingress", "open-webui")]["status"] |= {"updatedReplicas": 0, "updatedNumberScheduled": 0}
    assert f"{kind} public-ingress/open-webui has no new pods" in run_module(restart.main, wait_s=0.05, **arguments)["msg"]


@pytest.mark.parametrize(
    "container",
    [
        {"name": "c", "env": [{"name": "T", "valueFrom": {"secretKeyRef": {"name": "s", "key": "token"}}}]},
        {"name": "c", "env": [{"name": "X", "value": "1"}], "envFrom": [{"configMapRef": {"name": "s"}}, {"secretRef": {"name": "s"}}]},
    ],
)
def test_a_secret_in_the_environment_is_read_at_the_start_too(container: Object) -> None:
    deployment = {"spec": {"template": {"spec": {"containers": [container]}}}}
    assert _rollout.uses(deployment, "s") and not _rollout.uses(deployment, "other")


def test_new_pods_that_do_not_come_are_told(house: FakeGateway, run_module: Run) -> None:
    run_module(gateway_token.main, name="proxy", consumers=["public-ingress"])
    house.cluster.objects[("Deployment", "public-ingress", "oauth2-proxy-chat")]["status"]["updatedReplicas"] = 0
    result = run_module(restart.main, secrets=["gateway-token-proxy"], namespaces=["public-ingress"], wait_s=0.05)
    assert result["failed"] and "oauth2-proxy-chat has no new pods after 0 s, so the old ones go on: 0 of 1 pods" in result["msg"]


def test_a_pod_that_leaves_is_waited_for_while_it_still_gets_requests(
    house: FakeGateway, run_module: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a leaving proxy lets through carries the old token, which the caller is about to have refused."""
    run_module(gateway_token.main, name="proxy", consumers=["public-ingress"])
    arguments = {"secrets": ["gateway-token-proxy"], "namespaces": ["public-ingress"]}
    passed: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: sum(passed), sleep=passed.append)
    monkeypatch.setattr(_rollout, "time", clock)

    def leaves(name: str, hook: Object | None) -> None:
        leaving = copy.deepcopy(pod(house.cluster.objects[("Deployment", "public-ingress", "oauth2-proxy-chat")], name))
        leaving["metadata"] |= {"deletionTimestamp": "2026-11-22T02:00:00Z"}
        leaving["spec"]["containers"][0]["lifecycle"] = hook and {"preStop": hook}
        house.cluster.create(leaving)

    leaves("without-a-hook", None)
    leaves("with-a-command", {"exec": {"command": ["true"]}})
    run_module(restart.main, **arguments)
    assert passed == []
    leaves("sleeping", {"sleep": {"seconds": 5}})
    leaves("sleeping-too", {"sleep": {"seconds": 5}})
    run_module(restart.main, **arguments)
    assert 5 < sum(passed) < 8, "side by side, and not for as long as the last answer there takes"


# --- signing out


def test_signing_out_makes_every_cookie_worthless_and_cuts_the_persons_answers(house: FakeGateway, run_module: Run) -> None:
    result = run_module(sign_out.main, emails=ANN)
    assert result["restarted"] == [f"Deployment public-ingress/oauth2-proxy-{name}" for name in ("chat", "apps")]
    secrets = [data(house, ("Secret", "public-ingress", f"oauth2-proxy-{name}")) for name in ("chat", "apps")]
    values = [base64.b64decode(secret["cookie-secret"]) for secret in secrets]
    assert b"old" not in values and values[0] != values[1], "one secret for both would have the apps' cookie open the chat"
    # What oauth2-proxy takes: 32 bytes as URL-safe base64, no line break.
    assert [len(base64.urlsafe_b64decode(value + b"=")) for value in values] == [32, 32]
    assert [secret["client-secret"] for secret in secrets] == ["a2VwdA=="] * 2
    assert house.calls[-1] == ["person", "set", "-", "--not-before", "now"] and house.lines[-1] == ANN
    assert values[0].decode() not in str(result)


def test_answers_are_cut_after_the_old_cookies_ended(house: FakeGateway, run_module: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    waiting, running = _rollout.wait, house.execute

    def noted_wait(*arguments: Any) -> None:
        order.append("pods")
        waiting(*arguments)

    def noted_run(*arguments: Any) -> str:
        order.append(arguments[4][2])
        return running(*arguments)

    monkeypatch.setattr(sign_out, "wait", noted_wait)
    monkeypatch.setattr(_people, "execute", noted_run)
    run_module(sign_out.main, emails=ANN)
    assert order == ["list", "pods", "set"]


@pytest.mark.parametrize(
    ("emails", "message"), [("bne@example.org", "nobody here has the address"), ("ann", "exactly one @"), ([], "no address given")]
)
def test_a_misspelt_address_signs_nobody_out(house: FakeGateway, run_module: Run, emails: Any, message: str) -> None:
    result = run_module(sign_out.main, emails=emails)
    assert result["failed"] and message in result["msg"].lower()
    assert house.cluster.writes == []


def test_signing_out_checks_dry(house: FakeGateway, run_module: Run) -> None:
    assert run_module(sign_out.main, check=True, emails=ANN)["restarted"]
    assert house.cluster.writes == [] and house.calls == [["person", "list"]]
    done = run_module(sign_out.main, emails=ANN)["restarted"]
    assert run_module(sign_out.main, check=True, emails=ANN)["restarted"] == done, "also when everybody was signed out before"


def test_without_a_sign_in_nobody_can_be_signed_out(house: FakeGateway, run_module: Run) -> None:
    for name in ("chat", "apps"):
        with contextlib.suppress(KeyError):
            del house.cluster.objects[("Deployment", "public-ingress", f"oauth2-proxy-{name}")]
    assert "There is no sign-in in this cluster" in run_module(sign_out.main, emails=ANN)["msg"]
