"""One cluster on one host to four, by the same playbooks: built, grown, a server lost under load, nodes removed and added.

One bed for all of it, and each test begins where the one before it ended. `HEARTH_KEEP_BED=1` takes a bed that is up already
and leaves it up, to repeat a test by hand.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from postgres_support import PASSWORD, Server

from tests.cluster.support import REPORTS, ROOT, Bed, Run, collect, play

pytestmark = pytest.mark.timeout(1500)

HERE = Path(__file__).parent
NAME = "topology"
HOSTS = ("h1", "h2", "h3", "h4")
MODELS = {"slow": [{"provider": "anthropic", "model": "mock+slow", "max_output_tokens": 4000}],
          "sonnet": [{"provider": "anthropic", "model": "claude-sonnet-4-5-20250929"}]}
# The goal is 10 s (the limit leaves room for a busy machine; what was measured is in docs/testing.md).
API_ANSWERS_S = 60
RACK = "hearth.homelab/rack"
# A file on the host that asks.
ENOUGH = "/run/hearth-test-enough"


class House:
    """The bed's hosts in the groups that a test puts them into."""

    def __init__(self, bed: Bed) -> None:
        self.bed = bed
        self.given = yaml.safe_load(bed.inventory.read_text())
        groups = self.given["all"]["children"]["k3s_cluster"]["children"]
        self.hosts = {**groups["servers"]["hosts"], **groups["agents"]["hosts"]}

    def inventory(self, servers: Sequence[str], agents: Sequence[str], **variables: Any) -> Path:
        """Where an inventory with these groups lies. In the bed's folder, so that it goes with it."""
        cluster = self.given["all"]["children"]["k3s_cluster"]
        cluster["children"] = {
            "servers": {"hosts": {host: self.hosts[host] for host in servers}},
            "agents": {"hosts": {host: self.hosts[host] for host in agents}},
        }
        document = {"all": {"children": {**self.given["all"]["children"], "k3s_cluster": {
            **cluster, "vars": {**cluster["vars"], "gateway_models": MODELS, **variables}}}}}
        path = self.bed.state / "topology.yml"
        path.write_text(yaml.safe_dump(document))
        return path

    def site(self, servers: Sequence[str], agents: Sequence[str], *arguments: str, **variables: Any) -> Run:
        return play("site.yml", self.inventory(servers, agents, **variables), *arguments, timeout_s=1200)

    def kubectl(self, *arguments: str, through: str = "h1", within_s: int = 10) -> str:
        words = " ".join(f"'{word}'" for word in arguments)
        return self.bed.ssh(f"KUBECACHEDIR=/run/kubectl-cache /usr/local/bin/k3s kubectl --request-timeout={within_s}s {words}", through)

    def nodes(self, through: str = "h1") -> dict[str, dict[str, Any]]:
        listed = json.loads(self.kubectl("get", "nodes", "-o", "json", through=through))["items"]
        return {node["metadata"]["name"]: node for node in listed}

    def conditions(self, through: str = "h1") -> dict[str, dict[str, str]]:
        return {name: {c["type"]: c["status"] for c in node["status"]["conditions"]} for name, node in self.nodes(through).items()}

    def where_the_gateway_runs(self, through: str) -> str:
        selector = "app.kubernetes.io/name=gateway"
        return self.kubectl("get", "pods", "-n", "hearth", "-l", selector, "-o", "jsonpath={.items[0].spec.nodeName}", through=through)

    def uptime_of_k3s(self, host: str) -> str:
        return self.bed.ssh("systemctl show -p MainPID,ActiveEnterTimestampMonotonic k3s k3s-agent 2>/dev/null", host)


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    bed = Bed(NAME)
    kept = bool(os.environ.get("HEARTH_KEEP_BED"))
    if not (kept and bed.inventory.exists()):
        bed.call("down", check=False)
        bed.call("up", "-n", str(len(HOSTS)), "--with", "services", timeout_s=900)
    yield House(bed)
    if not kept:
        collect(bed, "logs")
        bed.call("down")


def passed(run: Run) -> Run:
    assert run.rc == 0, run.output[-6000:]
    return run


def streamed(run: Run) -> bool:
    return "Answered by" in run.output


def note(name: str, **measured: Any) -> None:
    REPORTS.mkdir(parents=True, exist_ok=True)
    (REPORTS / f"topology-{name}.json").write_text(json.dumps(measured, indent=2) + "\n")
    print(name, measured)


# --- built and grown


def test_one_server_and_one_agent_from_bare_hosts_to_a_streamed_answer(house: House) -> None:
    began = time.monotonic()
    run = passed(house.site(["h1"], ["h4"], k3s_datastore="etcd"))
    note("one-and-one", seconds=round(time.monotonic() - began))
    assert streamed(run), run.output[-3000:]
    assert {name: c["Ready"] for name, c in house.conditions().items()} == {"h1": "True", "h4": "True"}


def test_a_power_cut_while_a_server_joins_costs_the_run_and_no_more(house: House) -> None:
    """The new member is in etcd's list and has not caught up; the next test is the run that finishes it."""
    with ThreadPoolExecutor() as threads:
        run = threads.submit(house.site, ["h1", "h2", "h3"], ["h4"], "--tags", "host,k3s", k3s_datastore="etcd")
        deadline = time.monotonic() + 300
        while not house.bed.ssh("ls -d /var/lib/rancher/k3s/server/db/etcd/member 2>/dev/null", "h2", check=False):
            assert not run.done(), run.result().output[-6000:]
            assert time.monotonic() < deadline
            time.sleep(0.2)
        house.bed.call("power-off", "h2")
        ended = run.result()
    house.bed.call("power-on", "h2")
    assert ended.recap["h2"]["unreachable"] == 1, ended.output[-3000:]
    assert house.bed.ssh("ls /usr/local/bin/k3s 2>/dev/null", "h3", check=False) == "", "the run went on with the next server"


def test_two_more_servers_join_on_a_rerun_and_are_voters_of_one_cluster(house: House) -> None:
    passed(house.site(["h1", "h2", "h3"], ["h4"], k3s_datastore="etcd"))
    conditions = house.conditions()
    assert {name: c["Ready"] for name, c in conditions.items()} == dict.fromkeys(HOSTS, "True")
    assert {name for name, c in conditions.items() if c.get("EtcdIsVoter") == "True"} == {"h1", "h2", "h3"}
    # The same name-space on all servers: nobody has begun a cluster of its own.
    ids = {house.kubectl("get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}", through=host) for host in HOSTS[:3]}
    assert len(ids) == 1


def test_the_second_run_changes_nothing_and_restarts_nothing(house: House) -> None:
    before = {host: house.uptime_of_k3s(host) for host in HOSTS}
    began = time.monotonic()
    run = passed(house.site(["h1", "h2", "h3"], ["h4"], k3s_datastore="etcd"))
    note("rerun-of-four", seconds=round(time.monotonic() - began))
    assert run.count("changed") == 0, run.output[-6000:]
    assert {host: house.uptime_of_k3s(host) for host in HOSTS} == before
    assert streamed(run)


@pytest.mark.parametrize("host", HOSTS)
def test_each_host_has_one_k3s_of_the_right_kind_and_no_secret_in_the_open(house: House, host: str) -> None:
    unit = "k3s-agent" if host == "h4" else "k3s"
    units = house.bed.ssh("cd /etc/systemd/system && ls k3s*.service", host).split()
    assert units == [f"{unit}.service"]
    assert house.bed.ssh(f"systemctl is-enabled {unit}", host).strip() == "enabled"
    config = house.bed.ssh("cat /etc/rancher/k3s/config.yaml", host)
    of_servers = ("tls-san", "cluster-init", "etcd", "write-kubeconfig", "secrets")
    server_keys = [line for line in config.splitlines() if line.startswith(of_servers)]
    assert bool(server_keys) is (host != "h4"), config
    assert ("server:" in config) is (host != "h1"), config
    modes = house.bed.ssh("stat -c '%a' /etc/rancher/k3s/token /etc/rancher/k3s/config.yaml", host).split()
    assert modes == ["600", "600"]
    secret = house.bed.ssh("cat /etc/rancher/k3s/token", host).strip().rpartition(":")[2]
    script = """
        read -r secret
        journalctl -q --no-pager | grep -cF -- "$secret"
        for f in /proc/[0-9]*/cmdline; do tr '\\0' '\\n' < "$f" | grep -qF -- "$secret" && echo "$f"; done 2>/dev/null
        grep -rlF -- "$secret" /etc/systemd /etc/rancher/k3s/config.yaml
    """
    assert house.bed.ssh(script, host, check=False, stdin=secret + "\n").split() == ["0"]


# What k3s's own installer leaves, by the table in docs/cluster.md: path, kind and mode, where a link leads.
INSTALLED = """
/usr/local/bin/k3s                       f 755
/usr/local/bin/kubectl                   l 777 k3s
/usr/local/bin/crictl                    l 777 k3s
/usr/local/bin/ctr                       l 777 k3s
/usr/local/bin/k3s-killall.sh            f 755
/usr/local/bin/{unit}-uninstall.sh       f 755
/etc/systemd/system/{unit}.service       f 644
/etc/systemd/system/{unit}.service.env   f 600
/etc/rancher/k3s/config.yaml             f 600
/etc/rancher/k3s/token                   f 600
"""
# It gives a server's kubeconfig to k3s itself to write.
BY_K3S = {"/etc/rancher/k3s/k3s.yaml"}


@pytest.mark.parametrize(("host", "unit"), [("h1", "k3s"), ("h3", "k3s"), ("h4", "k3s-agent")])
def test_the_installed_files_are_those_of_the_installer(house: House, host: str, unit: str) -> None:
    places = "/usr/local/bin /etc/systemd/system/k3s* /etc/rancher/k3s"
    said = house.bed.ssh(f"find {places} ! -type d -printf '%p %y %m %l %u:%g\\n'", host).splitlines()
    found = {line.split()[0]: line.split()[1:] for line in said if line.split()[0] not in BY_K3S}
    expected = {line.split()[0]: [*line.split()[1:], "root:root"] for line in INSTALLED.format(unit=unit).strip().splitlines()}
    assert found == expected


# --- refused before anything is touched


@pytest.mark.parametrize(
    ("servers", "agents", "variables", "says"),
    [
        (["h1", "h2"], ["h4"], {}, "2 servers: etcd needs more than half"),
        (["h1", "h2", "h3"], ["h4"], {"k3s_token": "not-the-token-of-this-cluster"}, "not the token this cluster was made with"),
        (["h1", "h2", "h3"], ["h4"], {"k3s_secrets_encryption_enabled": False}, "secrets-encryption cannot be changed"),
        (["h4"], ["h1", "h2", "h3"], {}, "put it into the other group"),
    ],
    ids=["two servers", "wrong token", "encryption off", "groups swapped"],
)
def test_what_cannot_work_is_refused_before_anything_is_touched(
    house: House, servers: list[str], agents: list[str], variables: dict[str, Any], says: str
) -> None:
    before = {host: house.uptime_of_k3s(host) for host in HOSTS}
    run = house.site(servers, agents, "--tags", "k3s", **variables)
    assert run.rc != 0
    assert says in " ".join(run.output.split()), run.output[-3000:]
    assert run.count("changed") == 0
    assert "not-the-token-of-this-cluster" not in run.output
    assert {host: house.uptime_of_k3s(host) for host in HOSTS} == before


# --- a server is lost


@contextmanager
def streams(house: House, through: str, count: int = 10, words: int = 300, again: bool = False) -> Iterator[subprocess.Popen[str]]:
    """Chat answers held open through the Service, asked for on one host; inside, all have said their first words.

    With `again` each is followed by another one until `enough` is said.
    """
    # An agent has no credentials for such questions.
    address = house.kubectl("get", "service", "-n", "hearth", "gateway", "-o", "jsonpath={.spec.clusterIP}") + ":8080"
    template = "go-template={{.data.operator | base64decode}}"
    token = house.kubectl("get", "secret", "-n", "hearth", "gateway-tokens", "-o", template)
    path = "/run/hearth-test-load.py"
    house.bed.ssh(f"rm -f {ENOUGH}; cat > {path}", through, stdin=(HERE / "load.py").read_text())
    job = {"address": address, "headers": {"Content-Type": "application/json", "x-api-key": token}, "streams": count, "model": "slow",
           "words": words, "quick_model": "sonnet", "again_until": ENOUGH if again else None}
    command = ["ssh", "-F", str(house.bed.state / "ssh_config"), through, f"python3 {path}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdin is not None and running.stdout is not None
        running.stdin.write(json.dumps(job))
        running.stdin.close()
        assert running.stdout.readline().strip() == "open"
        yield running


def api_answers(house: House, through: str, within_s: float) -> float:
    """Seconds until a write goes through, which needs a majority of etcd."""
    began = time.monotonic()
    while time.monotonic() - began < within_s:
        done = house.bed.ssh("/usr/local/bin/k3s kubectl --request-timeout=3s --cache-dir=/run/kubectl-cache annotate --overwrite "
                             f"node {through} hearth.homelab/test={time.time()} && echo written", through, check=False)
        if "written" in done:
            return time.monotonic() - began
        time.sleep(0.2)
    raise AssertionError(f"no write went through within {within_s} s")


def until_ready(house: House, through: str, hosts: Sequence[str], within_s: float = 120) -> None:
    deadline = time.monotonic() + within_s
    while {name for name, found in house.conditions(through).items() if found["Ready"] == "True"} != set(hosts):
        assert time.monotonic() < deadline, house.conditions(through)
        time.sleep(1)


def back(house: House, through: str) -> bool:
    conditions = house.conditions(through)
    voters = {name for name, found in conditions.items() if found.get("EtcdIsVoter") == "True"}
    return voters == {"h1", "h2", "h3"} and {name for name, found in conditions.items() if found["Ready"] == "True"} == set(HOSTS)


def until_back(house: House, through: str, within_s: float = 120) -> None:
    deadline = time.monotonic() + within_s
    while not back(house, through):
        assert time.monotonic() < deadline, house.conditions(through)
        time.sleep(1)


def lost(house: House, victim: str, how: Callable[[], Any]) -> str:
    """A host is lost while answers come from the gateway: the API answers again through a server that is left, and no answer ends.

    :returns: that server.
    """
    witness = next(host for host in ("h3", "h2", "h1") if host != victim)
    with streams(house, house.where_the_gateway_runs("h1"), words=150) as running:
        how()
        answered = api_answers(house, witness, API_ANSWERS_S)
        # The agent's pods reach the API still, through another server.
        assert house.conditions(witness)["h4"]["Ready"] == "True"
        assert running.stdout is not None
        result = json.loads(running.stdout.read())
    ended = [stream for stream in result["streams"] if stream["error"] or not stream["done"]]
    note(f"lost-{how.__name__}", victim=victim, write_again_s=round(answered, 1), streams=len(result["streams"]), lost=len(ended))
    assert ended == []
    return witness


def test_a_server_without_power_takes_neither_the_api_nor_the_streams_with_it_and_a_rerun_repairs(house: House) -> None:
    gateway = house.where_the_gateway_runs("h1")
    victim = next(host for host in ("h1", "h2", "h3") if host != gateway)

    def power_off() -> None:
        house.bed.call("power-off", victim)

    witness = lost(house, victim, power_off)
    house.bed.call("power-on", victim)
    run = passed(house.site(["h1", "h2", "h3"], ["h4"], "--tags", "host,k3s", k3s_datastore="etcd"))
    assert run.recap[victim].get("failed", 0) == 0
    assert back(house, witness)


def test_a_server_that_is_cut_off_comes_back_by_itself(house: House) -> None:
    gateway = house.where_the_gateway_runs("h1")
    victim = next(host for host in ("h3", "h2", "h1") if host != gateway)

    def cut_off() -> None:
        house.bed.call("unplug", victim)

    witness = lost(house, victim, cut_off)
    house.bed.call("plug", victim)
    until_back(house, witness)


def test_a_k3s_that_is_killed_costs_no_answer_even_where_the_gateway_runs(house: House) -> None:
    """Pods are not k3s's children: they run on, and systemd starts it again. A server at the same time as the gateway's node."""
    victims = {"h2", house.where_the_gateway_runs("h1")}
    before = {victim: house.uptime_of_k3s(victim) for victim in victims}

    def killed() -> None:
        for victim in victims:
            # Its main process only, as the kernel does when memory is short.
            house.bed.ssh("systemctl kill --kill-whom=main --signal=KILL k3s k3s-agent 2>/dev/null; true", victim)

    witness = lost(house, "h2", killed)
    until_back(house, witness)
    assert [victim for victim in victims if house.uptime_of_k3s(victim) == before[victim]] == []


def test_a_run_without_the_dead_first_server_goes_through(house: House) -> None:
    house.bed.call("power-off", "h1")
    try:
        run = passed(house.site(["h1", "h2", "h3"], ["h4"], "--tags", "host,k3s", "--limit", "!h1", k3s_datastore="etcd",
                                k3s_node_labels=[f"{RACK}=one"]))
        assert "h1" not in run.recap
        assert RACK in house.nodes("h2")["h3"]["metadata"]["labels"]
    finally:
        house.bed.call("power-on", "h1")
    until_ready(house, "h2", HOSTS)


# --- a node leaves and comes back


def test_a_healthy_server_is_not_removed_by_the_way(house: House) -> None:
    run = play("playbooks/remove_node.yml", house.inventory(["h1", "h2", "h3"], ["h4"]), "-e", "node=h2")
    assert run.rc != 0
    assert "remove_node_forced=true" in run.output, run.output[-3000:]
    assert run.count("changed") == 0
    assert "h2" in house.nodes()


def volumes_of(house: House, host: str) -> list[str]:
    """Claims whose volumes lie on that host alone."""
    listed = json.loads(house.kubectl("get", "pv", "-o", "json"))["items"]
    return [volume["spec"]["claimRef"]["name"] for volume in listed if f'"{host}"' in json.dumps(volume["spec"]["nodeAffinity"])]


def test_the_node_with_the_gateways_volume_is_gone_for_good(house: House) -> None:
    """The claim would bind the gateway to it for ever. The run says so, and begins with an empty volume when told that it may."""
    servers, options = ["h1", "h2", "h3"], ("--tags", "gateway")
    house.kubectl("delete", "-n", "hearth", "deployment/gateway", "pvc/gateway-data", within_s=90)
    house.kubectl("cordon", *servers)
    passed(house.site(servers, ["h4"], *options, k3s_datastore="etcd"))
    house.kubectl("uncordon", *servers)
    assert volumes_of(house, "h4") == ["gateway-data"]
    house.bed.ssh("systemctl stop k3s-agent", "h4")
    house.kubectl("delete", "node", "h4")
    try:
        run = house.site(servers, ["h4"], *options, k3s_datastore="etcd")
        assert run.rc != 0
        assert "hearth/gateway-data lie on node h4 alone" in " ".join(run.output.split()), run.output[-3000:]
        assert run.count("changed") == 0
        house.kubectl("cordon", "h2", "h3")  # the test of a restore wants it on the first server
        run = passed(house.site(servers, ["h4"], *options, "-e", "gateway_volume_lost=true", k3s_datastore="etcd"))
        assert streamed(run)
        assert volumes_of(house, "h4") == []
        assert volumes_of(house, "h1") == ["gateway-data"]
    finally:
        house.kubectl("uncordon", *servers)
        house.bed.ssh("systemctl start --no-block k3s-agent", "h4")
    until_ready(house, "h1", HOSTS)
    again = passed(house.site(servers, ["h4"], *options, "-e", "gateway_volume_lost=true", k3s_datastore="etcd"))
    assert again.count("changed") == 0, "a volume that is not lost stays"


def test_an_agent_is_removed_and_its_host_clean(house: House) -> None:
    inventory = house.inventory(["h1", "h2", "h3"], ["h4"])
    image = house.kubectl("get", "deployment", "gateway", "-n", "hearth", "-o", "jsonpath={.spec.template.spec.containers[0].image}")
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "of-h4"},
             "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "of-h4"}, "spec": {
        "nodeSelector": {"kubernetes.io/hostname": "h4"}, "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "of-h4"}}],
        "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "sleep", "image": image, "command": ["sleep", "3600"],
                        "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]}}
    for item in (claim, pod):
        house.bed.ssh(f"echo '{json.dumps(item)}' | KUBECACHEDIR=/run/kubectl-cache /usr/local/bin/k3s kubectl create -n default -f -")
    house.kubectl("wait", "pod/of-h4", "-n", "default", "--for=condition=Ready", "--timeout=60s", within_s=60)
    run = play("playbooks/remove_node.yml", inventory, "-e", "node=h4")
    assert run.rc != 0
    assert "the data of default/of-h4 lie on h4 alone" in " ".join(run.output.lower().split()), run.output[-3000:]
    run = passed(play("playbooks/remove_node.yml", inventory, "-e", "node=h4", "-e", "remove_node_delete_volumes=true"))
    assert "and with it the data of default/of-h4. Take it out of the inventory" in " ".join(run.output.split()), run.output[-3000:]
    assert "of-h4" not in house.kubectl("get", "pvc", "-n", "default", "-o", "name")
    assert volumes_of(house, "h4") == []
    assert set(house.nodes()) == {"h1", "h2", "h3"}
    assert "h4.node-password.k3s" not in house.kubectl("get", "secrets", "-n", "kube-system", "-o", "name")
    places = "/usr/local/bin/k3s* /etc/rancher /var/lib/rancher /var/lib/kubelet /etc/systemd/system/k3s*"
    left = house.bed.ssh(f"ls -d {places} 2>/dev/null", "h4", check=False)
    assert left.split() == []


@pytest.mark.parametrize(
    ("arrange", "undo", "variables", "says"),
    [
        ("systemd-run --quiet --unit=taken python3 -m http.server 10250", "systemctl stop taken", {},
         "port 10250 (the kubelet) is held by"),
        ("", "", {"k3s_node_name": "h2"}, "The cluster knows a node h2, which is Ready: another machine has this name"),
        ("", "", {"k3s_registration_address": "127.0.0.1", "k3s_api_address": "h1"},
         "the address in k3s_registration_address does not lead to a server"),
    ],
    ids=["port taken", "name taken", "wrong address"],
)  # fmt: skip
def test_a_bare_host_that_cannot_join_is_told_why_and_stays_bare(
    house: House, arrange: str, undo: str, variables: dict[str, Any], says: str
) -> None:
    house.bed.ssh(arrange, "h4")
    try:
        run = house.site(["h1", "h2", "h3"], ["h4"], "--tags", "host,k3s", "--limit", "h4", **variables)
    finally:
        house.bed.ssh(undo, "h4")
    assert run.rc != 0
    assert says.lower() in " ".join(run.output.lower().split()), run.output[-3000:]
    assert house.bed.ssh("ls /etc/systemd/system/k3s* /var/lib/rancher/k3s/agent 2>/dev/null", "h4", check=False) == ""
    assert set(house.nodes()) == {"h1", "h2", "h3"}


def test_the_same_host_joins_again_under_its_name(house: House) -> None:
    passed(house.site(["h1", "h2", "h3"], ["h4"], "--tags", "host,k3s", k3s_datastore="etcd"))
    assert house.conditions()["h4"]["Ready"] == "True"
    assert RACK not in house.nodes()["h3"]["metadata"]["labels"], "what leaves the inventory leaves the node"


# --- back in time


def restored(inventory: Path, snapshot: Path) -> Run:
    return play("playbooks/cluster_restore.yml", inventory, "-e", f"snapshot={snapshot}", "-e", "restore_confirmed=true", timeout_s=900)


def test_a_restore_that_cannot_work_costs_nothing(house: House, tmp_path: Path) -> None:
    """A damaged snapshot is known before k3s is stopped; one of a cluster with another token only when k3s has put its data aside."""
    house.kubectl("create", "configmap", "since-the-snapshot", "-n", "default")
    house.bed.ssh("/usr/local/bin/k3s etcd-snapshot save --name fruitless")
    there = house.bed.ssh("ls /var/lib/rancher/k3s/server/db/snapshots/fruitless-*").split()[0]
    kept, damaged = tmp_path / "snapshot", tmp_path / "damaged"
    kept.write_bytes(base64.b64decode(house.bed.ssh(f"base64 {there}")))
    damaged.write_bytes(kept.read_bytes()[:-4096])
    run = restored(house.inventory(["h1", "h2", "h3"], ["h4"], k3s_datastore="etcd"), damaged)
    assert run.rc != 0
    assert "is not whole" in run.output and "Nothing was touched" in run.output, run.output[-3000:]
    house.kubectl("get", "configmap", "since-the-snapshot", "-n", "default")

    run = restored(house.inventory(["h1", "h2", "h3"], ["h4"], k3s_datastore="etcd", k3s_token="of-another-cluster"), kept)
    assert run.rc != 0
    assert "h1 has the data that it had before" in " ".join(run.output.split()), run.output[-3000:]
    assert "encrypted with different token" in run.output
    passed(house.site(["h1", "h2", "h3"], ["h4"], "--tags", "host,k3s", k3s_datastore="etcd"))
    until_back(house, "h1")
    house.kubectl("get", "configmap", "since-the-snapshot", "-n", "default")


def test_two_of_three_servers_are_lost_for_good_and_a_snapshot_brings_the_cluster_to_new_ones(house: House, tmp_path: Path) -> None:
    """A majority that does not come back: its machines are replaced, one server and the agent have their old disks.

    Among the new disks is the one with the gateway's volume.
    """
    assert volumes_of(house, "h1") == ["gateway-data"]
    house.kubectl("create", "configmap", "before-the-snapshot", "-n", "default")
    house.bed.ssh("/usr/local/bin/k3s etcd-snapshot save --name topology")
    house.kubectl("create", "configmap", "after-the-snapshot", "-n", "default")
    there = house.bed.ssh("ls /var/lib/rancher/k3s/server/db/snapshots/topology-*").split()[0]
    # What docs/cluster.md says to keep elsewhere: a snapshot, and the token without which it cannot be read.
    token = house.bed.ssh("cat /var/lib/rancher/k3s/server/token").strip().rpartition(":")[2]
    kept = tmp_path / "snapshot"
    kept.write_bytes(base64.b64decode(house.bed.ssh(f"base64 {there}")))
    for host in ("h1", "h2"):
        house.bed.call("power-off", host)
    with pytest.raises(AssertionError, match="no write went through"):
        api_answers(house, "h3", 8)
    for host in ("h1", "h2"):
        house.bed.call("renew", host)
    # The token was rotated after the snapshot, and this server has the newer one.
    house.bed.ssh("sed -i 's/::server:.*/::server:of-a-later-time/' /var/lib/rancher/k3s/server/token", "h3")
    inventory = house.inventory(["h1", "h2", "h3"], ["h4"], k3s_datastore="etcd", k3s_token=token)
    began = time.monotonic()
    run = passed(restored(inventory, kept))
    note("restored-to-new-hosts", seconds=round(time.monotonic() - began))
    assert token not in run.output
    found = house.kubectl("get", "configmaps", "-n", "default", "-o", "name")
    assert "before-the-snapshot" in found and "after-the-snapshot" not in found
    assert "hearth_gateway-data were on a disk that is gone, and are empty now" in " ".join(run.output.split()), run.output[-3000:]
    until_back(house, "h1")
    assert streamed(passed(house.site(["h1", "h2", "h3"], ["h4"], "--tags", "gateway", k3s_datastore="etcd", k3s_token=token)))
    assert volumes_of(house, "h1") == ["gateway-data"]


# --- upgraded


@pytest.fixture(scope="module")
def shared_store(house: House) -> Iterator[dict[str, Any]]:
    """What an inventory says for two replicas of the gateway on one PostgreSQL, which runs on this machine."""
    server = Server(house.bed.address_of_this_machine())
    yield {"gateway_replicas": 2, "gateway_database_url": server.database().url, "gateway_database_password": PASSWORD,
           "k3s_datastore": "etcd"}
    server.stop()


def test_two_replicas_on_postgresql_run_on_two_nodes(house: House, shared_store: dict[str, Any]) -> None:
    run = passed(house.site(["h1", "h2", "h3"], ["h4"], "--tags", "gateway", **shared_store))
    assert streamed(run)
    pods = json.loads(house.kubectl("get", "pods", "-n", "hearth", "-l", "app.kubernetes.io/name=gateway", "-o", "json"))["items"]
    staying = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    assert len({pod["spec"]["nodeName"] for pod in staying}) == len(staying) == 2


def test_an_upgrade_under_streams_goes_host_by_host_and_says_before_what_it_will_do(house: House, shared_store: dict[str, Any]) -> None:
    known = house.bed.described["k3s"]
    newer = max(known["versions"])
    if newer == known["version"]:
        pytest.fail("this bed has one version of k3s only, so there is nothing to upgrade to")
    wanted = shared_store | {"k3s_version": newer, "k3s_sha256": known["versions"][newer]["sha256"]}
    inventory = house.inventory(["h1", "h2", "h3"], ["h4"], **wanted)
    before = {host: house.uptime_of_k3s(host) for host in HOSTS}
    plan = passed(play("playbooks/upgrade.yml", inventory, "--check"))
    assert f"h1 (server): {known['version']} to {newer}" in " ".join(plan.output.split()), plan.output[-3000:]
    assert {host: house.uptime_of_k3s(host) for host in HOSTS} == before
    with streams(house, "h4", words=150, again=True) as running:
        run = play("playbooks/upgrade.yml", inventory, timeout_s=1200)
        house.bed.ssh(f"touch {ENOUGH}", "h4")
        assert running.stdout is not None
        result = json.loads(running.stdout.read())
    lost = [stream for stream in result["streams"] if stream["error"] or not stream["done"]]
    failures = {name: probe["failures"] for name, probe in result["probes"].items()}
    note("upgrade-of-four", seconds=round(run.took_s), streams=len(result["streams"]), lost=lost,
         requests=sum(probe["sent"] for probe in result["probes"].values()), failures=failures,
         slowest_ms=max(probe["slowest_ms"] for probe in result["probes"].values()))  # fmt: skip
    passed(run)
    for name, node in house.nodes().items():
        assert node["status"]["nodeInfo"]["kubeletVersion"] == newer, name
        assert not node["spec"].get("unschedulable"), name
    started = [int(house.uptime_of_k3s(host).split("ActiveEnterTimestampMonotonic=")[1].split()[0]) for host in ("h1", "h2", "h3")]
    assert started == sorted(started), "one server after another"
    assert lost == []
    assert {name: found for name, found in failures.items() if found} == {}
    again = passed(play("playbooks/upgrade.yml", inventory))
    assert again.count("changed") == 0, again.output[-6000:]


# --- as a cluster that is there already


def test_the_gateway_comes_into_a_cluster_that_is_there_already(house: House, tmp_path: Path) -> None:
    """By the example inventory: only the API is used, no host is touched."""
    image = house.kubectl("get", "deployment", "gateway", "-n", "hearth", "-o", "jsonpath={.spec.template.spec.containers[0].image}")
    house.kubectl("delete", "namespace", "hearth")
    before = {host: house.uptime_of_k3s(host) for host in HOSTS}
    folder = tmp_path / "existing_cluster"
    shutil.copytree(ROOT / "inventories/existing_cluster", folder)
    hosts = yaml.safe_load((folder / "hosts.yml").read_text())
    given = house.bed.variables()
    hosts["servers"]["vars"] = {"k3s_kubeconfig": given["k3s_kubeconfig"], "gateway_storage_class": "local-path", "gateway_image": image}
    (folder / "hosts.yml").write_text(yaml.safe_dump(hosts))
    vendor = {name: given[name] for name in ("gateway_anthropic_base_url", "gateway_anthropic_api_key", "gateway_ca_pem")}
    run = passed(play("site.yml", folder, "-e", json.dumps(vendor)))
    assert streamed(run)
    assert {host: house.uptime_of_k3s(host) for host in HOSTS} == before
    again = passed(play("site.yml", folder, "-e", json.dumps(vendor)))
    assert again.count("changed") == 0, again.output[-6000:]
