"""One bed and one deployment for all tests here. `HEARTH_KEEP_BED=1` takes a bed that is up already and leaves it up."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[2]
# The people, tables and browsers of the contract tests, by their plain names as there.
sys.path.insert(0, str(TESTS / "contract"))

from tests.cluster.access.deployed import KEPT, Deployed, note  # noqa: E402
from tests.cluster.support import Bed, collect  # noqa: E402


@pytest.fixture(scope="session")
def deployed() -> Iterator[Deployed]:
    bed = Bed("access")
    if not KEPT:
        bed.call("down", check=False)
    kept = bed.inventory.exists()
    if not kept:
        bed.call("up", "-n", "1", "--with", "services", timeout_s=1800)
    made = Deployed(bed)
    # On a bed that was kept, only the address of the app behind the sign-in is another one.
    run = made.deploy(*(("--tags", "access") if kept else ()))
    assert run.rc == 0, run.output[-6000:]
    note("deploy", play_s=run.took_s)
    yield made
    made.close()
    collect(bed, "logs")
    if not KEPT:
        bed.call("down")
