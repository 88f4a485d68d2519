# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One view of a source directory: which files count, their hash, and the same files as a tar archive.

Names and contents count; owners, times and the order of the directory do not, so that a checkout, a
second checkout and an installed collection give one hash. Pure but for reading the files.
"""

from __future__ import annotations

import hashlib
import io
import stat
import tarfile
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import IO

# What is made from the source, and what is not shipped with it (galaxy.yml leaves the tests out).
IGNORED = (".*", "__pycache__", "*.pyc", "*.egg-info", "build", "dist", "node_modules", "tests", "web-types")

# Time of every file in an archive: 2020-01-01. A wheel is a ZIP file, and that knows no time before 1980.
TIMESTAMP = 1577836800


def _counts(name: str) -> bool:
    return not any(fnmatch(name, pattern) for pattern in IGNORED)


def files(root: Path) -> list[tuple[PurePosixPath, Path]]:
    """Relative name and path of every file that counts, sorted by name.

    :raises FileNotFoundError: no such directory, or nothing in it.
    """
    found: list[tuple[PurePosixPath, Path]] = []
    pending = [root]
    while pending:
        for entry in pending.pop().iterdir():
            if not _counts(entry.name):
                continue
            if entry.is_dir():
                pending.append(entry)
            elif entry.is_file():
                found.append((PurePosixPath(entry.relative_to(root).as_posix()), entry))
    if not found:
        raise FileNotFoundError(f"{root} holds no source files")
    return sorted(found)


def _executable(path: Path) -> bool:
    return bool(path.stat().st_mode & stat.S_IXUSR)


def content_hash(roots: Iterable[Path], extra: Iterable[str] = ()) -> str:
    """64 hexadecimal digits over the files below `roots` (a single file counts as one) and the `extra` texts."""
    digest = hashlib.sha256()

    def add(*parts: bytes) -> None:
        for part in parts:
            # The length first: "ab","c" and "a","bc" must differ.
            digest.update(len(part).to_bytes(8, "big") + part)

    for root in roots:
        entries = [(PurePosixPath(root.name), root)] if root.is_file() else files(root)
        for name, path in entries:
            add(b"file", str(name).encode(), b"x" if _executable(path) else b"-", path.read_bytes())
    for text in extra:
        add(b"text", text.encode())
    return digest.hexdigest()


def write_tar(root: Path, target: IO[bytes]) -> None:
    """The files below `root` as an uncompressed tar archive; the same files give the same bytes."""
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, path in files(root):
            data = path.read_bytes()
            entry = tarfile.TarInfo(str(name))
            entry.size = len(data)
            entry.mode = 0o755 if _executable(path) else 0o644
            entry.mtime = TIMESTAMP
            # Owner and group keep TarInfo's zeros.
            archive.addfile(entry, io.BytesIO(data))
