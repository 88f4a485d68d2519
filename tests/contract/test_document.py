"""docs/access.md and the tests name the same points."""

from __future__ import annotations

import re
from pathlib import Path

from chain import ROOT, STANDIN

DOCUMENT = (ROOT / "docs" / "access.md").read_text()
POINTS = {f"c{number}" for number in range(1, 36)}


def with_a_test() -> set[str]:
    sources = "\n".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    return set(re.findall(r"^def test_(c\d+b?)_", sources, re.MULTILINE))


def test_every_point_has_a_line_and_a_test() -> None:
    lines = {found.lower() for found in re.findall(r"^\| (C\d+) \|", DOCUMENT, re.MULTILINE)}
    assert lines == POINTS
    assert {point.rstrip("b") for point in with_a_test()} == POINTS


def test_every_half_point_of_the_document_is_tested() -> None:
    assert {found.lower() for found in re.findall(r"\bC\d+b\b", DOCUMENT)} <= with_a_test()


def test_the_last_run_on_the_real_one_is_told() -> None:
    runs = re.findall(r"^\| (\d{4}-\d\d-\d\d) \| (v[\d.]+)[^|]*\| `([0-9a-f]{64})` \| ([\d.]+) \| [^|]+\|$", DOCUMENT, re.MULTILINE)
    assert runs, "docs/access.md needs a line with date, version, sha256 and result"


def test_the_stand_in_knows_no_key_that_the_role_refuses() -> None:
    """What could let somebody past the list is not even implemented."""
    source = (STANDIN / "config.go").read_text()
    for key in ("skip_auth_routes", "skip_auth_regex", "trusted_ips", "htpasswd_file", "skip_jwt_bearer_tokens"):
        assert key not in source
