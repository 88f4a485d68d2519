"""The layers of the architecture: imports point down only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "hearth_gateway"

# Lower number = lower layer. A module may import from its own layer and from lower ones.
RANKS = {
    "__init__": 0, "errors": 0, "clock": 0, "records": 0, "secrets": 0,
    "translate": 1,
    "config": 2, "providers": 2,
    "clients": 3, "core": 3,
    "store": 4, "telemetry": 4,
    "api": 5, "web": 6,
    "app": 7, "server": 8, "contract": 8, "cli_answer": 8, "cli_person": 8, "cli_status": 8, "cli": 9, "__main__": 10,
}  # fmt: skip
FORBIDDEN = {
    "translate": {"flask", "werkzeug", "prometheus_client", "sqlalchemy", "socket", "threading", "os", "time"},
    "core": {"flask", "werkzeug", "prometheus_client", "sqlalchemy", "socket"},
    "providers": {"flask", "werkzeug", "prometheus_client", "sqlalchemy"},
    "store": {"flask", "werkzeug", "prometheus_client"},
}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in RANKS else "__init__"


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    relative = path.relative_to(PACKAGE)
    layer = relative.parts[0].removesuffix(".py")
    assert layer in RANKS, "a new layer needs a rank"
    for name in imports(path):
        top = name.split(".")[0]
        assert top not in FORBIDDEN.get(layer, set()), f"{relative} must not import {name}"
        if top == "hearth_gateway":
            assert RANKS[layer_of(name)] <= RANKS[layer], f"{relative} imports upwards: {name}"


def test_there_is_something_to_check() -> None:
    assert len(MODULES) > 30
