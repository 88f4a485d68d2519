"""The log: one JSON object a line on standard error, with a closed set of fields.

There is no way to log free text about a request. Exceptions are logged as their type and the places
in our code they passed; their messages are not, because a message may quote what it failed on.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from functools import lru_cache
from types import TracebackType
from typing import Any, TextIO

import orjson

# Everything a line may hold. `problem` takes sentences that our own code wrote for the operator.
FIELDS = frozenset(
    {
        "route",
        "method",
        "status",
        "duration_ms",
        "request_id",
        "caller",
        "alias",
        "provider",
        "model",
        "outcome",
        "stream",
        "attempts",
        "token",
        "problem",
        "bind",
        "metrics_bind",
        "version",
        "signal",
        "open",
        "queued",
        "error",
        "places",
        "thread",
        "state",
        "reason",
        "scope",
        "subject",
        "limit",
        "level",
        "period",
        "share",
        "rows",
    }
)


class Log:
    """Writes to ``stream``. Safe to use from many threads."""

    def __init__(self, stream: TextIO | None = None) -> None:
        # Without standard error (`2>&-`) Python has none, and the service runs all the same.
        self._stream: TextIO = stream or sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        # Of the kind that one thread can take twice: an answer that nobody closed is closed by the garbage
        # collector, in any thread and at any moment, also in one that holds this lock.
        self._lock = threading.RLock()

    def event(self, name: str, /, **fields: Any) -> None:
        if not fields.keys() <= FIELDS:
            raise ValueError(f"no such log field: {', '.join(sorted(fields.keys() - FIELDS))}")
        now_ms = time.time_ns() // 1_000_000
        stamp = f"{_second(now_ms // 1000)}.{now_ms % 1000:03d}Z"
        line = _json({"time": stamp, "event": name, **fields}) + "\n"
        with self._lock:
            try:
                self._stream.write(line)
                self._stream.flush()
            except OSError:
                pass  # standard error is gone or full; a log line must not end somebody's answer

    def unexpected(self, error: BaseException) -> None:
        """Log where an unexpected exception happened, without what it says."""
        frames = traceback.extract_tb(error.__traceback__)
        places = [f"{_short(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames]
        self.event("unexpected-error", error=type(error).__name__, places=places[-12:])

    def install_hooks(self) -> None:
        """Python prints uncaught exceptions with their messages. From here on it logs them our way."""

        def main_hook(kind: type[BaseException], error: BaseException, tb: TracebackType | None) -> None:
            self.unexpected(error)

        def thread_hook(args: threading.ExceptHookArgs) -> None:
            if args.exc_value is not None:
                self.unexpected(args.exc_value)

        def unraisable_hook(args: Any) -> None:
            if args.exc_value is not None:
                self.unexpected(args.exc_value)

        sys.excepthook = main_hook
        threading.excepthook = thread_hook
        sys.unraisablehook = unraisable_hook


@lru_cache(maxsize=4)
def _second(now: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))


def _json(value: dict[str, Any]) -> str:
    try:
        return orjson.dumps(value, default=str).decode()
    except TypeError:
        # The name of a file need not be Unicode. Slower by far, and escapes what is not.
        return json.dumps(value, default=str)


def _short(filename: str) -> str:
    """The path inside its package: enough to find the line, nothing about this machine."""
    for mark in ("site-packages/", "/src/"):
        _, found, rest = filename.rpartition(mark)
        if found:
            return rest
    return filename.rpartition("/")[2]
