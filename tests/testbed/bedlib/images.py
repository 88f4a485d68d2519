"""Container images without a container tool, so that equal content has an equal digest."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import tarfile
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

EPOCH = 946684800  # the same for every file, or the digest would change with each build
CREATED = "2000-01-01T00:00:00Z"


@dataclasses.dataclass(frozen=True)
class Image:
    """One image with one layer, given as the path of an uncompressed tar file."""

    name: str
    layer: Path
    config: Mapping[str, Any]

    @property
    def diff_id(self) -> str:
        with self.layer.open("rb") as file:
            return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()

    def config_blob(self) -> bytes:
        """The image's configuration as the registry and the archive hold it."""
        return _json(
            {
                "architecture": "amd64",
                "os": "linux",
                "created": CREATED,
                "config": dict(self.config),
                "rootfs": {"type": "layers", "diff_ids": [self.diff_id]},
                "history": [{"created": CREATED, "created_by": "hearth bed"}],
            }
        )


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def write_layer(path: Path, files: Mapping[str, Path], links: Mapping[str, str], folders: Sequence[str]) -> None:
    """Write a layer from programs (mode 0755, root's), symbolic links and folders (/tmp: sticky bit)."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:

        def add(name: str, kind: bytes, mode: int, target: str = "", content: Path | None = None) -> None:
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.mtime, info.linkname = kind, mode, EPOCH, target
            if content is None:
                tar.addfile(info)
            else:
                info.size = content.stat().st_size
                with content.open("rb") as file:
                    tar.addfile(info, file)

        parents = {str(parent) for name in (*files, *links) for parent in Path(name).parents} - {"."}
        for folder in sorted(parents | set(folders)):
            add(folder, tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755)
        for name, content in sorted(files.items()):
            add(name, tarfile.REGTYPE, 0o755, content=content)
        for name, target in sorted(links.items()):
            add(name, tarfile.SYMTYPE, 0o777, target)


def write_archive(path: Path, images: Sequence[Image]) -> None:
    """Write a docker-archive. (ctr imports an oci-archive without its name.)"""
    index: list[dict[str, object]] = []
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:

        def add(name: str, data: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), EPOCH
            tar.addfile(info, io.BytesIO(data))

        written: set[str] = set()
        for image in images:
            blob = image.config_blob()
            config = hashlib.sha256(blob).hexdigest() + ".json"
            layer = image.diff_id.removeprefix("sha256:") + ".tar"
            if layer not in written:
                info = tarfile.TarInfo(layer)
                info.size, info.mtime = image.layer.stat().st_size, EPOCH
                with image.layer.open("rb") as file:
                    tar.addfile(info, file)
            if config not in written:
                add(config, blob)
            written |= {layer, config}
            index.append({"Config": config, "RepoTags": [image.name], "Layers": [layer]})
        add("manifest.json", _json(index))


def push(registry: str, repository: str, tag: str, image: Image, compressed: Path) -> str:
    """Push an image over the distribution API and return its digest; plain HTTP, for loopback."""

    def call(method: str, url: str, body: bytes | None = None, kind: str = "application/octet-stream") -> Any:
        request = urllib.request.Request(url, data=body, method=method, headers={"Content-Type": kind})
        return urllib.request.urlopen(request, timeout=60)

    def upload(data: bytes) -> str:
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        with call("POST", f"{registry}/v2/{repository}/blobs/uploads/", b"") as answer:
            place = urllib.parse.urljoin(registry, answer.headers["Location"])
        joiner = "&" if "?" in place else "?"
        with call("PUT", f"{place}{joiner}{urllib.parse.urlencode({'digest': digest})}", data):
            return digest

    blob, layer = image.config_blob(), compressed.read_bytes()
    kind = "application/vnd.docker.distribution.manifest.v2+json"
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": kind,
            "config": {
                "mediaType": "application/vnd.docker.container.image.v1+json",
                "size": len(blob),
                "digest": upload(blob),
            },
            "layers": [
                {
                    "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
                    "size": len(layer),
                    "digest": upload(layer),
                }
            ],
        }
    )
    digest = "sha256:" + hashlib.sha256(manifest).hexdigest()
    with call("PUT", f"{registry}/v2/{repository}/manifests/{tag}", manifest, kind) as answer:
        told = answer.headers["Docker-Content-Digest"]
    if told != digest:
        raise ValueError(f"the registry stored {told} for a manifest with digest {digest}")
    return digest
