"""Makes the support module importable and its fixtures known."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "files" / "gateway" / "src")]

from bad_servers import certificates  # noqa: E402
from gateway_support import own, second_vendor, shared, vendor  # noqa: E402
from postgres_support import postgresql, store  # noqa: E402

__all__ = ["certificates", "own", "postgresql", "second_vendor", "shared", "store", "vendor"]
