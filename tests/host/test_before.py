"""Before the roles run: what the bare host looks like is kept, to be compared later."""

from __future__ import annotations

import json
import os

from tests.cluster.support import REPORTS, Bed

BED = Bed(f"molecule-{os.environ.get('MOLECULE_SCENARIO_NAME', 'default')}")
BEFORE = REPORTS / "host-before.json"


def test_the_host_is_bare() -> None:
    REPORTS.mkdir(parents=True, exist_ok=True)
    seen = BED.observe("files")
    BEFORE.write_text(json.dumps(seen))
    packages = {line.split()[0] for line in seen["packages"]}
    assert "buildah" not in packages
    assert not [p for p in seen["files"] if p.startswith(("/etc/sysctl.d/90-hearth", "/etc/modules-load.d/hearth"))]
