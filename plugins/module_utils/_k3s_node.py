# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What k3s on one host is told: config.yaml and the files beside it, from the role's variables. Pure.

`settings` is what the role gathers of its variables (`_k3s_settings` in its vars), `place` what _topology.place says of the
host. Servers and agents are built apart: an agent that meets a server's key exits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.homelab.hearth.plugins.module_utils import _k3s

Config = dict[str, Any]

TOKEN_FILE = "/etc/rancher/k3s/token"  # noqa: S105  (a path)
AGENT_TOKEN_FILE = "/etc/rancher/k3s/agent-token"  # noqa: S105
ADMISSION_FILE = "/etc/rancher/k3s/admission.yaml"
AUDIT_POLICY_FILE = "/etc/rancher/k3s/audit-policy.yaml"
S3_SECRET = "k3s-etcd-snapshot-s3-config"  # noqa: S105  (a name)
DEFAULT_DATA_DIR = "/var/lib/rancher/k3s"

# Of the CIS benchmark, as k3s's hardening guide has them.
TLS_CIPHERS = (
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305",
)


def arguments(*sources: Mapping[str, Any]) -> list[str]:
    """Flags of a component as `flag=value`, sorted; the later source wins. A boolean is written as the component reads it."""
    merged: dict[str, Any] = {}
    for source in sources:
        merged |= source
    return [f"{flag}={str(value).lower() if isinstance(value, bool) else value}" for flag, value in sorted(merged.items())]


def _both(settings: Mapping[str, Any], place: Mapping[str, Any], server_address: str) -> Config:
    """What servers and agents are told alike."""
    config: Config = {"token-file": TOKEN_FILE}
    if settings["data_dir"] != DEFAULT_DATA_DIR:
        config["data-dir"] = settings["data_dir"]
    for key, name in (
        ("node-name", "node_name"),
        ("node-ip", "node_ips"),
        ("node-external-ip", "node_external_ips"),
        ("node-label", "node_labels"),
        ("node-taint", "node_taints"),
    ):
        if settings[name]:
            config[key] = settings[name]
    if settings["cis"]:
        config["protect-kernel-defaults"] = True
    if settings["kubelet_args"]:
        config["kubelet-arg"] = arguments(settings["kubelet_args"])
    if not place["founds"]:
        config["server"] = server_address
    return config


def _snapshots(settings: Mapping[str, Any]) -> Config:
    if not settings["snapshots_enabled"]:
        return {"etcd-disable-snapshots": True}
    config: Config = {
        "etcd-snapshot-schedule-cron": settings["snapshot_schedule"],
        "etcd-snapshot-retention": settings["snapshot_retention"],
    }
    if settings["snapshot_dir"]:
        config["etcd-snapshot-dir"] = settings["snapshot_dir"]
    if settings["s3"]:
        # With any other setting of S3 beside it k3s would not read the Secret.
        config |= {"etcd-s3": True, "etcd-s3-config-secret": S3_SECRET}
    return config


def _cis_apiserver(data_dir: str) -> dict[str, Any]:
    return {
        "admission-control-config-file": ADMISSION_FILE,
        "audit-log-maxage": 30,
        "audit-log-maxbackup": 10,
        "audit-log-maxsize": 100,
        "audit-log-path": f"{data_dir}/server/logs/audit.log",
        "audit-policy-file": AUDIT_POLICY_FILE,
        "enable-admission-plugins": "NodeRestriction,EventRateLimit",
        "service-account-extend-token-expiration": False,
    }


def _server(settings: Mapping[str, Any], place: Mapping[str, Any]) -> Config:
    config: Config = {
        "write-kubeconfig-mode": "0600",
        "secrets-encryption": settings["secrets_encryption"],
        "tls-san": list(dict.fromkeys(settings["tls_sans"])),
    }
    if settings["agent_token"]:
        config["agent-token-file"] = AGENT_TOKEN_FILE
    if settings["disabled"]:
        config["disable"] = settings["disabled"]
    if settings["embedded_registry"]:
        config["embedded-registry"] = True
    if place["etcd"]:
        config |= _snapshots(settings)
        if place["founds"]:
            config["cluster-init"] = True
    cis = _cis_apiserver(settings["data_dir"]) if settings["cis"] else {}
    if cis or settings["apiserver_args"]:
        config["kube-apiserver-arg"] = arguments(cis, settings["apiserver_args"])
    if settings["cis"]:
        config["kube-controller-manager-arg"] = ["terminated-pod-gc-threshold=100"]
    return config


def config(kind: str, settings: Mapping[str, Any], place: Mapping[str, Any], server_address: str = "") -> Config:
    """The whole config.yaml of a `server` or an `agent`. What a person wrote into k3s_config comes on top.

    server_address: https address that a joining host asks. Empty where it is not known yet.
    """
    made = _both(settings, place, server_address)
    if kind == "server":
        made |= _server(settings, place)
    for key, value in settings["config"].items():
        both_lists = key.endswith("-arg") and key in made
        made[key] = [*made[key], *([value] if isinstance(value, str) else value)] if both_lists else value
    return made


def kubelet_config(settings: Mapping[str, Any]) -> str:
    """The kubelet's own settings, as a file beside the one that k3s writes. JSON, which is YAML, and sorted."""
    document: dict[str, Any] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerLogMaxSize": f"{settings['log_max_mb']}Mi",
        "containerLogMaxFiles": settings["log_files"],
        "imageGCHighThresholdPercent": settings["image_gc_high_percent"],
        "imageGCLowThresholdPercent": settings["image_gc_low_percent"],
        "shutdownGracePeriod": f"{settings['shutdown_grace_s']}s",
        "shutdownGracePeriodCriticalPods": f"{settings['shutdown_critical_s']}s",
    }
    if settings["cis"]:
        document |= {"streamingConnectionIdleTimeout": "5m", "tlsCipherSuites": list(TLS_CIPHERS)}
    return json.dumps(document, indent=2, sort_keys=True) + "\n"


def registries(settings: Mapping[str, Any]) -> dict[str, Any]:
    """registries.yaml. The embedded mirror serves only registries that have an entry, so all of them get one."""
    given = dict(settings["registries"])
    if settings["embedded_registry"]:
        given["mirrors"] = {"*": {}} | dict(given.get("mirrors") or {})
    return given


# -- what is wrong with the variables ---------------------------------------------------------------------------------

_DOCUMENTED_S3 = {
    "endpoint", "endpoint_ca", "region", "bucket", "folder", "access_key", "secret_key", "session_token", "proxy", "timeout",
    "skip_ssl_verify", "insecure",
}  # fmt: skip


def settings_problems(kind: str, settings: Mapping[str, Any]) -> list[str]:
    """What types cannot say about the variables of one host."""
    found = []
    if settings["image_gc_low_percent"] >= settings["image_gc_high_percent"]:
        found.append("k3s_image_gc_low_percent must be below k3s_image_gc_high_percent, or the kubelet does not start")
    if settings["shutdown_critical_s"] > settings["shutdown_grace_s"]:
        found.append("k3s_shutdown_critical_s is a part of k3s_shutdown_grace_s and cannot be longer")
    if kind == "server":
        found += _schedule_problems(settings["snapshot_schedule"])
        found += s3_problems(settings["s3"])
    for label in settings["node_labels"]:
        if label.count("=") != 1 or label.startswith("="):
            found.append(f"k3s_node_labels: {label!r} is not name=value")
    for taint in settings["node_taints"]:
        if parse_taint(taint) is None:
            found.append(f"k3s_node_taints: {taint!r} is not name=value:Effect with the effect NoSchedule, PreferNoSchedule or NoExecute")
    if settings["embedded_registry"] and kind == "agent" and settings["registries"].get("mirrors") == {}:
        found.append("k3s_registries.mirrors is empty: the embedded mirror would serve nothing")
    return found


def _schedule_problems(schedule: str) -> list[str]:
    if schedule.startswith("@") or len(schedule.split()) == 5:
        return []
    return [f'k3s_etcd_snapshot_schedule: {schedule!r} has not the five fields of cron, as in "0 */12 * * *"']


def s3_problems(s3: Mapping[str, Any]) -> list[str]:
    if not s3:
        return []
    found = []
    for key in sorted(set(s3) - _DOCUMENTED_S3):
        near = _k3s.nearest(key, _DOCUMENTED_S3)
        found.append(f"k3s_etcd_s3.{key}: there is no such setting" + (f"; did you mean {near}?" if near else ""))
    if not s3.get("bucket"):
        found.append("k3s_etcd_s3.bucket is missing: the name of the bucket for the snapshots")
    if bool(s3.get("access_key")) != bool(s3.get("secret_key")):
        found.append("k3s_etcd_s3: access_key and secret_key belong together; leave out both to use the host's own role")
    return found


def s3_data(s3: Mapping[str, Any]) -> dict[str, str]:
    """Content of the Secret that k3s reads for its snapshots, under the names of its own settings."""
    texts = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in sorted(s3.items())}
    return {f"etcd-s3-{key.replace('_', '-')}": text for key, text in texts.items()}


# -- labels and taints on the Node ------------------------------------------------------------------------------------

# What we set is remembered on the node, so that what leaves the inventory leaves the node too, and nothing else.
ANNOTATION_LABELS = "hearth.homelab/labels"
ANNOTATION_TAINTS = "hearth.homelab/taints"
ANNOTATION_EMPTIED = "hearth.homelab/emptied"


def parse_taint(text: str) -> dict[str, str] | None:
    """`name=value:Effect` or `name:Effect` -> the taint as Kubernetes writes it, None when it is neither."""
    name, colon, effect = text.rpartition(":")
    key, _equals, value = name.partition("=")
    if not colon or not key or effect not in ("NoSchedule", "PreferNoSchedule", "NoExecute"):
        return None
    return {"key": key, "effect": effect, **({"value": value} if value else {})}


def _remembered(node: Mapping[str, Any], name: str) -> list[str]:
    text = (node.get("metadata", {}).get("annotations") or {}).get(name, "")
    return [word for word in text.split(",") if word]


def node_change(node: Mapping[str, Any], labels: Sequence[str], taints: Sequence[str]) -> dict[str, Any]:
    """What has to change on a Node: {labels, annotations, taints}, a value None means away; empty when it is right.

    Labels and taints that somebody else set stay. k3s sets labels at each start and never removes one; taints it sets at
    the first registration only.
    """
    meta = node.get("metadata", {})
    present: Mapping[str, str] = meta.get("labels") or {}
    wanted = dict(label.split("=", 1) for label in labels)
    ours = _remembered(node, ANNOTATION_LABELS)
    label_change: dict[str, str | None] = {name: value for name, value in wanted.items() if present.get(name) != value}
    label_change |= {name: None for name in ours if name not in wanted and name in present}

    on_node = list(node.get("spec", {}).get("taints") or [])
    wanted_taints = [taint for taint in map(parse_taint, taints) if taint]
    identities = {_identity(taint) for taint in wanted_taints}
    gone = [name for name in _remembered(node, ANNOTATION_TAINTS) if name not in identities]
    kept = [taint for taint in on_node if _identity(taint) not in gone and _identity(taint) not in identities]
    # In the node's order, or an equal set in another order would look like a change.
    taint_list = kept + wanted_taints
    same = sorted(map(_comparable, taint_list)) == sorted(map(_comparable, on_node))

    notes = {ANNOTATION_LABELS: ",".join(sorted(wanted)), ANNOTATION_TAINTS: ",".join(sorted(identities))}
    annotations = meta.get("annotations") or {}
    note_change = {name: text or None for name, text in notes.items() if annotations.get(name, "") != text}
    change: dict[str, Any] = {}
    if label_change:
        change["labels"] = label_change
    if note_change:
        change["annotations"] = note_change
    if not same:
        change["taints"] = taint_list
    return change


def _identity(taint: Mapping[str, Any]) -> str:
    return f"{taint['key']}:{taint['effect']}"


def _comparable(taint: Mapping[str, Any]) -> tuple[str, str, str]:
    return taint["key"], taint.get("value", ""), taint["effect"]


def with_change(node: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """The Node with the change made, ready to be sent back."""
    meta = {**node["metadata"]}
    for part in ("labels", "annotations"):
        merged = {**(meta.get(part) or {}), **change.get(part, {})}
        meta[part] = {name: value for name, value in merged.items() if value is not None}
    spec = {**node.get("spec", {})}
    if "taints" in change:
        spec["taints"] = change["taints"]
    if "unschedulable" in change:
        spec["unschedulable"] = change["unschedulable"]
    return {**node, "metadata": meta, "spec": spec}
