"""Secrets come from files, never from arguments or the configuration."""

from __future__ import annotations

import stat
from pathlib import Path

_MAX_BYTES = 8192


class SecretError(Exception):
    """Says what is wrong with the file, as the end of a sentence. Never holds the content."""


class SecretUnreadableError(SecretError):
    """The machine failed, not the file: no file descriptors left, a disk at fault. What the file holds is unknown."""


def shown_path(path: str, of: str = "a file") -> str:
    """``path`` for a sentence about it, if it looks like a path. ``of`` is what it should name.

    A key pasted where the path of its file belongs would be printed, and the journal keeps what is printed.
    """
    if path.startswith(("/", "./", "../", "~/")):
        return path
    return f"what stands there (not shown: it may be the secret itself; write the path of {of})"


def named_secret(where: str, path: str, shortest: int = 1) -> str:
    """Like ``read_secret``, for who prints the problem as it is: it begins with ``where``, the key of the configuration."""
    try:
        return read_secret(Path(path), shortest)
    except SecretError as problem:
        raise type(problem)(f"{where}: {shown_path(path)} {problem}") from None


def read_secret(path: Path, shortest: int = 1) -> str:
    """The secret in ``path`` without its final line break. Raises ``SecretError``, also below ``shortest`` characters.

    A secret with spaces, control or non-ASCII characters inside is refused: it is a pasted command,
    a whole file of notes or a wrong encoding, and would fail far from here as "401".
    """
    try:
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # the other end of a pipe may never come
            raise SecretError("is no regular file, but a pipe or a device")
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise SecretError("does not exist") from None
    except IsADirectoryError:
        raise SecretError("is a directory, not a file") from None
    except PermissionError:
        raise SecretError("cannot be read: permission denied") from None
    except OSError as error:
        raise SecretUnreadableError(f"cannot be read: {error.strerror}") from None
    except ValueError:
        raise SecretError("holds characters that no path has") from None
    if len(raw) > _MAX_BYTES:
        raise SecretError(f"is larger than {_MAX_BYTES} bytes, so it is not a key")
    value = raw.removesuffix(b"\n").removesuffix(b"\r")
    if not value.strip():
        raise SecretError("is empty")
    if not all(0x21 <= byte <= 0x7E for byte in value):
        raise SecretError("holds spaces, line breaks or other characters that no key has")
    if len(value) < shortest:
        raise SecretError(f"is shorter than {shortest} characters")
    return value.decode("ascii")
