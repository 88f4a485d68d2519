"""A host that reaches nothing but the model vendor is installed from a bundle that another machine gathered.

`HEARTH_KEEP_BED=1` takes a bed that is up already and leaves it up, to repeat a test by hand.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.cluster.support import ROOT, Bed, Run, collect, play

pytestmark = pytest.mark.timeout(900)

MACHINE_TRUSTS = Path("/etc/ssl/certs/ca-certificates.crt")
# Out of the host goes what answers somebody, what stays in the cluster, and what asks the vendor. Pods are held to the same.
CUT = """
table inet airgap
delete table inet airgap
table inet airgap {{
  chain allowed {{
    ct state established,related accept
    tcp sport 22 accept comment "the connection that brings this is older than the table"
    ip daddr {{ 127.0.0.0/8, 10.42.0.0/16, 10.43.0.0/16, {host} }} accept
    ip daddr {address} tcp dport {port} accept
    ip6 daddr {{ ::1, fe80::/10, ff02::/16 }} accept
    reject
  }}
  chain from_host {{ type filter hook output priority 300; jump allowed; }}
  chain from_pods {{ type filter hook forward priority 300; jump allowed; }}
}}
"""


@dataclass
class Lab:
    """The host h1 behind its cut, and what the machine with internet gathers for it."""

    bed: Bed
    bundle: Path

    def gather(self) -> subprocess.CompletedProcess[str]:
        """What `make airgap` does, from the bed's mirror and registry, which have certificates of the bed's own."""
        given = self.bed.variables()
        images = self.bed.state / "release" / given["k3s_version"] / "k3s-airgap-images-amd64.tar.zst"
        trusted = self.bed.state / "trusted.crt"
        trusted.write_text(MACHINE_TRUSTS.read_text() + (self.bed.state / "ca.crt").read_text())
        command = [sys.executable, "scripts/airgap.py", "--arch", "amd64", "--out", str(self.bundle), "--version", given["k3s_version"],
                   "--release-url", given["k3s_release_url"], "--sha256", f"k3s={given['k3s_sha256']['amd64']}",
                   "--sha256", f"k3s-airgap={self.sha256_of_images(images)}", "--base-image", given["gateway_base_image"],
                   "--ca-file", str(MACHINE_TRUSTS)]  # fmt: skip
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600,
                              env=os.environ | {"SSL_CERT_FILE": str(trusted)})  # fmt: skip

    @staticmethod
    def sha256_of_images(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    def site(self, *arguments: str) -> Run:
        variables = {
            "k3s_airgap_dir": str(self.bundle),
            "k3s_airgap_sha256": {"amd64": self.sha256_of_images(self.bundle / "k3s-airgap-images-amd64.tar.zst")},
            "host_image_build_enabled": False,
        }
        return play("site.yml", self.bed.inventory, *arguments, "-e", json.dumps(variables), timeout_s=600)

    def reaches(self, url: str) -> bool:
        host, port = urlsplit(url).hostname, urlsplit(url).port
        return "open" in self.bed.ssh(f"timeout 3 bash -c '</dev/tcp/{host}/{port}' && echo open", check=False)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    bed = Bed("airgap")
    kept = bool(os.environ.get("HEARTH_KEEP_BED"))
    if not (kept and bed.inventory.exists()):
        bed.call("down", check=False)
        bed.call("up", "-n", "1", "--with", "services", timeout_s=900)
    yield Lab(bed, tmp_path_factory.mktemp("bundle"))
    if not kept:
        collect(bed, "logs")
        bed.call("down")


def test_a_machine_with_internet_gathers_the_bundle(lab: Lab) -> None:
    first = lab.gather()
    assert first.returncode == 0, first.stderr + first.stdout
    listed = {line.split()[1] for line in (lab.bundle / "SHA256SUMS").read_text().splitlines()}
    assert {"k3s", "k3s-airgap-images-amd64.tar.zst"} < listed
    [image] = [name for name in listed if name.startswith("hearth-gateway-")]
    assert listed == {"k3s", "k3s-airgap-images-amd64.tar.zst", image}
    again = lab.gather()
    assert again.stdout.count("is there: ") == 2, again.stdout


def test_a_host_whose_only_way_out_is_the_vendor_installs_from_it(lab: Lab) -> None:
    services = lab.bed.described["services"]
    vendor = urlsplit(services["anthropic"])
    lab.bed.ssh("nft -f -", stdin=CUT.format(host=lab.bed.described["hosts"]["h1"]["address"], address=vendor.hostname, port=vendor.port))
    ways = {name: lab.reaches(services[name]) for name in ("anthropic", "release", "oidc")}
    assert ways == {"anthropic": True, "release": False, "oidc": False}
    assert not lab.reaches(f"https://{services['registry']}")
    run = lab.site()
    assert run.rc == 0, run.output[-6000:]
    assert "Answered by" in run.output
    again = lab.site()
    assert (again.rc, again.count("changed")) == (0, 0), again.output[-6000:]


def test_a_bundle_that_was_damaged_is_refused(lab: Lab) -> None:
    binary = lab.bundle / "k3s"
    whole = binary.read_bytes()
    try:
        binary.write_bytes(whole[:-1])
        run = lab.site("--tags", "k3s")
        assert run.rc != 0
        assert f"{binary} has sha256" in " ".join(run.output.split()), run.output[-3000:]
        assert run.count("changed") == 0
    finally:
        binary.write_bytes(whole)
    run = lab.site("--tags", "k3s")
    assert (run.rc, run.count("changed")) == (0, 0), run.output[-3000:]
