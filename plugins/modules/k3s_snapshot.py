#!/usr/bin/python
# Copyright: The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: a copy of the cluster's data at this moment."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: k3s_snapshot
short_description: Take a copy of the cluster's data
version_added: 0.3.0
description:
  - With etcd it is a snapshot that k3s takes. With SQLite it is a copy made by SQLite itself while k3s runs, whole at one moment.
  - Runs on a server. A snapshot is worth nothing without the cluster's token, which stays where it is.
author:
  - The Hearth developers (@hearth)
attributes:
  check_mode:
    support: full
    description: Takes none.
  diff_mode:
    support: none
    description: There is nothing to compare.
options:
  name:
    description: Begin of its name. When one of this name was taken before, none is taken again.
    type: str
    required: true
  data_dir:
    description: Data directory of k3s.
    type: path
    default: /var/lib/rancher/k3s
  datastore:
    description: Where the data lie.
    type: str
    choices: [sqlite, etcd]
    required: true
"""

EXAMPLES = r"""
- name: Keep what there is before the upgrade
  homelab.hearth.k3s_snapshot:
    name: before-v1.37.1
    datastore: etcd
"""

RETURN = r"""
path:
  description: Where the snapshot lies on the host. Empty in check mode.
  returned: success
  type: str
"""

import contextlib
import json
import pathlib
import sqlite3
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.hearth.plugins.module_utils._kubectl import K3S


def taken(module: AnsibleModule, name: str) -> list[str]:
    """Places of the snapshots of etcd whose name begins so."""
    code, output, error = module.run_command([K3S, "etcd-snapshot", "ls", "-o", "json"])
    if code != 0:
        module.fail_json(msg=f"k3s does not list its snapshots: {last_line(error)}")
    try:
        items: list[dict[str, Any]] = json.loads(output or "{}").get("items") or []
    except ValueError:
        module.fail_json(msg="k3s lists its snapshots in a form that is not JSON")
    return [str(item["spec"].get("location", "")) for item in items if str(item["spec"].get("snapshotName", "")).startswith(f"{name}-")]


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else "no message"


def of_etcd(module: AnsibleModule, name: str) -> tuple[bool, str]:
    before = taken(module, name)
    if before or module.check_mode:
        return not before, before[0] if before else ""
    code, _output, error = module.run_command([K3S, "etcd-snapshot", "save", "--name", name])
    if code != 0:
        module.fail_json(msg=f"k3s took no snapshot: {last_line(error)}")
    after = taken(module, name)
    if not after:
        module.fail_json(msg=f"k3s says that it took a snapshot, and lists none named {name}")
    return True, after[0].removeprefix("file://")


def of_sqlite(module: AnsibleModule, name: str, data: pathlib.Path) -> tuple[bool, str]:
    folder = data / "server" / "db" / "snapshots"
    before = sorted(folder.glob(f"{name}-*.db"))
    if before or module.check_mode:
        return not before, str(before[0]) if before else ""
    target = folder / f"{name}-{int(time.time())}.db"
    partial = target.with_suffix(".partial")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial.touch(mode=0o600)
        source = f"file:{data / 'server/db/state.db'}?mode=ro"
        with contextlib.closing(sqlite3.connect(source, uri=True)) as live, contextlib.closing(sqlite3.connect(partial)) as copy:
            live.backup(copy)
        partial.replace(target)
    except (OSError, sqlite3.Error) as error:
        partial.unlink(missing_ok=True)
        module.fail_json(msg=f"{data / 'server/db/state.db'} cannot be copied: {error}")
    return True, str(target)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "data_dir": {"type": "path", "default": "/var/lib/rancher/k3s"},
            "datastore": {"type": "str", "choices": ["sqlite", "etcd"], "required": True},
        },
        supports_check_mode=True,
    )
    if module.params["datastore"] == "etcd":
        changed, path = of_etcd(module, module.params["name"])
    else:
        changed, path = of_sqlite(module, module.params["name"], pathlib.Path(module.params["data_dir"]))
    module.exit_json(changed=changed, path=path)


if __name__ == "__main__":
    main()
