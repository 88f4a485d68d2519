"""What a vendor sees of a person: an opaque name that only this house can connect with an address."""

from __future__ import annotations

import hashlib
import hmac
from functools import lru_cache

from hearth_gateway.config import MIN_PSEUDONYM_KEY

_LENGTH = 32  # hex digits: 128 bits, and below the 64 characters that OpenAI allows for `user`


class Pseudonym:
    """Keyed, so that nobody can compute the pseudonym of an address they suspect.

    The same key and person give the same pseudonym for ever: a vendor can tell one abusive person from
    the rest of the house, which is what the field is for.
    """

    def __init__(self, key: bytes) -> None:
        """Raises ``ValueError`` when the key is shorter than ``MIN_PSEUDONYM_KEY`` bytes."""
        if len(key) < MIN_PSEUDONYM_KEY:
            raise ValueError(f"the pseudonym key must have {MIN_PSEUDONYM_KEY} characters or more")
        self._key = key
        self.of = lru_cache(maxsize=4096)(self._of)

    def _of(self, person: str) -> str:
        return "p-" + hmac.new(self._key, person.encode(), hashlib.sha256).hexdigest()[:_LENGTH]
