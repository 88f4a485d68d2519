# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Egress rules of a NetworkPolicy from a table with one row a destination. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

# A vendor's name resolves to a public address. These would be the house's own network, the node's
# metadata service, other pods, or a provider's shared range: a stolen gateway must not reach them.
NOT_PUBLIC_4 = ("10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16")
NOT_PUBLIC_6 = ("::1/128", "fc00::/7", "fe80::/10")
_DESTINATIONS = ("url", "cidr", "namespace")
_KNOWN = {"name", "ports", "except", "pods", *_DESTINATIONS}
_DEFAULT_PORT = {"http": 80, "https": 443}


class EgressError(Exception):
    """Rows of the table that cannot become rules; names each row and its fault."""


def _ports(row: Mapping[str, Any], label: str) -> list[dict[str, Any]]:
    ports = []
    for port in row.get("ports") or []:
        entry = {"port": port} if not isinstance(port, Mapping) else dict(port)
        number = entry.get("port")
        if isinstance(number, bool) or not isinstance(number, int) or not 0 < number < 65536:
            raise EgressError(f"{label}: {number!r} is not a port")
        ports.append({"protocol": str(entry.get("protocol", "TCP")).upper(), "port": number})
    return ports


def _network(text: str, label: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise EgressError(f"{label}: {error}") from None


def _from_url(url: str, label: str) -> dict[str, Any]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise EgressError(f"{label}: {url}: {error}") from None
    if parts.scheme not in _DEFAULT_PORT or not host:
        raise EgressError(f"{label}: {url} is not an http or https address")
    ports = [{"protocol": "TCP", "port": port or _DEFAULT_PORT[parts.scheme]}]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        blocks = [
            {"ipBlock": {"cidr": "0.0.0.0/0", "except": list(NOT_PUBLIC_4)}},
            {"ipBlock": {"cidr": "::/0", "except": list(NOT_PUBLIC_6)}},
        ]
        return {"to": blocks, "ports": ports}
    return {"to": [{"ipBlock": {"cidr": f"{address}/{address.max_prefixlen}"}}], "ports": ports}


def _rule(row: Mapping[str, Any], label: str) -> dict[str, Any]:
    if row.get("url"):
        return _from_url(str(row["url"]), label)
    ports = _ports(row, label)
    if not ports:
        raise EgressError(f"{label}: no ports; a destination without ports would be open on all of them")
    if row.get("cidr"):
        block: dict[str, Any] = {"cidr": _network(str(row["cidr"]), label)}
        if row.get("except"):
            block["except"] = [_network(str(part), label) for part in row["except"]]
        return {"to": [{"ipBlock": block}], "ports": ports}
    peer: dict[str, Any] = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": str(row["namespace"])}}}
    if row.get("pods"):
        peer["podSelector"] = {"matchLabels": {str(k): str(v) for k, v in row["pods"].items()}}
    return {"to": [peer], "ports": ports}


def _label(number: int, row: Mapping[str, Any]) -> str:
    return f"egress row {number} ({row.get('name', 'no name')})"


def problems(table: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why rows cannot become rules, one sentence a row; an empty list when all can."""
    found = []
    for number, row in enumerate(table, start=1):
        try:
            _check(row, _label(number, row))
            _rule(row, _label(number, row))
        except EgressError as error:
            found.append(str(error))
    return found


def _check(row: Mapping[str, Any], label: str) -> None:
    unknown = sorted(set(row) - _KNOWN)
    if unknown:
        raise EgressError(f"{label}: unknown {', '.join(unknown)}")
    given = [key for key in _DESTINATIONS if row.get(key)]
    if len(given) != 1:
        raise EgressError(f"{label}: give exactly one of {', '.join(_DESTINATIONS)}")


def rules(table: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The `egress` list of a NetworkPolicy, one rule a row, in the table's order.

    :raises EgressError: a row with an unknown key, none or several destinations, no ports, or a broken address.
    """
    faults = problems(table)
    if faults:
        raise EgressError("; ".join(faults))
    return [_rule(row, _label(number, row)) for number, row in enumerate(table, start=1)]
