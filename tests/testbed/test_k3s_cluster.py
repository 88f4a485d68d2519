"""The k3s stand-in against the k3s contract where it takes several hosts: joining, certificates, pod network.

One bed with four hosts: h1 is a server, h4 the agent that lives through all tests, h2 and h3 come and go. Like the tests
on one host, these run in order, and on the real binary with HEARTH_BED_K3S=/path/to/k3s.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator

import pytest

from tests.cluster.observe import differences
from tests.testbed.k3s_host import CONFIG, DATA, EVERYWHERE, Cluster, agent_config, said_by, wait

pytestmark = pytest.mark.timeout(900)

TOKEN = "cluster-secret-0001"  # made for this test
NODE_FLAGS = ("node-label: [bed.test/kind=agent]", "node-taint: ['bed.test/kept=:PreferNoSchedule']")
NOT_VALID = "Failed to validate connection to cluster at"

BOOTSTRAP = """\
apiVersion: v1
kind: Secret
metadata: {name: bootstrap-token-abcdef, namespace: kube-system}
type: bootstrap.kubernetes.io/token
stringData:
  token-id: abcdef
  token-secret: 0123456789abcdef
  expiration: EXPIRES
  usage-bootstrap-authentication: "true"
  auth-extra-groups: system:bootstrappers:k3s:default-node-token
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster("nodes", others="agent").up() as all_nodes:
        yield all_nodes


def test_s12_an_agent_waits_for_its_server(cluster: Cluster) -> None:
    """S12 S11: nobody listens at the server: the agent says so every two seconds and its unit stays `activating`."""
    cluster.agent.put(CONFIG, agent_config(cluster.url, TOKEN, *NODE_FLAGS))
    cluster.agent.run("systemctl start --no-block k3s-agent")
    wait(20, "the agent says twice whom it cannot reach", lambda: cluster.agent.journal().count(NOT_VALID) > 1)
    assert cluster.agent.is_active() == "activating"


def test_s8_what_port_6443_tells_anybody(cluster: Cluster) -> None:
    """S8: `pong` and the authority without credentials, before the API is ready too; anything else 401."""
    cluster.server.put(CONFIG, f"token: {TOKEN}\nagent-token: for-{TOKEN}\ndisable: [metrics-server, traefik, servicelb]\n")
    early = cluster.server.run(
        """
        systemctl start --no-block k3s
        for i in $(seq 900); do
          python3 -c "
import ssl, urllib.request
context = ssl._create_unverified_context()
print(urllib.request.urlopen('https://127.0.0.1:6443/ping', context=context, timeout=5).read().decode())" 2>/dev/null && break
          sleep 0.05
        done
        systemctl is-active k3s""",
        check=False,
    )
    assert early.split() == ["pong", "activating"]
    wait(90, "the server is active", lambda: cluster.server.is_active() == "active")
    assert cluster.ask("/ping") == (200, "pong")
    assert cluster.ask("/cacerts") == (200, cluster.server.run(f"cat {DATA}/server/tls/server-ca.crt"))
    for path in ("/", "/readyz", "/livez", "/api", "/version", "/v1-k3s/config", "/v1-k3s/apiservers", "/v1-k3s/client-ca.crt"):
        assert cluster.ask(path)[0] == 401, path
    for user, secret in (("node", "wrong"), ("server", "wrong"), ("node", TOKEN), ("abcdef", "0123456789abcdef")):
        assert cluster.ask("/v1-k3s/config", user, secret)[0] == 401, user
    assert cluster.ask("/v1-k3s/config", "node", f"for-{TOKEN}")[0] == 200
    # The front proxy's headers are not for a client to send.
    assert cluster.ask("/api", X_Remote_User="system:admin", X_Remote_Group="system:masters")[0] == 401


def test_s12_a_wrong_token_never_ends(cluster: Cluster) -> None:
    """S12 S9: wrong secret, hash of another cluster, malformed or missing token, plain http: each in its own words."""
    assert cluster.agent.is_active() == "activating"
    wait(20, "the waiting agent is told that its token is wrong", lambda: "not authorized" in cluster.agent.journal())
    node, url = cluster.third, cluster.url
    other = "K10" + 64 * "0" + f"::node:for-{TOKEN}"
    for command, text, end in (
        (f"agent --server {url} --token wrong", "not authorized", 124),
        (f"agent --server {url} --token {other}", "token CA hash does not match the Cluster CA certificate hash: " + 64 * "0", 124),
        (f"agent --server {url} --token K10abc", "invalid token format", 124),
        (f"agent --server {url}", "--token is required", 1),
        ("agent --token x", "--server is required", 1),
        (f"agent --server http://{cluster.server.address}:6443 --token x", "only https:// URLs are supported", 1),
    ):
        said = said_by(node, command)
        assert text in said, command
        assert f"exit {end}" in said, said
    assert TOKEN not in cluster.agent.journal()


def test_s9_an_agent_joins(cluster: Cluster) -> None:
    """S9 S11 S19: with the agent token, short form; active means that the Node is there with its labels."""
    cluster.agent.put(CONFIG, agent_config(cluster.url, f"for-{TOKEN}", *NODE_FLAGS))
    cluster.agent.start()
    assert "token does not include a CA hash" in cluster.agent.journal()
    node = cluster.server.get("node", "h4")
    assert node is not None
    assert node["metadata"]["labels"]["bed.test/kind"] == "agent"
    assert "node-role.kubernetes.io/control-plane" not in node["metadata"]["labels"]
    assert [taint["key"] for taint in node["spec"]["taints"] if taint["key"].startswith("bed.test")] == ["bed.test/kept"]
    assert node["status"]["nodeInfo"]["kubeletVersion"] == "v1.36.3+k3s1"
    cluster.kubectl("create secret generic of-web --from-literal=A=b")
    cluster.kubectl("create secret generic of-nobody --from-literal=A=b")
    cluster.kubectl("apply -f -", EVERYWHERE)
    cluster.kubectl("wait --for=condition=Ready node/h1 node/h4 --timeout=60s")
    cluster.kubectl("rollout status ds/web --timeout=60s")
    assert "localhost:8080 was refused" in cluster.agent.run("k3s kubectl get node 2>&1", check=False)


def test_s9_what_an_agent_may(cluster: Cluster) -> None:
    """S9 S8: certificates by CSR from the server, the key made on the host; the Node authorizer holds; all through 6444."""
    folder = f"{DATA}/agent"
    tls = cluster.server.state / "agent-tls"
    tls.mkdir(exist_ok=True)
    names = cluster.agent.run(f"cd {folder} && ls *.key && stat -c %a client-kubelet.key kubelet.kubeconfig")
    assert names.split() == ["client-kube-proxy.key", "client-kubelet.key", "serving-kubelet.key", "600", "600"]
    for leaf, ca, subject in (
        ("client-kubelet", "client-ca", "O = system:nodes, CN = system:node:h4"),
        ("serving-kubelet", "server-ca", "CN = h4"),
        ("client-kube-proxy", "client-ca", "CN = system:kube-proxy"),
    ):
        assert cluster.agent.run(f"openssl x509 -noout -subject -in {folder}/{leaf}.crt").strip() == f"subject={subject}"
        assert "OK" in cluster.agent.run(f"openssl verify -CAfile {folder}/{ca}.crt {folder}/{leaf}.crt")
        assert cluster.agent.run(f"cat {folder}/{ca}.crt") == cluster.server.run(f"cat {DATA}/server/tls/{ca}.crt")
    assert "server: https://127.0.0.1:6444" in cluster.agent.run(f"cat {folder}/kubelet.kubeconfig")
    as_node = f"k3s kubectl --kubeconfig {folder}/kubelet.kubeconfig"
    assert cluster.agent.run(f"{as_node} get secret of-web -o name").strip() == "secret/of-web"  # its pod uses it
    for command in ("get secret of-nobody", "get secret -n kube-system h1.node-password.k3s", "label node h1 a=b", "get secrets"):
        assert "Forbidden" in cluster.agent.run(f"{as_node} {command} 2>&1", check=False), command
    assert "Forbidden" in cluster.agent.run(f"{as_node} label node h4 node-role.kubernetes.io/x=y 2>&1", check=False)


def test_s24_pods_of_both_hosts_reach_each_other(cluster: Cluster) -> None:
    """S24: by address with their own source address, by service name, from the host; exec and logs reach the agent."""
    web = cluster.web()
    assert set(web) == {"h1", "h4"}
    for source in web.values():
        asked = "; ".join(f"wget -qO- http://{target['ip']}:8080/node" for target in web.values())
        asked += "; for i in 1 2 3 4 5 6 7 8 9 10 11 12; do wget -qO- http://web/node; done; nc -w 5 10.43.0.1 443 </dev/null && echo API"
        said = cluster.kubectl(f"exec {source['name']} -- sh -c '{asked}'").splitlines()
        assert said[:2] == [f"on {node}" for node in web]
        assert set(said[2:]) == {"on h1", "on h4", "API"}
    assert web["h1"]["ip"] in cluster.kubectl(f"logs {web['h4']['name']}")  # httpd -v prints who asked
    for node, target in web.items():
        asked = f"import urllib.request; print(urllib.request.urlopen('http://{target['ip']}:8080/node', timeout=5).read().decode())"
        assert cluster.agent.run(f'python3 -c "{asked}"').strip() == f"on {node}"
    assert "udp" in cluster.agent.run("ss -ulnH sport = :8472 | sed 's/^/udp /'")


def test_s10_another_host_of_the_same_name(cluster: Cluster) -> None:
    """S10 S12: 403 for a second host of that name; the Secret goes with the Node, and then the name is free."""
    secret = "h4.node-password.k3s"
    kept = cluster.server.get("secret", secret, "kube-system")
    assert kept is not None
    password = cluster.agent.run("cat /etc/rancher/node/password").strip()
    assert password not in base64.b64decode(kept["data"]["hash"]).decode()
    said = said_by(cluster.third, f"agent --server {cluster.url} --token for-{TOKEN} --node-name h4")
    assert "Node password rejected, duplicate hostname or contents of '/etc/rancher/node/password' may not match" in said
    assert "403 Forbidden" in said
    status, text = cluster.ask("/v1-k3s/client-kubelet.crt", "node", f"for-{TOKEN}", b"x", k3s_Node_Name="h4", k3s_Node_Password="wrong")
    assert (status, "Node password rejected" in text) == (403, True)
    cluster.agent.start()  # the same host comes back
    cluster.agent.start("stop")
    cluster.kubectl("delete node h4 --timeout=60s")
    assert cluster.server.get("secret", secret, "kube-system") is None
    cluster.agent.remove()  # the same host with a new disk
    cluster.agent.install()
    cluster.agent.put(CONFIG, agent_config(cluster.url, f"for-{TOKEN}", *NODE_FLAGS))
    cluster.agent.start("start")
    assert cluster.server.get("secret", secret, "kube-system") is not None
    cluster.kubectl("wait --for=condition=Ready node/h4 --timeout=60s")
    cluster.kubectl("rollout status ds/web --timeout=90s")
    web = cluster.web()
    assert cluster.kubectl(f"exec {web['h1']['name']} -- wget -qO- http://{web['h4']['ip']}:8080/node").strip() == "on h4"


def test_s9_secure_and_bootstrap_tokens(cluster: Cluster) -> None:
    """S9: the file's secure token joins without a warning; a bootstrap token joins until it has expired."""
    secure = cluster.server.run(f"cat {DATA}/server/agent-token").strip()
    ca_hash = secure[3:67]
    cluster.kubectl("apply -f -", BOOTSTRAP.replace("EXPIRES", '"2020-01-01T00:00:00Z"'))
    assert "not authorized" in said_by(cluster.third, f"agent --server {cluster.url} --token abcdef.0123456789abcdef")
    cluster.kubectl("apply -f -", BOOTSTRAP.replace("EXPIRES", '"2099-01-01T00:00:00Z"'))
    assert "not authorized" in said_by(cluster.third, f"agent --server {cluster.url} --token abcdef.0123456789abcdee")
    for node, token in ((cluster.second, secure), (cluster.third, f"K10{ca_hash}::abcdef.0123456789abcdef")):
        node.put(CONFIG, agent_config(cluster.url, token))
        node.start()
        assert cluster.is_there(node.host)
        assert "CA hash" not in node.journal()
        assert token not in node.journal()
    assert sorted(cluster.kubectl("get node -o name").split()) == ["node/h1", "node/h2", "node/h3", "node/h4"]


def test_s24_kube_proxy_is_the_servers_choice(cluster: Cluster) -> None:
    """S24: disable-kube-proxy on the server: an agent that starts afterwards runs none."""
    assert "kube-proxy" in cluster.second.run("pgrep -af 'node kube-proxy'")
    cluster.server.put(f"{CONFIG}.d/10-proxy.yaml", "disable-kube-proxy: true\n")
    cluster.server.start()
    cluster.second.start()
    assert cluster.second.run("pgrep -af '[n]ode kube-proxy'", check=False) == ""
    cluster.server.run(f"rm {CONFIG}.d/10-proxy.yaml")
    cluster.server.start()


def test_s18_an_agent_restarts_under_its_pods(cluster: Cluster) -> None:
    """S18 S8: stop, power cut of the server, start: an agent starts again only with a server; its pods never stop."""
    containers, running = cluster.agent.containers(), cluster.agent.running()
    cluster.agent.start("stop")
    cluster.server.call("power-off", "h1")
    cluster.agent.run("systemctl start --no-block k3s-agent")
    wait(30, "the agent waits for its server", lambda: NOT_VALID in cluster.agent.journal())
    cluster.server.call("power-on", "h1")
    wait(120, "the agent is active", lambda: cluster.agent.is_active() == "active")
    assert cluster.agent.containers() == containers
    assert cluster.agent.running() == running
    cluster.server.wait_ready()
    assert re.search(r'"ServerAddresses": \[\n\s+"[\d.]+:6443"', cluster.agent.run(f"cat {DATA}/agent/etc/k3s-agent-load-balancer.json"))


def test_s28_nothing_of_an_agent_is_left(cluster: Cluster) -> None:
    """S28: after the duties of killall and uninstall an agent's host is as it was."""
    cluster.agent.remove()
    changed = differences(cluster.before, cluster.agent.observe("files", "h4"))
    assert changed == [], "\n".join(changed)
    assert cluster.agent.leftovers() == ""
