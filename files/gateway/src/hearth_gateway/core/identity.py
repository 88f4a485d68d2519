"""Who is asking: the tokens of programs and of the sign-in proxy, as files in one directory.

A file's name is the token's name, its content the token. While a token is being replaced, a second
file with the ending ``.previous`` holds its former value: the same token in every respect (name, role,
limits), so nobody is refused between the moment the gateway learns the new value and the moment its
holder does. The process keeps SHA-256 digests only, so a memory dump or a debugger shows no usable
credential.

There are two doors. A program presents its token as ``Authorization: Bearer`` or ``x-api-key``; one
that may speak for people names them with ``x-hearth-end-user``. A person comes through the sign-in
proxy, which makes *one* credential that a client cannot: ``Authorization: Basic
base64(e-mail:proxy-token)``. One header and not two, because a server folds ``X_Forwarded_Email`` onto
``X-Forwarded-Email``, and a header that a client can spell in a second way is no identity.
``Authorization`` has no dash to play with.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import threading
import unicodedata
from collections.abc import Callable, Collection, Iterator, Set
from dataclasses import field
from functools import lru_cache
from pathlib import Path

from hearth_gateway.clock import Clock
from hearth_gateway.config import Config, suggest
from hearth_gateway.errors import GatewayError, Kind
from hearth_gateway.records import record
from hearth_gateway.secrets import SecretError, SecretUnreadableError, read_secret

MIN_TOKEN_LENGTH = 16
PREVIOUS = ".previous"
# A removed token must be refused within 5 s, so the directory is looked at more often than that.
RELOAD_AFTER_S = 2.0
MAX_EMAIL_BYTES = 254
_KEPT = "what was read before stays valid"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")
# Valid in an address only between quotes, which nobody uses; a comma also joins two headers into one
# value, and a colon ends the name in a Basic credential.
_NOT_IN_EMAIL = frozenset(',";:<>()[]\\')


@record
class Caller:
    """Who asks. ``name`` is the name of the token that was presented.

    ``person`` is the normalised e-mail of the person spoken for, None for a program that asks for
    itself. ``browser`` is true when the sign-in proxy vouches for the person. ``since`` is when the
    credential was looked at, in Unix seconds.
    """

    name: str
    person: str | None = None
    browser: bool = False
    since: float = field(default=0.0, compare=False)


@lru_cache(maxsize=4096)
def normalise_email(address: str) -> str:
    """The one spelling of an address. Raises ``ValueError`` with the end of a sentence, without the address."""
    # Twice: the lower case of a composed letter may be a decomposed one.
    address = unicodedata.normalize("NFC", unicodedata.normalize("NFC", address).lower())
    if any(unicodedata.category(char)[0] in "CZ" for char in address):
        raise ValueError("holds spaces or control characters")
    if not _NOT_IN_EMAIL.isdisjoint(address):
        raise ValueError("holds commas, quotes or brackets")
    local, _, domain = address.partition("@")
    if not local or not domain or "@" in domain:
        raise ValueError("must be one address such as ann@example.org")
    if len(address.encode()) > MAX_EMAIL_BYTES:
        raise ValueError(f"is longer than {MAX_EMAIL_BYTES} bytes")
    return address


class TokenStore:
    """The valid tokens of ``directory``, re-read when a file in it changes.

    ``proxy`` and ``end_users`` are the names of the tokens with those roles (``config.TokensConfig``).
    ``on_problem`` is told, as (file name, end of a sentence), about each file that is not a usable token;
    that file counts as no token, the others keep working. Where the machine cannot read (no file
    descriptors left, a disk at fault), nothing is known of the tokens: what was read before stays valid,
    which ``on_problem`` is told once, and every look tries again.
    """

    def __init__(
        self,
        directory: Path,
        clock: Clock,
        on_problem: Callable[[str, str], None],
        *,
        proxy: Collection[str] = (),
        end_users: Collection[str] = (),
    ) -> None:
        self._directory = directory
        self._clock = clock
        self._on_problem = on_problem
        self._proxy = frozenset(proxy)
        self._end_users = frozenset(end_users)
        self._lock = threading.Lock()
        self._seen: object = None
        self._told: frozenset[tuple[str, str]] = frozenset()
        self._by_file: dict[str, bytes] = {}
        self._digests: tuple[tuple[str, bytes], ...] = ()
        self._names: frozenset[str] = frozenset()
        self._next_look = 0.0
        self.refresh()

    def __len__(self) -> int:
        return len(self._digests)

    def __contains__(self, name: object) -> bool:
        """Whether there is a valid token of that name."""
        return name in self._names

    def identify(self, authorization: str | None, api_key: str | None = None, end_user: str | None = None) -> Caller:
        """The caller behind the values of ``Authorization``, ``x-api-key`` and ``x-hearth-end-user``.

        None means that the header is absent; an empty one is there. Raises ``GatewayError``.
        """
        if authorization is not None and api_key is not None:
            raise _ambiguous()
        value = (authorization if authorization is not None else api_key) or ""
        if "," in value:
            # A server joins headers of one name with commas, so this is how two credentials look.
            raise _ambiguous()
        if self._clock.monotonic() >= self._next_look:
            self.refresh()
        if authorization is None:
            return self._program(value.strip(), end_user)
        scheme, _, rest = value.partition(" ")
        if scheme.lower() == "basic":
            return self._person(rest.strip(), end_user)
        return self._program(rest.strip() if scheme.lower() == "bearer" else "", end_user)

    def check(self, caller: Caller) -> None:
        """Raises ``GatewayError`` when the token behind an answer that is being written was taken away.

        A token that got a new value under its name is a rotation: answers begun with the old value run
        to their end. The same holds for people as long as any token of the sign-in proxy is valid.
        """
        names = self._proxy if caller.browser else (caller.name,)
        if self._names.isdisjoint(names):
            raise GatewayError(Kind.UNAUTHENTICATED, "The token of this request was revoked.")

    def refresh(self) -> None:
        """Look at the directory now, and read it if it changed."""
        with self._lock:
            self._next_look = self._clock.monotonic() + RELOAD_AFTER_S
            try:
                files = self._files()
            except OSError as error:
                self._seen = None
                self._tell({(self._directory.name, f"cannot be read: {error.strerror}; {_KEPT}")} | self._told)
                return
            seen = _signature(files)
            if seen == self._seen:
                return
            self._seen = seen if self._read(files) else None
            self._digests = tuple((name.removesuffix(PREVIOUS), digest) for name, digest in self._by_file.items())
            self._names = frozenset(name for name, _ in self._digests)

    # --- internals

    def _program(self, token: str, end_user: str | None) -> Caller:
        # The proxy's token speaks for people only, so alone it is nobody's.
        names = [name for name in self._matching(token) if name not in self._proxy]
        if not names:
            raise _refused()
        if end_user is None:
            return Caller(names[0], since=self._clock.time())
        if names[0] not in self._end_users:
            raise GatewayError(
                Kind.END_USER_REFUSED,
                "This token may not name a person: leave out the header x-hearth-end-user, or ask the operator.",
            )
        try:
            person = normalise_email(end_user)
        except ValueError as problem:
            raise GatewayError(Kind.END_USER_REFUSED, f"The address in x-hearth-end-user {problem}.") from None
        return Caller(names[0], person, since=self._clock.time())

    def _person(self, coded: str, end_user: str | None) -> Caller:
        try:
            address, colon, token = base64.b64decode(coded, validate=True).decode("utf-8").partition(":")
        except (binascii.Error, ValueError):
            raise _refused() from None
        # A program that may name people can do it in this form too. The header x-hearth-end-user has
        # dashes: behind a server that folds underscores onto them it is only as good as its sender.
        names = [name for name in self._matching(token) if name in self._proxy or name in self._end_users]
        if not colon or not names:
            raise _refused()
        if end_user is not None:
            raise GatewayError(Kind.END_USER_REFUSED, "The credential names the person; leave out the header x-hearth-end-user.")
        try:
            person = normalise_email(address)
        except ValueError:
            raise _refused() from None
        return Caller(names[0], person, browser=names[0] in self._proxy, since=self._clock.time())

    def _matching(self, token: str) -> list[str]:
        """Names of the tokens with this value."""
        presented = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        # No early exit: the time taken must not tell which token was nearly right.
        return [name for name, digest in self._digests if hmac.compare_digest(presented, digest)]

    def _read(self, files: list[Path]) -> bool:
        """Take over the tokens in ``files``. False if some file could not be read this time."""
        by_file: dict[str, bytes] = {}
        problems: set[tuple[str, str]] = set()
        complete = True
        for path in files:
            name = path.name
            try:
                token = _read_token(path)
            except SecretUnreadableError as problem:
                complete = False
                problems.add((name, f"{problem}; {_KEPT}"))
                if name in self._by_file:
                    by_file[name] = self._by_file[name]
            except SecretError as problem:
                problems.add((name, str(problem)))
            else:
                by_file[name] = hashlib.sha256(token.encode()).digest()
        self._by_file = by_file
        self._tell(problems)
        return complete

    def _tell(self, problems: Set[tuple[str, str]]) -> None:
        """What is still as it was is not told again."""
        for name, problem in sorted(problems - self._told):
            self._on_problem(name, problem)
        self._told = frozenset(problems)

    def _files(self) -> list[Path]:
        """Raises ``OSError`` where the machine cannot say which files there are."""
        try:
            return sorted(path for path in _entries(self._directory) if _NAME.match(path.name))
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return []  # somebody took the directory away, or took it away from us: nobody has a valid token


def token_warnings(config: Config) -> list[str]:
    """Sentences on files that are no token, and on names in the configuration that no token has.

    Nothing on a directory that cannot be listed: ``config.check_files`` tells that.
    """
    directory = Path(config.tokens.dir)
    try:
        files = sorted(_entries(directory))
    except (OSError, ValueError):
        return []
    found, valid = [], set()
    for path in files:
        try:
            if not _NAME.match(path.name):
                raise SecretError("has a name that no token can have (letters, digits, `.`, `_` and `-`, at most 63)")
            _read_token(path)
            valid.add(path.name.removesuffix(PREVIOUS))
        except SecretError as problem:
            found.append(f"tokens.dir: {path} {problem}; it counts as no token")
    if not valid:
        found.append(f"tokens.dir: no file in {directory} is a valid token, so every request will be refused")
    # A file that is there and no token was told above, and the name is right.
    known = sorted(valid | {path.name.removesuffix(PREVIOUS) for path in files})
    for where, name in _named_tokens(config):
        if name not in known:
            found.append(f"{where}: no token in {directory} is called {name!r}{suggest(name, sorted(valid))}")
    return found


def _named_tokens(config: Config) -> Iterator[tuple[str, str]]:
    """Where the configuration names a token, and the name."""
    for role, names in (("proxy", config.tokens.proxy), ("end_users", config.tokens.end_users)):
        yield from ((f"tokens.{role}[{index}]", name) for index, name in enumerate(names))
    yield from ((f"limits.programs.{name}", name) for name in config.limits.programs)


def _entries(directory: Path) -> Iterator[Path]:
    # Kubernetes mounts a Secret with helper entries whose names start with dots.
    return (path for path in directory.iterdir() if not path.name.startswith("."))


def _read_token(path: Path) -> str:
    """The token in ``path``. Raises ``SecretError``."""
    token = read_secret(path, MIN_TOKEN_LENGTH)
    if "," in token:
        raise SecretError("holds a comma, which separates two credentials in a header")
    return token


def _signature(files: list[Path]) -> object:
    signature = []
    for path in files:
        try:
            stat = path.stat()  # follows the symbolic links a Secret volume consists of
        except OSError:
            continue  # removed between listing and looking, or reading it will fail too
        signature.append((path.name, stat.st_ino, stat.st_mtime_ns, stat.st_size))
    return signature


def _ambiguous() -> GatewayError:
    return GatewayError(
        Kind.AMBIGUOUS_CREDENTIALS,
        "Send one credential: either `Authorization: Bearer` or `x-api-key`, once.",
    )


def _refused() -> GatewayError:
    return GatewayError(
        Kind.UNAUTHENTICATED,
        "No valid token. Send it as `Authorization: Bearer <token>` or `x-api-key: <token>`.",
        # Never Basic: a browser would ask the person for a password that does not exist.
        headers={"WWW-Authenticate": "Bearer"},
    )
