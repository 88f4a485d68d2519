"""scripts/resolve_pins.py with recorded answers of its tools, played back by fakes on PATH."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.homelab.hearth.plugins.module_utils import _pins

from scripts import resolve_pins

LOCK = """\
---
# A comment that must stay.
format: 1
pins:
  - name: k3s
    kind: file
    version: "v1.37.1+k3s1"
    arch: arm64
    reference: "k3s-arm64"
    checksums: "https://example.org/sha256sum-arm64.txt"
    unresolved: "nobody has seen it"
  - name: controller
    kind: image
    version: "v1"
    arch: unknown
    reference: "docker.io/rancher/controller:v1"
    unresolved: >-
      seen only shortened,
      which is no pin
    note: "a note"
  - name: longhorn
    kind: chart
    version: "1.12.1"
    arch: any
    reference: "longhorn"
    repository: "https://charts.example.org"
    unresolved: "two archives are in circulation"
  - name: done
    kind: file
    version: "1"
    arch: any
    reference: "x"
    sha256: "cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc"
    seen: "2026-01-01"
    sources: ["https://example.org"]
"""

INDEX = json.dumps({"schemaVersion": 2, "mediaType": resolve_pins.INDEX_TYPES[0], "manifests": []}).encode()
ARCHIVE = b"the archive"
SUMS = f"{'1' * 64}  k3s-airgap-images-arm64.tar.zst\n{'2' * 64}  k3s-arm64\n"


class Tools:
    """Fakes of skopeo, helm and curl on PATH that answer as recorded, and note how they were called."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.calls = folder / "calls"
        self.calls.write_text("")
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def put(self, name: str, answer: str) -> None:
        path = self.folder / name
        path.write_text(f'#!/bin/bash\necho "{name} $*" >> {self.calls}\n{answer}\n')
        path.chmod(0o755)

    def file(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    (tmp_path / "bin").mkdir()
    made = Tools(tmp_path / "bin", monkeypatch)
    index, sums = made.file("index.json", INDEX), made.file("sums.txt", SUMS.encode())
    version = 'if [[ "$1" == *version* ]]; then echo "the tool version v1.9.3 (x)"; exit; fi'
    made.put("skopeo", f"{version}\ncat {index}")
    made.put("curl", f"{version}\ncat {sums}")
    made.put("helm", f'{version}\nwhile [ "$1" != --destination ]; do shift; done; echo -n "the archive" > "$2/longhorn-1.12.1.tgz"')
    return made


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "pins.yml"
    path.write_text(LOCK)
    return path


def pins(path: Path) -> dict[str, dict[str, Any]]:
    return {p["name"]: p for p in yaml.safe_load(path.read_text())["pins"]}


def test_everything_is_filled_with_its_source_and_the_lock_is_right(tools: Tools, lock: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert resolve_pins.main(["--lock", str(lock)]) == 0
    found = pins(lock)
    assert found["k3s"]["sha256"] == "2" * 64
    assert found["controller"]["digest"] == "sha256:" + hashlib.sha256(INDEX).hexdigest()
    assert found["controller"]["arch"] == "index"
    assert found["controller"]["note"] == "a note"
    assert found["longhorn"]["sha256"] == hashlib.sha256(ARCHIVE).hexdigest()
    assert found["k3s"]["sources"] == ["https://example.org/sha256sum-arm64.txt by curl v1.9.3"]
    assert "skopeo v1.9.3" in found["controller"]["sources"][0]
    assert _pins.check(list(found.values())) == []
    assert "# A comment that must stay." in lock.read_text()
    assert "+    sha256:" in capsys.readouterr().out, "the difference is shown"
    assert resolve_pins.main(["--lock", str(lock)]) == 0
    assert "nothing is unresolved" in capsys.readouterr().out


def test_the_tools_are_asked_for_exactly_what_the_lock_names(tools: Tools, lock: Path) -> None:
    resolve_pins.main(["--lock", str(lock)])
    calls = tools.calls.read_text()
    assert "skopeo inspect --raw docker://docker.io/rancher/controller:v1" in calls
    assert "helm pull longhorn --repo https://charts.example.org --version 1.12.1" in calls
    assert "https://example.org/sha256sum-arm64.txt" in calls
    assert "done" not in calls


def test_a_chart_in_a_registry_is_pulled_by_its_address(tools: Tools, lock: Path) -> None:
    lock.write_text(LOCK.replace("https://charts.example.org", "oci://example.org/charts/longhorn"))
    assert resolve_pins.main(["--lock", str(lock)]) == 0
    assert "helm pull oci://example.org/charts/longhorn --version 1.12.1" in tools.calls.read_text()


def test_a_new_version_is_added_and_looked_up(tools: Tools, lock: Path) -> None:
    lock.write_text(LOCK + """\
  - name: k3s
    kind: file
    version: "v1.37.1+k3s1"
    arch: amd64
    reference: "k3s"
    url: "https://example.org/v1.37.1%2Bk3s1/k3s"
    checksums: "https://example.org/v1.37.1%2Bk3s1/sums.txt"
    unresolved: "x"
""")
    tools.put("curl", f"cat {tools.file('sums', (SUMS + '3' * 64 + '  k3s').encode())}")
    tools.put("helm", "exit 1")
    assert resolve_pins.main(["--lock", str(lock), "--add", "k3s@v1.37.2+k3s1"]) == 1, "helm failed, and only helm"
    new = [p for p in yaml.safe_load(lock.read_text())["pins"] if p["version"] == "v1.37.2+k3s1"]
    assert [(p["arch"], p["sha256"]) for p in new] == [("arm64", "2" * 64), ("amd64", "3" * 64)]
    assert new[1]["url"] == "https://example.org/v1.37.2%2Bk3s1/k3s"
    assert "https://example.org/v1.37.2%2Bk3s1/sums.txt" in tools.calls.read_text()
    assert _pins.check(new) == []


@pytest.mark.parametrize(("add", "says"), [("k4s@v1", "has no k4s"), ("k3s@v1.37.1+k3s1", "already"), ("done", "NAME@VERSION")])
def test_what_cannot_be_added_is_said(tools: Tools, lock: Path, capsys: pytest.CaptureFixture[str], add: str, says: str) -> None:
    for name in ("skopeo", "helm", "curl"):
        tools.put(name, "exit 1")
    assert resolve_pins.main(["--lock", str(lock), "--add", add]) == 1
    assert says in capsys.readouterr().err


def test_a_dry_run_writes_nothing(tools: Tools, lock: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert resolve_pins.main(["--lock", str(lock), "--dry-run"]) == 0
    assert lock.read_text() == LOCK
    assert "+    digest:" in capsys.readouterr().out


def test_without_internet_everything_stays_and_says_so(tools: Tools, lock: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("skopeo", "helm", "curl"):
        tools.put(name, 'echo "dial tcp: lookup example.org: no such host" >&2; exit 6')
    assert resolve_pins.main(["--lock", str(lock)]) == 1
    assert lock.read_text() == LOCK
    errors = capsys.readouterr().err
    assert errors.count("stays unresolved") == 3
    assert "no such host (this needs a machine with internet)" in errors


def test_one_that_fails_does_not_hold_up_the_others(tools: Tools, lock: Path) -> None:
    tools.put("helm", "exit 1")
    assert resolve_pins.main(["--lock", str(lock)]) == 1
    assert pins(lock)["k3s"]["sha256"] == "2" * 64
    assert "unresolved" in pins(lock)["longhorn"]


def test_a_missing_tool_is_named_with_its_package(tools: Tools, lock: Path, monkeypatch: pytest.MonkeyPatch,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    (tools.folder / "skopeo").unlink()
    monkeypatch.setenv("PATH", str(tools.folder))
    os.symlink("/bin/bash", tools.folder / "bash")
    resolve_pins.main(["--lock", str(lock)])
    assert "skopeo is missing: apt install skopeo" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ('{"mediaType": "application/vnd.oci.image.manifest.v1+json"}', "not an index"),
        ('{"schemaVersion": 2}', "a manifest without a type"),
        ("<html>sign in</html>", "no manifest"),
        ("[]", "no manifest"),
    ],
)
def test_only_an_index_of_several_architectures_is_taken(tools: Tools, lock: Path, capsys: pytest.CaptureFixture[str],
                                                         answer: str, says: str) -> None:
    path = tools.file("other.json", answer.encode())
    tools.put("skopeo", f"cat {path}")
    assert resolve_pins.main(["--lock", str(lock)]) == 1
    assert says in capsys.readouterr().err
    assert "unresolved" in pins(lock)["controller"]


@pytest.mark.parametrize("text", ["", f"{'1' * 64}  k3s-arm64-extra\n", f"{'1' * 63}  k3s-arm64\n", "<html>not found</html>"])
def test_a_list_without_the_file_fills_nothing(tools: Tools, lock: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    path = tools.file("bad.txt", text.encode())
    tools.put("curl", f"cat {path}")
    assert resolve_pins.main(["--lock", str(lock)]) == 1
    assert "does not name k3s-arm64" in capsys.readouterr().err
    assert "unresolved" in pins(lock)["k3s"]


def test_a_file_without_a_list_of_checksums_stays_open(tools: Tools, lock: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock.write_text("\n".join(line for line in LOCK.splitlines() if "checksums:" not in line) + "\n")
    assert resolve_pins.main(["--lock", str(lock)]) == 1
    assert "no `checksums` address" in capsys.readouterr().err
