"""What the roles render, as fixtures: once a run, play by play."""

from __future__ import annotations

from typing import Any

import pytest

from tests.render.rendering import VALID, VALID_ACCESS, Renderings, found_in, id_of


@pytest.fixture(scope="session")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Renderings:
    return Renderings(tmp_path_factory.mktemp("render"))


@pytest.fixture(params=VALID, ids=[f.stem for f in VALID])
def rendered(request: pytest.FixtureRequest, everything: Renderings) -> list[dict[str, Any]]:
    """The gateway's objects."""
    return found_in(request.param, everything)


@pytest.fixture(params=VALID_ACCESS, ids=[f.stem for f in VALID_ACCESS])
def access(request: pytest.FixtureRequest, everything: Renderings) -> list[dict[str, Any]]:
    """The objects of front door and sign-in."""
    return found_in(request.param, everything)


@pytest.fixture(params=VALID + VALID_ACCESS, ids=[id_of(f) for f in VALID + VALID_ACCESS])
def all_rendered(request: pytest.FixtureRequest, everything: Renderings) -> list[dict[str, Any]]:
    return found_in(request.param, everything)


@pytest.fixture
def case(request: pytest.FixtureRequest, everything: Renderings) -> list[dict[str, Any]]:
    """The objects of the CASES entry that a test names with `@pytest.mark.parametrize("case", [name], indirect=True)`."""
    made = everything[f"case/{request.param}"]
    assert made.message == ""
    return made.found
