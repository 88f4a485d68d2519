"""What is written is what is there: variable documentation, Makefile help, README, pins and names."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted(p.name for p in (ROOT / "roles").iterdir() if (p / "tasks").is_dir())


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def test_variable_documentation_is_generated_from_the_roles() -> None:
    done = subprocess.run([sys.executable, "scripts/generate_docs.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("role", ROLES)
def test_every_entry_point_has_argument_specs(role: str) -> None:
    """An entry point is a task file that a playbook or another role may name: all but those starting with `_`."""
    specs = load(ROOT / "roles" / role / "meta" / "argument_specs.yml")["argument_specs"]
    for entry, spec in specs.items():
        assert (ROOT / "roles" / role / "tasks" / f"{entry}.yml").exists(), f"{role}: no task file for {entry}"
        assert spec.get("short_description"), f"{role}.{entry}: no short_description"
    called = {"main"} if (ROOT / "roles" / role / "tasks" / "main.yml").exists() else set()
    for path in [*ROOT.glob("playbooks/*.yml"), *ROOT.glob("roles/*/tasks/*.yml")]:
        text = path.read_text()
        called |= set(re.findall(rf"(?:role|name): homelab\.hearth\.{re.escape(role)}\n\s+tasks_from: (\w+)", text))
    assert called <= set(specs), f"{role}: entry points without argument_specs: {sorted(called - set(specs))}"


@pytest.mark.parametrize("role", ROLES)
def test_defaults_and_argument_specs_agree(role: str) -> None:
    """A default stands in defaults/main.yml and, the same, in the specification; neither knows a variable the other lacks."""
    defaults_file = ROOT / "roles" / role / "defaults" / "main.yml"
    defaults = (load(defaults_file) or {}) if defaults_file.exists() else {}
    specs = load(ROOT / "roles" / role / "meta" / "argument_specs.yml")["argument_specs"]
    options: dict[str, dict[str, Any]] = {}
    for spec in specs.values():
        for name, option in (spec.get("options") or {}).items():
            options.setdefault(name, option)
    own = {n for n in defaults if not n.startswith("_")}
    missing = own - set(options)
    assert not missing, f"{role}: defaults without specification: {sorted(missing)}"
    for name in own:
        if "default" in options[name]:
            assert options[name]["default"] == defaults[name], f"{role}: {name} differs between defaults and argument_specs"


def test_make_help_lists_every_target_a_line_each() -> None:
    # make calls these tests too, and a make below a make adds lines of its own
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    shown = subprocess.run(["make", "help"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M)) - {"setup-runtime"}
    assert {line.split()[0] for line in shown} == targets
    assert all(len(line) <= 110 for line in shown)


def test_readme_names_only_targets_and_files_that_exist() -> None:
    text = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M))
    for target in re.findall(r"`make ([a-z0-9-]+)", text):
        assert target in targets, f"README names `make {target}`"
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / link).exists(), f"README links to {link}"


def test_documents_link_to_files_that_exist() -> None:
    for path in [*ROOT.glob("docs/**/*.md"), *ROOT.glob("tests/**/*.md"), ROOT / "files" / "gateway" / "README.md"]:
        if "node_modules" in path.parts:
            continue
        for link in re.findall(r"\]\(([^)#:\s]+)\)", path.read_text()):
            assert (path.parent / link).exists(), f"{path.relative_to(ROOT)} links to {link}"


def test_decisions_are_numbered_and_tell_context_choice_and_cost() -> None:
    names = sorted(p.name for p in (ROOT / "docs" / "decisions").glob("*.md"))
    assert names, "no decisions"
    assert [n[:4] for n in names] == [f"{i:04d}" for i in range(1, len(names) + 1)], names
    for name in names:
        text = (ROOT / "docs" / "decisions" / name).read_text()
        for heading in ("## Context", "## Choice", "## Cost"):
            assert heading in text, f"{name}: no {heading}"


def test_the_changelog_knows_this_version() -> None:
    version = load(ROOT / "galaxy.yml")["version"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
