"""The k3s stand-in against the k3s contract, point by point, on one host of the bed, installed by hand.

The host goes through its tests in order: a first start, life, a restart with another configuration, an upgrade,
a power cut, a removal. With HEARTH_BED_K3S=/path/to/k3s the same points run on the real binary; what only a
stand-in says about itself is then left out.
"""

from __future__ import annotations

import base64
import gzip
import http.client
import io
import json
import re
import socket
import ssl
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from plugins.module_utils._k3s import AGENT_KEYS, SERVER_KEYS
from tests.cluster.observe import differences
from tests.cluster.support import ROOT, collect
from tests.testbed.k3s_host import BUSYBOX, CONFIG, DATA, PARTS, Node, wait

pytestmark = pytest.mark.timeout(900)

TOKEN = "a b%c$d:e-0001"  # made for this test; the characters are those that roles got wrong

FIRST_CONFIG = """\
token-file: /etc/rancher/k3s/token
write-kubeconfig-mode: "0640"
tls-san: [api.bed.test]
node-label: [bed.test/main=first]
disable: [metrics-server, traefik]
disable-network-policy: true
secrets-encryption: true
embedded-registry: true
tokn: misspelt
"""

WEB = """\
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
        - name: web
          image: IMAGE
          command: [sh, -c, "echo started; while true; do nc -l -p 8080 -e /bin/sh /etc/web/answer; done"]
          volumeMounts: [{name: data, mountPath: /data}, {name: answer, mountPath: /etc/web}]
      volumes:
        - {name: data, persistentVolumeClaim: {claimName: data}}
        - {name: answer, configMap: {name: answer}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: answer}
data:
  answer: |
    while read -r line && [ ${#line} -gt 1 ]; do :; done
    printf 'HTTP/1.1 200 OK\\r\\nContent-Type: text/event-stream\\r\\nConnection: close\\r\\n\\r\\n'
    for i in 1 2 3 4; do echo "line $i"; sleep 0.5; done
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
""".replace("IMAGE", BUSYBOX)

CUSTOM_DNS = """\
apiVersion: v1
kind: ConfigMap
metadata: {name: coredns-custom, namespace: kube-system}
data:
  bed.server: |
    bed.test:53 {
      hosts {
        192.0.2.77 x.bed.test
      }
    }
"""


@pytest.fixture(scope="module")
def before() -> dict[str, Any]:
    """What the host looked like before anything was installed; filled by the fixture `k3s`."""
    return {}


@pytest.fixture(scope="module")
def k3s(before: dict[str, Any]) -> Iterator[Node]:
    bed = Node("standin")
    bed.call("down", check=False)
    bed.call("up", "-n", "1", "--with", "services", timeout_s=1500)
    try:
        before.update(bed.observe("files"))
        bed.install()
        yield bed
    finally:
        collect(bed, "standin")
        bed.call("down")


def test_go_unit_tests() -> None:
    """S3 S4 S7 S20 S21: the tables of configuration, tokens, manifests and images, and the file format."""
    done = subprocess.run(
        ["go", "test", "-trimpath", "./cmd/k3s/...", "./cmd/k3spack/..."],
        cwd=ROOT / "tests/testbed/go",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_s3_the_role_and_the_standin_know_the_same_keys() -> None:
    """S3 S4: every key that the role lets through is known to the stand-in, for the same kind of node and with the same type."""
    kinds = {"bool": "b", "number": "i", "list": "l", "text": "s"}
    known: dict[str, dict[str, str]] = {"server": {}, "agent": {}}
    table = (ROOT / "tests/testbed/go/cmd/k3s/flags.go").read_text().split("keyTable = `")[1].split("`")[0]
    for line in table.split("\n"):
        if line:
            who, kind, _, *cells = line.split()
            for role in ("server", "agent") if who == "both" else (who,):
                known[role] |= {cell.split("|")[0]: kinds[kind] for cell in cells}
    for role, keys in (("server", SERVER_KEYS), ("agent", AGENT_KEYS)):
        ours = {key: kind.replace("d", "s") for key, kind in keys.items()}  # k3s reads a duration from text
        assert ours.items() <= known[role].items(), sorted(ours.items() - known[role].items())


def test_s1_version(k3s: Node) -> None:
    """S1: the two-line form, `standin` in the bracket, a third line naming itself; two builds."""
    lines = k3s.run("k3s --version").splitlines()
    assert re.fullmatch(r"k3s version v1\.36\.3\+k3s1 \(\w+\)", lines[0])
    assert re.fullmatch(r"go version go1\.\S+", lines[1])
    if k3s.is_standin:
        assert lines[0].endswith("(standin)")
        assert "stand-in" in lines[2]
    second = subprocess.run([k3s.binary("v1.36.3+k3s2"), "--version"], capture_output=True, text=True, check=True).stdout
    assert second.split()[2] == "v1.36.3+k3s2"


def test_s4_an_agent_dies_of_an_unknown_key(k3s: Node) -> None:
    """S4 S2: agent: `flag provided but not defined`, exit 1; broken YAML: exit 1; no half start in either case."""
    k3s.put("/root/agent.yaml", "server: https://192.0.2.1:6443\ntoken: x\nflannel-backend: none\n")
    k3s.put("/root/broken.yaml", "server: [\n")
    for command, text in {
        "agent --config /root/agent.yaml": "flag provided but not defined: -flannel-backend",
        "server --config /root/broken.yaml": "yaml:",
        "server --no-such-flag": "flag provided but not defined: -no-such-flag",
    }.items():
        said = k3s.run(f"timeout 20 k3s {command} 2>&1; echo exit $?", check=False)
        assert text in said
        assert "exit 1" in said
    assert k3s.run("rm /root/agent.yaml /root/broken.yaml; find /var/lib/rancher /etc/rancher -type f 2>/dev/null; true").strip() == ""


def test_s2_commands_it_does_not_have_say_so(k3s: Node) -> None:
    """S2: one file, many commands; a command that is not there dies naming the stand-in."""
    if not k3s.is_standin:
        pytest.skip("only the stand-in lacks commands")
    for command in (
        "crictl ps",
        "check-config",
        "secrets-encrypt prepare",
        "certificate rotate-ca",
        "server --docker",
    ):
        said = k3s.run(f"timeout 20 k3s {command} 2>&1; echo exit $?", check=False)
        assert "stand-in" in said, command
        assert "exit 1" in said, command


def test_s7_a_token_file_is_waited_for(k3s: Node) -> None:
    """S7 S11: without its token file the server waits and the unit is not active; nothing is made meanwhile."""
    k3s.put(CONFIG, FIRST_CONFIG)
    k3s.put(f"{CONFIG}.d/10-more.yaml", "node-label+: [bed.test/more=second]\n")
    k3s.run("systemctl start --no-block k3s")
    wait(20, "the wait is logged", lambda: "Waiting for /etc/rancher/k3s/token to be available" in k3s.journal())
    assert k3s.is_active() == "activating"
    assert k3s.run("ls /etc/rancher/k3s").split() == ["config.yaml", "config.yaml.d"]


def test_s11_active_means_that_the_api_is_ready(k3s: Node) -> None:
    """S11 S6: at the moment the unit turns active /readyz says ok; the kubeconfig was there before."""
    k3s.put("/etc/rancher/k3s/token", f"\n  {TOKEN}\n\n")
    said = k3s.run(
        """
        early=no
        for i in $(seq 900); do
          state=$(systemctl is-active k3s)
          [ $state = activating ] || break
          [ ! -s /etc/rancher/k3s/k3s.yaml ] || early=yes
          sleep 0.1
        done
        echo $state $early $(k3s kubectl get --raw /readyz)""",
        timeout_s=150,
    )
    assert said.split() == ["active", "yes", "ok"]
    # One that ended meanwhile is none.
    environments = k3s.run(f"for p in $(pgrep -f '{PARTS}'); do tr '\\0' '\\n' </proc/$p/environ || :; done")
    assert "PATH=" in environments
    assert "NOTIFY_SOCKET" not in environments
    k3s.wait_ready()


def test_s1_running_version(k3s: Node) -> None:
    """S1: kubelet and API server report the version of the file."""
    node = k3s.get("node", "h1")
    assert node is not None
    assert node["status"]["nodeInfo"]["kubeletVersion"] == "v1.36.3+k3s1"
    assert json.loads(k3s.run("k3s kubectl get --raw /version"))["gitVersion"] == "v1.36.3+k3s1"


def test_s2_symlinks(k3s: Node) -> None:
    """S2: by its own name `kubectl` or `ctr` it is that command, with k3s's kubeconfig, socket and namespace."""
    assert k3s.run("kubectl get node -o name").strip() == "node/h1"
    assert k3s.run("ctr images ls -q 2>/dev/null") == k3s.run("k3s ctr images ls -q 2>/dev/null") != ""


def test_s3_configuration_is_merged(k3s: Node) -> None:
    """S3: main file and drop-in add up; labels reach the node."""
    node = k3s.get("node", "h1")
    assert node is not None
    labels = node["metadata"]["labels"]
    assert labels["bed.test/main"] == "first"
    assert labels["bed.test/more"] == "second"
    assert labels["node-role.kubernetes.io/control-plane"] == "true"


def test_s4_a_server_warns_and_goes_on(k3s: Node) -> None:
    """S4: unknown keys are warned of; known keys without effect are logged and collected."""
    assert "Unknown flag --tokn found in config.yaml, skipping" in k3s.journal()
    if k3s.is_standin:
        assert "stand-in: embedded-registry accepted, not honoured" in k3s.journal()
        report = k3s.run(f"cat {DATA}/standin-report.txt").splitlines()
        assert "stand-in: embedded-registry accepted, not honoured" in report
        assert "stand-in: packaged servicelb is absent" in report
        assert not any("traefik" in line for line in report)  # disabled, so nothing is missing


def kubeconfig(k3s: Node, tmp_path: Path) -> tuple[ssl.SSLContext, str]:
    """TLS context with the administrator's certificate, as a controller has it, and the host's address."""
    loaded = yaml.safe_load(k3s.run("cat /etc/rancher/k3s/k3s.yaml"))
    cluster, user = loaded["clusters"][0]["cluster"], loaded["users"][0]["user"]
    assert [loaded[part][0]["name"] for part in ("clusters", "contexts", "users")] == ["default"] * 3
    assert loaded["current-context"] == "default"
    assert cluster["server"] == "https://127.0.0.1:6443"
    parts = {
        name: base64.b64decode(data)
        for name, data in (
            ("ca", cluster["certificate-authority-data"]),
            ("crt", user["client-certificate-data"]),
            ("key", user["client-key-data"]),
        )
    }
    for name, content in parts.items():
        (tmp_path / name).write_bytes(content)
    context = ssl.create_default_context(cafile=str(tmp_path / "ca"))
    context.load_cert_chain(tmp_path / "crt", tmp_path / "key")
    return context, str(k3s.env["hosts"]["h1"]["address"])


def test_s6_kubeconfig_from_the_controller(k3s: Node, tmp_path: Path) -> None:
    """S6: names, mode, and a certificate that holds for the address and for every tls-san name."""
    assert k3s.run("stat -c %a /etc/rancher/k3s/k3s.yaml").strip() == "640"
    context, address = kubeconfig(k3s, tmp_path)
    connection = http.client.HTTPSConnection(address, 6443, context=context, timeout=10)
    connection.request("GET", "/readyz")
    assert connection.getresponse().read() == b"ok"
    for name in ("api.bed.test", "h1", "kubernetes.default.svc", "10.43.0.1"):
        with socket.create_connection((address, 6443), 10) as plain, context.wrap_socket(plain, server_hostname=name) as tls:
            assert tls.version() == "TLSv1.3"


def test_s5_nobody_is_let_in_without_a_certificate(k3s: Node) -> None:
    """S5: 401 without credentials from API server and kubelet; RBAC and Node authorizer hold; no token file."""
    address = k3s.env["hosts"]["h1"]["address"]
    anyone = ssl.create_default_context()
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    for port, path in ((6443, "/readyz"), (6443, "/livez"), (6443, "/api"), (10250, "/pods"), (10250, "/metrics")):
        connection = http.client.HTTPSConnection(address, port, context=anyone, timeout=10)
        connection.request("GET", path)
        assert connection.getresponse().status == 401, (port, path)
    arguments = k3s.run(f"pgrep -af '{PARTS}'")
    assert "--anonymous-auth=false" in arguments
    assert "--authorization-mode=Node,RBAC" in arguments
    assert "token-auth-file" not in arguments
    assert "insecure-skip" not in arguments
    assert TOKEN not in arguments
    as_node = f"k3s kubectl --kubeconfig {DATA}/agent/kubelet.kubeconfig"
    k3s.run("k3s kubectl create secret generic of-nobody --from-literal=a=b")
    assert "Forbidden" in k3s.run(f"{as_node} get secret of-nobody 2>&1", check=False)
    assert "h1" in k3s.run(f"{as_node} get node h1")
    assert "not allowed to modify labels" in k3s.run(f"{as_node} label node h1 node-role.kubernetes.io/x=y 2>&1", check=False)


def test_s5_files_of_the_pki(k3s: Node) -> None:
    """S5: names, modes and chains of contract §3."""
    tls = f"{DATA}/server/tls"
    k3s.run(f"""cd {tls} && ls service.key && for name in server-ca client-ca request-header-ca \
        client-admin client-kube-apiserver client-controller client-scheduler client-kube-proxy client-k3s-controller client-auth-proxy \
        serving-kube-apiserver etcd/server-ca etcd/peer-ca etcd/server-client etcd/peer-server-client etcd/client
        do ls $name.crt $name.key || exit 1; done""")
    modes = k3s.run(f"stat -c '%a' {tls} {tls}/client-admin.key {DATA}/server/cred/admin.kubeconfig").split()
    assert modes == ["700", "600", "600"]
    for leaf, ca in (("client-admin", "client-ca"), ("serving-kube-apiserver", "server-ca"), ("client-auth-proxy", "request-header-ca")):
        folder = k3s.state / "pki"
        folder.mkdir(exist_ok=True)
        for name in (leaf, ca):
            (folder / name).write_text(k3s.run(f"cat {tls}/{name}.crt"))
        done = subprocess.run(["openssl", "verify", "-CAfile", folder / ca, folder / leaf], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_s7_token_files(k3s: Node) -> None:
    """S7: forms, links and modes; the hash is that of the bytes of server-ca.crt; the given token is used."""
    ca_hash = k3s.run(f"sha256sum {DATA}/server/tls/server-ca.crt").split()[0]
    assert k3s.run(f"cat {DATA}/server/token") == f"K10{ca_hash}::server:{TOKEN}\n"
    assert k3s.run(f"stat -c %a {DATA}/server/token").strip() == "600"
    assert k3s.run(f"readlink {DATA}/server/node-token").strip() == f"{DATA}/server/token"
    assert k3s.run("stat -c %a /etc/rancher/node/password").strip() == "600"
    assert TOKEN not in k3s.journal()


def stored(k3s: Node, text: str) -> bool:
    """Whether the text stands in the datastore's files."""
    return k3s.run(f"grep -l {text} {DATA}/server/db/state.db*", check=False).strip() != ""


def test_s25_secrets_are_encrypted_at_rest(k3s: Node) -> None:
    """S25: a Secret cannot be read in the datastore's file; status as text and JSON; keys are rotated while life goes on."""
    k3s.run("k3s kubectl create secret generic hidden --from-literal=word=hidden-treasure")
    k3s.run("k3s kubectl create cm shown --from-literal=word=shown-treasure")
    assert stored(k3s, "shown-treasure")
    assert not stored(k3s, "hidden-treasure")
    assert not stored(k3s, base64.b64encode(b"hidden-treasure").decode())
    text = k3s.run("k3s secrets-encrypt status")
    for line in ("Encryption Status: Enabled", "Current Rotation Stage: start", "Server Encryption Hashes: All hashes match"):
        assert line in text.splitlines()
    status = json.loads(k3s.run("k3s secrets-encrypt status -o json"))
    assert (status["stage"], status["enable"], status["hashmatch"], status["inactivekeys"]) == ("start", True, True, [])
    # kube-apiserver looks at the file once a minute; a later test sees how it went.
    k3s.run(f"echo {status['activekey']} >/root/old-key; nohup k3s secrets-encrypt rotate-keys >/root/rotated 2>&1 &")


def test_s15_no_snapshots_of_sqlite(k3s: Node) -> None:
    """S15: `etcd-snapshot` without etcd fails with k3s's words."""
    for command in ("save", "ls", "prune"):
        said = k3s.run(f"k3s etcd-snapshot {command} 2>&1; echo exit $?")
        assert "etcd datastore disabled" in said
        assert "exit 1" in said


def test_s23_packaged_components(k3s: Node) -> None:
    """S23: CoreDNS and local-path under k3s's names; a volume binds, exec and logs reach the pod, names resolve."""
    service = k3s.get("svc", "kube-dns", "kube-system")
    assert service is not None
    assert service["spec"]["clusterIP"] == "10.43.0.10"
    storage = k3s.get("storageclass", "local-path")
    assert storage is not None
    assert storage["provisioner"] == "rancher.io/local-path"
    assert storage["volumeBindingMode"] == "WaitForFirstConsumer"
    assert storage["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"] == "true"
    hosts = k3s.get("cm", "coredns", "kube-system")
    assert hosts is not None
    assert hosts["data"]["NodeHosts"] == f"{k3s.env['hosts']['h1']['address']} h1\n"
    definitions = k3s.run("k3s kubectl get crd -o name").split()
    for name in ("addons.k3s", "etcdsnapshotfiles.k3s", "helmcharts.helm", "helmchartconfigs.helm"):
        assert f"customresourcedefinition.apiextensions.k8s.io/{name}.cattle.io" in definitions
    k3s.run("k3s kubectl apply -f - && k3s kubectl rollout restart -n kube-system deploy/coredns", stdin=CUSTOM_DNS)
    k3s.run("k3s kubectl apply -f -", stdin=WEB)
    k3s.run(
        "k3s kubectl rollout status deploy/web --timeout=90s && k3s kubectl rollout status -n kube-system deploy/coredns --timeout=90s",
        timeout_s=200,
    )
    claim = k3s.get("pvc", "data")
    assert claim is not None
    assert claim["status"]["phase"] == "Bound"
    inside = "k3s kubectl exec deploy/web --"
    k3s.run(f"{inside} sh -c 'echo kept >/data/file'")
    assert k3s.run(f"cat {DATA}/storage/*/file").strip() == "kept"
    assert k3s.run("k3s kubectl logs deploy/web").strip() == "started"
    assert "192.0.2.77" in k3s.run(f"{inside} nslookup x.bed.test")
    assert k3s.env["hosts"]["h1"]["address"] in k3s.run(f"{inside} nslookup h1.")
    assert "line 4" in k3s.run(f"{inside} wget -qO- http://web.default.svc.cluster.local")


def test_service_proxy_streams(k3s: Node, tmp_path: Path) -> None:
    """S5: through the API server's service proxy, with the kubeconfig's certificate, lines arrive as they are sent."""
    context, address = kubeconfig(k3s, tmp_path)
    connection = http.client.HTTPSConnection(address, 6443, context=context, timeout=20)
    connection.request("GET", "/api/v1/namespaces/default/services/web:80/proxy/")
    answer = connection.getresponse()
    assert answer.status == 200
    arrived = []
    while line := answer.readline():
        arrived.append((line.decode().strip(), time.monotonic()))
    assert [text for text, _ in arrived] == ["line 1", "line 2", "line 3", "line 4"]
    assert arrived[-1][1] - arrived[0][1] > 1.0  # sent over 1.5 s; all at once would be a buffer in between


def test_s20_manifests(k3s: Node) -> None:
    """S20: scanned within 15 s, pruned within a file, `.skip` and dotfiles left alone, underscores refused."""
    folder = f"{DATA}/server/manifests"

    def maps(*names: str) -> str:
        return "".join(f"---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{a: from-file}}\n" for name in names)

    k3s.put(f"{folder}/skipped.yaml.skip", "")
    for file, name in (("skipped.yaml", "skipped"), (".hidden.yaml", "hidden"), ("bad_name.yaml", "bad"), ("note.txt", "note")):
        k3s.put(f"{folder}/{file}", maps(name))
    k3s.put(f"{folder}/sub/extra.v1.yaml", maps("keep", "drop"))
    wait(25, "the file is applied", lambda: k3s.get("cm", "drop"))
    addon = k3s.get("addon", "extra", "kube-system")
    assert addon is not None
    assert addon["spec"]["source"] == f"{folder}/sub/extra.v1.yaml"
    for name in ("skipped", "hidden", "bad", "note"):
        assert k3s.get("cm", name) is None, name
    assert "bad_name.yaml" in k3s.journal()
    k3s.run(f"rm {folder}/bad_name.yaml {folder}/.hidden.yaml {folder}/note.txt")
    k3s.put(f"{folder}/sub/extra.v1.yaml", maps("keep"))
    k3s.put(f"{folder}/stays.yaml", maps("stays"))
    wait(25, "what left the file is pruned", lambda: k3s.get("cm", "drop") is None)
    wait(25, "the other file is applied", lambda: k3s.get("cm", "stays"))
    assert k3s.get("cm", "keep")
    # for the tests after a restart
    k3s.run(f'rm {folder}/stays.yaml; k3s kubectl patch cm keep -p \'{{"data":{{"a":"edited"}}}}\'')


def archive(k3s: Node, name: str, padding: int = 0) -> bytes:
    """A docker-archive with the busybox image under another name; `padding` bytes make it longer."""
    source = k3s.binary("v1.36.3+k3s1").parent / "k3s-airgap-images-amd64.tar"
    out = io.BytesIO()
    with tarfile.open(source) as old, tarfile.open(fileobj=out, mode="w") as new:
        manifest = old.extractfile("manifest.json")
        assert manifest is not None
        image = next(item for item in json.load(manifest) if "busybox" in item["RepoTags"][0])
        blobs = {path: old.extractfile(path) for path in (image["Config"], *image["Layers"])}
        files = {path: blob.read() for path, blob in blobs.items() if blob is not None}
        files["manifest.json"] = json.dumps([{**image, "RepoTags": [name]}]).encode()
        if padding:
            files["padding"] = bytes(padding)
        for path, content in files.items():
            info = tarfile.TarInfo(path)
            info.size = len(content)
            new.addfile(info, io.BytesIO(content))
    return out.getvalue()


def test_s21_images_are_imported_while_running(k3s: Node, tmp_path: Path) -> None:
    """S21: a new archive (.tar, .tar.gz, .tar.zst) is imported and pinned; a changed one only if size AND time differ."""
    folder = f"{DATA}/agent/images"
    plain = tmp_path / "plain"
    for suffix in (".tar", ".tar.gz", ".tar.zst"):
        name = f"bed.test/dropped{suffix.replace('.', '-')}:1"
        content = archive(k3s, name)
        if suffix == ".tar.gz":
            content = gzip.compress(content, 1)
        if suffix == ".tar.zst":
            content = subprocess.run(["zstd", "-q", "-1"], input=content, capture_output=True, check=True).stdout
        plain.write_bytes(content)
        k3s.copy(plain, f"{folder}/dropped{suffix}")
    wait(20, "all three are imported", lambda: len(re.findall(r"^bed\.test/dropped-\S+:1 ", k3s.images(), re.M)) == 3)
    line = next(line for line in k3s.images().splitlines() if line.startswith("bed.test/dropped-tar:1"))
    assert "io.cattle.k3s.pinned=pinned" in line
    assert "io.cri-containerd.pinned=pinned" in line
    plain.write_bytes(archive(k3s, "bed.test/dropped-tar:2"))
    k3s.copy(plain, f"{folder}/dropped.tar")  # same name and size, newer
    time.sleep(8)
    assert "bed.test/dropped-tar:2" not in k3s.images()
    plain.write_bytes(archive(k3s, "bed.test/dropped-tar:3", padding=20480))
    k3s.copy(plain, f"{folder}/dropped.tar")
    wait(20, "a longer, newer archive is imported", lambda: "bed.test/dropped-tar:3" in k3s.images())
    k3s.run(f"rm {folder}/dropped.tar.gz && touch {folder}/.cache.json")
    time.sleep(5)
    assert "bed.test/dropped-tar-gz:1" in k3s.images()  # removing the file removes no image


def test_s25_the_new_key_is_in_use(k3s: Node) -> None:
    """S25: after rotate-keys every Secret is encrypted with the new key, and the old one is gone."""
    wait(150, "the keys are rotated", lambda: "keys rotated, reencryption started" in k3s.run("cat /root/rotated"))

    def finished() -> bool:
        status = json.loads(k3s.run("k3s secrets-encrypt status -o json"))
        return bool(status["stage"] == "reencrypt_finished" and status["inactivekeys"] == [])

    wait(60, "the Secrets are encrypted again", finished)
    assert k3s.run("cat /root/old-key; rm /root/old-key /root/rotated").strip() not in k3s.run("k3s secrets-encrypt status")
    assert k3s.run("k3s kubectl get secret hidden -o jsonpath={.data.word} | base64 -d") == "hidden-treasure"


def test_s18_stop_and_start_keep_the_pods(k3s: Node) -> None:
    """S18 S20: after a stop only shims and pods run; the next start adopts them; edited objects are reset."""
    pki = k3s.run(f"cd {DATA}/server/tls && sha256sum *.crt *.key etcd/*")
    containers, running = k3s.containers(), k3s.running()
    assert containers
    assert len(running) >= len(containers)
    k3s.start("stop")
    assert k3s.run(f"pgrep -af '{PARTS}'", check=False) == ""
    shims = k3s.run("ps -eo args | grep '[c]ontainerd-shim'").splitlines()
    assert shims
    for shim in shims:
        assert re.match(rf"{DATA}/data/[^/]+/bin/containerd-shim-runc-v2 ", shim)
    k3s.start("start")
    k3s.wait_ready()
    assert k3s.containers() == containers
    assert k3s.running() == running
    assert k3s.run(f"cd {DATA}/server/tls && sha256sum *.crt *.key etcd/*") == pki  # S5: kept
    wait(30, "the forced first pass resets the edit", lambda: k3s.run("k3s kubectl get cm keep -o jsonpath={.data.a}") == "from-file")
    assert k3s.get("cm", "stays")  # its file was removed: nothing happens
    assert f"Imported images from {DATA}/agent/images" in k3s.journal()


def test_s18_a_killed_server_comes_back(k3s: Node) -> None:
    """S18: kill -9 takes every part with it, the pods stay, systemd starts it again."""
    containers, running = k3s.containers(), k3s.running()
    k3s.run("kill -9 $(systemctl show -P MainPID k3s)")
    time.sleep(1)
    assert k3s.run(f"pgrep -af '{PARTS}'", check=False) == ""
    wait(60, "the unit is active again", lambda: k3s.is_active() == "active")
    k3s.wait_ready()
    assert k3s.containers() == containers
    assert k3s.running() == running


def test_s18_a_dead_part_restarts_the_unit(k3s: Node) -> None:
    """S18: where k3s is one process the stand-in has eight; when one dies the unit fails and starts again."""
    if not k3s.is_standin:
        pytest.skip("the real k3s has no part that could die alone")
    restarts = int(k3s.run("systemctl show -P NRestarts k3s"))
    k3s.run("kill $(pgrep -f '/bin/[k]ine ')")
    wait(
        60,
        "the unit was restarted",
        lambda: int(k3s.run("systemctl show -P NRestarts k3s")) > restarts and k3s.is_active() == "active",
    )
    assert "kine exited" in k3s.run("journalctl -u k3s -o cat --no-pager | grep fatal | tail -1")
    k3s.wait_ready()


def test_s26_certificates(k3s: Node) -> None:
    """S26: check lists every certificate; rotate makes all but the authorities anew."""

    def check() -> dict[str, dict[str, Any]]:
        found = json.loads(k3s.run("k3s certificate check -o json"))["Certificates"]
        return {one["Filename"]: one for one in found}

    before = check()
    assert {"client-admin.crt", "server-ca.crt", "client-kubelet.crt", "serving-kube-apiserver.crt"} <= set(before)
    assert all(one["Status"] == "OK" for one in before.values())
    assert before["client-admin.crt"]["Usages"] == ["ClientAuth"]
    assert 364 * 86400 < before["client-admin.crt"]["ResidualTime"] / 1e9 < 365 * 86400
    tls = f"{DATA}/server/tls"
    k3s.start("stop")
    serial = f"openssl x509 -noout -serial -in {tls}/client-admin.crt"
    old, ca = k3s.run(serial), k3s.run(f"sha256sum {tls}/server-ca.crt {tls}/client-ca.key")
    assert "backed up" in k3s.run("k3s certificate rotate 2>&1")
    assert k3s.run(f"ls -d {tls}-*").strip() != ""
    k3s.start("start")
    assert k3s.run(serial) != old
    assert k3s.run(f"sha256sum {tls}/server-ca.crt {tls}/client-ca.key") == ca
    k3s.wait_ready()


def test_s26_tokens(k3s: Node) -> None:
    """S26: bootstrap tokens are made, listed and deleted; rotate exchanges the server token."""
    made = k3s.run("k3s token create --ttl 1h --description test").strip()
    ca_hash = k3s.run(f"sha256sum {DATA}/server/tls/server-ca.crt").split()[0]
    found = re.fullmatch(rf"K10{ca_hash}::([a-z0-9]{{6}})\.([a-z0-9]{{16}})", made)
    assert found is not None, made
    (listed,) = json.loads(k3s.run("k3s token list -o json"))
    assert (listed["token"], listed["description"]) == (found[1], "test")
    assert found[2] not in k3s.run("k3s token list")
    assert k3s.run(f"k3s token delete {found[1]}").strip() == f'bootstrap token "{found[1]}" deleted'
    assert json.loads(k3s.run("k3s token list -o json")) == []
    said = k3s.run("k3s token rotate --new-token rotated-0002")
    assert "WARNING" in said
    assert said.rstrip().endswith("Token rotated, restart k3s nodes with new token")
    assert k3s.run(f"cat {DATA}/server/token") == f"K10{ca_hash}::server:rotated-0002\n"
    k3s.start("stop")
    old = k3s.run("timeout 60 k3s server 2>&1; echo exit $?", check=False)  # its token file holds the old one still
    assert "encrypted with different token" in old
    k3s.put("/etc/rancher/k3s/token", "rotated-0002\n")
    k3s.start("start")
    k3s.wait_ready()


def test_s7_another_token_on_existing_data_is_refused(k3s: Node) -> None:
    """S7: the datastore belongs to its token."""
    k3s.start("stop")
    k3s.put("/root/token", "another\n")
    said = k3s.run("timeout 30 k3s server --token-file /root/token 2>&1; echo exit $?; rm /root/token", check=False)
    assert "bootstrap data already found and encrypted with different token" in said
    assert "exit 1" in said


def test_s24_s6_other_configuration(k3s: Node) -> None:
    """S24: flannel-backend none writes no CNI and the node is not Ready; disable-kube-proxy: none runs.

    S19: arguments reach kubelet, API server and scheduler; a label is added at a later start.
    S6: write-kubeconfig makes the usual path a link; an unquoted 0644 is the octal number 0420 (contract §0.8).
    S20: a disabled file goes with its objects. S21: with .cache.json nothing is imported twice.
    """
    k3s.put(
        f"{CONFIG}.d/20-bare.yaml",
        "flannel-backend: none\ndisable-kube-proxy: true\nwrite-kubeconfig: /root/admin.yaml\n"
        "write-kubeconfig-mode: 0644\ndisable+: [extra.v1]\n"
        "kubelet-arg: [max-pods=77]\nkube-apiserver-arg: [event-ttl=2h]\nkube-scheduler-arg: [v=1]\nnode-label+: [bed.test/third=new]\n",
    )
    k3s.run(f"rm -r {DATA}/agent/etc/cni/net.d; rm -f /root/admin.yaml")
    k3s.start("start")
    assert "kube-proxy" not in k3s.run(f"pgrep -af '{PARTS}' | grep -v kube-proxy-arg")
    assert k3s.run("stat -c %a /root/admin.yaml").strip() == "420"
    assert k3s.run("readlink /etc/rancher/k3s/k3s.yaml").strip() == "/root/admin.yaml"
    arguments = k3s.run(f"pgrep -af '{PARTS}'")
    assert "--event-ttl=2h" in arguments
    assert re.search(r"kube-scheduler .*--v=1", arguments)

    def node() -> dict[str, Any]:
        return k3s.get("node", "h1") or {}

    wait(60, "the kubelet's argument counts", lambda: node()["status"]["capacity"]["pods"] == "77")
    assert node()["metadata"]["labels"]["bed.test/third"] == "new"
    wait(60, "the node is not Ready", lambda: "NotReady" in k3s.run("k3s kubectl get node h1"))
    wait(30, "the disabled file's object is gone", lambda: k3s.get("cm", "keep") is None)
    assert k3s.run(f"ls {DATA}/server/manifests/sub").strip() == ""
    assert k3s.run(f"find {DATA}/agent/etc/cni /etc/cni -type f 2>/dev/null", check=False).strip() == ""
    assert f"Imported images from {DATA}/agent/images" not in k3s.journal()


def test_s1_upgrade_and_way_back(k3s: Node) -> None:
    """S1 S18: the other build takes over: new version everywhere, same containers, `previous` kept, Ready again.

    S6: an unquoted 0600 is no octal number: logged, and the file keeps its default mode.
    """
    containers = k3s.containers()
    k3s.put(f"{CONFIG}.d/20-bare.yaml", "write-kubeconfig-mode: 0600\n")
    k3s.copy(k3s.binary("v1.36.3+k3s2"), "/usr/local/bin/k3s")
    k3s.run("rm -f /etc/rancher/k3s/k3s.yaml /root/admin.yaml")
    k3s.start()
    k3s.wait_ready()
    assert k3s.run("stat -c %a /etc/rancher/k3s/k3s.yaml").strip() == "600"
    assert "to mode 384" in k3s.journal()
    node = k3s.get("node", "h1")
    assert node is not None
    assert node["status"]["nodeInfo"]["kubeletVersion"] == "v1.36.3+k3s2"
    assert k3s.run(f"readlink {DATA}/data/current") != k3s.run(f"readlink {DATA}/data/previous")
    assert set(k3s.containers()) >= set(containers)
    assert "line 4" in k3s.run("k3s kubectl exec deploy/web -- wget -qO- http://web")


def test_s22_images_come_through_a_mirror(k3s: Node) -> None:
    """S22: registries.yaml reaches containerd with a restart; without it the same image cannot be pulled."""
    registry = k3s.env["services"]["registry"]
    name = k3s.env["services"]["base_image"].removeprefix(f"{registry}/")  # Docker Hub has no such image
    k3s.run(f"k3s kubectl run mirrored --image=docker.io/{name} --restart=Never --command -- sleep 1000")

    def state() -> str:
        return k3s.run("k3s kubectl get pod mirrored -o jsonpath='{..state.waiting.reason}{.status.phase}'")

    wait(90, "the pull fails", lambda: "ErrImagePull" in state() or "ImagePullBackOff" in state())
    k3s.put("/etc/rancher/k3s/registries.yaml", f'mirrors: {{docker.io: {{endpoint: ["https://{registry}"]}}}}\n')
    k3s.start()
    wait(120, "the image comes through the mirror", lambda: state() == "Running")
    k3s.run("k3s kubectl delete pod mirrored --force --grace-period=0 2>/dev/null")


def test_s13_power_lost_while_writing(k3s: Node) -> None:
    """S13: SQLite through kine; what was acknowledged before the plug was pulled is there afterwards."""
    assert k3s.run(f"head -c 15 {DATA}/server/db/state.db") == "SQLite format 3"
    assert k3s.run(f"ls {DATA}/server/db/etcd/member/wal 2>&1", check=False).startswith("ls: cannot access")
    writer = subprocess.Popen(
        [
            "ssh",
            "-F",
            str(k3s.state / "ssh_config"),
            "h1",
            "i=0; while k3s kubectl create cm written-$i >/dev/null; do echo $i; i=$((i+1)); done",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    time.sleep(4)
    k3s.call("power-off", "h1")
    said, _ = writer.communicate(timeout=30)
    acknowledged = [int(line) for line in said.split()]
    assert len(acknowledged) > 3
    k3s.call("power-on", "h1")
    wait(90, "k3s is active", lambda: k3s.is_active() == "active")
    k3s.wait_ready()
    there = k3s.run("k3s kubectl get cm -o name").split()
    assert [i for i in acknowledged if f"configmap/written-{i}" not in there] == []
    k3s.run("k3s kubectl rollout status deploy/web --timeout=90s", timeout_s=100)
    assert k3s.run("k3s kubectl exec deploy/web -- cat /data/file").strip() == "kept"


def test_s28_nothing_is_left_elsewhere(k3s: Node, before: dict[str, Any]) -> None:
    """S28: after the duties of killall and uninstall, plus the listed extras, the host is as it was."""
    k3s.remove()
    after = k3s.observe("files")
    changed = differences(before, after)
    assert changed == [], "\n".join(changed)
    assert k3s.leftovers() == ""
