"""The bundle for hosts without internet: what is in it, checked against the pins, whole or not at all."""

from __future__ import annotations

import hashlib
import http.server
import importlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
airgap = importlib.import_module("airgap")

VERSION = "v1.36.4+k3s1"
FILES = {
    "k3s": b"binary",
    "k3s-arm64": b"other binary",
    "k3s-airgap-images-amd64.tar.zst": b"images",
    "k3s-airgap-images-arm64.tar.zst": b"other images",
}


@pytest.fixture
def releases(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "www" / "download" / VERSION
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(tmp_path / "www"))  # type: ignore[arg-type]

        def log_message(self, *_arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def bundle(folder: Path, url: str, arch: str = "amd64", **sums: str) -> subprocess.CompletedProcess[str]:
    given = {"k3s": FILES[f"k3s{airgap.SUFFIX[arch]}"], "k3s-airgap": FILES[f"k3s-airgap-images-{arch}.tar.zst"]}
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in given.items()} | sums
    words = [f"--sha256={name.replace('_', '-')}={value}" for name, value in checksums.items()]
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts/airgap.py"), "--arch", arch, "--version", VERSION, "--release-url", url, "--out", str(folder),
         "--without-gateway", *words],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("arch", ["amd64", "arm64"])
def test_a_bundle_holds_what_its_list_says(tmp_path: Path, releases: str, arch: str) -> None:
    folder = tmp_path / "bundle"
    done = bundle(folder, releases, arch)
    assert done.returncode == 0, done.stderr
    names = {f"k3s{airgap.SUFFIX[arch]}", f"k3s-airgap-images-{arch}.tar.zst"}
    assert {p.name for p in folder.iterdir()} == names | {"SHA256SUMS"}
    assert subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, capture_output=True, check=False).returncode == 0


def test_two_architectures_lie_in_one_folder(tmp_path: Path, releases: str) -> None:
    for arch in ("amd64", "arm64"):
        assert bundle(tmp_path / "bundle", releases, arch).returncode == 0
    assert {p.name for p in (tmp_path / "bundle").iterdir()} == set(FILES) | {"SHA256SUMS"}


def test_what_is_there_is_not_fetched_again(tmp_path: Path, releases: str) -> None:
    bundle(tmp_path / "bundle", releases)
    assert "fetched" not in bundle(tmp_path / "bundle", releases).stdout


def test_another_file_than_the_pinned_one_is_refused_and_not_kept(tmp_path: Path, releases: str) -> None:
    done = bundle(tmp_path / "bundle", releases, k3s_airgap="0" * 64)
    assert done.returncode == 1
    assert "pinned is 000" in done.stderr and "Traceback" not in done.stderr
    assert [p.name for p in (tmp_path / "bundle").iterdir()] == ["k3s"]


def test_a_file_that_cannot_be_had_is_told_with_its_address(tmp_path: Path, releases: str) -> None:
    done = bundle(tmp_path / "bundle", f"{releases}/nowhere")
    assert done.returncode == 1
    assert f"{releases}/nowhere/download/v1.36.4%2Bk3s1/k3s cannot be had" in done.stderr


def test_what_nobody_has_pinned_is_refused_with_both_ways_out() -> None:
    with pytest.raises(airgap.AirgapError, match=r"resolve-pins add=k3s@v9\.9\.9\+k3s1.*--sha256 k3s="):
        airgap.pinned("k3s", "v9.9.9+k3s1", "amd64", {})


def test_the_gateways_image_has_the_name_that_the_role_looks_for() -> None:
    """As the filter `content_hash` makes it of source and base image."""
    import yaml
    from ansible_collections.homelab.hearth.plugins.module_utils import _source_tree

    base = airgap.base_image()
    tag, file = airgap.gateway_name(base, "arm64")
    digest = _source_tree.content_hash([ROOT / "files" / "gateway"], [base])[:16]
    assert (tag, file) == (f"localhost/hearth/gateway:{digest}", f"hearth-gateway-{digest}-arm64.tar")
    expected = yaml.safe_load((ROOT / "roles/gateway/vars/main.yml").read_text())
    assert expected["_gateway_built_image"].startswith("localhost/hearth/gateway:")
    assert "'/hearth-gateway-' ~ _gateway_source_hash ~ '-'" in expected["_gateway_bundled"]


def test_a_run_that_was_broken_off_while_the_image_was_written_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """buildah writes into no archive that has something in it already."""
    buildah = tmp_path / "bin" / "buildah"
    buildah.parent.mkdir()
    buildah.write_text(
        '#!/bin/sh\n[ "$1" = push ] || exit 0\nfile=${4#docker-archive:}; file=${file%%:*}\n'
        '[ ! -s "$file" ] || { echo "docker-archive: no modifying of existing images" >&2; exit 125; }\necho image >"$file"\n'
    )
    buildah.chmod(0o755)
    monkeypatch.setenv("PATH", f"{buildah.parent}:/usr/bin:/bin")
    _tag, name = airgap.gateway_name("base", "amd64")
    (tmp_path / f".{name}.partial").write_text("half of it")
    assert airgap.build_gateway("base", "amd64", tmp_path, []) == name
    assert (tmp_path / name).read_text() == "image\n"


def test_images_of_an_earlier_version_go(tmp_path: Path) -> None:
    for name in ("hearth-gateway-old-amd64.tar", "hearth-gateway-new-amd64.tar", "hearth-gateway-old-arm64.tar"):
        (tmp_path / name).touch()
    assert airgap.tidy(tmp_path, "amd64", {"hearth-gateway-new-amd64.tar"}) == ["hearth-gateway-old-amd64.tar"]


def test_something_that_is_no_checksum_is_told(tmp_path: Path, releases: str) -> None:
    done = bundle(tmp_path, releases, k3s="abc")
    assert (done.returncode, done.stderr) == (
        1, "airgap: --sha256 k3s=abc: a checksum is 64 digits and letters from a to f, as sha256sum prints it.\n"
    )  # fmt: skip
