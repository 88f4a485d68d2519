"""The slice on a deployed host, seen as an operator, as a program with a token, and from outside."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from tests.cluster.observe import differences
from tests.cluster.support import ROOT, Bed, play

QUESTION = "Say one sentence about tea, please. canary-7f3a91"


class Cluster:
    """Requests from the controller through the API server's service proxy, with the fetched kubeconfig."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self.url = urlsplit(cluster["server"])
        self.context = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
        with tempfile.NamedTemporaryFile("wb", suffix=".pem") as pem:
            pem.write(base64.b64decode(user["client-certificate-data"]) + base64.b64decode(user["client-key-data"]))
            pem.flush()
            self.context.load_cert_chain(pem.name)

    def request(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> http.client.HTTPResponse:
        connection = http.client.HTTPSConnection(str(self.url.hostname), self.url.port, context=self.context, timeout=60)
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"Content-Type": "application/json"} | (headers or {}))
        return connection.getresponse()

    def gateway(self, method: str, path: str, body: Any = None, token: str | None = None) -> http.client.HTTPResponse:
        proxy = "/api/v1/namespaces/hearth/services/gateway:8080/proxy"
        return self.request(method, proxy + path, body, {"x-api-key": token} if token else None)


@pytest.fixture(scope="module")
def cluster(bed: Bed) -> Cluster:
    return Cluster(Path(bed.variables()["k3s_kubeconfig"]))


@pytest.fixture(scope="module")
def token(bed: Bed) -> str:
    encoded = bed.kubectl("get", "secret", "-n", "hearth", "gateway-tokens", "-o", "jsonpath={.data.operator}")
    return base64.b64decode(encoded).decode()


def ask(cluster: Cluster, token: str, stream: bool = True) -> http.client.HTTPResponse:
    body = {"model": "sonnet", "stream": stream, "messages": [{"role": "user", "content": QUESTION}]}
    return cluster.gateway("POST", "/v1/chat/completions", body, token)


# --- the host, by testinfra

def test_k3s_runs_as_a_service_of_ours(host: Any) -> None:
    assert host.service("k3s").is_running
    assert host.service("k3s").is_enabled
    assert host.file("/etc/systemd/system/k3s.service").mode == 0o644
    assert not host.file("/etc/systemd/system/k3s-agent.service").exists


@pytest.mark.parametrize(("path", "mode"), [
    ("/usr/local/bin/k3s", 0o755),
    ("/etc/rancher/k3s/config.yaml", 0o600),
    ("/etc/rancher/k3s/k3s.yaml", 0o600),
    ("/var/lib/rancher/k3s/server/token", 0o600),
    ("/etc/systemd/system/k3s.service.env", 0o600),
])
def test_files_have_the_modes_of_the_contract(host: Any, path: str, mode: int) -> None:
    file = host.file(path)
    assert file.exists, path
    assert (file.mode, file.user) == (mode, "root")


def test_no_secret_stands_where_others_can_read_it(bed: Bed, token: str) -> None:
    """The gateway token, the provider key and the cluster token: not in argv, units, the journal or a world-readable file."""
    secrets = [token, bed.variables()["gateway_anthropic_api_key"],
               bed.ssh("cat /var/lib/rancher/k3s/server/token").strip().rpartition(":")[2]]
    for secret in secrets:
        # over standard input, so that the search itself does not put the secret into an argument list
        script = """
            read -r secret
            grep -rlF -- "$secret" /etc/systemd /etc/rancher/k3s/config.yaml /var/log
            journalctl -q --no-pager | grep -F -- "$secret" | head -3
            for f in /proc/[0-9]*/cmdline /proc/[0-9]*/environ; do
              case $f in /proc/$$/*) continue;; esac
              tr '\\0' '\\n' < "$f" | grep -qF -- "$secret" && echo "$f"
            done 2>/dev/null
        """
        found = bed.ssh(script, check=False, stdin=secret + "\n")
        assert not found.strip(), f"a secret stands where others can read it: {found.replace(secret, '…')[:500]}"


def test_the_kubeconfig_on_the_controller_is_private_and_points_at_the_server(bed: Bed) -> None:
    path = Path(bed.variables()["k3s_kubeconfig"])
    assert path.stat().st_mode & 0o777 == 0o600
    assert "127.0.0.1" not in path.read_text()


# --- the gateway, by real requests

def test_an_answer_is_streamed_from_the_vendor_through_the_service(cluster: Cluster, token: str) -> None:
    response = ask(cluster, token)
    assert response.status == 200, response.read()
    assert response.headers["x-hearth-provider"] == "anthropic"
    times, text, last = [], "", ""
    for raw in response:
        line = raw.decode().strip()
        if not line.startswith("data: "):
            continue
        last = line
        if line != "data: [DONE]":
            choices = json.loads(line[6:])["choices"]
            if choices and choices[0]["delta"].get("content"):
                text += choices[0]["delta"]["content"]
                times.append(time.monotonic())
    assert last == "data: [DONE]"
    assert text
    assert len(times) > 2
    assert times[-1] - times[0] > 0.02, "all chunks came at once: something on the way collects the stream"


def test_a_whole_answer_carries_its_usage(cluster: Cluster, token: str) -> None:
    response = ask(cluster, token, stream=False)
    answer = json.loads(response.read())
    assert response.status == 200, answer
    assert answer["choices"][0]["message"]["content"]
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize("credential", [None, "wrong", ""])
def test_without_the_token_nobody_gets_in(cluster: Cluster, credential: str | None) -> None:
    response = ask(cluster, credential or "")
    assert response.status == 401
    assert json.loads(response.read())["error"]["type"]


def test_metrics_are_on_their_own_port_only(cluster: Cluster, token: str) -> None:
    assert cluster.gateway("GET", "/metrics", token=token).status == 404
    metrics = cluster.request("GET", "/api/v1/namespaces/hearth/services/gateway-metrics:9090/proxy/metrics")
    text = metrics.read().decode()
    assert metrics.status == 200
    names = {m["name"] for m in yaml.safe_load((ROOT / "contract" / "metrics.yml").read_text())["metrics"]}
    assert any(name in text for name in names), text[:500]


def test_no_word_of_a_question_stays_behind(bed: Bed, cluster: Cluster, token: str) -> None:
    ask(cluster, token, stream=False).read()
    assert "canary-7f3a91" not in bed.kubectl("logs", "-n", "hearth", "deploy/gateway", "--tail=-1")
    places = "/var/lib/rancher/k3s/storage /var/log"
    found = bed.ssh(f"grep -rlF canary-7f3a91 {places} 2>/dev/null; journalctl -q --no-pager | grep -c canary-7f3a91", check=False)
    assert found.split() == ["0"], found


def test_the_pod_has_no_more_rights_than_it_needs(bed: Bed) -> None:
    pod = json.loads(bed.kubectl("get", "pod", "-n", "hearth", "-l", "app.kubernetes.io/name=gateway", "-o", "json"))["items"][0]
    spec, container = pod["spec"], pod["spec"]["containers"][0]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
    assert bed.kubectl("exec", "-n", "hearth", "deploy/gateway", "--", "/opt/hearth/bin/python", "-c",
                       "import os; print(os.getuid(), os.path.exists('/var/run/secrets/kubernetes.io'))").split() == ["65532", "False"]


# --- the second run, from outside

def outside(bed: Bed) -> dict[str, Any]:
    files = bed.observe("files")
    # the datastore, the container images and the pods' own logs live; what roles write is all the rest
    alive = ("/var/lib/rancher/k3s/server/db/", "/var/lib/rancher/k3s/agent/containerd", "/var/lib/kubelet/", "/var/lib/cni/",
             "/var/lib/rancher/k3s/storage/", "/var/lib/rancher/k3s/agent/images/.cache.json")
    files["files"] = {k: v for k, v in files["files"].items() if not k.startswith(alive)}
    return {**files, **bed.observe("processes"), "objects": bed.objects()}


def test_a_second_run_changes_nothing_as_seen_from_outside(bed: Bed) -> None:
    before = outside(bed)
    run = play("site.yml", bed.inventory)
    assert run.rc == 0, run.output[-6000:]
    assert run.count("changed") == 0, run.output[-6000:]
    assert differences(before, outside(bed)) == []


def test_check_mode_on_a_deployed_host_says_nothing_would_change(bed: Bed) -> None:
    before = outside(bed)
    run = play("site.yml", bed.inventory, "--check", "--diff")
    assert run.rc == 0, run.output[-6000:]
    assert run.count("changed") == 0, run.output[-6000:]
    assert differences(before, outside(bed)) == []


def test_check_mode_tells_of_a_change_and_does_not_make_it(bed: Bed) -> None:
    before = outside(bed)
    changed = {"gateway_timeouts": {"connect_s": 7, "first_token_s": 30, "idle_s": 60, "total_s": 600}}
    run = play("site.yml", bed.inventory, "--check", "--diff", "-e", json.dumps(changed))
    assert run.rc == 0, run.output[-6000:]
    assert run.count("changed") > 0
    assert "connect_s: 7" in run.output
    assert differences(before, outside(bed)) == []


@pytest.mark.parametrize("arguments", [("--tags", "gateway"), ("--tags", "host"), ("--limit", "h1")])
def test_parts_of_the_play_run_alone(bed: Bed, arguments: tuple[str, str]) -> None:
    run = play("site.yml", bed.inventory, *arguments)
    assert run.rc == 0, run.output[-6000:]
    assert run.count("changed") == 0, run.output[-6000:]


def test_pods_live_through_a_restart_of_k3s(bed: Bed, cluster: Cluster, token: str) -> None:
    status = "{.status.containerStatuses[*].containerID} {.status.containerStatuses[*].restartCount}"
    pods = ["get", "pods", "-A", "-o", "jsonpath={range .items[*]}{.metadata.uid} " + status + " {end}"]
    before = bed.kubectl(*pods)
    bed.ssh("systemctl restart k3s")
    bed.kubectl("wait", "--for=condition=Ready", "node/h1", "--timeout=60s")
    assert bed.kubectl(*pods) == before
    assert ask(cluster, token).status == 200


# --- one truth for the bed and the real thing

ALLOWED = {"image", "storageClassName", "replicas"}


def test_the_bed_gets_what_a_thinkcentre_gets(bed: Bed, tmp_path: Path) -> None:
    """Rendered for the bed and for inventories/thinkcentre, the objects differ in addresses of images, storage class and replicas alone."""
    rendered = {}
    # What the person fills in, and the vendor's address: values, not structure.
    filled_in = ("gateway_anthropic_base_url", "gateway_ca_pem", "gateway_anthropic_api_key", "gateway_models")
    same = {k: v for k, v in bed.variables().items() if k in filled_in}
    for name, inventory in (("bed", bed.inventory), ("thinkcentre", ROOT / "inventories" / "thinkcentre")):
        target = tmp_path / name
        run = play("playbooks/render.yml", inventory, "-e", json.dumps({"hearth_render_dir": str(target)}), "-e", json.dumps(same))
        assert run.rc == 0, run.output[-4000:]
        documents = [d for f in sorted(target.rglob("*.y*ml")) for d in yaml.safe_load_all(f.read_text()) if d]
        assert documents, f"nothing rendered for {name}"
        rendered[name] = {f"{d['kind']}/{d['metadata'].get('namespace', '')}/{d['metadata']['name']}": d for d in documents}
    assert set(rendered["bed"]) == set(rendered["thinkcentre"])
    differing: list[str] = []

    def compare(path: str, one: Any, two: Any) -> None:
        if isinstance(one, dict) and isinstance(two, dict):
            for key in sorted(set(one) | set(two)):
                compare(f"{path}.{key}", one.get(key), two.get(key))
        elif isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
            for index, (a, b) in enumerate(zip(one, two, strict=True)):
                compare(f"{path}[{index}]", a, b)
        elif one != two:
            differing.append(path)

    for key, document in rendered["bed"].items():
        compare(key, document, rendered["thinkcentre"][key])
    print("differs from a ThinkCentre:", differing)
    assert [d for d in differing if d.rpartition(".")[2] not in ALLOWED] == []


def test_what_is_rendered_is_what_runs(bed: Bed, tmp_path: Path) -> None:
    run = play("playbooks/render.yml", bed.inventory, "-e", json.dumps({"hearth_render_dir": str(tmp_path)}))
    assert run.rc == 0, run.output[-4000:]
    for file in sorted(tmp_path.rglob("*.y*ml")):
        for document in yaml.safe_load_all(file.read_text()):
            if not document or document["kind"] == "Secret":
                continue
            meta = document["metadata"]
            arguments = ["get", document["kind"], meta["name"], "-o", "json"] + (["-n", meta["namespace"]] if "namespace" in meta else [])
            live = json.loads(bed.kubectl(*arguments))
            for key in ("spec", "data"):
                gone = missing_in(live.get(key), document.get(key))
                assert not gone, f"{document['kind']} {meta['name']}: {gone}"


def missing_in(live: Any, wanted: Any, path: str = "") -> str:
    """The path of the first rendered value that the cluster does not hold, or the empty string."""
    if isinstance(wanted, dict):
        for key, value in wanted.items():
            found = missing_in(live.get(key) if isinstance(live, dict) else None, value, f"{path}.{key}")
            if found:
                return found
        return ""
    if isinstance(wanted, list) and isinstance(live, list) and len(live) == len(wanted):
        gone = (missing_in(a, b, f"{path}[{i}]") for i, (a, b) in enumerate(zip(live, wanted, strict=True)))
        return next((path for path in gone if path), "")
    # the API server stores quantities and numbers in a form of its own
    return "" if wanted is None or str(live) == str(wanted) else f"{path}: {live!r} is not {wanted!r}"
