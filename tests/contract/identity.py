"""How a name can be spelled so that some server takes it for another, and what must not arrive."""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import Iterable, Iterator

from chain import NAMES, TOKEN

# Everything that the chat's instance removes or sets: contract/names.yml and what the role adds to it.
PROTECTED = [*NAMES["access"]["identity_headers"], "X-Api-Key", "X-Forwarded-Uri", "Authorization"]


def credential(person: str, token: str = TOKEN) -> str:
    return "Basic " + base64.b64encode(f"{person}:{token}".encode()).decode()


def cases(name: str) -> Iterator[str]:
    yield from dict.fromkeys([name, name.lower(), name.upper(), name.swapcase()])


def dashed(name: str) -> list[str]:
    """Spellings that differ in case, dash and underscore: what oauth2-proxy folds itself."""
    spelled = [name.replace("-", "_"), name.replace("-", "_", 1), "_".join(name.rsplit("-", 1))]
    return list(dict.fromkeys(itertools.chain.from_iterable(cases(one) for one in [name, *spelled])))


def odd(name: str) -> list[str]:
    """Spellings with other characters that a header name may have; some servers fold them onto the dash."""
    return [] if "-" not in name else [name.replace("-", mark) for mark in ".!~^*+'`|#$%&"]


def folded(name: str) -> str:
    """The name as the laxest server would read it."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def arrived(headers: Iterable[tuple[str, str]], names: Iterable[str] = PROTECTED) -> list[tuple[str, str]]:
    """Of what reached the upstream: whatever could be read as one of the names."""
    wanted = {folded(name) for name in names}
    return [(name, value) for name, value in headers if folded(name) in wanted]
