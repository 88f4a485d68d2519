"""The content hash that names images and environments, and the archive of the same files."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.homelab.hearth.plugins.module_utils import _source_tree as tree
from ansible_collections.homelab.hearth.plugins.modules import source_archive


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    (root / "src" / "pkg").mkdir(parents=True)
    (root / "src" / "pkg" / "__init__.py").write_text("x = 1\n")
    (root / "pyproject.toml").write_text("[project]\n")
    (root / "run").write_text("#!/bin/sh\n")
    (root / "run").chmod(0o755)
    return root


def test_what_is_made_from_the_source_does_not_count(source: Path) -> None:
    before = tree.content_hash([source])
    for name in ("tests", "src/pkg/__pycache__", ".git", "node_modules", "dist", "pkg.egg-info"):
        (source / name).mkdir()
        (source / name / "file.py").write_text("noise")
    (source / "src" / "pkg" / "a.pyc").write_bytes(b"noise")
    os.utime(source / "run", (1, 1))
    assert tree.content_hash([source]) == before


def test_every_change_of_name_content_or_executable_bit_counts(source: Path) -> None:
    hashes = [tree.content_hash([source])]
    (source / "run").chmod(0o644)
    hashes.append(tree.content_hash([source]))
    (source / "run").write_text("#!/bin/bash\n")
    hashes.append(tree.content_hash([source]))
    (source / "run").rename(source / "start")
    hashes.append(tree.content_hash([source]))
    (source / "empty").touch()
    hashes.append(tree.content_hash([source]))
    hashes.append(tree.content_hash([source], ["base"]))
    hashes.append(tree.content_hash([source], ["ba", "se"]))
    assert len(set(hashes)) == len(hashes)


def test_the_boundary_between_name_and_content_counts(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    (one / "ab").write_text("c")
    (two / "a").write_text("bc")
    assert tree.content_hash([one]) != tree.content_hash([two])


def test_an_empty_or_missing_directory_is_an_error(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileNotFoundError):
            tree.content_hash([root])


def test_the_archive_holds_the_same_files_with_one_time_and_no_owner(source: Path) -> None:
    first, second = io.BytesIO(), io.BytesIO()
    tree.write_tar(source, first)
    os.utime(source / "run", (1, 1))
    tree.write_tar(source, second)
    assert first.getvalue() == second.getvalue()
    first.seek(0)
    with tarfile.open(fileobj=first) as archive:
        assert {m.name: m.mode for m in archive} == {"pyproject.toml": 0o644, "run": 0o755, "src/pkg/__init__.py": 0o644}
        assert {(m.uid, m.gid, m.mtime) for m in archive} == {(0, 0, tree.TIMESTAMP)}


def test_the_module_writes_once(source: Path, tmp_path: Path, run_module: Callable[..., dict[str, Any]]) -> None:
    dest = tmp_path / "out.tar"
    assert run_module(source_archive.main, src=str(source), dest=str(dest), check=True)["changed"]
    assert not dest.exists()
    assert run_module(source_archive.main, src=str(source), dest=str(dest))["changed"]
    assert not run_module(source_archive.main, src=str(source), dest=str(dest))["changed"]
    missing = run_module(source_archive.main, src=str(tmp_path / "no"), dest=str(dest))
    assert missing["failed"]
    assert "cannot be packed" in missing["msg"]
