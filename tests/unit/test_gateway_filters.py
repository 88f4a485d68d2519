"""Filters around the gateway, as a template calls them."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.hearth.plugins.filter import gateway

SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["models"],
    "properties": {
        "models": {"type": "object", "minProperties": 1},
        "timeouts": {"type": "object", "additionalProperties": False, "properties": {"connect_s": {"type": "number"}}},
    },
}


def test_what_is_right_has_no_errors() -> None:
    assert gateway.schema_errors({"models": {"a": []}, "timeouts": {"connect_s": 5}}, SCHEMA) == []


def test_every_error_is_told_with_its_place() -> None:
    errors = gateway.schema_errors({"models": {}, "timeouts": {"connect_s": "soon"}, "modles": 1}, SCHEMA)
    assert len(errors) == 3
    assert any(error.startswith("timeouts.connect_s: 'soon'") for error in errors)
    assert any(error.startswith("models: ") for error in errors)
    assert any(error.startswith("the whole: ") and "modles" in error for error in errors)


def test_a_hash_has_the_length_that_is_asked_for_and_knows_the_extra(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    whole = gateway.content_hash(str(tmp_path), ["base"], 64)
    assert len(whole) == 64
    assert gateway.content_hash([str(tmp_path)], ["base"], 12) == whole[:12]
    assert gateway.content_hash(str(tmp_path), ["other"]) != whole[:16]


def test_a_missing_directory_is_an_error_and_not_an_empty_hash(tmp_path: Path) -> None:
    with pytest.raises(AnsibleFilterError, match="content_hash"):
        gateway.content_hash(str(tmp_path / "none"))


def test_faults_of_an_egress_table_are_listed_or_raised() -> None:
    table = [{"name": "a"}, {"name": "b", "cidr": "192.0.2.0/24"}]
    assert len(gateway.egress_problems(table)) == 2
    with pytest.raises(AnsibleFilterError, match=r"row 1 \(a\).*row 2 \(b\)"):
        gateway.egress_rules(table)
