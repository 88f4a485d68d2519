"""Gather all that a host without internet needs, in one folder. Runs on a machine with internet.

    make airgap ARCH=amd64             build/airgap-amd64: k3s, its images, the gateway's image, SHA256SUMS
    python scripts/airgap.py --arch arm64 --out /media/stick/hearth

Then, in the inventory: k3s_airgap_dir: <the folder>, host_image_build_enabled: false. Folders of both architectures may be
copied into one. Everything is checked against contract/pins.yml; what nobody has pinned is refused, unless its checksum is given
(--sha256 k3s=… --sha256 k3s-airgap=…). A run that was broken off goes on where it stopped; a newer version takes the place
of the older one, whose archives would otherwise be imported too.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
SUFFIX = {"amd64": "", "arm64": "-arm64"}
LIST = "SHA256SUMS"
TIMEOUT_S = 60
CA_IN_BUILD = "/run/host-ca.crt"


class AirgapError(Exception):
    """Why there is no bundle; the text says what to do."""


@dataclass(frozen=True)
class Wanted:
    """One file of the bundle that is downloaded."""

    name: str
    url: str
    sha256: str


def collection() -> Any:
    """The collection's own code for pins and for the hash of the source: one truth for bundle and roles."""
    sys.path.insert(0, str(ROOT / "plugins" / "module_utils"))
    return importlib.import_module("_pins"), importlib.import_module("_source_tree")


def default(role: str, variable: str) -> str:
    """A role's default that is plain text."""
    return str(yaml.safe_load((ROOT / "roles" / role / "defaults" / "main.yml").read_text())[variable])


def sha256(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def pinned(name: str, version: str, arch: str, given: dict[str, str]) -> str:
    """The checksum of a release file.

    :raises AirgapError: nobody has recorded one.
    """
    if name in given:
        if not re.fullmatch(r"[0-9a-f]{64}", given[name]):
            raise AirgapError(f"--sha256 {name}={given[name]}: a checksum is 64 digits and letters from a to f, as sha256sum prints it")
        return given[name]
    pins, _tree = collection()
    found = pins.lookup(pins.load(), name, "file", version, arch)
    if not found.get("sha256"):
        raise AirgapError(
            f"{name} {version} for {arch} is not pinned: {found['problem']}. Run `make resolve-pins add=k3s@{version}`, or give its "
            f"checksum: --sha256 {name}=…"
        )
    return str(found["sha256"])


def release_files(version: str, arch: str, base: str, given: dict[str, str]) -> list[Wanted]:
    folder = f"{base.rstrip('/')}/download/{version.replace('+', '%2B')}"
    names = {"k3s": f"k3s{SUFFIX[arch]}", "k3s-airgap": f"k3s-airgap-images-{arch}.tar.zst"}
    return [Wanted(file, f"{folder}/{file}", pinned(name, version, arch, given)) for name, file in names.items()]


def fetch(wanted: Wanted, folder: Path) -> bool:
    """Download one file, unless it is there already. Returns whether it was.

    :raises AirgapError: it cannot be had, or is another file than the pinned one.
    """
    target = folder / wanted.name
    if target.exists() and sha256(target) == wanted.sha256:
        return False
    partial = folder / f".{wanted.name}.partial"
    try:
        with urllib.request.urlopen(wanted.url, timeout=TIMEOUT_S) as source, partial.open("wb") as sink:  # noqa: S310  (https by default)
            shutil.copyfileobj(source, sink, 1 << 20)
        found = sha256(partial)
        if found != wanted.sha256:
            raise AirgapError(f"{wanted.url} has sha256 {found}, pinned is {wanted.sha256}: changed, or cut off. Nothing of it was kept")
        partial.replace(target)
    except (OSError, urllib.error.URLError) as error:
        raise AirgapError(f"{wanted.url} cannot be had: {getattr(error, 'reason', error)}") from None
    finally:
        partial.unlink(missing_ok=True)
    return True


def base_image() -> str:
    """The base of the gateway's image as the role would pull it: its name is part of the image's own name."""
    pins, _tree = collection()
    version = default("gateway", "gateway_base_image_version")
    found = pins.lookup(pins.load(), "python", "image", version)
    return str(found.get("image") or f"docker.io/library/python:{version}")


def gateway_name(base: str, arch: str) -> tuple[str, str]:
    """Tag of the gateway's image and name of its file, as the role `gateway` expects them."""
    _pins, tree = collection()
    digest = tree.content_hash([ROOT / "files" / "gateway"], [base])[:16]
    return f"localhost/hearth/gateway:{digest}", f"hearth-gateway-{digest}-{arch}.tar"


def build_gateway(base: str, arch: str, folder: Path, build_arguments: list[str]) -> str:
    """Build the gateway's image into the folder, unless it is there; the name of its file.

    :raises AirgapError: buildah is missing, or failed.
    """
    tag, name = gateway_name(base, arch)
    if (folder / name).exists():
        return name
    if shutil.which("buildah") is None:
        raise AirgapError("buildah is missing: apt install buildah, or leave the gateway's image out (--without-gateway, gateway_image)")
    _pins, tree = collection()
    partial = folder / f".{name}.partial"
    # What a run that was broken off left: buildah adds nothing to a file that is there.
    partial.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="hearth-airgap-") as scratch:
        for relative, source in tree.files(ROOT / "files" / "gateway"):
            target = Path(scratch) / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
        command = ["buildah", "build", f"--arch={arch}", "--isolation=chroot", f"--build-arg=BASE_IMAGE={base}", *build_arguments,
                   f"--timestamp={tree.TIMESTAMP}", f"--tag={tag}", scratch]  # fmt: skip
        for words in (command, ["buildah", "push", "--quiet", tag, f"docker-archive:{partial}:{tag}"]):
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode:
                partial.unlink(missing_ok=True)
                lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
                hint = "; for another architecture than this machine's, install qemu-user-static" if "exec format" in done.stderr else ""
                raise AirgapError(f"{' '.join(words[:2])}: {lines[-1]}{hint}")
    partial.replace(folder / name)
    return name


def tidy(folder: Path, arch: str, wanted: set[str]) -> list[str]:
    """Remove what an earlier version left for this architecture: k3s imports every archive that it finds."""
    gone = []
    for path in sorted(folder.glob("hearth-gateway-*.tar")):
        if path.name.endswith(f"-{arch}.tar") and path.name not in wanted:
            path.unlink()
            gone.append(path.name)
    return gone


def write_list(folder: Path) -> list[str]:
    """SHA256SUMS over all files, in the form that `sha256sum -c` reads."""
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and p.name != LIST and not p.name.startswith("."))
    (folder / LIST).write_text("".join(f"{sha256(folder / name)}  {name}\n" for name in names))
    return names


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", choices=sorted(SUFFIX), required=True)
    parser.add_argument("--version", default=default("k3s", "k3s_version"), help="release of k3s (default: that of the role)")
    parser.add_argument("--release-url", default=default("k3s", "k3s_release_url"), help="where releases lie")
    parser.add_argument("--out", type=Path, help="folder of the bundle (default: build/airgap-ARCH)")
    parser.add_argument("--sha256", action="append", default=[], metavar="NAME=HEX", help="checksum of k3s or k3s-airgap")
    parser.add_argument("--base-image", default="", help="base of the gateway's image (default: the pinned one)")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE", help="for the gateway's image")
    parser.add_argument("--ca-file", type=Path, metavar="FILE", help="certificates that the build trusts, where a proxy has its own")
    parser.add_argument("--without-gateway", action="store_true", help="leave the gateway's image out")
    options = parser.parse_args()
    folder: Path = options.out or ROOT / "build" / f"airgap-{options.arch}"
    given = dict(entry.split("=", 1) for entry in options.sha256)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = release_files(options.version, options.arch, options.release_url, given)
        for wanted in files:
            print(f"{'fetched' if fetch(wanted, folder) else 'is there'}: {wanted.name}", flush=True)
        names = {wanted.name for wanted in files}
        if not options.without_gateway:
            arguments = [f"--build-arg={entry}" for entry in options.build_arg]
            if options.ca_file:
                arguments += [f"--volume={options.ca_file.resolve()}:{CA_IN_BUILD}:ro", f"--build-arg=PIP_CERT={CA_IN_BUILD}"]
            names.add(build_gateway(options.base_image or base_image(), options.arch, folder, arguments))
        for name in tidy(folder, options.arch, names):
            print(f"removed: {name}, of an earlier version")
        listed = write_list(folder)
    except (AirgapError, OSError) as error:
        print(f"airgap: {error}.", file=sys.stderr)
        return 1
    print(f"{folder}: {', '.join(listed)}\nIn the inventory: k3s_airgap_dir: {folder}, host_image_build_enabled: false")
    return 0


if __name__ == "__main__":
    sys.exit(main())
