# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filters around the gateway. Documentation: content_hash.yml and its neighbours."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.hearth.plugins.module_utils import _egress, _source_tree


def content_hash(paths: str | Sequence[str], extra: Sequence[str] = (), length: int = 16) -> str:
    """See content_hash.yml."""
    roots = [paths] if isinstance(paths, str) else paths
    try:
        return str(_source_tree.content_hash([Path(root) for root in roots], [str(text) for text in extra])[:length])
    except OSError as error:
        raise AnsibleFilterError(f"content_hash: {error}") from error


def schema_errors(value: Any, schema: Mapping[str, Any]) -> list[str]:
    """See schema_errors.yml."""
    try:
        # Here, not above: every worker that uses any filter of ours loads this file, and this import takes 0.3 s.
        import jsonschema
    except ImportError as error:
        message = "schema_errors needs the Python package jsonschema beside Ansible: pip install jsonschema"
        raise AnsibleFilterError(message) from error
    # Plain types: the validator knows nothing of Ansible's tagged strings and lazy containers.
    plain, rules = json.loads(json.dumps(value)), json.loads(json.dumps(schema))
    validator = jsonschema.validators.validator_for(rules)(rules)
    problems = sorted(validator.iter_errors(plain), key=lambda error: [str(step) for step in error.absolute_path])
    return [f"{'.'.join(str(step) for step in problem.absolute_path) or 'the whole'}: {problem.message}" for problem in problems]


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
            "schema_errors": schema_errors,
            "egress_rules": egress_rules,
            "egress_problems": egress_problems,
        }
