#!/usr/bin/python
# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Pack a source directory into one tar archive, the same bytes for the same files."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: source_archive
short_description: Pack a source directory into one tar archive
version_added: 0.1.0
description:
  - Packs the files that P(homelab.hearth.content_hash#filter) counts, and no others. Order, owners and times are
    fixed, so that the same files give the same bytes.
  - Copying one archive takes a second where copying its files one by one takes a second each.
options:
  src:
    description: Directory to pack.
    type: path
    required: true
  dest:
    description: Archive to write, replaced at once when it is complete.
    type: path
    required: true
attributes:
  check_mode:
    support: full
    description: Says whether the archive would change.
  diff_mode:
    support: none
    description: The archive is binary.
author:
  - The Hearth developers (@hearth)
"""

EXAMPLES = r"""
- name: Pack the gateway
  homelab.hearth.source_archive:
    src: files/gateway
    dest: /tmp/gateway.tar
  delegate_to: localhost
"""

RETURN = r"""
sha256:
  description: Hash of the archive.
  returned: always
  type: str
"""

import hashlib
import io
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.hearth.plugins.module_utils._source_tree import write_tar


def main() -> None:
    module = AnsibleModule(
        argument_spec={"src": {"type": "path", "required": True}, "dest": {"type": "path", "required": True}},
        supports_check_mode=True,
    )
    dest = Path(module.params["dest"])
    packed = io.BytesIO()
    try:
        write_tar(Path(module.params["src"]), packed)
        changed = not dest.exists() or dest.read_bytes() != packed.getvalue()
        if changed and not module.check_mode:
            partial = dest.with_name(f".{dest.name}.partial")
            partial.write_bytes(packed.getvalue())
            module.atomic_move(str(partial), str(dest))
    except OSError as error:
        module.fail_json(msg=f"{module.params['src']} cannot be packed: {error}")
    module.exit_json(changed=changed, sha256=hashlib.sha256(packed.getvalue()).hexdigest())


if __name__ == "__main__":
    main()
