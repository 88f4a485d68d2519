#!/usr/bin/python
# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A certificate of a house's own authority, kept in the cluster."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: own_certificate
short_description: A certificate of a house's own authority
version_added: 0.2.0
description:
  - For a network without a public name. Makes a certificate authority once and keeps it in a Secret, and a certificate of
    it for the hosts in another Secret. People install the authority's certificate once on each of their devices.
  - The certificate is made anew when the hosts change, when it ends within 300 days (it is good for 800), or when it does
    not belong to the authority. The authority is never made anew by itself, because everybody would have to install it again.
  - Private keys stand in the two Secrets alone, never in a result, diff or message, and never on the controller's disk.
options:
  hosts:
    description: Host names; C(*.) before a name stands for all names directly below it.
    type: list
    elements: str
    required: true
  namespace:
    description: Namespace of both Secrets.
    type: str
    default: kube-system
  ca_secret:
    description: Secret of the authority.
    type: str
    required: true
  secret:
    description: Secret of the certificate, with keys C(tls.crt) and C(tls.key).
    type: str
    required: true
  ca_name:
    description: Name of the authority, as devices show it.
    type: str
    default: Hearth at home
  ca_file:
    description: File on the controller for the authority's certificate, for people to install. Not written when empty.
    type: path
extends_documentation_fragment:
  - homelab.hearth.kubeconfig
attributes:
  check_mode:
    support: full
    description: Says what would be made. Where there is no cluster yet, everything would.
  diff_mode:
    support: full
    description: Hosts, end and fingerprint of each certificate.
author:
  - The Hearth developers (@hearth)
"""

EXAMPLES = r"""
- name: A certificate for the chat
  homelab.hearth.own_certificate:
    kubeconfig: ~/.kube/hearth.yaml
    hosts: [chat.home.arpa]
    ca_secret: traefik-own-ca
    secret: traefik-own-certificate
    ca_file: ~/hearth-ca.crt
  delegate_to: localhost
"""

RETURN = r"""
ca_fingerprint:
  description: SHA-256 fingerprint of the authority's certificate, as devices show it; empty when it would only be made.
  returned: always
  type: str
ends:
  description: Day on which the certificate ends; empty when it would only be made.
  returned: always
  type: str
made:
  description: What was, or would be, made, each with the reason.
  returned: always
  type: list
  elements: str
"""

import base64
import binascii
import datetime
import http.client
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.homelab.hearth.plugins.module_utils import _certificates
from ansible_collections.homelab.hearth.plugins.module_utils._certificates import CertificateError, Pair
from ansible_collections.homelab.hearth.plugins.module_utils._k8s import (
    AUTH_SPEC,
    Cluster,
    ClusterError,
    NoClusterError,
)
from ansible_collections.homelab.hearth.plugins.module_utils._sentence import sentence

FIELD_MANAGER = "hearth-own-certificate"
# No component label: no role renders these Secrets, so none may prune them.
LABELS = {"app.kubernetes.io/part-of": "hearth", "app.kubernetes.io/managed-by": "hearth"}
CERTIFICATE = "tls.crt"
KEY = "tls.key"


class OwnCertificateError(Exception):
    """Why there is no certificate, in words for the operator."""


def stored_pair(secret: dict[str, Any] | None) -> Pair | None:
    """What a Secret holds, or None when it does not hold both parts."""
    data = (secret or {}).get("data") or {}
    try:
        certificate, key = (base64.b64decode(data[name], validate=True).decode() for name in (CERTIFICATE, KEY))
    except (KeyError, binascii.Error, UnicodeDecodeError):
        return None
    return Pair(certificate, key) if certificate and key else None


def definition(name: str, namespace: str, pair: Pair) -> dict[str, Any]:
    data = {CERTIFICATE: pair.certificate, KEY: pair.key}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace, "labels": LABELS},
        "type": "Opaque",
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in data.items()},
    }


class Run:
    """One run of the module."""

    def __init__(self, module: AnsibleModule, cluster: Cluster, now: datetime.datetime) -> None:
        self.params, self.cluster, self.check_mode, self.now = module.params, cluster, module.check_mode, now
        self.made: list[str] = []

    def _secret(self, name: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self.cluster.get("v1", "Secret", name, self.params["namespace"])
        return found

    def authority(self) -> Pair:
        name, where = self.params["ca_secret"], f"Secret {self.params['namespace']}/{self.params['ca_secret']}"
        secret = self._secret(name)
        if secret is None:
            pair = _certificates.new_authority(self.now, self.params["ca_name"])
            try:
                self.cluster.create(definition(name, self.params["namespace"], pair))
            except ClusterError as error:
                if error.status != http.client.CONFLICT:
                    raise
                # Another run made one in this very moment: with two, a device would trust the one that nobody uses.
                secret = self._secret(name)
            else:
                self.made.append(f"the authority: {where} is not there")
                return pair
        found = stored_pair(secret)
        try:
            if found is None:
                raise CertificateError(f"it does not hold {CERTIFICATE} and {KEY}")
            _certificates.check_authority(found)
        except CertificateError as error:
            # Made anew without a question, every device of the house would show warnings.
            raise OwnCertificateError(
                f"the authority in {where} cannot be used: {error}; put it back from a backup, or delete the Secret "
                f"for a new one, which everybody has to install again"
            ) from None
        return found

    def certificate(self, authority: Pair) -> Pair:
        name = self.params["secret"]
        found = stored_pair(self._secret(name))
        reason = _certificates.unfit(found, authority, self.params["hosts"], self.now)
        if found is not None and reason is None:
            return found
        try:
            pair = _certificates.new_certificate(authority, self.params["hosts"], self.now)
        except CertificateError as error:
            raise OwnCertificateError(
                f"{error}: delete Secret {self.params['namespace']}/{self.params['ca_secret']} for a new authority, "
                f"which everybody has to install again"
            ) from None
        self.made.append(f"the certificate for {', '.join(self.params['hosts'])}: {reason}")
        self.cluster.apply(definition(name, self.params["namespace"], pair))
        return pair

    def ca_file(self, authority: Pair) -> None:
        if not self.params["ca_file"]:
            return
        path = Path(self.params["ca_file"])
        try:
            if path.is_file() and path.read_text() == authority.certificate:
                return
            self.made.append(f"the file {path}")
            if not self.check_mode:
                path.write_text(authority.certificate)
        except (OSError, UnicodeDecodeError) as error:
            raise OwnCertificateError(f"cannot write {path}: {error}") from None

    def result(self) -> dict[str, Any]:
        authority = self.authority()
        pair = self.certificate(authority)
        self.ca_file(authority)
        # In check mode a new pair was made to be thrown away: it says nothing about the one that a run would make.
        is_new = self.check_mode and bool(self.made)
        return {
            "changed": bool(self.made),
            "made": self.made,
            "ca_fingerprint": "" if is_new else _certificates.fingerprint(authority.certificate),
            "ends": "" if is_new else _certificates.ends(pair.certificate),
            "diff": {"before": "", "after": "".join(f"{line}\n" for line in self.made)},
        }


def without_cluster(params: dict[str, Any]) -> dict[str, Any]:
    """Check mode where no cluster answers."""
    made = ["the authority: there is no cluster yet", f"the certificate for {', '.join(params['hosts'])}: there is none"]
    return {"changed": True, "made": made, "ca_fingerprint": "", "ends": "", "diff": {"before": "", "after": "\n".join(made) + "\n"}}


def run(module: AnsibleModule) -> dict[str, Any]:
    if _certificates.MISSING:
        raise OwnCertificateError(missing_required_lib(_certificates.MISSING))
    if not module.params["hosts"]:
        raise OwnCertificateError("hosts: say for which host names the certificate is, such as chat.home.arpa")
    try:
        cluster = Cluster(module, FIELD_MANAGER)
    except NoClusterError:
        if not module.check_mode:
            raise
        return without_cluster(module.params)
    return Run(module, cluster, datetime.datetime.now(datetime.UTC)).result()


def argument_spec() -> dict[str, Any]:
    return {
        "hosts": {"type": "list", "elements": "str", "required": True},
        "namespace": {"type": "str", "default": "kube-system"},
        # Names of Secrets, not secrets.
        "ca_secret": {"type": "str", "required": True, "no_log": False},
        "secret": {"type": "str", "required": True, "no_log": False},
        "ca_name": {"type": "str", "default": "Hearth at home"},
        "ca_file": {"type": "path"},
        **AUTH_SPEC,
    }


def main() -> None:
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    try:
        module.exit_json(**run(module))
    except (ClusterError, OwnCertificateError) as error:
        module.fail_json(msg=sentence(error))


if __name__ == "__main__":
    main()
