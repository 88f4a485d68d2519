"""Secrets come from files, never from arguments or the configuration."""

from __future__ import annotations

from pathlib import Path

_MAX_BYTES = 8192


class SecretError(Exception):
    """Says what is wrong with the file, as the end of a sentence. Never holds the content."""


class SecretUnreadableError(SecretError):
    """The machine failed, not the file: no file descriptors left, a disk at fault. What the file holds is unknown."""


def read_secret(path: Path) -> str:
    """The secret in ``path`` without its final line break. Raises ``SecretError``.

    A secret with spaces, control or non-ASCII characters inside is refused: it is a pasted command,
    a whole file of notes or a wrong encoding, and would fail far from here as "401".
    """
    try:
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
    if len(raw) > _MAX_BYTES:
        raise SecretError(f"is larger than {_MAX_BYTES} bytes, so it is not a key")
    value = raw.removesuffix(b"\n").removesuffix(b"\r")
    if not value.strip():
        raise SecretError("is empty")
    if not all(0x21 <= byte <= 0x7E for byte in value):
        raise SecretError("holds spaces, line breaks or other characters that no key has")
    return value.decode("ascii")
