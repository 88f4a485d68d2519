"""What site.yml made, as the API server holds it and as Traefik runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from browser import Address, Browser
from chain import ANN, APP, AUTH, CHAT_URL, NAMES, sign_in

from tests.cluster.access.deployed import ACCESS, Deployed, until
from tests.cluster.support import play
from tests.cluster.test_slice import missing_in

pytestmark = pytest.mark.timeout(900)
TRAEFIK = NAMES["traefik"]


def test_a_second_run_changes_nothing(deployed: Deployed) -> None:
    before = deployed.bed.objects()
    run = deployed.deploy()
    assert run.rc == 0, run.output[-6000:]
    assert run.count("changed") == 0, run.output[-6000:]
    assert deployed.bed.objects() == before


def test_the_cluster_holds_what_was_rendered(deployed: Deployed, tmp_path: Path) -> None:
    """With Traefik's real definitions: a field that they do not know would have been dropped without a word."""
    run = play("playbooks/render.yml", deployed.bed.inventory, "-e", json.dumps({**deployed.variables, "hearth_render_dir": str(tmp_path)}))
    assert run.rc == 0, run.output[-4000:]
    kinds = set()
    for file in sorted(tmp_path.glob("*.yaml")):
        for document in yaml.safe_load_all(file.read_text()):
            if not document or document["kind"] == "Secret":
                continue
            meta = document["metadata"]
            arguments = ["get", document["kind"], meta["name"], "-o", "json"] + (["-n", meta["namespace"]] if "namespace" in meta else [])
            live = json.loads(deployed.bed.kubectl(*arguments))
            for key in ("spec", "data", "endpoints"):
                gone = missing_in(live.get(key), document.get(key))
                assert not gone, f"{document['kind']} {meta['name']}: {gone}"
            kinds.add(document["kind"])
    assert {"Middleware", "IngressRoute", "TLSStore", "TLSOption", "HelmChartConfig", "NetworkPolicy", "EndpointSlice"} <= kinds


def test_traefik_runs_with_the_roles_arguments_behind_those_of_the_chart(deployed: Deployed) -> None:
    values = yaml.safe_load(deployed.get("helmchartconfig", TRAEFIK["chart"], TRAEFIK["namespace"])["spec"]["valuesContent"])
    deployment = deployed.get("deployment", TRAEFIK["deployment"], TRAEFIK["namespace"])
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    wanted = values["additionalArguments"]
    assert container["args"][-len(wanted):] == wanted
    assert container["image"] == deployed.bed.variables()["traefik_image"]
    # The chart switches the dashboard on, the role off: the last flag counts.
    [pod] = deployed.pods(TRAEFIK["namespace"], **TRAEFIK["pods"])
    inside = Browser({"traefik": deployed.tunnel(pod, 8080)})
    assert inside.send("http://traefik/ping").status == 200
    assert {inside.send(f"http://traefik{path}").status for path in ("/dashboard/", "/api/rawdata", "/api/overview")} == {404}


def test_the_front_door_sees_who_asks(deployed: Deployed) -> None:
    """The bounds are for each address, so it has to be the client's and not one of the cluster."""
    ann = deployed.browser()
    assert sign_in(ann, deployed.provider, ANN, f"https://{APP}/seen").status == 200
    told = dict(ann.send(f"https://{APP}/seen", ("X-Forwarded-For", "203.0.113.9")).json()["headers"])
    assert told["X-Forwarded-For"] == deployed.app.server_address[0]


def test_plain_http_goes_to_https(deployed: Deployed) -> None:
    plain = Browser({APP: Address(deployed.address, 80)})
    reply = plain.send(f"http://{APP}/a?b=1")
    assert (reply.status, reply.header("Location")) == (301, f"https://{APP}/a?b=1")


def test_the_pods_of_the_sign_in_have_no_rights(deployed: Deployed) -> None:
    namespace = json.loads(deployed.bed.kubectl("get", "namespace", ACCESS["namespace"], "-o", "json"))
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    pods = deployed.pods(ACCESS["namespace"])
    assert len(pods) == 2
    for pod in pods:
        [container] = pod["spec"]["containers"]
        assert not [mount for mount in container["volumeMounts"] if "serviceaccount" in mount["mountPath"]]
        assert pod["spec"]["enableServiceLinks"] is False
        assert [status["restartCount"] for status in pod["status"]["containerStatuses"]] == [0]


def test_metrics_have_a_port_of_their_own(deployed: Deployed) -> None:
    """The main port leads them to the gateway, which shows people none; nobody is asked to sign in on the other one."""
    for instance in ("chat", "apps"):
        [pod] = deployed.pods(ACCESS["namespace"], **{"app.kubernetes.io/instance": instance})
        inside = Browser({"metrics": deployed.tunnel(pod, ACCESS["metrics_service"]["port"])})
        assert b"oauth2_proxy_requests_total" in inside.send("http://metrics/metrics").body
    assert deployed.signed_in().send(f"{CHAT_URL}/metrics").status == 404


def test_an_app_is_behind_the_same_door(deployed: Deployed) -> None:
    browser = deployed.browser()
    assert browser.send(f"https://{APP}/api/x").status == 401
    reply = sign_in(browser, deployed.provider, ANN, f"https://{APP}/deep?x=1")
    assert (reply.status, reply.url) == (200, f"https://{APP}/deep?x=1")
    assert dict(reply.json()["headers"])["X-Auth-Request-Email"] == ANN
    # Signed in for the apps, not for the chat.
    assert browser.send(f"{CHAT_URL}/v1/models").status == 401
    assert browser.send(f"https://{AUTH}/oauth2/userinfo").json()["email"] == ANN


def test_a_token_that_is_made_anew_reaches_the_proxies(deployed: Deployed) -> None:
    """They read it at their start. With the old one everybody would be signed in and nobody let through, after a green run."""
    old, tokens = deployed.token(), NAMES["gateway"]["tokens"]
    gone = json.dumps([{"op": "remove", "path": f"/data/{tokens['proxy']}"}])
    deployed.bed.kubectl("patch", "secret", tokens["secret"], "-n", NAMES["namespace"], "--type=json", "-p", gone)
    run = deployed.deploy("--tags", "gateway,access")
    assert run.rc == 0, run.output[-6000:]
    assert deployed.token() != old
    until(lambda: deployed.signed_in().send(f"{CHAT_URL}/v1/models").status == 200, "the proxies to show the new token")
    run = deployed.deploy("--tags", "access")
    assert (run.rc, run.count("changed")) == (0, 0), run.output[-6000:]
