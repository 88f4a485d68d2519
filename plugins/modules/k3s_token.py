#!/usr/bin/python
# Copyright: The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: keep the cluster token of the first k3s server."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: k3s_token
short_description: Keep the cluster token of the first k3s server
version_added: 0.1.0
description:
  - Writes the token file (mode 0600) that config.yaml names, from the token given, from the one in use, or from chance.
  - The token also encrypts the cluster's keys, so a cluster that exists keeps the one it was made with. Another token is
    refused before anything is written.
  - The token is never returned, logged or shown in a difference.
author: The Hearth developers
attributes:
  check_mode:
    support: full
    description: Says what would change.
  diff_mode:
    support: none
    description: A difference would show the token.
options:
  path:
    description: The token file.
    type: path
    default: /etc/rancher/k3s/token
  data_dir:
    description: Data directory of k3s.
    type: path
    default: /var/lib/rancher/k3s
  token:
    description: Token to use. Empty means the one in use, or, on a new cluster, a random one.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Keep the cluster token
  homelab.hearth.k3s_token:
    token: "{{ k3s_token }}"
"""

RETURN = r"""
origin:
  description: Where the token comes from.
  returned: success
  type: str
  sample: generated
"""

import os
import pathlib
import secrets
import stat
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.hearth.plugins.module_utils import _k3s


class TokenRefused(Exception):
    """The token cannot be used; the text says why and what to do."""


def read_secret(path: pathlib.Path) -> str:
    """Secret part of a token file, empty when the file is missing or was cut to nothing by a power failure."""
    try:
        text = path.read_text()
    except OSError:
        return ""
    return str(_k3s.token_secret(text))


def choose(given: str, in_file: str, in_use: str) -> tuple[str, str]:
    """The token to write and its origin, from what is given, what the token file holds, and what the data was made with.

    Raises TokenRefused when they contradict each other.
    """
    if given:
        problem = _k3s.token_problem(given)
        if problem:
            raise TokenRefused(f"k3s_token {problem}")
        if in_use and given != in_use:
            raise TokenRefused(
                "k3s_token is not the token this cluster was made with. Keep the old one, or change it on the server with "
                "`k3s token rotate --new-token …` and set k3s_token to the new one afterwards"
            )
        return given, "given"
    if in_use:
        # The file was lost or changed: k3s would refuse its own data with any other token.
        return in_use, "kept" if in_file == in_use else "recovered"
    if in_file:
        return in_file, "kept"
    return secrets.token_hex(32), "generated"


def write(path: pathlib.Path, token: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = pathlib.Path(name)
    try:
        with os.fdopen(handle, "w") as sink:
            os.fchmod(sink.fileno(), 0o600)
            sink.write(token + "\n")
            sink.flush()
            os.fsync(sink.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "default": "/etc/rancher/k3s/token", "no_log": False},
            "data_dir": {"type": "path", "default": "/var/lib/rancher/k3s"},
            "token": {"type": "str", "default": "", "no_log": True},
        },
        supports_check_mode=True,
    )
    path = pathlib.Path(module.params["path"])
    in_use = read_secret(pathlib.Path(module.params["data_dir"]) / "server" / "token")
    try:
        token, origin = choose(module.params["token"], read_secret(path), in_use)
        present = path.read_text() if path.exists() else ""
        right = present == token + "\n" and stat.S_IMODE(path.stat().st_mode) == 0o600
        if not right and not module.check_mode:
            write(path, token)
    except TokenRefused as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{path} cannot be written: {error.strerror or error}")
    module.exit_json(changed=not right, origin=origin)


if __name__ == "__main__":
    main()
