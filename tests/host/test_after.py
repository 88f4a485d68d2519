"""After the roles preflight and host: what an operator finds on the host, by testinfra, and how preflight refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest
import testinfra
import yaml

from tests.cluster.observe import differences
from tests.cluster.support import ROOT, play
from tests.host.test_before import BED, BEFORE


@pytest.fixture(scope="module")
def host() -> Any:
    return testinfra.get_host("ssh://h1", ssh_config=str(BED.state / "ssh_config"))


def test_packages_are_installed(host: Any) -> None:
    assert host.package("buildah").is_installed


def test_kernel_settings_are_written_and_set(host: Any) -> None:
    defaults = yaml.safe_load((ROOT / "roles" / "host" / "defaults" / "main.yml").read_text())["host_sysctl"]
    assert defaults
    for name, value in defaults.items():
        assert str(host.sysctl(name)) == str(value), name


def test_a_second_run_and_a_check_run_change_nothing() -> None:
    before = BED.observe("files")
    for extra in ((), ("--check", "--diff")):
        run = play("molecule/default/converge.yml", BED.inventory, *extra)
        assert run.rc == 0, run.output[-4000:]
        assert run.count("changed") == 0, run.output[-4000:]
    assert differences(before, BED.observe("files")) == []


# Each wrong value, and the words of the sentence that must name it.
WRONG = {
    "an unknown k3s setting": ({"k3s_config": {"node-labell": ["a=b"]}}, ["node-labell", "node-label"]),
    "a host name in a config that is a secret": ({"k3s_config": {"token": "abc"}}, ["token"]),
    "a version nobody has a checksum for": ({"k3s_version": "v1.36.99+k3s1", "k3s_sha256": {}}, ["v1.36.99+k3s1"]),
    "a release address that answers nothing": ({"k3s_release_url": "https://127.0.0.1:9/none"}, ["127.0.0.1:9"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_preflight_refuses_with_a_sentence_and_touches_nothing(name: str) -> None:
    variables, words = WRONG[name]
    before = BED.observe("files")
    run = play("playbooks/site.yml", BED.inventory, "-e", json.dumps(variables))
    assert run.rc != 0, run.output[-3000:]
    for word in words:
        assert word in run.output, run.output[-3000:]
    assert "Traceback" not in run.output
    assert differences(before, BED.observe("files")) == []


def test_a_taken_port_is_named_with_its_owner_and_all_problems_come_at_once() -> None:
    BED.ssh("systemd-run -q --unit=squatter python3 -m http.server 6443")
    try:
        run = play("playbooks/site.yml", BED.inventory, "-e", json.dumps({"k3s_version": "v1.36.99+k3s1", "k3s_sha256": {}}))
    finally:
        BED.ssh("systemctl stop squatter")
    assert run.rc != 0
    assert "6443" in run.output, run.output[-3000:]
    assert "python3" in run.output, "the program that holds the port is not named"
    assert "v1.36.99+k3s1" in run.output, "only the first problem is told"


def test_reset_leaves_the_host_as_it_was() -> None:
    run = play("playbooks/reset.yml", BED.inventory, "-e", "reset_confirmed=true")
    assert run.rc == 0, run.output[-4000:]
    assert differences(json.loads(BEFORE.read_text()), BED.observe("files")) == []
