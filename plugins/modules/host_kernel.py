#!/usr/bin/python
# Copyright: The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: load kernel modules and set kernel settings, now."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: host_kernel
short_description: Load kernel modules and set kernel settings in the running kernel
version_added: 0.1.0
description:
  - Acts on the running kernel only. What shall hold after a reboot belongs in files, see M(homelab.hearth.host_files).
  - Touches only what differs; a setting that has the wanted value is not written, because it may be read-only.
author:
  - The Hearth developers (@hearth)
attributes:
  check_mode:
    support: full
    description: Says what would change.
  diff_mode:
    support: full
    description: Shows the settings before and after.
options:
  modules:
    description: Modules to load, in this order.
    type: list
    elements: str
    default: []
  sysctl:
    description: Settings to write, name to value.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Forward packets
  homelab.hearth.host_kernel:
    modules: [br_netfilter]
    sysctl:
      net.ipv4.ip_forward: "1"
"""

RETURN = r"""
settings:
  description: Settings that were written, or would be, with their value before.
  returned: success
  type: dict
"""

import pathlib

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.hearth.plugins.module_utils import _host


def present_value(key: str) -> str | None:
    """Value of a setting with single blanks, None when the kernel has no such setting."""
    try:
        return " ".join(pathlib.Path(_host.sysctl_path(key)).read_text().split())
    except OSError:
        return None


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "modules": {"type": "list", "elements": "str", "default": []},
            "sysctl": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    names = module.params["modules"]
    if names and not module.check_mode:
        code, _output, error = module.run_command(["modprobe", "--all", *names])
        if code != 0:
            module.fail_json(msg=f"modprobe cannot load {', '.join(names)}: {error.strip()}")
    wanted = {key: " ".join(str(value).split()) for key, value in module.params["sysctl"].items()}
    before = {key: present_value(key) for key in wanted}
    differing = {key: value for key, value in wanted.items() if before[key] != value}
    for key, value in differing.items():
        if module.check_mode:
            continue
        try:
            pathlib.Path(_host.sysctl_path(key)).write_text(value)
        except OSError as error:
            module.fail_json(msg=f"the kernel refuses {key} = {value}: {error.strerror}. Is its module loaded?")
    module.exit_json(
        changed=bool(names or differing),
        settings={key: before[key] for key in differing},
        diff={
            "before": "".join(f"{k} = {before[k]}\n" for k in differing),
            "after": "".join(f"{k} = {v}\n" for k, v in differing.items()) + "".join(f"load {n}\n" for n in names),
        },
    )


if __name__ == "__main__":
    main()
