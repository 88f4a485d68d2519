# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filters around the gateway. Documentation: content_hash.yml and its neighbours."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible.utils.display import Display
from ansible_collections.homelab.hearth.plugins.module_utils import _egress, _gateway, _source_tree

# `hearth-gateway check-config`: exit codes, and how its lines begin when the file is standard input.
CONFIG_IS_FINE = 0
CONFIG_IS_WRONG = 2
CONFIG_ON_STDIN = "/dev/stdin"
CONFIG_PREFIX = f"hearth-gateway: {CONFIG_ON_STDIN}: "
CONFIG_WARNING = "warning: "
CHECK_TIMEOUT_S = 60
INSTALL = "pip install -r requirements/runtime.txt beside Ansible, or pip install pydantic"


def content_hash(paths: str | Sequence[str], extra: Sequence[str] = (), length: int = 16) -> str:
    """See content_hash.yml."""
    roots = [paths] if isinstance(paths, str) else paths
    try:
        return str(_source_tree.content_hash([Path(root) for root in roots], [str(text) for text in extra])[:length])
    except OSError as error:
        raise AnsibleFilterError(f"content_hash: {error}") from error


@functools.lru_cache(maxsize=8)
def gateway_config_problems(text: str, source_dir: str) -> tuple[str, ...]:
    """See gateway_config_problems.yml.

    Remembered, because a task that fails asks twice: once for its condition and once for its message.
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(source_dir) / "src"), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUTF8": "1"}
    # -P: not from the directory that the play happens to run in.
    command = [sys.executable, "-P", "-m", "hearth_gateway", "check-config", CONFIG_ON_STDIN]
    try:
        done = subprocess.run(command, input=text, env=environment, capture_output=True, text=True, check=False, timeout=CHECK_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AnsibleFilterError(f"gateway_config_problems: the check did not run: {error}") from None
    if done.returncode not in (CONFIG_IS_FINE, CONFIG_IS_WRONG) or not _is_report(done):
        raise AnsibleFilterError(_no_check(done.stderr))
    lines = [line.removeprefix(CONFIG_PREFIX) for line in done.stderr.splitlines()]
    for line in lines:
        if line.startswith(CONFIG_WARNING):
            Display().warning(f"gateway: {line.removeprefix(CONFIG_WARNING)}")
    return tuple(_gateway.in_variables(line) for line in lines if not line.startswith(CONFIG_WARNING))


def _is_report(done: subprocess.CompletedProcess[str]) -> bool:
    """Whether each line is one of the check's own, and there is one where there must be."""
    lines = done.stderr.splitlines()
    return all(line.startswith(CONFIG_PREFIX) for line in lines) and bool(lines or done.returncode == CONFIG_IS_FINE)


def _no_check(stderr: str) -> str:
    missing = re.search(r"No module named '(\w+)", stderr)
    if missing:
        return f"the gateway's configuration is checked with the gateway's own code, which needs {missing[1]}: {INSTALL}"
    return "gateway_config_problems: the check broke: " + " ".join(stderr.strip().splitlines()[-1:])


def gateway_providers(
    entries: Sequence[Mapping[str, Any]], keyed: Sequence[str], key_dir: str, ca_file: str, anthropic_url: str
) -> list[Any]:
    """See gateway_providers.yml."""
    return list(_gateway.providers(entries, keyed, key_dir, ca_file, anthropic_url))


def gateway_egress(
    entries: Sequence[Mapping[str, Any]], anthropic_url: str, database_url: str, database_row: Mapping[str, Any], namespace: str
) -> list[dict[str, Any]]:
    """See gateway_egress.yml."""
    return list(_gateway.egress(entries, anthropic_url, database_url, database_row, namespace))


def gateway_key_files(keys: Mapping[str, str], key_dir: str, existing: Sequence[str]) -> list[dict[str, str]]:
    """See gateway_key_files.yml."""
    return list(_gateway.key_files(keys, key_dir, existing))


def gateway_database_problems(database_url: str, database_row: Mapping[str, Any], namespace: str) -> list[str]:
    """See gateway_database_problems.yml."""
    return list(_gateway.egress_problems(database_url, database_row, namespace))


def gateway_provider_problems(entries: Sequence[Mapping[str, Any]], anthropic_url: str) -> list[str]:
    """See gateway_provider_problems.yml."""
    return list(_gateway.provider_problems(entries, anthropic_url))


def gateway_public_key_problems(text: str) -> list[str]:
    """See gateway_public_key_problems.yml."""
    return list(_gateway.public_key_problems(text))


def gateway_program_problems(limits: Mapping[str, Any], tokens: Sequence[str]) -> list[str]:
    """See gateway_program_problems.yml."""
    return list(_gateway.program_problems(limits, tokens))


def egress_rules(table: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """See egress_rules.yml."""
    try:
        return [dict(rule) for rule in _egress.rules(table)]
    except _egress.EgressError as error:
        raise AnsibleFilterError(str(error)) from error


def egress_problems(table: Sequence[Mapping[str, Any]]) -> list[str]:
    """See egress_problems.yml."""
    return [str(problem) for problem in _egress.problems(table)]


class FilterModule:
    """Ansible's entry to this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "content_hash": content_hash,
            "gateway_config_problems": gateway_config_problems,
            "gateway_database_problems": gateway_database_problems,
            "gateway_egress": gateway_egress,
            "gateway_key_files": gateway_key_files,
            "gateway_program_problems": gateway_program_problems,
            "gateway_public_key_problems": gateway_public_key_problems,
            "gateway_provider_problems": gateway_provider_problems,
            "gateway_providers": gateway_providers,
            "egress_rules": egress_rules,
            "egress_problems": egress_problems,
        }
