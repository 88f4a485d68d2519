"""The inventories that people copy: few lines to fill in, and each place that was forgotten is told by its name."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.test_playbooks import ROOT, ansible

INVENTORIES = ("thinkcentre", "thinkcentre_three", "graviton", "existing_cluster")
FILLED = {"existing_cluster": {"k3s_kubeconfig": "/nonexistent/kubeconfig", "gateway_storage_class": "standard", "gateway_image": ""}}


def copied(name: str, folder: Path) -> Path:
    target = folder / name
    shutil.copytree(ROOT / "inventories" / name, target)
    return target


def preflight(inventory: Path, folder: Path, *arguments: str) -> str:
    """What preflight says of an inventory, in one line. Nothing listens where the hosts are said to be."""
    playbook = folder / "preflight.yml"
    playbook.write_text("- hosts: all\n  gather_facts: false\n  roles: [homelab.hearth.preflight]\n")
    code, said = ansible("-i", str(inventory), str(playbook), *arguments)
    assert code != 0, said
    assert "changed=0" in said
    return said


@pytest.mark.parametrize("name", INVENTORIES)
def test_there_is_one_file_to_edit_and_it_is_short(name: str) -> None:
    lines = (ROOT / "inventories" / name / "hosts.yml").read_text().splitlines()
    assert len(lines) <= 15
    others = (ROOT / "inventories" / name / "group_vars" / "all" / "main.yml").read_text()
    assert "CHANGE-ME" not in others, "what has to be filled in stands in one file"
    assert (ROOT / "inventories" / name / "group_vars" / "all" / "vault.yml.example").exists()


@pytest.mark.parametrize("name", INVENTORIES)
def test_every_place_that_was_not_filled_in_is_named_before_any_host_is_asked(name: str, tmp_path: Path) -> None:
    inventory = copied(name, tmp_path)
    text = (inventory / "hosts.yml").read_text()
    said = preflight(inventory, tmp_path)
    assert "UNREACHABLE" not in said
    for variable in set(re.findall(r"(\w+): CHANGE-ME", text)):
        assert f"{variable} was not filled in" in said.replace("Ansible_", "ansible_"), said
    assert "Nothing has been changed" in said


@pytest.mark.parametrize("name", ["thinkcentre", "thinkcentre_three", "graviton"])
def test_filled_in_it_goes_on_to_the_hosts(name: str, tmp_path: Path) -> None:
    """192.0.2.0/24 belongs to nobody, so the next thing that is wrong is that nobody answers there."""
    inventory = copied(name, tmp_path)
    hosts = inventory / "hosts.yml"
    hosts.write_text(hosts.read_text().replace("CHANGE-ME", "192.0.2.1"))
    said = preflight(inventory, tmp_path, "-T", "1")
    assert "does not answer over ssh" in said or "UNREACHABLE" in said, said


def test_a_cluster_that_is_there_is_asked_for_what_it_lacks(tmp_path: Path) -> None:
    inventory = copied("existing_cluster", tmp_path)
    hosts: dict[str, Any] = yaml.safe_load((inventory / "hosts.yml").read_text())
    hosts["servers"]["vars"] = FILLED["existing_cluster"]
    (inventory / "hosts.yml").write_text(yaml.safe_dump(hosts))
    said = preflight(inventory, tmp_path)
    assert "There is no kubeconfig at /nonexistent/kubeconfig" in said
    assert "no image can be built on them" in said


def test_the_gravitons_data_lie_on_a_disk_of_their_own_and_go_to_a_bucket_without_keys() -> None:
    chosen = yaml.safe_load((ROOT / "inventories/graviton/group_vars/all/main.yml").read_text())
    assert chosen["k3s_data_dir"].startswith(chosen["k3s_data_mount"] + "/")
    assert chosen["k3s_datastore"] == "etcd"
    assert not {"access_key", "secret_key"} & set(chosen["k3s_etcd_s3"])
