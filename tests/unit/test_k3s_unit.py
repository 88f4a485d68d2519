"""Unit and environment of k3s, compared line by line with what k3s's own installer writes (facts of the k3s contract)."""

from __future__ import annotations

import shlex
import string
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ansible.plugins.filter.core import FilterModule
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = Path(__file__).resolve().parents[2] / "roles" / "k3s" / "templates"

# Section -> the lines that must be there, and no others. Order within a key counts (ExecStartPre, EnvironmentFile).
UNIT = {
    "Unit": {
        "Description": ["Lightweight Kubernetes"],
        "Documentation": ["https://k3s.io"],
        "Wants": ["network-online.target"],
        "After": ["network-online.target"],
    },
    "Install": {"WantedBy": ["multi-user.target"]},
    "Service": {
        "Type": ["notify"],
        "EnvironmentFile": ["-/etc/default/%N", "-/etc/sysconfig/%N", "-/etc/systemd/system/UNIT.service.env"],
        "KillMode": ["process"],
        "Delegate": ["yes"],
        "User": ["root"],
        "LimitNOFILE": ["1048576"],
        "LimitNPROC": ["infinity"],
        "LimitCORE": ["infinity"],
        "TasksMax": ["infinity"],
        "TimeoutStartSec": ["0"],
        "Restart": ["always"],
        "RestartSec": ["5s"],
        "ExecStartPre": ["-/sbin/modprobe br_netfilter", "-/sbin/modprobe overlay"],
        "ExecStart": ["/usr/local/bin/k3s KIND"],
    },
}


@cache
def templates() -> Environment:
    """As Ansible renders: trim_blocks, and its own to_json."""
    environment = Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True,  # noqa: S701
                              keep_trailing_newline=True)
    environment.filters["to_json"] = FilterModule().filters()["to_json"]
    return environment


def render(name: str, **variables: Any) -> str:
    return templates().get_template(name).render(**variables)


def parse(text: str) -> dict[str, dict[str, list[str]]]:
    found: dict[str, dict[str, list[str]]] = {}
    section = ""
    for line in text.splitlines():
        if line.startswith("["):
            section = line.strip("[]")
            found[section] = {}
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found[section].setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize(("unit", "kind"), [("k3s", "server"), ("k3s-agent", "agent")])
def test_the_unit_is_that_of_the_installer(unit: str, kind: str) -> None:
    expected = {
        section: {k: [v.replace("UNIT", unit).replace("KIND", kind) for v in values] for k, values in keys.items()}
        for section, keys in UNIT.items()
    }
    assert parse(render("k3s.service.j2", _k3s_unit=unit, _k3s_kind=kind, k3s_data_mount="")) == expected


def test_k3s_does_not_begin_an_empty_cluster_where_its_disk_is_missing() -> None:
    """The run refuses it; a reboot with `nofail` in fstab would do it."""
    given = {"_k3s_unit": "k3s", "_k3s_kind": "server", "k3s_data_mount": "/data", "k3s_data_dir": "/data/k3s"}
    unit = parse(render("k3s.service.j2", **given))
    assert unit.pop("Unit") == UNIT["Unit"] | {"RequiresMountsFor": ["/data/k3s"], "AssertPathIsMountPoint": ["/data"]}
    usual = parse(render("k3s.service.j2", **given | {"k3s_data_mount": ""}))
    assert {"Unit": UNIT["Unit"], **unit} == usual


def environment_of(text: str) -> dict[str, str]:
    """As systemd reads it: NAME="value", in which a backslash keeps a quote or a backslash."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return dict(shlex.split(line)[0].split("=", 1) for line in lines)


PRINTABLE = "".join(c for c in string.printable if c not in "\t\n\r\x0b\x0c")


@given(st.text(st.sampled_from(PRINTABLE), max_size=40))
def test_every_printable_value_survives_the_environment_file(value: str) -> None:
    """A proxy's password may hold `%`, `$`, quotes and blanks."""
    assert environment_of(render("k3s.service.env.j2", k3s_environment={"HTTPS_PROXY": value})) == {"HTTPS_PROXY": value}


def test_numbers_and_booleans_become_text_and_names_are_sorted() -> None:
    text = render("k3s.service.env.j2", k3s_environment={"B": 1, "A": True})
    assert environment_of(text) == {"A": "True", "B": "1"}
    assert text.index("A=") < text.index("B=")
