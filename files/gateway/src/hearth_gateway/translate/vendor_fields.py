"""Fields of a vendor's answer: a value of the wrong type is a fault of the vendor, and no reason to guess.

Raises ``TypeError``, which the readers turn into an error without the vendor's words.
"""

from __future__ import annotations

import secrets
from typing import Any


def string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def count(value: Any) -> int | None:
    """A number of tokens; None for one that is absent."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TypeError
    return value


def call_id(value: Any) -> str:
    """The id of a tool call, ours where the vendor gave none: the client has to name the call in its answer."""
    return ("" if value is None else string(value)) or f"call_{secrets.token_hex(12)}"
