"""Every template with every valid set of variables gives objects that Kubernetes would take; invalid sets are refused.

The rendering is the operator's own: `playbooks/render.yml`, without a cluster. The schemas are those of
Kubernetes itself, strict (an unknown field fails), as kubernetes-validate ships them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.cluster.support import ROOT, Run, play

FIXTURES = Path(__file__).parent / "fixtures"
VALID = sorted((FIXTURES / "valid").glob("*.yml"))
INVALID = sorted((FIXTURES / "invalid").glob("*.yml"))
KUBERNETES = "1.36"
NAMES = yaml.safe_load((ROOT / "contract" / "names.yml").read_text())


def render(fixture: Path, target: Path) -> Run:
    return play("playbooks/render.yml", ROOT / "inventories" / "thinkcentre", "-e", f"@{fixture}",
                "-e", json.dumps({"hearth_render_dir": str(target)}))


def documents(target: Path) -> list[dict[str, Any]]:
    return [d for f in sorted(target.rglob("*.y*ml")) for d in yaml.safe_load_all(f.read_text()) if d]


def pod_specs(found: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    return [(f"{d['kind']}/{d['metadata']['name']}", d["spec"]["template"]["spec"]) for d in found if d["kind"] in
            ("Deployment", "StatefulSet", "DaemonSet", "Job")]


def test_there_are_fixtures() -> None:
    assert len(VALID) >= 3
    assert len(INVALID) >= 5


@pytest.fixture(scope="module", params=VALID, ids=[f.stem for f in VALID])
def rendered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    target = tmp_path_factory.mktemp("rendered")
    run = render(request.param, target)
    assert run.rc == 0, run.output[-4000:]
    found = documents(target)
    assert found, f"{request.param.name} rendered nothing"
    return found


def test_kubernetes_takes_every_object(rendered: list[dict[str, Any]]) -> None:
    for document in rendered:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_every_object_carries_our_labels(rendered: list[dict[str, Any]]) -> None:
    for document in rendered:
        labels = document["metadata"].get("labels", {})
        assert labels.get("app.kubernetes.io/managed-by") == "hearth", f"{document['kind']} {document['metadata']['name']}"
        assert labels.get("hearth.homelab/component"), document["metadata"]["name"]


def test_no_object_twice(rendered: list[dict[str, Any]]) -> None:
    keys = [(d["kind"], d["metadata"].get("namespace"), d["metadata"]["name"]) for d in rendered]
    assert len(keys) == len(set(keys))


def test_pods_run_with_the_least_rights(rendered: list[dict[str, Any]]) -> None:
    specs = pod_specs(rendered)
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


def test_secrets_stay_out_of_everything_but_secrets(rendered: list[dict[str, Any]]) -> None:
    for document in rendered:
        if document["kind"] != "Secret":
            assert "sk-ant-fixture" not in json.dumps(document), document["metadata"]["name"]
        else:
            # render.yml shows what would be applied: the values of Secrets are no part of that
            assert "sk-ant-fixture" not in json.dumps(document), "the value of a Secret was rendered to disk"


def test_namespaces_deny_by_default(rendered: list[dict[str, Any]]) -> None:
    for namespace in [d for d in rendered if d["kind"] == "Namespace"]:
        name = namespace["metadata"]["name"]
        policies = [d["spec"] for d in rendered if d["kind"] == "NetworkPolicy" and d["metadata"]["namespace"] == name]
        assert any(p["podSelector"] == {} and set(p["policyTypes"]) == {"Ingress", "Egress"} and not p.get("ingress") and
                   not p.get("egress") for p in policies), f"{name} has no default-deny NetworkPolicy"


def test_names_are_those_of_the_contract(rendered: list[dict[str, Any]]) -> None:
    known = json.dumps(NAMES)
    for document in rendered:
        if document["kind"] in ("Secret", "ConfigMap", "Service", "Deployment", "PersistentVolumeClaim"):
            name = document["metadata"]["name"]
            assert f'"{name}"' in known, f"{document['kind']} {name} is not in contract/names.yml"


@pytest.mark.parametrize("fixture", INVALID, ids=[f.stem for f in INVALID])
def test_invalid_variables_are_refused_with_the_reason(fixture: Path, tmp_path: Path) -> None:
    first = fixture.read_text().splitlines()[0]
    assert first.startswith("# expect: "), f"{fixture.name} does not say which message it expects"
    run = render(fixture, tmp_path)
    assert run.rc != 0, f"{fixture.name} was accepted"
    flat = " ".join(run.output.split())
    assert first.removeprefix("# expect: ") in flat, flat[-3000:]
    assert "Traceback" not in run.output
