"""The API key of a provider follows its file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from gateway_fakes import FakeClock

from hearth_gateway.providers.key import LOOK_AFTER_S, KeyFile
from hearth_gateway.secrets import SecretError


def test_a_new_key_counts_within_seconds(tmp_path: Path) -> None:
    file, clock = tmp_path / "key", FakeClock()
    file.write_text("first-key\n")
    key = KeyFile(file, clock)
    assert (key.value(), key.version()) == ("first-key", 1)
    file.write_text("second-key-is-longer\n")
    assert key.value() == "first-key", "not at every request"
    clock.sleep(LOOK_AFTER_S)
    assert (key.value(), key.version()) == ("second-key-is-longer", 2)


def test_a_secret_volume_swaps_symbolic_links(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "key").write_text(f"key-{name}")
    link, clock = tmp_path / "data", FakeClock()
    link.symlink_to("one")
    key = KeyFile(link / "key", clock)
    fresh = tmp_path / "fresh"
    fresh.symlink_to("two")
    fresh.rename(link)
    clock.sleep(LOOK_AFTER_S)
    assert key.value() == "key-two"


def test_a_file_that_is_no_key_any_more_changes_nothing(tmp_path: Path) -> None:
    file, clock, problems = tmp_path / "key", FakeClock(), list[str]()
    file.write_text("first-key")
    key = KeyFile(file, clock, problems.append)
    file.unlink()
    for _ in range(3):
        clock.sleep(LOOK_AFTER_S)
        assert (key.value(), key.version()) == ("first-key", 1)
    assert problems == ["does not exist"]
    file.write_text("first-key")
    clock.sleep(LOOK_AFTER_S)
    assert (key.value(), key.version()) == ("first-key", 1), "the same key again is no new key"
    file.write_text("not a key at all")
    clock.sleep(LOOK_AFTER_S)
    assert key.value() == "first-key" and len(problems) == 2 and "not a key" not in problems[1]


def test_a_key_that_could_not_be_read_is_read_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, clock, problems = tmp_path / "key", FakeClock(), list[str]()
    file.write_text("first-key")
    key = KeyFile(file, clock, problems.append)
    file.write_text("second-key-is-longer")

    def no_descriptors(*_arguments: object) -> object:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", no_descriptors)
        for _ in range(3):
            clock.sleep(LOOK_AFTER_S)
            assert key.value() == "first-key"
    assert problems == ["cannot be read: Too many open files"]
    clock.sleep(LOOK_AFTER_S)
    assert (key.value(), key.version()) == ("second-key-is-longer", 2)


def test_without_a_key_nothing_starts(tmp_path: Path) -> None:
    with pytest.raises(SecretError):
        KeyFile(tmp_path / "key", FakeClock())
