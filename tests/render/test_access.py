"""What the roles of the front door promise, read from the objects that they render."""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.cluster.support import ROOT, play
from tests.render.rendering import FIXTURES, NAMES, SCHEMAS, VALID_ACCESS, Renderings, found_in, id_of, one

Objects = list[dict[str, Any]]
ACCESS = NAMES["access"]
CHAT, APPS = ACCESS["chat"]["name"], ACCESS["apps"]["name"]
# What a setting of these names would open, in either file.
FORBIDDEN = ("skip_auth", "trusted_ip", "htpasswd", "skip_jwt", "insecure_oidc_allow_unverified_email = true", "ssl_insecure")


def fixture_of(name: str, everything: Renderings) -> Objects:
    return found_in(FIXTURES / "access" / "valid" / f"{name}.yml", everything)


def instances(found: Objects) -> list[str]:
    return [d["metadata"]["name"] for d in found if d["kind"] == "Deployment"]


def files(found: Objects, instance: str) -> dict[str, str]:
    """What the pods of an instance are given, by the map that their Deployment names."""
    volumes = one(found, "Deployment", instance)["spec"]["template"]["spec"]["volumes"]
    [name] = [v["configMap"]["name"] for v in volumes if v["name"] == "config"]
    return dict(one(found, "ConfigMap", name)["data"])


def core(found: Objects, instance: str) -> dict[str, Any]:
    return tomllib.loads(files(found, instance)["core.toml"])


def chart_values(found: Objects) -> dict[str, Any]:
    return dict(yaml.safe_load(one(found, "HelmChartConfig", "traefik")["spec"]["valuesContent"]))


def flags(found: Objects) -> dict[str, str]:
    return dict(argument.removeprefix("--").split("=", 1) for argument in chart_values(found)["additionalArguments"])


# --- one variable brings it all

def test_the_chats_host_alone_brings_front_door_and_sign_in(tmp_path: Path) -> None:
    """By the operator's own playbook; without it, only the gateway is rendered (test_render.py)."""
    run = play("playbooks/render.yml", ROOT / "inventories" / "thinkcentre", "-e", f"@{FIXTURES / 'access' / 'valid' / 'defaults.yml'}",
               "-e", json.dumps({"hearth_render_dir": str(tmp_path)}))
    assert run.rc == 0, run.output[-4000:]
    assert {path.stem for path in tmp_path.glob("*.yaml")} == {"gateway", "traefik", "oauth2_proxy", "protected_app"}
    [map_of_gateway] = [d for d in yaml.safe_load_all((tmp_path / "gateway.yaml").read_text())
                        if d["kind"] == "ConfigMap" and d["metadata"]["name"].startswith(NAMES["gateway"]["config"]["config_map"])]
    # The token that the chat's instance presents is one that may speak for people.
    tokens = yaml.safe_load(map_of_gateway["data"][NAMES["gateway"]["config"]["key"]])["tokens"]
    assert tokens["proxy"] == [NAMES["gateway"]["tokens"]["proxy"]]


# --- sign-in

def test_only_the_list_says_who_may_come_in(access: Objects) -> None:
    for instance in instances(access):
        settings = core(access, instance)
        assert settings["email_domains"] == []
        assert settings["authenticated_emails_file"].endswith(f"/{ACCESS['whitelist']['key']}")
        text = "".join(v for k, v in files(access, instance).items() if not k.endswith((".html", ".pem")))
        assert not [word for word in FORBIDDEN if word in text]
        # As a directory: a single file of a map never changes in a pod.
        [container] = one(access, "Deployment", instance)["spec"]["template"]["spec"]["containers"]
        [mount] = [m for m in container["volumeMounts"] if m["name"] == "whitelist"]
        assert "subPath" not in mount and settings["authenticated_emails_file"] == f"{mount['mountPath']}/{ACCESS['whitelist']['key']}"


def test_nothing_fills_the_environment(access: Objects) -> None:
    for instance in instances(access):
        pod = one(access, "Deployment", instance)["spec"]["template"]["spec"]
        assert pod["enableServiceLinks"] is False
        for container in pod["containers"] + pod["initContainers"]:
            assert "env" not in container and "envFrom" not in container


def test_the_two_instances_share_no_cookie(access: Objects) -> None:
    chat = core(access, CHAT)
    assert chat["cookie_name"].startswith("__Host-") and "cookie_domains" not in chat
    assert "reverse_proxy" not in chat and chat["cookie_secure"] is chat["cookie_httponly"] is True
    if APPS in instances(access):
        apps = core(access, APPS)
        assert apps["cookie_name"] != chat["cookie_name"]
        assert apps["trusted_proxy_ips"] and apps["reverse_proxy"] is True
        sources = [json.dumps(v["projected"]["sources"]) for name in (CHAT, APPS)
                   for v in one(access, "Deployment", name)["spec"]["template"]["spec"]["volumes"] if v["name"] == "secrets"]
        assert f'"name": "{CHAT}"' in sources[0] and f'"name": "{APPS}"' in sources[1] and f'"name": "{CHAT}"' not in sources[1]
        assert "gateway-token" not in sources[1], "the apps' instance has no business with the gateway"
    for instance in instances(access):
        assert one(access, "Secret", instance)["stringData"][ACCESS["secret_keys"]["cookie"]] == "(generated once and kept, not shown)"


def test_the_chat_turns_a_person_into_one_credential(access: Objects) -> None:
    alpha = yaml.safe_load(files(access, CHAT)["alpha.yaml"])
    credential, *stripped = alpha["injectRequestHeaders"]
    token = {"fromFile": "/etc/hearth/secrets/gateway-token"}
    assert credential == {"name": "Authorization", "preserveRequestValue": False,
                          "values": [{"claimSource": {"claim": "email", "basicAuthPassword": token}}]}
    assert all(set(header) == {"name"} for header in stripped)
    assert {*ACCESS["identity_headers"], "X-Api-Key", "Cookie"} <= {header["name"] for header in stripped}
    [upstream] = alpha["upstreamConfig"]["upstreams"]
    assert upstream["uri"] == f"http://{NAMES['gateway']['service']['name']}.{NAMES['namespace']}:{NAMES['gateway']['service']['port']}"
    assert "$" not in files(access, CHAT)["alpha.yaml"], "would be replaced from the environment"


def test_what_the_provider_says_is_verified(access: Objects) -> None:
    [provider] = yaml.safe_load(files(access, CHAT)["alpha.yaml"])["providers"]
    assert provider["provider"] == "oidc", "`google` verifies no signature"
    oidc = provider["oidcConfig"]
    assert oidc["insecureSkipNonce"] is oidc["insecureAllowUnverifiedEmail"] is oidc["insecureSkipIssuerVerification"] is False
    assert oidc["emailClaim"] == "email", "with another claim email_verified is not looked at"
    assert provider["code_challenge_method"] == "S256"
    if APPS in instances(access):
        apps = core(access, APPS)
        assert (apps["oidc_issuer_url"], apps["client_id"]) == (oidc["issuerURL"], provider["clientID"])
        assert apps["insecure_oidc_skip_nonce"] is False and apps["oidc_email_claim"] == "email"


def test_it_starts_while_the_provider_is_away_unless_it_must_be_asked(everything: Renderings) -> None:
    for name, skips in (("defaults", True), ("other-provider", True), ("discovery", False)):
        [provider] = yaml.safe_load(files(fixture_of(name, everything), CHAT)["alpha.yaml"])["providers"]
        assert provider["oidcConfig"].get("skipDiscovery", False) is skips, name
        assert ("loginURL" in provider) is skips, name


def test_a_configuration_is_tried_before_anybody_is_sent_to_it(access: Objects) -> None:
    for instance in instances(access):
        spec = one(access, "Deployment", instance)["spec"]
        assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
        pod = spec["template"]["spec"]
        [trial], [container] = pod["initContainers"], pod["containers"]
        assert trial["args"] == [*container["args"], "--config-test"] and trial["image"] == container["image"]
        assert trial["volumeMounts"] == container["volumeMounts"]
        sleep_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert sleep_s > 2, "Traefik looks every two seconds at who is there"
        assert pod["terminationGracePeriodSeconds"] >= sleep_s + 120, "open streams may finish"


def test_a_changed_configuration_is_a_new_pod(access: Objects) -> None:
    for found in [d for d in access if d["kind"] == "ConfigMap"]:
        assert found["immutable"] is True
        assert "secret" not in "".join(found["data"]).lower()


def test_two_replicas_where_there_are_two_nodes(everything: Renderings) -> None:
    for name, replicas in (("defaults", 1), ("two-nodes", 2)):
        found = fixture_of(name, everything)
        assert {one(found, "Deployment", i)["spec"]["replicas"] for i in instances(found)} == {replicas}
        for instance in instances(found):
            assert one(found, "PodDisruptionBudget", instance)["spec"]["maxUnavailable"] == 1


def test_only_traefik_reaches_the_proxies_and_only_the_chats_the_gateway(access: Objects) -> None:
    def who(rule: dict[str, Any]) -> list[tuple[str, dict[str, str]]]:
        return [(peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"],
                 peer.get("podSelector", {}).get("matchLabels", {})) for peer in rule["from"]]

    traefik = (NAMES["traefik"]["namespace"], NAMES["traefik"]["pods"])
    for instance in instances(access):
        policy = one(access, "NetworkPolicy", instance)["spec"]
        pods = one(access, "Deployment", instance)["spec"]["template"]["metadata"]["labels"]
        assert policy["podSelector"]["matchLabels"].items() <= pods.items()
        [door] = [rule for rule in policy["ingress"] if rule["ports"][0]["port"] == ACCESS["port_name"]]
        assert who(door) == [traefik]
        ways = json.dumps(policy["egress"])
        assert (NAMES["gateway"]["deployment"] in ways) is (instance == CHAT)
        assert '"port": 53' in ways
    gateway = one(access, "NetworkPolicy", f"gateway-from-{CHAT}")
    assert gateway["metadata"]["namespace"] == NAMES["namespace"]
    [rule] = gateway["spec"]["ingress"]
    assert who(rule) == [(ACCESS["namespace"], one(access, "NetworkPolicy", CHAT)["spec"]["podSelector"]["matchLabels"])]


def test_selectors_of_the_instances_are_apart(everything: Renderings) -> None:
    found = fixture_of("two-nodes", everything)
    chat, apps = (one(found, "Service", name)["spec"]["selector"] for name in (CHAT, APPS))
    assert chat != apps and chat.keys() == apps.keys()


def test_pages_name_whom_to_ask_and_lead_back(everything: Renderings) -> None:
    found = fixture_of("other-provider", everything)
    page = files(found, CHAT)["error.html"]
    assert "ask Ann &lt;ann@home.arpa&gt; &amp; &#34;Ben&#34;" in page
    assert '"{{.ProxyPrefix}}/start?prompt=select_account&amp;rd={{.Redirect}}"' in page
    # At an app's host /oauth2/ is the app's.
    assert '"https://auth.home.arpa{{.ProxyPrefix}}/start?' in files(found, APPS)["error.html"]
    # Nothing is fetched from elsewhere, and no script runs.
    assert "<script" not in page and "src=" not in page and "@import" not in page


def test_metrics_have_a_port_of_their_own_that_prometheus_finds(everything: Renderings) -> None:
    found = fixture_of("two-nodes", everything)
    monitor = one(found, "ServiceMonitor", ACCESS["service_monitor"])
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    port = monitor["spec"]["endpoints"][0]["port"]
    services = [d for d in found if d["kind"] == "Service" and port in [p["name"] for p in d["spec"]["ports"]]]
    assert [d["metadata"]["name"] for d in services] == [ACCESS["metrics_service"]["name"]]
    assert not [d for d in fixture_of("defaults", everything) if d["kind"] == "ServiceMonitor"]


# --- front door

# Of the file alone: where it listens, and where routes come from.
FILE_ONLY = {"entryPoints.web.address", "entryPoints.websecure.address", "providers.file.filename", "providers.file.watch"}
# Of the cluster alone: the Kubernetes API, and certificates that are got there.
CLUSTER_ONLY = ("providers.kubernetesCRD.", "certificatesResolvers.", "core.strictTLSOptions", "entryPoints.websecure.http.tls.")


def flat(settings: Any, prefix: str = "") -> dict[str, str]:
    """A static file as `a.b.c`: text, written here again so that the filter is not tested by itself."""
    if isinstance(settings, dict) and settings:
        return {name: text for key, value in settings.items() for name, text in flat(value, f"{prefix}{key}.").items()}
    name = prefix.rstrip(".")
    if isinstance(settings, dict):
        return {name: "true"}
    if isinstance(settings, list):
        return {name: ",".join(map(str, settings))}
    return {name: str(settings).lower() if isinstance(settings, bool) else str(settings)}


def test_the_cluster_and_the_contract_tests_have_the_same_settings(everything: Renderings) -> None:
    """A setting that stands in the chart's values or in the file alone fails here."""
    for path in VALID_ACCESS:
        target = everything.traefik_files(id_of(path))
        found_in(path, everything)
        static = flat(yaml.safe_load((target / "static.yaml").read_text()))
        cluster = flags(found_in(path, everything))
        in_file = {name: text.replace("@file", "") for name, text in static.items() if name not in FILE_ONLY}
        in_cluster = {name: text.replace("kube-system-", "").replace("@kubernetescrd", "") for name, text in cluster.items()
                      if not name.startswith(CLUSTER_ONLY)}
        # What the cluster alone may have must not be in a file by mistake; but for the resolver's name, which is in both.
        in_file = {name: text for name, text in in_file.items() if not name.startswith("entryPoints.websecure.http.tls.")}
        # With ACME the entry point has a resolver instead of nothing but TLS.
        in_file.pop("entryPoints.websecure.http.tls", None)
        in_cluster.pop("entryPoints.websecure.http.tls", None)
        assert in_file == in_cluster, path.stem
        dynamic = yaml.safe_load((target / "dynamic.yaml").read_text())["http"]["middlewares"]
        for found in [d for d in found_in(path, everything) if d["kind"] == "Middleware"]:
            assert dynamic[found["metadata"]["name"]] == found["spec"], (path.stem, found["metadata"]["name"])


def test_the_chart_is_given_nothing_but_what_flags_cannot_say(access: Objects) -> None:
    values = chart_values(access)
    jsonschema.validate(values, json.loads((SCHEMAS / "traefik-chart-values.json").read_text()))
    assert not {"ports", "accessLog", "logs", "log", "api", "providers", "experimental"} & set(values), "flags have names that stay"
    assert "tag" not in values["image"] and values["image"]["digest"].startswith("sha256:"), "the chart refuses a newer tag than its own"
    assert one(access, "HelmChartConfig", "traefik")["spec"]["failurePolicy"] == "abort", "the default uninstalls the front door"


@pytest.mark.parametrize(("flag", "value"), [
    ("entryPoints.web.http.aliasHeadersStrategy", "delete"),
    ("entryPoints.websecure.http.aliasHeadersStrategy", "delete"),
    ("entryPoints.websecure.forwardedHeaders.insecure", "false"),
    ("entryPoints.web.http.redirections.entryPoint.scheme", "https"),
    ("accessLog.fields.queryParameters.defaultMode", "drop"),
    ("accessLog.fields.headers.defaultMode", "drop"),
    ("providers.kubernetesCRD.allowCrossNamespace", "false"),
    ("providers.kubernetesCRD.defaultTLSResourcesNamespace", "kube-system"),
    ("api.dashboard", "false"),
    ("api.insecure", "false"),
])
def test_settings_that_the_rest_relies_on(access: Objects, flag: str, value: str) -> None:
    assert flags(access)[flag] == value


def test_what_holds_for_every_host_stands_on_the_entry_point(access: Objects) -> None:
    named = flags(access)["entryPoints.websecure.http.middlewares"].split(",")
    made = [d for d in access if d["kind"] == "Middleware" and d["metadata"]["namespace"] == NAMES["traefik"]["namespace"]]
    assert named[:3] == [f"kube-system-{ACCESS['middlewares'][purpose]}@kubernetescrd" for purpose in ("rate", "open", "strip")]
    assert {f"kube-system-{d['metadata']['name']}@kubernetescrd" for d in made} >= set(named), "one that is missing closes the door"


def test_forwarders_are_trusted_behind_an_edge_alone(access: Objects, request: pytest.FixtureRequest) -> None:
    is_edge = request.node.callspec.id == "edge"
    trusted = {name: value for name, value in flags(access).items() if name.endswith("trustedIPs")}
    assert bool(trusted) is is_edge
    if is_edge:
        assert set(trusted.values()) == {"192.0.2.0/24,2001:db8::/32"}
    rate = one(access, "Middleware", ACCESS["middlewares"]["rate"])["spec"]["rateLimit"]["sourceCriterion"]["ipStrategy"]
    assert rate.get("depth") == (1 if is_edge else None)
    assert chart_values(access)["service"]["spec"]["externalTrafficPolicy"] == "Local", "else all requests have one address"


def test_a_stopping_traefik_has_time_for_what_it_promises(access: Objects) -> None:
    given = flags(access)
    seconds = [int(given[f"entryPoints.websecure.transport.lifeCycle.{name}"].removesuffix("s"))
               for name in ("requestAcceptGraceTimeout", "graceTimeOut")]
    assert chart_values(access)["deployment"]["terminationGracePeriodSeconds"] > sum(seconds)
    assert chart_values(access)["updateStrategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_each_kind_of_certificate(everything: Renderings) -> None:
    def store(name: str) -> str | None:
        stores = [d for d in fixture_of(name, everything) if d["kind"] == "TLSStore"]
        return stores[0]["spec"]["defaultCertificate"]["secretName"] if stores else None

    assert (store("defaults"), store("edge")) == (NAMES["traefik"]["own_certificate_secret"], NAMES["traefik"]["certificate_secret"])
    assert store("acme-http") is store("acme-dns") is None
    assert set(one(fixture_of("edge", everything), "Secret", "traefik-certificate")["stringData"]) == {"tls.crt", "tls.key"}

    http, dns = flags(fixture_of("acme-http", everything)), flags(fixture_of("acme-dns", everything))
    assert http["entryPoints.websecure.http.tls.certResolver"] == dns["entryPoints.websecure.http.tls.certResolver"] == "hearth"
    assert http["certificatesResolvers.hearth.acme.httpChallenge.entryPoint"] == "web"
    assert dns["certificatesResolvers.hearth.acme.dnsChallenge.provider"] == "cloudflare"
    assert dns["entryPoints.websecure.http.tls.domains[0].main"] == "*.example.org"
    values = chart_values(fixture_of("acme-dns", everything))
    assert values["persistence"]["enabled"] is True and values["envFrom"] == [{"secretRef": {"name": "traefik-acme-dns"}}]
    assert values["podSecurityContext"]["fsGroupChangePolicy"] == "OnRootMismatch", "Traefik refuses a file that others may read"


def test_a_changed_credential_of_the_dns_provider_is_a_new_pod(everything: Renderings) -> None:
    """Traefik reads its environment at the start. With the old one it fails at the next renewal, weeks after a green run."""
    values = chart_values(fixture_of("acme-dns", everything))
    mark = values["deployment"]["podAnnotations"]["hearth.homelab/acme-credentials-checksum"]
    given = yaml.safe_load((FIXTURES / "access" / "valid" / "acme-dns.yml").read_text())["traefik_acme_dns_environment"]
    assert mark == hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:16]
    assert values["deployment"]["replicas"] == 1 and values["deployment"]["terminationGracePeriodSeconds"] > 0
    assert "podAnnotations" not in chart_values(fixture_of("acme-http", everything))["deployment"]


def test_a_certificate_of_the_house_is_not_insisted_on(everything: Renderings) -> None:
    def hsts(name: str) -> int | None:
        found: int | None = one(fixture_of(name, everything), "Middleware", "hearth-strip")["spec"]["headers"].get("stsSeconds")
        return found

    assert hsts("defaults") is None
    assert hsts("acme-http") == hsts("edge") == 31536000


# --- routes

def test_every_route_but_the_sign_in_itself_asks_who_it_is(access: Objects) -> None:
    for route in [d for d in access if d["kind"] == "IngressRoute"]:
        [rule] = route["spec"]["routes"]
        where, name = route["metadata"]["namespace"], route["metadata"]["name"]
        named = [m["name"] for m in rule.get("middlewares", [])]
        wanted = {CHAT: [ACCESS["middlewares"]["chat"]], APPS: []}.get(name, [ACCESS["middlewares"]["signin"]])
        assert named == wanted, name
        assert all("namespace" not in m for m in rule.get("middlewares", [])), "Traefik takes none of another namespace"
        for middleware in named:
            assert [d for d in access if d["kind"] == "Middleware" and d["metadata"] | {"labels": 0} ==
                    {"name": middleware, "namespace": where, "labels": 0}], f"{where}/{middleware} is not rendered"


def test_apps_of_the_cluster_and_of_the_house(everything: Renderings) -> None:
    found = fixture_of("two-nodes", everything)
    slice_ = one(found, "EndpointSlice", "home-example-org")
    assert slice_["endpoints"][0]["addresses"] == ["192.168.1.30"] and slice_["ports"][0]["port"] == 8123
    assert slice_["metadata"]["labels"]["kubernetes.io/service-name"] == one(found, "Service", "home-example-org")["metadata"]["name"]
    backends = {d["spec"]["routes"][0]["match"]: (d["metadata"]["namespace"], d["spec"]["routes"][0]["services"][0]["name"])
                for d in found if d["kind"] == "IngressRoute"}
    assert backends["Host(`board.example.org`)"] == ("kube-system", "headlamp")
    assert backends["Host(`webui.example.org`)"] == ("open-webui", "open-webui")
    policy = one(found, "NetworkPolicy", "webui-example-org")["spec"]
    assert policy["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "open-webui"}
    [peer] = policy["ingress"][0]["from"]
    assert peer["podSelector"]["matchLabels"] == NAMES["traefik"]["pods"]


def test_people_are_sent_to_the_port_that_they_see(everything: Renderings) -> None:
    found = fixture_of("acme-dns", everything)
    assert flags(found)["entryPoints.web.http.redirections.entryPoint.to"] == ":8443"
    assert core(found, CHAT)["redirect_url"] == "https://chat.example.org:8443/oauth2/callback"
    assert core(found, APPS)["whitelist_domains"] == [".example.org:8443"], "a port that is not the usual one must be named"


def test_fixtures_say_each_refused_setting() -> None:
    """The issue names what must be refused: each has a fixture of its own."""
    refused = {id_of(path).rsplit("/", 1)[1] for path in (ROOT / "tests/render/fixtures/access/invalid/oauth2_proxy").glob("*.yml")}
    assert {"skip-auth-routes", "trusted-ips", "htpasswd", "email-domains", "service-links", "env-from"} <= refused
