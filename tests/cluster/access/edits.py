"""edits.py KUBECONFIG COUNT: let guests in and out again, COUNT changes one right after the other, by the modules' own code.

In one process, because a playbook for each would take a quarter of an hour; and the proxies are told of every fifth change,
which is when they read the list, because telling takes longer than changing. Ends when the sign-in has read the last one;
prints the seconds of the changes, and of that wait.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from ansible.utils.collection_loader._collection_finder import _AnsibleCollectionFinder

_AnsibleCollectionFinder(paths=[str(Path(__file__).resolve().parents[3] / ".collections")])._install()

from ansible_collections.homelab.hearth.plugins.module_utils._k8s import Cluster  # noqa: E402
from ansible_collections.homelab.hearth.plugins.module_utils._whitelist import LIST_SPEC, change, wait_until_read  # noqa: E402

WAIT_S = 60


def main(kubeconfig: str, count: int) -> None:
    where = {name: option["default"] for name, option in LIST_SPEC.items()}
    cluster = Cluster(SimpleNamespace(params={"kubeconfig": kubeconfig, "context": None}, check_mode=False), "hearth-person")
    began = time.monotonic()
    changed = 0
    for number in range(count):
        state = "absent" if number % 2 else "present"
        options = {**where, "state": state, "repair": False, "allow_empty": False, "create_namespace": False,
                   "refresh_pods": number % 5 == 4}  # fmt: skip
        changed += change(cluster, options, [f"guest{number // 2}@home.test"])["changed"]
    written = time.monotonic()
    wait_until_read(cluster, where["namespace"], where["name"], WAIT_S)
    print(json.dumps({"changed": changed, "edits_s": written - began, "read_after_s": time.monotonic() - written}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
