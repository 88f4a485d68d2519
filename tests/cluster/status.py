"""Runs on a host of the bed: one GET through the Service; prints the HTTP status as a number.

Standard library only. Standard input is one JSON object, so that no credential stands in a command line:

    {"address": "10.43.0.7:8080", "path": "/api/me", "headers": {…}}
"""

from __future__ import annotations

import http.client
import json
import sys


def main() -> int:
    job = json.load(sys.stdin)
    host, _, port = job["address"].rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    connection.request("GET", job["path"], headers=job["headers"])
    print(connection.getresponse().status)
    connection.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
