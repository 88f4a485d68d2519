"""Module volume_folders: what a host with a new disk gets, and what is never touched."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.homelab.hearth.plugins.modules import volume_folders

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return tmp_path / "k3s" / "storage"


def rights(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def test_a_missing_folder_is_made_open_to_all(run_module: Run, storage: Path) -> None:
    before = os.umask(0o077)
    try:
        result = run_module(volume_folders.main, paths=[str(storage / "pvc-1")], storage=str(storage))
    finally:
        os.umask(before)
    assert (result["changed"], result["made"]) == (True, [str(storage / "pvc-1")])
    assert rights(storage / "pvc-1") == 0o777
    assert run_module(volume_folders.main, paths=[str(storage / "pvc-1")], storage=str(storage))["changed"] is False


def test_what_the_kubelet_made_is_opened(run_module: Run, storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volume_folders, "KUBELET_UID", os.getuid())
    (storage / "pvc-1").mkdir(parents=True, mode=0o755)
    assert run_module(volume_folders.main, paths=[str(storage / "pvc-1")], storage=str(storage))["changed"] is True
    assert rights(storage / "pvc-1") == 0o777


@pytest.mark.parametrize(("mode", "content"), [(0o700, False), (0o755, True), (0o777, True)])
def test_what_is_in_use_is_left_as_it_is(run_module: Run, storage: Path, mode: int, content: bool) -> None:
    folder = storage / "pvc-1"
    folder.mkdir(parents=True)
    folder.chmod(mode)
    if content:
        (folder / "hearth.db").write_text("x")
    assert run_module(volume_folders.main, paths=[str(folder)], storage=str(storage))["changed"] is False
    assert rights(folder) == mode


def test_only_folders_of_the_provisioner_are_touched(run_module: Run, storage: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    storage.mkdir(parents=True)
    (storage / "link").symlink_to(tmp_path / "elsewhere")
    elsewhere = [tmp_path / "new", storage / "deeper" / "x", storage / "..", storage / "link"]
    result = run_module(volume_folders.main, paths=[str(path) for path in elsewhere], storage=str(storage))
    assert (result["changed"], result["made"]) == (False, [])
    assert not (tmp_path / "new").exists() and not (storage / "deeper").exists()


def test_a_check_makes_nothing(run_module: Run, storage: Path) -> None:
    result = run_module(volume_folders.main, check=True, paths=[str(storage / "pvc-1")], storage=str(storage))
    assert result["made"] == [str(storage / "pvc-1")]
    assert not storage.exists()


def test_what_stands_in_the_way_is_named(run_module: Run, storage: Path) -> None:
    storage.parent.mkdir(parents=True)
    storage.write_text("a file")
    said = run_module(volume_folders.main, paths=[str(storage / "pvc-1")], storage=str(storage))["msg"]
    assert said.startswith("Cannot make ") and str(storage) in said
