"""The role's variables keep up with the gateway's configuration: a key that one knows and the other does not is found here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "contract" / "gateway-config.schema.json").read_text())
SPECS = yaml.safe_load((ROOT / "roles" / "gateway" / "meta" / "argument_specs.yml").read_text())["argument_specs"]
# Without a variable on purpose: the address and size of what runs, in which nobody has a choice to make.
NO_VARIABLE = {"server", "tokens", "pseudonym_key_file", "metrics", "privacy", "database_password_file"}


@pytest.mark.parametrize(("variable", "path", "section"), [
    ("gateway_timeouts", (), "TimeoutsConfig"),
    ("gateway_breaker", (), "BreakerConfig"),
    ("gateway_limits", (), "AllLimitsConfig"),
    ("gateway_limits", ("person",), "LimitsConfig"),
    ("gateway_limits", ("program",), "LimitsConfig"),
    ("gateway_limits", ("house",), "HouseLimitsConfig"),
    ("gateway_prices", (), "PriceConfig"),
])
def test_the_options_are_the_keys_of_the_section(variable: str, path: tuple[str, ...], section: str) -> None:
    option: dict[str, Any] = SPECS["main"]["options"][variable]
    for step in path:
        option = option["options"][step]
    assert set(option["options"]) == set(SCHEMA["$defs"][section]["properties"])


def test_every_section_has_a_variable() -> None:
    for section in set(SCHEMA["properties"]) - NO_VARIABLE:
        assert f"gateway_{section}" in SPECS["main"]["options"], section


def test_the_process_takes_what_the_cluster_takes() -> None:
    """But for what only a cluster has."""
    sections = {f"gateway_{section}" for section in set(SCHEMA["properties"]) - NO_VARIABLE} - {"gateway_database_url"}
    assert sections <= set(SPECS["process"]["options"])
