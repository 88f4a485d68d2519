"""Where the ``hearth-gateway`` command begins; ``python -m hearth_gateway`` is the same.

``person …`` runs beside a service, in its container and within its memory limit. Somebody who adds twenty people at
once would start twenty of them, and the kernel would kill the container with all its streams. So they take turns, and
who waits has loaded nothing yet: 9 MiB instead of 50. That is why the command is imported late.
"""

from __future__ import annotations

import contextlib
import fcntl
import sys
import time
from collections.abc import Iterator
from pathlib import Path

EXIT_FAILED = 1
TURN_WITHIN_S = 60.0
LOOK_AGAIN_S = 0.05


def main() -> int:
    try:
        if sys.argv[1:2] != ["person"]:
            return _command()
        with turn(Path(__file__), TURN_WITHIN_S):
            return _command()
    except KeyboardInterrupt:  # while it waits for its turn, or loads; later the command itself takes it
        return EXIT_FAILED
    except TimeoutError as problem:
        print(f"hearth-gateway: {problem}", file=sys.stderr)
        return EXIT_FAILED


@contextlib.contextmanager
def turn(path: Path, within_s: float) -> Iterator[None]:
    """Hold the lock on a file of this installation, which needs no place to write; the kernel gives back that of the dead.

    :raises TimeoutError: others had it for ``within_s`` seconds.
    """
    with path.open("rb") as file:
        deadline = time.monotonic() + within_s
        while not _locked(file.fileno()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"other `person` commands have run here for {within_s:.0f} s; run again")
            time.sleep(LOOK_AGAIN_S)
        yield


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _command() -> int:
    from hearth_gateway.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
