"""Module host_files: atomic, in one go, and silent about secrets."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.homelab.hearth.plugins.modules import host_files

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def write(run_module: Run) -> Run:
    def run(*files: dict[str, Any], **more: Any) -> dict[str, Any]:
        return run_module(host_files.main, files=[{**f, "path": str(f["path"])} for f in files], **more)

    return run


def test_files_are_written_with_their_modes_and_a_second_run_changes_nothing(write: Run, tmp_path: Path) -> None:
    wanted = (
        {"path": tmp_path / "new" / "folder" / "a", "content": "one\n", "mode": "0600"},
        {"path": tmp_path / "b", "content": "two\n"},
        {"path": tmp_path / "link", "state": "link", "target": "b"},
        {"path": tmp_path / "never", "state": "absent"},
    )
    first = write(*wanted)
    assert first["changed_paths"] == [str(w["path"]) for w in wanted[:3]]
    assert (tmp_path / "new/folder/a").read_text() == "one\n"
    assert stat.S_IMODE((tmp_path / "new/folder/a").stat().st_mode) == 0o600
    assert (tmp_path / "link").read_text() == "two\n"
    assert write(*wanted)["changed"] is False
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "link", "new"], "no temporary file stays"


def test_only_what_differs_is_touched(write: Run, tmp_path: Path) -> None:
    write({"path": tmp_path / "a", "content": "one\n"}, {"path": tmp_path / "b", "content": "two\n"})
    before = (tmp_path / "a").stat()
    result = write({"path": tmp_path / "a", "content": "one\n"}, {"path": tmp_path / "b", "content": "three\n"})
    assert result["changed_paths"] == [str(tmp_path / "b")]
    assert ((tmp_path / "a").stat().st_ino, (tmp_path / "a").stat().st_ctime_ns) == (before.st_ino, before.st_ctime_ns)


def test_a_file_is_replaced_not_rewritten(write: Run, tmp_path: Path) -> None:
    """A program that has the old file open goes on reading the old content to its end."""
    write({"path": tmp_path / "a", "content": "old\n"})
    with (tmp_path / "a").open() as reader:
        write({"path": tmp_path / "a", "content": "new\n"})
        assert reader.read() == "old\n"


def test_a_mode_alone_is_a_change(write: Run, tmp_path: Path) -> None:
    write({"path": tmp_path / "a", "content": "x\n"})
    (tmp_path / "a").chmod(0o666)
    result = write({"path": tmp_path / "a", "content": "x\n"}, diff=True)
    assert result["changed"] is True
    assert "mode 0666" in result["diff"][0]["before"]
    assert "mode 0644" in result["diff"][0]["after"]


def test_a_link_takes_the_place_of_a_file(write: Run, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file")
    write({"path": tmp_path / "a", "state": "link", "target": "b"})
    assert (tmp_path / "a").is_symlink()


def test_a_file_takes_the_place_of_a_link_and_not_of_its_target(write: Run, tmp_path: Path) -> None:
    (tmp_path / "target").write_text("untouched")
    (tmp_path / "a").symlink_to("target")
    write({"path": tmp_path / "a", "content": "x"})
    assert not (tmp_path / "a").is_symlink()
    assert (tmp_path / "target").read_text() == "untouched"


def test_absent_removes_files_and_dangling_links(write: Run, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").symlink_to("nowhere")
    gone = ({"path": tmp_path / "a", "state": "absent"}, {"path": tmp_path / "b", "state": "absent"})
    assert write(*gone)["changed"] is True
    assert list(tmp_path.iterdir()) == []
    assert write(*gone)["changed"] is False


def test_check_mode_tells_and_does_nothing(write: Run, tmp_path: Path) -> None:
    result = write({"path": tmp_path / "a" / "b", "content": "x\n"}, check=True, diff=True)
    assert result["changed"] is True
    assert result["diff"][0]["after"] == "x\n"
    assert list(tmp_path.iterdir()) == []


def test_a_secret_is_in_no_result_and_its_change_is_told(write: Run, tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("password: old-secret-1\n")
    result = write({"path": path, "secret_content": "password: new-secret-2\n", "mode": "0600"}, diff=True)
    shown = json.dumps(result)
    assert "old-secret-1" not in shown
    assert "new-secret-2" not in shown
    assert result["diff"][0]["before"] != result["diff"][0]["after"]
    assert path.read_text() == "password: new-secret-2\n"


def test_a_program_is_not_printed(write: Run, tmp_path: Path) -> None:
    result = write({"path": tmp_path / "p", "content": "#!/bin/bash\necho x\n", "brief": True}, diff=True)
    assert result["diff"][0]["after"] == "(19 bytes)\n"


def test_a_failure_names_the_file_and_what_was_done_before(write: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    result = write({"path": tmp_path / "a", "content": "x"}, {"path": tmp_path / "file" / "b", "content": "x"})
    assert result["failed"] is True
    assert str(tmp_path / "file" / "b") in result["msg"]
    assert result["changed_paths"] == [str(tmp_path / "a")]


@pytest.mark.parametrize(
    "wrong",
    [
        {"content": "x", "secret_content": "y"},
        {"state": "link"},
        {"state": "file"},
    ],
)
def test_contradicting_wishes_are_refused(write: Run, tmp_path: Path, wrong: dict[str, Any]) -> None:
    assert write({"path": tmp_path / "a", **wrong})["failed"] is True
    assert not (tmp_path / "a").exists()
