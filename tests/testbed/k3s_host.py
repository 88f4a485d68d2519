"""A bed with k3s on its hosts, installed by hand: what the tests of the stand-in share."""

from __future__ import annotations

import base64
import contextlib
import json
import shlex
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster.support import REPORTS, Bed, collect

DATA = "/var/lib/rancher/k3s"
CONFIG = "/etc/rancher/k3s/config.yaml"
BUSYBOX = "docker.io/rancher/mirrored-library-busybox:bed"
PARTS = r"/bin/(node|kine|containerd|kube[a-z-]*)( |$)|^kube[a-z-]* "

# The installer's unit, as far as it matters here.
UNIT = """\
[Unit]
Wants=network-online.target
After=network-online.target
[Service]
Type=notify
KillMode=process
Delegate=yes
LimitNOFILE=1048576
LimitNPROC=infinity
LimitCORE=infinity
TasksMax=infinity
TimeoutStartSec=0
Restart=always
RestartSec=5s
ExecStart=/usr/local/bin/k3s %s
[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True)
class Node(Bed):
    """One host with k3s on it, a server or an agent."""

    host: str = "h1"
    role: str = "server"

    @property
    def unit(self) -> str:
        return "k3s" if self.role == "server" else "k3s-agent"

    @property
    def env(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.state / "env.json").read_text())
        return loaded

    @property
    def address(self) -> str:
        return str(self.env["hosts"][self.host]["address"])

    @property
    def is_standin(self) -> bool:
        return bool(self.env["k3s"]["stand_in"])

    def binary(self, version: str) -> Path:
        return Path(self.env["builds"]["releases"]) / version / "k3s"

    def run(self, command: str, check: bool = True, stdin: str = "", timeout_s: float = 120) -> str:
        return self.ssh(command, self.host, check, stdin, timeout_s)

    def install(self, version: str = "v1.36.3+k3s1") -> None:
        """Program, links and unit, as k3s's installer leaves them; nothing is started."""
        self.copy(self.binary(version), "/usr/local/bin/k3s")
        self.put(f"/etc/systemd/system/{self.unit}.service", UNIT % self.role, "644")
        self.run(f"cd /usr/local/bin && ln -sf k3s kubectl && ln -sf k3s ctr && systemctl daemon-reload && systemctl enable -q {self.unit}")

    def copy(self, source: Path, target: str) -> None:
        """Copy to the host under another name, then rename: a file that runs cannot be overwritten."""
        subprocess.run(["scp", "-q", "-F", str(self.state / "ssh_config"), str(source), f"{self.host}:{target}.new"], check=True)
        self.run(f"mv {target}.new {target}")

    def put(self, path: str, content: str, mode: str = "600") -> None:
        quoted = shlex.quote(path)
        self.run(
            f"mkdir -p $(dirname {quoted}) && cat >{quoted}.new && chmod {mode} {quoted}.new && mv {quoted}.new {quoted}", stdin=content
        )

    def fetch(self, path: str) -> bytes:
        return subprocess.run(
            ["ssh", "-F", str(self.state / "ssh_config"), self.host, f"cat {path}"], capture_output=True, check=True
        ).stdout

    def start(self, action: str = "restart") -> None:
        self.run(f"systemctl {action} {self.unit}", timeout_s=180)

    def is_active(self) -> str:
        return self.run(f"systemctl is-active {self.unit}", check=False).strip()

    def wait_ready(self) -> None:
        """The node is Ready and CoreDNS runs. Of a server."""
        self.run(
            f"k3s kubectl wait --for=create node/{self.host} --timeout=60s && "
            f"k3s kubectl wait --for=condition=Ready node/{self.host} --timeout=60s && "
            "k3s kubectl rollout status -n kube-system deploy/coredns --timeout=90s",
            timeout_s=240,
        )

    def journal(self) -> str:
        """What the unit said since its last start."""
        return self.run(f"journalctl -u {self.unit} -o cat --no-pager _SYSTEMD_INVOCATION_ID=$(systemctl show -P InvocationID {self.unit})")

    def get(self, kind: str, name: str, namespace: str = "default") -> dict[str, Any] | None:
        text = self.run(f"k3s kubectl get {kind} {name} -n {namespace} -o json --ignore-not-found")
        return json.loads(text) if text.strip() else None

    def running(self) -> list[str]:
        """Every process of the containers, as `pid starttime`; equal lists mean that nothing restarted."""
        return self.run(
            "for p in $(k3s ctr tasks ls -q 2>/dev/null | sort | xargs -rn1 k3s ctr tasks ps 2>/dev/null"
            " | awk '$1+0{print $1}'); do echo $p $(cut -d' ' -f22 /proc/$p/stat); done"
        ).split("\n")

    def containers(self) -> list[str]:
        return sorted(self.run("k3s ctr containers ls -q 2>/dev/null").split())

    def images(self) -> str:
        return self.run("k3s ctr images ls 2>/dev/null")

    def remove(self) -> None:
        self.run(REMOVE.replace("UNIT", self.unit), timeout_s=120)

    def leftovers(self) -> str:
        """What of k3s still runs, is mounted or lies where `observe` does not look."""
        return "".join(
            self.run(command, check=False)
            for command in (
                "ls -d /sys/fs/cgroup/*/k8s.io /sys/fs/cgroup/*/kubepods /run/netns/cni-* /run/k3s /run/containerd 2>/dev/null",
                "pgrep -af 'containerd|kube|kine'",
                "mount | grep -E 'k3s|kubelet|cni'",
            )
        ).strip()


def wait(seconds: float, what: str, check: Callable[[], Any]) -> Any:
    """Poll until `check` gives something true; fail with `what` when it does not in time."""
    end = time.monotonic() + seconds
    while True:
        if found := check():
            return found
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.5)


EVERYWHERE = f"""\
apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: web}}
spec:
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
        - name: web
          image: {BUSYBOX}
          command: [sh, -c, 'echo on $NODE >/tmp/node; exec httpd -f -v -p 8080 -h /tmp']
          env: [{{name: NODE, valueFrom: {{fieldRef: {{fieldPath: spec.nodeName}}}}}}]
          envFrom: [{{secretRef: {{name: of-web}}}}]
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{selector: {{app: web}}, ports: [{{port: 80, targetPort: 8080}}]}}
"""


class Cluster:
    """Four hosts of one bed: h1 is a server, h4 an agent, h2 and h3 what the tests want."""

    def __init__(self, bed: str, others: str) -> None:
        self.server = Node(bed, "h1", "server")
        self.second, self.third = (Node(bed, host, others) for host in ("h2", "h3"))
        self.agent = Node(bed, "h4", "agent")
        self.before: dict[str, Any] = {}

    @contextlib.contextmanager
    def up(self) -> Iterator[Cluster]:
        """The bed with k3s installed and not started, for the block."""
        bed = self.server
        bed.call("down", check=False)
        bed.call("up", "-n", "4", "--with", "services", timeout_s=1500)
        try:
            self.before.update(self.agent.observe("files", "h4"))
            for node in (self.server, self.second, self.third, self.agent):
                node.install()
            yield self
        finally:
            collect(bed, bed.name)
            for node in (self.second, self.third, self.agent):
                log = REPORTS / f"{bed.name}-{bed.name}" / f"{node.host}.log"
                with contextlib.suppress(subprocess.TimeoutExpired):  # it may be without power
                    log.write_text(node.run("journalctl --no-pager -u k3s -u k3s-agent", check=False, timeout_s=20))
            bed.call("down")

    @property
    def url(self) -> str:
        return f"https://{self.server.address}:6443"

    def kubectl(self, command: str, stdin: str = "") -> str:
        return self.server.run(f"k3s kubectl {command}", stdin=stdin)

    def web(self) -> dict[str, dict[str, str]]:
        """Name and address of the DaemonSet's pod on each node."""
        pods = json.loads(self.kubectl("get pods -l app=web -o json"))["items"]
        return {pod["spec"]["nodeName"]: {"name": pod["metadata"]["name"], "ip": pod["status"]["podIP"]} for pod in pods}

    def is_there(self, node: str) -> bool:
        return self.kubectl(f"get node {node} --ignore-not-found -o name") != ""

    def ask(
        self, path: str, user: str = "", secret: str = "", data: bytes | None = None, on: Node | None = None, **headers: str
    ) -> tuple[int, str]:
        """A request to port 6443 of the first server, or another, as anybody can send it: status and body."""
        request = urllib.request.Request(f"https://{(on or self.server).address}:6443{path}", data=data)
        if user:
            request.add_header("Authorization", "Basic " + base64.b64encode(f"{user}:{secret}".encode()).decode())
        for name, value in headers.items():
            request.add_header(name.replace("_", "-"), value)
        anyone = ssl.create_default_context()
        anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
        try:
            with urllib.request.urlopen(request, context=anyone, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read().decode()


def agent_config(server: str, token: str, *more: str) -> str:
    return "".join(f"{line}\n" for line in (f"server: {server}", f"token: {token}", *more))


def said_by(node: Node, command: str, seconds: int = 6) -> str:
    """What a k3s that never gives up says in its first seconds."""
    return node.run(f"timeout {seconds} k3s {command} 2>&1; echo exit $?", check=False)


# What the killall and uninstall scripts of k3s do (contract §1), and the lines marked ● in the stand-in's README.
REMOVE = r"""
set -u
D=/var/lib/rancher/k3s
PATH=$PATH:$D/data/current/bin/aux
systemctl disable -q --now UNIT
tree() { for p in "$@"; do echo "$p"; tree $(cat /proc/"$p"/task/*/children 2>/dev/null); done; }
kill -9 $(tree $(pgrep -f "^$D/data/[^/]*/bin/containerd-shim"))
sleep 1
for base in /run/k3s /var/lib/kubelet/pods /var/lib/kubelet/plugins /run/netns/cni-; do
  awk -v b=$base 'index($2,b)==1{print $2}' /proc/self/mounts | sort -r | while read -r m; do umount -f "$m"; rm -rf "$m"; done
done
ip -o link show master cni0 | awk -F': ' '{sub(/@.*/,"",$2); print $2}' | xargs -r -n1 ip link delete
ip link delete cni0
ip link delete flannel.1
for tool in iptables ip6tables; do $tool-save | grep -vi -e KUBE- -e CNI- -e flannel | $tool-restore; done
for family in ip ip6; do
  for table in kube-proxy filter nat mangle; do nft delete table $family $table 2>/dev/null; done
done
rm -rf /root/.kube  # the cache of the kubectl in these tests
rm -rf /etc/rancher /etc/cni /var/lib/cni /run/k3s /run/containerd "$D" /var/log/pods /var/log/containers /root/admin.yaml
rm -rf /var/lib/kubelet/*
rmdir /var/lib/kubelet /var/lib/rancher 2>/dev/null  # not where they are mount points
rm -f /usr/local/bin/k3s /usr/local/bin/kubectl /usr/local/bin/ctr /etc/systemd/system/UNIT.service
systemctl daemon-reload
for group in /sys/fs/cgroup/*/k8s.io; do find "$group" -depth -type d -exec rmdir {} \; ; done
"""
