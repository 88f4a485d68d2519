"""reset.yml: asks first, then leaves the host as it was before the first run."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cluster.observe import differences
from tests.cluster.support import Bed, play
from tests.cluster.test_bare import BEFORE


def test_reset_asks_first(bed: Bed) -> None:
    before = bed.observe("processes")
    run = play("playbooks/reset.yml", bed.inventory)
    assert run.rc != 0, "a reset without a yes must not go through"
    assert differences(before, bed.observe("processes")) == []


def test_reset_leaves_the_host_as_it_was(bed: Bed) -> None:
    kubeconfig = Path(bed.variables()["k3s_kubeconfig"])
    run = play("playbooks/reset.yml", bed.inventory, "-e", "reset_confirmed=true")
    assert run.rc == 0, run.output[-6000:]
    assert not kubeconfig.exists()
    assert differences(json.loads(BEFORE.read_text()), bed.observe("files")) == []


def test_a_second_reset_has_nothing_to_do(bed: Bed) -> None:
    run = play("playbooks/reset.yml", bed.inventory, "-e", "reset_confirmed=true")
    assert run.rc == 0, run.output[-6000:]
    assert run.count("changed") == 0, run.output[-4000:]
