"""What can be measured of the running process: facts for people who want to know where their words can go.

Everything here looks at the process and not at the configuration. What cannot be measured on this
system is None.
"""

from __future__ import annotations

import hashlib
import logging
import os
import resource
import stat
import sys
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

_WRITABLE = os.O_WRONLY | os.O_RDWR


def core_dumps() -> bool:
    """Whether a crash may write the memory, with every open conversation in it, to a disk or to a program.

    A limit of 1 stops both; 0 does not stop a program.
    """
    limit = resource.getrlimit(resource.RLIMIT_CORE)[0]
    if limit == 1:
        return False
    try:
        to_program = Path("/proc/sys/kernel/core_pattern").read_bytes().startswith(b"|")
    except OSError:
        to_program = True  # cannot be ruled out
    return limit != 0 or to_program


def traced() -> bool:
    """Whether a debugger or profiler of Python sees every value."""
    return sys.gettrace() is not None or sys.getprofile() is not None


def log_sinks() -> list[str]:
    """Types of the handlers of Python's logging. The gateway's own log uses none of them."""
    loggers = [logging.getLogger(), *(item for item in logging.Logger.manager.loggerDict.values() if isinstance(item, logging.Logger))]
    found = {type(handler).__name__ for logger in loggers for handler in logger.handlers}
    return sorted(found - {"NullHandler"})


def files_written() -> list[str] | None:
    """Names, without directories, of the regular files that are open for writing."""
    try:
        names = set()
        for entry in Path("/proc/self/fd").iterdir():
            name = _written(entry)
            if name is not None:
                names.add(name)
        return sorted(names)
    except OSError:
        return None


def _written(entry: Path) -> str | None:
    try:
        if not stat.S_ISREG(entry.stat().st_mode):
            return None
        information = Path("/proc/self/fdinfo", entry.name).read_text()
        target = entry.readlink()
    except FileNotFoundError:
        return None  # closed meanwhile
    flags = next(int(line.split()[1], 8) for line in information.splitlines() if line.startswith("flags:"))
    return target.name if flags & _WRITABLE else None


def code_hash() -> str:
    """SHA-256 over the installed package: each file's path below it, its length and its bytes, in order of the path.

    ``hearth-gateway code-hash`` prints the same number for an installation that one wants to compare with.
    """
    digest = hashlib.sha256()
    for path, body in sorted(_files(resources.files("hearth_gateway"), "")):
        digest.update(f"{path}\n{len(body)}\n".encode())
        digest.update(body)
    return digest.hexdigest()


def _files(directory: Traversable, prefix: str) -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    for entry in directory.iterdir():
        if entry.is_dir():
            # Compiled files hold the time of their source, so they differ between equal installations.
            if entry.name != "__pycache__":
                found += _files(entry, f"{prefix}{entry.name}/")
        elif not entry.name.endswith(".pyc"):
            found.append((prefix + entry.name, entry.read_bytes()))
    return found
