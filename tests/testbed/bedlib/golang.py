"""Programs built by Go, each pinned by the go.sum of its module and kept in the cache."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from . import cache
from .common import REPOSITORY, TESTBED, run

GO = TESTBED / "go"
KUBERNETES = ("1", "36")
K3S_VERSIONS = ("v1.36.3+k3s1", "v1.36.3+k3s2")


@dataclasses.dataclass(frozen=True)
class Program:
    """Go programs of one module that are built together."""

    kind: str
    module: Path
    packages: Sequence[str]
    ldflags: str = "-s -w"
    tags: str = ""
    cgo: bool = False
    sources: Sequence[Path] = ()

    def inputs(self) -> list[str | bytes | Path]:
        files = [self.module / "go.mod", self.module / "go.sum", *self.sources]
        return [toolchain(), *self.packages, self.ldflags, self.tags, str(self.cgo), *files]

    def build(self, folder: Path) -> None:
        """Compile into `folder`, one file a package, under the package's last name."""
        run(
            "go", "build", "-trimpath", "-buildvcs=false", "-mod=readonly", f"-ldflags={self.ldflags}",
            f"-tags={self.tags}", "-o", f"{folder}/", *self.packages,
            cwd=self.module, log=folder / "log",
            env={**os.environ, "CGO_ENABLED": "1" if self.cgo else "0", "GOFLAGS": "", "GOWORK": "off"},
        )  # fmt: skip
        (folder / "log").unlink()

    def entry(self) -> Path:
        """The folder with the programs, built when it has to be."""
        return cache.entry(self.kind, self.inputs(), self.build)


@functools.cache
def toolchain() -> str:
    return run("go", "env", "GOVERSION", "GOARCH", cwd=GO, env={**os.environ, "GOFLAGS": ""}).stdout


def kubernetes(version: str) -> Program:
    """The multicall binary that says it is of that k3s release, as the components of a k3s release do."""
    names = (
        f"gitVersion={version}",
        f"gitMajor={KUBERNETES[0]}",
        f"gitMinor={KUBERNETES[1]}",
        "gitTreeState=clean",
    )
    flags = " ".join(
        f"-X {package}.{name}" for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version") for name in names
    )
    return Program("kubernetes", GO, ("./cmd/node",), f"-s -w {flags}", sources=(GO / "cmd/node",))


def launcher(version: str) -> Program:
    """The stand-in's launcher of one version, without payload."""
    return Program("k3s-launcher", GO, ("./cmd/k3s",), f"-s -w -X main.version={version}", sources=(GO / "cmd/k3s",))


PACKER = Program("k3spack", GO, ("./cmd/k3spack",), sources=(GO / "cmd/k3s", GO / "cmd/k3spack"))
PAUSE = Program("pause", GO, ("./cmd/pause",), sources=(GO / "cmd/pause",))
COREDNS = Program("coredns", GO / "tools/coredns", (".",), sources=(GO / "tools/coredns",))
CONTAINERD = Program(
    "containerd",
    GO / "tools/containerd",
    tuple(f"github.com/containerd/containerd/v2/cmd/{name}" for name in ("containerd", "containerd-shim-runc-v2", "ctr")),
    ldflags="-s -w -X github.com/containerd/containerd/v2/version.Version=v2.4.2",
    tags="no_btrfs,no_zfs,no_devmapper",
)
# SQLite is C; linked statically, so that it runs on whatever Debian the host is.
KINE = Program(
    "kine",
    GO / "tools/kine",
    ("github.com/k3s-io/kine",),
    ldflags="-s -w -linkmode external -extldflags -static",
    tags="netgo,osusergo,sqlite_omit_load_extension",
    cgo=True,
)
LOCAL_PATH = Program(
    "local-path-provisioner",
    GO / "tools/local-path-provisioner",
    ("github.com/rancher/local-path-provisioner",),
    ldflags="-s -w -X main.VERSION=v0.0.30",
)
HELM = Program(
    "helm",
    GO / "tools/helm",
    ("helm.sh/helm/v3/cmd/helm",),
    ldflags="-s -w -X helm.sh/helm/v3/internal/version.version=v3.22.0",
)
# Go names a program after its package: the server is `server`.
ETCD = Program("etcd", GO / "tools/etcd", ("go.etcd.io/etcd/server/v3", "go.etcd.io/etcd/etcdctl/v3"))
STANDIN = REPOSITORY / "tests/standins/oauth2-proxy"
OAUTH2_PROXY = Program("oauth2-proxy", STANDIN, (".",), sources=(STANDIN,))


def traefik_definitions() -> Path:
    """Traefik's kinds as the API server takes them: a file of Traefik's own module, which go.sum pins like a program."""
    module = GO / "tools/traefik"

    def build(folder: Path) -> None:
        said = run("go", "mod", "download", "-json", "github.com/traefik/traefik/v3", cwd=module,
                   env={**os.environ, "GOFLAGS": "-mod=readonly", "GOWORK": "off"}).stdout  # fmt: skip
        reference = Path(json.loads(said)["Dir"]) / "docs/content/reference/dynamic-configuration"
        shutil.copyfile(reference / "kubernetes-crd-definition-v1.yml", folder / "traefik-crd.yaml")

    return cache.entry("traefik-definitions", [module / "go.mod", module / "go.sum"], build) / "traefik-crd.yaml"
