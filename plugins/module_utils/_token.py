# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The gateway's tokens as data of Secrets. Pure: no Ansible, no Kubernetes.

The gateway mounts one Secret as a directory: one file a token, the file's name is the token's. Beside it, while a
token is being replaced, `<name>.previous` holds the value before, which counts as the same token. What a consumer gets
is a Secret of its own with one key.

Every function here turns the data of one Secret into the data that it shall hold, so that each step is one write. The
order of the writes (`gateway_token`) keeps this true at every moment, also when a run ends between two of them: what a
consumer holds is what the gateway accepts.
"""

from __future__ import annotations

import base64
import binascii
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

# As the gateway spells it (core/identity.py), and contract/names.yml.
PREVIOUS = ".previous"
# Bytes of randomness: 256 bits, 43 characters.
RANDOM_BYTES = 32
# The name is part of the name of a Secret and of an annotation, and no dot may stand in it because of `.previous`.
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
_MIN_LENGTH = 16

Data = Mapping[str, str]


class TokenError(ValueError):
    """Why a token cannot be made, kept or replaced. Never holds a value."""


def check_name(name: str) -> None:
    """Refuse a name that cannot be part of the names of files, Secrets and annotations.

    :raises TokenError: says what a name is made of.
    """
    if not _NAME.fullmatch(name):
        raise TokenError(f"{name!r} is no name for a token: use up to 40 lower-case letters, digits and dashes, such as home-assistant")


def encode(value: str) -> str:
    return base64.b64encode(value.encode()).decode()


def generate() -> str:
    """A new value: 256 bits, no line break, nothing that needs quoting in a header, a URL or a shell."""
    return secrets.token_urlsafe(RANDOM_BYTES)


def value_of(encoded: str | None) -> str | None:
    """The token in a Secret's entry, without the line break that `kubectl create secret --from-file` may have left.

    None when there is none, or an empty one: somebody created the key and never filled it.

    :raises TokenError: a value that the gateway would not count as a token.
    """
    try:
        raw = base64.b64decode(encoded or "", validate=True)
    except binascii.Error:
        raise TokenError("is not base64") from None
    raw = raw.removesuffix(b"\n").removesuffix(b"\r")
    if not raw:
        return None
    if not all(0x21 <= byte <= 0x7E for byte in raw) or b"," in raw:
        raise TokenError("holds characters that no token has")
    if len(raw) < _MIN_LENGTH:
        raise TokenError(f"is shorter than {_MIN_LENGTH} characters")
    return raw.decode("ascii")


@dataclass(frozen=True)
class Held:
    """What the gateway accepts under one name. `previous` is there while the token is being replaced."""

    current: str | None
    previous: str | None


def held(data: Data, name: str) -> Held:
    """The values of one token in the gateway's Secret.

    :raises TokenError: a value is there that the gateway refuses.
    """
    try:
        current = value_of(data.get(name))
    except TokenError as problem:
        raise TokenError(
            f"the token {name} {problem}, so the gateway counts it as none: remove it with state=absent, then make it anew"
        ) from None
    try:
        previous = value_of(data.get(name + PREVIOUS))
    except TokenError:
        # It lets nobody in, so it is as good as gone.
        previous = None
    return Held(current, previous)


def _known(data: Data, name: str) -> Held:
    found = held(data, name)
    if found.current is None:
        raise TokenError(f"there is no token {name}: make it with state=present, or correct the name")
    return found


def with_token(data: Data, name: str, new: str) -> dict[str, str]:
    """The gateway's data with the token in it: the one that is there, else `new`."""
    return dict(data) if held(data, name).current else {**data, name: encode(new)}


def with_rotation(data: Data, name: str, new: str) -> dict[str, str]:
    """The gateway's data with `new` as the token and the former value beside it.

    Where a former value stands beside it already, a rotation is under way, and it is not begun a second time: that would
    drop a value which a consumer may still show.

    :raises TokenError: there is no such token.
    """
    found = _known(data, name)
    if found.previous or found.current == new:
        return dict(data)
    return {**data, name: encode(new), name + PREVIOUS: encode(str(found.current))}


def with_rotation_settled(data: Data, name: str) -> dict[str, str]:
    """The gateway's data with the token's newest value only.

    :raises TokenError: there is no such token.
    """
    _known(data, name)
    return {key: value for key, value in data.items() if key != name + PREVIOUS}


def without_token(data: Data, name: str) -> dict[str, str]:
    """The gateway's data without the token. Both its values go: a former one would be accepted as the token itself."""
    return {key: value for key, value in data.items() if key not in (name, name + PREVIOUS)}


def entries(data: Data, name: str) -> dict[str, str]:
    """The part of the gateway's data that is about one token."""
    return {key: data[key] for key in (name, name + PREVIOUS) if key in data}
