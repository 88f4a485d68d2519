"""The cluster token: which one is used, that it survives the way through the file, and that it is never shown."""

from __future__ import annotations

import json
import stat
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.homelab.hearth.plugins.module_utils import _k3s
from ansible_collections.homelab.hearth.plugins.modules import k3s_files
from hypothesis import given
from hypothesis import strategies as st

Run = Callable[..., dict[str, Any]]
HASH = "K10" + "a" * 64
PRINTABLE = "".join(c for c in string.printable if c not in "\t\n\r\x0b\x0c")
TOKENS = st.text(st.sampled_from(PRINTABLE), min_size=16, max_size=80).filter(lambda t: t == t.strip())


@given(TOKENS)
def test_every_printable_token_survives_the_file_that_k3s_writes(token: str) -> None:
    """`%`, `$`, blanks, quotes and colons have each broken a playbook that put the token into a unit or a shell."""
    assert _k3s.token_secret(f"{HASH}::server:{token}\n") == token


@given(TOKENS)
def test_every_printable_token_is_accepted_and_written_as_it_is(token: str) -> None:
    assert _k3s.token_problem(token) == ""
    assert k3s_files.choose(token, "", "") == (token, "given")
    assert k3s_files.choose(token, "", _k3s.token_secret(f"{HASH}::server:{token}")) == (token, "given")


@pytest.mark.parametrize(
    ("token", "word"),
    [
        ("", "empty"),
        ("   ", "empty"),
        (" leading-blank-0123", "white space"),
        ("trailing-newline-0123\n", "white space"),
        ("two\nlines-0123456789", "line break"),
        ("tab\tinside-0123456789", "control character"),
        ("short", "shorter than 16"),
        (f"{HASH}::server:0123456789abcdef", "long form"),
    ],
)
def test_a_token_that_k3s_would_read_otherwise_is_refused(token: str, word: str) -> None:
    assert word in _k3s.token_problem(token)


@pytest.mark.parametrize(
    ("given_token", "in_file", "in_use", "expected"),
    [
        ("", "", "from-the-data-0123", ("from-the-data-0123", "recovered")),
        ("", "something-else-0123", "from-the-data-0123", ("from-the-data-0123", "recovered")),
        ("", "kept-0123456789abc", "kept-0123456789abc", ("kept-0123456789abc", "kept")),
        ("", "written-not-started", "", ("written-not-started", "kept")),
        ("given-0123456789abc", "older-0123456789ab", "", ("given-0123456789abc", "given")),
    ],
)
def test_which_token_is_used(given_token: str, in_file: str, in_use: str, expected: tuple[str, str]) -> None:
    assert k3s_files.choose(given_token, in_file, in_use) == expected


def test_a_new_cluster_gets_a_token_of_its_own() -> None:
    one, origin = k3s_files.choose("", "", "")
    two, _ = k3s_files.choose("", "", "")
    assert origin == "generated"
    assert len(one) == 64
    assert one != two


def test_another_token_for_an_existing_cluster_is_refused_with_the_way_out() -> None:
    with pytest.raises(k3s_files.TokenRefused, match="token rotate"):
        k3s_files.choose("another-0123456789", "", "from-the-data-0123")


# -- a host that joins --------------------------------------------------------------------------------------------------

LONG = f"{HASH}::server:0123456789abcdef"


@pytest.mark.parametrize(
    ("given_token", "cluster", "in_file", "in_use", "expected"),
    [
        ("", LONG + "\n", "", "", (LONG, "cluster")),
        ("0123456789abcdef", LONG, "", "", (LONG, "cluster")),
        ("", LONG, "of-an-older-cluster", "", (LONG, "cluster")),
        ("", "", LONG + "\n", "", (LONG, "kept")),
        ("0123456789abcdef", "", LONG + "\n", "0123456789abcdef", (LONG, "kept")),
        ("rotated-0123456789", "", LONG + "\n", "", ("rotated-0123456789", "given")),
        ("", "", "something-else-01", "0123456789abcdef", ("0123456789abcdef", "recovered")),
    ],
)
def test_which_token_a_joiner_gets(given_token: str, cluster: str, in_file: str, in_use: str, expected: tuple[str, str]) -> None:
    assert k3s_files.choose_for_joiner(given_token, cluster, in_file, in_use) == expected


@pytest.mark.parametrize(
    ("given_token", "cluster", "in_file", "in_use", "says"),
    [
        ("", "", "", "", "would begin a cluster of its own"),
        ("another-0123456789", LONG, "", "", "not that of the cluster"),
        ("another-0123456789", "", LONG, "0123456789abcdef", "token rotate"),
    ],
)
def test_a_joiner_never_makes_a_token_of_its_own(given_token: str, cluster: str, in_file: str, in_use: str, says: str) -> None:
    """A server with an address and no token begins a second cluster, without a word (KA#528)."""
    with pytest.raises(k3s_files.TokenRefused, match=says):
        k3s_files.choose_for_joiner(given_token, cluster, in_file, in_use)


def test_a_joiner_writes_the_clusters_token_and_keeps_it(run_module: Run, tmp_path: Path) -> None:
    first = run_module(k3s_files.main, diff=True, **arguments(tmp_path, joins=True, cluster_token=LONG + "\n"))
    assert (first["changed"], first["token_origin"]) == (True, "cluster")
    assert "0123456789abcdef" not in json.dumps(first)
    assert (tmp_path / "etc" / "token").read_text() == LONG + "\n"
    second = run_module(k3s_files.main, **arguments(tmp_path, joins=True))
    assert (second["changed"], second["token_origin"]) == (False, "kept")


def test_a_joiner_without_a_token_fails_and_in_check_mode_waits_for_the_cluster(run_module: Run, tmp_path: Path) -> None:
    assert run_module(k3s_files.main, **arguments(tmp_path, joins=True))["failed"] is True
    assert run_module(k3s_files.main, check=True, **arguments(tmp_path, joins=True))["changed"] is True
    assert list(tmp_path.iterdir()) == []


# -- the module ---------------------------------------------------------------------------------------------------


def arguments(tmp_path: Path, **more: Any) -> dict[str, Any]:
    return {"files": [], "token_path": str(tmp_path / "etc" / "token"), "data_dir": str(tmp_path / "data"), **more}


def test_a_token_is_made_once_and_kept(run_module: Run, tmp_path: Path) -> None:
    first = run_module(k3s_files.main, **arguments(tmp_path))
    path = tmp_path / "etc" / "token"
    token = path.read_text()
    assert (first["changed"], first["token_origin"]) == (True, "generated")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    second = run_module(k3s_files.main, **arguments(tmp_path))
    assert (second["changed"], second["token_origin"]) == (False, "kept")
    assert path.read_text() == token


def test_a_wrong_mode_is_repaired(run_module: Run, tmp_path: Path) -> None:
    run_module(k3s_files.main, **arguments(tmp_path))
    path = tmp_path / "etc" / "token"
    path.chmod(0o644)
    assert run_module(k3s_files.main, **arguments(tmp_path))["changed"] is True
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("left", [None, "", "\n"])
def test_a_lost_or_emptied_file_is_put_back_from_the_data(run_module: Run, tmp_path: Path, left: str | None) -> None:
    """After a power cut the file may be empty; a new random token would lock k3s out of its own data."""
    (tmp_path / "data" / "server").mkdir(parents=True)
    (tmp_path / "data" / "server" / "token").write_text(f"{HASH}::server:0123456789abcdef\n")
    if left is not None:
        (tmp_path / "etc").mkdir()
        (tmp_path / "etc" / "token").write_text(left)
    result = run_module(k3s_files.main, **arguments(tmp_path))
    assert (result["changed"], result["token_origin"]) == (True, "recovered")
    assert (tmp_path / "etc" / "token").read_text() == "0123456789abcdef\n"


def test_check_mode_writes_nothing(run_module: Run, tmp_path: Path) -> None:
    assert run_module(k3s_files.main, check=True, **arguments(tmp_path))["changed"] is True
    assert list(tmp_path.iterdir()) == []


def test_no_result_shows_the_token(run_module: Run, tmp_path: Path) -> None:
    token = "a b%c$d'e\"f:g#0123456789"
    result = run_module(k3s_files.main, diff=True, **arguments(tmp_path, token=token))
    assert token not in json.dumps(result)
    (tmp_path / "data" / "server").mkdir(parents=True)
    (tmp_path / "data" / "server" / "token").write_text(f"{HASH}::server:other-secret-0123456\n")
    refused = run_module(k3s_files.main, diff=True, **arguments(tmp_path, token=token))
    assert refused["failed"] is True
    assert token not in json.dumps(refused)
    assert "other-secret-0123456" not in json.dumps(refused)


def test_a_disk_that_cannot_be_written_is_said(run_module: Run, tmp_path: Path) -> None:
    (tmp_path / "etc").write_text("a file where the folder should be")
    result = run_module(k3s_files.main, **arguments(tmp_path))
    assert result["failed"] is True
    assert "cannot be written" in result["msg"]


def test_the_files_come_in_the_same_call_and_not_at_all_with_a_wrong_token(run_module: Run, tmp_path: Path) -> None:
    config = {"path": str(tmp_path / "etc" / "config.yaml"), "content": "a: 1\n", "mode": "0600"}
    (tmp_path / "data" / "server").mkdir(parents=True)
    (tmp_path / "data" / "server" / "token").write_text(f"{HASH}::server:in-use-0123456789\n")
    refused = run_module(k3s_files.main, **{**arguments(tmp_path, token="another-0123456789"), "files": [config]})
    assert refused["failed"] is True
    assert not (tmp_path / "etc").exists()
    written = run_module(k3s_files.main, diff=True, **{**arguments(tmp_path), "files": [config]})
    assert written["changed_paths"] == [str(tmp_path / "etc" / "token"), str(tmp_path / "etc" / "config.yaml")]
    assert written["diff"][1]["after"] == "a: 1\n"
    assert "in-use-0123456789" not in json.dumps(written)
    assert run_module(k3s_files.main, **{**arguments(tmp_path), "files": [config]})["changed_paths"] == []


def test_tokens_are_cut_out_of_log_lines() -> None:
    line = f"joining with {HASH}::server:abc and --token=secret1 --agent-token secret2"
    assert _k3s.redact(line) == "joining with *** and --token=*** --agent-token ***"
    assert _k3s.redact("the word s3cr3t", ["s3cr3t", ""]) == "the word ***"
