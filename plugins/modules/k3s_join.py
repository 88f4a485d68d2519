#!/usr/bin/python
# Copyright: The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: find a server of the cluster that answers to this host."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: k3s_join
short_description: Find a server that a host can join the cluster through
version_added: 0.3.0
description:
  - k3s takes one address of a server, and waits for ever when nobody is there. This module tries every known address from
    the host that is to join, in their order, and returns the first that answers as a k3s server.
  - Asks for the cluster's authority, the only thing besides C(/ping) that k3s tells without credentials. When servers of
    two clusters answer, it fails before the host joins either.
  - Changes nothing.
author:
  - The Hearth developers (@hearth)
attributes:
  check_mode:
    support: full
    description: It never changes anything. A cluster that this run would have begun does not answer yet, which is no failure then.
  diff_mode:
    support: none
    description: There is nothing to compare.
options:
  candidates:
    description: Addresses to try.
    type: list
    elements: dict
    required: true
    suboptions:
      url:
        description: https address.
        type: str
        required: true
      name:
        description: Host of the inventory behind it. Empty for an address that belongs to no single host.
        type: str
        default: ""
  timeout_s:
    description: Seconds to wait for one answer.
    type: int
    default: 5
"""

EXAMPLES = r"""
- name: Find a server
  homelab.hearth.k3s_join:
    candidates:
      - {url: "https://k3s.lan:6443"}
      - {url: "https://192.168.1.21:6443", name: server1}
"""

RETURN = r"""
url:
  description: The first address that answered. Empty in check mode when none did.
  returned: success
  type: str
name:
  description: The first host of the inventory that answered under its own address; empty when none did.
  returned: success
  type: str
ca_sha256:
  description: Fingerprint of the cluster's authority.
  returned: success
  type: str
"""

import concurrent.futures
import hashlib
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.hearth.plugins.module_utils._sentence import sentence


@dataclass(frozen=True)
class Answer:
    """What one address said: the fingerprint of its authority, or why there is none."""

    url: str
    name: str
    ca_sha256: str = ""
    error: str = ""


def ask(url: str, name: str, timeout_s: int) -> Answer:
    # The authority is what is asked for, so nothing can check it yet. k3s does the same, and then compares its hash with the
    # one in the token, which comes over ssh.
    context = ssl._create_unverified_context()  # noqa: S323
    # A proxy for the internet is not the way to a neighbour.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(f"{url}/cacerts", timeout=timeout_s) as response:
            text = response.read(1 << 20).decode(errors="replace")
    except urllib.error.HTTPError as failure:
        return Answer(url, name, error=f"answers {failure.code}, so it is no k3s server")
    except (OSError, ValueError) as failure:
        reason = getattr(failure, "reason", failure)
        if isinstance(reason, TimeoutError):
            return Answer(url, name, error="no answer")
        return Answer(url, name, error=str(getattr(reason, "strerror", None) or reason).lower())
    if "-----BEGIN CERTIFICATE-----" not in text:
        return Answer(url, name, error="is no k3s server")
    return Answer(url, name, ca_sha256=hashlib.sha256(text.strip().encode()).hexdigest())


def problem(answers: list[Answer]) -> str:
    """Why nobody can be joined, in one sentence with its fix; empty when somebody can."""
    good = [answer for answer in answers if answer.ca_sha256]
    if not good:
        tried = "; ".join(f"{answer.url}: {answer.error}" for answer in answers)
        return (
            f"no server of the cluster answers to this host ({tried}). Start one of them (systemctl start k3s), and open port "
            "6443/tcp between the hosts"
        )
    first = answers[0]
    if not first.name and not first.ca_sha256:
        return (
            f"the address in k3s_registration_address does not lead to a server ({first.url}: {first.error}), though {good[0].url} "
            "answers. Correct it, or leave it empty: then every server is tried in turn"
        )
    if len({answer.ca_sha256 for answer in good}) > 1:
        listed = ", ".join(answer.url for answer in good)
        return (
            f"servers of different clusters answer: {listed}. Decide which cluster to keep, and take k3s off the other hosts "
            "first (playbooks/reset.yml with --limit)"
        )
    return ""


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "candidates": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {"url": {"type": "str", "required": True}, "name": {"type": "str", "default": ""}},
            },
            "timeout_s": {"type": "int", "default": 5},
        },
        supports_check_mode=True,
    )
    candidates: list[dict[str, Any]] = module.params["candidates"]
    with concurrent.futures.ThreadPoolExecutor(max_workers=max(1, len(candidates))) as pool:
        answers = list(pool.map(lambda entry: ask(entry["url"].rstrip("/"), entry["name"], module.params["timeout_s"]), candidates))
    said = problem(answers)
    good = [answer for answer in answers if answer.ca_sha256]
    if said and (good or not module.check_mode):
        module.fail_json(msg=sentence(said) + ".")
    named = [answer for answer in good if answer.name]
    module.exit_json(
        changed=False,
        url=good[0].url if good else "",
        name=named[0].name if named else "",
        ca_sha256=good[0].ca_sha256 if good else "",
    )


if __name__ == "__main__":
    main()
