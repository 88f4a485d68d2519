"""remove-folders.sh of the host role, in a mount namespace of its own: what is mounted stays, with its content."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "roles" / "host" / "files" / "remove-folders.sh"


def run(tmp_path: Path, before: str = "", **variables: Path | list[Path]) -> subprocess.CompletedProcess[str]:
    """Run the script after some commands; the namespace, and with it every mount, is gone afterwards."""
    environment = {
        name: "\n".join(str(p) for p in (value if isinstance(value, list) else [value])) for name, value in variables.items()
    }
    command = ["unshare", "--map-root-user", "--mount", "bash", "-ec", f'{before}\nbash "$1" && find . | sort >&2', "_", str(SCRIPT)]
    return subprocess.run(command, cwd=tmp_path, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **environment}, capture_output=True,
                          text=True, check=True, timeout=60)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "folder"
    (made / "sub").mkdir(parents=True)
    (made / "sub" / "file").write_text("x")
    (made / ".hidden").write_text("x")
    return made


def test_a_folder_that_was_missing_goes_with_its_content(tmp_path: Path, folder: Path) -> None:
    done = run(tmp_path, MISSING=folder)
    assert done.stdout.splitlines() == [f"emptied {folder}", f"removed {folder}"]
    assert not folder.exists()
    assert run(tmp_path, MISSING=folder).stdout == "", "a second run has nothing to say"


def test_a_file_that_was_missing_goes(tmp_path: Path, folder: Path) -> None:
    run(tmp_path, MISSING=folder / ".hidden")
    assert sorted(p.name for p in folder.iterdir()) == ["sub"]


def test_a_folder_that_was_empty_stays_empty(tmp_path: Path, folder: Path) -> None:
    assert run(tmp_path, EMPTY=folder).stdout.splitlines() == [f"emptied {folder}"]
    assert folder.exists()
    assert list(folder.iterdir()) == []


def test_a_shared_folder_goes_only_when_it_is_empty(tmp_path: Path, folder: Path) -> None:
    (folder / "hollow").mkdir()
    done = run(tmp_path, SHARED=[folder / "hollow", folder])
    assert done.stdout.splitlines() == [f"removed {folder / 'hollow'}"]
    assert (folder / "sub" / "file").exists()


@pytest.mark.parametrize("how", ["mount -t tmpfs none folder/disk", "mkdir other; touch other/keep; mount --bind other folder/disk"])
def test_a_folder_with_a_mount_in_it_is_kept_whole(tmp_path: Path, folder: Path, how: str) -> None:
    """A bind mount is on the same device, so `rm --one-file-system` would go through it."""
    done = run(tmp_path, before=f"mkdir folder/disk; {how}; touch folder/disk/keep", MISSING=folder, EMPTY=folder)
    assert "something is mounted in it" in done.stderr
    assert "./folder/disk/keep" in done.stderr.splitlines()
    assert "./folder/sub/file" in done.stderr.splitlines()
    assert done.stdout == ""


def test_a_mount_point_itself_is_emptied_and_stays(tmp_path: Path, folder: Path) -> None:
    done = run(tmp_path, before="mount --bind folder folder", MISSING=folder)
    assert done.stdout.splitlines() == [f"emptied {folder}"]
    assert folder.exists()


def test_names_with_blanks(tmp_path: Path) -> None:
    odd = tmp_path / "a b"
    odd.mkdir()
    run(tmp_path, MISSING=odd)
    assert not odd.exists()


def test_nothing_given_nothing_done(tmp_path: Path, folder: Path) -> None:
    assert run(tmp_path).stdout == ""
    assert (folder / "sub" / "file").exists()
