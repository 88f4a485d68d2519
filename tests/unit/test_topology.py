"""Who founds, who joins and through whom; what must not change; which node may leave."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.homelab.hearth.plugins.filter import k3s as filters
from ansible_collections.homelab.hearth.plugins.module_utils import _topology
from ansible_collections.homelab.hearth.plugins.module_utils._topology import Member
from hypothesis import given
from hypothesis import strategies as st

EMPTY: dict[str, Any] = {"datastore": "", "joined": False, "active": False, "config": {}}
FOUNDER: dict[str, Any] = {"datastore": "etcd", "joined": True, "active": True, "config": {"token-file": "t", "cluster-init": True}}


def joined(through: str = "https://10.0.0.1:6443", **more: Any) -> dict[str, Any]:
    return {"datastore": "etcd", "joined": True, "active": True, "config": {"token-file": "t", "server": through}, **more}


def servers(*states: dict[str, Any], seen: bool = True) -> list[Member]:
    return [Member(f"h{i}", f"10.0.0.{i}", seen, state) for i, state in enumerate(states, 1)]


def place(host: str, members: list[Member], **options: Any) -> dict[str, Any]:
    mine = next((member.k3s for member in members if member.name == host), EMPTY)
    return dict(_topology.place(host, mine, members, **options))


# -- who founds -------------------------------------------------------------------------------------------------------


def test_on_bare_hosts_the_first_founds_and_the_others_join_it() -> None:
    members = servers(EMPTY, EMPTY, EMPTY)
    assert [place(m.name, members)["founds"] for m in members] == [True, False, False]
    assert place("h2", members)["candidates"][0] == {"name": "h1", "url": "https://10.0.0.1:6443"}
    assert place("h1", members)["candidates"] == []


def test_one_server_keeps_its_data_in_sqlite_and_several_in_etcd() -> None:
    assert place("h1", servers(EMPTY))["etcd"] is False
    assert place("h1", servers(EMPTY), datastore="etcd")["etcd"] is True
    assert place("h1", servers(FOUNDER))["etcd"] is True, "etcd stays etcd when the other servers have left"
    assert place("h1", servers(EMPTY, EMPTY, EMPTY))["etcd"] is True


def test_a_rebuilt_first_server_joins_instead_of_founding_a_second_cluster() -> None:
    members = servers(EMPTY, joined(), joined())
    first = place("h1", members)
    assert first["founds"] is False
    assert [c["name"] for c in first["candidates"]] == ["h2", "h3"]
    # And it stays so: after it has joined, its configuration names the server it joined through.
    again = servers(joined("https://10.0.0.2:6443"), joined(), joined())
    assert place("h1", again)["founds"] is False
    assert place("h1", again)["server"] == "https://10.0.0.2:6443"


def test_a_lost_configuration_does_not_make_a_founder_of_a_member() -> None:
    members = servers(FOUNDER, {**joined(), "config": {}}, joined())
    assert place("h2", members)["founds"] is False
    assert place("h1", servers({**FOUNDER, "config": {}}))["founds"] is True


STATES = st.sampled_from([EMPTY, FOUNDER, joined(), joined("https://10.0.0.2:6443"), joined(active=False)])


@given(st.lists(STATES, min_size=1, max_size=5))
def test_no_host_without_data_founds_beside_one_that_has_them(states: list[dict[str, Any]]) -> None:
    members = servers(*states)
    founders = [m for m in members if place(m.name, members)["founds"]]
    if any(m.has_data for m in members):
        assert all(m.has_data for m in founders)
    else:
        assert [m.name for m in founders] == ["h1"]


@given(st.lists(STATES, min_size=1, max_size=5))
def test_who_does_not_found_has_somebody_to_ask(states: list[dict[str, Any]]) -> None:
    members = servers(*states)
    for member in members:
        found = place(member.name, members)
        assert found["founds"] or found["candidates"]
        assert member.name not in [c["name"] for c in found["candidates"]]


# -- through whom -----------------------------------------------------------------------------------------------------


def test_servers_that_run_are_asked_first() -> None:
    members = servers(joined(active=False), EMPTY, joined("https://10.0.0.1:6443"))
    assert [c["name"] for c in place("h4", members, agent=True)["candidates"]] == ["h3", "h1", "h2"]


def test_a_given_address_comes_first_and_stays() -> None:
    members = servers(FOUNDER, EMPTY, EMPTY)
    found = place("h2", members, registration="k3s.lan", port=16443)
    assert found["candidates"][0] == {"name": "", "url": "https://k3s.lan:16443"}
    told = servers(FOUNDER, joined("https://k3s.lan:6443"), joined())
    assert place("h2", told, registration="k3s.lan")["server"] == "https://k3s.lan:6443"
    assert place("h3", told, registration="k3s.lan")["server"] == "", "told another address: it asks the given one"


def test_an_address_of_a_member_is_kept_whoever_it_is() -> None:
    members = servers(FOUNDER, joined("https://10.0.0.3:6443"), joined())
    assert place("h2", members)["server"] == "https://10.0.0.3:6443"
    stranger = servers(FOUNDER, joined("https://10.0.0.99:6443"), joined())
    assert place("h2", stranger)["server"] == ""


def test_an_agent_that_does_not_run_asks_anew() -> None:
    agent = {"datastore": "", "joined": True, "active": True, "config": {"server": "https://10.0.0.1:6443"}}
    members = servers(FOUNDER, joined(), joined())
    assert _topology.place("a1", agent, members, agent=True)["server"] == "https://10.0.0.1:6443"
    assert _topology.place("a1", {**agent, "active": False}, members, agent=True)["server"] == ""


@pytest.mark.parametrize(
    ("address", "url"),
    [("fd00::1", "https://[fd00::1]:6443"), ("k3s.lan", "https://k3s.lan:6443"), ("10.0.0.1", "https://10.0.0.1:6443")],
)
def test_every_address_is_made_by_the_one_function(address: str, url: str) -> None:
    assert _topology.server_url(address, 6443) == url


def test_the_address_of_a_member_is_that_of_the_node() -> None:
    given_ip = {"inventory_hostname": "h1", "ansible_host": "bastion", "k3s_node_ips": ["10.0.0.7", "fd00::7"]}
    assert _topology.member_of(given_ip).address == "10.0.0.7"
    assert _topology.member_of({"inventory_hostname": "h1", "ansible_host": "10.0.0.8"}).address == "10.0.0.8"
    assert _topology.member_of({"inventory_hostname": "h1"}).address == "h1"


# -- starting together ------------------------------------------------------------------------------------------------


def test_servers_without_a_majority_are_started_together() -> None:
    """One alone would wait for the others until time is up, and they would never be reached."""
    off = [dict(FOUNDER, active=False), joined(active=False), joined(active=False)]
    members = servers(*off)
    assert [place(m.name, members)["together"] for m in members] == [True, True, False]
    assert not any(place(m.name, servers(FOUNDER, joined(), joined(active=False)))["together"] for m in members)
    assert place("h1", servers(dict(FOUNDER, active=False)))["together"] is False


def test_hosts_that_have_yet_to_join_do_not_count() -> None:
    members = servers(FOUNDER, EMPTY, EMPTY)
    assert not any(place(m.name, members)["together"] for m in members)


# -- what stands in the way -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "agents", "words"),
    [
        (["a"], [], []),
        (["a"], ["b", "c"], []),
        (["a", "b", "c"], ["d"], []),
        (["a", "b", "c", "d", "e"], [], []),
        ([], [], []),
        (["a", "b"], [], ["2 servers: etcd needs more than half"]),
        (["a", "b", "c", "d"], [], ["4 servers: etcd needs more than half"]),
        (list("abcdefg"), [], ["7 servers: every write waits"]),
        ([], ["b"], ["agents without a server"]),
        (["a"], ["a"], ["under `servers` and under `agents`"]),
    ],
)
def test_groups(names: list[str], agents: list[str], words: list[str]) -> None:
    found = _topology.group_problems(names, agents)
    assert len(found) == len(words)
    for problem, word in zip(found, words, strict=True):
        assert word in problem["problem"]
        assert problem["fix"]


def test_founding_needs_a_look_at_all_servers() -> None:
    members = [Member("h1", "a", True, EMPTY), Member("h2", "b"), Member("h3", "c")]
    [found] = _topology.founding_problems(members)
    assert (found["host"], found["fix"]) == ("h1", "run it without --limit")
    # A server that joins, or an agent, may be added alone.
    assert _topology.founding_problems([Member("h1", "a"), Member("h2", "b", True, EMPTY), Member("h3", "c")]) == []
    assert _topology.founding_problems([Member("h1", "a"), Member("h2", "b"), Member("h3", "c")]) == []


def test_sqlite_moves_to_etcd_only_when_somebody_says_so() -> None:
    members = servers({**FOUNDER, "datastore": "sqlite"}, EMPTY, EMPTY)
    [found] = _topology.founding_problems(members)
    assert "SQLite" in found["problem"] and "k3s_datastore: etcd" in found["fix"]
    assert _topology.founding_problems(members, "etcd") == []
    assert _topology.founding_problems(members[:1]) == []


def test_etcd_does_not_go_back() -> None:
    [found] = _topology.founding_problems(servers(FOUNDER), "sqlite")
    assert "cannot go back" in found["problem"]


CONFIG = {"secrets-encryption": True, "tls-san": ["a"]}


def test_servers_with_equal_settings_have_no_problem() -> None:
    assert _topology.equal_problems({"h1": CONFIG, "h2": {**CONFIG, "cluster-cidr": "10.42.0.0/16", "tls-san": ["b"]}}) == []
    assert _topology.equal_problems({}) == []


@pytest.mark.parametrize("key", _topology.CRITICAL_KEYS)
def test_each_critical_setting_is_compared(key: str) -> None:
    [found] = _topology.equal_problems({"h1": CONFIG, "h2": {**CONFIG, key: "other"}})
    assert found["host"] == "h2"
    assert found["problem"].startswith(f"{key} is other here")


def test_disabling_the_load_balancer_on_some_servers_is_a_critical_difference_too() -> None:
    [found] = _topology.equal_problems({"h1": {"disable": ["servicelb"]}, "h2": {"disable": ["traefik"]}})
    assert "servicelb" in found["problem"]
    assert _topology.equal_problems({"h1": {"disable": ["servicelb", "traefik"]}, "h2": {"disable": "servicelb"}}) == []


@pytest.mark.parametrize("key", sorted(_topology.FIXED_KEYS))
def test_what_k3s_cannot_change_is_refused_with_the_reason(key: str) -> None:
    [found] = _topology.fixed_problems("h1", {"token-file": "t", key: "before"}, {key: "after"}, "h1")
    assert f"{key} cannot be changed from before to after" in found["problem"]
    assert _topology.FIXED_KEYS[key] in found["problem"]
    assert found["fix"].startswith("set it back")
    # Given for the first time as what k3s does without it is no change.
    default = {**_topology.DEFAULTS, "node-name": "h1"}[key]
    assert _topology.fixed_problems("h1", {"token-file": "t"}, {key: default}, "h1") == []


def test_secrets_encryption_on_an_existing_cluster_is_refused() -> None:
    [found] = _topology.fixed_problems("h1", {"token-file": "t"}, {"secrets-encryption": True}, "h1")
    assert "from false to true: k3s encrypts Secrets from the first start on or never" in found["problem"]


def test_a_host_without_a_configuration_of_ours_is_not_judged_by_it() -> None:
    assert _topology.fixed_problems("h1", {}, {"secrets-encryption": True, "data-dir": "/x"}, "h1") == []


def test_versions_beside_each_other() -> None:
    assert _topology.version_problems({"h1": "v1.36.4+k3s1", "a1": "v1.35.9+k3s1"}, ["a1"]) == []
    [newer] = _topology.version_problems({"h1": "v1.36.4+k3s1", "a1": "v1.36.4+k3s2"}, ["a1"])
    assert "newer than the servers (v1.36.4+k3s1)" in newer["problem"]
    [mixed] = _topology.version_problems({"h1": "v1.36.4+k3s1", "h2": "v1.36.10+k3s1"}, [])
    assert "different versions (v1.36.4+k3s1, v1.36.10+k3s1)" in mixed["problem"]


# -- leaving ----------------------------------------------------------------------------------------------------------

THREE = {"h1": True, "h2": True, "h3": True}


@pytest.mark.parametrize(
    ("node", "members", "forced", "word"),
    [
        ("a1", THREE, False, ""),
        ("h1", {"h1": True}, True, "the only server"),
        ("h1", THREE, False, "remove_node_forced=true"),
        ("h1", THREE, True, ""),
        ("h3", {**THREE, "h3": False}, False, ""),
        ("h1", {**THREE, "h3": False}, True, "only 1 of 2 servers would be healthy"),
        ("h2", {"h1": True, "h2": True}, False, ""),
        ("h2", {"h1": False, "h2": True}, True, "only 0 of 1"),
        ("h5", {**THREE, "h4": True, "h5": True}, False, "remove_node_forced=true"),
    ],
)
def test_who_may_be_removed(node: str, members: dict[str, bool], forced: bool, word: str) -> None:
    said = _topology.removal_refusal(node, members, forced=forced)
    assert (word in said) if word else said == ""


@given(st.dictionaries(st.sampled_from(["h1", "h2", "h3", "h4", "h5"]), st.booleans(), min_size=1), st.booleans())
def test_no_removal_leaves_etcd_without_a_majority(members: dict[str, bool], forced: bool) -> None:
    for node in members:
        if not _topology.removal_refusal(node, members, forced=forced):
            rest = [healthy for name, healthy in members.items() if name != node]
            assert sum(rest) > len(rest) // 2


# -- the filter -------------------------------------------------------------------------------------------------------


def test_the_filter_takes_the_variables_of_hosts() -> None:
    hosts = [
        {"inventory_hostname": "h1", "ansible_host": "10.0.0.1", "_preflight_survey": {"survey": {"k3s": FOUNDER}}},
        {"inventory_hostname": "h2", "ansible_host": "10.0.0.2"},
    ]
    found = filters.k3s_place(hosts, "h2", EMPTY)
    assert found["founds"] is False
    assert found["candidates"] == [{"name": "h1", "url": "https://10.0.0.1:6443"}]
