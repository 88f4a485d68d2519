"""Fixtures of the cluster tests: the bed that molecule started, seen through testinfra and through requests."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import testinfra

# PostgreSQL as in the gateway's tests, by its plain name as there.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "gateway"))

from tests.cluster.support import Bed


@pytest.fixture(scope="session")
def bed() -> Bed:
    bed = Bed("molecule-cluster")
    assert bed.inventory.exists(), "this bed is not up: these tests run inside `molecule test -s cluster`"
    return bed


@pytest.fixture(scope="session")
def host(bed: Bed) -> Any:
    return testinfra.get_host("ssh://h1", ssh_config=str(bed.state / "ssh_config"))
