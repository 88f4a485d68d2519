"""A store of things built once: each entry is a folder named by the hash of everything that went into it.

An entry is made in a folder beside its final place and renamed when complete, so an interrupted build leaves
nothing that a later one could take for whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from .common import cache_dir, lock, remove_tree, say, step

KEEP = 3
KEEP_S = 2 * 3600


def builds_dir() -> Path:
    return cache_dir() / "build"


_held = False


@contextlib.contextmanager
def building() -> Iterator[None]:
    """Held while something is built: two builds at once would compile Kubernetes twice.

    Removes what a killed build left half made. An entry that is built for another one finds it held already.
    """
    global _held
    if _held:
        yield
        return
    with lock(builds_dir() / ".lock", "another build of the bed"):
        for partial in builds_dir().glob("*/.partial-*"):
            remove_tree(partial)
        _held = True
        try:
            yield
        finally:
            _held = False


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


def texts(*functions: Callable[..., object]) -> list[str]:
    """The source of functions, as an input: what a step does decides its result as much as what it reads."""
    return [inspect.getsource(function) for function in functions]


def entry(kind: str, inputs: Iterable[str | bytes | Path], build: Callable[[Path], None]) -> Path:
    """The folder of `kind` made from `inputs` by `build`, whose own text counts as an input too.

    What is there already is returned at once, also while somebody builds something else.
    """
    folder = builds_dir() / kind / digest([*texts(build), *inputs])[:20]
    if not folder.is_dir():
        with building():
            if not folder.is_dir():  # unless the build that we waited for made it
                _make(kind, folder, build)
    os.utime(folder)  # the order in which tidy() removes old ones
    return folder


def _make(kind: str, folder: Path, build: Callable[[Path], None]) -> None:
    partial = folder.with_name(f".partial-{folder.name}")
    partial.mkdir(parents=True)
    with step(kind):
        build(partial)
    partial.rename(folder)


def tidy(in_use: set[str]) -> None:
    """Remove old entries: not of the newest of their kind, not used for hours, and no bed runs on them.

    A release has 280 MB and changes with every change of the stand-in. The hours are for a bed that another
    terminal starts just now: it has chosen its entries and not yet written down which.
    """
    for kind in builds_dir().iterdir():
        if kind.is_dir():
            entries = sorted(kind.glob("[!.]*"), key=lambda path: path.stat().st_mtime, reverse=True)
            for old in entries[KEEP:]:
                if str(old) not in in_use and old.stat().st_mtime < time.time() - KEEP_S:
                    say(f"  removing {kind.name}/{old.name}, replaced by newer ones")
                    shutil.rmtree(old)
