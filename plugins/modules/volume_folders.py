#!/usr/bin/python
# Copyright: The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: folders of local volumes on a host that has a new disk."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: volume_folders
short_description: Make folders of local volumes anew on a host that has a new disk
version_added: 0.1.0
description:
  - A volume of k3s's local-path provisioner is a folder on one host. When that host comes back under its name with a new disk, the
    kubelet makes the folder of each pod, for root alone, and a gateway or a database that does not run as root cannot write there.
  - Makes folders that are missing as the provisioner makes them, open to every user. One that the kubelet made is opened, if nothing
    is in it. What has content, or other rights, is left as it is.
  - Runs on that host.
author:
  - The Hearth developers (@hearth)
attributes:
  check_mode:
    support: full
    description: Says what it would make.
  diff_mode:
    support: none
    description: There is no text to compare.
options:
  paths:
    description: Folders of volumes. Those that do not lie directly in O(storage) are left alone, they are somebody else's.
    type: list
    elements: path
    required: true
  storage:
    description: Where the provisioner makes its folders.
    type: path
    required: true
seealso:
  - module: homelab.hearth.cluster_node
"""

EXAMPLES = r"""
- name: Make the folders of its volumes anew
  homelab.hearth.volume_folders:
    paths: "{{ node.folders }}"
    storage: /var/lib/rancher/k3s/storage
"""

RETURN = r"""
made:
  description: Folders that were made or opened. They are empty.
  returned: always
  type: list
  elements: str
"""

import pathlib
import stat

from ansible.module_utils.basic import AnsibleModule

OPEN = 0o777
# How the kubelet makes a folder that a hostPath names and nobody made (DirectoryOrCreate).
OF_THE_KUBELET = 0o755
KUBELET_UID = 0
STORAGE = 0o701  # as k3s makes it


def is_fresh(path: pathlib.Path) -> bool:
    """Whether nobody has used it: not there, or as the kubelet makes it and empty."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return True
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != KUBELET_UID or stat.S_IMODE(found.st_mode) != OF_THE_KUBELET:
        return False
    return next(path.iterdir(), None) is None


def main() -> None:
    spec = {"paths": {"type": "list", "elements": "path", "required": True}, "storage": {"type": "path", "required": True}}
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    storage = pathlib.Path(module.params["storage"])
    paths = [pathlib.Path(path) for path in module.params["paths"]]
    try:
        made = [path for path in paths if path.parent == storage and path.name != ".." and is_fresh(path)]
        for path in [] if module.check_mode else made:
            storage.mkdir(STORAGE, parents=True, exist_ok=True)
            path.mkdir(exist_ok=True)
            path.chmod(OPEN)  # whatever the process's umask
    except OSError as error:
        module.fail_json(msg=f"Cannot make {error.filename}: {error.strerror}.")
    module.exit_json(changed=bool(made), made=[str(path) for path in made])


if __name__ == "__main__":
    main()
