"""What k3s on one host is told: a server's configuration and an agent's, the kubelet's, labels and taints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ansible_collections.homelab.hearth.plugins.filter import k3s as filters
from ansible_collections.homelab.hearth.plugins.module_utils import _k3s, _k3s_node, _topology
from hypothesis import given
from hypothesis import strategies as st

FIXTURES = Path(__file__).parent / "k3s_settings"
SETTINGS: dict[str, Any] = {
    "data_dir": "/var/lib/rancher/k3s",
    "node_name": "",
    "node_ips": [],
    "node_external_ips": [],
    "node_labels": [],
    "node_taints": [],
    "tls_sans": ["10.0.0.1"],
    "disabled": [],
    "secrets_encryption": True,
    "embedded_registry": False,
    "agent_token": False,
    "snapshots_enabled": True,
    "snapshot_schedule": "0 */12 * * *",
    "snapshot_retention": 5,
    "snapshot_dir": "",
    "s3": {},
    "kubelet_args": {},
    "apiserver_args": {},
    "log_max_mb": 10,
    "log_files": 3,
    "image_gc_high_percent": 85,
    "image_gc_low_percent": 80,
    "shutdown_grace_s": 150,
    "shutdown_critical_s": 20,
    "cis": False,
    "registries": {},
    "config": {},
}
EVERYTHING: dict[str, Any] = SETTINGS | {
    "data_dir": "/srv/k3s",
    "node_name": "n1",
    "node_ips": ["10.0.0.1"],
    "node_external_ips": ["192.0.2.1"],
    "node_labels": ["disk=ssd"],
    "node_taints": ["gpu=yes:NoSchedule"],
    "disabled": ["traefik"],
    "embedded_registry": True,
    "agent_token": True,
    "snapshot_dir": "/srv/snapshots",
    "s3": {"bucket": "b"},
    "kubelet_args": {"max-pods": 200},
    "apiserver_args": {"profiling": False},
    "cis": True,
}
FOUNDS, JOINS = {"founds": True, "etcd": True}, {"founds": False, "etcd": True}
URL = "https://10.0.0.1:6443"


def test_the_default_is_what_one_server_needs_and_no_more() -> None:
    assert _k3s_node.config("server", SETTINGS, {"founds": True, "etcd": False}) == {
        "token-file": "/etc/rancher/k3s/token",
        "write-kubeconfig-mode": "0600",
        "secrets-encryption": True,
        "tls-san": ["10.0.0.1"],
    }


def test_an_agent_is_told_where_to_go_and_how_to_prove_itself() -> None:
    made = _k3s_node.config("agent", SETTINGS, {"founds": False, "etcd": False}, URL)
    assert made == {"token-file": "/etc/rancher/k3s/token", "server": URL}


def test_only_the_founder_begins_a_cluster_and_only_joiners_name_a_server() -> None:
    founder, joiner = (_k3s_node.config("server", EVERYTHING, place, URL) for place in (FOUNDS, JOINS))
    assert founder["cluster-init"] is True and "server" not in founder
    assert joiner["server"] == URL and "cluster-init" not in joiner
    # All else is the same, so nothing critical can differ.
    assert {**founder, "server": URL} == {**joiner, "cluster-init": True}


@pytest.mark.parametrize("settings", [SETTINGS, EVERYTHING], ids=["default", "everything"])
@pytest.mark.parametrize(("kind", "place"), [("server", FOUNDS), ("server", JOINS), ("agent", JOINS)])
def test_what_is_made_is_what_k3s_takes(kind: str, place: dict[str, bool], settings: dict[str, Any]) -> None:
    made = _k3s_node.config(kind, settings, place, URL)
    assert _k3s.config_problems(made, kind) == []
    assert yaml.safe_load(_k3s.render_config(made)) == made


def test_no_key_of_servers_reaches_an_agent() -> None:
    """An agent that meets one exits (k3s#6565)."""
    assert set(_k3s_node.config("agent", EVERYTHING, JOINS, URL)) <= set(_k3s.AGENT_KEYS)


@pytest.mark.parametrize("key", sorted(set(_k3s.SERVER_KEYS) - set(_k3s.AGENT_KEYS) - set(_k3s.ROLE_KEYS) - set(_k3s.REFUSED_KEYS)))
def test_each_key_of_servers_is_refused_for_an_agent(key: str) -> None:
    [problem] = _k3s.config_problems({key: True}, "agent", from_user=True)
    assert problem == f"{key}: a setting of servers; an agent that meets it exits"


def test_every_key_that_has_a_variable_names_one_that_exists() -> None:
    specs = yaml.safe_load((Path(__file__).resolve().parents[2] / "roles/k3s/meta/argument_specs.yml").read_text())
    known = set(specs["argument_specs"]["main"]["options"])
    for key, variable in _k3s.ROLE_KEYS.items():
        assert not variable.startswith("k3s_") or variable in known, f"{key}: {variable}"


def test_a_persons_settings_come_on_top_and_arguments_add_up() -> None:
    settings = SETTINGS | {"cis": True, "config": {"kube-controller-manager-arg": "v=2", "flannel-backend": "none"}}
    made = _k3s_node.config("server", settings, FOUNDS)
    assert made["kube-controller-manager-arg"] == ["terminated-pod-gc-threshold=100", "v=2"]
    assert made["flannel-backend"] == "none"


def test_arguments_are_sorted_and_the_later_source_wins() -> None:
    assert _k3s_node.arguments({"b": 1, "a": False}, {"b": 2}) == ["a=false", "b=2"]


def test_snapshots_only_where_there_is_etcd() -> None:
    sqlite = _k3s_node.config("server", EVERYTHING, {"founds": True, "etcd": False})
    assert not [key for key in sqlite if key.startswith("etcd")]
    off = _k3s_node.config("server", EVERYTHING | {"snapshots_enabled": False}, FOUNDS)
    assert [key for key in off if key.startswith("etcd")] == ["etcd-disable-snapshots"]


def test_the_bucket_is_named_by_a_secret_alone() -> None:
    """With any other setting of S3 in the file k3s would not read the Secret."""
    secret = {"bucket": "b", "access_key": "fixture-access", "secret_key": "fixture-secret", "skip_ssl_verify": True}
    made = _k3s_node.config("server", EVERYTHING | {"s3": secret}, FOUNDS)
    assert {key for key in made if key.startswith("etcd-s3")} == {"etcd-s3", "etcd-s3-config-secret"}
    assert "fixture" not in json.dumps(made)
    assert filters.k3s_s3_data(secret) == {
        "etcd-s3-access-key": "fixture-access",
        "etcd-s3-bucket": "b",
        "etcd-s3-secret-key": "fixture-secret",
        "etcd-s3-skip-ssl-verify": "true",
    }


# -- CIS --------------------------------------------------------------------------------------------------------------


def test_the_cis_profile_has_every_remediation_of_the_guide() -> None:
    made = _k3s_node.config("server", SETTINGS | {"cis": True}, FOUNDS)
    assert made["protect-kernel-defaults"] is True
    flags = dict(argument.split("=", 1) for argument in made["kube-apiserver-arg"])
    assert flags["enable-admission-plugins"] == "NodeRestriction,EventRateLimit"
    assert {"audit-log-path", "audit-policy-file", "audit-log-maxage", "audit-log-maxbackup", "audit-log-maxsize"} <= set(flags)
    assert flags["service-account-extend-token-expiration"] == "false"
    kubelet = json.loads(_k3s_node.kubelet_config(SETTINGS | {"cis": True}))
    assert kubelet["streamingConnectionIdleTimeout"] == "5m"
    assert len(kubelet["tlsCipherSuites"]) == 6


def test_the_audit_policy_never_records_what_was_said() -> None:
    policy = yaml.safe_load((Path(__file__).resolve().parents[2] / "roles/k3s/files/audit-policy.yaml").read_text())
    assert {rule["level"] for rule in policy["rules"]} == {"None", "Metadata"}, "bodies of requests hold Secrets"
    assert policy["rules"][-1] == {"level": "Metadata"}


# -- the kubelet ------------------------------------------------------------------------------------------------------

KUBELET_SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind"],
    "properties": {
        "apiVersion": {"const": "kubelet.config.k8s.io/v1beta1"},
        "kind": {"const": "KubeletConfiguration"},
        "containerLogMaxSize": {"pattern": "^[0-9]+Mi$"},
        "containerLogMaxFiles": {"type": "integer", "minimum": 2},
        "imageGCHighThresholdPercent": {"type": "integer", "maximum": 100},
        "imageGCLowThresholdPercent": {"type": "integer", "minimum": 0},
        "shutdownGracePeriod": {"pattern": "^[0-9]+s$"},
        "shutdownGracePeriodCriticalPods": {"pattern": "^[0-9]+s$"},
        "streamingConnectionIdleTimeout": {"pattern": "^[0-9]+m$"},
        "tlsCipherSuites": {"type": "array", "items": {"type": "string"}},
    },
}


@pytest.mark.parametrize("settings", [SETTINGS, EVERYTHING])
def test_the_kubelets_file_has_its_shape(settings: dict[str, Any]) -> None:
    jsonschema.validate(json.loads(filters.k3s_kubelet_config(settings)), KUBELET_SCHEMA)


# -- registries -------------------------------------------------------------------------------------------------------


def test_the_embedded_mirror_serves_all_registries() -> None:
    given_mirrors: dict[str, Any] = {"mirrors": {"docker.io": {"endpoint": ["https://m.lan"]}}, "configs": {"m.lan": {}}}
    assert filters.k3s_registries(SETTINGS) == {}
    assert filters.k3s_registries(SETTINGS | {"registries": given_mirrors}) == given_mirrors
    made = filters.k3s_registries(SETTINGS | {"registries": given_mirrors, "embedded_registry": True})
    assert made == {"mirrors": {"*": {}, **given_mirrors["mirrors"]}, "configs": {"m.lan": {}}}


# -- variables --------------------------------------------------------------------------------------------------------


def test_the_defaults_have_no_problem() -> None:
    for kind in ("server", "agent"):
        assert filters.k3s_settings_problems(SETTINGS, kind) == []
        assert filters.k3s_settings_problems(EVERYTHING, kind) == []


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("invalid/*.yml")), ids=lambda p: p.stem)
def test_a_wrong_setting_is_named(path: Path) -> None:
    fixture = yaml.safe_load(path.read_text())
    [problem] = _k3s_node.settings_problems(fixture.get("kind", "server"), SETTINGS | fixture["settings"])
    assert fixture["says"] in problem


def test_each_fixed_key_is_one_that_k3s_knows() -> None:
    assert set(_topology.FIXED_KEYS) | set(_topology.CRITICAL_KEYS) <= set(_k3s.SERVER_KEYS)


# -- what lies on a host ----------------------------------------------------------------------------------------------


VALUES = st.one_of(st.booleans(), st.integers(), st.text(), st.lists(st.text(), min_size=1))


@given(st.dictionaries(st.sampled_from(sorted(_k3s.SERVER_KEYS)), VALUES))
def test_our_own_file_is_read_back_without_a_parser(config: dict[str, Any]) -> None:
    assert _k3s.read_own_config(_k3s.render_config(config)) == config


@pytest.mark.parametrize("text", ["", "# nothing", "flannel-backend: none", "a: [1\nb", "\x00", "  - x", "node-label:\n  - a=b"])
def test_a_file_of_another_make_tells_nothing_and_breaks_nothing(text: str) -> None:
    assert _k3s.read_own_config(text) in ({}, {"node-label": []})


# -- labels and taints ------------------------------------------------------------------------------------------------


def node(labels: dict[str, str] | None = None, taints: list[dict[str, str]] | None = None, /, **notes: str) -> dict[str, Any]:
    annotations = {f"hearth.homelab/{name}": text for name, text in notes.items()}
    return {"metadata": {"name": "h1", "labels": labels or {}, "annotations": annotations}, "spec": {"taints": taints or []}}


GPU = {"key": "gpu", "value": "yes", "effect": "NoSchedule"}
CORDON = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}


def test_nothing_wanted_and_nothing_remembered_is_nothing_to_do() -> None:
    assert filters.k3s_node_change(node({"kubernetes.io/arch": "amd64"}, [CORDON])) == {}
    assert filters.k3s_node_change({}) == {}


def test_a_label_is_set_and_remembered() -> None:
    change = filters.k3s_node_change(node({"kubernetes.io/arch": "amd64"}), ["disk=ssd"], ["gpu=yes:NoSchedule"])
    assert change["labels"] == {"disk": "ssd"}
    assert change["annotations"] == {"hearth.homelab/labels": "disk", "hearth.homelab/taints": "gpu:NoSchedule"}
    after = _k3s_node.with_change(node({"kubernetes.io/arch": "amd64"}), change)
    assert filters.k3s_node_change(after, ["disk=ssd"], ["gpu=yes:NoSchedule"]) == {}
    assert after["metadata"]["labels"] == {"kubernetes.io/arch": "amd64", "disk": "ssd"}


def test_what_leaves_the_inventory_leaves_the_node_and_only_that() -> None:
    before = node({"disk": "ssd", "theirs": "1"}, [GPU, CORDON], labels="disk", taints="gpu:NoSchedule")
    after = _k3s_node.with_change(before, filters.k3s_node_change(before))
    assert after["metadata"]["labels"] == {"theirs": "1"}
    assert after["spec"]["taints"] == [CORDON]
    assert after["metadata"]["annotations"] == {}


def test_a_taint_with_another_value_replaces_the_old_one() -> None:
    before = node(None, [GPU])
    after = _k3s_node.with_change(before, filters.k3s_node_change(before, [], ["gpu=no:NoSchedule"]))
    assert after["spec"]["taints"] == [{**GPU, "value": "no"}]


def test_a_node_that_a_broken_run_emptied_is_opened() -> None:
    assert filters.k3s_node_change(node(emptied="true"))["unschedulable"] is False


NAMES = st.sampled_from(["a", "b", "c", "d"])


@given(st.dictionaries(NAMES, st.text("xyz", max_size=2)), st.dictionaries(NAMES, st.text("xyz", max_size=2)), st.sets(NAMES))
def test_a_change_brings_a_node_to_where_there_is_nothing_to_do(
    present: dict[str, str], wanted: dict[str, str], remembered: set[str]
) -> None:
    labels = [f"{name}={value}" for name, value in wanted.items()]
    before = node(present, labels=",".join(sorted(remembered)))
    after = _k3s_node.with_change(before, filters.k3s_node_change(before, labels))
    assert filters.k3s_node_change(after, labels) == {}
    theirs = {name: value for name, value in present.items() if name not in wanted and name not in remembered}
    assert theirs.items() <= after["metadata"]["labels"].items()
