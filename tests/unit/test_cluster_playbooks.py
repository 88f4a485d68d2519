"""The playbooks about hosts and nodes, and what roles and modules must never do: read as text and as YAML.

That they work is shown on the bed (tests/cluster/test_topology.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.homelab.hearth.plugins.filter import k3s as filters

from tests.unit.test_playbooks import ROOT, ansible

PLAYBOOKS = ("cluster", "upgrade", "remove_node", "cluster_restore", "reset")
CODE = [
    path
    for folder in ("roles", "plugins", "playbooks")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".yml", ".sh", ".j2") and "__pycache__" not in path.parts
]


def tasks_of(text: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    def walk(items: list[dict[str, Any]]) -> None:
        for item in items:
            found.append(item)
            for part in ("tasks", "pre_tasks", "block", "rescue", "always"):
                walk(item.get(part) or [])

    walk(yaml.safe_load(text) or [])
    return found


def role_task(file: str, name: str) -> dict[str, Any]:
    tasks = tasks_of((ROOT / "roles" / "k3s" / "tasks" / file).read_text())
    return next(task for task in tasks if task.get("name") == name)


def test_ansible_understands_them() -> None:
    code, said = ansible("--syntax-check", *[f"playbooks/{name}.yml" for name in PLAYBOOKS])
    assert code == 0, said


def test_servers_come_one_after_another_and_the_first_failure_stops_them() -> None:
    look, servers, agents = yaml.safe_load((ROOT / "playbooks" / "cluster.yml").read_text())
    # The look is on all at once, and changes nothing.
    assert "serial" not in look
    settled = role_task("settled.yml", "Compare files and process with what they shall be")
    assert settled["check_mode"] is True
    assert servers["serial"] == 1
    assert "serial" not in agents
    # A batch all of whose hosts failed ends the run. With this, one that cannot be reached counts twice, and the next begins.
    assert "any_errors_fatal" not in servers


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "Which node? -e node=NAME"),
        (("-e", "node=h9"), "Which node? -e node=NAME"),
    ],
)
def test_a_node_that_nobody_knows_is_not_removed(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    inventory = tmp_path / "hosts.yml"
    inventory.write_text("all: {children: {k3s_cluster: {children: {servers: {hosts: {h1: {ansible_connection: local}}}, agents: {}}}}}\n")
    code, said = ansible("-i", str(inventory), "playbooks/remove_node.yml", *arguments)
    assert code != 0
    assert says in said or "Could not match supplied host pattern" in said
    assert "changed=0" in said or "changed=" not in said


def test_a_node_is_not_removed_with_a_limit(tmp_path: Path) -> None:
    """The plays on this machine would be left out: a run without any failure that removes nothing."""
    inventory = tmp_path / "hosts.yml"
    inventory.write_text("all: {children: {k3s_cluster: {children: {servers: {hosts: {h1: {ansible_connection: local}}}, agents: {}}}}}\n")
    code, said = ansible("-i", str(inventory), "playbooks/remove_node.yml", "-e", "node=h1", "--limit", "h1")
    assert code != 0 and "Run it without --limit" in said, said[-2000:]


@pytest.mark.parametrize(
    ("reached", "seen", "says"),
    [
        # The inventory calls the dead host otherwise than it called itself: its node and its member of etcd would stay.
        (False, {"exists": False, "ready": False, "refused": ""}, "the cluster has no node h2. If it is called otherwise"),
        (False, {"exists": True, "ready": True, "refused": ""}, "its node h2 is Ready: k3s would go on there"),
        (False, {"exists": True, "ready": False, "refused": ""}, ""),
        (True, {"exists": False, "ready": False, "refused": ""}, ""),
        (True, {"exists": True, "ready": True, "refused": ""}, ""),
    ],
    ids=["unknown", "alive", "dead", "never joined", "answers"],
)
def test_a_host_that_does_not_answer_is_forgotten_only_when_its_node_is_known_to_be_dead(
    reached: bool, seen: dict[str, Any], says: str, tmp_path: Path
) -> None:
    plays = yaml.safe_load((ROOT / "playbooks" / "remove_node.yml").read_text())
    step = next(play for play in plays if play["name"] == "Send the pods away")
    facts = {"_removal_seen": seen, "_removal_reached": reached, "_removal_name": "h2"}
    step["hosts"], step["connection"] = "localhost", "local"
    judged = [task for task in step["tasks"] if "homelab.hearth.cluster_node" not in task]
    step["tasks"] = [{"ansible.builtin.set_fact": facts}, *judged, {"ansible.builtin.debug": {"msg": "its pods go"}}]
    playbook = tmp_path / "play.yml"
    playbook.write_text(yaml.safe_dump([step]))
    code, said = ansible(str(playbook), "-e", "node=h2")
    assert (code != 0, says in said, "its pods go" in said) == (bool(says), True, not says), said[-3000:]
    assert not says or "Nothing was changed" in said


def test_a_restore_asks_first_and_for_a_snapshot(tmp_path: Path) -> None:
    inventory = tmp_path / "hosts.yml"
    inventory.write_text("all: {children: {k3s_cluster: {children: {servers: {hosts: {h1: {ansible_connection: local}}}, agents: {}}}}}\n")
    for given, says in (("restore_confirmed=true", "Which snapshot?"), ("snapshot=x restore_confirmed=no", "answer yes")):
        code, said = ansible("-i", str(inventory), "playbooks/cluster_restore.yml", "-e", given)
        assert code != 0 and says in said and "Nothing was touched" in said


def test_a_restore_names_no_other_server() -> None:
    """`server:` in its configuration makes k3s refuse (k3s#8488); the token is that of the snapshot (k3s#8497)."""
    files = role_task("restore.yml", "Install binary and files")
    assert files["vars"]["_k3s_place"]["founds"] is True
    assert files["vars"]["_k3s_place"]["server"] == ""
    refused = role_task("restore.yml", "Refuse without the token of the snapshot's cluster")
    assert "k3s_token" in refused["when"]
    restored = role_task("restore.yml", "Restore")
    assert "membership has been reset" in restored["failed_when"]


def test_a_reset_of_some_hosts_leaves_the_kubeconfig_of_the_cluster_that_goes_on(tmp_path: Path) -> None:
    """Otherwise nobody could let anybody in, until the next run of site.yml."""
    [reset] = yaml.safe_load((ROOT / "playbooks" / "reset.yml").read_text())
    taken = next(task for task in reset["tasks"] if task["name"] == "Take k3s off the host")
    kept = taken["vars"]["k3s_kubeconfig_kept"]
    hosts = {name: {"ansible_connection": "local"} for name in ("h1", "h2", "h3", "h4")}
    groups = {"servers": {"hosts": {name: hosts[name] for name in ("h1", "h2", "h3")}}, "agents": {"hosts": {"h4": hosts["h4"]}}}
    inventory, playbook = tmp_path / "hosts.json", tmp_path / "play.yml"
    inventory.write_text(json.dumps({"k3s_cluster": {"children": groups}}))
    say = {"ansible.builtin.debug": {"msg": f"kept={kept}"}}
    playbook.write_text(yaml.safe_dump([{"hosts": "k3s_cluster", "gather_facts": False, "vars": reset["vars"], "tasks": [say]}]))
    for limit, said_kept in (("h4", True), ("h2", True), ("h1,h2,h3", False), ("all", False)):
        code, said = ansible(str(playbook), "-i", str(inventory), "--limit", limit)
        assert code == 0 and f"kept={said_kept}" in said and f"kept={not said_kept}" not in said, f"{limit}: {said}"


@pytest.mark.parametrize(
    ("limit", "active", "datastore", "refused"),
    [("h2", True, "etcd", True), ("h2", False, "etcd", False), ("h4", True, "", False), ("all", True, "etcd", False)],
    ids=["a living server", "a stopped server", "an agent", "all"],
)
def test_a_reset_takes_no_running_server_from_the_others(tmp_path: Path, limit: str, active: bool, datastore: str, refused: bool) -> None:
    """Its member of etcd would stay, and count."""
    [reset] = yaml.safe_load((ROOT / "playbooks" / "reset.yml").read_text())
    judged = next(task for task in reset["tasks"] if task["name"] == "Refuse to take a running server from the others")
    found = {"ansible.builtin.set_fact": {"_reset_survey": {"survey": {"k3s": {"active": active, "datastore": datastore}}}}}
    hosts: dict[str, Any] = {name: {"ansible_connection": "local"} for name in ("h1", "h2", "h4")}
    groups = {"servers": {"hosts": {name: hosts[name] for name in ("h1", "h2")}}, "agents": {"hosts": {"h4": hosts["h4"]}}}
    inventory, playbook = tmp_path / "hosts.json", tmp_path / "play.yml"
    inventory.write_text(json.dumps({"k3s_cluster": {"children": groups}}))
    playbook.write_text(yaml.safe_dump([{"hosts": "k3s_cluster", "gather_facts": False, "vars": reset["vars"], "tasks": [found, judged]}]))
    code, said = ansible(str(playbook), "-i", str(inventory), "--limit", limit)
    assert (code != 0, "remove_node.yml -e node=h2" in " ".join(said.split())) == (refused, refused), said[-3000:]


RESTORE = """
- hosts: servers
  gather_facts: false
  tasks:
    - ansible.builtin.set_fact:
        _preflight_survey: {survey: {k3s: {datastore: "{{ given_datastore }}", token_file: "{{ given_token | bool }}"}}}
    - ansible.builtin.include_role: {name: homelab.hearth.k3s, tasks_from: restore_check}
    - ansible.builtin.debug: {msg: "goes on with {{ k3s_snapshot }}"}
"""


def test_what_cannot_be_restored_is_told_while_the_cluster_still_runs(tmp_path: Path) -> None:
    """Before this was asked, a misspelt name cost the data of all servers but one."""
    page = b"x" * 512
    (tmp_path / "snapshot").write_bytes(page + hashlib.sha256(page).digest())
    (tmp_path / "cut").write_bytes(page)
    (tmp_path / "empty").touch()
    here = os.path.relpath(tmp_path / "snapshot", ROOT)
    cases = {
        "missing": (tmp_path / "snapsot", "etcd", True, "There is no snapshot"),
        "relative": ("etc/passwd", "etcd", True, "There is no snapshot"),
        "folder": (tmp_path, "etcd", True, "is no snapshot"),
        "empty": (tmp_path / "empty", "etcd", True, "is no snapshot"),
        "cut": (tmp_path / "cut", "etcd", True, "is not whole"),
        "sqlite": (here, "sqlite", True, "whose data are in SQLite"),
        "tokenless": (here, "", False, "this host has none. Give it as k3s_token"),
        "good": (here, "etcd", True, ""),
    }
    hosts = {
        name: {"k3s_snapshot": str(path), "given_datastore": datastore, "given_token": token, "ansible_connection": "local",
               "ansible_python_interpreter": sys.executable}
        for name, (path, datastore, token, _says) in cases.items()
    }  # fmt: skip
    inventory, playbook = tmp_path / "hosts.json", tmp_path / "play.yml"
    inventory.write_text(json.dumps({"servers": {"hosts": hosts}}))
    playbook.write_text(RESTORE)
    code, said = ansible(str(playbook), "-i", str(inventory))
    assert code != 0
    assert f"goes on with {here}" in said, said[-3000:]
    for name, (_path, _datastore, _token, says) in cases.items():
        failed = re.search(rf"fatal: \[{name}\]: FAILED! => .*?msg: (.*?)(?=fatal:|TASK|PLAY)", said)
        assert bool(failed) == bool(says), f"{name}: {said[-3000:]}"
        assert failed is None or (says in failed[1] and "Nothing was touched" in failed[1]), failed[1]


UNDO = f"""
- hosts: all
  gather_facts: false
  vars_files: ["{ROOT}/roles/k3s/vars/main.yml"]
  vars: {{_k3s_survey: {{survey: {{k3s: {{datastore: "{{{{ before }}}}"}}}}}}}}
  tasks:
    - ansible.builtin.find: {{paths: "{{{{ k3s_data_dir }}}}/server/db", patterns: etcd-old-*, file_type: directory}}
      register: _k3s_aside_before
    - block:
        - name: Restore
          ansible.builtin.command:
            argv: [sh, -c, "cd $0/server/db; {{{{ does }}}}; echo level=fatal >&2; exit 1", "{{{{ k3s_data_dir }}}}"]
      rescue:
        - ansible.builtin.include_tasks: "{ROOT}/roles/k3s/tasks/_restore_undo.yml"
"""


def test_a_restore_that_fails_leaves_the_first_server_its_data(tmp_path: Path) -> None:
    """k3s puts them aside before it reads the snapshot; with none there, its next start would found an empty cluster."""
    cases = {
        "moved": ("etcd", "mv etcd etcd-old-2; mkdir etcd; echo half >etcd/data"),
        "gone": ("etcd", "mv etcd etcd-old-2"),
        "untouched": ("etcd", "true"),
        "bare": ("", "mkdir etcd; echo half >etcd/data"),
    }
    hosts = {}
    for name, (before, does) in cases.items():
        data = tmp_path / name / "server" / "db"
        (data / "etcd-old-1").mkdir(parents=True)
        if before:
            (data / "etcd").mkdir()
            (data / "etcd" / "data").write_text("all")
        (data.parent / "token-before-restore").write_text("token")
        hosts[name] = {"k3s_data_dir": str(tmp_path / name), "before": before, "does": does, "ansible_connection": "local",
                       "ansible_python_interpreter": sys.executable}  # fmt: skip
    inventory, playbook = tmp_path / "hosts.json", tmp_path / "play.yml"
    inventory.write_text(json.dumps({"all": {"hosts": hosts}}))
    playbook.write_text(UNDO)
    (tmp_path / "templates").symlink_to(ROOT / "roles/k3s/templates")
    code, said = ansible(str(playbook), "-i", str(inventory))
    assert code != 0
    for name, (before, _does) in cases.items():
        data = tmp_path / name / "server" / "db"
        assert sorted(path.name for path in data.iterdir()) == (["etcd"] if before else []) + ["etcd-old-1"], f"{name}: {said[-3000:]}"
        assert not before or (data / "etcd" / "data").read_text() == "all", name
        assert (data.parent / "token").read_text() == "token"
        assert f"not restored (restore). {name} has the data that it had before" in " ".join(said.split()), said[-3000:]


def test_a_restore_that_fails_leaves_the_other_servers_their_data() -> None:
    plays = yaml.safe_load((ROOT / "playbooks" / "cluster_restore.yml").read_text())
    steps = re.findall(r"'tasks_from': '(\w+)'", str(plays))
    assert steps == ["restore_check", "restore_stop", "restore", "restore_clear"]
    for step in steps[:3]:
        tasks = tasks_of((ROOT / f"roles/k3s/tasks/{step}.yml").read_text())
        assert [task for task in tasks if "db/etcd" in str(task)] == []
    restored = next(play for play in plays if "restore'" in str(play))
    assert restored["any_errors_fatal"] is True


def test_the_data_are_copied_before_an_upgrade_and_a_node_emptied_before_its_restart() -> None:
    names = [task.get("name") for task in tasks_of((ROOT / "roles/k3s/tasks/_upgrade.yml").read_text())]
    assert names == ["Keep what there is before the upgrade", "Send the pods elsewhere before the upgrade"]
    names = [task.get("name") for task in tasks_of((ROOT / "roles/k3s/tasks/main.yml").read_text())]
    # The binary comes after both: a rerun after one of them failed takes its version for the one that runs, and would go on
    # without copy and without emptying.
    order = [
        "Get ready for the upgrade",
        "Install binary and files",
        "Run k3s",
        "Set labels and taints, and let pods in again",
    ]
    assert [name for name in names if name in order] == order


def test_no_secret_is_read_in_the_open() -> None:
    for file in ("_join_server.yml", "_kubeconfig.yml"):
        for task in tasks_of((ROOT / "roles" / "k3s" / "tasks" / file).read_text()):
            if "ansible.builtin.slurp" in task:
                assert task["no_log"] is True, task["name"]


def test_nothing_asks_for_health_without_credentials() -> None:
    """k3s answers 401 to /readyz and /livez without them, so such a check says nothing (k3s#3576)."""
    for path in CODE:
        for line in path.read_text().splitlines():
            assert not re.search(r"(curl|get_url|uri:|urlopen).*/(readyz|livez|healthz)", line), f"{path.name}: {line}"


def test_k3s_is_called_by_its_full_path() -> None:
    """A distribution's kubectl may come first, and sudo's path lacks /usr/local/bin."""
    by_name = re.compile(r"(argv: \[|run_command\(\[|cmd: |command: )[\"']?(k3s|kubectl|crictl|ctr)\b")
    for path in CODE:
        if path.suffix == ".py" or "/tasks/" in str(path):
            for line in path.read_text().splitlines():
                assert not by_name.search(line), f"{path.name}: {line}"


# -- the plan of an upgrade -------------------------------------------------------------------------------------------


def host(name: str, installed: str, wanted: str = "v1.36.4+k3s1") -> dict[str, Any]:
    return {
        "inventory_hostname": name,
        "_preflight_survey": {"survey": {"k3s": {"version": installed}, "system": {"hostname": name.upper()}}},
        "_k3s_wants": {"k3s": {"version": wanted}},
    }


def test_the_plan_of_an_upgrade_is_in_its_order() -> None:
    hosts = [host("a1", "v1.36.3+k3s1"), host("h1", "v1.36.3+k3s1"), host("h2", "v1.36.4+k3s1"), host("h3", "")]
    plan = filters.k3s_upgrade_plan(hosts, ["h1", "h2", "h3"], ["a1"])
    assert [line.split(":")[0] for line in plan] == ["before anything else", "h1 (server)", "h2", "h3", "a1 (agent)"]
    assert "etcd are healthy" in plan[1] and "nothing to do" in plan[2] and "joins the cluster" in plan[3]
    assert "healthy" not in plan[4]


def test_a_plan_with_nothing_to_do_says_so() -> None:
    assert filters.k3s_upgrade_plan([host("h1", "v1.36.4+k3s1")], ["h1"]) == ["h1: has v1.36.4+k3s1; nothing to do"]


def test_the_name_of_a_node() -> None:
    assert filters.k3s_node_name(host("h1", "")) == "h1"
    assert filters.k3s_node_name({"inventory_hostname": "h1", "k3s_node_name": "n1"}) == "n1"
    assert filters.k3s_node_name({"inventory_hostname": "h1"}) == "h1"


# -- the table of traps -----------------------------------------------------------------------------------------------


def test_every_trap_has_a_row_and_every_row_a_test_that_exists() -> None:
    rows = re.findall(r"^\| (\d+) \|([^|]+)\|([^|]+)\|$", (ROOT / "docs" / "cluster.md").read_text(), re.M)
    assert [int(number) for number, _trap, _tests in rows] == list(range(1, 27))
    command = ["git", "grep", "-hoE", "--untracked", "def test_[a-z0-9_]+", "--", "tests"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    known = {line.removeprefix("def ") for line in listed.stdout.split("\n")}
    for number, _trap, tests in rows:
        names = re.findall(r"`(test_\w+)`", tests)
        assert names or "not shown" in tests, f"trap {number} has no test, and nobody says so"
        assert set(names) <= known, f"trap {number}: {set(names) - known}"
