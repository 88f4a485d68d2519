"""``hearth-gateway person …``: who may chat. Works on the store while the service runs.

A running service looks at the store every second, so a change counts within 5 s in every replica. The
playbooks call this with ``--json``; a run that finds everything as it should be writes nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from hearth_gateway.cli_answer import answer
from hearth_gateway.config import Config, LimitsConfig
from hearth_gateway.core.identity import normalise_email
from hearth_gateway.core.people import PeopleUnavailableError, Person
from hearth_gateway.secrets import SecretError

if TYPE_CHECKING:
    from hearth_gateway.core.pseudonym import Pseudonym
    from hearth_gateway.store.people import SqlPeople

EXIT_FAILED = 1
EXIT_BAD_USE = 2
MAX_ALIAS = 64
# A running service notices a change within a second, and its open answers within half a second more.
CUT_WITHIN_S = 5.0
# The last second that a time can be written for, in UTC.
_LAST_MOMENT = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC).timestamp()


_Load = Callable[[Path], Config | None]
_Action = Callable[["_Store", argparse.Namespace], "_Result"]


class UsageError(Exception):
    """What is wrong with the arguments, as a sentence."""


def add_parser(commands: Any, load: _Load) -> None:
    """Add ``person`` and its subcommands. ``load`` reads a configuration file; None: it has said what is wrong."""
    person = commands.add_parser("person", help="who may chat: set, disable, enable, list, rename, delete-data")
    actions = person.add_subparsers(required=True, metavar="ACTION")

    def action(name: str, run: _Action, text: str, one: bool = True, creates: bool = False) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = actions.add_parser(name, help=text)
        if one:
            parser.add_argument("email", metavar="EMAIL", help="the address, or - to read it from standard input")
        parser.add_argument("--config", required=True, type=Path, metavar="FILE")
        parser.add_argument("--json", action="store_true", help="print one JSON object")
        parser.set_defaults(run=lambda arguments: _run(arguments, run, load), creates=creates)
        return parser

    setting = action("set", _set, "add a person, or change what is known of them", creates=True)
    setting.add_argument("--alias", metavar="NAME", help="a short name for lists and metrics; '' for none")
    setting.add_argument("--active", action="store_true", help="let the person in again as well, as `enable` does")
    setting.add_argument("--limits", metavar="JSON", help="their own ceilings, in place of limits.person; 'none' for the house's")
    setting.add_argument(
        "--not-before", metavar="WHEN", help="refuse until then and cut what is open: 'now', 2026-11-21T18:00:00+00:00, or 'none'"
    )
    action("disable", _disable, "refuse the person and cut their open answers")
    action("enable", _enable, "let the person in again")
    action("list", _list, "everybody the gateway knows", one=False)
    renaming = action("rename", _rename, "give the person another address, with all they used; the former one is refused")
    renaming.add_argument("--to", metavar="EMAIL", help="the new address; with EMAIL - both stand in the line on standard input")
    action("delete-data", _delete_data, "forget the person; what they used stays as nobody's")


@dataclasses.dataclass(frozen=True, slots=True)
class _Result:
    """``data`` is what --json prints, ``text`` what people read."""

    data: dict[str, Any]
    text: str


class _Store:
    """The people of a configuration, and how they are shown."""

    def __init__(self, people: SqlPeople, pseudonym: Pseudonym) -> None:
        self.people = people
        self._pseudonym = pseudonym

    def change(self, email: str, **changes: Any) -> _Result:
        before = self.people.get(email)
        after = dataclasses.replace(before or Person(email, _now()), **changes)
        if after != before:
            self.people.put(after)
        shown = {"before": None if before is None else self.shown(before), "person": self.shown(after)}
        known = "" if before else " (nobody was known by this address)"
        return _Result({"changed": after != before, **shown}, self.line(after) + known)

    def shown(self, person: Person) -> dict[str, Any]:
        return {
            "email": person.email,
            "state": "active" if person.active else "disabled",
            "alias": person.alias,
            "limits": None if person.limits is None else person.limits.model_dump(mode="json", exclude_none=True),
            "not_before": _stamp(person.not_before),
            "first_seen": _stamp(person.first_seen),
            "pseudonym": self._pseudonym.of(person.email),
        }

    def line(self, person: Person) -> str:
        shown = self.shown(person)
        extra = [f"{name} {json.dumps(shown[name])}" for name in ("alias", "limits", "not_before") if shown[name] is not None]
        return ", ".join([f"{person.email}: {shown['state']}", *extra, f"since {shown['first_seen']}"])


def _run(arguments: argparse.Namespace, run: Callable[[_Store, argparse.Namespace], _Result], load: _Load) -> int:
    from hearth_gateway.core.pseudonym import Pseudonym
    from hearth_gateway.store.database import DatabaseError, open_database
    from hearth_gateway.store.people import SqlPeople

    config = load(arguments.config)
    if config is None:
        return EXIT_BAD_USE
    try:
        _read_addresses(arguments)
        key = config.pseudonym_key()
        engine = open_database(config.database_url, config.database_password(), arguments.creates)
        with closing(_Disposable(engine)) as database:
            people = SqlPeople(database.engine)
            result = run(_Store(people, Pseudonym(key or people.pseudonym_key())), arguments)
    except UsageError as problem:
        print(f"hearth-gateway: {problem}", file=sys.stderr)
        return EXIT_BAD_USE
    except (DatabaseError, PeopleUnavailableError, SecretError) as problem:
        print(f"hearth-gateway: {problem}", file=sys.stderr)
        return EXIT_FAILED
    answer(json.dumps(result.data) if arguments.json else result.text)
    return 0


class _Disposable:
    """An engine with the name that ``closing`` calls."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.close = engine.dispose


def _set(store: _Store, arguments: argparse.Namespace) -> _Result:
    changes: dict[str, Any] = {"active": True} if arguments.active else {}
    if arguments.alias is not None:
        changes["alias"] = _alias(arguments.alias)
    if arguments.limits is not None:
        changes["limits"] = _limits(arguments.limits)
    if arguments.not_before is not None:
        changes["not_before"] = _moment(arguments.not_before)
    return store.change(arguments.email, **changes)


def _disable(store: _Store, arguments: argparse.Namespace) -> _Result:
    return store.change(arguments.email, active=False)


def _enable(store: _Store, arguments: argparse.Namespace) -> _Result:
    return store.change(arguments.email, active=True)


def _list(store: _Store, _arguments: argparse.Namespace) -> _Result:
    _, people = store.people.load()
    return _Result({"people": [store.shown(person) for person in people]}, "\n".join(map(store.line, people)) or "Nobody yet.")


def _delete_data(store: _Store, arguments: argparse.Namespace) -> _Result:
    email = arguments.email
    person = store.people.get(email)
    if person is not None:
        # First nobody writes for this person any more: a row that is written after the deletion would stay.
        until = _now() + CUT_WITHIN_S
        store.people.put(dataclasses.replace(person, not_before=max(until, person.not_before or 0)))
        time.sleep(CUT_WITHIN_S)
    done = store.people.forget(email)
    changed = done.known or done.ledger_rows > 0 or done.daily_sums > 0
    text = f"{email}: forgotten; {done.ledger_rows} rows and {done.daily_sums} daily sums are nobody's now"
    if done.kept_disabled:
        text += "; the address stays on record as disabled"
    return _Result({"changed": changed, **dataclasses.asdict(done)}, text if changed else f"{email}: nothing was stored")


def _rename(store: _Store, arguments: argparse.Namespace) -> _Result:
    old, new = arguments.email, arguments.to
    if old == new:
        raise UsageError("both addresses are the same")
    before = store.people.get(old)
    if before is None:
        return _Result({"changed": False, "person": None}, f"{old}: nobody is known by this address")
    if before.active:
        # First their answers end, and with that they are charged: what is still open would stay behind.
        store.people.put(dataclasses.replace(before, active=False))
    try:
        if before.active:
            time.sleep(CUT_WITHIN_S)
        done = store.people.rename(old, new)
    except BaseException:
        if before.active:
            print("hearth-gateway: not renamed; the former address is disabled now: run this again, or `person enable`", file=sys.stderr)
        raise
    text = f"{store.line(done.person)}; {done.ledger_rows} rows and {done.daily_sums} daily sums of {old} are theirs now"
    if done.open_rows:
        text += f"; {done.open_rows} answers were still being written, run this again when they are done"
    data = {**dataclasses.asdict(done), "person": store.shown(done.person), "changed": done.changed or before.active}
    return _Result(data, text)


def _read_addresses(arguments: argparse.Namespace) -> None:
    """``-`` keeps addresses out of the list of processes, which every user of a machine can read."""
    given = {name: value for name in ("email", "to") if (value := getattr(arguments, name, None)) is not None}
    if given.get("email") == "-":
        # One line with all of them: what an API server hands to a command has no end that it could wait for.
        names = ["email", *(["to"] if hasattr(arguments, "to") and "to" not in given else [])]
        try:
            words = sys.stdin.readline().split() if sys.stdin is not None else []  # None: it is closed
        except (OSError, UnicodeDecodeError):
            raise UsageError("standard input cannot be read as UTF-8 text") from None
        if len(words) != len(names):
            raise UsageError(f"standard input must have {len(names)} address{'es' if len(names) > 1 else ''} in one line")
        given |= dict(zip(names, words, strict=True))
    if "email" in given and hasattr(arguments, "to") and "to" not in given:
        raise UsageError("--to EMAIL is missing: the new address")
    for name, address in given.items():
        setattr(arguments, name, _email(address))


def _email(given: str) -> str:
    try:
        return normalise_email(given)
    except ValueError as problem:
        raise UsageError(f"the address {problem}") from None


def _alias(given: str) -> str | None:
    if len(given) > MAX_ALIAS or not given.isprintable():
        raise UsageError(f"--alias must be printable and at most {MAX_ALIAS} characters")
    return given.strip() or None


def _limits(given: str) -> LimitsConfig | None:
    if given == "none":
        return None
    try:
        return LimitsConfig.model_validate_json(given)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, item['loc'])) or 'JSON'}: {item['msg']}" for item in error.errors()]
        raise UsageError(f"--limits: {'; '.join(problems)}; known are {', '.join(LimitsConfig.model_fields)}") from None


def _moment(given: str) -> float | None:
    if given == "none":
        return None
    if given == "now":
        return _now()
    try:
        moment = datetime.datetime.fromisoformat(given)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise UsageError("--not-before must be 'now', 'none' or a time with its zone, such as 2026-11-21T18:00:00+00:00")
    seconds = moment.timestamp()
    if not 0 <= seconds <= _LAST_MOMENT:
        raise UsageError("--not-before must be in the years 1970 to 9999, counted in UTC")
    return seconds


def _now() -> float:
    """Unix seconds, as precise as the store keeps them."""
    return int(time.time() * 1000) / 1000


def _stamp(moment: float | None) -> str | None:
    if moment is None:
        return None
    # A row that somebody wrote otherwise must not keep everybody out of the list.
    moment = min(max(moment, 0), _LAST_MOMENT)
    return datetime.datetime.fromtimestamp(moment, datetime.UTC).isoformat(timespec="milliseconds")
