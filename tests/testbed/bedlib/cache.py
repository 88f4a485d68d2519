"""A store of things built once: each entry is a folder named by the hash of everything that went into it.

An entry is made in a folder beside its final place and renamed when complete, so an interrupted build leaves nothing
that a later one could take for whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from .common import cache_dir, lock, remove_tree, say, step

KEEP = 3


def builds_dir() -> Path:
    return cache_dir() / "build"


@contextlib.contextmanager
def building() -> Iterator[None]:
    """Held by a build: two at once would compile Kubernetes twice. Half-made entries of a killed one are removed."""
    with lock(builds_dir() / ".lock", "another build of the bed"):
        for partial in builds_dir().glob("*/.partial-*"):
            remove_tree(partial)
        yield


def digest(parts: Iterable[str | bytes | Path]) -> str:
    """Hash of texts and of files (a folder counts with all its files' names, modes and contents)."""
    total = hashlib.sha256()

    def add(data: bytes) -> None:
        total.update(len(data).to_bytes(8, "big") + data)

    for part in parts:
        if isinstance(part, Path):
            files = sorted(path for path in part.rglob("*") if path.is_file()) if part.is_dir() else [part]
            for file in files:
                name = str(file.relative_to(part)) if file != part else file.name
                add(f"{name} {file.stat().st_mode & 0o111:o}".encode())
                add(file.read_bytes())
        else:
            add(part.encode() if isinstance(part, str) else part)
    return total.hexdigest()


def entry(kind: str, inputs: Iterable[str | bytes | Path], build: Callable[[Path], None]) -> Path:
    """The folder of `kind` made from `inputs`; `build` fills it when it is not there yet."""
    folder = builds_dir() / kind / digest(inputs)[:20]
    if folder.is_dir():
        os.utime(folder)  # the order in which tidy() removes old ones
        return folder
    partial = folder.with_name(f".partial-{folder.name}")
    remove_tree(partial)
    partial.mkdir(parents=True)
    with step(kind):
        build(partial)
    partial.rename(folder)
    return folder


def find(kind: str, inputs: Iterable[str | bytes | Path]) -> Path | None:
    """The entry if it has been built."""
    folder = builds_dir() / kind / digest(inputs)[:20]
    return folder if folder.is_dir() else None


def tidy(in_use: set[str]) -> None:
    """Of every kind keep the newest entries and those that a bed runs on; a base system has 300 MB."""
    for kind in builds_dir().iterdir():
        if kind.is_dir():
            entries = sorted(
                (path for path in kind.iterdir()), key=lambda path: path.stat().st_mtime, reverse=True
            )
            for old in entries[KEEP:]:
                if str(old) not in in_use:
                    say(f"  removing {kind.name}/{old.name}, replaced by newer ones")
                    shutil.rmtree(old)
