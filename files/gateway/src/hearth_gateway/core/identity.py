"""Who is asking: the tokens of programs, as files in one directory.

A file's name is the token's name, its content the token. The process keeps SHA-256 digests only, so
a memory dump or a debugger shows no usable credential.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hearth_gateway.clock import Clock
from hearth_gateway.errors import GatewayError, Kind
from hearth_gateway.secrets import SecretError, read_secret

MIN_TOKEN_LENGTH = 16
# A removed token must be refused within 5 s, so the directory is looked at more often than that.
RELOAD_AFTER_S = 2.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. ``name`` is the name of the token that was presented.

    ``person`` is the normalised e-mail of the person spoken for, None for a program that asks for
    itself. ``browser`` is true when the sign-in proxy vouches for the person.
    """

    name: str
    person: str | None = None
    browser: bool = False


class TokenStore:
    """The valid tokens of ``directory``, re-read when a file in it changes.

    ``on_problem`` is told, as (token name, sentence), about each file that is not a usable token;
    that file counts as no token, the others keep working.
    """

    def __init__(self, directory: Path, clock: Clock, on_problem: Callable[[str, str], None]) -> None:
        self._directory = directory
        self._clock = clock
        self._on_problem = on_problem
        self._lock = threading.Lock()
        self._seen: object = None
        self._digests: tuple[tuple[str, bytes], ...] = ()
        self._next_look = 0.0
        self._look()

    def __len__(self) -> int:
        return len(self._digests)

    def identify(self, authorization: str, api_key: str) -> Caller:
        """The caller behind the two credential headers ("" = absent). Raises ``GatewayError``."""
        if authorization and api_key:
            raise GatewayError(
                Kind.AMBIGUOUS_CREDENTIALS,
                "Send one credential: either `Authorization: Bearer` or `x-api-key`, not both.",
            )
        token = api_key
        if authorization:
            scheme, _, token = authorization.partition(" ")
            if scheme.lower() != "bearer":
                token = ""
        if self._clock.monotonic() >= self._next_look:
            self._look()
        presented = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
        found = ""
        # No early exit: the time taken must not tell which token was nearly right.
        for name, digest in self._digests:
            if hmac.compare_digest(presented, digest):
                found = name
        if not found:
            raise GatewayError(
                Kind.UNAUTHENTICATED,
                "No valid token. Send it as `Authorization: Bearer <token>` or `x-api-key: <token>`.",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return Caller(found)

    def _look(self) -> None:
        with self._lock:
            self._next_look = self._clock.monotonic() + RELOAD_AFTER_S
            seen = self._signature()
            if seen == self._seen:
                return
            self._seen = seen
            digests = []
            for path in self._files():
                try:
                    token = read_secret(path)
                    if len(token) < MIN_TOKEN_LENGTH:
                        raise SecretError(f"is shorter than {MIN_TOKEN_LENGTH} characters")
                except SecretError as problem:
                    self._on_problem(path.name, str(problem))
                    continue
                digests.append((path.name, hashlib.sha256(token.encode()).digest()))
            self._digests = tuple(digests)

    def _files(self) -> list[Path]:
        """Kubernetes mounts a Secret with helper entries whose names start with dots."""
        try:
            return sorted(path for path in self._directory.iterdir() if _NAME.match(path.name))
        except OSError:
            return []  # the directory is gone: nobody has a valid token

    def _signature(self) -> object:
        signature = []
        for path in self._files():
            try:
                stat = path.stat()  # follows the symbolic links a Secret volume consists of
            except OSError:
                continue  # removed between listing and looking
            signature.append((path.name, stat.st_ino, stat.st_mtime_ns, stat.st_size))
        return signature
