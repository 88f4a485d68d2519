"""What the tests in virtual machines share: one inventory, and one image made from what the role says it brings."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.support import play
from tests.testbed.bedlib import build, release_server
from tests.testbed.bedlib.release import sha256
from tests.vm.image import ARCHITECTURES, Image, image

# QEMU's user network: under this address a machine reaches the loopback of the machine that it runs on.
CONTROLLER = "10.0.2.2"


class _Releases(release_server.Handler):
    """The bed's release server, without TLS: an emulated processor would spend a minute on it."""

    def log_message(self, *_arguments: object) -> None:
        """Say nothing: the log of the test run is for what fails."""


@contextlib.contextmanager
def _release_server(root: Path) -> Iterator[str]:
    """A server on this machine's loopback; gives its address as the virtual machine sees it."""
    _Releases.root = root
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Releases) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://{CONTROLLER}:{server.server_port}/k3s"
        finally:
            server.shutdown()
            thread.join()


@dataclass
class Inventory:
    """An ordinary inventory with one server, and what a house would set for it."""

    path: Path
    release_url: str
    release: Path

    def write(self, connection: dict[str, Any]) -> None:
        variables = {
            "preflight_roles": ["host/wants", "k3s/wants"],
            "host_iscsi_enabled": True,
            # buildah is packages only, which the bed shows; without it the image is a third smaller.
            "host_image_build_enabled": False,
            "k3s_release_url": self.release_url,
            "k3s_version": self.release.name,
            "k3s_sha256": {"amd64": sha256(self.release / "k3s"), "arm64": sha256(self.release / "k3s-arm64")},
            "k3s_kubeconfig": str(self.path.with_name("kubeconfig")),
            # All of it is emulated.
            "k3s_start_timeout_s": 1200,
        }
        groups = {"servers": {"hosts": {"vm1": connection}}, "agents": {"hosts": {}}}
        cluster = {"vars": variables, "children": groups}
        self.path.write_text(yaml.safe_dump({"all": {"children": {"trial": {"hosts": {}}, "k3s_cluster": cluster}}}))


@pytest.fixture(scope="session")
def inventory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inventory]:
    releases = build.everything().releases
    with _release_server(releases) as release_url:
        yield Inventory(tmp_path_factory.mktemp("vm") / "inventory.yml", release_url, min(releases.iterdir()))


@pytest.fixture(scope="session")
def wants(inventory: Inventory) -> dict[str, Any]:
    """What the role would bring with this inventory: packages, modules, sysctl, services."""
    inventory.write({"ansible_python_interpreter": "{{ ansible_playbook_python }}"})
    target = inventory.path.with_name("wants.json")
    asked = play("tests/vm/wants.yml", inventory.path, "-e", f"wants_file={target}")
    assert asked.rc == 0, asked.output[-4000:]
    brought: dict[str, Any] = json.loads(target.read_text())
    return brought


@pytest.fixture(scope="session")
def vm_image(wants: dict[str, Any]) -> Image:
    return image(wants["packages"], ARCHITECTURES[os.environ.get("HEARTH_VM_ARCHITECTURE", "amd64")])
