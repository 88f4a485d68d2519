#!/usr/bin/python
# Copyright: The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: write a set of small files in one go."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: host_files
short_description: Write a set of small text files in one go
version_added: 0.1.0
description:
  - Brings files and links to the wanted state, each by an atomic rename, flushed to disk before the name appears.
  - A role that writes six files by six tasks pays six round trips, also when nothing changes. This pays one.
  - Files belong to the user who runs the module, normally root. Missing folders above a file are made with mode 0755.
author:
  - The Hearth developers (@hearth)
attributes:
  check_mode:
    support: full
    description: Says what would change.
  diff_mode:
    support: full
    description: Shows the difference of each file, except for the content given as O(files[].secret_content).
extends_documentation_fragment:
  - homelab.hearth.files
"""

EXAMPLES = r"""
- name: Write the settings
  homelab.hearth.host_files:
    files:
      - path: /etc/sysctl.d/90-hearth.conf
        content: |
          net.ipv4.ip_forward = 1
      - path: /etc/rancher/k3s/registries.yaml
        secret_content: "{{ registries | to_nice_yaml }}"
        mode: "0600"
      - path: /etc/modules-load.d/old.conf
        state: absent
"""

RETURN = r"""
changed_paths:
  description: What was changed, or would be.
  returned: success
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.hearth.plugins.module_utils import _files


def main() -> None:
    module = AnsibleModule(argument_spec={"files": _files.FILES_SPEC}, supports_check_mode=True)
    done, diffs = _files.bring(module, [_files.HostFile(want) for want in module.params["files"]])
    module.exit_json(changed=bool(done), changed_paths=done, diff=diffs)


if __name__ == "__main__":
    main()
