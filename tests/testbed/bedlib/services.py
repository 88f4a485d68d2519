"""The services of the lab, on its gateway address: release mirror, registry, stand-in for the AI vendor."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from . import cgroups, release
from .common import REPOSITORY, BedError, remove_tree, run, say, write
from .state import Bed

RELEASE_PORT, ANTHROPIC_PORT, OIDC_PORT, REGISTRY_PORT = 8443, 8444, 8445, 5000
ANTHROPIC_KEY = "sk-ant-bed-0001"  # no secret: the stand-in's only key
ANTHROPIC_MOCK = REPOSITORY / "tests/mocks/anthropic_server.py"
OIDC_CLIENT, OIDC_SECRET = "hearth", "client-secret-of-the-bed"  # no secret either
OIDC_MOCK = REPOSITORY / "tests/mocks/oidc_provider.py"
# It signs tokens with a library that the machine's own Python need not have.
PROJECT_PYTHON = REPOSITORY / ".venv/bin/python"


def start(bed: Bed, built: release.Built) -> dict[str, Any]:
    """Start the services and return what `env.json` says of them; BedError when one does not listen."""
    cgroups.create(bed.cgroup("services"))
    logs = bed.folder / "log"
    logs.mkdir(exist_ok=True)
    described = {
        "release": f"https://{bed.gateway}:{RELEASE_PORT}/k3s",
        "registry": f"{bed.gateway}:{REGISTRY_PORT}",
        "base_image": f"{bed.gateway}:{REGISTRY_PORT}/{built.base.name}",
        "oauth2_proxy_image": f"{bed.gateway}:{REGISTRY_PORT}/{built.oauth2_proxy.name}",
        "traefik_image": f"{bed.gateway}:{REGISTRY_PORT}/{built.traefik.name}",
        "oidc": f"https://{bed.gateway}:{OIDC_PORT}",
        "anthropic": None,
    }
    _spawn(
        bed, "release", RELEASE_PORT,
        sys.executable, str(Path(release.__file__).with_name("release_server.py")),
        "--bind", f"{bed.gateway}:{RELEASE_PORT}", "--root", str(bed.folder / "release"), *_tls(bed),
    )  # fmt: skip
    _start_registry(bed, built)
    secret = bed.folder / "oidc-client-secret"
    write(secret, OIDC_SECRET, 0o600)
    _spawn(
        bed, "oidc", OIDC_PORT,
        str(PROJECT_PYTHON), str(OIDC_MOCK), "--bind", f"{bed.gateway}:{OIDC_PORT}", "--client-id", OIDC_CLIENT,
        "--client-secret-file", str(secret), *_tls(bed),
    )  # fmt: skip
    if ANTHROPIC_MOCK.exists():
        described["anthropic"] = f"https://{bed.gateway}:{ANTHROPIC_PORT}"
        _spawn(
            bed, "anthropic", ANTHROPIC_PORT,
            sys.executable, str(ANTHROPIC_MOCK), "--bind", f"{bed.gateway}:{ANTHROPIC_PORT}",
            "--api-key", ANTHROPIC_KEY, "--record", str(bed.folder / "anthropic-requests.jsonl"), "--pace-s", "0.03", *_tls(bed),
        )  # fmt: skip
    else:
        say(f"  no stand-in for the AI vendor runs: {ANTHROPIC_MOCK.relative_to(REPOSITORY)} does not exist")
    return described


def stop(bed: Bed) -> None:
    cgroups.remove(bed.cgroup("services"))


def _tls(bed: Bed) -> tuple[str, ...]:
    return "--cert", str(bed.folder / "services.crt"), "--key", str(bed.folder / "services.key")


def _start_registry(bed: Bed, built: release.Built) -> None:
    storage = bed.folder / "registry"
    remove_tree(storage)
    # A copy: what a test pushes must not reach the next bed.
    for image in (built.base, built.oauth2_proxy, built.traefik):
        shutil.copytree(image.storage, storage, dirs_exist_ok=True)
    config = {
        "version": 0.1,
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(storage)}, "delete": {"enabled": True}},
        "http": {
            "addr": f"{bed.gateway}:{REGISTRY_PORT}",
            "tls": {"certificate": str(bed.folder / "services.crt"), "key": str(bed.folder / "services.key")},
        },
    }
    write(bed.folder / "registry.json", json.dumps(config))  # JSON is YAML, which is what it reads
    _spawn(
        bed,
        "registry",
        REGISTRY_PORT,
        str(built.tools / "docker-registry"),
        "serve",
        str(bed.folder / "registry.json"),
    )


def _spawn(bed: Bed, name: str, port: int, *command: str) -> None:
    """Start a service in the lab namespace and the bed's cgroup; wait until it does TLS on its port."""
    group = bed.cgroup("services")
    path = bed.folder / "log" / f"{name}.log"
    with path.open("a") as log:
        process = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{bed.lab}", *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=lambda: cgroups.join(group),
            cwd="/",
        )
    end = time.monotonic() + 20
    while not greets(bed, port):
        if process.poll() is not None or time.monotonic() > end:
            tail = "\n".join(path.read_text(errors="replace").splitlines()[-10:])
            raise BedError(f"the {name} service does not listen on {bed.gateway}:{port}:\n{tail}")
        time.sleep(0.05)


def greets(bed: Bed, port: int) -> bool:
    """Whether a server with the bed's certificate answers on that port of the gateway."""
    try:
        context = ssl.create_default_context(cafile=str(bed.folder / "ca.crt"))
        with (
            socket.create_connection((bed.gateway, port), timeout=2) as plain,
            context.wrap_socket(plain, server_hostname=bed.gateway),
        ):
            return True
    except OSError:
        return False


def state(bed: Bed) -> dict[str, bool]:
    """Which services answer."""
    ports = {"release": RELEASE_PORT, "registry": REGISTRY_PORT, "oidc": OIDC_PORT}
    if ANTHROPIC_MOCK.exists():
        ports["anthropic"] = ANTHROPIC_PORT
    return {name: greets(bed, port) for name, port in ports.items()}


def prepare_release(bed: Bed, built: release.Built, real: Path | None) -> dict[str, Any]:
    """Lay out the release server's files and return what `env.json` says of k3s.

    `real` is a k3s binary to serve instead of the stand-in; its version is what it says itself.
    """
    root = bed.folder / "release"
    root.mkdir(exist_ok=True)
    said = ""
    if real is None:
        for folder in sorted(built.releases.iterdir()):
            (root / folder.name).symlink_to(folder.resolve())
        versions = [folder.name for folder in sorted(built.releases.iterdir())]
    else:
        said = run(real, "--version").stdout
        words = said.split()
        if len(words) < 3 or words[:2] != ["k3s", "version"]:
            raise BedError(f"HEARTH_BED_K3S={real} does not say `k3s version …` when asked for --version")
        versions = [words[2]]
        release.lay_out(root / versions[0], real)
    return {
        "stand_in": real is None or "standin" in said,
        "version": versions[0],
        "versions": {version: {"sha256": {"amd64": release.sha256(root / version / "k3s")}} for version in versions},
    }
