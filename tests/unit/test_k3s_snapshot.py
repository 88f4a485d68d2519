"""Module k3s_snapshot: a copy of SQLite while somebody writes to it, and what k3s is asked where there is etcd."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.hearth.plugins.modules import k3s_snapshot

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "server" / "db"
    folder.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(folder / "state.db")) as database:
        database.execute("pragma journal_mode=wal")
        database.execute("create table kine (name text)")
        database.execute("insert into kine values ('one')")
        database.commit()
    return tmp_path


def test_sqlite_is_copied_whole_while_it_is_written_to(run_module: Run, data: Path) -> None:
    with contextlib.closing(sqlite3.connect(data / "server/db/state.db")) as writer:
        writer.execute("insert into kine values ('two')")
        writer.commit()
        writer.execute("insert into kine values ('not committed')")
        result = run_module(k3s_snapshot.main, name="before", datastore="sqlite", data_dir=str(data))
    assert result["changed"] is True
    copy = Path(result["path"])
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600 and copy.parent == data / "server/db/snapshots"
    with contextlib.closing(sqlite3.connect(copy)) as database:
        assert [row[0] for row in database.execute("select name from kine")] == ["one", "two"]
    assert not list(copy.parent.glob("*.partial"))


def test_one_copy_a_name_is_enough(run_module: Run, data: Path) -> None:
    first = run_module(k3s_snapshot.main, name="before", datastore="sqlite", data_dir=str(data))
    second = run_module(k3s_snapshot.main, name="before", datastore="sqlite", data_dir=str(data))
    assert (second["changed"], second["path"]) == (False, first["path"])


def test_check_mode_copies_nothing(run_module: Run, data: Path) -> None:
    assert run_module(k3s_snapshot.main, check=True, name="before", datastore="sqlite", data_dir=str(data))["changed"] is True
    assert not (data / "server/db/snapshots").exists()


def test_a_database_that_is_not_there_is_said(run_module: Run, tmp_path: Path) -> None:
    result = run_module(k3s_snapshot.main, name="before", datastore="sqlite", data_dir=str(tmp_path))
    assert result["failed"] is True
    assert "cannot be copied" in result["msg"]


class K3s:
    """`k3s etcd-snapshot` of a server with etcd."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        self.calls: list[list[str]] = []
        self.fails = ""
        monkeypatch.setattr(AnsibleModule, "run_command", lambda _self, words, **_options: self.run(words))

    def run(self, words: list[str]) -> tuple[int, str, str]:
        assert words[:2] == ["/usr/local/bin/k3s", "etcd-snapshot"]
        self.calls.append(words[2:])
        if self.fails:
            return 1, "", f"level=info msg=begin\nlevel=fatal msg={self.fails}\n"
        if words[2] == "save":
            self.names.append(f"{words[4]}-h1-1700000000")
        items = [{"spec": {"snapshotName": name, "location": f"file:///var/snapshots/{name}"}} for name in self.names]
        return 0, json.dumps({"kind": "ETCDSnapshotFileList", "items": items}) if words[2] == "ls" else "", "warning: about keys\n"


def test_etcd_is_asked_and_the_file_found_in_its_list(run_module: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    k3s = K3s(monkeypatch)
    result = run_module(k3s_snapshot.main, name="before-v1", datastore="etcd")
    assert (result["changed"], result["path"]) == (True, "/var/snapshots/before-v1-h1-1700000000")
    assert [call[0] for call in k3s.calls] == ["ls", "save", "ls"]
    assert run_module(k3s_snapshot.main, name="before-v1", datastore="etcd")["changed"] is False


def test_what_etcd_says_reaches_the_operator(run_module: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    K3s(monkeypatch).fails = "etcd datastore disabled"
    result = run_module(k3s_snapshot.main, name="before", datastore="etcd")
    assert "etcd datastore disabled" in result["msg"]


def test_check_mode_takes_none(run_module: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    k3s = K3s(monkeypatch)
    assert run_module(k3s_snapshot.main, check=True, name="before", datastore="etcd")["changed"] is True
    assert [call[0] for call in k3s.calls] == ["ls"]
