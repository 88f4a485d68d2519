#!/usr/bin/python
# Copyright: The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: whether a snapshot of etcd is whole."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: k3s_snapshot_info
short_description: Tell whether a snapshot of etcd is whole
version_added: 0.3.0
description:
  - Reads the file as etcd does before it restores it. At its end lies the SHA-256 of all that is before, so that a file that was cut
    or changed on its way is known before a cluster is stopped for it.
  - Runs where the file is. Whether it is of this cluster shows only with the cluster's token, when k3s restores it.
author:
  - The Hearth developers (@hearth)
attributes:
  check_mode:
    support: full
    description: Only reads.
  diff_mode:
    support: none
    description: Nothing is changed.
options:
  path:
    description: The file. One that ends in C(.zip) is taken for a compressed snapshot.
    type: path
    required: true
seealso:
  - module: homelab.hearth.k3s_snapshot
"""

EXAMPLES = r"""
- name: Look at the snapshot
  homelab.hearth.k3s_snapshot_info:
    path: /mnt/backup/etcd-snapshot-h1-1763800000
  register: snapshot

- name: Refuse one that cannot be restored
  ansible.builtin.fail:
    msg: "The snapshot {{ snapshot.problem }}"
  when: snapshot.problem
"""

RETURN = r"""
exists:
  description: Whether there is anything under this path.
  returned: always
  type: bool
problem:
  description: Why it cannot be restored, the end of a sentence that begins with the file. Empty when it is whole.
  returned: always
  type: str
  sample: is not whole, or was changed since it was taken (its SHA-256 is another)
"""

import hashlib
import pathlib
import zipfile
import zlib
from typing import IO

from ansible.module_utils.basic import AnsibleModule

# etcd writes pages of 512 bytes or a multiple, and behind them their SHA-256 (etcdutl, snapshot/v3_snapshot.go, hasChecksum).
PAGE = 512
HASH = hashlib.sha256().digest_size
AT_ONCE = 1 << 20


def fault(file: IO[bytes]) -> str:
    hashed, size, last = hashlib.sha256(), 0, b""
    while chunk := file.read(AT_ONCE):
        size += len(chunk)
        last += chunk
        hashed.update(last[:-HASH])
        last = last[-HASH:]
    if size == 0:
        return "is no snapshot: it is empty"
    if size % PAGE != HASH:
        return "is not whole, or is no snapshot of etcd (it does not end in a SHA-256)"
    if hashed.digest() != last:
        return "is not whole, or was changed since it was taken (its SHA-256 is another)"
    return ""


def problem_of(path: pathlib.Path) -> str:
    if not path.is_file():
        return "is no snapshot: it is no file"
    try:
        if path.suffix != ".zip":
            with path.open("rb") as file:
                return fault(file)
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if len(names) != 1:
                return f"is no snapshot: there are {len(names)} files in it"
            with archive.open(names[0]) as file:
                return fault(file)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        return f"is not whole, or is no compressed snapshot ({error})"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def main() -> None:
    module = AnsibleModule(argument_spec={"path": {"type": "path", "required": True}}, supports_check_mode=True)
    path = pathlib.Path(module.params["path"])
    exists = path.exists()
    module.exit_json(changed=False, exists=exists, problem=problem_of(path) if exists else "does not exist")


if __name__ == "__main__":
    main()
