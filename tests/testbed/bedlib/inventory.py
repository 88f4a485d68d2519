"""The bed's inventory: an ordinary one, with variables that any operator with a mirror would set."""

from __future__ import annotations

import json
from typing import Any

from .services import ANTHROPIC_KEY, OIDC_CLIENT, OIDC_SECRET
from .state import Bed


def variables(bed: Bed, described: dict[str, Any]) -> dict[str, Any]:
    """What the inventory says of every host of the cluster."""
    found: dict[str, Any] = {
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(bed.folder / "id_ed25519"),
        "ansible_ssh_common_args": f"-F {bed.folder / 'ssh_config'}",
        "ansible_python_interpreter": "/usr/bin/python3",
        "host_iscsi_enabled": False,
    }
    services = described["services"]
    if services:
        k3s = described["k3s"]
        found |= {
            "k3s_version": k3s["version"],
            "k3s_release_url": services["release"],
            "k3s_sha256": k3s["versions"][k3s["version"]]["sha256"],
            "k3s_kubeconfig": str(bed.folder / "kubeconfig"),
            "gateway_base_image": services["base_image"],
            "gateway_storage_class": "local-path",
            **_sign_in(bed, services),
        }
        if services["anthropic"]:
            found |= {
                "gateway_anthropic_base_url": services["anthropic"],
                "gateway_anthropic_api_key": ANTHROPIC_KEY,
                "gateway_ca_pem": (bed.folder / "ca.crt").read_text(),
            }
    return found


def _sign_in(bed: Bed, services: dict[str, Any]) -> dict[str, Any]:
    """Where front door and sign-in come from, for a run that also sets `oauth2_proxy_chat_host`: without it neither is deployed."""
    issuer = services["oidc"]
    return {
        "traefik_image": services["traefik_image"],
        "traefik_ca_file": str(bed.folder / "house-ca.crt"),
        "oauth2_proxy_image": services["oauth2_proxy_image"],
        "oauth2_proxy_provider": "oidc",
        "oauth2_proxy_client_id": OIDC_CLIENT,
        "oauth2_proxy_client_secret": OIDC_SECRET,
        "oauth2_proxy_ca_pem": (bed.folder / "ca.crt").read_text(),
        "oauth2_proxy_oidc": {
            "name": "the bed",
            "email_verified": True,
            "issuer_url": issuer,
            "login_url": f"{issuer}/authorize",
            "redeem_url": f"{issuer}/token",
            "userinfo_url": f"{issuer}/userinfo",
            "jwks_url": f"{issuer}/jwks",
        },
    }


def text(bed: Bed, described: dict[str, Any]) -> str:
    """The inventory as YAML text: h1 is the server, the others are agents."""
    hosts = {host: {"ansible_host": bed.address(host)} for host in bed.hosts}
    groups: dict[str, Any] = {
        "all": {
            "children": {
                "trial": {"hosts": {}},
                "k3s_cluster": {
                    "vars": variables(bed, described),
                    "children": {
                        "servers": {"hosts": {"h1": hosts["h1"]}},
                        "agents": {"hosts": {host: facts for host, facts in hosts.items() if host != "h1"}},
                    },
                },
            }
        }
    }
    return f"# Inventory of bed {bed.name}, written by `bed up`.\n" + _yaml(groups)


def dynamic(bed: Bed, described: dict[str, Any]) -> dict[str, Any]:
    """The same inventory as an inventory script prints it."""
    return {
        "_meta": {"hostvars": {host: {"ansible_host": bed.address(host)} for host in bed.hosts}},
        "trial": {"hosts": []},
        "servers": {"hosts": bed.hosts[:1]},
        "agents": {"hosts": bed.hosts[1:]},
        "k3s_cluster": {"children": ["servers", "agents"], "vars": variables(bed, described)},
    }


def _yaml(value: dict[str, Any], indent: int = 0) -> str:
    """YAML for nested dictionaries; scalars in JSON, which YAML contains."""
    lines: list[str] = []
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            lines.append(f"{'  ' * indent}{key}:\n{_yaml(inner, indent + 1)}")
        elif isinstance(inner, str) and "\n" in inner:
            block = "".join(f"{'  ' * (indent + 1)}{line}\n" for line in inner.splitlines())
            lines.append(f"{'  ' * indent}{key}: |\n{block}")
        else:
            lines.append(f"{'  ' * indent}{key}: {json.dumps(inner)}\n")
    return "".join(lines)
