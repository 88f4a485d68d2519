"""The services of a bed: release server and its faults, registry, inventory. Needs root and `bed build all`."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.testbed.support import NOTHING, bed, needs_root, running, ssh, status, traces

# Without `make bed` before, the first of these compiles Kubernetes.
pytestmark = [needs_root, pytest.mark.timeout(2700)]


class Lab:
    """HTTPS requests to the services of a bed, with the bed's authority and no other."""

    def __init__(self, name: str) -> None:
        self.folder = Path(status(name)["folder"])
        self.described: dict[str, Any] = json.loads((self.folder / "env.json").read_text())
        self.context = ssl.create_default_context(cafile=str(self.folder / "ca.crt"))
        self.base = self.described["services"]["release"].removesuffix("/k3s")

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"{self.base}{path}", context=self.context, timeout=30) as answer:
            body: bytes = answer.read()
            return body


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with running("bedtest-served", 1, "--with", "services"):
        yield Lab("bedtest-served")


def test_release_files_have_the_layout_of_k3s_and_true_checksums(lab: Lab) -> None:
    versions = sorted(lab.described["k3s"]["versions"])
    assert versions == ["v1.36.3+k3s1", "v1.36.3+k3s2"]
    for version in versions:
        for written in (version, version.replace("+", "%2B")):
            folder = f"/k3s/download/{written}"
            lines = lab.get(f"{folder}/sha256sum-amd64.txt").decode().splitlines()
            sums = {file: digest for digest, file in (line.split("  ") for line in lines)}
            assert {"k3s", "k3s-airgap-images-amd64.tar.zst"} <= set(sums)
        for name in ("k3s", "k3s-airgap-images-amd64.tar.zst"):
            assert hashlib.sha256(lab.get(f"/k3s/download/{version}/{name}")).hexdigest() == sums[name]
        assert lab.described["k3s"]["versions"][version]["sha256"]["amd64"] == sums["k3s"]
        arm = lab.get(f"/k3s/download/{version}/sha256sum-arm64.txt").decode()
        assert arm == f"{hashlib.sha256(lab.get(f'/k3s/download/{version}/k3s-arm64')).hexdigest()}  k3s-arm64\n"


def test_release_server_faults(lab: Lab) -> None:
    folder = "k3s/download/v1.36.3+k3s1"
    right, wrong = lab.get(f"/{folder}/sha256sum-amd64.txt"), lab.get(f"/faults/wrong-checksum/{folder}/sha256sum-amd64.txt")
    assert len(right) == len(wrong)
    for good, bad in zip(right.splitlines(), wrong.splitlines(), strict=True):
        assert good[:64] != bad[:64] and good[64:] == bad[64:]
    with pytest.raises(http.client.IncompleteRead):
        lab.get(f"/faults/cut/{folder}/k3s")
    begun = time.monotonic()
    with urllib.request.urlopen(f"{lab.base}/faults/slow/{folder}/k3s", context=lab.context, timeout=30) as answer:
        answer.read(4_000_000)
    assert time.monotonic() - begun > 1
    for path in (f"/{folder}/k3s-armhf", "/k3s/download/v9/k3s", f"/faults/other/{folder}/k3s", "/k3s/download/../k3s/k3s"):
        with pytest.raises(urllib.error.HTTPError) as error:
            lab.get(path)
        assert error.value.code == 404


def test_a_silent_client_blocks_nobody(lab: Lab) -> None:
    address = (lab.described["gateway"], 8443)
    with socket.create_connection(address):
        assert lab.get("/k3s/download/v1.36.3+k3s1/sha256sum-amd64.txt")


def test_hosts_trust_the_lab_and_the_registry_serves_the_base_image(lab: Lab) -> None:
    for name in ("base_image", "oauth2_proxy_image", "traefik_image"):
        check_image(lab.described["services"][name])


def check_image(image: str) -> None:
    registry, _, rest = image.partition("/")
    repository, _, digest = rest.partition("@")
    program = (
        "import hashlib,urllib.request as u;"
        f"r=u.Request('https://{registry}/v2/{repository}/manifests/{digest}',"
        "headers={'Accept':'application/vnd.docker.distribution.manifest.v2+json'});"
        "print(hashlib.sha256(u.urlopen(r).read()).hexdigest())"
    )
    assert "sha256:" + ssh("bedtest-served", "h1", f'python3 -c "{program}"') == digest


def test_the_provider_signs_in_whoever_is_asked_for(lab: Lab) -> None:
    issuer = lab.described["services"]["oidc"]
    with urllib.request.urlopen(f"{issuer}/.well-known/openid-configuration", context=lab.context, timeout=30) as answer:
        assert json.load(answer)["issuer"] == issuer
    with socket.create_connection((lab.described["gateway"], 8445)):  # somebody who says nothing holds up nobody
        assert urllib.request.urlopen(f"{issuer}/as?user=ann@home.test", context=lab.context, timeout=30).status == 200


def test_what_is_no_oauth2_proxy_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HEARTH_BED_OAUTH2_PROXY", str(tmp_path / "absent"))
    refused = bed("up", "-n", "1", "--with", "services", name="bedtest-refused", check=False)
    assert refused.returncode == 1 and "HEARTH_BED_OAUTH2_PROXY" in refused.stderr
    assert traces("bedtest-refused") == NOTHING


def test_inventory_is_what_ansible_reads_and_names_stand_ins(lab: Lab) -> None:
    listed = json.loads(bed("inventory", "--json", name="bedtest-served").stdout)
    assert {"trial", "servers", "agents", "k3s_cluster", "_meta"} == set(listed)
    assert listed["servers"]["hosts"] == ["h1"] and listed["agents"]["hosts"] == []
    text = bed("inventory", name="bedtest-served").stdout
    assert "k3s_version" in text and (lab.folder / "inventory.yml").stat().st_mode & 0o777 == 0o600
    for part in ("k3s", "oauth2-proxy", "sign-in provider"):
        assert any(text.startswith(part) for text in lab.described["stand_ins"]), part


def test_a_given_k3s_is_served_in_its_own_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = tmp_path / "k3s"
    given.write_text("#!/bin/sh\necho 'k3s version v1.36.9+k3s4 (abcdef12)'\necho 'go version go1.26.8'\n")
    given.chmod(0o755)
    monkeypatch.setenv("HEARTH_BED_K3S", str(given))
    with running("bedtest-given", 1, "--with", "services"):
        lab = Lab("bedtest-given")
        assert lab.get("/k3s/download/v1.36.9+k3s4/k3s") == given.read_bytes()
        k3s = lab.described["k3s"]
        checksum = hashlib.sha256(given.read_bytes()).hexdigest()
        assert k3s["versions"] == {"v1.36.9+k3s4": {"sha256": {"amd64": checksum}}}
        assert not k3s["stand_in"] and not any(text.startswith("k3s") for text in lab.described["stand_ins"])
        variables = json.loads(bed("inventory", "--json", name="bedtest-given").stdout)["k3s_cluster"]["vars"]
        assert (variables["k3s_version"], variables["k3s_sha256"]) == ("v1.36.9+k3s4", {"amd64": checksum})


def test_what_is_no_k3s_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEARTH_BED_K3S", "/bin/true")
    refused = bed("up", "-n", "1", "--with", "services", name="bedtest-refused", check=False)
    assert refused.returncode == 1 and "HEARTH_BED_K3S=/bin/true" in refused.stderr
    assert traces("bedtest-refused") == NOTHING


def test_services_go_down_with_the_bed(lab: Lab) -> None:
    assert all(status("bedtest-served")["services"].values())
    bed("down", name="bedtest-served")
    assert traces("bedtest-served") == NOTHING
