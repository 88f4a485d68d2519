# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A kubeconfig, read with the standard library: where the API server is, and how to prove who asks.

The Kubernetes client reads it too, but its import and its discovery cost two seconds in every task. Client
certificates and tokens are understood, which is what k3s gives; plugins that fetch credentials are not.
"""

from __future__ import annotations

import base64
import binascii
import ssl
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class KubeconfigError(Exception):
    """Why a kubeconfig cannot be used, in one sentence. Never holds a credential."""


@dataclass(frozen=True)
class ApiServer:
    """The API server of a kubeconfig's context, and the credentials for it."""

    url: str
    context: ssl.SSLContext
    headers: dict[str, str]


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


def read_kubeconfig(path: Path, parse: Callable[[str], Any], context_name: str | None = None) -> ApiServer:
    """Read a kubeconfig with a client certificate or a token.

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
    certificate, key = _pem(user, "client-certificate", path.parent), _pem(user, "client-key", path.parent)
    token = user.get("token") or (_file(user["tokenFile"], "tokenFile", path.parent).strip() if user.get("tokenFile") else "")
    headers = {}
    if certificate and key:
        # OpenSSL loads a key from a file only; the directory is 0700 and gone a moment later.
        with tempfile.TemporaryDirectory(prefix="hearth-kubeconfig-") as directory:
            pair = Path(directory) / "client.pem"
            pair.touch(mode=0o600)
            pair.write_text(f"{certificate}\n{key}")
            try:
                context.load_cert_chain(pair)
            except ssl.SSLError as error:
                raise KubeconfigError(f"the client certificate of {path} cannot be used: {error.reason}") from None
    elif token:
        headers["Authorization"] = f"Bearer {token}"
    else:
        raise KubeconfigError(f"the kubeconfig {path} holds neither a client certificate nor a token for its user")
    return ApiServer(server, context, headers)
