"""ansible-test sanity, on a copy of what the collection publishes, in a collections path as Ansible wants it.

Exceptions stand in ignore-*.txt, each with its reason. `files/gateway` is left out: it is a Python package of its own
that knows nothing of Ansible, and `make lint` checks it with ruff and mypy --strict.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path, PurePath

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
# ansible-test keeps the environments of its tools below its HOME: about 200 MB, made once.
HOME = Path(os.environ.get("HEARTH_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hearth") / "ansible-test"


def published() -> list[str]:
    """Files of the collection's archive, without the gateway's package."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n")
    ignored = [*yaml.safe_load((ROOT / "galaxy.yml").read_text())["build_ignore"], "files/gateway"]

    def kept(name: str) -> bool:
        parents = [str(PurePath(name)), *(str(parent) for parent in PurePath(name).parents)]
        return not any(fnmatch.fnmatch(part, pattern) for part in parents for pattern in ignored)

    return [name for name in names if name and kept(name) and (ROOT / name).is_file()]


def copy_to(target: Path) -> None:
    support = ["tests/config.yml", *(str(path.relative_to(ROOT)) for path in HERE.glob("ignore-*.txt"))]
    for name in [*published(), *support]:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)


def provide_pip() -> None:
    """Let ansible-test make its environments with the pip that Python brings, instead of one from a server of its own."""
    spec = importlib.util.find_spec("ansible_test")
    assert spec is not None and spec.origin is not None, "ansible-test is missing: run `make setup`"
    found = re.search(r"pip='([0-9.]+)'", (Path(spec.origin).parent / "_internal" / "python_requirements.py").read_text())
    assert found, "ansible-test names the pip that it wants elsewhere now"
    script = HOME / ".ansible" / "test" / "cache" / f"get_pip_{found[1].replace('.', '_')}.py"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text("import ensurepip\n\nensurepip.bootstrap()\n")


def environment() -> dict[str, str]:
    """The user's own, but for HOME; pip still finds the user's settings."""
    changed = {"HOME": str(HOME), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for path in (Path.home() / ".pip" / "pip.conf", Path.home() / ".config" / "pip" / "pip.conf"):
        if path.is_file():
            changed["PIP_CONFIG_FILE"] = os.environ.get("PIP_CONFIG_FILE", str(path))
    return {**os.environ, **changed}


@pytest.mark.timeout(900)
def test_ansible_test_sanity(tmp_path: Path) -> None:
    target = tmp_path / "ansible_collections" / "homelab" / "hearth"
    copy_to(target)
    provide_pip()
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    command = ["ansible-test", "sanity", "--color", "no", "--python", python]
    done = subprocess.run(command, cwd=target, env=environment(), capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    said = f"{done.stdout}\n{done.stderr}"
    faults = [line for line in said.splitlines() if line.startswith(("ERROR", "FATAL", "[WARNING]"))]
    assert done.returncode == 0, "\n".join(faults) or said[-4000:]
    # A test that ansible-test leaves out (a tool that is missing) is named so, and is no test.
    ran = set(re.findall(r'Running sanity test "([a-z0-9-]+)"', said))
    assert {"validate-modules", "import", "pylint", "pep8", "ansible-doc", "yamllint", "shellcheck", "ignores"} <= ran, sorted(ran)


def test_the_copy_is_what_is_published() -> None:
    names = published()
    assert {"galaxy.yml", "plugins/modules/gateway_token.py", "playbooks/site.yml", "roles/k3s/tasks/main.yml"} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "files/gateway/", "molecule/", "scripts/"))]


def test_every_exception_has_a_reason() -> None:
    lines = [line for path in HERE.glob("ignore-*.txt") for line in path.read_text().splitlines() if line.strip()]
    assert lines
    for line in lines:
        entry, _hash, reason = line.partition(" # ")
        assert len(entry.split()) == 2 and len(reason.split()) >= 5, line
        assert (ROOT / entry.split()[0]).is_file(), line
