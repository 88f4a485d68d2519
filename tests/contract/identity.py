"""How a name can be spelled so that some server takes it for another, and what must not arrive."""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import Iterable, Iterator

from browser import Browser, Header
from chain import ANN, CHAT_URL, NAMES, TOKEN

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


EVIL = "eve@home.test"
AS_EVE = credential(EVIL, "guessed-token-0123456789")


def who(browser: Browser, *headers: Header, url: str = f"{CHAT_URL}/api/me") -> str:
    """Whom the gateway takes the caller for; the status when it answers for nobody."""
    reply = browser.send(url, *headers)
    return str(reply.json()["email"]) if reply.status == 200 else str(reply.status)


def forged(token: str) -> dict[str, list[Header]]:
    """What somebody may try at the gateway itself, who may even know the proxy's token: each of it makes nobody."""
    return {
        "nothing": [],
        "address without a token": [("X-Forwarded-Email", ANN)],
        "the token as a header": [("X-Gateway-Token", token), ("X-Forwarded-Email", ANN)],
        "guessed token": [("Authorization", AS_EVE)],
        "right form, wrong token": [("Authorization", credential(ANN, "wrong-token-0123456789"))],
        "a program's token as the proxy's": [("Authorization", credential(ANN, "operator-token-0123456789"))],
        "token without an address": [("Authorization", credential("", token))],
        "two addresses": [("Authorization", credential(f"{ANN},{EVIL}", token))],
        "two at signs": [("Authorization", credential("ann@home.test@evil.test", token))],
        "no address": [("Authorization", credential("ann", token))],
        "with a space": [("Authorization", credential("ann @home.test", token))],
        "token with a newline": [("Authorization", credential(ANN, f"{token}\n"))],
        "token twice": [("Authorization", credential(ANN, f"{token}{token}"))],
        "token twice, joined": [("Authorization", credential(ANN, f"{token},{token}"))],
        "empty": [("Authorization", "")],
        "empty basic": [("Authorization", "Basic ")],
        "no base64": [("Authorization", f"Basic {ANN}:{token}")],
        "the proxy's token as a program": [("Authorization", f"Bearer {token}")],
        "the proxy's token as a key": [("X-Api-Key", token)],
        "session cookie": [("Cookie", "__Host-hearth=x")],
    }


def doubled(token: str, program: str) -> list[list[Header]]:
    """More than one credential, where the first would do: refused as a whole. `program` is a valid token of a program."""
    right = credential(ANN, token)
    return [
        [("Authorization", right), ("Authorization", right)],
        [("Authorization", right), ("authorization", AS_EVE)],
        [("Authorization", f"{right},{AS_EVE}")],
        [("Authorization", right), ("X-Api-Key", program)],
    ]
