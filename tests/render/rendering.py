"""Sets of variables and what the roles render from them, without a cluster."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.support import ROOT

FIXTURES = Path(__file__).parent / "fixtures"
# Two sets of roles, each with its fixtures: the gateway, and what people come in by.
VALID = sorted((FIXTURES / "valid").glob("*.yml"))
VALID_ACCESS = sorted((FIXTURES / "access" / "valid").glob("*.yml"))
INVALID = sorted((FIXTURES / "invalid").glob("*.yml"))
# In a folder for each role, which alone is run.
INVALID_ACCESS = sorted((FIXTURES / "access" / "invalid").glob("*/*.yml"))
# Of custom kinds; where each is from: tests/render/schemas/README.md.
SCHEMAS = Path(__file__).parent / "schemas"
KUBERNETES = "1.36"
# How every secret in a fixture is spelt; the second in the base64 of a key.
FIXTURE_SECRET = re.compile("sk-ant-fixture|fixture-client-secret|Zml4dHVyZS1jbGllbnQtc2VjcmV0")
NAMES = yaml.safe_load((ROOT / "contract" / "names.yml").read_text())


# Sets of variables of tests below, beside those in files.
POSTGRESQL = {"gateway_database_url": "postgresql://hearth@postgres.databases:5432/hearth", "gateway_database_password": "pw-fixture-01"}
CASES: dict[str, dict[str, Any]] = {
    "sqlite": {},
    "replicas": POSTGRESQL | {"gateway_replicas": 3},
    "autoscaling": POSTGRESQL | {
        "gateway_autoscaling_enabled": True, "gateway_autoscaling": {"min_replicas": 2, "max_replicas": 5, "cpu_percent": 60}},
    "providers": POSTGRESQL | {
        "gateway_providers": [
            {"name": "anthropic", "kind": "anthropic"},
            {"name": "litellm", "kind": "openai", "base_url": "http://litellm.llm:4000"},
            {"name": "nas", "kind": "openai", "base_url": "http://192.0.2.9:11434"},
        ],
        "gateway_provider_keys": {"anthropic": "sk-ant-fixture-01", "litellm": "sk-fixture-02"},
        "gateway_models": {"nova": [{"provider": "litellm", "model": "nova", "max_output_tokens": 100}]},
    },
    "monitor": {"gateway_service_monitor_enabled": True, "gateway_service_monitor_labels": {"release": "prometheus"}},
}
ACCESS = ["traefik", "oauth2_proxy", "protected_app"]
ROLES = {"gateway": ["gateway"], "access": ACCESS} | {role: [role] for role in ACCESS}


def id_of(fixture: Path) -> str:
    """Where it stands below the fixtures, without the suffix: access/valid/edge."""
    return str(fixture.relative_to(FIXTURES).with_suffix(""))


def group_of(name: str) -> str:
    """The play of a set of variables: access/invalid/traefik/old is of that role, access/valid/edge of all of them."""
    return name.split("/")[2] if name.startswith("access/invalid/") else name.split("/")[0] if name.startswith("access/") else "gateway"


@dataclass
class Rendered:
    """What one set of variables came to: the objects, or the message of the failure."""

    found: list[dict[str, Any]]
    message: str


def ansible(playbook: Path, *options: str) -> dict[str, Any]:
    """Run a playbook; what its JSON says."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ANSIBLE_", "MOLECULE_"))} | {
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json"}
    command = [str(ROOT / ".venv" / "bin" / "ansible-playbook"), str(playbook), *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=280)
    said: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{"):])
    return said


class Renderings:
    """Every set of variables, rendered when the first of its play is asked for.

    Each is a host of one play, so that Ansible starts five times and not a hundred. The plays are those of
    playbooks/render.yml but for their hosts; the first test runs that one.
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        fixtures = VALID + INVALID + VALID_ACCESS + INVALID_ACCESS
        self.sets: dict[str, Any] = {id_of(path): yaml.safe_load(path.read_text()) for path in fixtures}
        self.sets |= {f"case/{name}": variables for name, variables in CASES.items()}
        self.done: dict[str, Rendered] = {}

    def __getitem__(self, name: str) -> Rendered:
        if name not in self.done:
            self.done |= self._run(group_of(name))
        return self.done[name]

    def traefik_files(self, name: str) -> Path:
        """Where a set of variables of front door and sign-in has Traefik's settings as files."""
        return self.base / "traefik-files" / name.replace("/", "-")

    def _run(self, group: str) -> dict[str, Rendered]:
        sets = {name: variables for name, variables in self.sets.items() if group_of(name) == group}
        common = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        hosts = {name: common | {"hearth_render_dir": str(self.base / name), "traefik_files_dir": str(self.traefik_files(name))} | variables
                 for name, variables in sets.items()}
        inventory, playbook = self.base / f"{group}-inventory.yml", self.base / f"{group}-play.yml"
        inventory.write_text(yaml.safe_dump({"all": {"hosts": hosts}}))
        roles = [{"role": f"homelab.hearth.{role}"} for role in ROLES[group]]
        as_files = {"ansible.builtin.include_role": {"name": "homelab.hearth.traefik", "tasks_from": "files"}}
        play = {"hosts": "all", "gather_facts": False, "roles": roles, "tasks": [as_files] if group == "access" else []}
        playbook.write_text(yaml.safe_dump([play]))
        said = ansible(playbook, "-i", str(inventory), "--forks", "2")
        messages: dict[str, str] = dict.fromkeys(sets, "")
        for task in said["plays"][0]["tasks"]:
            for name, result in task["hosts"].items():
                if result.get("failed"):
                    messages[name] += f"{result.get('msg', '')} {' '.join(map(str, result.get('argument_errors', [])))}"
        return {name: Rendered(documents(self.base / name), message) for name, message in messages.items()}


def documents(target: Path) -> list[dict[str, Any]]:
    return [d for f in sorted(target.rglob("*.y*ml")) for d in yaml.safe_load_all(f.read_text()) if d]


def pod_specs(found: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    return [(f"{d['kind']}/{d['metadata']['name']}", d["spec"]["template"]["spec"]) for d in found if d["kind"] in
            ("Deployment", "StatefulSet", "DaemonSet", "Job")]


def found_in(fixture: Path, everything: Renderings) -> list[dict[str, Any]]:
    made = everything[id_of(fixture)]
    assert made.message == ""
    assert made.found, f"{fixture.name} rendered nothing"
    return made.found


def one(found: list[dict[str, Any]], kind: str, name: str = "gateway") -> dict[str, Any]:
    matching = [d for d in found if d["kind"] == kind and d["metadata"]["name"] == name]
    assert len(matching) == 1, f"{len(matching)} of {kind} {name}"
    return matching[0]
