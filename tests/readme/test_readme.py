"""The README's commands as written, in a fresh clone, by a user who has only what the clone brings.

The commands are read out of the README's `console` blocks, so that a command that is changed there and not
here, or the other way round, cannot pass.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(600)


def commands() -> list[str]:
    """Every line after a `$ ` prompt in the README's console blocks."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    return [line.strip()[2:] for block in blocks for line in block.splitlines() if line.strip().startswith("$ ")]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is committed, and what is about to be: the work tree without ignored files."""
    target = tmp_path_factory.mktemp("clone") / "hearth"
    subprocess.run(["git", "clone", "-q", "--no-hardlinks", str(ROOT), str(target)], check=True)
    return target


def shell(command: str, clone: Path, home: Path, timeout_s: float = 400) -> subprocess.CompletedProcess[str]:
    foreign = ("ANSIBLE_", "HEARTH_", "MOLECULE_", "VIRTUAL_ENV", "XDG_", "PYTEST", "MAKE")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    environment |= {"HOME": str(home), "ANSIBLE_NOCOLOR": "1"}
    environment["PATH"] = ":".join(p for p in environment["PATH"].split(":") if ".venv" not in p)
    environment.pop("ANTHROPIC_API_KEY", None)
    # with a shell, as a person types it
    return subprocess.run(command, shell=True, cwd=clone, env=environment, capture_output=True, text=True,  # noqa: S602
                          check=False, timeout=timeout_s, executable="/bin/bash")


@pytest.fixture(scope="module", autouse=True)
def stopped_at_the_end(clone: Path, home: Path) -> Iterator[None]:
    yield
    shell("make trial-stop trial_delete_data=true", clone, home)


def test_the_readme_names_the_commands_that_people_use() -> None:
    listed = commands()
    for wanted in ("make trial", "make trial-stop", "make test", "make test-cluster", "ansible-playbook site.yml"):
        assert any(c.startswith(wanted) for c in listed), f"the README has no `$ {wanted}`"
    assert listed.index("make trial") < listed.index("make test"), "the trial is the README's first command"


def test_make_trial_gives_a_streamed_answer_in_under_three_minutes(clone: Path, home: Path) -> None:
    assert "make trial" in commands()
    start = time.monotonic()
    done = shell("make trial", clone, home)
    seconds = time.monotonic() - start
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "http://127.0.0.1:" in done.stdout
    assert "make trial-stop" in done.stdout
    assert seconds < 180, f"{seconds:.0f} s"


def test_a_second_trial_changes_nothing(clone: Path, home: Path) -> None:
    done = shell("make trial", clone, home)
    assert done.returncode == 0, done.stdout[-4000:]
    assert re.search(r"changed=0 ", done.stdout), done.stdout[-2000:]
    assert not re.search(r"changed=[1-9]", done.stdout), done.stdout[-2000:]


def test_the_literal_playbook_commands_work(clone: Path, home: Path) -> None:
    done = shell("source .venv/bin/activate && ansible-playbook site.yml", clone, home)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    done = shell("source .venv/bin/activate && ansible-playbook add_user.yml -e email=ann@example.org", clone, home)
    assert "kubeconfig" in (done.stdout + done.stderr).lower(), done.stdout[-3000:]  # the trial has no cluster: one sentence


def test_make_trial_stop_stops_it(clone: Path, home: Path) -> None:
    assert "make trial-stop" in commands()
    done = shell("make trial-stop", clone, home)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "hearth-gateway" not in subprocess.run(["pgrep", "-af", str(home)], capture_output=True, text=True, check=False).stdout


def test_the_collection_archive_installs_and_works_away_from_the_checkout(clone: Path, home: Path, tmp_path: Path) -> None:
    built = shell("make build", clone, home)
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    (archive,) = (clone / "build").glob("homelab-hearth-*.tar.gz")
    galaxy = clone / ".venv" / "bin" / "ansible-galaxy"
    # --offline --no-deps: the dependencies come with the ansible package, and Galaxy is no part of the test
    # in the user's environment: with a copy in another collection path, Galaxy would say "nothing to do" and install nothing
    install = [str(galaxy), "collection", "install", str(archive), "-p", f"{tmp_path}/collections", "--no-deps", "--offline"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ANSIBLE_", "MOLECULE_"))}
    environment |= {"ANSIBLE_COLLECTIONS_PATH": str(tmp_path / "collections"), "HOME": str(home), "ANSIBLE_NOCOLOR": "1"}
    done = subprocess.run(install, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "was installed successfully" in done.stdout, done.stdout
    inventory = tmp_path / "inventory"
    subprocess.run(["cp", "-r", str(clone / "inventories" / "trial"), str(inventory)], check=True)
    playbook = clone / ".venv" / "bin" / "ansible-playbook"
    done = subprocess.run([str(playbook), "homelab.hearth.site", "-i", str(inventory)], cwd=tmp_path, env=environment,
                          capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "http://127.0.0.1:" in done.stdout


def test_the_archive_holds_only_what_users_need(clone: Path) -> None:
    (archive,) = (clone / "build").glob("homelab-hearth-*.tar.gz")
    names = subprocess.run(["tar", "-tzf", str(archive)], capture_output=True, text=True, check=True).stdout.splitlines()
    tops = {n.split("/")[0] for n in names}
    assert tops <= {"MANIFEST.json", "FILES.json", "README.md", "LICENSE", "CHANGELOG.md", "meta", "playbooks", "roles", "plugins",
                    "inventories", "files", "contract", "docs"}, sorted(tops)
