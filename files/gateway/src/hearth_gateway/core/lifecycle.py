"""Which requests are open, and whether new ones may start."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from hearth_gateway.errors import GatewayError, Kind


def _busy(message: str) -> GatewayError:
    return GatewayError(Kind.GATEWAY_BUSY, message, retry_after_s=2)


class Lifecycle:
    """Counts open requests; `hand_over` sends callers elsewhere, `drain` refuses new ones, `cut` ends the open ones."""

    def __init__(self, max_open: int) -> None:
        self._max_open = max_open
        self._open = 0
        self._changed = threading.Condition()
        self.leaving = False
        self.draining = False
        self.cutting = False

    @property
    def max_open(self) -> int:
        return self._max_open

    @property
    def open(self) -> int:
        return self._open

    def enter(self) -> None:
        """Count a request in. Raises ``GatewayError`` when full or shutting down.

        Refusing at once beats queueing: a queued request holds a thread, and the health checks
        need one too.
        """
        with self._changed:
            if self.draining:
                raise GatewayError(
                    Kind.SHUTTING_DOWN,
                    "The gateway is restarting. Please try again in a moment.",
                    retry_after_s=2,
                )
            if self._open >= self._max_open:
                raise _busy("Too many answers are being written right now.")
            self._open += 1

    def leave(self) -> None:
        with self._changed:
            self._open -= 1
            self._changed.notify_all()

    def hand_over(self, seconds: float) -> None:
        """Still take requests for that time, but let everybody know that this process leaves. Ends early with `cut`."""
        with self._changed:
            self.leaving = True
            self._changed.wait_for(lambda: self.cutting, seconds)

    def drain(self) -> None:
        with self._changed:
            self.leaving = self.draining = True
            self._changed.notify_all()

    def cut(self) -> None:
        with self._changed:
            self.leaving = self.draining = self.cutting = True
            self._changed.notify_all()

    def wait_until_empty(self, timeout_s: float) -> bool:
        """True once no request is open; False if that takes longer, or if `cut` is called meanwhile."""
        with self._changed:
            self._changed.wait_for(lambda: not self._open or self.cutting, timeout_s)
            return not self._open

    def wait_until_cut(self, timeout_s: float) -> bool:
        """Like `wait_until_empty`, after `cut`."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._open, timeout_s)


class Uploads:
    """Request bodies: how many are on their way in, and how much of them is in memory.

    Each that is on its way holds a thread for as long as its sender likes, and nothing can take it away: so there may be
    only so many at a time, and half as many of one sender. Of what is here there are up to five copies until
    the answer is over: the bytes, the text in them, what is made of it for the vendor.
    """

    # Nearly all are here at once. A burst of those waits for its turn, and is no reason to refuse anybody.
    _PATIENCE_S = 0.5
    # Of these there may be as many as there are open answers.
    _SMALL_BYTES = 64 * 1024

    def __init__(self, max_open: int, max_bytes: int) -> None:
        self._at_most = max(max_open // 2, 2)
        self._free_bytes = max_bytes
        self._changed = threading.Condition()
        self._all = 0
        self._of: dict[str, int] = {}

    @contextmanager
    def of(self, sender: str) -> Iterator[None]:
        """While the body is read. Raises ``GatewayError`` when too many others do not come to their end."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._is_room_for(sender), self._PATIENCE_S):
                raise _busy("Too many requests are still on their way to this server.")
            self._all += 1
            self._of[sender] = self._of.get(sender, 0) + 1
        try:
            yield
        finally:
            with self._changed:
                self._all -= 1
                self._of[sender] -= 1
                if not self._of[sender]:
                    del self._of[sender]
                self._changed.notify_all()

    def hold(self, size: int) -> None:
        """Take so many bytes of memory into account, until `release`. Raises ``GatewayError`` when there is no room."""
        if size <= self._SMALL_BYTES:
            return
        with self._changed:
            if size > self._free_bytes:
                raise _busy("Too many large requests are being answered right now.")
            self._free_bytes -= size

    def release(self, size: int) -> None:
        if size > self._SMALL_BYTES:
            with self._changed:
                self._free_bytes += size

    def _is_room_for(self, sender: str) -> bool:
        return self._all < self._at_most and self._of.get(sender, 0) < self._at_most // 2
