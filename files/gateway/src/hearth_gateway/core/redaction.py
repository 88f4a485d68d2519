"""The one place that decides whether words of a vendor may be shown to the caller."""

from __future__ import annotations

from collections.abc import Iterable

_MAX_LENGTH = 300
# Shorter overlaps are ordinary words; longer ones mean that the vendor quotes the request.
_WINDOW = 16


def safe_vendor_message(message: str, texts: Iterable[str]) -> str | None:
    """Return ``message``, cut to one short line, or None if it repeats any of ``texts``.

    An error body is copied into bug reports and client logs. It must not carry what was asked.
    """
    line = " ".join(message.split())
    if len(line) > _MAX_LENGTH:
        line = line[: _MAX_LENGTH - 1] + "…"
    windows = {line[start : start + _WINDOW] for start in range(max(1, len(line) - _WINDOW + 1))}
    for text in texts:
        text = " ".join(text.split())
        if any(window in text for window in windows):
            return None
        # A short prompt can be quoted whole and still be shorter than the window.
        if 4 <= len(text) < _WINDOW and text in line:
            return None
    return line
