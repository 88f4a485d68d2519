"""Before the first run: a bare host, and a check run that says what it would do and does none of it."""

from __future__ import annotations

import json

from tests.cluster.observe import differences
from tests.cluster.support import REPORTS, Bed, play

BEFORE = REPORTS / "cluster-before.json"


def test_the_host_is_bare(bed: Bed) -> None:
    assert bed.ssh("test -e /usr/local/bin/k3s; echo $?").strip() == "1"
    assert bed.ssh("dpkg-query -W -f '${db:Status-Status}' buildah 2>/dev/null || true").strip() != "installed"


def test_check_mode_on_a_bare_host_tells_the_truth_and_changes_nothing(bed: Bed) -> None:
    before = bed.observe("files")
    REPORTS.mkdir(parents=True, exist_ok=True)
    BEFORE.write_text(json.dumps(before))
    run = play("site.yml", bed.inventory, "--check", "--diff")
    assert run.rc == 0, run.output[-6000:]
    assert run.count("changed") > 3, run.output[-3000:]
    assert "k3s.service" in run.output, "the unit that would be written is not in the diff"
    assert differences(before, bed.observe("files")) == []
