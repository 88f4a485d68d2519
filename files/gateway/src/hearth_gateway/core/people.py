"""The people of the house: who may chat, under which limits, since when.

The store is the truth; the process answers from a copy in memory, because the question "may this
person go on?" is asked at every piece of every answer. The copy is renewed when the store's version
changes, which is looked at every second: what an operator does with ``hearth-gateway person …`` counts
within 5 s in every process that shares the store.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from hearth_gateway.clock import Clock
from hearth_gateway.config import LimitsConfig
from hearth_gateway.core.identity import Caller
from hearth_gateway.errors import GatewayError, Kind

LOOK_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Person:
    """One person. Times are Unix seconds.

    ``limits`` replaces the configuration's ``limits.person`` as a whole; None means that those apply.

    ``not_before``: requests whose credential was presented before this moment are refused, and their
    open answers are cut. The proxy's credential does not say when the person signed in: each request
    is as old as its arrival. So a moment in the *future* locks the person out until then, and *now*
    ends every answer that is being written, but a browser that is still signed in may ask again at
    once. Only a new cookie secret of the proxy makes everybody sign in anew, and only ``disabled``
    keeps one person out.
    """

    email: str
    first_seen: float
    active: bool = True
    alias: str | None = None
    limits: LimitsConfig | None = None
    not_before: float | None = None


class PeopleUnavailableError(Exception):
    """Why the store of people cannot be used, as a sentence for the operator."""


class PeopleStore(Protocol):
    """Where people are kept. Every method raises ``PeopleUnavailableError``."""

    def version(self) -> int:
        """Grows with every change."""

    def load(self) -> tuple[int, list[Person]]:
        """The version, and everybody as of then."""

    def create(self, email: str, first_seen: float) -> Person:
        """Add an active person; who is there already comes back as they are."""


class People:
    """Answers from the copy. Safe to use from many threads.

    ``on_problem`` is told, as a sentence, when the store cannot be read. Then the last copy keeps
    working: a disk at fault must not shut the house out, nor let anybody in who was disabled.
    """

    def __init__(self, store: PeopleStore, clock: Clock, on_problem: Callable[[str], None]) -> None:
        self._store = store
        self._clock = clock
        self._on_problem = on_problem
        self._lock = threading.Lock()
        self._version: int | None = None
        self._people: Mapping[str, Person] = {}
        self._failing = False
        self.refresh()

    def admit(self, caller: Caller) -> None:
        """Raises ``GatewayError`` when the caller's person is locked out. Who is new here gets a record."""
        if caller.person is not None and caller.person not in self._people:
            self._add(caller.person)
        self.check(caller)

    def check(self, caller: Caller) -> None:
        """Raises ``GatewayError`` when the caller's person may not go on. No look at the store."""
        if caller.person is None:
            return
        person = self._people.get(caller.person)
        if person is None:
            raise _locked_out("This person's record was deleted while the answer was being written.")
        if not person.active:
            raise _locked_out("Your access to this server is switched off. Ask the person who runs it.")
        if person.not_before is not None and caller.since < person.not_before:
            raise _locked_out("Your access to this server was interrupted. Ask the person who runs it, or try again later.")

    def of(self, email: str) -> Person | None:
        return self._people.get(email)

    def limits_of(self, email: str) -> LimitsConfig | None:
        """This person's own limits, or None when the configuration's apply."""
        person = self._people.get(email)
        return person.limits if person else None

    def known(self) -> Iterable[Person]:
        return self._people.values()

    def refresh(self) -> None:
        """Renew the copy if the store has changed."""
        try:
            if self._version is not None and self._store.version() == self._version:
                self._failing = False
                return
            # Under the lock: a person added meanwhile must not get lost with the older copy.
            with self._lock:
                self._version, people = self._store.load()
                self._people = {person.email: person for person in people}
            self._failing = False
        except PeopleUnavailableError as problem:
            self._tell(problem)

    def _tell(self, problem: PeopleUnavailableError) -> None:
        if not self._failing:
            self._failing = True
            self._on_problem(str(problem))

    def _add(self, email: str) -> None:
        with self._lock:
            if email in self._people:
                return
            try:
                person = self._store.create(email, self._clock.time())
            except PeopleUnavailableError as problem:
                self._tell(problem)
                raise GatewayError(
                    Kind.LEDGER_UNAVAILABLE,
                    "The gateway cannot write its database. The operator has to look at its disk.",
                    retry_after_s=30,
                ) from None
            self._people = {**self._people, email: person}


def _locked_out(message: str) -> GatewayError:
    return GatewayError(Kind.PERSON_REFUSED, message)


class Watch:
    """Calls each of ``looks`` once a second, until ``stop``.

    Each in a thread of its own: a database that hangs must not keep a token valid whose file is gone.
    ``on_error`` gets what a look raises; the watch goes on, or nobody could be locked out any more.
    """

    def __init__(self, looks: Iterable[Callable[[], None]], on_error: Callable[[Exception], None]) -> None:
        self._on_error = on_error
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(look,), name="watch", daemon=True) for look in looks]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(LOOK_EVERY_S)

    def _run(self, look: Callable[[], None]) -> None:
        while not self._stopping.wait(LOOK_EVERY_S):
            try:
                look()
            except Exception as error:
                self._on_error(error)
