#!/usr/bin/python
# Copyright: The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: write the files that k3s reads, its token among them."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: k3s_files
short_description: Write the files that k3s reads, and keep its token
version_added: 0.1.0
description:
  - Writes the token file (mode 0600) that config.yaml names, from the token given, from the one in use, or from chance.
    Then it writes the files given, as M(homelab.hearth.host_files) does, in the same call.
  - The token also encrypts the cluster's keys, so a cluster that exists keeps the one it was made with. Another token is
    refused before anything is written.
  - The token is never returned, logged or shown in a difference.
author:
  - The Hearth developers (@hearth)
attributes:
  check_mode:
    support: full
    description: Says what would change.
  diff_mode:
    support: full
    description: Shows the difference of each file, except for the token and the content given as O(files[].secret_content).
extends_documentation_fragment:
  - homelab.hearth.files
options:
  token_path:
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
  cluster_token:
    description:
      - Token of the cluster that this host is about to join, as one of its servers keeps it, with the fingerprint of the
        cluster's authority. The host then accepts no other cluster.
      - O(token) must not contradict it.
    type: str
    default: ""
  joins:
    description: Whether this host belongs to a cluster that another one began. It is never given a random token.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Write token and configuration
  homelab.hearth.k3s_files:
    token: "{{ k3s_token }}"
    files:
      - path: /etc/rancher/k3s/config.yaml
        content: "{{ config | to_nice_yaml }}"
        mode: "0600"
"""

RETURN = r"""
changed_paths:
  description: What was changed, or would be, the token's path among it.
  returned: success
  type: list
  elements: str
token_origin:
  description: Where the token comes from.
  returned: success
  type: str
  sample: generated
"""

import pathlib
import secrets

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.hearth.plugins.module_utils import _files, _k3s

ROTATED = (
    "k3s_token is not the token this cluster was made with. Keep the old one, or change it on the server with "
    "`k3s token rotate --new-token …` and set k3s_token to the new one afterwards"
)


class TokenRefused(Exception):
    """The token cannot be used; the text says why and what to do. `missing`: there is none."""

    def __init__(self, text: str, missing: bool = False) -> None:
        super().__init__(text)
        self.missing = missing


def read_file(path: pathlib.Path) -> str:
    """A token file, empty when it is missing or was cut to nothing by a power failure."""
    try:
        return path.read_text()
    except OSError:
        return ""


def read_secret(path: pathlib.Path) -> str:
    """Secret part of a token file."""
    return str(_k3s.token_secret(read_file(path)))


def choose_for_joiner(given: str, cluster: str, in_file: str, in_use: str) -> tuple[str, str]:
    """The same for a host that joined, or joins, a cluster that another one began.

    cluster: token of that cluster in its long form, empty where the host is part of it already. in_file: the whole file.
    """
    secret_in_file = str(_k3s.token_secret(in_file))
    if given and in_use and given != in_use:
        raise TokenRefused(ROTATED)
    if cluster:
        if given and given != _k3s.token_secret(cluster):
            raise TokenRefused(
                "the token in the inventory is not that of the cluster this host is to join. Leave k3s_token and k3s_agent_token empty, "
                "and it is fetched from a server"
            )
        return cluster.strip(), "cluster"
    if given:
        # The long form, with the fingerprint of the cluster, stays as long as it says the same.
        return (in_file.strip(), "kept") if given == secret_in_file else (given, "given")
    if in_use and in_use != secret_in_file:
        return in_use, "recovered"
    if secret_in_file:
        return in_file.strip(), "kept"
    raise TokenRefused(
        "the token file of this host is empty, and k3s would begin a cluster of its own without one. Give k3s_token, or take k3s "
        "off this host (playbooks/reset.yml with --limit) and let it join again",
        missing=True,
    )


def choose(given: str, in_file: str, in_use: str) -> tuple[str, str]:
    """The token to write and its origin, from what is given, what the token file holds, and what the data was made with.

    Raises TokenRefused when they contradict each other.
    """
    if given:
        problem = _k3s.token_problem(given)
        if problem:
            raise TokenRefused(f"k3s_token {problem}")
        if in_use and given != in_use:
            raise TokenRefused(ROTATED)
        return given, "given"
    if in_use:
        # The file was lost or changed: k3s would refuse its own data with any other token.
        return in_use, "kept" if in_file == in_use else "recovered"
    if in_file:
        return in_file, "kept"
    return secrets.token_hex(32), "generated"


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "token_path": {"type": "path", "default": "/etc/rancher/k3s/token", "no_log": False},
            "data_dir": {"type": "path", "default": "/var/lib/rancher/k3s"},
            "token": {"type": "str", "default": "", "no_log": True},
            "cluster_token": {"type": "str", "default": "", "no_log": True},
            "joins": {"type": "bool", "default": False},
            "files": _files.FILES_SPEC,
        },
        supports_check_mode=True,
    )
    path, given = module.params["token_path"], module.params["token"]
    in_use = read_secret(pathlib.Path(module.params["data_dir"]) / "server" / "token")
    try:
        if module.params["joins"]:
            token, origin = choose_for_joiner(given, module.params["cluster_token"], read_file(pathlib.Path(path)), in_use)
        else:
            token, origin = choose(given, read_secret(pathlib.Path(path)), in_use)
    except TokenRefused as error:
        # In check mode the cluster may not be there yet, from which the token would come.
        if not (module.check_mode and error.missing):
            module.fail_json(msg=str(error))
        token, origin = "of the cluster", "cluster"
    wanted = [_files.secret_file(path, token + "\n"), *[_files.HostFile(want) for want in module.params["files"]]]
    done, diffs = _files.bring(module, wanted)
    module.exit_json(changed=bool(done), changed_paths=done, token_origin=origin, diff=diffs)


if __name__ == "__main__":
    main()
