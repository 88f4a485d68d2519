"""Paths, commands, locks and progress lines that every other module uses."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

TESTBED = Path(__file__).resolve().parent.parent
REPOSITORY = TESTBED.parent.parent
LOCKS = Path("/run/lock")


class BedError(Exception):
    """Something the user can act on; its text is one sentence and is shown without a traceback."""


def cache_dir() -> Path:
    """Where everything built or downloaded lives: $HEARTH_CACHE, or the user's cache folder."""
    given = os.environ.get("HEARTH_CACHE")
    if given:
        return Path(given).resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").resolve() / "hearth"


def run(
    *argv: str | Path,
    check: bool = True,
    stdin: str | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return it with its text.

    With `log`, both streams go into that file and only its last lines reach the error.
    Raises BedError when the command fails and `check` is true.
    """
    command = [str(word) for word in argv]
    if log is None:
        done = subprocess.run(command, input=stdin, text=True, capture_output=True, cwd=cwd, env=env, check=False)
    else:
        with log.open("a") as file:
            done = subprocess.run(command, input=stdin, text=True, stdout=file, stderr=file, cwd=cwd, env=env, check=False)
    if check and done.returncode != 0:
        said = (done.stderr or done.stdout or "") if log is None else log.read_text(errors="replace")
        tail = "\n".join(said.strip().splitlines()[-15:])
        raise BedError(f"`{' '.join(command)}` ended with {done.returncode}:\n{tail}")
    return done


def need_root() -> None:
    """Raise BedError unless we may make namespaces, mounts and cgroups."""
    if os.geteuid() != 0:
        raise BedError("the bed makes network namespaces and mounts: run it as root")


def need_tools(tools: Mapping[str, str]) -> None:
    """Raise BedError naming every missing tool at once; `tools` maps a command to its Debian package."""
    missing = sorted({package for tool, package in tools.items() if shutil.which(tool) is None})
    if missing:
        raise BedError(f"missing tools: apt-get install {' '.join(missing)}")


def say(text: str) -> None:
    """A line for the person who watches; stdout stays free for what a program reads."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    """Print `what` when it begins and its seconds when it ends."""
    begun = time.monotonic()
    say(f"  {what} …")
    yield
    say(f"  {what}: {time.monotonic() - begun:.1f} s")


@contextlib.contextmanager
def lock(path: Path, waiting_for: str, *, remove: bool = False) -> Iterator[None]:
    """Hold an exclusive lock on `path`; says so when somebody else has it, and waits.

    With `remove`, the file goes with the lock, so that a finished bed leaves none behind. Whoever waited
    then holds a lock on a file without a name; hence the comparison with what now lies at the path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for {waiting_for} …")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                break
        except FileNotFoundError:
            pass
        os.close(descriptor)
    try:
        yield
    finally:
        if remove:
            path.unlink(missing_ok=True)
        os.close(descriptor)


@contextlib.contextmanager
def machine_lock() -> Iterator[None]:
    """Held while the bed touches what all beds of this machine share: subnets and ip_forward."""
    with lock(LOCKS / "hearth-bed", "another bed that sets up its network", remove=True):
        yield


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a whole file at once: a reader sees the old text or the new, also after a power cut of ours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(file.fileno(), mode)
        file.write(text)
    partial.rename(path)


def copy_tree(source: Path, target: Path) -> None:
    """Copy a folder with owners, modes and links. The copy dies with the program that asked for it.

    Otherwise a `bed up` that was killed would leave a `cp` behind, which goes on filling the folder that `bed down`
    is removing.
    """
    run("setpriv", "--pdeathsig", "KILL", "cp", "-a", "--reflink=auto", source, target)


def remove_tree(path: Path) -> None:
    """Remove a folder with everything in it; a folder that is not there is fine."""
    for last in (False, False, False, True):
        try:
            shutil.rmtree(path)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            # Somebody who is just dying made one more file behind our back.
            if last or error.errno != errno.ENOTEMPTY:
                raise
            time.sleep(0.2)


def wait_until(deadline_s: float, interval_s: float, ready: Sequence[object]) -> bool:
    """Wait until every callable in `ready` returns true; False when the deadline passed."""
    end = time.monotonic() + deadline_s
    pending = [probe for probe in ready if callable(probe)]
    while pending:
        pending = [probe for probe in pending if not probe()]
        if pending and time.monotonic() > end:
            return False
        if pending:
            time.sleep(interval_s)
    return True
