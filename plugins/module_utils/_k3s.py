"""What we know of k3s: its configuration keys, its token, its failures. Private to the collection.

Pure functions and tables, no Ansible: the filters on the controller and the modules on the hosts share them.
Keys and messages follow the k3s documentation and source of v1.36/v1.37.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# -- releases -------------------------------------------------------------------------------------------------

RELEASE_SUFFIX = {"amd64": "", "arm64": "-arm64"}


def parse_version(text: str) -> str:
    """Output of `k3s --version` -> `v1.36.4+k3s1`, or an empty string. The third word of the first line is it."""
    words = text.split()
    return words[2] if len(words) > 2 and words[:2] == ["k3s", "version"] else ""


def version_tuple(text: str) -> tuple[int, ...]:
    """`v1.36.4+k3s1` -> its numbers, `24.04` -> (24, 4); text without digits gives an empty tuple, older than everything.

    `+k3s2` counts: the last number is a release of its own.
    """
    return tuple(int(part) for part in re.findall(r"\d+", text))


# -- configuration ----------------------------------------------------------------------------------------------

# One letter a type: b bool, i int, s string, l list of strings (a single string counts), d duration string.
# A server warns about a key it does not know and goes on without it; an agent given a server's key dies. So the
# two have tables of their own, and the role refuses what is in neither.
AGENT_KEYS = {
    "alsologtostderr": "b",
    "bind-address": "s",
    "container-runtime-endpoint": "s",
    "data-dir": "s",
    "debug": "b",
    "default-runtime": "s",
    "disable-apiserver-lb": "b",
    "disable-default-registry-endpoint": "b",
    "docker": "b",
    "enable-pprof": "b",
    "flannel-cni-conf": "s",
    "flannel-conf": "s",
    "flannel-iface": "s",
    "image-credential-provider-bin-dir": "s",
    "image-credential-provider-config": "s",
    "image-service-endpoint": "s",
    "kube-proxy-arg": "l",
    "kubelet-arg": "l",
    "lb-server-port": "i",
    "log": "s",
    "node-external-dns": "l",
    "node-external-ip": "l",
    "node-internal-dns": "l",
    "node-ip": "l",
    "node-label": "l",
    "node-name": "s",
    "node-taint": "l",
    "nonroot-devices": "b",
    "pause-image": "s",
    "prefer-bundled-bin": "b",
    "private-registry": "s",
    "protect-kernel-defaults": "b",
    "resolv-conf": "s",
    "rootless": "b",
    "selinux": "b",
    "server": "s",
    "snapshotter": "s",
    "token": "s",
    "token-file": "s",
    "v": "i",
    "vmodule": "s",
    "vpn-auth": "s",
    "vpn-auth-file": "s",
    "with-node-id": "b",
}

SERVER_KEYS = {key: kind for key, kind in AGENT_KEYS.items() if key != "disable-apiserver-lb"} | {
    "advertise-address": "s",
    "advertise-port": "i",
    "agent-token": "s",
    "agent-token-file": "s",
    "cluster-cidr": "l",
    "cluster-dns": "l",
    "cluster-domain": "s",
    "cluster-init": "b",
    "datastore-cafile": "s",
    "datastore-certfile": "s",
    "datastore-endpoint": "s",
    "datastore-keyfile": "s",
    "default-local-storage-path": "s",
    "disable": "l",
    "disable-agent": "b",
    "disable-cloud-controller": "b",
    "disable-helm-controller": "b",
    "disable-kube-proxy": "b",
    "disable-network-policy": "b",
    "disable-scheduler": "b",
    "egress-selector-mode": "s",
    "embedded-registry": "b",
    "etcd-arg": "l",
    "etcd-disable-snapshots": "b",
    "etcd-expose-metrics": "b",
    "etcd-s3": "b",
    "etcd-s3-access-key": "s",
    "etcd-s3-bucket": "s",
    "etcd-s3-config-secret": "s",
    "etcd-s3-endpoint": "s",
    "etcd-s3-endpoint-ca": "s",
    "etcd-s3-folder": "s",
    "etcd-s3-insecure": "b",
    "etcd-s3-proxy": "s",
    "etcd-s3-region": "s",
    "etcd-s3-secret-key": "s",
    "etcd-s3-skip-ssl-verify": "b",
    "etcd-s3-timeout": "d",
    "etcd-snapshot-compress": "b",
    "etcd-snapshot-dir": "s",
    "etcd-snapshot-name": "s",
    "etcd-snapshot-retention": "i",
    "etcd-snapshot-schedule-cron": "s",
    "flannel-backend": "s",
    "flannel-external-ip": "b",
    "flannel-ipv6-masq": "b",
    "helm-job-image": "s",
    "https-listen-port": "i",
    "kube-apiserver-arg": "l",
    "kube-cloud-controller-manager-arg": "l",
    "kube-controller-manager-arg": "l",
    "kube-scheduler-arg": "l",
    "secrets-encryption": "b",
    "secrets-encryption-provider": "s",
    "service-cidr": "l",
    "service-node-port-range": "s",
    "servicelb-namespace": "s",
    "supervisor-metrics": "b",
    "system-default-registry": "s",
    "tls-san": "l",
    "tls-san-security": "b",
    "write-kubeconfig": "s",
    "write-kubeconfig-group": "s",
    "write-kubeconfig-mode": "s",
}

CHOICES = {
    "disable": ("coredns", "servicelb", "traefik", "local-storage", "metrics-server", "runtimes"),
    "egress-selector-mode": ("agent", "cluster", "pod", "disabled"),
    "flannel-backend": ("none", "vxlan", "host-gw", "wireguard-native"),
    "secrets-encryption-provider": ("aescbc", "secretbox"),
}

# Known to k3s and refused all the same: what to do instead.
REFUSED_KEYS = {
    "agent-token": "a secret does not belong in config.yaml; use agent-token-file",
    "cluster-reset": "it is an action, not a setting: every start would reset the cluster",
    "cluster-reset-restore-path": "it is an action, not a setting: every start would restore again",
    "cluster-secret": "renamed by k3s; set the role variable k3s_token",
    "config": "the path of this file cannot stand in this file",
    "datastore-endpoint": "it holds a password, and a database beside the cluster is not supported: the data on the hosts tell who founds",
    "etcd-s3-access-key": "a secret does not belong in config.yaml; use etcd-s3-config-secret",
    "etcd-s3-secret-key": "a secret does not belong in config.yaml; use etcd-s3-config-secret",
    "no-deploy": "renamed by k3s; set the role variable k3s_disabled_components",
    "no-flannel": "renamed by k3s; use flannel-backend: none",
    "token": "a secret does not belong in config.yaml; set the role variable k3s_token",
    "vpn-auth": "a secret does not belong in config.yaml; use vpn-auth-file",
}

# Keys that the role writes from variables of its own: one setting, one place.
ROLE_KEYS = {
    "agent-token-file": "k3s_agent_token",
    "cluster-init": "k3s_datastore",
    "data-dir": "k3s_data_dir",
    "disable": "k3s_disabled_components",
    "embedded-registry": "k3s_embedded_registry_enabled",
    "etcd-disable-snapshots": "k3s_etcd_snapshots_enabled",
    "etcd-s3": "k3s_etcd_s3",
    "etcd-s3-bucket": "k3s_etcd_s3",
    "etcd-s3-config-secret": "k3s_etcd_s3",
    "etcd-s3-endpoint": "k3s_etcd_s3",
    "etcd-s3-endpoint-ca": "k3s_etcd_s3",
    "etcd-s3-folder": "k3s_etcd_s3",
    "etcd-s3-insecure": "k3s_etcd_s3",
    "etcd-s3-proxy": "k3s_etcd_s3",
    "etcd-s3-region": "k3s_etcd_s3",
    "etcd-s3-skip-ssl-verify": "k3s_etcd_s3",
    "etcd-s3-timeout": "k3s_etcd_s3",
    "etcd-snapshot-dir": "k3s_etcd_snapshot_dir",
    "etcd-snapshot-retention": "k3s_etcd_snapshot_retention",
    "etcd-snapshot-schedule-cron": "k3s_etcd_snapshot_schedule",
    "kube-apiserver-arg": "k3s_apiserver_args",
    "kubelet-arg": "k3s_kubelet_args",
    "node-external-ip": "k3s_node_external_ips",
    "node-ip": "k3s_node_ips",
    "node-label": "k3s_node_labels",
    "node-name": "k3s_node_name",
    "node-taint": "k3s_node_taints",
    "secrets-encryption": "k3s_secrets_encryption_enabled",
    "server": "k3s_registration_address",
    "tls-san": "k3s_tls_sans",
    "token-file": "k3s_token",
    "write-kubeconfig-mode": "it is always \"0600\"",
}

_TYPE_NAMES = {
    "b": "true or false",
    "i": "a whole number",
    "s": "a string",
    "l": "a string or a list of strings",
    "d": "a duration such as 5m0s",
}


def keys_for(kind: str) -> dict[str, str]:
    """The key table of `server` or `agent`: key -> type letter."""
    return SERVER_KEYS if kind == "server" else AGENT_KEYS


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that a misspelling most likely means, or an empty string."""
    found = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.7)
    return found[0] if found else ""


def _has_type(value: Any, kind: str) -> bool:
    if kind == "b":
        return isinstance(value, bool)
    if kind == "i":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == "l":
        items = value if isinstance(value, list) else [value]
        return all(isinstance(item, str) for item in items)
    return isinstance(value, str)


def _value_problem(key: str, value: Any, kind: str) -> str:
    if value is None:
        return f"{key} has no value: leave the key out instead"
    if not _has_type(value, kind):
        if key.endswith("-mode") and isinstance(value, int):
            # Unquoted 0644 reaches k3s as decimal 420 and makes a file of mode 0420.
            return f'{key} must be quoted: YAML reads 0644 as the number 420. Write "0600"'
        return f"{key} must be {_TYPE_NAMES[kind]}, is {value!r}"
    items = value if isinstance(value, list) else [value]
    if key in CHOICES:
        for item in items:
            if item not in CHOICES[key]:
                return f"{key}: {item!r} is none of {', '.join(CHOICES[key])}"
    if key.endswith("-arg"):
        for item in items:
            if item.startswith("-") or "=" not in item:
                return f"{key}: write {item!r} as flag=value, without dashes"
    if key == "server" and not value.startswith("https://"):
        return "server: only https:// addresses are supported"
    if key.endswith("-mode") and kind == "s" and key == "write-kubeconfig-mode" and not re.fullmatch(r"0?[0-7]{3}", value):
        return f"{key}: {value!r} is no file mode"
    return ""


def config_problems(config: Mapping[str, Any], kind: str, *, from_user: bool = False) -> list[str]:
    """Everything wrong with a config.yaml for a `server` or an `agent`, one sentence each.

    from_user: the mapping is what a person wrote into k3s_config, so keys that have a role variable are refused too.
    """
    known = keys_for(kind)
    problems = []
    for key, value in config.items():
        if not isinstance(key, str):
            problems.append(f"{key!r} is no key")
        elif from_user and key in ROLE_KEYS:
            variable = ROLE_KEYS[key]
            problems.append(f"{key}: set {variable} instead" if variable.startswith("k3s_") else f"{key}: {variable}")
        elif key in REFUSED_KEYS:
            problems.append(f"{key}: {REFUSED_KEYS[key]}")
        elif key.endswith("+"):
            problems.append(f"{key}: give the whole list under {key[:-1]}; `+` is for drop-in files, which we do not write")
        elif key not in known:
            if kind == "agent" and key in SERVER_KEYS:
                problems.append(f"{key}: a setting of servers; an agent that meets it exits")
                continue
            near = nearest(key, known)
            problems.append(f"{key}: no setting of a k3s {kind}" + (f"; did you mean {near}?" if near else ""))
        else:
            problem = _value_problem(key, value, known[key])
            if problem:
                problems.append(problem)
    return problems


def _scalar(value: Any) -> str:
    # JSON strings are YAML strings under 1.1 and 1.2 alike: `on`, `0600` and `1:30` stay what they are.
    return json.dumps(value, ensure_ascii=False)


def render_config(config: Mapping[str, Any]) -> str:
    """A checked config.yaml as text: keys sorted, every string quoted, so that YAML 1.1 cannot read one as another type."""
    lines = ["# Written by Ansible (role homelab.hearth.k3s). A change here is undone by the next run."]
    for key in sorted(config):
        value = config[key]
        if isinstance(value, list):
            if value:
                lines.append(f"{key}:")
                lines += [f"  - {_scalar(item)}" for item in value]
        else:
            lines.append(f"{key}: {_scalar(value)}")
    return "\n".join(lines) + "\n"


def read_own_config(text: str) -> dict[str, Any]:
    """A config.yaml as `render_config` writes it, read back without a YAML parser, which a bare host does not have.

    Lines of another make are left out: what a person wrote there is theirs to know.
    """
    found: dict[str, Any] = {}
    items: list[Any] | None = None
    for line in text.split("\n"):
        key, colon, value = line.partition(":")
        try:
            if line.startswith("  - ") and items is not None:
                items.append(json.loads(line[4:]))
            elif colon and key and not key.startswith((" ", "#")):
                items = None
                if value.strip():
                    found[key] = json.loads(value)
                else:
                    items = found[key] = []
        except ValueError:
            items = None
    return found


# -- token ------------------------------------------------------------------------------------------------------

_FULL_TOKEN = re.compile(r"^K10[0-9a-f]{64}::(?:[^:]*:)?(?P<secret>.*)$", re.S)


def token_secret(token: str) -> str:
    """The secret part of a token: of `K10<hash>::server:abc` it is `abc`; a short token is its own secret."""
    stripped = token.strip()
    match = _FULL_TOKEN.match(stripped)
    return match.group("secret") if match else stripped


def token_problem(token: str) -> str:
    """Why a token cannot be used as the first server's, or an empty string.

    k3s trims the file it reads, so a token that begins or ends in white space would differ from what people see;
    and the first server takes the short form only.
    """
    if not token.strip():
        return "is empty"
    if token != token.strip() or "\n" in token or "\r" in token:
        return "begins or ends with white space, or has a line break; k3s trims the file, so two hosts could differ"
    if _FULL_TOKEN.match(token):
        return "is in the long form (K10…::server:…); the first server takes only its last part"
    if any(ord(character) < 32 or ord(character) == 127 for character in token):
        return "has a control character"
    if len(token) < 16:
        return "is shorter than 16 characters; it also encrypts the cluster's keys"
    return ""


def redact(text: str, secrets: Sequence[str] = ()) -> str:
    """Log text without tokens: long tokens, `--token=…`, and the given secrets become `***`."""
    hidden = re.sub(r"K10[0-9a-f]{64}::\S+", "***", text)
    hidden = re.sub(r"(--(?:agent-)?token[= ])\S+", r"\1***", hidden)
    for secret in secrets:
        if secret:
            hidden = hidden.replace(secret, "***")
    return hidden


# -- failures ---------------------------------------------------------------------------------------------------

# Substring in the log -> what it means and what to do. First match wins, so the more special text stands first.
# Substrings, because the wording around them changes between k3s versions.
CAUSES: tuple[tuple[str, str], ...] = (
    (
        "encrypted with different token",
        "this host's data was made with another token. Set k3s_token to the old one, or change it with `k3s token rotate`",
    ),
    (
        "token CA hash does not match",
        "the token belongs to another (or a rebuilt) cluster. Give the token of the cluster at `server:`",
    ),
    (
        "K3S_TOKEN is required to join a cluster",
        "a server that joins needs the cluster's token. Set k3s_token",
    ),
    (
        "Node password rejected",
        "another machine has registered under this host name. Rename this host, or delete the old node with "
        "`k3s kubectl delete node NAME` when that machine is gone",
    ),
    (
        "duplicate node name found",
        "another server has registered under this host name. Rename this host, or remove the old server first",
    ),
    (
        "critical configuration value mismatch",
        "this server's configuration differs from the others' in a value that must be equal on all of them",
    ),
    (
        "too many learner members",
        "another server is joining at the same time. Run the play again; servers join one after another",
    ),
    (
        "newer than datastore and could cause a cluster outage",
        "old certificates of another cluster lie on this host. Remove server/tls and server/cred in the data directory",
    ),
    (
        "only https:// URLs are supported",
        "the address of the first server must begin with https://",
    ),
    (
        "certificate has expired or is not yet valid",
        "the clock of this host or of the server is wrong, or a certificate has expired. Compare `date` on both",
    ),
    ("flag provided but not defined", "config.yaml, or a drop-in beside it, has a key that this version does not know"),
    ("pids cgroup controller not found", "the kernel runs without the pids cgroup. Enable it on the kernel command line"),
    ("failed to find memory cgroup", "the kernel runs without the memory cgroup. Add cgroup_enable=memory to its command line"),
    ("no default routes found", "the host has no default route. k3s needs one, a dummy route is enough"),
    ("address already in use", "another program holds a port that k3s needs. `ss -ltnp` names it"),
    ("no space left on device", "the disk is full. Free space under the data directory"),
    ("database disk image is malformed", "the SQLite database is damaged. Restore server/db from a backup"),
    ("invalid kernel flag", "protect-kernel-defaults is on and a kernel setting differs. The host role sets them"),
    ("401 Unauthorized", "the token is wrong. Give the token of the cluster at `server:`"),
    ("not authorized", "the token is wrong. Give the token of the cluster at `server:`"),
    ("Failed to validate connection to cluster", "the first server cannot be reached. Is it running, and is port 6443 open?"),
    ("server is not ready", "the first server answers but is not ready yet. Look at its own log"),
)


def named_cause(lines: Sequence[str]) -> str:
    """The cause of a failed start, in words with its fix, from the unit's log; empty when no line is known.

    The last matching line decides: a start that went on after an early warning did not fail of it.
    """
    for line in reversed(lines):
        for substring, cause in CAUSES:
            if substring in line:
                return cause
    return ""


_ERROR_LINE = re.compile(r"level=(error|fatal)|^[EF]\d{4} |panic:|Main process exited")


def last_words(lines: Sequence[str], count: int = 12, width: int = 240) -> list[str]:
    """The lines of a log that a person needs: the errors up to the last fatal one, cut to a width.

    A unit that is restarted has begun to talk again by the time we look; what it says then explains nothing. A log
    without any error is shown by its last lines.
    """
    ends = [i for i, line in enumerate(lines) if "level=fatal" in line or "Main process exited" in line]
    until = list(lines[: ends[-1] + 1] if ends else lines)
    # What was said long before the end belongs to an earlier start.
    chosen = [line for line in until[-400:] if _ERROR_LINE.search(line)] or until
    return [line if len(line) <= width else line[: width - 1] + "…" for line in chosen[-count:]]


# -- kubeconfig -------------------------------------------------------------------------------------------------


def api_url(address: str, port: int = 6443) -> str:
    """https address of the API server; an IPv6 address gets its brackets."""
    host = address.strip("[]")
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
