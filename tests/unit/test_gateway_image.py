"""Which node builds the gateway's image and which take it from another: the expressions of roles/gateway, evaluated by Ansible."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.test_playbooks import ROOT, ansible

PLAYBOOK = """
- hosts: nodes
  gather_facts: false
  vars_files: [{role}/vars/main.yml]
  tasks:
    - ansible.builtin.set_fact:
        _preflight_survey: {{survey: {{system: {{architecture: "{{{{ given_architecture }}}}"}}}}}}
        _gateway_image_at: "{{{{ given_image }}}}"
    - ansible.builtin.debug:
        msg: "said={{{{ [inventory_hostname, _gateway_image_source, _gateway_image_owners | length, _gateway_image_siblings | length]
          | to_json }}}}"
"""


@pytest.mark.parametrize(
    ("nodes", "sources"),
    [
        ({"a": ("amd64", "")}, {"a": "a"}),
        ({"a": ("amd64", ""), "b": ("amd64", ""), "c": ("amd64", "")}, {"a": "a", "b": "a", "c": "a"}),
        # A node that joined: what is there already is not built again.
        ({"a": ("amd64", ""), "b": ("amd64", "/images/x.tar")}, {"a": "b", "b": "b"}),
        ({"a": ("amd64", ""), "b": ("arm64", ""), "c": ("arm64", ""), "d": ("amd64", "")}, {"a": "a", "b": "b", "c": "b", "d": "a"}),
        ({"a": ("amd64", "/images/x.tar"), "b": ("arm64", "")}, {"a": "a", "b": "b"}),
    ],
    ids=["one", "three", "joined", "mixed", "first of its kind"],
)
def test_one_node_of_an_architecture_builds_for_all(nodes: dict[str, tuple[str, str]], sources: dict[str, str], tmp_path: Path) -> None:
    hosts = {
        name: {"ansible_connection": "local", "given_architecture": architecture, "given_image": image}
        for name, (architecture, image) in nodes.items()
    }
    inventory, playbook = tmp_path / "hosts.json", tmp_path / "play.yml"
    inventory.write_text(json.dumps({"nodes": {"hosts": hosts}}))
    playbook.write_text(PLAYBOOK.format(role=ROOT / "roles" / "gateway"))
    code, said = ansible(str(playbook), "-i", str(inventory))
    assert code == 0, said
    found = {}
    for part in said.split("said=")[1:]:
        host, source, owners, siblings = json.loads(part[: part.index("]") + 1].replace('\\"', '"'))
        found[host] = source
        assert owners == sum(bool(image) and arch == nodes[host][0] for arch, image in nodes.values())
        assert siblings == sum(arch == nodes[host][0] for arch, _image in nodes.values())
    assert found == sources
