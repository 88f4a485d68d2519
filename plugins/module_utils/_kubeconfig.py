# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A kubeconfig, read with the standard library: where the API server is, and how to prove who asks.

The Kubernetes client reads it too, but its import and its discovery cost two seconds in every task. Understood are client
certificates and tokens, which is what k3s gives, and plugins that fetch either (`exec`), which is what clouds give:
https://kubernetes.io/docs/reference/access-authn-authz/authentication/#client-go-credential-plugins
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import ssl
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Of what a plugin is asked and answers; both look alike.
PLUGIN_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")
# A plugin asks an identity provider over the network, and nobody who might be asked something.
PLUGIN_TIMEOUT_S = 60
SAID_CHARACTERS = 300


class KubeconfigError(Exception):
    """Why a kubeconfig cannot be used, in one sentence. Never holds a credential."""


@dataclass(frozen=True)
class ApiServer:
    """The API server of a kubeconfig's context, and the credentials for it."""

    url: str
    context: ssl.SSLContext
    headers: dict[str, str]


@dataclass(frozen=True)
class _Credentials:
    """PEM texts of certificate and key, or a token."""

    certificate: str | None
    key: str | None
    token: str


def _file(named: Any, name: str, directory: Path) -> str:
    try:
        # Relative names count from the kubeconfig's own directory, as kubectl does it.
        return (directory / str(named)).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise KubeconfigError(f"{name} of the kubeconfig cannot be read: {error}") from None


def _pem(entry: dict[str, Any], name: str, directory: Path) -> str | None:
    """PEM text of `name` in a kubeconfig entry: inline as `<name>-data` (base64), else the file it names."""
    inline = entry.get(f"{name}-data")
    if inline:
        try:
            return base64.b64decode(inline, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise KubeconfigError(f"{name}-data in the kubeconfig is not base64 of PEM text") from None
    named = entry.get(name)
    return _file(named, name, directory) if named else None


def _named(entries: Any, name: str, kind: str) -> dict[str, Any]:
    for entry in entries or []:
        if entry.get("name") == name:
            found = entry.get(kind)
            return dict(found) if found else {}
    raise KubeconfigError(f"the kubeconfig has no {kind} named {name!r}")


def _stored(user: dict[str, Any], directory: Path) -> _Credentials:
    token = user.get("token") or (_file(user["tokenFile"], "tokenFile", directory).strip() if user.get("tokenFile") else "")
    return _Credentials(_pem(user, "client-certificate", directory), _pem(user, "client-key", directory), token)


def _question(plugin: dict[str, Any], cluster: dict[str, Any]) -> dict[str, Any]:
    """What a plugin finds in its environment: that nobody can be asked, and of which cluster this is if it wants to know."""
    spec: dict[str, Any] = {"interactive": False}
    if plugin.get("provideClusterInfo"):
        known = ("server", "tls-server-name", "insecure-skip-tls-verify", "certificate-authority-data", "proxy-url")
        extensions = [e.get("extension") for e in cluster.get("extensions") or [] if e.get("name") == "client.authentication.k8s.io/exec"]
        spec["cluster"] = {name: cluster[name] for name in known if name in cluster} | {"config": extensions[0] if extensions else None}
    return {"kind": "ExecCredential", "apiVersion": plugin.get("apiVersion"), "spec": spec}


def _fetched(plugin: dict[str, Any], cluster: dict[str, Any], path: Path) -> _Credentials:
    """What the user's plugin gives. Its output holds the credentials and is in no message; what it complains of is."""
    command, version = str(plugin.get("command") or ""), plugin.get("apiVersion")
    who = f"{command!r}, which the kubeconfig {path} names for its credentials,"
    if version not in PLUGIN_VERSIONS:
        raise KubeconfigError(f"the kubeconfig {path} has a plugin of version {version!r}; known are {' and '.join(PLUGIN_VERSIONS)}")
    if plugin.get("interactiveMode") == "Always":
        raise KubeconfigError(f"{who} wants to ask somebody, and a playbook has nobody to ask")
    # A name with a slash counts from the kubeconfig's own directory, one without is looked for in PATH.
    words = [str(path.parent / command) if "/" in command else command, *map(str, plugin.get("args") or [])]
    environment = os.environ | {str(e["name"]): str(e["value"]) for e in plugin.get("env") or []}
    environment["KUBERNETES_EXEC_INFO"] = json.dumps(_question(plugin, cluster))
    try:
        done = subprocess.run(
            words, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PLUGIN_TIMEOUT_S, check=False
        )
    except (OSError, ValueError) as error:
        hint = " ".join(str(plugin.get("installHint") or "install it, or put it into PATH").split())
        why = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        raise KubeconfigError(f"{who} cannot be run ({why}): {hint}") from None
    except subprocess.TimeoutExpired:
        raise KubeconfigError(f"{who} took over {PLUGIN_TIMEOUT_S} s") from None
    if done.returncode:
        said = " ".join(done.stderr.split())[-SAID_CHARACTERS:] or f"exit status {done.returncode}"
        raise KubeconfigError(f"{who} failed: {said}")
    try:
        answer = json.loads(done.stdout)
        status = answer["status"]
        if answer["kind"] != "ExecCredential" or answer["apiVersion"] != version:
            raise ValueError
        return _Credentials(status.get("clientCertificateData"), status.get("clientKeyData"), str(status.get("token") or ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise KubeconfigError(f"{who} answers with something that is no ExecCredential of {version}") from None


def read_kubeconfig(path: Path, parse: Callable[[str], Any], context_name: str | None = None) -> ApiServer:
    """Read a kubeconfig with a client certificate, a token, or a plugin that fetches one.

    :param parse: a YAML loader that raises ValueError; given by the caller so that this file needs nothing but Python.
    :raises KubeconfigError: missing or broken file, or credentials of another kind.
    """
    try:
        config = parse(path.read_text())
    except FileNotFoundError:
        raise KubeconfigError(f"there is no kubeconfig at {path}: deploy the cluster first, or name another file") from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise KubeconfigError(f"the kubeconfig {path} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise KubeconfigError(f"{path} is not a kubeconfig")
    chosen = _named(config.get("contexts"), context_name or str(config.get("current-context")), "context")
    cluster = _named(config.get("clusters"), str(chosen.get("cluster")), "cluster")
    user = _named(config.get("users"), str(chosen.get("user")), "user")
    server = str(cluster.get("server") or "").rstrip("/")
    if not server.startswith("https://"):
        raise KubeconfigError(f"the kubeconfig {path} names no https server")

    ca = _pem(cluster, "certificate-authority", path.parent)
    try:
        context = ssl.create_default_context(cadata=ca) if ca else ssl.create_default_context()
    except ssl.SSLError as error:
        raise KubeconfigError(f"the certificate authority of {path} cannot be used: {error.reason}") from None
    credentials = _stored(user, path.parent)
    # As kubectl has it: who stands in the file comes first.
    if user.get("exec") and not (credentials.token or credentials.certificate):
        credentials = _fetched(user["exec"], cluster, path)
    headers = {}
    if credentials.token:
        headers["Authorization"] = f"Bearer {credentials.token}"
    if credentials.certificate and credentials.key:
        # OpenSSL loads a key from a file only; the directory is 0700 and gone a moment later.
        with tempfile.TemporaryDirectory(prefix="hearth-kubeconfig-") as directory:
            pair = Path(directory) / "client.pem"
            pair.touch(mode=0o600)
            pair.write_text(f"{credentials.certificate}\n{credentials.key}")
            try:
                context.load_cert_chain(pair)
            except ssl.SSLError as error:
                raise KubeconfigError(f"the client certificate of {path} cannot be used: {error.reason}") from None
    elif not credentials.token:
        raise KubeconfigError(f"the kubeconfig {path} holds neither a client certificate nor a token for its user, and no plugin gives one")
    return ApiServer(server, context, headers)
