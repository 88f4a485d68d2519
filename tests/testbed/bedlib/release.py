"""The stand-in's release files, its images, the registry's content: what a bed with services serves."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import cache, debian, golang, images
from .common import REPOSITORY, BedError, run

PAUSE = "docker.io/rancher/mirrored-pause:bed"
COREDNS = "docker.io/rancher/mirrored-coredns-coredns:bed"
LOCAL_PATH = "docker.io/rancher/local-path-provisioner:bed"
BUSYBOX = "docker.io/rancher/mirrored-library-busybox:bed"
BASE_IMAGE = ("hearth/python-base", "bed")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Tools that k3s brings itself: wrapper name → the program in its package.
AUX = {
    "nft": "usr/sbin/nft",
    "conntrack": "usr/sbin/conntrack",
    "ethtool": "sbin/ethtool",
    "socat": "usr/bin/socat",
    **{f"{family}{use}": "usr/sbin/xtables-nft-multi" for family in ("iptables", "ip6tables") for use in ("", "-save", "-restore")},
}
AUX_PACKAGES = ("nftables", "iptables", "conntrack", "ethtool", "socat")
WRAPPER = """#!/bin/sh
# Debian's program with Debian's libraries, wherever this folder lies.
root=$(dirname "$(dirname "$(dirname "$(readlink -f "$0")")")")
LD_LIBRARY_PATH=$root/lib/aux XTABLES_LIBDIR=$root/lib/aux/xtables exec "$root/libexec/aux/${0##*/}" "$@"
"""


@dataclasses.dataclass(frozen=True)
class Stored:
    """One image, in a registry's storage of its own."""

    storage: Path
    name: str  # repository@digest

    @classmethod
    def of(cls, entry: Path) -> Stored:
        return cls(entry / "storage", (entry / "image").read_text())


@dataclasses.dataclass(frozen=True)
class Built:
    """What `bed build all` made."""

    releases: Path
    tools: Path
    base: Stored
    oauth2_proxy: Stored
    traefik: Stored
    oauth2_proxy_stand_in: bool

    def described(self) -> dict[str, str]:
        return {"releases": str(self.releases), "registry": str(self.base.storage), "tools": str(self.tools)}


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lay_out(folder: Path, k3s: Path, archives: Sequence[Path] = ()) -> None:
    """Make a release folder as k3s publishes one: binaries, image archives, checksum files.

    The bed has no arm64 host. `k3s-arm64` is there for the names and checksums, and says so when run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(k3s, folder / "k3s")
    (folder / "k3s-arm64").write_text("#!/bin/sh\necho 'k3s: the bed has no arm64 build' >&2\nexit 1\n")
    for archive in archives:
        os.link(archive, folder / archive.name)
    if archives:
        (folder / "k3s-images.txt").write_text("".join(f"{name}\n" for name in (COREDNS, BUSYBOX, LOCAL_PATH, PAUSE)))
    for architecture, files in (
        ("amd64", [*(path.name for path in archives), "k3s"]),
        ("arm64", ["k3s-arm64"]),
    ):
        lines = [f"{sha256(folder / name)}  {name}\n" for name in files]
        (folder / f"sha256sum-{architecture}.txt").write_text("".join(lines))


def tools() -> Path:
    """Programs that run beside the hosts, in one folder: docker-registry (Debian's), helm, etcd, etcdctl."""

    def build(folder: Path) -> None:
        with debian.unpacked("docker-registry") as root:
            shutil.copy(root / "usr/bin/docker-registry", folder / "docker-registry")
        shutil.copy(golang.HELM.entry() / "helm", folder / "helm")
        etcd = golang.ETCD.entry()
        shutil.copy(etcd / "server", folder / "etcd")
        shutil.copy(etcd / "etcdctl", folder / "etcdctl")

    return cache.entry("tools", [*golang.HELM.inputs(), *golang.ETCD.inputs()], build)


def system_images() -> Path:
    """The four images of the payload as docker-archives; in `release` all in one, as k3s publishes them."""

    def build(folder: Path) -> None:
        pause, coredns, provisioner = golang.PAUSE.entry(), golang.COREDNS.entry(), golang.LOCAL_PATH.entry()
        with debian.unpacked("busybox-static", "ca-certificates") as root:
            busybox = root / "bin/busybox"
            applets = run(busybox, "--list").stdout.split()
            made: list[images.Image] = []
            for name, files, links, config in (
                (PAUSE, {"pause": pause / "pause"}, {}, {"Entrypoint": ["/pause"], "User": "65535:65535"}),
                (
                    COREDNS,
                    {"coredns": coredns / "coredns"},
                    {},
                    {"Entrypoint": ["/coredns"], "WorkingDir": "/"},
                ),
                (
                    LOCAL_PATH,
                    {"usr/bin/local-path-provisioner": provisioner / "local-path-provisioner"},
                    {},
                    {"Entrypoint": ["local-path-provisioner"], "Env": ["PATH=/usr/bin:/bin"]},
                ),
                (
                    BUSYBOX,
                    {"bin/busybox": busybox},
                    {f"bin/{applet}": "busybox" for applet in applets if applet != "busybox"},
                    {"Cmd": ["sh"], "Env": ["PATH=/bin"]},
                ),
            ):
                short = name.rpartition("/")[2].partition(":")[0]
                layer = folder / f"{short}.layer"
                images.write_layer(layer, files, links, ["tmp", "etc"])
                made.append(images.Image(name, layer, config))
                images.write_archive(folder / f"{short}.tar", made[-1:])
            (folder / "release").mkdir()
            whole = folder / "release/k3s-airgap-images-amd64.tar"
            images.write_archive(whole, made)
            run("zstd", "-q", "-3", "-T2", whole, "-o", whole.with_suffix(".tar.zst"))
        for image in made:
            image.layer.unlink()

    programs = (golang.PAUSE, golang.COREDNS, golang.LOCAL_PATH)
    return cache.entry("images", [*(part for program in programs for part in program.inputs()), Path(images.__file__)], build)


def debian_parts() -> Path:
    """runc, the CNI plugins and the network tools with their libraries, laid out as the payload has them."""

    def build(folder: Path) -> None:
        for name in ("bin/aux", "libexec/aux", "lib/aux/xtables"):
            (folder / name).mkdir(parents=True)
        with debian.unpacked("runc", "containernetworking-plugins", *AUX_PACKAGES, *_libraries()) as root:
            for path in (
                "usr/sbin/runc",
                *(f"usr/lib/cni/{name}" for name in ("bridge", "host-local", "loopback", "portmap")),
            ):
                shutil.copy(root / path, folder / "bin")
            for name, program in AUX.items():
                shutil.copy(root / program, folder / "libexec/aux" / name)
                (folder / "bin/aux" / name).write_text(WRAPPER)
                (folder / "bin/aux" / name).chmod(0o755)
            for library in root.glob("usr/lib/x86_64-linux-gnu/*.so.*"):
                shutil.copy(library, folder / "lib/aux")  # follows links: each soname becomes a file
            for library in root.glob("usr/lib/x86_64-linux-gnu/xtables/*.so"):
                shutil.copy(library, folder / "lib/aux/xtables")

    return cache.entry("debian-parts", [*debian.apt_sources(), WRAPPER, *AUX, *AUX_PACKAGES], build)


def _libraries() -> list[str]:
    """Libraries of the network tools that a host does not have, by asking apt what the tools depend on."""
    said = run("apt-cache", "depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts",
               "--no-breaks", "--no-replaces", "--no-enhances", *AUX_PACKAGES).stdout  # fmt: skip
    wanted = re.compile(r"lib(nftables|xtables|nftnl|mnl|nfnetlink|netfilter-conntrack|ip4tc|ip6tc|jansson|edit|bsd|md)\d*")
    found = sorted({line.strip() for line in said.splitlines() if re.fullmatch(wanted, line.strip())})
    return [name for name in found if not re.fullmatch(r"libc\d", name)]


def payload(version: str) -> Path:
    """One version's release folder, with the stand-in `k3s` in it."""
    kubernetes, launcher = golang.kubernetes(version), golang.launcher(version)
    parts = [golang.CONTAINERD, golang.KINE, golang.PAUSE, golang.COREDNS, golang.LOCAL_PATH, golang.PACKER]
    inputs = [part for program in (kubernetes, launcher, *parts) for part in program.inputs()]
    definitions = golang.traefik_definitions()

    def build(folder: Path) -> None:
        root = folder / "payload"
        shutil.copytree(debian_parts(), root)
        for program in (kubernetes, golang.CONTAINERD, golang.KINE):
            for file in program.entry().iterdir():
                shutil.copy(file, root / "bin" / file.name)
        (root / "images").mkdir()
        for archive in system_images().glob("*.tar"):
            shutil.copy(archive, root / "images")
        (root / "manifests").mkdir()
        shutil.copy(definitions, root / "manifests")
        run(
            golang.PACKER.entry() / "k3spack", "-payload", root, "-launcher", launcher.entry() / "k3s",
            "-out", folder / "k3s",
        )  # fmt: skip
        shutil.rmtree(root)
        lay_out(folder / version, folder / "k3s", sorted((system_images() / "release").iterdir()))
        (folder / "k3s").unlink()

    others: list[str | Path] = [definitions, str(debian_parts()), str(system_images())]
    return cache.entry("release", [version, *inputs, *others, *cache.texts(lay_out)], build) / version


def releases() -> Path:
    """A folder with one release folder a version."""
    folders = [payload(version) for version in golang.K3S_VERSIONS]

    def build(folder: Path) -> None:
        for release in folders:
            (folder / release.name).symlink_to(release)

    return cache.entry("releases", [str(folder) for folder in folders], build)


def pushed(tools_folder: Path, folder: Path, name: str, tag: str, layer: Path, config: Mapping[str, object]) -> str:
    """Make an image with that one layer, leave a registry's storage with it in `folder`, and return `repository@digest`."""
    image = images.Image(f"{name}:{tag}", layer, config)
    packed_layer = folder / "layer.tar.gz"
    with (
        layer.open("rb") as source,
        packed_layer.open("wb") as target,
        gzip.GzipFile("", "wb", 6, target, mtime=0) as packed,
    ):
        shutil.copyfileobj(source, packed)
    with _Registry(tools_folder / "docker-registry", folder) as address:
        digest = images.push(address, name, tag, image, packed_layer)
    for leftover in (layer, packed_layer, folder / "registry.yml"):
        leftover.unlink()
    return f"{name}@{digest}"


def registry(tools_folder: Path) -> Stored:
    """The Python base image."""
    name, tag = BASE_IMAGE
    config = {"Cmd": ["python3"], "Env": [f"PATH={PATH}", "LANG=C.UTF-8"]}

    def build(folder: Path) -> None:
        debian.build_python_layer(folder)
        (folder / "image").write_text(pushed(tools_folder, folder, name, tag, folder / "layer.tar", config))

    inputs = [*debian.python_inputs(), Path(images.__file__), *cache.texts(pushed), PATH]
    return Stored.of(cache.entry("registry", inputs, build))


def program_image(tools_folder: Path, name: str, program: Path, path: str) -> Stored:
    """An image with one static program and nothing else, as the projects publish theirs without a shell."""

    def build(folder: Path) -> None:
        layer = folder / "layer.tar"
        images.write_layer(layer, {path: program}, {}, ["tmp"])
        config = {"Entrypoint": [f"/{path}"], "User": "65532:65532", "Env": ["PATH=/bin"]}
        (folder / "image").write_text(pushed(tools_folder, folder, f"hearth/{name}", "bed", layer, config))

    return Stored.of(cache.entry(f"image-{name}", [name, program, path, Path(images.__file__), *cache.texts(pushed)], build))


def traefik() -> Path:
    """The real Traefik, from the package that requirements/dev.txt locks by hash. BedError without it."""
    found = shutil.which("traefik", path=str(REPOSITORY / ".venv/bin"))
    if found is None:
        raise BedError("traefik is missing: `make setup` installs it into .venv, from requirements/dev.txt")
    return Path(found)


def oauth2_proxy() -> Path:
    """HEARTH_BED_OAUTH2_PROXY=/path/to/the/real/one, else the stand-in."""
    given = os.environ.get("HEARTH_BED_OAUTH2_PROXY")
    if not given:
        return golang.OAUTH2_PROXY.entry() / "oauth2-proxy-standin"
    if not os.access(given, os.X_OK):
        raise BedError(f"HEARTH_BED_OAUTH2_PROXY={given} is no program")
    return Path(given).resolve()


class _Registry:
    """docker-registry on a free port of 127.0.0.1 with its storage in `folder`, while the block lasts."""

    def __init__(self, program: Path, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        config = (
            "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
            f"storage: {{filesystem: {{rootdirectory: {folder / 'storage'}}}}}\n"
            f"http: {{addr: '127.0.0.1:{self.port}'}}\n"
        )
        (folder / "registry.yml").write_text(config)
        self.command = [str(program), "serve", str(folder / "registry.yml")]

    def __enter__(self) -> str:
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        address = f"http://127.0.0.1:{self.port}"
        end = time.monotonic() + 10
        while True:
            try:
                urllib.request.urlopen(f"{address}/v2/", timeout=1).close()
                return address
            except (urllib.error.URLError, OSError) as error:
                if self.process.poll() is not None or time.monotonic() > end:
                    self.process.kill()
                    raise BedError(f"docker-registry does not start: {error}") from error
                time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()


def build_everything() -> Built:
    tools_folder = tools()
    proxy = oauth2_proxy()
    return Built(
        releases=releases(),
        tools=tools_folder,
        base=registry(tools_folder),
        oauth2_proxy=program_image(tools_folder, "oauth2-proxy", proxy, "bin/oauth2-proxy"),
        traefik=program_image(tools_folder, "traefik", traefik(), "usr/local/bin/traefik"),
        oauth2_proxy_stand_in="standin" in run(proxy, "--version").stdout,
    )
