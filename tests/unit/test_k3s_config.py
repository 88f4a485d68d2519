"""config.yaml of k3s: what is refused, and that what is written is read back as it was meant."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.hearth.plugins.filter import k3s as filters
from ansible_collections.homelab.hearth.plugins.module_utils import _k3s
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_playbooks import ansible

FIXTURES = Path(__file__).parent / "k3s_config"


def load(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("valid/*.yml")), ids=lambda p: p.stem)
def test_a_valid_configuration_has_no_problem(path: Path) -> None:
    fixture = load(path)
    assert _k3s.config_problems(fixture["config"], fixture["kind"], from_user=True) == []


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("invalid/*.yml")), ids=lambda p: p.stem)
def test_a_fault_is_named(path: Path) -> None:
    fixture = load(path)
    problems = _k3s.config_problems(fixture["config"], fixture["kind"], from_user=not fixture.get("from_role"))
    assert len(problems) == 1, problems
    assert fixture["says"] in problems[0]


def test_all_faults_are_said_at_once() -> None:
    with pytest.raises(AnsibleFilterError) as caught:
        filters.k3s_config({"flanel-backend": "none", "https-listen-port": "x"})
    assert "flanel-backend" in str(caught.value)
    assert "https-listen-port" in str(caught.value)


def test_something_else_than_a_mapping_is_refused() -> None:
    assert filters.k3s_config_problems(["a"]) == ["k3s_config must be a mapping, is a list"]


def test_an_agent_knows_no_key_that_only_servers_have() -> None:
    assert "cluster-init" not in _k3s.AGENT_KEYS
    assert "cluster-init" in _k3s.SERVER_KEYS
    shared = set(_k3s.AGENT_KEYS) - {"disable-apiserver-lb"}
    assert shared <= set(_k3s.SERVER_KEYS), "a server also runs an agent"


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=40)
VALUES = st.one_of(st.booleans(), st.integers(), TEXT, st.lists(TEXT, min_size=1, max_size=4))


@given(st.dictionaries(st.sampled_from(sorted(_k3s.SERVER_KEYS)), VALUES, max_size=6))
def test_what_is_rendered_is_read_back_unchanged(config: dict[str, Any]) -> None:
    """PyYAML reads YAML 1.1 like k3s does: unquoted, `on` would come back as true and 0600 as 384."""
    assert (yaml.safe_load(_k3s.render_config(config)) or {}) == config


@pytest.mark.parametrize("text", ["on", "yes", "0600", "1:30", "~", "null", "1e3", "a: b", "# x", "*", "{}", "é", "a\tb"])
def test_strings_that_yaml_reads_as_something_else_stay_strings(text: str) -> None:
    assert yaml.safe_load(_k3s.render_config({"node-name": text})) == {"node-name": text}


def test_rendering_is_stable() -> None:
    assert _k3s.render_config({"v": 1, "debug": True}) == _k3s.render_config({"debug": True, "v": 1})


# -- kubeconfig ---------------------------------------------------------------------------------------------------

KUBECONFIG = {
    "apiVersion": "v1",
    "clusters": [{"cluster": {"certificate-authority-data": "Q0E=", "server": "https://127.0.0.1:6443"}, "name": "default"}],
    "contexts": [{"context": {"cluster": "default", "user": "default"}, "name": "default"}],
    "current-context": "default",
    "kind": "Config",
    "users": [{"name": "default", "user": {"client-certificate-data": "Q0VSVA==", "client-key-data": "S0VZ"}}],
}


@pytest.mark.parametrize(
    ("address", "port", "url"),
    [
        ("10.0.0.10", 6443, "https://10.0.0.10:6443"),
        ("k3s.lan", 16443, "https://k3s.lan:16443"),
        ("2001:db8::1", 6443, "https://[2001:db8::1]:6443"),
        ("[2001:db8::1]", 6443, "https://[2001:db8::1]:6443"),
    ],
)
def test_the_kubeconfig_gets_the_right_address_and_a_name_of_its_own(address: str, port: int, url: str) -> None:
    made = yaml.safe_load(filters.k3s_kubeconfig(yaml.safe_dump(KUBECONFIG), address, port))
    assert made["clusters"][0]["cluster"]["server"] == url
    assert made["clusters"][0]["name"] == made["users"][0]["name"] == made["current-context"] == "hearth"
    assert made["contexts"] == [{"context": {"cluster": "hearth", "user": "hearth"}, "name": "hearth"}]
    assert made["users"][0]["user"] == KUBECONFIG["users"][0]["user"]  # type: ignore[index]


@pytest.mark.parametrize("text", ["", "[]", "clusters: []", "a: [", "kind: Config"])
def test_a_kubeconfig_of_another_shape_is_refused_without_its_content(text: str) -> None:
    with pytest.raises(AnsibleFilterError) as caught:
        filters.k3s_kubeconfig(text + "\n# S0VZ", "10.0.0.10")
    assert "another shape" in str(caught.value)
    assert "S0VZ" not in str(caught.value)


# -- what k3s says ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("k3s version v1.36.4+k3s1 (abcdef12)\ngo version go1.26\n", "v1.36.4+k3s1"),
        ("k3s version v1.36.3+k3s2 (standin)\ngo version go1.26\nstand-in\n", "v1.36.3+k3s2"),
        ("", ""),
        ("bash: k3s: command not found", ""),
    ],
)
def test_the_version_is_the_third_word(text: str, version: str) -> None:
    assert _k3s.parse_version(text) == version


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("Failed to validate connection to cluster at https://10.0.0.10:6443: connection refused", "cannot be reached"),
        ("Waiting to retrieve agent configuration; server is not ready: …", "not ready yet"),
        ("https://127.0.0.1:6444/v1-k3s/config: 401 Unauthorized", "token is wrong"),
        ("https://127.0.0.1:6444/v1-k3s/config: not authorized", "token is wrong"),
        ("token CA hash does not match the Cluster CA certificate hash: a != b", "another (or a rebuilt) cluster"),
        ("bootstrap data already found and encrypted with different token", "another token"),
        ("K3S_TOKEN is required to join a cluster", "needs the cluster's token"),
        ("Node password rejected, duplicate hostname or contents of '/etc/rancher/node/password' may not match", "this host name"),
        ("Failed to test etcd connection: duplicate node name found, please use a unique name", "this host name"),
        ("etcdserver: too many learner members in cluster", "at the same time"),
        ("critical configuration value mismatch between servers", "must be equal"),
        ("x509: certificate has expired or is not yet valid: current time", "clock"),
        ("/var/lib/rancher/k3s/server/tls/x newer than datastore and could cause a cluster outage", "old certificates"),
        ("only https:// URLs are supported, invalid scheme", "https://"),
        ("flag provided but not defined: -disable-kube-proxy", "config.yaml"),
        ("listen tcp :6443: bind: address already in use", "holds a port"),
        ("write /var/lib/x: no space left on device", "disk is full"),
        ("pids cgroup controller not found", "pids"),
        ("failed to find memory cgroup (v2)", "memory"),
    ],
)
def test_each_known_failure_has_a_named_cause(line: str, word: str) -> None:
    """The rows of the table of failures in the k3s contract, by their stable substrings."""
    cause = _k3s.named_cause(["level=info msg=started", f'level=fatal msg="{line}"'])
    assert word in cause


def test_the_last_words_are_the_errors_before_the_end_and_not_the_next_start() -> None:
    lines = ["I1121 hello", "E1121 09:44 port taken", "level=fatal msg=over", "k3s: Main process exited", "Starting", "level=error again"]
    assert _k3s.last_words(lines) == ["E1121 09:44 port taken", "level=fatal msg=over", "k3s: Main process exited"]
    assert _k3s.last_words(lines, count=1) == ["k3s: Main process exited"]
    assert _k3s.last_words(["a", "level=error msg=x", "b"]) == ["level=error msg=x"]


def test_a_log_without_errors_is_shown_by_its_end_and_long_lines_are_cut() -> None:
    assert _k3s.last_words(["a", "b", "c"], count=2) == ["b", "c"]
    assert _k3s.last_words([]) == []
    assert _k3s.last_words(["x" * 500]) == ["x" * 239 + "…"]


def test_the_last_line_decides_and_unknown_lines_have_no_cause() -> None:
    lines = ["server is not ready", "no space left on device", "goodbye"]
    assert "disk is full" in _k3s.named_cause(lines)
    assert _k3s.named_cause(["all is well"]) == ""
    assert _k3s.named_cause([]) == ""


@pytest.fixture
def fetched(tmp_path: Path) -> Path:
    path = tmp_path / "hearth.yaml"
    path.write_text(filters.k3s_kubeconfig(SOURCE, "10.0.0.10"))
    path.chmod(0o600)
    return path


SOURCE = yaml.safe_dump(KUBECONFIG)
FINGERPRINT = hashlib.sha256(SOURCE.encode()).hexdigest()


def test_a_kubeconfig_is_current_until_host_address_file_or_mode_change(fetched: Path) -> None:
    def current(sha256: str = FINGERPRINT, address: str = "10.0.0.10", **more: Any) -> bool:
        return bool(filters.k3s_kubeconfig_is_current(str(fetched), sha256, address, **more))

    assert current()
    assert not current(sha256="0" * 64), "the host's credentials were renewed"
    assert not current(sha256=""), "the host has none"
    assert not current(address="10.0.0.11")
    assert not current(port=6444)
    assert not current(name="other")
    fetched.chmod(0o644)
    assert not current(), "others may read it"
    fetched.chmod(0o600)
    text = fetched.read_text()
    fetched.write_text(text.replace("10.0.0.10", "10.0.0.12"))
    assert not current(), "somebody edited it"
    fetched.write_text(text.partition("\n")[2])
    assert not current(), "it is not ours"
    fetched.write_bytes(b"\xff")
    assert not current()
    fetched.unlink()
    assert not current()


def test_the_mark_of_a_kubeconfig_holds_no_credential(fetched: Path) -> None:
    first = fetched.read_text().partition("\n")[0]
    assert first.startswith("# Fetched by Ansible")
    assert FINGERPRINT not in first
    assert not any(value in first for value in ("Q0E=", "Q0VSVA==", "S0VZ"))


WANTS = """
- hosts: k3s_cluster
  gather_facts: false
  tasks:
    - ansible.builtin.include_role: {name: homelab.hearth.k3s, tasks_from: wants, public: true}
    - ansible.builtin.debug:
        msg: "{{ inventory_hostname }}: {{ _k3s_port }} {{ _k3s_wants.networks | map(attribute='cidr') | join(' ') }}"
"""


def test_agents_know_the_servers_port_and_networks_may_be_lists(tmp_path: Path) -> None:
    """The port is a setting of servers, refused on agents, which then asked at 6443; k3s takes networks as text or as a list."""
    local = {"ansible_connection": "local"}
    config = {"https-listen-port": 7443, "cluster-cidr": ["10.52.0.0/16", "fd52::/56"], "service-cidr": "10.53.0.0/16,fd53::/112"}
    groups = {"servers": {"hosts": {"h1": local}, "vars": {"k3s_config": config}}, "agents": {"hosts": {"a1": local}}}
    inventory, playbook = tmp_path / "hosts.json", tmp_path / "play.yml"
    inventory.write_text(json.dumps({"k3s_cluster": {"children": groups}}))
    playbook.write_text(WANTS)
    code, said = ansible(str(playbook), "-i", str(inventory))
    assert code == 0, said[-3000:]
    assert "h1: 7443 10.52.0.0/16 10.53.0.0/16" in said and "a1: 7443" in said
