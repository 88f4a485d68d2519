"""`bed build`: what beds are made of, in the order in which a failure shows soonest."""

from __future__ import annotations

from pathlib import Path

from . import cache, debian, release, state
from .common import need_tools

HOST_TOOLS = {"mmdebstrap": "mmdebstrap", "tar": "tar", "chroot": "coreutils"}
ALL_TOOLS = {
    **HOST_TOOLS,
    "go": "golang-go",
    "gcc": "gcc libc6-dev",
    "dpkg": "dpkg",
    "apt-get": "apt",
    "zstd": "zstd",
}


def host_only() -> Path:
    """The hosts' root file system; returns its folder."""
    need_tools(HOST_TOOLS)
    return cache.entry("hostfs", debian.host_inputs(), debian.build_host) / "root"


def everything() -> release.Built:
    """Host file system, programs, images, release files, registry; returns where they lie."""
    need_tools(ALL_TOOLS)
    host_only()
    built = release.build_everything()
    cache.tidy({value for bed in state.all_beds() for value in _used(bed)})
    return built


def _used(bed: state.Bed) -> list[str]:
    """Cache entries that a running bed reads: its hosts' base, and the release files that it links to."""
    releases = bed.folder / "release"
    links = [path.resolve() for path in releases.iterdir()] if releases.is_dir() else []
    return [str(path.parent) for path in (Path(bed.hostfs), *links)]
