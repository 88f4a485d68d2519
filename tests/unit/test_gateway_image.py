"""Which node builds the gateway's image and which take it from another: the expressions of roles/gateway, evaluated by Ansible."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

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


HASH = "0123456789abcdef"
INCLUDE = "ansible.builtin.include_tasks"


def run_tasks(tmp_path: Path, tasks: list[dict[str, Any]], **variables: Any) -> tuple[int, str]:
    """Tasks of the role on this machine, whose folder of images is images/ in tmp_path."""
    role = ROOT / "roles" / "gateway"
    playbook = tmp_path / "play.yml"
    (tmp_path / "templates").symlink_to(role / "templates")
    given = {"gateway_node_images_dir": str(tmp_path / "images"), "_gateway_fixed_hash": HASH, "_gateway_image_at": "", **variables}
    play = {
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "vars_files": [str(role / part / "main.yml") for part in ("defaults", "vars")],
        "tasks": [{"ansible.builtin.set_fact": given}, *tasks],
    }
    playbook.write_text(yaml.safe_dump([play]))
    inventory = tmp_path / "servers.json"
    inventory.write_text(json.dumps({"servers": {"hosts": {"localhost": {}}}}))
    return ansible(str(playbook), "-i", str(inventory))


def role_tasks(file: str) -> list[dict[str, Any]]:
    tasks: list[dict[str, Any]] = yaml.safe_load((ROOT / "roles" / "gateway" / "tasks" / file).read_text())
    return tasks


def with_included(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """In place of what includes a file, the tasks of that file."""
    return [step for task in tasks for step in (role_tasks(task[INCLUDE]) if INCLUDE in task else [task])]


@pytest.mark.parametrize("imports", [True, False])
def test_an_image_that_k3s_did_not_import_is_not_there_in_the_next_run(imports: bool, tmp_path: Path) -> None:
    """Its archive is what the next run goes by: left there, nothing would ever be tried again."""
    (tmp_path / "source.tar").write_text("an image")
    k3s = tmp_path / "k3s"
    k3s.write_text(f"#!/bin/sh\n{f'echo localhost/hearth/gateway:{HASH}' if imports else 'exit 0'}\n")
    k3s.chmod(0o755)
    for file in ("_image_hand_over.yml", "_image_failed.yml"):
        tasks = role_tasks(file)
        for task in tasks:
            if "retries" in task:
                task["retries"] = 1
                task["ansible.builtin.command"]["argv"][0] = str(k3s)
        (tmp_path / file).write_text(yaml.safe_dump(tasks))
    code, said = run_tasks(tmp_path, role_tasks("_image_take.yml"), _gateway_image_file=str(tmp_path / "source.tar"))
    left = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert (code == 0, left) == (imports, [f"hearth-gateway-{HASH}.tar"] if imports else []), said[-3000:]
    assert imports or "did not import" in said


def test_an_archive_gets_its_name_when_it_lies_on_the_disk() -> None:
    """The next run trusts the name. And a file that a killed run left half-written must not stop buildah, which adds to none."""
    for file in ("_image_build.yml", "_image_take.yml"):
        names = [task["name"] for task in with_included(role_tasks(file)[0]["block"])]
        assert names.index("Bring the file to the disk") + 1 == names.index("Hand the image to k3s"), file
    assert names.index("Copy the image") < names.index("Bring the file to the disk")
    names = [task["name"] for task in role_tasks("_image_build.yml")[0]["block"]]
    assert names.index("Remove what a run that was broken off left") < names.index("Write the image to a file")


@pytest.mark.parametrize(("listed", "refused"), [("right", False), ("wrong", True), ("", False)])
def test_a_bundled_image_is_what_the_list_beside_it_says(listed: str, refused: bool, tmp_path: Path) -> None:
    bundle, name = tmp_path / "bundle", f"hearth-gateway-{HASH}-amd64.tar"
    bundle.mkdir()
    (bundle / name).write_text("an image")
    right = hashlib.sha256(b"an image").hexdigest()
    lines = {"right": f"{'0' * 64}  k3s\n{right}  {name}\n", "wrong": f"{'0' * 64}  {name}\n"}
    if listed:
        (bundle / "SHA256SUMS").write_text(lines[listed])
    tasks = [task for task in role_tasks("_image_get.yml") if "bundle" in task["name"].lower() or "damaged" in task["name"]]
    looked = [task for task in tasks if INCLUDE not in task]
    assert len(looked) == 2
    survey = {"survey": {"system": {"architecture": "amd64"}}}
    code, said = run_tasks(tmp_path, looked, k3s_airgap_dir=str(bundle), _preflight_survey=survey)
    assert (code != 0, "Copy the bundle anew" in said) == (refused, refused), said[-3000:]


@pytest.mark.parametrize("deployed", [True, False])
def test_former_images_stay_where_the_gateway_was_not_deployed(deployed: bool, tmp_path: Path) -> None:
    """With --limit to another host than the first server the old version runs on: its pods would find no image at their next start."""
    former = str(tmp_path / "images" / "hearth-gateway-former.tar")
    tasks = role_tasks("image_tidy.yml")
    [removing] = [task for task in tasks if INCLUDE in task]
    removing["ansible.builtin.debug"] = {"msg": f"removing {removing.pop(INCLUDE)}"}
    facts: dict[str, Any] = {"_gateway_archives": {"survey": {"paths": {"globs": {"x": [former]}}}}}
    if deployed:
        facts["_gateway_answer"] = {"skipped": True}
    code, said = run_tasks(tmp_path, tasks, **facts)
    assert code == 0, said
    assert ("removing _image_tidy.yml" in said, "The gateway was not deployed" in said) == (deployed, not deployed), said[-2000:]
