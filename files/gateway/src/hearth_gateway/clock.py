"""Time as something that is passed in, so that a test of a 120 s limit does not take 120 s."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """``monotonic`` in seconds for durations, ``time`` in Unix seconds for timestamps."""

    def monotonic(self) -> float: ...

    def time(self) -> float: ...

    def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The machine's own clock."""

    # Not methods that call them: a request looks at the clock twenty times.
    monotonic = staticmethod(time.monotonic)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    time = staticmethod(time.time)  # comes last, as it hides the module
