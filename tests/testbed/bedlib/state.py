"""What a bed is called, where its state lies, and the journal that `down` needs none of."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from .common import LOCKS, BedError, cache_dir, lock, write

# No dot: it ends a bed's name in the names of what belongs to the bed, so that `a` does not take away what
# `a-h1` has.
NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")
LINK_LENGTH = 15  # of an interface name, set by the kernel
MAX_HOSTS = 20
MAX_BEDS = 60


@dataclasses.dataclass
class Bed:
    """One bed: N hosts h1…hN at 10.77.<index>.11 onwards, its lab gateway and services at 10.77.<index>.1."""

    name: str
    index: int
    count: int
    services: bool = False
    complete: bool = False
    hostfs: str = ""

    def __post_init__(self) -> None:
        check_name(self.name)

    @property
    def folder(self) -> Path:
        return beds_dir() / self.name

    @property
    def hosts(self) -> list[str]:
        return [f"h{number}" for number in range(1, self.count + 1)]

    @property
    def gateway(self) -> str:
        """Address of the lab namespace: the hosts' default route, and where the services listen."""
        return f"10.77.{self.index}.1"

    @property
    def subnet(self) -> str:
        return f"10.77.{self.index}.0/24"

    def address(self, host: str) -> str:
        return f"10.77.{self.index}.{10 + self.number(host)}"

    def number(self, host: str) -> int:
        """The i of h<i>; raises BedError for a host that this bed has not."""
        if host not in self.hosts:
            raise BedError(f"bed {self.name} has no host {host}: it has {', '.join(self.hosts)}")
        return int(host[1:])

    # Names on the machine. `down` finds everything by these.
    @property
    def lab(self) -> str:
        return lab_namespace(self.name)

    @property
    def link(self) -> str:
        return link_name(self.name)

    def namespace(self, host: str) -> str:
        return f"{self.lab}.{host}"

    def cgroup(self, part: str) -> str:
        """Name of the cgroup of a host, or of `services`."""
        return f"{cgroup_prefix(self.name)}{part}"

    def machine(self, host: str) -> str:
        return f"bed-{self.name}.{host}"

    def host_dir(self, host: str) -> Path:
        return self.folder / "hosts" / host

    def save(self) -> None:
        """Write the journal; every step of `up` is written before it is done."""
        write(self.folder / "bed.json", json.dumps(dataclasses.asdict(self), indent=1) + "\n")


def check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise BedError(f"a bed's name is up to 31 lower-case letters, digits and dashes, a letter first: not {name!r}")


def beds_dir() -> Path:
    return cache_dir() / "beds"


def lab_namespace(name: str) -> str:
    return f"bed-{name}"


def link_name(name: str) -> str:
    """The bed's name, or its beginning and a hash of it where that would be too long."""
    if len(name) + 4 <= LINK_LENGTH:
        return f"bed-{name}"
    return f"bed-{name[:4]}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def cgroup_prefix(name: str) -> str:
    return f"hearth-bed-{name}."


def firewall_table(name: str) -> str:
    return f"hearth_bed_{name.replace('-', '_')}"


def find(name: str) -> Bed | None:
    """The bed of that name, or None when there is no journal of one."""
    check_name(name)
    try:
        return Bed(**json.loads((beds_dir() / name / "bed.json").read_text()))
    except FileNotFoundError:
        return None


def load(name: str) -> Bed:
    """The bed of that name. Raises BedError when there is none, or when its `up` did not finish."""
    bed = find(name)
    if bed is None:
        raise BedError(f"there is no bed {name}: start one with `bed up -n 1 --name {name}`")
    if not bed.complete:
        raise BedError(f"bed {name} did not come up completely: `bed down --name {name}` removes what there is")
    return bed


def all_beds() -> list[Bed]:
    """Every bed with a journal in this cache."""
    found = [find(path.parent.name) for path in sorted(beds_dir().glob("*/bed.json"))]
    return [bed for bed in found if bed is not None]


@contextlib.contextmanager
def hold(name: str) -> Iterator[None]:
    """Held by every command that changes a bed, so that `down` and a running `up` do not mix."""
    check_name(name)
    with lock(LOCKS / f"hearth-bed-{name}", f"another command on bed {name}", remove=True):
        yield
