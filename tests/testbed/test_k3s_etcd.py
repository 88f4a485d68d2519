"""The k3s stand-in against the k3s contract on etcd: three servers and an agent, lost, removed, saved and restored.

One bed: h1 starts the cluster, h2 and h3 join it, h4 is an agent. The tests run in order, and on the real binary with
HEARTH_BED_K3S=/path/to/k3s.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import pytest

from tests.testbed.k3s_host import CONFIG, DATA, EVERYWHERE, Cluster, Node, agent_config, said_by, wait

pytestmark = pytest.mark.timeout(900)

TOKEN = "etcd-secret-0001"  # made for this test
SETTINGS = ("disable: [metrics-server, traefik, servicelb]", "tls-san: [api.bed.test]")
ETCD = f"{DATA}/server/db/etcd"
METRICS = "python3 -c \"import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:2381/metrics', timeout=5).read().decode())\""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster("etcd", others="server").up() as all_nodes:
        yield all_nodes


def members(cluster: Cluster, on: Node | None = None) -> dict[str, bool]:
    """Name of each etcd member (none before its first start) as a server tells a joining one, and whether it votes."""
    status, body = cluster.ask("/db/info", "server", TOKEN, on=on)
    assert status == 200, body
    return {member.get("name", ""): not member.get("isLearner") for member in json.loads(body)}


def conditions(on: Node, node: str) -> dict[str, str]:
    found = on.get("node", node)
    assert found is not None
    return {condition["type"]: condition["status"] for condition in found["status"]["conditions"]}


def is_ready(on: Node) -> bool:
    return on.run("timeout 8 k3s kubectl get --raw /readyz 2>/dev/null", check=False).strip() == "ok"


def join(cluster: Cluster, node: Node, through: Node | None = None) -> None:
    via = through or cluster.server
    node.put(CONFIG, agent_config(f"https://{via.address}:6443", TOKEN, *SETTINGS))
    node.start("start")


def test_s14_the_first_server(cluster: Cluster) -> None:
    """S14: cluster-init makes one voting member named after the node, TLS with client certificates on 2379 and 2380."""
    server = cluster.server
    schedule = ('etcd-snapshot-schedule-cron: "@every 10s"', "etcd-snapshot-retention: 2", "etcd-snapshot-name: timed")
    server.put(CONFIG, "".join(f"{line}\n" for line in (f"token: {TOKEN}", "cluster-init: true", *SETTINGS, *schedule)))
    server.start("start")
    assert server.run(f"ls {ETCD}/member/wal").strip() != ""
    assert server.run(f"ls {DATA}/server/db").split().count("state.db") == 0
    (name,) = members(cluster)
    assert name.startswith("h1-")
    assert len(name) == len("h1-") + 8
    for port in (2379, 2380):
        listeners = server.run(f"ss -tlnH sport = :{port}")
        assert f"{server.address}:{port}" in listeners
        assert f"127.0.0.1:{port}" in listeners
        nobody = (
            f"import ssl, socket; c = ssl._create_unverified_context(); s = c.wrap_socket(socket.create_connection(('127.0.0.1', {port})));"
        )
        assert "required" in server.run(f"python3 -c \"{nobody} s.send(b'x'); s.recv(1)\" 2>&1", check=False)
    server.wait_ready()
    wait(30, "the Node says that it votes", lambda: conditions(server, "h1").get("EtcdIsVoter") == "True")
    node = server.get("node", "h1")
    assert node is not None
    labels, annotations = node["metadata"]["labels"], node["metadata"]["annotations"]
    assert labels["node-role.kubernetes.io/control-plane"] == labels["node-role.kubernetes.io/etcd"] == "true"
    assert annotations["etcd.k3s.cattle.io/node-name"] == name
    cluster.agent.put(CONFIG, agent_config(cluster.url, TOKEN))
    cluster.agent.start("start")
    cluster.kubectl("create secret generic of-web --from-literal=A=b")
    cluster.kubectl("apply -f -", EVERYWHERE)


def test_s12_servers_that_cannot_join_end(cluster: Cluster) -> None:
    """S12: wrong secret, another cluster's hash, differing critical values, a name that is taken: exit 1, each in its words."""
    node, url = cluster.second, cluster.url
    for options, text in (
        (f"--server {url} --token wrong --disable servicelb", "not authorized"),
        (f"--server {url} --token K10{64 * '0'}::server:{TOKEN}", "token CA hash does not match the Cluster CA certificate hash"),
        (f"--server {url} --token {TOKEN} --disable servicelb --cluster-cidr 10.44.0.0/16", "critical configuration value mismatch"),
        (f"--server {url} --token {TOKEN} --disable servicelb --disable-network-policy", "critical configuration value mismatch"),
        (f"--server {url} --token {TOKEN} --disable servicelb --node-name h1", "duplicate node name found"),
    ):
        said = said_by(node, f"server {options}", 60)
        assert text in said, said
        assert "exit 1" in said, said
    node.run(f"rm -rf {DATA}/server")
    assert list(members(cluster).values()) == [True]


def test_s12_without_a_token_a_joiner_is_on_its_own(cluster: Cluster) -> None:
    """S12: `server:` and no token: k3s starts a cluster of its own, on SQLite."""
    node = cluster.third
    node.run(f"timeout 60 k3s server --server {cluster.url} >/dev/null 2>&1 & for i in $(seq 500); do "
             f"[ ! -s {DATA}/server/token ] || break; sleep 0.1; done; kill %1; wait", timeout_s=90)  # fmt: skip
    assert node.run(f"ls {DATA}/server/db/state.db").strip() != ""
    assert node.run(f"cat {DATA}/server/tls/server-ca.crt") != cluster.server.run(f"cat {DATA}/server/tls/server-ca.crt")
    node.run(f"rm -rf {DATA}/server {DATA}/agent /etc/rancher/node")


def test_s14_two_servers_join(cluster: Cluster) -> None:
    """S14 S11: active means promoted; a joiner that loses power as a learner finds its way back."""
    join(cluster, cluster.second)
    assert len([name for name, votes in members(cluster).items() if votes]) == 2
    third = cluster.third
    third.put(CONFIG, agent_config(f"https://{cluster.second.address}:6443", TOKEN, *SETTINGS))
    third.run("systemctl start --no-block k3s")
    wait(60, "the third server is announced", lambda: len(members(cluster)) == 3)
    third.call("power-off", "h3")
    third.call("power-on", "h3")
    wait(120, "it has joined by itself", lambda: third.is_active() == "active")
    assert sorted(name[:3] for name, votes in members(cluster).items() if votes) == ["h1-", "h2-", "h3-"]
    assert "etcd_server_is_learner 0" in third.run(METRICS)
    for node in (cluster.second, third):
        condition = f"k3s kubectl wait --for=condition=EtcdIsVoter node/{node.host} --timeout=60s"
        assert "condition met" in cluster.server.run(condition)
        for name in ("server-ca", "client-ca", "etcd/peer-ca"):
            assert node.run(f"cat {DATA}/server/tls/{name}.key") == cluster.server.run(f"cat {DATA}/server/tls/{name}.key")
    wait(
        30,
        "all API servers are told of",
        lambda: len(cluster.kubectl("get endpoints kubernetes -o jsonpath={..ip} 2>/dev/null").split()) == 3,
    )
    known = f"{DATA}/agent/etc/k3s-agent-load-balancer.json"
    wait(30, "the agent knows them", lambda: len(json.loads(cluster.agent.run(f"cat {known}"))["ServerAddresses"]) == 3)
    cluster.kubectl("wait --for=condition=Ready node --all --timeout=60s")
    cluster.kubectl("rollout status ds/web --timeout=90s")


def test_s8_s14_the_first_server_is_lost(cluster: Cluster, record_property: Callable[[str, object], None]) -> None:
    """S14 S8: one of three down: the others write on; kubelet and pods of the agent keep reaching the API."""
    cluster.server.call("power-off", "h1")
    begun = time.monotonic()
    second = cluster.second
    wait(60, "the second server writes", lambda: "created" in second.run("timeout 10 k3s kubectl create cm after-h1 2>&1", check=False))
    record_property("second server writes after s", round(time.monotonic() - begun, 1))
    as_node = f"k3s kubectl --kubeconfig {DATA}/agent/kubelet.kubeconfig"
    wait(60, "the agent reaches the API", lambda: "h4" in cluster.agent.run(f"timeout 10 {as_node} get node h4 2>&1", check=False))
    pod = next(p for p in json.loads(second.run("k3s kubectl get pods -l app=web -o json"))["items"] if p["spec"]["nodeName"] == "h4")
    reach = "for i in 1 2 3 4 5 6 7 8; do nc -w 2 10.43.0.1 443 </dev/null || exit 1; done"
    exec_in = f"timeout 30 k3s kubectl exec {pod['metadata']['name']} -- sh -c '{reach}' && echo reached"
    wait(90, "the dead server left the Service", lambda: "reached" in second.run(exec_in, check=False))
    # An agent whose `server:` is dead starts with the servers it knows.
    cluster.agent.start()
    wait(90, "the node controller saw h1 go", lambda: conditions(second, "h1")["Ready"] == "Unknown")


def test_s14_a_majority_is_lost(cluster: Cluster) -> None:
    """S14: two of three down: the API is not ready; one comes back: it is."""
    cluster.third.start("stop")
    wait(60, "the API is not ready", lambda: not is_ready(cluster.second))
    cluster.third.run("systemctl start --no-block k3s")
    wait(120, "the API is ready", lambda: is_ready(cluster.second))
    cluster.server.call("power-on", "h1")
    wait(120, "h1 is back", lambda: cluster.server.is_active() == "active" and is_ready(cluster.server))
    wait(60, "h3 is back", lambda: cluster.third.is_active() == "active")
    assert sum(members(cluster).values()) == 3
    cluster.kubectl("get cm after-h1")


def test_s17_a_deleted_server(cluster: Cluster) -> None:
    """S17: with the Node the member goes; the server that still runs is told, and a restart brings it back."""
    third = cluster.third
    old = next(name for name in members(cluster) if name.startswith("h3-"))
    cluster.kubectl("delete node h3 --timeout=60s")
    assert old not in members(cluster)
    assert cluster.server.get("secret", "h3.node-password.k3s", "kube-system") is None
    gone = "This node has been removed from the cluster - please restart k3s to rejoin the cluster"
    wait(30, "the removed server is told", lambda: gone in third.run("journalctl -u k3s -o cat --no-pager"))
    third.start()
    new = next(name for name in members(cluster) if name.startswith("h3-"))
    assert new != old
    wait(60, "h3 is registered again", lambda: cluster.is_there("h3"))
    assert third.run(f"ls -d {ETCD}-old-*").strip() != ""


def snapshots(server: Node) -> list[str]:
    """What `save` has finished; a server that dies while it saves leaves the half, as etcd's client does, under NAME.part."""
    return sorted(name for name in server.run(f"ls {DATA}/server/db/snapshots").split() if not name.endswith(".part"))


def test_s15_snapshots(cluster: Cluster) -> None:
    """S15: save, ls, delete and prune with the contract's output; timed ones with retention."""
    server = cluster.server
    said = server.run("k3s etcd-snapshot save --name mine 2>&1 >/root/stdout; cat /root/stdout; rm /root/stdout")
    assert "Unknown flag --cluster-init found in config.yaml, skipping" in said
    (line,) = [text for text in said.splitlines() if "saved." in text]
    name = line.split("Snapshot ")[1].split(" saved.")[0]
    assert name.startswith("mine-h1-")
    items = json.loads(server.run("k3s etcd-snapshot ls -o json 2>/dev/null"))["items"]
    item = next(item for item in items if item["spec"]["snapshotName"] == name)
    path = f"{DATA}/server/db/snapshots/{name}"
    assert item["spec"] == {"snapshotName": name, "nodeName": "h1", "location": f"file://{path}"}
    assert item["status"]["readyToUse"] is True
    assert int(item["status"]["size"]) == int(server.run(f"stat -c %s {path}"))
    table = server.run("k3s etcd-snapshot ls 2>/dev/null").splitlines()
    assert table[0].split() == ["Name", "Location", "Size", "Created"]
    assert any(row.startswith(name) for row in table)
    for _ in range(2):
        time.sleep(1.1)  # names hold the second
        server.run("k3s etcd-snapshot save --name mine")
    assert server.run("k3s etcd-snapshot prune --name mine --etcd-snapshot-retention 1 2>&1").count("deleted.") == 2
    (kept,) = server.run(f"ls {DATA}/server/db/snapshots | grep mine").split()
    assert f"Snapshot {kept} deleted." in server.run(f"k3s etcd-snapshot delete {kept} 2>&1")
    again = server.run(f"k3s etcd-snapshot delete {kept} 2>&1; echo exit $?")
    assert "not found." in again
    assert "exit 0" in again
    assert "exit 1" in server.run("k3s etcd-snapshot delete ../x 2>&1; echo exit $?")
    # While a new one is there and the oldest one is not yet deleted, there are three.
    wait(15, "those by time are two", lambda: len(snapshots(server)) == 2)
    timed = snapshots(server)
    assert all(entry.startswith("timed-h1-") for entry in timed)
    wait(40, "a newer one takes the oldest one's place", lambda: timed[0] not in snapshots(server))


def test_s16_one_server_remains(cluster: Cluster) -> None:
    """S16: cluster-reset without a snapshot: refusals, message, exit 0, flag; peers rejoin after removing their data."""
    for node in (cluster.second, cluster.third, cluster.server):
        node.start("stop")
    reset = "k3s server --cluster-reset"
    said = said_by(cluster.second, "server --cluster-reset", 60)
    assert "cannot perform cluster-reset while server URL is set" in said
    assert "exit 1" in said
    said = cluster.server.run(f"timeout 90 {reset} 2>&1; echo exit $?", timeout_s=100)
    assert "Managed etcd cluster membership has been reset, restart without --cluster-reset flag now" in said
    assert "exit 0" in said
    flag = f"{DATA}/server/db/reset-flag"
    again = said_by(cluster.server, "server --cluster-reset", 60)
    assert flag in again
    assert "exit 1" in again
    cluster.server.start("start")
    assert [name[:3] for name in members(cluster)] == ["h1-"]
    assert cluster.server.run(f"ls {flag} 2>&1", check=False).startswith("ls: cannot access")
    cluster.kubectl("get cm after-h1")
    cluster.second.run(f"rm -rf {DATA}/server/db")
    cluster.second.start("start")
    assert sum(members(cluster).values()) == 2


def test_s16_restored_on_a_new_host(cluster: Cluster) -> None:
    """S16: a snapshot and the token bring the cluster back on a host that has nothing else, Secrets included."""
    cluster.kubectl("create secret generic kept --from-literal=word=treasure")
    said = cluster.server.run("k3s etcd-snapshot save --name last 2>&1")
    name = said.split("Snapshot ")[-1].split(" saved.")[0]
    taken = cluster.server.state / "snapshot"
    with taken.open("wb") as file:
        file.write(cluster.server.fetch(f"{DATA}/server/db/snapshots/{name}"))
    new = cluster.third
    new.remove()
    new.install()
    for node in (cluster.second, cluster.server):
        node.start("stop")
    new.put(CONFIG, "".join(f"{line}\n" for line in SETTINGS))
    new.copy(taken, "/root/snapshot")
    reset = "server --cluster-reset --cluster-reset-restore-path"
    assert "does not exist, please pass --token" in said_by(new, f"{reset}=/root/snapshot", 60)
    assert "snapshot path does not exist" in said_by(new, f"{reset}=/root/none --token {TOKEN}", 60)
    assert "encrypted with different token" in said_by(new, f"{reset}=/root/snapshot --token other", 60)
    said = said_by(new, f"{reset}=/root/snapshot --token {TOKEN}", 90)
    assert "Managed etcd cluster membership has been reset" in said
    assert "exit 0" in said
    assert len(new.run(f"ls -d {ETCD}-old-*").split()) == 1  # of the try with another token
    new.start("start")
    assert [member[:3] for member in members(cluster, on=new)] == ["h3-"]
    word = new.run("k3s kubectl get secret kept -o jsonpath={.data.word} | base64 -d")
    assert word == "treasure"
    assert new.run(f"cat {DATA}/server/tls/server-ca.crt") == cluster.server.run(f"cat {DATA}/server/tls/server-ca.crt")
    new.run("k3s kubectl delete node h1 h2 --timeout=60s")
    new.wait_ready()
    cluster.second.run(f"rm -rf {DATA}/server/db")
    join(cluster, cluster.second, through=new)
    assert sum(members(cluster, on=new).values()) == 2
