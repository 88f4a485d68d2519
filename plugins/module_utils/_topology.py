# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Who of the inventory's hosts is what in the cluster. Pure: what was seen of the hosts in, plain data out.

One server founds the cluster, all others join it. The danger is a second cluster: a k3s server that is told of no other
one starts its own, without a word. So a host founds only where nobody who was looked at has data of a cluster, and
everybody who could have them was looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ansible_collections.homelab.hearth.plugins.module_utils import _k3s
from ansible_collections.homelab.hearth.plugins.module_utils._problem import Problem, problem

SERVER_COUNTS = (1, 3, 5)

# What must be the same on all servers, or a joining one exits with `critical configuration value mismatch`.
CRITICAL_KEYS = (
    "cluster-cidr", "cluster-dns", "cluster-domain", "service-cidr", "disable-cloud-controller", "disable-helm-controller",
    "disable-kube-proxy", "disable-network-policy", "egress-selector-mode", "embedded-registry", "flannel-backend",
    "flannel-external-ip", "flannel-ipv6-masq", "secrets-encryption", "secrets-encryption-provider",
)  # fmt: skip

# What k3s reads once, when the host first starts, and why a later change does harm.
FIXED_KEYS = {
    "cluster-cidr": "the pods have their addresses from it",
    "cluster-dns": "the Service of the cluster's DNS has this address",
    "cluster-domain": "it stands in certificates and in the configuration of every pod",
    "data-dir": "the cluster's data lie there, and k3s would begin with an empty one",
    "flannel-backend": "the network of all pods hangs on it; another one means a move that k3s does not make by itself",
    "node-name": "the node would register a second time and leave the old one behind",
    "secrets-encryption": "k3s encrypts Secrets from the first start on or never",
    "secrets-encryption-provider": "the Secrets that are there were encrypted by the other one",
    "service-cidr": "the Services have their addresses from it",
}
# What k3s does where a key is not given: leaving it out and giving this is the same.
DEFAULTS: dict[str, Any] = {
    "cluster-cidr": "10.42.0.0/16",
    "cluster-dns": "10.43.0.10",
    "cluster-domain": "cluster.local",
    "data-dir": "/var/lib/rancher/k3s",
    "flannel-backend": "vxlan",
    "secrets-encryption": False,
    "secrets-encryption-provider": "aescbc",
    "service-cidr": "10.43.0.0/16",
}


@dataclass(frozen=True)
class Member:
    """One host of the inventory, as far as the others have to know it.

    address: at which other hosts reach it. seen: whether this run looked at it; k3s: what it saw (`host_survey`, part k3s).
    """

    name: str
    address: str
    seen: bool = False
    k3s: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_data(self) -> bool:
        return bool(self.k3s.get("datastore"))


def server_url(address: str, port: int) -> str:
    return str(_k3s.api_url(address, port))


def _with_data(servers: Iterable[Member]) -> list[Member]:
    return [member for member in servers if member.has_data]


def _candidates(host: str, servers: Sequence[Member], registration: str, port: int) -> list[dict[str, str]]:
    """Where a joiner may ask, the most promising first: the address that was given, servers that run, all others."""
    others = [member for member in servers if member.name != host]
    others.sort(key=lambda member: (not (member.has_data and member.k3s.get("active")), not member.has_data))
    given = [{"name": "", "url": server_url(registration, port)}] if registration else []
    return given + [{"name": member.name, "url": server_url(member.address, port)} for member in others]


def founds(host: str, servers: Sequence[Member]) -> bool:
    """Whether this server is the one that begins the cluster, or began it, as opposed to one that joins."""
    me = next(member for member in servers if member.name == host)
    others = [member for member in _with_data(servers) if member.name != host]
    if len(servers) == 1:
        return True
    if me.has_data and me.k3s.get("config"):
        # It stays what it is: with data, k3s asks for neither, and another text would only cost a restart.
        return "server" not in me.k3s["config"]
    return not others and (me.has_data or host == servers[0].name)


def _asleep(servers: Sequence[Member]) -> bool:
    """Whether too few servers run for etcd to answer: then they are started together, as one alone would wait for ever."""
    with_data = [member for member in _with_data(servers) if member.k3s["datastore"] == "etcd"]
    running = [member for member in with_data if member.k3s.get("active")]
    return len(with_data) > 1 and len(running) <= len(with_data) // 2


def member_of(variables: Mapping[str, Any]) -> Member:
    """A host from its variables: those of the inventory, and what preflight registered."""
    name = variables["inventory_hostname"]
    survey = (variables.get("_preflight_survey") or {}).get("survey") or {}
    addresses = variables.get("k3s_node_ips") or []
    address = str(addresses[0] if addresses else variables.get("ansible_host") or name)
    return Member(name, address, "k3s" in survey, survey.get("k3s") or {})


def place(
    host: str,
    seen: Mapping[str, Any],
    servers: Sequence[Member],
    *,
    agent: bool = False,
    registration: str = "",
    port: int = 6443,
    datastore: str = "",
) -> dict[str, Any]:
    """What a host is in the cluster. seen: what was seen of it just now (`host_survey`, part k3s).

    Returns
        founds      it begins the cluster (or did), and names no other server in its configuration
        etcd        the cluster's data are in etcd, not in SQLite (of a server)
        joined      it is part of the cluster already
        server      https address it was told when it joined, empty when one has to be found
        candidates  where to ask: {name of the host, url}, the name is empty for the address that was given
        together    it is started without waiting, because etcd needs more than one; the last one waits for all
    """
    servers = [replace(member, seen=True, k3s=seen) if member.name == host else member for member in servers]
    candidates = _candidates(host, servers, registration, port)
    begins = not agent and founds(host, servers)
    known = {entry["url"] for entry in candidates}
    told = str((seen.get("config") or {}).get("server", ""))
    if registration:
        known = {candidates[0]["url"]}
    joined = bool(seen.get("joined"))
    asleep = not agent and _asleep(servers)
    last = _with_data(servers)[-1].name if asleep else ""
    return {
        "founds": begins,
        "etcd": not agent and (len(servers) > 1 or datastore == "etcd" or seen.get("datastore") == "etcd"),
        "joined": joined,
        # An agent whose server has died knows the others from its own records; one that does not run asks anew.
        "server": told if not begins and joined and told in known and (seen.get("active") or not agent) else "",
        "candidates": [] if begins else candidates,
        "together": asleep and host != last,
    }


# -- what stands in the way ---------------------------------------------------------------------------------------


def group_problems(servers: Sequence[str], agents: Sequence[str]) -> list[Problem]:
    """What is wrong with the groups of the inventory, before any host is asked."""
    found = []
    if servers and len(servers) % 2 == 0:
        found.append(
            problem(
                "inventory",
                f"{len(servers)} servers: etcd needs more than half of them, so an even number stands no more failures than one server "
                "less",
                "list 1, 3 or 5 hosts under `servers`",
            )
        )
    elif len(servers) > max(SERVER_COUNTS):
        found.append(
            problem(
                "inventory",
                f"{len(servers)} servers: every write waits for more than half of them, so it gets slower and no safer",
                "list 1, 3 or 5 hosts under `servers`, and the others under `agents`",
            )
        )
    if agents and not servers:
        found.append(problem("inventory", "agents without a server", "list one host under `servers`"))
    for host in [name for name in servers if name in agents]:
        found.append(problem(host, "it stands under `servers` and under `agents`", "leave it in one of them; a server runs pods too"))
    return found


def founding_problems(servers: Sequence[Member], datastore: str = "") -> list[Problem]:
    """Why the cluster cannot be begun or go on as the inventory says."""
    found = []
    first = servers[0] if servers else None
    with_data = _with_data(servers)
    unseen = [member.name for member in servers if not member.seen]
    if first and first.seen and not with_data and unseen:
        found.append(
            problem(
                first.name,
                f"no host of this run has data of a cluster, and {', '.join(unseen)} {'were' if len(unseen) > 1 else 'was'} not looked at: "
                "it could begin a second cluster",
                "run it without --limit",
            )
        )
    sqlite = [member for member in with_data if member.k3s["datastore"] == "sqlite"]
    for member in sqlite:
        if len(servers) > 1 and datastore != "etcd":
            found.append(
                problem(
                    member.name,
                    "its data are in SQLite, which one server alone can use, and the inventory has more servers",
                    "copy server/db in the data directory, then set k3s_datastore: etcd: k3s moves its data to etcd, and there is no way "
                    "back",
                )
            )
        elif len(with_data) > 1:
            found.append(
                problem(
                    member.name,
                    "it has data of a cluster of its own in SQLite, beside the cluster of the other servers",
                    "take k3s off it first: playbooks/reset.yml with --limit",
                )
            )
    if datastore == "sqlite":
        found += [
            problem(member.name, "its data are in etcd, and k3s cannot go back to SQLite", "remove k3s_datastore from the inventory")
            for member in with_data
            if member.k3s["datastore"] == "etcd"
        ]
        if len(servers) > 1:
            found.append(problem("inventory", "several servers cannot share SQLite", "remove k3s_datastore from the inventory"))
    return found


def one_cluster_problems(members: Iterable[Member]) -> list[Problem]:
    """Hosts that belong to another cluster than the first one: they trust another authority."""
    authorities: dict[str, list[str]] = {}
    for member in members:
        authority = member.k3s.get("ca_sha256")
        if authority:
            authorities.setdefault(authority, []).append(member.name)
    if len(authorities) < 2:
        return []
    [mine, *others] = authorities.values()
    return [
        problem(
            name,
            f"it belongs to another cluster than {', '.join(mine)}: their certificates come from different authorities",
            "decide which one to keep, and take k3s off the others first: playbooks/reset.yml with --limit",
        )
        for names in others
        for name in names
    ]


def equal_problems(configs: Mapping[str, Mapping[str, Any]], tokens: Mapping[str, Sequence[str]] | None = None) -> list[Problem]:
    """Servers whose settings differ from the first server's in what must be equal on all of them.

    configs: host -> its full configuration. tokens: host -> fingerprints of what must be equal and may not be shown.
    """
    found: list[Problem] = []
    if not configs:
        return found
    first = next(iter(configs))
    for host in configs:
        for key in CRITICAL_KEYS:
            one, other = (configs[name].get(key, DEFAULTS.get(key)) for name in (first, host))
            if _flat(one) != _flat(other):
                found.append(
                    problem(host, f"{key} is {_shown(other)} here and {_shown(one)} on {first}", "give it once, to the group `servers`")
                )
        disabled = ["servicelb" in _flat(configs[name].get("disable", [])) for name in (first, host)]
        if disabled[0] != disabled[1]:
            found.append(problem(host, f"servicelb is disabled on one of this host and {first}", "give it once, to the group `servers`"))
    for host, prints in (tokens or {}).items():
        if list(prints) != list((tokens or {})[first]):
            found.append(
                problem(host, f"k3s_token or k3s_agent_token is another one than on {first}", "give them once, to the group `k3s_cluster`")
            )
    return found


def _flat(value: Any) -> Any:
    """A list and the same as text with commas are one value to k3s."""
    if isinstance(value, str):
        value = value.split(",")
    return sorted(str(item).strip() for item in value) if isinstance(value, list) else value


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(value) if isinstance(value, list) else str(value)


def fixed_problems(host: str, before: Mapping[str, Any], wanted: Mapping[str, Any], node_name: str) -> list[Problem]:
    """What the inventory wants changed, and k3s cannot.

    before: the configuration that lies on the host; empty where it has none, or none of ours.
    node_name: name that the host has without `node-name` in its configuration.
    """
    if not before:
        return []
    defaults = {**DEFAULTS, "node-name": node_name}
    found = []
    for key, why in FIXED_KEYS.items():
        old, new = before.get(key, defaults.get(key)), wanted.get(key, defaults.get(key))
        if _flat(old) == _flat(new):
            continue
        found.append(
            problem(
                host,
                f"{key} cannot be changed from {_shown(old)} to {_shown(new)}: {why}",
                f"set it back; to have it otherwise, {_way_out(key)}",
            )
        )
    return found


def _way_out(key: str) -> str:
    if key in ("node-name", "data-dir"):
        return "remove the node (playbooks/remove_node.yml -e node=…) and run this again"
    return "build the cluster anew (playbooks/reset.yml) and restore what you need"


def version_problems(versions: Mapping[str, str], agents: Iterable[str]) -> list[Problem]:
    """Versions that may not run beside each other: servers of several, or an agent newer than the servers."""
    found = []
    names = set(agents)
    servers = {host: version for host, version in versions.items() if host not in names}
    wanted = set(servers.values())
    if len(wanted) > 1:
        found.append(
            problem(
                "inventory",
                f"the servers shall run different versions ({', '.join(sorted(wanted, key=_k3s.version_tuple))})",
                "give k3s_version once, to the group `k3s_cluster`",
            )
        )
    oldest = min(servers.values(), key=_k3s.version_tuple, default="")
    for host in versions:
        if host in names and oldest and _k3s.version_tuple(versions[host]) > _k3s.version_tuple(oldest):
            found.append(problem(host, f"an agent of {versions[host]} is newer than the servers ({oldest})", "upgrade the servers first"))
    return found


def upgrade_plan(rows: Sequence[tuple[str, bool, str, str]]) -> list[str]:
    """What an upgrade does, a line a step, in its order. rows: host, whether it is a server, version it has, version it gets."""
    several = len(rows) > 1
    steps = []
    for host, server, installed, wanted in rows:
        if installed == wanted:
            steps.append(f"{host}: has {wanted}; nothing to do")
        elif not installed:
            steps.append(f"{host}: gets k3s {wanted} and joins the cluster" if several else f"{host}: gets k3s {wanted}")
        else:
            kind = "server" if server else "agent"
            emptied = "its pods go elsewhere, then " if several else "pods go on while "
            healthy = "; the next one waits until API, node and etcd are healthy" if server and several else ""
            steps.append(f"{host} ({kind}): {installed} to {wanted}: {emptied}k3s restarts{healthy}")
    if any(installed not in ("", wanted) for _host, server, installed, wanted in rows if server):
        steps.insert(0, "before anything else: a snapshot of the data on the first server")
    return steps


# -- taking a node away -----------------------------------------------------------------------------------------------


def removal_refusal(node: str, servers: Mapping[str, bool], *, forced: bool = False) -> str:
    """Why a node may not be removed, in one sentence with its fix; empty when it may.

    servers: name of each server's node -> whether it is Ready and votes. A node that is none of them is an agent.
    """
    if node not in servers:
        return ""
    rest = {name: healthy for name, healthy in servers.items() if name != node}
    if not rest:
        return f"node {node} is the only server: without it there is no cluster. To take everything away, run playbooks/reset.yml"
    healthy = sum(rest.values())
    if healthy <= len(rest) // 2:
        sick = ", ".join(name for name, good in rest.items() if not good)
        return (
            f"without {node} only {healthy} of {len(rest)} servers would be healthy, and etcd needs more than half. "
            f"Bring back {sick} first, or remove it instead"
        )
    if len(rest) % 2 == 0 and servers[node] and not forced:
        return (
            f"node {node} is healthy, and {len(rest)} servers stand no more failures than {len(rest) - 1}. Add its successor first, "
            "or say that you mean it: -e remove_node_forced=true"
        )
    return ""
