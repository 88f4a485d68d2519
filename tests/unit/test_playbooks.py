"""The playbooks about people, as an operator runs them, as far as that goes without a cluster: what they refuse, and how."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PLAYBOOKS = ("add_user", "remove_user", "rename_user", "list_users", "sign_out", "rotate_token", "lockdown")
ANN = "ann@example.org"


def ansible(*arguments: str) -> tuple[int, str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ANSIBLE_", "MOLECULE_", "K8S_", "KUBECONFIG"))}
    command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(ROOT / "inventories" / "trial"), *arguments]
    done = subprocess.run(command, cwd=ROOT, env={**environment, "ANSIBLE_NOCOLOR": "1"}, capture_output=True, text=True, check=False,
                          timeout=120)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def play(name: str, kubeconfig: Path, /, **variables: Any) -> str:
    """Run a playbook that is to fail; what it said."""
    code, said = ansible(f"playbooks/{name}.yml", "-e", json.dumps({"k3s_kubeconfig": str(kubeconfig), **variables}))
    assert code != 0, said
    assert "Traceback" not in said, said
    return said


@pytest.fixture(scope="module")
def nobody(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kubeconfig of a cluster that is switched off."""
    path = tmp_path_factory.mktemp("cluster") / "kubeconfig"
    document = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
        "users": [{"name": "c", "user": {"token": "t"}}],
    }
    path.write_text(yaml.safe_dump(document))
    return path


def test_ansible_understands_them() -> None:
    names = [f"playbooks/{name}.yml" for name in PLAYBOOKS]
    code, said = ansible("--syntax-check", *names, "add_user.yml", "site.yml", "playbooks/render.yml")
    assert code == 0, said


@pytest.mark.parametrize("name", PLAYBOOKS)
def test_each_is_one_play_that_gathers_nothing_and_asks_nothing(name: str) -> None:
    [only] = yaml.safe_load((ROOT / "playbooks" / f"{name}.yml").read_text())
    assert (only["hosts"], only["connection"], only["gather_facts"]) == ("localhost", "local", False)
    assert "vars_prompt" not in only and "pause" not in str(only["tasks"])


@pytest.mark.parametrize(
    ("name", "variables"),
    [
        ("add_user", {"email": ANN, "alias": "Ann", "daily_limit_usd": 2.5}),
        ("remove_user", {"email": ANN, "tokens": "ann-laptop"}),
        ("rename_user", {"from": ANN, "to": "ann@example.net"}),
        ("list_users", {}),
        ("sign_out", {"email": ANN}),
        ("rotate_token", {"name": "proxy"}),
        ("lockdown", {}),
    ],
)
def test_a_cluster_that_does_not_answer_is_told_in_a_sentence(nobody: Path, name: str, variables: dict[str, Any]) -> None:
    assert "No cluster answers at 127.0.0.1:1 (Connection refused): is the server on" in play(name, nobody, **variables)


@pytest.mark.parametrize(
    ("name", "variables", "message"),
    [
        ("add_user", {"email": "ann"}, "'ann': an address has exactly one @"),
        ("add_user", {"email": "*@example.org"}, "there are no wildcards; name each person"),
        ("add_user", {}, "No address given; say who, for example -e email=ann@example.org"),
        ("add_user", {"email": ANN, "daily_limit_usd": "two"}, "'two' is not a sum of dollars"),
        ("remove_user", {}, "No address given; say who"),
        ("rename_user", {"from": ANN}, "takes one address and the new one"),
        ("sign_out", {"email": "ann@"}, "both sides of the @ are needed"),
        ("rotate_token", {}, "'' is no name for a token"),
        ("rotate_token", {"name": "no.dots"}, "'no.dots' is no name for a token"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_a_cluster_is_asked(
    nobody: Path, name: str, variables: dict[str, Any], message: str
) -> None:
    assert message in play(name, nobody, **variables)
