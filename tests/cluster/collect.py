"""collect.py BED: copy the logs of a bed's hosts, units and pods into build/reports/, if that bed is up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.cluster.support import Bed, collect

if __name__ == "__main__":
    bed = Bed(sys.argv[1])
    if (bed.state / "ssh_config").exists():
        try:
            collect(bed, "logs")
        except (subprocess.SubprocessError, OSError) as error:
            print(f"no logs from {bed.name}: {error}")  # a host that is down: destroying it must go on
