"""The lock of downloads: every checksum has a source, and what nobody has seen says so."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.hearth.plugins.filter import pins as filters
from ansible_collections.homelab.hearth.plugins.module_utils import _pins

GOOD: dict[str, Any] = {
    "name": "k3s",
    "kind": "file",
    "version": "v1",
    "arch": "amd64",
    "reference": "k3s",
    "sha256": "a" * 64,
    "seen": "2026-11-21",
    "confirmed": 1,
    "sources": ["https://example.org/sha256sum-amd64.txt"],
}
OPEN = {**{k: GOOD[k] for k in ("name", "kind", "version", "reference")}, "arch": "arm64", "unresolved": "nobody has seen it"}
IMAGE = {
    **{k: GOOD[k] for k in ("seen", "confirmed", "sources")},
    "name": "python",
    "kind": "image",
    "version": "3.13",
    "arch": "index",
    "reference": "docker.io/library/python:3.13",
    "digest": "sha256:" + "b" * 64,
}


def test_the_lock_of_this_repository_is_right() -> None:
    pins = _pins.load()
    assert _pins.check(pins) == []
    assert len(pins) > 50


def test_the_lock_pins_the_default_versions() -> None:
    import yaml

    roles = Path(__file__).resolve().parents[2] / "roles"
    k3s = yaml.safe_load((roles / "k3s" / "defaults" / "main.yml").read_text())["k3s_version"]
    python = yaml.safe_load((roles / "gateway" / "defaults" / "main.yml").read_text())["gateway_base_image_version"]
    for arch in ("amd64", "arm64"):
        assert filters.pin("k3s", k3s, "file", arch)["problem"] == ""
        assert filters.pin("k3s-airgap", k3s, "file", arch)["problem"] == ""
        assert filters.pin("python", python, "image", arch)["problem"] == ""


def test_a_good_lock_has_no_problem() -> None:
    assert _pins.check([GOOD, OPEN, IMAGE]) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sources": []}, "without a source"),
        ({"sources": [" "]}, "without a source"),
        ({"sources": None}, "sources must be a list"),
        ({"seen": ""}, "without the day"),
        ({"seen": "yesterday"}, "without the day"),
        ({"sha256": "A" * 64}, "not 64 hexadecimal"),
        ({"sha256": "a" * 63}, "not 64 hexadecimal"),
        ({"digest": "sha256:" + "a" * 64}, "both sha256 and digest"),
        ({"sha256": ""}, "neither sha256"),
        ({"unresolved": "and yet"}, "is unresolved and has sha256"),
        ({"arch": "x86_64"}, "arch must be one of"),
        ({"kind": "binary"}, "kind must be one of"),
        ({"version": ""}, "version is missing"),
        ({"checksum": "x"}, "unknown key checksum"),
        ({"confirmed": "1"}, "confirmed must be a int"),
    ],
)
def test_a_fault_in_the_lock_is_named(change: dict[str, Any], says: str) -> None:
    problems = _pins.check([{**copy.deepcopy(GOOD), **change}])
    assert any(says in p for p in problems), problems


def test_a_shortened_digest_is_no_digest() -> None:
    assert any("not sha256:" in p for p in _pins.check([{**IMAGE, "digest": "sha256:aaf4dbf6...153a"}]))


def test_an_entry_twice_is_refused() -> None:
    assert any("twice" in p for p in _pins.check([GOOD, GOOD]))


@pytest.mark.parametrize("text", ["", "pins: []", "format: 2\npins: []", "format: 1\npins: {}", "a: ["])
def test_something_else_than_a_lock_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "pins.yml"
    path.write_text(text)
    with pytest.raises(_pins.PinError):
        _pins.load(path)
    with pytest.raises(_pins.PinError):
        _pins.load(tmp_path / "missing.yml")


def test_a_known_pin_is_found() -> None:
    found = _pins.lookup([GOOD, OPEN], "k3s", "file", "v1", "amd64")
    assert (found["resolved"], found["problem"], found["sha256"]) == (True, "", "a" * 64)


def test_an_unresolved_pin_says_why() -> None:
    found = _pins.lookup([GOOD, OPEN], "k3s", "file", "v1", "arm64")
    assert found["resolved"] is False
    assert "nobody has seen it" in found["problem"]


def test_a_version_that_the_lock_lacks_is_unresolved_and_the_known_ones_are_named() -> None:
    found = _pins.lookup([GOOD], "k3s", "file", "v2", "amd64")
    assert (found["listed"], found["resolved"]) == (False, False)
    assert "v1 (amd64)" in found["problem"]


def test_a_misspelt_name_is_an_error_with_the_nearest_one() -> None:
    with pytest.raises(_pins.PinError, match="did you mean k3s"):
        _pins.lookup([GOOD], "k3", "file", "v1")
    with pytest.raises(AnsibleFilterError, match="no image named pyton"):
        filters.pin("pyton", "3.13")


def test_an_image_is_pulled_by_digest_alone() -> None:
    """Some tools refuse a name with both tag and digest."""
    assert _pins.lookup([IMAGE], "python", "image", "3.13", "arm64")["image"] == "docker.io/library/python@sha256:" + "b" * 64


def test_a_registry_port_is_no_tag() -> None:
    pin = {**IMAGE, "reference": "registry.lan:5000/python"}
    assert _pins.lookup([pin], "python", "image", "3.13")["image"] == "registry.lan:5000/python@sha256:" + "b" * 64


def test_a_digest_nobody_looked_into_is_not_trusted_on_arm64() -> None:
    pin = {**IMAGE, "arch": "unknown"}
    assert _pins.lookup([pin], "python", "image", "3.13", "amd64")["problem"] == ""
    assert "arm64" in _pins.lookup([pin], "python", "image", "3.13", "arm64")["problem"]
