# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is wrong with the variables of sign-in and front door, in sentences that name the way out. Pure.

Each check is a function of its own that yields sentences; all of them run, so that an operator sees everything at once.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.homelab.hearth.plugins.module_utils import _certificates
from ansible_collections.homelab.hearth.plugins.module_utils._access import ADDRESS, SERVICE

Given = Mapping[str, Any]

HOST = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)+")
CERTIFICATE, PRIVATE_KEY = "-----BEGIN CERTIFICATE-----", re.compile(r"-----BEGIN (EC |RSA )?PRIVATE KEY-----")

# --- sign-in

# What may stand in oauth2_proxy_settings. Not "everything but": the next version could bring a new way past the list.
LOG_SETTINGS = (
    "auth_logging", "auth_logging_format", "silence_ping_logging", "standard_logging", "standard_logging_format",
)  # fmt: skip
# What people try, each with its reason. Others are refused as well, with the list of those that may stand there.
REFUSED_SETTINGS = {
    "skip_auth_routes": "lets requests through to the gateway without anybody being signed in",
    "skip_auth_regex": "lets requests through to the gateway without anybody being signed in",
    "skip_auth_preflight": "lets requests through to the gateway without anybody being signed in",
    "skip_jwt_bearer_tokens": "lets in whoever holds a token of the provider, past the list",
    "trusted_ips": "believes X-Forwarded-For from anybody, and lets them in",
    "htpasswd_file": "makes sessions without an address, which the list does not look at",
    "htpasswd_user_groups": "makes sessions without an address, which the list does not look at",
    "email_domains": "lets in whole domains beside the list; people are let in one by one with add_user.yml",
    "reverse_proxy": "would have the chat believe what a client says about its own request",
    "trusted_proxy_ips": "is set from oauth2_proxy_traefik_cidrs",
    "cookie_domains": "would hand the chat's session to every host of the domain",
    "cookie_secret": "would put a secret into a ConfigMap; it is generated and kept in a Secret",
    "client_secret": "would put a secret into a ConfigMap; use oauth2_proxy_client_secret",
    "request_logging": "writes the provider's codes into the log; Traefik's access log has the rest",
    "show_debug_on_error": "shows people the inside of the proxy",
}
# What may be said about the pods beside what the role says.
POD_SETTINGS = ("affinity", "imagePullSecrets", "nodeSelector", "priorityClassName", "runtimeClassName", "tolerations")
REFUSED_POD_SETTINGS = {
    "enableServiceLinks": "puts other Services into the environment, which beats the configuration files",
    "envFrom": "fills the environment, which beats the configuration files: OAUTH2_PROXY_EMAIL_DOMAINS=* would let everybody in",
    "env": "fills the environment, which beats the configuration files: OAUTH2_PROXY_EMAIL_DOMAINS=* would let everybody in",
}
ENDPOINTS = ("login_url", "redeem_url", "jwks_url")
GOOGLE_CLIENT_ID = ".apps.googleusercontent.com"


def signin_problems(given: Given) -> list[str]:
    """Everything that is wrong with the variables of the role oauth2_proxy, given by name without its prefix."""
    checks = (_hosts, _client, _oidc, _settings, _pod, _words, _signin_numbers)
    return [f"oauth2_proxy_{problem}" for check in checks for problem in check(given)]


def _hosts(given: Given) -> Iterator[str]:
    chat, domain, auth = (str(given[key]) for key in ("chat_host", "apps_domain", "auth_host"))
    if not chat:
        yield "chat_host: say under which host name people reach the chat, such as chat.example.org"
    elif not HOST.fullmatch(chat):
        yield f"chat_host: {chat!r} is no host name in lower case, such as chat.example.org"
    if not domain:
        if auth:
            yield "auth_host: is of use only with oauth2_proxy_apps_domain"
        return
    if not HOST.fullmatch(domain):
        yield f"apps_domain: {domain!r} is no domain with a dot, such as example.org; browsers keep no cookie for a whole top-level domain"
        return
    host = auth or f"auth.{domain}"
    if not HOST.fullmatch(host) or not host.endswith(f".{domain}"):
        yield f"auth_host: {host!r} must be a host below {domain}, or the apps would not see that somebody signed in"
    if host == chat:
        yield f"auth_host: {host!r} is the chat's own host; the apps sign people in at another one"


def _client(given: Given) -> Iterator[str]:
    client = str(given["client_id"])
    if not client:
        yield "client_id: is needed; the provider gives it when you register the application there"
    elif given["provider"] == "google" and not client.endswith(GOOGLE_CLIENT_ID):
        yield (
            f"client_id: {client!r} is not one of Google's, which end in {GOOGLE_CLIENT_ID}; for another provider set "
            "oauth2_proxy_provider: oidc"
        )
    if not str(given["client_secret"]).strip():
        yield "client_secret: is needed; keep it in a vault file"
    if given["ca_pem"] and CERTIFICATE not in str(given["ca_pem"]):
        yield "ca_pem: holds no certificate; it takes the PEM text itself, for example by a file lookup"


def _oidc(given: Given) -> Iterator[str]:
    oidc = given["oidc"]
    if given["provider"] == "google":
        if oidc:
            yield "oidc: is of use only with oauth2_proxy_provider: oidc"
        return
    if not oidc.get("issuer_url"):
        yield "oidc: give issuer_url, exactly as it stands in the provider's tokens"
    if oidc.get("email_verified") is not True:
        yield (
            "oidc.email_verified: must be true, once you have seen that the provider's tokens carry email_verified: oauth2-proxy takes "
            "a token that lacks it, so where people type any address they like, anybody could be anybody"
        )
    for key in ("issuer_url", *ENDPOINTS, "userinfo_url"):
        url = oidc.get(key)
        if url and not _is_https(str(url)):
            yield f"oidc.{key}: {url!r} is no https address; over plain http anybody on the way could sign in as anybody"
    missing = [key for key in ENDPOINTS if not oidc.get(key)]
    if missing and len(missing) < len(ENDPOINTS):
        yield f"oidc: {', '.join(missing)} is missing; give {', '.join(ENDPOINTS)} together, or none, and they are asked for at each start"


def _is_https(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme == "https" and bool(parts.hostname) and not re.search(r"\s", url)


def _settings(given: Given) -> Iterator[str]:
    for key, value in given["settings"].items():
        name = str(key).replace("-", "_")
        if name in REFUSED_SETTINGS:
            yield f"settings.{key}: {REFUSED_SETTINGS[name]}"
        elif key not in LOG_SETTINGS:
            yield f"settings.{key}: may not be set; what may is {', '.join(LOG_SETTINGS)}"
        elif (key == "standard_logging" and value is not True) or (key == "standard_logging_format" and ".Message" not in str(value)):
            yield f"settings.{key}: the messages must stay: by them add_user.yml and the others see that a changed list was read"


def _pod(given: Given) -> Iterator[str]:
    for key in given["pod"]:
        if key in REFUSED_POD_SETTINGS:
            yield f"pod.{key}: {REFUSED_POD_SETTINGS[key]}"
        elif key not in POD_SETTINGS:
            yield f"pod.{key}: may not be set; what may is {', '.join(POD_SETTINGS)}"


def _words(given: Given) -> Iterator[str]:
    """Texts that would mean something else where they are put."""
    contact = str(given["contact"])
    if "{{" in contact or "\n" in contact:
        yield "contact: one line without double braces, which the page would take for a command"
    oidc = {f"oidc.{key}": value for key, value in given["oidc"].items()}
    for key, value in {"client_id": given["client_id"], **oidc}.items():
        if "$" in str(value):
            # The alpha configuration is expanded from the environment before it is read.
            yield f"{key}: must not hold a dollar sign, which oauth2-proxy would take for a variable of the environment"


def _signin_numbers(given: Given) -> Iterator[str]:
    if int(given["replicas"]) < 1:
        yield "replicas: must be 1 or more"
    if not 1 <= int(given["session_h"]) <= 24 * 90:
        yield "session_h: must be from 1 to 2160 (90 days): so long a copied cookie opens the chat"
    if int(given["answer_timeout_s"]) < 1:
        yield "answer_timeout_s: must be 1 or more"
    yield from _port(given)
    if not given["traefik_cidrs"]:
        yield "traefik_cidrs: is needed: without it oauth2-proxy believes anybody what was asked for"
    yield from _networks("traefik_cidrs", given["traefik_cidrs"])


def _port(given: Given) -> Iterator[str]:
    if not 1 <= int(given["https_port"]) <= 65535:
        yield f"https_port: {given['https_port']} is no port"


def _networks(name: str, networks: Sequence[Any]) -> Iterator[str]:
    for text in networks:
        try:
            network = ipaddress.ip_network(str(text))
        except ValueError:
            yield f"{name}: {text!r} is no network, such as 10.42.0.0/16"
            continue
        if network.prefixlen == 0:
            yield f"{name}: {text} is everybody"


# --- front door

# The first that removes every spelling of a header, not only those with underscores (CVE-2026-88011).
TRAEFIK_FLOOR = (3, 7, 12)
DNS_PROVIDER = re.compile(r"[a-z0-9]+")
ENVIRONMENT_NAME = re.compile(r"[A-Z][A-Z0-9_]*")
REFUSED_VALUES = {
    "additionalArguments": "flags stand in the role; one more of the same name would win over them",
    "globalArguments": "flags stand in the role; one that it does not set, such as trustedIPs, would count beside them",
    "image": "use traefik_image",
    "ports": "entry points are set by flags",
    "accessLog": "is set by flags", "logs": "is set by flags", "log": "is set by flags",
    "providers": "could open the way to routes and Middlewares of other namespaces",
    "experimental": "plugins run inside the front door and see every request",
    "api": "the dashboard shows every route; it is off",
    "ingressRoute": "the dashboard shows every route; it is off",
}  # fmt: skip


def traefik_problems(given: Given) -> list[str]:
    """Everything that is wrong with the variables of the role traefik, given by name without its prefix, and `now`."""
    checks = (_version, _certificate, _acme, _edge, _values, _traefik_numbers)
    return [f"traefik_{problem}" for check in checks for problem in check(given)]


def version_of(text: str) -> tuple[int, int, int] | None:
    """`v3.7.14` as numbers, or None when it is no released version."""
    found = re.fullmatch(r"v?(\d+)\.(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def _version(given: Given) -> Iterator[str]:
    version = version_of(str(given["version"]))
    floor = "v" + ".".join(map(str, TRAEFIK_FLOOR))
    if version is None:
        yield f"version: {given['version']!r} is no released version, such as {floor}"
    elif version < TRAEFIK_FLOOR:
        yield (
            f"version: {given['version']} lets headers in odd spellings (x.forwarded.email) through to the apps; "
            f"{floor} is the first that removes them all"
        )
    if given["pin_problem"]:
        yield f"version: {given['pin_problem']}; or give traefik_image by digest"
    elif "@sha256:" not in str(given["image"]):
        yield f"image: {given['image']} names no fixed version; give it by digest"


def _certificate(given: Given) -> Iterator[str]:
    certificate, key = str(given["certificate_pem"]), str(given["private_key_pem"])
    if given["tls"] != "given":
        if certificate or key:
            yield "certificate_pem, traefik_private_key_pem: are of use only with traefik_tls: given"
    else:
        if CERTIFICATE not in certificate:
            yield "certificate_pem: holds no certificate; it takes the PEM text itself, with the chain, for example by a file lookup"
        if not PRIVATE_KEY.search(key):
            yield "private_key_pem: holds no private key in PEM; keep it in a vault file"
        if CERTIFICATE in certificate and PRIVATE_KEY.search(key) and not _certificates.MISSING:
            # Traefik would take a certificate of its own instead, which browsers that saw HSTS let nobody click away. Behind an edge
            # the certificate may be for a name that only the edge asks for.
            hosts = [] if given["edge_enabled"] else [str(host) for host in given["hosts"]]
            for problem in _certificates.given_problems(certificate, key, hosts, given["now"]):
                yield f"certificate_pem, traefik_private_key_pem: {problem}"
    if given["tls"] == "own_ca" and not given["hosts"]:
        yield "hosts: say for which host names the certificate is, such as [chat.home.arpa]"
    for host in given["hosts"]:
        if not HOST.fullmatch(str(host).removeprefix("*.")):
            yield f"hosts: {host!r} is no host name in lower case, such as chat.example.org or *.example.org"


def _acme(given: Given) -> Iterator[str]:
    environment = given["acme_dns_environment"]
    if given["tls"] != "acme":
        if given["acme_email"] or given["acme_dns_provider"] or environment:
            yield "acme_email, traefik_acme_dns_provider, traefik_acme_dns_environment: are of use only with traefik_tls: acme"
        return
    if not re.fullmatch(r"[^@\s,]+@[^@\s,]+\.[^@\s,]+", str(given["acme_email"])):
        yield "acme_email: give the address to which the certificate authority writes when a certificate is about to end"
    if not _is_https(str(given["acme_server"])):
        yield f"acme_server: {given['acme_server']!r} is no https address"
    if given["acme_challenge"] == "dns":
        if not DNS_PROVIDER.fullmatch(str(given["acme_dns_provider"])):
            yield "acme_dns_provider: give the name of your DNS provider as Traefik knows it, such as cloudflare or route53"
        if not environment:
            yield (
                "acme_dns_environment: give the provider's credentials by name of the variable, such as CF_DNS_API_TOKEN; keep them "
                "in a vault file"
            )
    elif given["acme_dns_provider"] or environment:
        yield "acme_dns_provider, traefik_acme_dns_environment: are of use only with traefik_acme_challenge: dns"
    elif any(str(host).startswith("*.") for host in given["hosts"]):
        yield "hosts: a certificate for *. is only given with traefik_acme_challenge: dns"
    for name in environment:
        if not ENVIRONMENT_NAME.fullmatch(str(name)) or str(name).startswith("TRAEFIK_"):
            yield f"acme_dns_environment: {name!r} is no variable of a DNS provider; one that begins with TRAEFIK_ would be a setting"
    if int(given["replicas"]) > 1:
        yield "replicas: with traefik_tls: acme there is one, because the certificates are one file on one volume"


def _edge(given: Given) -> Iterator[str]:
    forwarders = given["trusted_forwarders"]
    if forwarders and not given["edge_enabled"]:
        yield (
            "trusted_forwarders: only with traefik_edge_enabled: true, for a CDN or load balancer in front; whoever is listed may say "
            "whose request it is"
        )
    if given["edge_enabled"] and not forwarders:
        yield "trusted_forwarders: give the networks of the edge in front"
    yield from _networks("trusted_forwarders", forwarders)


def _values(given: Given) -> Iterator[str]:
    for key in given["values"]:
        if key in REFUSED_VALUES:
            yield f"values.{key}: {REFUSED_VALUES[key]}"


def _traefik_numbers(given: Given) -> Iterator[str]:
    for key in ("replicas", "rate_per_s", "rate_burst", "open_requests", "upload_timeout_s"):
        if int(given[key]) < 1:
            yield f"{key}: must be 1 or more; 0 would mean no bound"
    if not 0 <= int(given["drain_s"]) <= 3600:
        yield "drain_s: must be from 0 to 3600"
    yield from _port(given)


# --- apps behind the sign-in


def protected_app_problems(apps: Sequence[Given], domain: str, taken: Sequence[str]) -> list[str]:
    """Everything that is wrong with the entries of protected_app_apps.

    `domain` is that of the apps' sign-in, `taken` are the hosts of the chat and of the sign-in itself.
    """
    if apps and not domain:
        return ["protected_app_apps: needs oauth2_proxy_apps_domain, the domain below which people sign in for apps"]
    hosts = [str(app["host"]) for app in apps]
    found = [f"protected_app_apps: {host} stands there twice" for host in sorted({h for h in hosts if hosts.count(h) > 1})]
    found += [f"protected_app_apps: {host} is the host of the chat or of the sign-in" for host in hosts if host in taken]
    for number, app in enumerate(apps):
        found += [f"protected_app_apps[{number}].{problem}" for problem in _app(app, domain)]
    return found


def _app(app: Given, domain: str) -> Iterator[str]:
    host = str(app["host"])
    if not HOST.fullmatch(host):
        yield f"host: {host!r} is no host name in lower case, such as home.{domain}"
    elif not host.endswith(f".{domain}"):
        yield f"host: {host} is not below {domain}, so its sign-in would not be seen there"
    service, address = str(app.get("service") or ""), str(app.get("address") or "")
    if bool(service) == bool(address):
        yield f"host: give either service or address of {host}"
    elif service and not SERVICE.fullmatch(service):
        yield f"service: {service!r} is not of the form name.namespace:port, such as grafana.monitoring:80"
    elif address and not _is_server(address):
        yield f"address: {address!r} is not an IP address with a port, such as 192.168.1.30:8123"
    if app.get("pods") and not service:
        yield "pods: are of use only with service"


def _is_server(text: str) -> bool:
    parts = ADDRESS.fullmatch(text)
    if parts is None or not 1 <= int(parts[2]) <= 65535:
        return False
    try:
        found = ipaddress.ip_address(parts[1])
    except ValueError:
        return False
    # Kubernetes takes no such address as an endpoint, and Traefik would ask itself.
    return not (found.is_loopback or found.is_link_local or found.is_unspecified or found.is_multicast)
