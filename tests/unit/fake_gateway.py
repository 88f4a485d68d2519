"""A gateway in a cluster in memory: its Deployment, a pod, and the command that the modules run in it.

The command keeps people as `hearth-gateway person` does (files/gateway, cli_person.py), whose own tests are with the gateway.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

from ansible_collections.homelab.hearth.plugins.module_utils._exec import ExecError

from tests.unit.fake_cluster import FakeCluster, Object

LABELS = {"app.kubernetes.io/name": "gateway"}
CONFIG = "limits: {person: {money_per_month_usd: '20'}}\n"


def deployment(name: str, namespace: str, volumes: list[Object], container: str, labels: dict[str, str]) -> Object:
    mounts = [{"name": volume["name"], "mountPath": f"/run/hearth/{volume['name']}"} for volume in volumes]
    spec = {"volumes": volumes, "containers": [{"name": container, "volumeMounts": mounts}]}
    return {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": namespace},
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec}},
        "status": {"observedGeneration": 9, "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1},
    }  # fmt: skip


def pod(of: Object, name: str) -> Object:
    template = of["spec"]["template"]
    meta = {"name": name, "namespace": of["metadata"]["namespace"], "labels": template["metadata"]["labels"]}
    ready = {"conditions": [{"type": "Ready", "status": "True"}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"], "status": ready}


class FakeGateway:
    """Puts gateway and sign-in into a cluster, and stands where the modules call `execute`."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        self.people: dict[str, dict[str, Any]] = {}
        self.calls: list[list[str]] = []
        self.lines: list[str] = []
        self.refuse: ExecError | None = None
        self.rows: dict[str, int] = {}
        self.open_rows = 0
        # Whether the kubelet brings changed Secrets into the pod.
        self.kubelet = True
        for name in ("hearth", "public-ingress"):
            cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        volumes: list[Object] = [
            {"name": "config", "configMap": {"name": "gateway-config-1234"}},
            {"name": "tokens", "secret": {"secretName": "gateway-tokens"}},
        ]
        self.deployment = deployment("gateway", "hearth", volumes, "gateway", LABELS)
        meta = {"name": "gateway-config-1234", "namespace": "hearth"}
        cluster.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"gateway.yaml": CONFIG}})
        cluster.create(self.deployment)
        cluster.create(pod(self.deployment, "gateway-1"))
        self.sign_in: list[str] = []
        for instance in ("chat", "apps"):
            name, labels = f"oauth2-proxy-{instance}", {"app.kubernetes.io/instance": instance}
            volumes = [
                {"name": "whitelist", "configMap": {"name": "oauth2-proxy-emails"}},
                {"name": "secrets", "projected": {"sources": [{"secret": {"name": name}}]}},
            ]
            if instance == "chat":
                volumes[1]["projected"]["sources"].append({"secret": {"name": "gateway-token-proxy"}})
            made = deployment(name, "public-ingress", volumes, "oauth2-proxy", labels)
            cluster.create(made)
            cluster.create(pod(made, f"{name}-1"))
            self.sign_in.append(f"{name}-1")
            meta = {"name": name, "namespace": "public-ingress"}
            data = {"cookie-secret": "b2xk", "client-secret": "a2VwdA=="}
            cluster.create({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": data})
        self.read_again()
        cluster.writes.clear()

    def read_again(self, *pods: str) -> None:
        """The proxies' pods say that they read the list; those not named say nothing of it."""
        self.cluster.log_lines = {pod: ["[main.go] watching resumed for '/etc/hearth/whitelist'"] for pod in pods or self.sign_in}

    def put_list(self, text: str) -> None:
        meta = {"name": "oauth2-proxy-emails", "namespace": "public-ingress"}
        self.cluster.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"restricted_user_access": text}})
        self.cluster.writes.clear()

    def put_tokens(self, **tokens: str) -> None:
        data = {name: base64.b64encode(value.encode()).decode() for name, value in tokens.items()}
        meta = {"name": "gateway-tokens", "namespace": "hearth"}
        self.cluster.create({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "type": "Opaque", "data": data})
        self.cluster.writes.clear()

    def put_person(self, email: str, state: str = "active", **more: Any) -> None:
        fresh = {"alias": None, "limits": None, "not_before": None, "first_seen": "2026-11-01T00:00:00.000+00:00"}
        self.people[email] = {"email": email, "state": state, **fresh, **more}

    # --- what runs in the pod

    def execute(self, _cluster: Any, namespace: str, pod: str, container: str, command: list[str], line: str = "") -> str:
        assert (namespace, container) == ("hearth", "gateway")
        assert (command[0], "--config") == ("/opt/hearth/bin/hearth-gateway", command[-3]) or command[1] == "-c", command
        if command[1] == "-c":
            return json.dumps(self._hashes())
        self.calls.append(command[1:-3])
        self.lines.append(line)
        if self.refuse:
            raise self.refuse
        return json.dumps(self._person(command[2], line, command[3:-3]))

    def _hashes(self) -> dict[str, str]:
        stored = self.cluster.objects.get(("Secret", "hearth", "gateway-tokens")) if self.kubelet else None
        data = (stored or {}).get("data") or {}
        return {name: hashlib.sha256(base64.b64decode(value)).hexdigest() for name, value in data.items() if name[0].isalnum()}

    def _person(self, action: str, email: str, arguments: list[str]) -> dict[str, Any]:
        if action == "list":
            assert arguments == []
            return {"people": list(self.people.values())}
        assert arguments[0] == "-", "the address stands in the command line"
        active = "--active" in arguments
        named = [argument for argument in arguments[1:] if argument != "--active"]
        options = dict(zip(named[::2], named[1::2], strict=True))
        if action == "rename":
            return self._rename(*email.split())
        if action == "delete-data":
            person = self.people.pop(email, None)
            if person and person["state"] == "disabled":
                self.put_person(email, "disabled")
            rows = self.rows.pop(email, 0)
            return {"changed": True, "known": person is not None, "ledger_rows": rows, "daily_sums": 0, "kept_disabled": True}
        before = dict(self.people[email]) if email in self.people else None
        if before is None:
            self.put_person(email)
        person = self.people[email]
        person["state"] = {"set": "active" if active else person["state"], "enable": "active", "disable": "disabled"}[action]
        if "--alias" in options:
            person["alias"] = options["--alias"] or None
        if "--limits" in options:
            person["limits"] = None if options["--limits"] == "none" else json.loads(options["--limits"])
        if "--not-before" in options:
            person["not_before"] = options["--not-before"]
        return {"changed": person != before, "before": before, "person": dict(person)}

    def _rename(self, old: str, new: str) -> dict[str, Any]:
        before, there = self.people[old], self.people.get(new, {})
        rows = self.rows.pop(old, 0)
        self.rows[new] = self.rows.get(new, 0) + rows
        kept = {key: there.get(key) or before[key] for key in ("alias", "limits", "not_before", "first_seen")}
        self.put_person(new, **kept)
        self.put_person(old, "disabled")
        changed = before["state"] == "active" or rows > 0
        return {"changed": changed, "person": dict(self.people[new]), "ledger_rows": rows, "daily_sums": 0, "open_rows": self.open_rows}
