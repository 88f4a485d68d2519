# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""From the role's variables to the gateway's configuration and to where it may connect. Pure."""

from __future__ import annotations

import base64
import difflib
import ipaddress
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ansible_collections.homelab.hearth.plugins.module_utils import _egress

# Of a provider in the variables; the configuration knows nothing of network policies.
EGRESS = "egress"
_DEFAULT_PORT = {"http": 80, "https": 443, "postgresql": 5432}
# Last labels of names that only a house's own DNS knows. A name below one is neither on the internet, to which a rule for
# a vendor opens, nor a Service in a namespace of that name.
_LOCAL = ("arpa", "box", "corp", "home", "internal", "intranet", "lan", "local", "localdomain", "private")


def providers(entries: Sequence[Mapping[str, Any]], keyed: Collection[str], key_dir: str, ca_file: str, anthropic_url: str) -> list[Any]:
    """The section `providers` of the configuration.

    Each entry gets what the role knows: the file of its key when there is one (`keyed` are the names with a key), the
    file with authorities for what is asked over TLS ("" = none), the address of a provider of kind anthropic that
    names none. What an entry says itself stays. An entry that is no mapping is passed on: the gateway's own check
    says what is wrong with it.
    """
    return [_provider(entry, keyed, key_dir, ca_file, anthropic_url) if isinstance(entry, Mapping) else entry for entry in entries]


def _provider(entry: Mapping[str, Any], keyed: Collection[str], key_dir: str, ca_file: str, anthropic_url: str) -> dict[str, Any]:
    made = {key: value for key, value in entry.items() if key != EGRESS}
    if made.get("kind") == "demo":
        return made
    if made.get("kind") == "anthropic":
        made.setdefault("base_url", anthropic_url)
    if made.get("name") in keyed:
        made.setdefault("api_key_file", f"{key_dir}/{made['name']}")
    if ca_file and str(made.get("base_url", "")).startswith("https://"):
        made.setdefault("ca_file", ca_file)
    return made


def egress(
    entries: Sequence[Mapping[str, Any]], anthropic_url: str, database_url: str, database_row: Mapping[str, Any], namespace: str
) -> list[dict[str, Any]]:
    """Rows for the egress table: one for each provider that is asked over the network, one for the database's server.

    A provider's own `egress`, and `database_row`, win over what the address says. Without them:

    - an IP address: that address and port;
    - a Service (`name`, `name.namespace` over http, `name.namespace.svc…`): that namespace and port;
    - any other name: the port, to all public addresses (for a database: nothing, see `egress_problems`; a name in the
      house: see `provider_problems`).

    A provider with `fetch_images` makes the gateway itself fetch from https addresses in chats: two rows for all of them.
    """
    rows = []
    for entry in entries:
        if not isinstance(entry, Mapping) or entry.get("kind") == "demo":
            continue
        url = str(entry.get("base_url") or (anthropic_url if entry.get("kind") == "anthropic" else ""))
        row = dict(entry[EGRESS]) if isinstance(entry.get(EGRESS), Mapping) else _row(url, namespace) or {"url": url}
        rows.append({"name": f"provider {entry.get('name')}", **row})
    if any(isinstance(entry, Mapping) and entry.get("fetch_images") for entry in entries):
        rows += [
            {"name": f"images in chats, IPv{version}", "cidr": cidr, "except": list(inside), "ports": [443]}
            for version, cidr, inside in ((4, "0.0.0.0/0", _egress.NOT_PUBLIC_4), (6, "::/0", _egress.NOT_PUBLIC_6))
        ]
    if not _is_sqlite(database_url):
        found = dict(database_row) or _row(database_url, namespace)
        if found:
            rows.append({"name": "database", **found})
    return rows


def egress_problems(database_url: str, database_row: Mapping[str, Any], namespace: str) -> list[str]:
    """Why no row can be made for the database's server, one sentence; empty when one can."""
    if _is_sqlite(database_url) or database_row or _row(database_url, namespace):
        return []
    return [
        "gateway_database_egress: where the server of gateway_database_url is cannot be told from its name, and a database "
        "is not opened to the whole internet; give its network, such as {cidr: 10.0.0.0/16, ports: [5432]}"
    ]


def provider_problems(entries: Sequence[Mapping[str, Any]], anthropic_url: str) -> list[str]:
    """Why no row can be made for providers with a name that only the house's own DNS knows, one sentence each."""
    problems = []
    for index, entry in enumerate(entries):
        if not isinstance(entry, Mapping) or entry.get("kind") == "demo" or isinstance(entry.get(EGRESS), Mapping):
            continue
        found = _split(str(entry.get("base_url") or (anthropic_url if entry.get("kind") == "anthropic" else "")))
        if found is not None and _is_local(found[1]):
            problems.append(
                f"gateway_providers[{index}].egress: where {found[1]} is cannot be told from its name, which only the house's own "
                f"DNS knows; give its network, such as {{cidr: 192.168.0.10/32, ports: [{found[2]}]}}, or its namespace when it is a "
                f"Service"
            )
    return problems


def _is_sqlite(url: str) -> bool:
    return not url or url.startswith("sqlite")


def _split(url: str) -> tuple[str, str, int] | None:
    """Scheme, host and port of an address, or None when it is none; the gateway's own check says so."""
    try:
        parts = urlsplit(url)
        scheme = parts.scheme.partition("+")[0]
        host, port = parts.hostname or "", str(parts.port or _DEFAULT_PORT[scheme])
        if scheme == "postgresql":
            # What stands in the query is what the client goes by.
            options = parse_qs(parts.query)
            host, port = ",".join(options.get("host", [host])), ",".join(options.get("port", [port]))
        number = int(port)
    except (ValueError, KeyError):
        return None
    # The last is a list of servers, or a directory with a socket. Neither is one place in the network.
    return None if not host or "," in host or "/" in host else (scheme, host.strip("[]").rstrip(".").lower(), number)


def _row(url: str, namespace: str) -> dict[str, Any] | None:
    found = _split(url)
    if found is None:
        return None
    scheme, host, port = found
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        home = _namespace_of(host, scheme, namespace)
        return {"namespace": home, "ports": [port]} if home else None
    return {"cidr": f"{address}/{address.max_prefixlen}", "ports": [port]}


def _namespace_of(host: str, scheme: str, own: str) -> str | None:
    """The namespace of the Service that a host name means, or None for a name outside the cluster."""
    labels = host.split(".")
    if len(labels) == 1:
        return own
    if _is_service(labels):
        return labels[1]
    if _is_local(host):
        return None
    # `name.namespace` is the short form of a Service, and looks like a name on the internet. Nobody sends a key
    # there without TLS, and nobody has a public certificate for a Service.
    return labels[1] if len(labels) == 2 and scheme != "https" else None


def _is_service(labels: list[str]) -> bool:
    return len(labels) >= 3 and labels[2] == "svc"


def _is_local(host: str) -> bool:
    labels = host.split(".")
    return len(labels) >= 2 and labels[-1] in _LOCAL and not _is_service(labels)


def key_files(keys: Mapping[str, str], key_dir: str, existing: Sequence[str]) -> list[dict[str, str]]:
    """Files for the module host_files: one a key, below `key_dir`; `existing` files of other names go."""
    wanted = {f"{key_dir}/{name}": value for name, value in keys.items()}
    made = [{"path": path, "secret_content": value, "mode": "0600"} for path, value in sorted(wanted.items())]
    return made + [{"path": path, "state": "absent"} for path in sorted(set(existing) - set(wanted))]


_PUBLIC_KEY = re.compile(r"\s*-----BEGIN PUBLIC KEY-----([A-Za-z0-9+/=\s]+)-----END PUBLIC KEY-----\s*\Z")
_MAX_PUBLIC_KEY = 16_384


def public_key_problems(text: str) -> list[str]:
    """What the process would refuse of the operator's public key at its start, one sentence; empty when it is none or well."""
    if not text.strip():
        return []
    if "PRIVATE KEY" in text:
        return ["gateway_operator_public_key: holds a private key; the gateway must never have it: give the public one"]
    found = _PUBLIC_KEY.match(text) if len(text) <= _MAX_PUBLIC_KEY else None
    try:
        key = base64.b64decode("".join(found[1].split()), validate=True) if found else b""
    except ValueError:
        key = b""
    if len(key) < 44 or key[0] != 0x30:
        return ["gateway_operator_public_key: holds no public key in PEM form (-----BEGIN PUBLIC KEY-----)"]
    return []


def program_problems(limits: Mapping[str, Any], tokens: Sequence[str]) -> list[str]:
    """Which of the limits of single programs are for a token that nobody has, one sentence each."""
    programs = limits.get("programs")
    problems = []
    for name in programs if isinstance(programs, Mapping) else ():
        if name not in tokens:
            close = difflib.get_close_matches(str(name), tokens, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(tokens)}"
            problems.append(f"gateway_limits.programs.{name}: no token is called so; {hint}")
    return problems


# A place in the configuration, and the variable of the role that it was made from.
_VARIABLES = {
    "database_url": "gateway_database_url",
    "metrics.max_people": "gateway_metrics_max_people",
    "metrics.person_label": "gateway_metrics_person_label",
    "privacy.admin_chat_access": "gateway_admin_chat_access",
    "privacy.admin_export": "gateway_admin_export",
    "privacy.community_sharing": "gateway_community_sharing",
    "server.drain_s": "gateway_drain_s",
    "server.handover_s": "gateway_handover_s",
    "server.max_open_requests": "gateway_max_open_requests",
    "tokens.end_users": "gateway_end_user_tokens",
    "tokens.proxy": "gateway_proxy_tokens",
}
_SECTIONS = (
    "breaker", "embedding_models", "image_models", "ledger_detail_days", "limits", "models", "prices", "providers",
    "system_prompts", "timeouts",
)  # fmt: skip


def in_variables(problem: str) -> str:
    """A problem of the configuration with its place named as the operator wrote it: `gateway_timeouts.conect_s: …`."""
    place, colon, text = problem.partition(": ")
    if not colon:
        return problem
    for start, variable in _VARIABLES.items():
        if place == start or place.startswith((f"{start}.", f"{start}[")):
            return variable + place.removeprefix(start) + colon + text
    section = place.replace("[", ".").partition(".")[0]
    return f"gateway_{problem}" if section in _SECTIONS else problem
