# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The list of people who may sign in, as text. Pure: no Ansible, no Kubernetes.

The sign-in proxy reads the text as CSV, first column, and swaps the whole list when it changes. One line
that is not CSV makes it ignore the new list and keep the old one, silently: a removed person stays in.
So this file writes plain lines only (one lower-case address each, `#` in the first column for comments,
no comma, no quote, no byte order mark), and refuses to work on a list that is not of that form already.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MAX_ADDRESS = 254  # RFC 5321, path length less its brackets
MAX_LOCAL = 64
_LOCAL = re.compile(r"[a-z0-9!$%&'+/=?^_`{|}~-]+(\.[a-z0-9!$%&'+/=?^_`{|}~-]+)*")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class EmailError(ValueError):
    """A text that is not one address that may stand in the list; says why."""


class MalformedListError(ValueError):
    """A list that the sign-in proxy would ignore or misread; names every line at fault."""

    def __init__(self, problems: Sequence[tuple[int, str]]) -> None:
        self.problems = list(problems)
        super().__init__("; ".join(f"line {number}: {text}" for number, text in self.problems))


def normalise(text: str) -> str:
    """One address in lower case, without the blanks around it.

    :raises EmailError: not exactly one address, or one that could be read as something else.
    """
    address = text.strip().lower()
    shown = text.strip()[:80]
    if not address:
        raise EmailError("an empty text is not an address")
    if "*" in address:
        raise EmailError(f"{shown!r}: there are no wildcards; name each person")
    if not address.isascii():
        raise EmailError(f"{shown!r}: only ASCII characters can be compared safely")
    local, at, domain = address.partition("@")
    if not at or "@" in domain:
        raise EmailError(f"{shown!r}: an address has exactly one @")
    if not local or not domain:
        raise EmailError(f"{shown!r}: both sides of the @ are needed")
    if len(address) > MAX_ADDRESS or len(local) > MAX_LOCAL:
        raise EmailError(f"{shown!r}: longer than an address can be")
    if not _LOCAL.fullmatch(local):
        raise EmailError(f"{shown!r}: the part before the @ holds characters that an address in the list cannot have")
    labels = domain.split(".")
    if len(labels) < 2 or not all(_LABEL.fullmatch(label) for label in labels):
        raise EmailError(f"{shown!r}: {domain!r} is not a domain name")
    return address


def normalise_all(texts: Iterable[str]) -> list[str]:
    """Addresses in lower case, each once, in the order given.

    :raises EmailError: with every fault, not only the first.
    """
    found: dict[str, None] = {}
    faults = []
    for text in texts:
        try:
            found[normalise(text)] = None
        except EmailError as error:
            faults.append(str(error))
    if faults:
        raise EmailError("; ".join(faults))
    return list(found)


@dataclass(frozen=True)
class Line:
    """One line: a comment or blank line as it stands, or an address in its plain form."""

    text: str
    address: str | None = None


def _raw_lines(text: str) -> list[str]:
    return text.replace("\r\n", "\n").split("\n")


def parse(text: str) -> list[Line]:
    """The lines of a list. Upper case, blanks around an address and CRLF are read, and written back plain.

    :raises MalformedListError: with the number of every line that is not plain.
    """
    lines, problems = [], []
    for number, raw in enumerate(_raw_lines(text), start=1):
        if raw.startswith("\ufeff"):
            problems.append((number, "begins with a byte order mark, which hides the line from the proxy"))
        elif raw.startswith("#"):
            # The proxy skips comment lines whatever they hold.
            lines.append(Line(raw.rstrip()))
        elif not raw.strip():
            lines.append(Line(""))
        elif '"' in raw:
            problems.append((number, 'holds a quote ("), which makes the proxy ignore the whole list'))
        elif "," in raw:
            problems.append((number, "holds a comma, which makes the proxy ignore the whole list"))
        elif "#" in raw:
            problems.append((number, "has a comment behind the address; a comment needs a line of its own"))
        else:
            try:
                address = normalise(raw)
            except EmailError as error:
                problems.append((number, str(error)))
            else:
                lines.append(Line(address, address))
    if problems:
        raise MalformedListError(problems)
    return lines


def _mended_line(raw: str) -> list[str]:
    """A line that is not plain, made plain: its first address if it has one, and the rest as a comment."""
    bare = raw.replace("\ufeff", "").strip()
    if not bare or bare.startswith("#"):
        return [bare]
    # The first column, as the proxy reads it; never another one, so that mending lets in nobody whom no line names first.
    first = re.split(r"[,#]", bare, maxsplit=1)[0].replace('"', "")
    try:
        address = normalise(first)
    except EmailError:
        return [f"# not an address: {bare}"]
    return [address] if address == bare.replace('"', "").lower() else [f"# mended: {bare}", address]


@dataclass(frozen=True)
class Mend:
    """What was done to a line that was not plain."""

    number: int
    problem: str
    became: str


def mended(text: str) -> tuple[str, list[Mend]]:
    """The list with every line plain, and what that took. Nothing is lost: what is no address stays as a comment."""
    try:
        parse(text)
    except MalformedListError as error:
        problems = dict(error.problems)
    else:
        return text, []
    lines: list[str] = []
    mends = []
    for number, raw in enumerate(_raw_lines(text), start=1):
        new = _mended_line(raw) if number in problems else [raw]
        if number in problems:
            mends.append(Mend(number, problems[number], " / ".join(new)))
        lines += new
    return render(parse("\n".join(lines))), mends


def readable(text: str) -> tuple[list[str], list[tuple[int, str]]]:
    """The addresses on the plain lines of a list, and the problems of the others by line number. Never raises."""
    try:
        return listed(text), []
    except MalformedListError as error:
        bad = {number for number, _problem in error.problems}
        plain = [raw for number, raw in enumerate(_raw_lines(text), start=1) if number not in bad]
        return listed("\n".join(plain)), error.problems


def render(lines: Iterable[Line]) -> str:
    """The text of a list: every address once, exactly one newline at the end (none for an empty list)."""
    seen: set[str] = set()
    kept = []
    for line in lines:
        if line.address in seen:
            continue
        if line.address:
            seen.add(line.address)
        kept.append(line.text)
    text = "\n".join(kept).rstrip("\n")
    return f"{text}\n" if text else ""


def listed(text: str) -> list[str]:
    """The addresses of a list, each once, in its order.

    :raises MalformedListError: see `parse`.
    """
    return list(dict.fromkeys(line.address for line in parse(text) if line.address))


def with_present(text: str, addresses: Sequence[str]) -> str:
    """The list with these addresses in it, new ones at its end. Comments and order stay."""
    lines = parse(text)
    while lines and not lines[-1].text:
        lines.pop()
    known = {line.address for line in lines}
    return render([*lines, *(Line(address, address) for address in addresses if address not in known)])


def with_absent(text: str, addresses: Sequence[str]) -> str:
    """The list without these addresses. Comments and order stay."""
    gone = set(addresses)
    return render(line for line in parse(text) if line.address not in gone)


def with_exactly(text: str, addresses: Sequence[str]) -> str:
    """The list with these addresses and no others. Comments stay, and so does the order of those who stay."""
    return with_present(with_absent(text, [address for address in listed(text) if address not in addresses]), addresses)


def with_renamed(text: str, old: str, new: str) -> str:
    """The list with one address in the place of another; as it is when the other is not in it."""
    return render(Line(new, new) if line.address == old else line for line in parse(text))
