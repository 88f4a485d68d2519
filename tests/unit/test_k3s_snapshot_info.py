"""Module k3s_snapshot_info: files that etcd would restore, and files that it would refuse after the cluster was stopped for them."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.homelab.hearth.plugins.modules import k3s_snapshot_info

Run = Callable[..., dict[str, Any]]

# More than the module reads at once, and no multiple of it.
PAGES = bytes(range(256)) * 2 * 2049
WHOLE = PAGES + hashlib.sha256(PAGES).digest()


def compressed(path: Path, *contents: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, content in enumerate(contents):
            archive.writestr(f"snapshot{number}", content)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (WHOLE, ""),
        (b"", "it is empty"),
        (b"x", "does not end in a SHA-256"),
        (PAGES, "does not end in a SHA-256"),
        (WHOLE[:-1], "does not end in a SHA-256"),
        (WHOLE[512:], "its SHA-256 is another"),
        (WHOLE[: 512 * 2000 + 32], "its SHA-256 is another"),
        (b"\1" + WHOLE[1:], "its SHA-256 is another"),
        (WHOLE[:-1] + b"\1", "its SHA-256 is another"),
    ],
    ids=["whole", "empty", "text", "without hash", "a byte short", "begin lost", "end lost", "changed", "hash changed"],
)  # fmt: skip
def test_a_snapshot_is_judged_as_etcd_does(run_module: Run, tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "snapshot").write_bytes(content)
    compressed(tmp_path / "snapshot.zip", content)
    for name in ("snapshot", "snapshot.zip"):
        result = run_module(k3s_snapshot_info.main, check=True, path=str(tmp_path / name))
        assert (result["exists"], result["changed"], bool(result["problem"])) == (True, False, bool(says)), name
        assert says in result["problem"], name


def test_what_is_no_snapshot_at_all_is_said(run_module: Run, tmp_path: Path) -> None:
    (tmp_path / "cut.zip").write_bytes(WHOLE)
    compressed(tmp_path / "two.zip", WHOLE, WHOLE)
    compressed(tmp_path / "damaged.zip", WHOLE)
    with (tmp_path / "damaged.zip").open("r+b") as file:
        file.seek(200)
        file.write(b"x" * 50)
    for name, says in (
        ("none", "does not exist"),
        (".", "it is no file"),
        ("cut.zip", "is no compressed snapshot"),
        ("two.zip", "there are 2 files in it"),
        ("damaged.zip", "is not whole"),
    ):
        result = run_module(k3s_snapshot_info.main, path=str(tmp_path / name))
        assert result["exists"] == (name != "none")
        assert says in result["problem"], name
