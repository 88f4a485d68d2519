"""Filters around the k3s configuration. Documentation: k3s_config.yml and its neighbours."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.hearth.plugins.module_utils import _k3s


def k3s_config_problems(config: Mapping[str, Any], kind: str = "server") -> list[str]:
    """See k3s_config_problems.yml."""
    if not isinstance(config, Mapping):
        return [f"k3s_config must be a mapping, is a {type(config).__name__}"]
    problems: list[str] = _k3s.config_problems(config, kind, from_user=True)
    return problems


def k3s_config(config: Mapping[str, Any], kind: str = "server") -> str:
    """See k3s_config.yml."""
    problems = _k3s.config_problems(config, kind)
    if problems:
        raise AnsibleFilterError("config.yaml of k3s: " + "; ".join(problems))
    text: str = _k3s.render_config(config)
    return text


def k3s_kubeconfig(text: str, address: str, port: int = 6443, name: str = "hearth") -> str:
    """See k3s_kubeconfig.yml."""
    try:
        document = yaml.safe_load(text)
        cluster, user, context = document["clusters"][0], document["users"][0], document["contexts"][0]
        cluster["cluster"]["server"] = _k3s.api_url(str(address), int(port))
    except (yaml.YAMLError, KeyError, IndexError, TypeError) as error:
        # The content is a credential: name the kind of fault, never the text.
        raise AnsibleFilterError(f"the kubeconfig of the host has another shape ({type(error).__name__})") from None
    for entry in (cluster, user, context):
        entry["name"] = name
    context["context"].update(cluster=name, user=name)
    document["current-context"] = name
    body: str = yaml.safe_dump(document, default_flow_style=False, sort_keys=False)
    return _mark(_sha256(text), address, port, name, body) + body


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _mark(source_sha256: str, address: str, port: int, name: str, body: str) -> str:
    """First line of the controller's file: of what it was made, and what was made. The key in it cannot be guessed from that."""
    made_of = json.dumps([source_sha256, str(address), int(port), name])
    return f"# Fetched by Ansible (role homelab.hearth.k3s). {_sha256(made_of)}:{_sha256(body)}\n"


def k3s_kubeconfig_is_current(path: str, source_sha256: str, address: str, port: int = 6443, name: str = "hearth") -> bool:
    """See k3s_kubeconfig_is_current.yml."""
    file = Path(path).expanduser()
    try:
        if not source_sha256 or file.is_symlink() or stat.S_IMODE(file.stat().st_mode) != 0o600:
            return False
        mark, newline, body = file.read_text().partition("\n")
    except (OSError, UnicodeDecodeError):
        return False
    return mark + newline == _mark(source_sha256, address, port, name, body)


class FilterModule:
    """Ansible's entry to this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "k3s_config": k3s_config,
            "k3s_config_problems": k3s_config_problems,
            "k3s_kubeconfig": k3s_kubeconfig,
            "k3s_kubeconfig_is_current": k3s_kubeconfig_is_current,
        }
