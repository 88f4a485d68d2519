"""Small stand-ins for time, providers and the meter, shared by the unit tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from hearth_gateway.core.metering import Admission, Leg
from hearth_gateway.errors import GatewayError
from hearth_gateway.providers.base import Call
from hearth_gateway.translate.events import Event


class FakeClock:
    """Stands still until somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_700_000_000 + self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class FakeMeter:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.legs: list[Leg] = []
        self.admissions: list[Admission] = []
        self.begun: list[tuple[int, str, str]] = []
        self.closed = 0
        self.problem: GatewayError | None = None

    def admit(self, admission: Admission) -> FakeMeter:
        if self.problem:
            raise self.problem
        self.admissions.append(admission)
        return self

    def begin(self, leg: int, provider: str, model: str) -> None:
        self.begun.append((leg, provider, model))

    def settle(self, leg: Leg) -> None:
        self.legs.append(leg)

    def close(self) -> None:
        self.closed += 1


Step = Event | GatewayError | float | Callable[[Call], float]


class FakeProvider:
    """Plays a script: events are yielded, errors raised, numbers are seconds that pass before.

    ``scripts`` may be set to several; each call plays the next one, and the last one again and again.
    """

    is_demo = False

    def __init__(self, name: str, clock: FakeClock, *script: Step) -> None:
        self.name = name
        self.clock = clock
        self.scripts: Sequence[Sequence[Step]] = [script]
        self.calls = 0
        self.closed = 0

    def close(self) -> None:
        pass

    def stream(self, call: Call) -> Iterator[Event]:
        self.calls += 1
        script = self.scripts[0]
        self.scripts = self.scripts[1:] or self.scripts
        try:
            for step in script:
                if isinstance(step, float):
                    self.clock.sleep(step)
                elif isinstance(step, GatewayError):
                    raise step
                elif callable(step):
                    self.clock.sleep(step(call))
                else:
                    yield step
        finally:
            self.closed += 1


class FakeTransport:
    """A vendor's response, in the pieces given. One request; ``sent`` keeps it."""

    def __init__(self, status: int, headers: dict[str, str], pieces: list[bytes]) -> None:
        self.status = status
        self.headers = headers
        self.sent: list[tuple[str, dict[str, str], bytes]] = []
        self.closed = 0
        self._pieces = pieces

    def post(self, path: str, headers: dict[str, str], body: bytes, connect_s: float) -> FakeTransport:
        self.sent.append((path, headers, body))
        return self

    def wait(self, wait_s: float) -> FakeTransport:
        return self

    def read(self, wait_s: float) -> bytes | None:
        return self._pieces.pop(0) if self._pieces else b""

    def close(self) -> None:
        self.closed += 1
