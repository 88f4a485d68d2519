# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The API as a server's own administrator, through the kubectl that k3s brings. For modules that run on a host.

On the controller _k8s.py talks to the API directly. Here that would need a YAML parser, which a bare host does not have;
and a server reaches its own API while the one that the controller knows is being restarted. Raw requests only: any other
makes kubectl leave a cache in root's home.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule

K3S = "/usr/local/bin/k3s"
REQUEST_TIMEOUT = "--request-timeout=20s"

Object = dict[str, Any]


class KubectlError(Exception):
    """Why the API server did not do it. `reason` is Kubernetes' own word (NotFound, Conflict, TooManyRequests), or empty."""

    def __init__(self, text: str, reason: str = "") -> None:
        super().__init__(text)
        self.reason = reason


class Kubectl:
    """Raw verbs. Objects go in and out as plain dictionaries."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module

    def _run(self, verb: str, path: str, body: Mapping[str, Any] | None = None) -> Object:
        words = [K3S, "kubectl", REQUEST_TIMEOUT, verb, "--raw", path]
        if verb in ("create", "replace"):
            words += ["-f", "-"]
        code, output, error = self.module.run_command(words, data=None if body is None else json.dumps(body))
        if code != 0:
            text = error.strip().splitlines()[-1] if error.strip() else f"kubectl ended with status {code}"
            found = re.search(r"Error from server(?: \((\w+)\))?: (.*)", text)
            raise KubectlError(found.group(2) if found else text, (found.group(1) or "") if found else "")
        try:
            answer: Object = json.loads(output)
        except ValueError:
            raise KubectlError(f"the API server answered {path} with something else than JSON") from None
        return answer

    def get(self, path: str) -> Object | None:
        """One object or list; None when it does not exist."""
        try:
            return self._run("get", path)
        except KubectlError as error:
            if error.reason == "NotFound":
                return None
            raise

    def items(self, path: str) -> list[Object]:
        return list((self.get(path) or {}).get("items") or [])

    def create(self, path: str, body: Mapping[str, Any]) -> Object:
        return self._run("create", path, body)

    def replace(self, path: str, body: Mapping[str, Any]) -> Object:
        return self._run("replace", path, body)

    def delete(self, path: str) -> None:
        """Delete; gone already is fine."""
        try:
            self._run("delete", path)
        except KubectlError as error:
            if error.reason != "NotFound":
                raise
