"""The API key of a provider, as the file says now."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from hearth_gateway.clock import Clock
from hearth_gateway.secrets import SecretError, SecretUnreadableError, read_secret

# A stat at every request would be cheap too, but not free.
LOOK_AFTER_S = 2.0


class KeyFile:
    """Re-read when the file changes: a new key needs no restart, and open answers go on with the old one.

    Raises ``SecretError`` when made. Later a file that is missing or no key leaves the last good key
    in use; ``on_problem`` is told once, as the end of a sentence. Safe to use from many threads.
    """

    def __init__(self, path: Path, clock: Clock, on_problem: Callable[[str], None] = lambda _problem: None) -> None:
        self._path = path
        self._clock = clock
        self._on_problem = on_problem
        self._lock = threading.Lock()
        self._seen = self._signature()
        self._told = ""
        self._key = read_secret(path)
        self._version = 1
        self._next_look = clock.monotonic() + LOOK_AFTER_S

    def value(self) -> str:
        self._look()
        return self._key

    def version(self) -> int:
        """Grows when the key becomes another one."""
        self._look()
        return self._version

    def _look(self) -> None:
        if self._clock.monotonic() < self._next_look:
            return
        with self._lock:
            self._next_look = self._clock.monotonic() + LOOK_AFTER_S
            seen = self._signature()
            if seen == self._seen:
                return
            self._seen = seen
            try:
                key = read_secret(self._path)
            except SecretError as problem:
                if isinstance(problem, SecretUnreadableError):
                    self._seen = None  # the file is what it was, and has to be read again
                if str(problem) != self._told:
                    self._told = str(problem)
                    self._on_problem(self._told)
                return
            self._told = ""
            if key != self._key:
                self._key = key
                self._version += 1

    def _signature(self) -> object:
        try:
            stat = self._path.stat()  # follows the symbolic links a Secret volume consists of
        except OSError:
            return None
        return stat.st_ino, stat.st_mtime_ns, stat.st_size
