"""Filters around the k3s configuration. Documentation: k3s_config.yml and its neighbours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    return yaml.safe_dump(document, default_flow_style=False, sort_keys=False)


class FilterModule:
    """Ansible's entry to this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "k3s_config": k3s_config,
            "k3s_config_problems": k3s_config_problems,
            "k3s_kubeconfig": k3s_kubeconfig,
        }
