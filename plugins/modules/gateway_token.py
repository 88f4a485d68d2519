#!/usr/bin/python
# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A named token of the gateway, and the Secrets by which its consumers get it."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: gateway_token
short_description: A named token of the gateway
version_added: 0.2.0
description:
  - Makes, replaces or removes one token. The gateway's own Secret holds the tokens that it accepts, one key a token.
    Every consumer has a Secret in its own namespace that holds this one token and nothing else.
  - A token is generated once (256 bits, no line break) and kept.
  - Replacing takes two calls. V(rotated) puts a new value in force beside the old one and hands it to the consumers.
    When they all use it, V(settled) drops the old one. Called again in between, V(rotated) finishes what a run that was
    broken off left open, and never begins a second rotation.
  - The order of the writes is such that at every moment, also when a run dies between two of them, what a consumer holds
    is what the gateway accepts. The same call again finishes the work.
  - No value is ever part of a result, a diff or an error. Fingerprints stand for them.
options:
  name:
    description: Name of the token. Up to 40 lower-case letters, digits and dashes.
    type: str
    required: true
  state:
    description:
      - V(present) makes the token unless it is there.
      - V(rotated) makes a new value, and keeps the former one valid beside it until it is V(settled).
      - V(settled) ends a rotation. The former value is refused from then on. Fails when a consumer's Secret still holds
        another value than the newest.
      - V(absent) removes the token, then the consumers' Secrets, also those that O(consumers) does not name. While the house is
        locked down it takes it out of what was put aside, so that lifting the lockdown does not bring it back; the other states
        fail then.
    type: str
    choices: [present, rotated, settled, absent]
    default: present
  consumers:
    description: >-
      Namespaces that get a Secret with the token. Those that have one from an earlier call count too, named or not. The
      Secret is called C(gateway-token-) and the token's name.
    type: list
    elements: str
    default: []
  deliver:
    description: >-
      Write the consumers' Secrets. With V(false) a rotation begins at the gateway only, so that a play can wait until
      all its pods know the new value, before a call without this option has anybody present it.
    type: bool
    default: true
  write_to:
    description: >-
      File on the controller that gets the token's value, with mode 0600 and no line break. For a person who has to type
      it into a program.
    type: path
  namespace:
    description: Namespace of the gateway.
    type: str
    default: hearth
  secret:
    description: Secret of the gateway with the tokens that it accepts.
    type: str
    default: gateway-tokens
  consumer_key:
    description: Key of the token in the consumers' Secrets.
    type: str
    default: token
  create_namespace:
    description: Create a namespace that is missing.
    type: bool
    default: false
  refresh_pods:
    description: >-
      Have the kubelets bring the changed Secrets into the pods that mount them at once, by an annotation of the pods,
      instead of at their next round (a minute or more). The gateway looks at its files every two seconds.
    type: bool
    default: true
  wait_s:
    description: >-
      How long to wait until every pod of the gateway has the change and has looked at it, in seconds. With V(0) the module ends
      when it is written. Needs the right to run commands in pods.
    type: float
    default: 0
extends_documentation_fragment:
  - homelab.hearth.kubeconfig
attributes:
  check_mode:
    support: full
    description: The API server runs the changes dry. Where there is no cluster yet, says what would be made.
  diff_mode:
    support: full
    description: Before and after of each Secret and file, with fingerprints for values.
author:
  - The Hearth developers (@hearth)
"""

EXAMPLES = r"""
- name: A token for a program in the cluster
  homelab.hearth.gateway_token:
    kubeconfig: ~/.kube/hearth.yaml
    name: open-webui
    consumers: [open-webui]
  delegate_to: localhost

- name: A token for a program elsewhere, to be typed in there
  homelab.hearth.gateway_token:
    kubeconfig: ~/.kube/hearth.yaml
    name: home-assistant
    write_to: ~/hearth-home-assistant.token
  delegate_to: localhost

# A rotation that nobody notices.
- name: The gateway accepts a new value beside the old one
  homelab.hearth.gateway_token:
    name: proxy
    state: rotated
    deliver: false
    wait_s: 20
  delegate_to: localhost
- name: The sign-in proxy gets the new value
  homelab.hearth.gateway_token:
    name: proxy
    state: rotated
  delegate_to: localhost
- name: The sign-in proxy reads it at its start only
  homelab.hearth.restart:
    secrets: [gateway-token-proxy]
    namespaces: [public-ingress]
  delegate_to: localhost
- name: The old value is refused
  homelab.hearth.gateway_token:
    name: proxy
    state: settled
  delegate_to: localhost
"""

RETURN = r"""
gateway_token:
  description: The token as it is now, or would be. Fingerprints are the first 8 hex digits of the value's SHA-256.
  returned: always
  type: dict
  contains:
    name:
      description: Name of the token.
      type: str
    fingerprint:
      description: Of the value; empty without one, C((to be generated)) in check mode for one that would be made.
      type: str
    previous_fingerprint:
      description: Of the former value while it is still accepted, else empty.
      type: str
    consumers:
      description: Namespaces with a Secret that holds the token.
      type: list
      elements: str
    secret:
      description: Name of the consumers' Secrets.
      type: str
written_to:
  description: File that holds the value, if one was asked for.
  returned: always
  type: str
pods:
  description: Pods whose kubelet was told to bring a changed Secret.
  returned: always
  type: list
  elements: str
cluster:
  description: Empty, or in check mode why no cluster was asked.
  returned: always
  type: str
"""

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.hearth.plugins.module_utils import _names
from ansible_collections.homelab.hearth.plugins.module_utils._files import bring, secret_file
from ansible_collections.homelab.hearth.plugins.module_utils._k8s import (
    AUTH_SPEC,
    LABELS,
    Cluster,
    ClusterError,
    NoClusterError,
    Object,
    ensure_namespace,
    hurry,
    until_undisturbed,
)
from ansible_collections.homelab.hearth.plugins.module_utils._lock import ASIDE, locked_since
from ansible_collections.homelab.hearth.plugins.module_utils._objects import fingerprint, title
from ansible_collections.homelab.hearth.plugins.module_utils._people import Gateway, PeopleError
from ansible_collections.homelab.hearth.plugins.module_utils._sentence import sentence
from ansible_collections.homelab.hearth.plugins.module_utils._token import (
    PREVIOUS,
    Data,
    TokenError,
    check_name,
    encode,
    entries,
    generate,
    held,
    value_of,
    with_rotation,
    with_rotation_settled,
    with_token,
    without_token,
)

# On the consumers' Secrets: whose token they hold. By it a rotation finds them all.
LABEL = "hearth.homelab/gateway-token"
CONSUMER_SECRET = "gateway-token-"  # noqa: S105  (the beginning of a name)
TO_BE_GENERATED = "(to be generated)"


# By namespace; None for one that is still to be made.
Consumers: TypeAlias = "dict[str, Object | None]"


class Done(NamedTuple):
    """The token's value, the data of the gateway's Secret, and the namespaces whose Secret holds the token."""

    current: str | None
    data: dict[str, str]
    consumers: list[str]


class Changes:
    """Before and after of every object, by fingerprints, over all attempts of a run."""

    def __init__(self) -> None:
        self._seen: dict[str, list[dict[str, str]]] = {}

    def note(self, name: str, before: dict[str, str], after: dict[str, str]) -> None:
        # An attempt that another operator disturbed may have written this already: the first "before" counts.
        self._seen.setdefault(name, [before, after])[1] = after

    def diff(self) -> list[dict[str, str]]:
        def text(view: dict[str, str]) -> str:
            return "".join(f"{key}: {value}\n" for key, value in sorted(view.items()))

        return [
            {"before_header": name, "after_header": name, "before": text(before), "after": text(after)}
            for name, (before, after) in self._seen.items()
            if before != after
        ]


class Run:
    """One run of the module against a cluster that answers."""

    def __init__(self, module: AnsibleModule, cluster: Cluster) -> None:
        self.module, self.params, self.cluster = module, module.params, cluster
        self.name: str = module.params["name"]
        self.secret_name = CONSUMER_SECRET + self.name
        self.new = generate()
        self.changes = Changes()
        self.pods: dict[str, None] = {}
        self._hide(encode(self.new))

    # --- values that must not be shown

    def _hide(self, encoded: str) -> None:
        """Ansible blots out these texts in whatever the module says. We do not say them: this is the second lock."""
        try:
            value = value_of(encoded)
        except TokenError:
            return
        if value:
            self.module.no_log_values.update((value, encoded))

    def _view(self, data: Data) -> dict[str, str]:
        made = encode(self.new) if self.cluster.dry_run else None
        return {key: TO_BE_GENERATED if value == made else fingerprint(value) for key, value in data.items()}

    # --- reading

    def _consumers(self) -> Consumers:
        """The consumers' Secrets: those asked for, and those of earlier calls.

        :raises TokenError: a Secret of that name belongs to somebody else.
        """
        found: Consumers = dict.fromkeys(self.params["consumers"])
        for secret in self.cluster.find("v1", "Secret", f"{LABEL}={self.name}"):
            if secret["metadata"]["name"] == self.secret_name and not secret["metadata"].get("deletionTimestamp"):
                found[secret["metadata"]["namespace"]] = secret
        for namespace in [namespace for namespace, secret in found.items() if secret is None]:
            other = self.cluster.get("v1", "Secret", self.secret_name, namespace)
            if other is not None:
                raise TokenError(
                    f"{title(other)} is not ours (it has no label {LABEL}={self.name}): delete it, or choose another name for the token"
                )
        for secret in found.values():
            for encoded in ((secret or {}).get("data") or {}).values():
                self._hide(encoded)
        return found

    def _mine(self, data: Data) -> dict[str, str]:
        """Both values of the token, also where a lockdown has put them aside."""
        return {**entries(data, self.name), **entries(data, ASIDE + self.name)}

    def _wanted(self, data: Data) -> dict[str, str]:
        """What the gateway's Secret shall hold."""
        change: dict[str, Callable[[], dict[str, str]]] = {
            "present": lambda: with_token(data, self.name, self.new),
            "rotated": lambda: with_rotation(data, self.name, self.new),
            "settled": lambda: with_rotation_settled(data, self.name),
            "absent": lambda: without_token(without_token(data, self.name), ASIDE + self.name),
        }
        return change[self.params["state"]]()

    # --- writing

    def _write(self, existing: Object | None, namespace: str, name: str, data: Data, labels: dict[str, str]) -> None:
        if existing is not None:
            # The resourceVersion of what was read stays in it: the API server refuses if it is no longer the newest.
            self.cluster.replace({**existing, "data": data})
        elif ensure_namespace(self.cluster, namespace, self.params["create_namespace"], "deploy what lives in it first"):
            meta = {"name": name, "namespace": namespace, "labels": labels}
            self.cluster.create({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "type": "Opaque", "data": data})

    def _hurry(self, namespace: str, name: str) -> None:
        # Also when nothing was written: a run that was broken off may have written and told nobody.
        if self.params["refresh_pods"]:
            self.pods.update(dict.fromkeys(hurry(self.cluster, "Secret", namespace, name)))

    def _bring_gateway(self, existing: Object | None) -> dict[str, str]:
        """Write the gateway's Secret if it is to change; returns its data."""
        namespace, name = self.params["namespace"], self.params["secret"]
        data = (existing or {}).get("data") or {}
        if locked_since(existing) and self.params["state"] != "absent":
            raise TokenError(
                f"the house is locked down since {locked_since(existing)}, so its tokens stand aside: run lockdown.yml -e lifted=true first"
            )
        wanted = self._wanted(data)
        if wanted != data:
            self._write(existing, namespace, name, wanted, LABELS)
            self.changes.note(f"Secret {namespace}/{name}", self._view(self._mine(data)), self._view(self._mine(wanted)))
        self._hurry(namespace, name)
        return wanted

    def _bring_consumers(self, consumers: Consumers, token: str) -> None:
        data = {self.params["consumer_key"]: encode(token)}
        for namespace, secret in consumers.items():
            before = (secret or {}).get("data") or {}
            if before != data:
                self._write(secret, namespace, self.secret_name, data, {**LABELS, LABEL: self.name})
                self.changes.note(f"Secret {namespace}/{self.secret_name}", self._view(before), self._view(data))
            self._hurry(namespace, self.secret_name)

    def _delete_consumers(self, consumers: Consumers) -> None:
        for secret in consumers.values():
            if secret is not None:
                self.cluster.delete(secret)
                self.changes.note(title(secret), self._view(secret.get("data") or {}), {})

    def _require_delivered(self, consumers: Consumers, data: Data) -> None:
        """Refuse to drop a value that a consumer's Secret still holds.

        :raises TokenError: names the Secrets.
        """
        wanted = {self.params["consumer_key"]: encode(str(held(data, self.name).current))}
        behind = [f"{namespace}/{self.secret_name}" for namespace, secret in consumers.items() if (secret or {}).get("data") != wanted]
        if self.name + PREVIOUS in data and behind:
            raise TokenError(
                f"the newest value of the token {self.name} is not in Secret {', '.join(sorted(behind))} yet: "
                "run state=rotated, restart what reads it at its start, then settle"
            )

    def attempt(self) -> Done:
        """Read, change and write once.

        :raises ClusterError: with status 409 when somebody else wrote in between.
        """
        state, deliver = self.params["state"], self.params["deliver"]
        # Before the gateway's Secret: when another operator brings a newer value meanwhile, then either we read that
        # newer value here, or our write to the consumer is refused and we start again.
        consumers = self._consumers()
        existing = self.cluster.get("v1", "Secret", self.params["secret"], self.params["namespace"])
        before = (existing or {}).get("data") or {}
        for encoded in self._mine(before).values():
            self._hide(encoded)
        if state == "settled":
            self._require_delivered(consumers, before)
        # The gateway first: it accepts a value before anybody shows it, and refuses one before anything is tidied up.
        data = self._bring_gateway(existing)
        current = held(data, self.name).current
        if state == "absent":
            self._delete_consumers(consumers)
            return Done(None, data, [])
        if state != "settled" and deliver:
            self._bring_consumers(consumers, str(current))
            return Done(current, data, sorted(consumers))
        return Done(current, data, sorted(namespace for namespace, secret in consumers.items() if secret is not None))


def wait_for_gateway(cluster: Cluster, name: str, data: Data, timeout_s: float) -> None:
    """Wait until all pods of the gateway have these values of the token, and no others.

    :raises PeopleError: a pod has not got them in time.
    """
    wanted = {key: hashlib.sha256(base64.b64decode(value)).hexdigest() for key, value in entries(data, name).items()}
    Gateway(cluster).wait_for_tokens(lambda files: entries(files, name) == wanted, timeout_s)


def result_of(name: str, view: dict[str, str], consumers: list[str]) -> dict[str, Any]:
    return {
        "name": name,
        "fingerprint": view.get(name, ""),
        "previous_fingerprint": view.get(name + PREVIOUS, ""),
        "consumers": consumers,
        "secret": CONSUMER_SECRET + name,
    }


def without_cluster(params: dict[str, Any], why: str) -> dict[str, Any]:
    """Check mode where no cluster answers: a token would be made, and there is none to replace or to remove."""
    name = params["name"]
    if params["state"] in ("rotated", "settled"):
        raise TokenError(f"there is no token {name} to replace: {why}")
    changes = Changes()
    view: dict[str, str] = {}
    consumers = sorted(set(params["consumers"])) if params["state"] == "present" and params["deliver"] else []
    if params["state"] == "present":
        view = {name: TO_BE_GENERATED}
        changes.note(f"Secret {params['namespace']}/{params['secret']}", {}, view)
        for namespace in consumers:
            changes.note(f"Secret {namespace}/{CONSUMER_SECRET}{name}", {}, {params["consumer_key"]: TO_BE_GENERATED})
    diff = changes.diff()
    return {
        "changed": bool(diff),
        "diff": diff,
        "gateway_token": result_of(name, view, consumers),
        "written_to": params["write_to"] or "",
        "pods": [],
        "cluster": why,
    }


def run(module: AnsibleModule) -> dict[str, Any]:
    params = module.params
    check_name(params["name"])
    if params["write_to"]:
        if params["state"] == "absent":
            raise TokenError("write_to: a token that is removed cannot be written to a file")
        # Before anything is changed.
        if Path(params["write_to"]).is_dir():
            raise TokenError(f"write_to: {params['write_to']} is a directory; name a file in it")
    try:
        cluster = Cluster(module, "hearth-gateway-token")
    except NoClusterError as error:
        if not module.check_mode:
            raise
        return without_cluster(params, str(error))
    this = Run(module, cluster)
    done: Done = until_undisturbed(this.attempt, f"the token {params['name']}")
    diff = this.changes.diff()
    if params["write_to"]:
        diff += bring(module, [secret_file(params["write_to"], str(done.current))])[1]
    if params["wait_s"] and not cluster.dry_run:
        wait_for_gateway(cluster, params["name"], done.data, params["wait_s"])
    view = this._view(entries(done.data, params["name"]))
    return {
        "changed": bool(diff),
        "diff": diff,
        "gateway_token": result_of(params["name"], view, done.consumers),
        "written_to": params["write_to"] or "",
        "pods": list(this.pods),
        "cluster": "",
    }


def argument_spec() -> dict[str, Any]:
    return {
        "name": {"type": "str", "required": True},
        "state": {"type": "str", "choices": ["present", "rotated", "settled", "absent"], "default": "present"},
        "consumers": {"type": "list", "elements": "str", "default": []},
        "deliver": {"type": "bool", "default": True},
        "write_to": {"type": "path"},
        "namespace": {"type": "str", "default": _names.GATEWAY_NAMESPACE},
        # Names, no values.
        "secret": {"type": "str", "default": _names.TOKENS_SECRET, "no_log": False},
        "consumer_key": {"type": "str", "default": "token", "no_log": False},
        "create_namespace": {"type": "bool", "default": False},
        "refresh_pods": {"type": "bool", "default": True},
        "wait_s": {"type": "float", "default": 0},
        **AUTH_SPEC,
    }


def main() -> None:
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    try:
        module.exit_json(**run(module))
    except (ClusterError, PeopleError, TokenError) as error:
        module.fail_json(msg=sentence(error))


if __name__ == "__main__":
    main()
