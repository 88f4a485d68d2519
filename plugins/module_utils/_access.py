# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What stands between the street and the gateway: Traefik's settings and Middlewares. Pure.

Traefik takes its static settings as a file or as flags, and Middlewares as a file or as Kubernetes objects. Each is
written down once, as the dictionary that the file would hold, and turned into the other form here. So what the contract
tests run and what the cluster runs cannot drift apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

Spec = dict[str, Any]

# An answer of the sign-in proxy is a redirect or a small page; more than this is not from it.
SIGNIN_ANSWER_BYTES = 65536
# One household usually has one such network; a single address of it is too easily changed.
IPV6_HOUSEHOLD = 64
# Read by the sign-in proxies, and set by Traefik itself where they need it.
STEERING_HEADERS = ("X-Forwarded-Uri",)
# The chat's own credential. At the apps they are the app's business.
CREDENTIAL_HEADERS = ("Authorization", "X-Api-Key")


class TraefikError(Exception):
    """A setting that has no form as a flag; the text names it."""


def arguments(static: Mapping[str, Any]) -> list[str]:
    """Static settings as Traefik's flags, in their order: {"api": {"dashboard": False}} is `--api.dashboard=false`.

    Flags, because their names are Traefik's own: the names of the chart's values changed with almost every chart.

    :raises TraefikError: a value that a flag cannot carry unchanged.
    """
    return [f"--{name}={value}" for name, value in _flat(static, "")]


def _flat(settings: Mapping[str, Any], prefix: str) -> list[tuple[str, str]]:
    found = []
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            # An empty section switches on what has no settings of its own.
            found += _flat(value, f"{name}.") if value else [(name, "true")]
        elif isinstance(value, Sequence) and not isinstance(value, str):
            found += _items(name, value)
        else:
            found.append((name, _scalar(name, value)))
    return found


def _items(name: str, values: Sequence[Any]) -> list[tuple[str, str]]:
    if any(isinstance(value, Mapping) for value in values):
        found = []
        for number, value in enumerate(values):
            found += _flat(value, f"{name}[{number}].")
        return found
    return [(name, ",".join(_scalar(name, value) for value in values))] if values else []


def _scalar(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    if "," in text or "\n" in text:
        raise TraefikError(f"{name}: {text!r} holds a comma or a line break, which a flag of Traefik would split")
    return text


def image_parts(image: str) -> dict[str, str]:
    """An image by digest as the chart's values take it: registry, repository, digest.

    No tag: the chart compares it with the newest version that it knows, and refuses a newer one.

    :raises TraefikError: no digest, or no registry.
    """
    name, _at, digest = image.partition("@")
    registry, _slash, repository = name.partition("/")
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise TraefikError(f"{image} is not given by digest (…@sha256:…)")
    if not repository or not re.search(r"[.:]|^localhost$", registry):
        raise TraefikError(f"{image} does not begin with its registry, such as docker.io/library/traefik@sha256:…")
    # A tag beside the digest would say nothing: the digest counts.
    return {"registry": registry, "repository": re.sub(r":[^:/]+$", "", repository), "digest": digest}


def signin_egress(provider: Mapping[str, Any]) -> list[Spec]:
    """Rows of the egress table for the addresses that the proxies themselves ask, each host and port once.

    People's browsers go to `login_url`. Without endpoints the proxy learns them from the issuer.
    """
    urls = [str(provider.get(key) or "") for key in ("issuer_url", "redeem_url", "jwks_url", "userinfo_url")]
    places = {f"{parts.scheme}://{parts.netloc}" for url in urls if url for parts in [urlsplit(url)]}
    return [{"name": f"provider {place}", "url": place} for place in sorted(places)]


SERVICE = re.compile(r"([a-z0-9-]+)\.([a-z0-9-]+):([0-9]+)")
ADDRESS = re.compile(r"\[?([0-9a-fA-F.:]+?)\]?:([0-9]+)")
LONGEST_NAME = 63


def protected_app_routes(apps: Sequence[Mapping[str, Any]], namespace: str) -> list[Spec]:
    """What templates need of each app; `namespace` is that of Services that stand for servers of the house.

    The entries are without problems (`_access_problems.protected_app_problems`).
    """
    return [_protected_app_route(app, namespace) for app in apps]


def _protected_app_route(app: Mapping[str, Any], namespace: str) -> Spec:
    name = str(app["host"]).replace(".", "-")[:LONGEST_NAME].rstrip("-")
    route: Spec = {"name": name, "host": app["host"]}
    service = SERVICE.fullmatch(str(app.get("service") or ""))
    if service:
        route |= {"namespace": service[2], "backend": service[1], "port": int(service[3])}
        return route | ({"pods": dict(app["pods"])} if app.get("pods") else {})
    address = ADDRESS.fullmatch(str(app.get("address")))
    if address is None:
        raise TraefikError(f"{app['host']}: neither service nor address says where it is")
    return route | {"namespace": namespace, "backend": name, "address": address[1], "port": int(address[2])}


def door_middlewares(access: Mapping[str, Any], limits: Mapping[str, Any]) -> dict[str, Spec]:
    """Middlewares for every host, by purpose: rate, open, strip.

    `access` is that section of contract/names.yml. `limits` has rate_per_s, rate_burst and open_requests (each for one
    address), hsts_s (0: none) and edge (whether a trusted forwarder stands in front).
    """
    criterion = {"ipStrategy": _who_counts(bool(limits["edge"]))}
    return {
        "rate": {
            "rateLimit": {
                "average": int(limits["rate_per_s"]),
                "burst": int(limits["rate_burst"]),
                "sourceCriterion": criterion,
            }
        },
        "open": {"inFlightReq": {"amount": int(limits["open_requests"]), "sourceCriterion": criterion}},
        "strip": {"headers": _strip(access["identity_headers"], int(limits["hsts_s"]))},
    }


def route_middlewares(access: Mapping[str, Any], signin_url: str) -> dict[str, Spec]:
    """Middlewares for the routes that name them, by purpose: chat, signin.

    `signin_url` is the address of the apps' sign-in proxy, as Traefik reaches it.
    """
    return {
        "chat": {"headers": {"customRequestHeaders": dict.fromkeys(CREDENTIAL_HEADERS, "")}},
        "signin": {
            "forwardAuth": {
                "address": signin_url,
                "trustForwardHeader": False,
                "maxResponseBodySize": SIGNIN_ANSWER_BYTES,
                # Each of these is deleted from the request, then set from the answer, also when the answer lacks it.
                "authResponseHeaders": list(access["signed_in_headers"]),
            }
        },
    }


def _strip(identity_headers: Sequence[str], hsts_s: int) -> Spec:
    headers: Spec = {
        "customRequestHeaders": dict.fromkeys([*identity_headers, *STEERING_HEADERS], ""),
        # The sign-in proxy puts the person's address there.
        "customResponseHeaders": {"Gap-Auth": ""},
    }
    if hsts_s:
        headers["stsSeconds"] = hsts_s
    return headers


def _who_counts(edge: bool) -> Spec:
    """Whose requests are counted together.

    Behind an edge every connection is the edge's: there the last address of X-Forwarded-For counts, which the edge wrote.
    """
    return {"depth": 1, "ipv6Subnet": IPV6_HOUSEHOLD} if edge else {"ipv6Subnet": IPV6_HOUSEHOLD}
