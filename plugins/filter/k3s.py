"""Filters around the k3s configuration. Documentation: k3s_config.yml and its neighbours."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.hearth.plugins.module_utils import _k3s, _k3s_node, _preflight, _topology


def k3s_config_problems(config: Mapping[str, Any], kind: str = "server", from_user: bool = True) -> list[str]:
    """See k3s_config_problems.yml."""
    if not isinstance(config, Mapping):
        return [f"k3s_config must be a mapping, is a {type(config).__name__}"]
    problems: list[str] = _k3s.config_problems(config, kind, from_user=from_user)
    return problems


def k3s_config(config: Mapping[str, Any], kind: str = "server") -> str:
    """See k3s_config.yml."""
    problems = _k3s.config_problems(config, kind)
    if problems:
        raise AnsibleFilterError("config.yaml of k3s: " + "; ".join(problems))
    text: str = _k3s.render_config(config)
    return text


def k3s_node_config(settings: Mapping[str, Any], kind: str, place: Mapping[str, Any], server: str = "") -> dict[str, Any]:
    """See k3s_node_config.yml."""
    made: dict[str, Any] = _k3s_node.config(kind, settings, place, server)
    return made


def k3s_settings_problems(settings: Mapping[str, Any], kind: str) -> list[str]:
    """See k3s_settings_problems.yml."""
    problems: list[str] = _k3s_node.settings_problems(kind, settings)
    return problems


def k3s_kubelet_config(settings: Mapping[str, Any]) -> str:
    """See k3s_kubelet_config.yml."""
    text: str = _k3s_node.kubelet_config(settings)
    return text


def k3s_registries(settings: Mapping[str, Any]) -> dict[str, Any]:
    """See k3s_registries.yml."""
    made: dict[str, Any] = _k3s_node.registries(settings)
    return made


def k3s_s3_data(settings: Mapping[str, Any]) -> dict[str, str]:
    """See k3s_s3_data.yml."""
    made: dict[str, str] = _k3s_node.s3_data(settings)
    return made


def k3s_node_change(node: Mapping[str, Any], labels: Sequence[str] = (), taints: Sequence[str] = ()) -> dict[str, Any]:
    """See k3s_node_change.yml."""
    if not node:
        return {}
    change: dict[str, Any] = _k3s_node.node_change(node, labels, taints)
    # A node that a broken-off run emptied is opened by this one.
    if _k3s_node.ANNOTATION_EMPTIED in (node["metadata"].get("annotations") or {}):
        change["unschedulable"] = False
    return change


def k3s_node_name(variables: Mapping[str, Any]) -> str:
    """See k3s_node_name.yml."""
    name: str = _preflight.node_name_of(variables)
    return name


def k3s_upgrade_plan(hosts: Iterable[Mapping[str, Any]], servers: Sequence[str], agents: Sequence[str] = ()) -> list[str]:
    """See k3s_upgrade_plan.yml."""
    by_name = {variables["inventory_hostname"]: variables for variables in hosts}
    rows = []
    for name in [host for host in [*servers, *agents] if host in by_name]:
        variables = by_name[name]
        installed = variables["_preflight_survey"]["survey"]["k3s"]["version"]
        rows.append((name, name in servers, installed, str(variables["_k3s_wants"]["k3s"]["version"])))
    plan: list[str] = _topology.upgrade_plan(rows)
    return plan


def k3s_place(
    servers: Iterable[Mapping[str, Any]],
    host: str,
    seen: Mapping[str, Any],
    agent: bool = False,
    registration: str = "",
    port: int = 6443,
    datastore: str = "",
) -> dict[str, Any]:
    """See k3s_place.yml."""
    members = [_topology.member_of(variables) for variables in servers]
    options = {"agent": agent, "registration": registration, "port": int(port), "datastore": datastore}
    place: dict[str, Any] = _topology.place(host, seen, members, **options)
    return place


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
            "k3s_kubelet_config": k3s_kubelet_config,
            "k3s_node_change": k3s_node_change,
            "k3s_node_config": k3s_node_config,
            "k3s_node_name": k3s_node_name,
            "k3s_place": k3s_place,
            "k3s_registries": k3s_registries,
            "k3s_s3_data": k3s_s3_data,
            "k3s_settings_problems": k3s_settings_problems,
            "k3s_upgrade_plan": k3s_upgrade_plan,
        }
