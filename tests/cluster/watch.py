"""Runs on a host of the bed: when a mounted file comes or goes, and when the gateway follows.

Standard library only. Standard input is one JSON object:

    {"address": "10.43.0.7:8080", "token": "…", "file": "/var/lib/kubelet/pods/…", "present": true, "timeout_s": 180}

Waits until the file is (not) there and the token is accepted (refused), and prints {"file_at", "gateway_at"}: seconds of
the epoch, null for what did not happen in time.
"""

from __future__ import annotations

import http.client
import json
import sys
import time
from pathlib import Path
from typing import Any


def accepted(job: dict[str, Any]) -> bool:
    host, _, port = job["address"].rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    connection.request("GET", "/v1/models", headers={"x-api-key": job["token"]})
    status = connection.getresponse().status
    connection.close()
    if status not in (http.client.OK, http.client.UNAUTHORIZED):
        raise SystemExit(f"HTTP {status} is neither yes nor no")
    return status == http.client.OK


def main() -> int:
    job = json.load(sys.stdin)
    seen: dict[str, float | None] = {"file_at": None, "gateway_at": None}
    deadline = time.time() + job["timeout_s"]
    while None in seen.values() and time.time() < deadline:
        if seen["file_at"] is None and Path(job["file"]).exists() == job["present"]:
            seen["file_at"] = time.time()
        if seen["gateway_at"] is None and accepted(job) == job["present"]:
            seen["gateway_at"] = time.time()
        time.sleep(0.1)
    print(json.dumps(seen))
    return 0


if __name__ == "__main__":
    sys.exit(main())
