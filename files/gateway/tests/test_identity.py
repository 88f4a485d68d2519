"""Tokens as files: who is let in, and how soon a change counts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from gateway_fakes import FakeClock

from hearth_gateway.core.identity import RELOAD_AFTER_S, TokenStore
from hearth_gateway.errors import GatewayError, Kind

TOKEN = "token-0123456789abcdef"
OTHER = "other-0123456789abcdef"


class Tokens:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = FakeClock()
        self.problems: list[tuple[str, str]] = []
        self.store = TokenStore(directory, self.clock, lambda *problem: self.problems.append(problem))

    def who(self, authorization: str = "", api_key: str = "") -> str:
        try:
            return self.store.identify(authorization, api_key).name
        except GatewayError as error:
            return error.kind.value


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    (tmp_path / "operator").write_text(TOKEN + "\n")
    return Tokens(tmp_path)


@pytest.mark.parametrize(
    ("authorization", "api_key", "expected"),
    [
        (f"Bearer {TOKEN}", "", "operator"),
        (f"bearer  {TOKEN} ", "", "operator"),
        ("", TOKEN, "operator"),
        (f"Bearer {TOKEN}", TOKEN, "ambiguous_credentials"),
        ("", "", "unauthenticated"),
        (TOKEN, "", "unauthenticated"),
        (f"Basic {TOKEN}", "", "unauthenticated"),
        ("Bearer", "", "unauthenticated"),
        (f"Bearer {TOKEN}x", "", "unauthenticated"),
        (f"Bearer {TOKEN},{TOKEN}", "", "unauthenticated"),
        ("", "tökén", "unauthenticated"),
        ("", "\udcff", "unauthenticated"),
    ],
)
def test_credentials(tokens: Tokens, authorization: str, api_key: str, expected: str) -> None:
    assert tokens.who(authorization, api_key) == expected


def test_only_digests_are_kept(tokens: Tokens) -> None:
    assert TOKEN not in repr(vars(tokens.store))


def test_changes_count_within_five_seconds(tokens: Tokens) -> None:
    assert RELOAD_AFTER_S < 5
    (tokens.directory / "kitchen").write_text(OTHER)
    tokens.clock.sleep(RELOAD_AFTER_S)
    assert tokens.who(api_key=OTHER) == "kitchen"
    (tokens.directory / "operator").unlink()
    tokens.clock.sleep(RELOAD_AFTER_S)
    assert tokens.who(api_key=TOKEN) == "unauthenticated"
    (tokens.directory / "kitchen").write_text(TOKEN)  # a new value in place
    tokens.clock.sleep(RELOAD_AFTER_S)
    assert tokens.who(api_key=TOKEN) == "kitchen"
    assert tokens.who(api_key=OTHER) == "unauthenticated"


def test_a_directory_that_goes_away_lets_nobody_in(tokens: Tokens) -> None:
    (tokens.directory / "operator").unlink()
    tokens.directory.rmdir()
    tokens.clock.sleep(RELOAD_AFTER_S)
    assert tokens.who(api_key=TOKEN) == "unauthenticated"
    assert len(tokens.store) == 0


def test_a_mounted_secret_as_kubernetes_lays_it_out(tmp_path: Path) -> None:
    def version(name: str, **values: str) -> None:
        (tmp_path / name).mkdir()
        for key, value in values.items():
            (tmp_path / name / key).write_text(value)
        (tmp_path / "..tmp").symlink_to(name)
        os.replace(tmp_path / "..tmp", tmp_path / "..data")

    version("..2026_01", operator=TOKEN)
    (tmp_path / "operator").symlink_to("..data/operator")
    tokens = Tokens(tmp_path)
    assert tokens.who(api_key=TOKEN) == "operator" and len(tokens.store) == 1
    version("..2026_02", operator=OTHER)
    tokens.clock.sleep(RELOAD_AFTER_S)
    assert tokens.who(api_key=OTHER) == "operator"
    assert tokens.who(api_key=TOKEN) == "unauthenticated"


def test_a_bad_file_is_told_and_the_others_work(tokens: Tokens) -> None:
    (tokens.directory / "short").write_text("abc")
    (tokens.directory / "empty").write_text("")
    (tokens.directory / "folder").mkdir()
    tokens.clock.sleep(RELOAD_AFTER_S)
    assert tokens.who(api_key=TOKEN) == "operator"
    assert tokens.who(api_key="abc") == "unauthenticated"
    assert tokens.problems == [
        ("empty", "is empty"),
        ("folder", "is a directory, not a file"),
        ("short", "is shorter than 16 characters"),
    ]


def test_the_refusal_names_both_headers(tokens: Tokens) -> None:
    with pytest.raises(GatewayError) as caught:
        tokens.store.identify("", "")
    assert caught.value.kind is Kind.UNAUTHENTICATED
    assert "Authorization" in caught.value.message and "x-api-key" in caught.value.message
