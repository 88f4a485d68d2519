"""Module gateway_token against a cluster in memory."""

from __future__ import annotations

import base64
import contextlib
import functools
import itertools
import json
import random
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ansible_collections.homelab.hearth.plugins.module_utils import _k8s
from ansible_collections.homelab.hearth.plugins.module_utils._k8s import ClusterError, NoClusterError
from ansible_collections.homelab.hearth.plugins.module_utils._token import TokenError
from ansible_collections.homelab.hearth.plugins.modules import gateway_token

from tests.unit.fake_cluster import FakeCluster, Object

NAMES = yaml.safe_load((Path(__file__).resolve().parents[2] / "contract" / "names.yml").read_text())
Run = Callable[..., dict[str, Any]]
GATEWAY = ("Secret", "hearth", "gateway-tokens")
STATES = ("present", "rotated", "settled", "absent")


def with_namespaces(fake: FakeCluster) -> FakeCluster:
    for name in ("hearth", "public-ingress", "open-webui"):
        fake.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    fake.writes.clear()
    return fake


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    fake = with_namespaces(FakeCluster())
    monkeypatch.setattr(gateway_token, "Cluster", fake.connect)
    monkeypatch.setattr(_k8s.time, "sleep", lambda seconds: None)
    return fake


@pytest.fixture
def token(run_module: Run) -> Run:
    def run(state: str = "present", **arguments: Any) -> dict[str, Any]:
        return run_module(gateway_token.main, **{"name": "proxy", "state": state, **arguments})

    return run


def accepted(cluster: FakeCluster, name: str = "proxy") -> dict[str, str]:
    """What the gateway accepts under a name, by key."""
    data = (cluster.objects.get(GATEWAY) or {}).get("data") or {}
    return {key: base64.b64decode(data[key]).decode() for key in (name, f"{name}.previous") if data.get(key)}


def shown(cluster: FakeCluster, name: str = "proxy") -> dict[str, str]:
    """What each consumer shows, by namespace."""
    return {
        str(namespace): base64.b64decode(stored["data"]["token"]).decode()
        for (kind, namespace, secret), stored in cluster.objects.items()
        if kind == "Secret" and secret == f"gateway-token-{name}"
    }


# --- what it does


def test_the_names_are_those_of_the_contract() -> None:
    spec, tokens = gateway_token.argument_spec(), NAMES["gateway"]["tokens"]
    assert spec["namespace"]["default"] == NAMES["namespace"]
    assert spec["secret"]["default"] == tokens["secret"]
    assert spec["consumer_key"]["default"] == tokens["consumer"]["key"]
    assert tokens["consumer"]["secret_prefix"] == gateway_token.CONSUMER_SECRET
    assert tokens["consumer"]["label"] == gateway_token.LABEL
    assert {**NAMES["labels"]["part_of"], **NAMES["labels"]["managed_by"]} == _k8s.LABELS


def test_a_token_is_made_for_the_gateway_first_and_then_for_each_consumer(cluster: FakeCluster, token: Run) -> None:
    result = token(consumers=["public-ingress", "open-webui"])
    assert result["changed"]
    assert cluster.writes == ["create Secret gateway-tokens", "create Secret gateway-token-proxy", "create Secret gateway-token-proxy"]
    (value,) = accepted(cluster).values()
    assert shown(cluster) == {"public-ingress": value, "open-webui": value}
    assert len(value) == 43
    assert value == value.strip()
    assert result["gateway_token"]["consumers"] == ["open-webui", "public-ingress"]
    assert result["gateway_token"]["secret"] == "gateway-token-proxy"


def test_a_second_time_writes_nothing(cluster: FakeCluster, token: Run) -> None:
    first = token(consumers=["public-ingress"])
    cluster.writes.clear()
    again = token(consumers=["public-ingress"])
    assert (again["changed"], again["diff"], cluster.writes) == (False, [], [])
    assert again["gateway_token"] == first["gateway_token"]


def test_a_consumers_secret_holds_this_token_and_nothing_else(cluster: FakeCluster, token: Run) -> None:
    token(name="operator")
    token(consumers=["public-ingress"])
    secret = cluster.objects[("Secret", "public-ingress", "gateway-token-proxy")]
    assert list(secret["data"]) == ["token"]
    assert secret["type"] == "Opaque"
    # No component label: pruning by a role must not find it.
    assert secret["metadata"]["labels"] == {**_k8s.LABELS, "hearth.homelab/gateway-token": "proxy"}


def test_the_gateways_other_tokens_and_labels_stay(cluster: FakeCluster, token: Run) -> None:
    cluster.create({
        "apiVersion": "v1", "kind": "Secret", "type": "Opaque", "data": {"operator": "b3BlcmF0b3ItMDEyMzQ1Njc4OQ=="},
        "metadata": {"name": "gateway-tokens", "namespace": "hearth", "labels": {"hearth.homelab/component": "gateway"}},
    })  # fmt: skip
    for state in ("present", "rotated", "settled", "absent"):
        token(state)
        assert cluster.objects[GATEWAY]["data"]["operator"] == "b3BlcmF0b3ItMDEyMzQ1Njc4OQ=="
        assert cluster.objects[GATEWAY]["metadata"]["labels"] == {"hearth.homelab/component": "gateway"}
    assert list(cluster.objects[GATEWAY]["data"]) == ["operator"]


def test_a_rotation_from_beginning_to_end(cluster: FakeCluster, token: Run) -> None:
    token(consumers=["public-ingress"])
    (old,) = accepted(cluster).values()

    # The gateway learns the new value while everybody still shows the old one.
    begun = token("rotated", deliver=False)
    assert begun["changed"]
    assert shown(cluster) == {"public-ingress": old}
    assert accepted(cluster)["proxy.previous"] == old
    new = accepted(cluster)["proxy"]
    assert new != old
    assert not token("rotated", deliver=False)["changed"]

    # The consumers are found by their label.
    delivered = token("rotated")
    assert shown(cluster) == {"public-ingress": new}
    assert accepted(cluster) == {"proxy": new, "proxy.previous": old}
    assert delivered["gateway_token"]["previous_fingerprint"]
    assert not token("rotated")["changed"], "a rotation that is under way is not begun again"

    settled = token("settled")
    assert settled["changed"]
    assert accepted(cluster) == {"proxy": new}
    assert (shown(cluster), settled["gateway_token"]["previous_fingerprint"]) == ({"public-ingress": new}, "")
    assert not token("settled")["changed"]
    assert token("rotated")["changed"], "the next rotation"


def test_it_is_not_settled_while_a_consumer_has_the_old_value(cluster: FakeCluster, token: Run) -> None:
    token(consumers=["public-ingress", "open-webui"])
    token("rotated", deliver=False)
    before = accepted(cluster)
    for consumers in ([], ["hearth"]):
        result = token("settled", consumers=consumers)
        assert result["failed"]
        assert "is not in Secret " in result["msg"]
        assert "open-webui/gateway-token-proxy, public-ingress/gateway-token-proxy yet" in result["msg"]
        assert "run state=rotated" in result["msg"]
        assert accepted(cluster) == before


def test_removing_closes_the_door_first_and_leaves_no_copy(cluster: FakeCluster, token: Run) -> None:
    token(consumers=["public-ingress"])
    token("rotated", consumers=["open-webui"])
    cluster.writes.clear()
    result = token("absent")
    assert cluster.writes == ["replace Secret gateway-tokens", "delete Secret gateway-token-proxy", "delete Secret gateway-token-proxy"]
    assert (accepted(cluster), shown(cluster)) == ({}, {})
    assert result["gateway_token"]["fingerprint"] == ""
    assert not token("absent")["changed"]


def test_a_value_that_somebody_changed_at_a_consumer_is_brought_back(cluster: FakeCluster, token: Run) -> None:
    token(consumers=["public-ingress"])
    secret = cluster.objects[("Secret", "public-ingress", "gateway-token-proxy")]
    cluster.replace({**secret, "data": {"token": "c29tZXRoaW5nLWVsc2UtMDEyMw==", "more": "eA=="}})
    assert token()["changed"]
    assert shown(cluster) == {"public-ingress": accepted(cluster)["proxy"]}


def test_a_line_break_in_the_gateways_secret_does_not_reach_a_consumer(cluster: FakeCluster, token: Run) -> None:
    value = base64.b64encode(b"made-by-kubectl-0123\n").decode()
    meta = {"name": "gateway-tokens", "namespace": "hearth"}
    cluster.create({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": {"proxy": value}})
    token(consumers=["public-ingress"])
    assert shown(cluster) == {"public-ingress": "made-by-kubectl-0123"}
    assert not token()["changed"]


def test_namespaces_are_made_when_asked(cluster: FakeCluster, token: Run) -> None:
    refused = token(consumers=["kitchen"])
    assert refused["failed"]
    assert refused["msg"] == "There is no namespace kitchen: deploy what lives in it first"
    assert token(consumers=["kitchen"], create_namespace=True)["changed"]
    assert set(shown(cluster)) == {"kitchen"}


def mount(cluster: FakeCluster, namespace: str, secret: str) -> None:
    meta = {"name": f"reads-{secret}", "namespace": namespace}
    cluster.create({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"volumes": [{"secret": {"secretName": secret}}]}})


def test_pods_are_told_and_the_gateways_before_a_consumer_shows_the_value(cluster: FakeCluster, token: Run) -> None:
    token(consumers=["public-ingress"])
    mount(cluster, "hearth", "gateway-tokens")
    mount(cluster, "public-ingress", "gateway-token-proxy")
    cluster.writes.clear()
    result = token("rotated")
    assert cluster.writes == [
        "replace Secret gateway-tokens", "annotate Pod reads-gateway-tokens",
        "replace Secret gateway-token-proxy", "annotate Pod reads-gateway-token-proxy",
    ]  # fmt: skip
    assert result["pods"] == ["hearth/reads-gateway-tokens", "public-ingress/reads-gateway-token-proxy"]
    cluster.writes.clear()
    assert token("rotated")["pods"] == []
    assert token("settled", refresh_pods=False)["pods"] == []
    assert cluster.writes == ["replace Secret gateway-tokens"]


# --- the file


def test_the_value_is_written_to_a_file_of_its_owner_only(cluster: FakeCluster, token: Run, tmp_path: Path) -> None:
    target = tmp_path / "new" / "token"
    result = token(write_to=str(target))
    assert target.read_text() == accepted(cluster)["proxy"], "no line break at its end"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert result["written_to"] == str(target)
    assert not token(write_to=str(target))["changed"]
    target.chmod(0o644)
    assert token(write_to=str(target))["changed"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    token("rotated", write_to=str(target))
    assert target.read_text() == accepted(cluster)["proxy"]
    assert list(target.parent.iterdir()) == [target], "no half-written copy stays behind"


def test_a_file_that_cannot_be_written_is_told_and_the_next_run_makes_it_good(cluster: FakeCluster, token: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for target, message in ((tmp_path, f"Write_to: {tmp_path} is a directory"), (tmp_path / "file" / "token", "cannot be written")):
        result = token(write_to=str(target))
        assert result["failed"]
        assert message in result["msg"]
        for value in accepted(cluster).values():
            assert value not in json.dumps(result)
    assert not token()["changed"], "the token itself was made"
    assert token("absent", write_to=str(tmp_path / "x"))["failed"]
    assert accepted(cluster), "a call that makes no sense removes nothing"


# --- nothing is shown


def test_no_value_is_in_any_result_or_diff_or_error(cluster: FakeCluster, token: Run, tmp_path: Path) -> None:
    secrets_seen: set[str] = set()
    said: list[str] = []
    consumers = ["public-ingress"]
    for state, more in [("present", {}), ("rotated", {"check": True}), ("rotated", {}), ("settled", {}), ("present", {}), ("absent", {})]:
        secrets_seen |= set(accepted(cluster).values())
        target = None if state == "absent" else str(tmp_path / "f")
        said.append(json.dumps(token(state, consumers=consumers, diff=True, write_to=target, **more)))
        secrets_seen |= set(accepted(cluster).values())
    assert len(secrets_seen) == 2
    # An API server that repeats what it was given.
    token(consumers=consumers)
    value = accepted(cluster)["proxy"]
    coded = base64.b64encode(value.encode()).decode()

    def talkative() -> None:
        raise ClusterError(f"cannot change: HTTP 422: data: Invalid value: {coded} ({value})", 422)

    cluster.before_replace = talkative
    failed = token("rotated", consumers=consumers)
    assert failed["failed"]
    said.append(json.dumps(failed))
    for secret, text in itertools.product(secrets_seen | {value}, said):
        assert secret not in text
        assert base64.b64encode(secret.encode()).decode() not in text


def test_a_diff_tells_values_apart_by_fingerprints(cluster: FakeCluster, token: Run) -> None:
    made = token(consumers=["public-ingress"])["gateway_token"]["fingerprint"]
    result = token("rotated", diff=True)
    new = result["gateway_token"]["fingerprint"]
    assert made.startswith("sha256:")
    assert new != made
    assert result["gateway_token"]["previous_fingerprint"] == made
    assert [(d["before_header"], d["before"], d["after"]) for d in result["diff"]] == [
        ("Secret hearth/gateway-tokens", f"proxy: {made}\n", f"proxy: {new}\nproxy.previous: {made}\n"),
        ("Secret public-ingress/gateway-token-proxy", f"token: {made}\n", f"token: {new}\n"),
    ]


# --- refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "Proxy"}, "'Proxy' is no name for a token"),
        ({"name": "proxy.previous"}, "is no name for a token"),
        ({"state": "rotated"}, "There is no token proxy: make it with state=present, or correct the name"),
        ({"state": "settled"}, "There is no token proxy: make it with state=present, or correct the name"),
        ({"namespace": "elsewhere"}, "There is no namespace elsewhere"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_sentence(cluster: FakeCluster, token: Run, arguments: dict[str, Any], message: str) -> None:
    result = token(**arguments)
    assert result["failed"]
    assert message in result["msg"]
    assert cluster.writes == []


def test_somebody_elses_secret_is_not_overwritten(cluster: FakeCluster, token: Run) -> None:
    meta = {"name": "gateway-token-proxy", "namespace": "public-ingress"}
    cluster.create({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": {"theirs": "eA=="}})
    cluster.writes.clear()
    result = token(consumers=["public-ingress"])
    assert result["failed"]
    assert result["msg"].startswith("Secret public-ingress/gateway-token-proxy is not ours")
    assert cluster.writes == []


def test_a_token_that_the_gateway_refuses_is_not_handed_out(cluster: FakeCluster, token: Run) -> None:
    meta = {"name": "gateway-tokens", "namespace": "hearth"}
    value = base64.b64encode(b"with a blank 0123456789").decode()
    cluster.create({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": {"proxy": value}})
    for state in ("present", "rotated", "settled"):
        result = token(state, consumers=["public-ingress"])
        assert result["failed"]
        assert "the gateway counts it as none: remove it with state=absent" in result["msg"]
    assert shown(cluster) == {}
    assert token("absent")["changed"]
    assert token(consumers=["public-ingress"])["changed"]


def test_no_kubeconfig_is_a_sentence(token: Run, tmp_path: Path) -> None:
    result = token(kubeconfig=str(tmp_path / "none"))
    assert result["failed"]
    assert result["msg"] == f"There is no kubeconfig at {tmp_path}/none: deploy the cluster first, or name another file"


# --- check mode


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("prepared", [("present",), ("present", "rotated"), ()])
def test_check_mode_says_what_a_real_run_then_does(
    cluster: FakeCluster, token: Run, state: str, prepared: tuple[str, ...], tmp_path: Path
) -> None:
    for before in prepared:
        token(before, consumers=["public-ingress"])
    cluster.writes.clear()
    arguments = {"consumers": ["public-ingress"], **({} if state == "absent" else {"write_to": str(tmp_path / "f")})}
    checked = token(state, check=True, **arguments)
    assert cluster.writes == []
    assert not (tmp_path / "f").exists()
    real = token(state, **arguments)
    assert checked.get("failed", False) is real.get("failed", False) is (not prepared and state in ("rotated", "settled"))
    assert checked.get("msg") == real.get("msg")
    if real.get("failed"):
        return
    assert checked["changed"] is real["changed"]
    assert [d["before"] for d in checked["diff"]] == [d["before"] for d in real["diff"]]
    hidden = [d["after"].replace(gateway_token.TO_BE_GENERATED, real["gateway_token"]["fingerprint"]) for d in checked["diff"]]
    assert hidden == [d["after"] for d in real["diff"]]
    assert checked["gateway_token"]["consumers"] == real["gateway_token"]["consumers"]


def test_check_mode_where_the_namespaces_are_still_to_be_made(cluster: FakeCluster, token: Run) -> None:
    result = token(check=True, namespace="new", consumers=["newer"], create_namespace=True)
    assert result["changed"]
    assert cluster.writes == []
    assert [d["after_header"] for d in result["diff"]] == ["Secret new/gateway-tokens", "Secret newer/gateway-token-proxy"]


def test_check_mode_where_there_is_no_cluster_yet(monkeypatch: pytest.MonkeyPatch, token: Run) -> None:
    def nobody(module: Any, field_manager: str) -> None:
        raise NoClusterError("no cluster answers at 192.0.2.1:6443 (no answer)")

    monkeypatch.setattr(gateway_token, "Cluster", nobody)
    result = token(check=True, consumers=["public-ingress"])
    assert result["changed"]
    assert result["cluster"] == "no cluster answers at 192.0.2.1:6443 (no answer)"
    assert result["gateway_token"]["fingerprint"] == gateway_token.TO_BE_GENERATED
    assert [d["after_header"] for d in result["diff"]] == ["Secret hearth/gateway-tokens", "Secret public-ingress/gateway-token-proxy"]
    assert not token("absent", check=True)["changed"]
    assert "There is no token proxy to replace" in token("rotated", check=True)["msg"]
    assert token(consumers=["public-ingress"])["msg"] == "No cluster answers at 192.0.2.1:6443 (no answer)"


# --- runs that die, and operators that meet

CONSUMERS = ["public-ingress", "open-webui"]


class Died(Exception):
    """The controller lost power."""


def perform(cluster: Any, state: str, **more: Any) -> Any:
    """One run against a cluster, without the module around it."""
    params = {
        "name": "proxy", "state": state, "consumers": CONSUMERS, "deliver": True, "namespace": "hearth", "secret": "gateway-tokens",
        "consumer_key": "token", "create_namespace": False, "refresh_pods": True, **more,
    }  # fmt: skip
    this = gateway_token.Run(SimpleNamespace(params=params, no_log_values=set(), check_mode=False), cluster)
    return _k8s.until_undisturbed(this.attempt, "the token")


class Hooked:
    """A cluster that calls `hook` before the verb with this number, counted from 0."""

    def __init__(self, inner: FakeCluster, number: int, hook: Callable[[], None]) -> None:
        self._inner, self._left, self._hook = inner, number, hook
        self.dry_run = False

    def __getattr__(self, verb: str) -> Any:
        real = getattr(self._inner, verb)

        def call(*arguments: Any) -> Any:
            self._left -= 1
            if self._left == -1:
                self._hook()
            return real(*arguments)

        return call

    @property
    def reached(self) -> bool:
        return self._left < 0


def prepared(*states: str) -> FakeCluster:
    fake = with_namespaces(FakeCluster())
    mount(fake, "hearth", "gateway-tokens")
    for state in states:
        perform(fake, state)
    return fake


def works(cluster: FakeCluster) -> dict[str, str]:
    """The consumers that the gateway lets in, with what they show."""
    return {namespace: value for namespace, value in shown(cluster).items() if value in accepted(cluster).values()}


def everywhere(states: tuple[str, ...], state: str) -> Iterator[tuple[FakeCluster, int]]:
    """The cluster after a run to `state` that died before its n-th call of the API, for every n."""

    def die() -> None:
        raise Died

    for number in itertools.count():
        fake = prepared(*states)
        hooked = Hooked(fake, number, die)
        try:
            perform(hooked, state)
        except Died:
            yield fake, number
            continue
        assert not hooked.reached
        assert number >= 4, "the run made no calls to die between"
        return


@pytest.mark.parametrize(
    ("states", "state"),
    [((), "present"), (("present",), "rotated"), (("present", "rotated"), "settled"), (("present", "rotated"), "rotated"),
     (("present", "rotated"), "present")],
)  # fmt: skip
def test_wherever_a_run_dies_all_consumers_work_and_the_next_run_ends_it(states: tuple[str, ...], state: str) -> None:
    for cluster, number in everywhere(states, state):
        assert works(cluster) == shown(cluster), f"died before call {number}"
        if states:
            assert set(shown(cluster)) == set(CONSUMERS)
        begun = accepted(cluster).get("proxy")
        wrote = begun is not None and (not states or "proxy.previous" in accepted(cluster))
        perform(cluster, state)
        (current,) = {accepted(cluster)["proxy"]}
        assert shown(cluster) == dict.fromkeys(CONSUMERS, current)
        if wrote:
            assert current == begun, "the run after it finished the work and made no third value"
        assert ("proxy.previous" in accepted(cluster)) is (state == "rotated" or (state == "present" and "rotated" in states))


def test_wherever_a_removal_dies_the_door_is_never_open_with_nobody_to_know_it() -> None:
    for cluster, number in everywhere(("present", "rotated"), "absent"):
        # Either nothing happened yet, or the gateway accepts neither value.
        assert len(accepted(cluster)) in (0, 2), f"died before call {number}"
        perform(cluster, "absent")
        assert (accepted(cluster), shown(cluster)) == ({}, {})


def attempted(cluster: Any, *states: str) -> None:
    """Runs that may find that they would drop a value which a consumer still shows, and refuse."""
    for state in states:
        try:
            perform(cluster, state)
        except TokenError as refused:
            assert state == "settled"
            assert "is not in Secret" in str(refused)


# The last is a whole rotation and more while the first operator's run takes a nap.
THEIRS = [("present",), ("rotated",), ("settled",), ("settled", "rotated", "settled")]


@pytest.mark.parametrize("theirs", THEIRS)
@pytest.mark.parametrize("mine", ["present", "rotated", "settled"])
@pytest.mark.parametrize("states", [("present",), ("present", "rotated")])
def test_two_operators_who_meet_at_any_moment_lock_nobody_out(states: tuple[str, ...], mine: str, theirs: tuple[str, ...]) -> None:
    for number in itertools.count():
        cluster = prepared(*states)
        hooked = Hooked(cluster, number, functools.partial(attempted, cluster, *theirs))
        attempted(hooked, mine)
        assert works(cluster) == shown(cluster), f"they met before call {number}"
        perform(cluster, "rotated")
        assert shown(cluster) == dict.fromkeys(CONSUMERS, accepted(cluster)["proxy"])
        if not hooked.reached:
            return


def test_random_histories_with_deaths_never_lock_a_working_consumer_out() -> None:
    chance = random.Random(5)

    def die() -> None:
        raise Died

    for _ in range(150):
        cluster = prepared()
        for _ in range(chance.randint(2, 7)):
            before, state = works(cluster), chance.choice(("present", "rotated", "rotated", "settled", "absent"))
            consumers = chance.sample(CONSUMERS, chance.randint(0, 2))
            with contextlib.suppress(Died, TokenError):
                perform(Hooked(cluster, chance.randint(0, 25), die), state, consumers=consumers, deliver=chance.random() < 0.7)
            if state != "absent":
                assert set(before) <= set(works(cluster)), state
            assert len(accepted(cluster)) < 2 or "proxy" in accepted(cluster)
        perform(cluster, "present")
        assert shown(cluster) == dict.fromkeys(CONSUMERS, accepted(cluster)["proxy"])


def test_a_conflict_in_the_middle_is_in_the_diff_once(cluster: FakeCluster, token: Run) -> None:
    """The second attempt finds what the first one wrote; the operator is told of one change, from the first before."""
    token(consumers=["public-ingress"])
    old = accepted(cluster)["proxy"]
    writes = itertools.count()

    def somebody_touches_the_consumer() -> None:
        if next(writes) == 1:
            key = ("Secret", "public-ingress", "gateway-token-proxy")
            cluster._store("other", {**cluster.objects[key], "metadata": {**cluster.objects[key]["metadata"], "annotations": {"a": "b"}}})

    cluster.before_replace = somebody_touches_the_consumer
    result = token("rotated", diff=True)
    assert accepted(cluster)["proxy.previous"] == old
    assert [d["after_header"] for d in result["diff"]] == ["Secret hearth/gateway-tokens", "Secret public-ingress/gateway-token-proxy"]
    assert result["diff"][0]["before"] == f"proxy: {result['gateway_token']['previous_fingerprint']}\n"
    secret: Object = cluster.objects[("Secret", "public-ingress", "gateway-token-proxy")]
    assert secret["metadata"]["annotations"] == {"a": "b"}, "what the other one wrote stays"
