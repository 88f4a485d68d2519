"""Every template with every valid set of variables gives objects that Kubernetes would take; invalid sets are refused.

The rendering is the operator's own: `playbooks/render.yml`, without a cluster. The schemas are those of
Kubernetes itself, strict (an unknown field fails), as kubernetes-validate ships them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.cluster.support import ROOT, Run, play
from tests.render.rendering import (
    FIXTURE_SECRET,
    FIXTURES,
    INVALID,
    INVALID_ACCESS,
    KUBERNETES,
    NAMES,
    POSTGRESQL,
    SCHEMAS,
    VALID,
    VALID_ACCESS,
    Renderings,
    documents,
    id_of,
    one,
    pod_specs,
)


def render(fixture: Path, target: Path) -> Run:
    return play("playbooks/render.yml", ROOT / "inventories" / "thinkcentre", "-e", f"@{fixture}",
                "-e", json.dumps({"hearth_render_dir": str(target)}))


def test_there_are_fixtures() -> None:
    assert len(VALID) >= 3 and len(VALID_ACCESS) >= 6
    assert len(INVALID) >= 5 and len(INVALID_ACCESS) >= 50


def test_the_playbook_renders_what_an_inventory_would_get(tmp_path: Path) -> None:
    run = render(FIXTURES / "valid" / "minimal.yml", tmp_path)
    assert run.rc == 0, run.output[-4000:]
    assert one(documents(tmp_path), "Deployment")
    assert [path.name for path in tmp_path.glob("*.yaml")] == ["gateway.yaml"], "nobody asked for a sign-in"


def test_kubernetes_takes_every_object(all_rendered: list[dict[str, Any]]) -> None:
    for document in all_rendered:
        custom = SCHEMAS / f"{document['kind'].lower()}_{document['apiVersion'].rpartition('/')[2]}.json"
        if custom.exists():
            jsonschema.validate(document, json.loads(custom.read_text()))
        else:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_every_object_carries_our_labels(all_rendered: list[dict[str, Any]]) -> None:
    for document in all_rendered:
        labels = document["metadata"].get("labels", {})
        assert labels.get("app.kubernetes.io/managed-by") == "hearth", f"{document['kind']} {document['metadata']['name']}"
        assert labels.get("hearth.homelab/component"), document["metadata"]["name"]


def test_no_object_twice(all_rendered: list[dict[str, Any]]) -> None:
    keys = [(d["kind"], d["metadata"].get("namespace"), d["metadata"]["name"]) for d in all_rendered]
    assert len(keys) == len(set(keys))


def test_pods_run_with_the_least_rights(all_rendered: list[dict[str, Any]]) -> None:
    specs = pod_specs(all_rendered)
    assert specs
    for name, spec in specs:
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["enableServiceLinks"] is False, f"{name}: service links put other services' addresses into the environment"
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault", name
        for container in spec["containers"] + spec.get("initContainers", []):
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True, name
            assert security["allowPrivilegeEscalation"] is False, name
            assert security["capabilities"]["drop"] == ["ALL"], name
            assert container["resources"]["requests"], name
            assert container["resources"]["limits"]["memory"], name
            assert not container["image"].endswith(":latest"), name


def test_secrets_stay_out_of_everything_but_secrets(all_rendered: list[dict[str, Any]]) -> None:
    for document in all_rendered:
        if document["kind"] != "Secret":
            assert not FIXTURE_SECRET.search(json.dumps(document)), document["metadata"]["name"]
        else:
            # render.yml shows what would be applied: the values of Secrets are no part of that
            assert not FIXTURE_SECRET.search(json.dumps(document)), "the value of a Secret was rendered to disk"


def test_namespaces_deny_by_default(all_rendered: list[dict[str, Any]]) -> None:
    for namespace in [d for d in all_rendered if d["kind"] == "Namespace"]:
        name = namespace["metadata"]["name"]
        policies = [d["spec"] for d in all_rendered if d["kind"] == "NetworkPolicy" and d["metadata"]["namespace"] == name]
        assert any(p["podSelector"] == {} and set(p["policyTypes"]) == {"Ingress", "Egress"} and not p.get("ingress") and
                   not p.get("egress") for p in policies), f"{name} has no default-deny NetworkPolicy"


def test_names_are_those_of_the_contract(all_rendered: list[dict[str, Any]]) -> None:
    known = json.dumps(NAMES)
    for document in all_rendered:
        # Apps have the names of their hosts.
        of_an_app = document["metadata"]["labels"]["hearth.homelab/component"] == "protected_app" and document["kind"] != "Middleware"
        if document["kind"] not in ("Namespace", "NetworkPolicy") and not of_an_app:
            # The name of a ConfigMap ends in a hash of its content.
            name = re.sub("-[0-9a-f]{16}$", "", document["metadata"]["name"])
            assert f'"{name}"' in known, f"{document['kind']} {name} is not in contract/names.yml"


# --- the gateway

def test_the_configuration_is_what_the_gateway_takes(rendered: list[dict[str, Any]], tmp_path: Path) -> None:
    """With the real `check-config`, from the map as it is applied."""
    [config_map] = [d for d in rendered if d["kind"] == "ConfigMap"]
    file = tmp_path / "gateway.yaml"
    file.write_text(config_map["data"]["gateway.yaml"])
    done = subprocess.run([sys.executable, "-m", "hearth_gateway", "check-config", str(file)], capture_output=True, text=True,
                          check=False, env=os.environ | {"PYTHONPATH": str(ROOT / "files" / "gateway" / "src")})
    assert done.returncode == 0, done.stderr


def test_a_change_of_configuration_is_a_new_map_and_a_new_pod(rendered: list[dict[str, Any]]) -> None:
    [config_map] = [d for d in rendered if d["kind"] == "ConfigMap"]
    assert config_map["immutable"] is True
    volumes = one(rendered, "Deployment")["spec"]["template"]["spec"]["volumes"]
    assert {"name": "config", "configMap": {"name": config_map["metadata"]["name"]}} in volumes


def test_no_pod_goes_before_its_successor_is_ready(rendered: list[dict[str, Any]]) -> None:
    spec = one(rendered, "Deployment")["spec"]
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    [container] = spec["template"]["spec"]["containers"]
    [config_map] = [d for d in rendered if d["kind"] == "ConfigMap"]
    server = yaml.safe_load(config_map["data"]["gateway.yaml"])["server"]
    assert server["handover_s"] >= 3, "nodes need a moment to learn that a pod leaves"
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] >= server["drain_s"] + server["handover_s"] + 20
    assert container["readinessProbe"]["periodSeconds"] <= 2


def test_the_budget_lets_a_node_be_emptied(rendered: list[dict[str, Any]]) -> None:
    assert one(rendered, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


@pytest.mark.parametrize("case", ["sqlite"], indirect=True)
def test_sqlite_is_one_replica_on_the_node_of_its_volume(case: list[dict[str, Any]]) -> None:
    spec = one(case, "Deployment")["spec"]
    assert spec["replicas"] == 1
    [term] = spec["template"]["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    assert term["labelSelector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    assert one(case, "PersistentVolumeClaim", "gateway-data")["spec"]["accessModes"] == ["ReadWriteOnce"]
    assert not [d for d in case if d["kind"] in ("HorizontalPodAutoscaler", "ServiceMonitor")]


@pytest.mark.parametrize("case", ["replicas"], indirect=True)
def test_postgresql_is_replicas_apart_without_a_volume(case: list[dict[str, Any]]) -> None:
    spec = one(case, "Deployment")["spec"]
    pod = spec["template"]["spec"]
    assert spec["replicas"] == 3
    spread = [(c["topologyKey"], c["whenUnsatisfiable"]) for c in pod["topologySpreadConstraints"]]
    # Alone: the scheduler ignores nodes that lack the label of any one of them, and a house has no zones.
    assert spread == [("kubernetes.io/hostname", "ScheduleAnyway")]
    [wish] = pod["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert wish["podAffinityTerm"]["topologyKey"] == "topology.kubernetes.io/zone"
    assert not [d for d in case if d["kind"] == "PersistentVolumeClaim"]
    config = yaml.safe_load(next(d for d in case if d["kind"] == "ConfigMap")["data"]["gateway.yaml"])
    assert config["database_url"] == POSTGRESQL["gateway_database_url"]
    [container] = pod["containers"]
    assert str(Path(config["database_password_file"]).parent) in [m["mountPath"] for m in container["volumeMounts"]]
    assert "pw-fixture-01" not in json.dumps(case)


@pytest.mark.parametrize("case", ["autoscaling"], indirect=True)
def test_autoscaling_leaves_the_number_of_replicas_to_the_cluster(case: list[dict[str, Any]]) -> None:
    assert "replicas" not in one(case, "Deployment")["spec"], "each run would set back what the autoscaler chose"
    scaler = one(case, "HorizontalPodAutoscaler")["spec"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (2, 5)
    assert scaler["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "gateway"}


@pytest.mark.parametrize("case", ["providers"], indirect=True)
def test_each_provider_and_the_database_get_their_way_out_and_nobody_else(case: list[dict[str, Any]]) -> None:
    rules = one(case, "NetworkPolicy")["spec"]["egress"]

    def label(namespace: str) -> dict[str, Any]:
        return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}

    ways = [(rule["to"][0], [p["port"] for p in rule["ports"]]) for rule in rules]
    assert ways[0][1] == [53, 53]
    assert ways[1][0]["ipBlock"]["cidr"] == "0.0.0.0/0" and ways[1][1] == [443]
    assert "10.0.0.0/8" in ways[1][0]["ipBlock"]["except"], "a vendor is not in the house"
    assert ways[2:] == [(label("llm"), [4000]), ({"ipBlock": {"cidr": "192.0.2.9/32"}}, [11434]), (label("databases"), [5432])]
    assert set(one(case, "Secret", "gateway-provider-keys")["stringData"]) == {"anthropic", "litellm"}


@pytest.mark.parametrize("case", ["monitor"], indirect=True)
def test_a_service_monitor_where_one_is_wanted(case: list[dict[str, Any]]) -> None:
    monitor = one(case, "ServiceMonitor")
    jsonschema.validate(monitor, json.loads((SCHEMAS / "servicemonitor_v1.json").read_text()))
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    selector = monitor["spec"]["selector"]["matchLabels"].items()
    port = monitor["spec"]["endpoints"][0]["port"]
    services = [d["metadata"]["name"] for d in case if d["kind"] == "Service" and selector <= d["metadata"]["labels"].items()
                and port in [p["name"] for p in d["spec"]["ports"]]]
    assert services == ["gateway-metrics"]


@pytest.mark.parametrize("fixture", INVALID + INVALID_ACCESS, ids=[id_of(f) for f in INVALID + INVALID_ACCESS])
def test_invalid_variables_are_refused_with_the_reason(fixture: Path, everything: Renderings) -> None:
    first = fixture.read_text().splitlines()[0]
    assert first.startswith("# expect: "), f"{fixture.name} does not say which message it expects"
    made = everything[id_of(fixture)]
    assert made.message, f"{fixture.name} was accepted"
    assert first.removeprefix("# expect: ") in " ".join(made.message.split())
    assert "Traceback" not in made.message
    assert made.found == [], "objects were rendered although the variables were refused"


def test_all_faults_are_told_at_once(everything: Renderings) -> None:
    message = everything["invalid/several-faults-at-once"].message
    assert "gateway_replicas: " in message and "gateway_models.a[0].provider: " in message
