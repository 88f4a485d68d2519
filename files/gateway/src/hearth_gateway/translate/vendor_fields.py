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


# Stands for every count that is larger. It fits 32 bits, as the columns of the ledger do, and nobody is billed by it
# (core/metering.py): an answer that is otherwise good must not be lost because of the number beside it.
MAX_COUNT = 1_000_000_000
# From here on JSON's whole numbers arrive as floats.
_BEYOND_INT = 2.0**63


def count(value: Any) -> int | None:
    """A number of tokens, at most ``MAX_COUNT``; None for one that is absent."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        if isinstance(value, float) and value >= _BEYOND_INT:
            return MAX_COUNT
        raise TypeError
    return value if value < MAX_COUNT else MAX_COUNT


def call_id(value: Any) -> str:
    """The id of a tool call, ours where the vendor gave none: the client has to name the call in its answer."""
    return ("" if value is None else string(value)) or f"call_{secrets.token_hex(12)}"
