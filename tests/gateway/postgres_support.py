"""A real PostgreSQL server for tests: Debian's package, started as an unprivileged user on a directory of its own."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

USER = "hearth"
PASSWORD = "database-password-0123456789"


def _programs() -> Path:
    """Where Debian keeps initdb and postgres: the newest version there is."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not found:
        pytest.fail("PostgreSQL is missing: run `make setup`")
    return found[-1].parent


def _account() -> pwd.struct_passwd | None:
    """PostgreSQL refuses to run as root; None if this is not root."""
    return pwd.getpwnam("postgres") if os.geteuid() == 0 else None


class Server:
    """One server; ``database()`` makes a new, empty database in it.

    :param address: where it listens besides the loopback interface, for gateways on other hosts.
    """

    def __init__(self, address: str = "127.0.0.1") -> None:
        self._bin = _programs()
        self.address = address
        account = _account()
        self._as: dict[str, Any] = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
        # Not below pytest's directory, which only its own user may enter; and a socket's path must be short.
        self.directory = Path(tempfile.mkdtemp(prefix="hearth-pg-"))
        password_file = self.directory / "password"
        password_file.write_text(PASSWORD)
        if account:
            os.chown(self.directory, account.pw_uid, account.pw_gid)
            os.chown(password_file, account.pw_uid, account.pw_gid)
        how = ("-U", USER, "-A", "scram-sha-256", f"--pwfile={password_file}", "--no-sync", "-E", "UTF8", "--locale=C.UTF-8")
        self._run("initdb", "-D", str(self.directory / "data"), *how)
        with (self.directory / "data/pg_hba.conf").open("a") as rules:
            rules.write("host all all samenet scram-sha-256\nhost all all 10.0.0.0/8 scram-sha-256\n" if address != "127.0.0.1" else "")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self._names = itertools.count(1)
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._bin / program), *arguments], cwd=self.directory, capture_output=True, text=True, check=False, **self._as
        )
        assert done.returncode == 0, f"{program}: {done.stderr}"

    def start(self) -> None:
        """Also again, after ``crash``."""
        # No fsync: these tests kill gateways, not the power.
        options = {
            "listen_addresses": ",".join(dict.fromkeys(("127.0.0.1", self.address))),
            "port": str(self.port),
            "unix_socket_directories": str(self.directory),
            "fsync": "off",
            "max_connections": "60",
            "shared_buffers": "16MB",
        }
        settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        log = (self.directory / "log").open("wb")
        command = [str(self._bin / "postgres"), "-D", str(self.directory / "data"), *settings]
        self.process = subprocess.Popen(command, stderr=log, stdout=log, cwd=self.directory, **self._as)
        deadline = time.monotonic() + 30
        while True:
            try:
                self._connect("postgres").close()
            except psycopg.OperationalError:
                assert self.process.poll() is None and time.monotonic() < deadline, (self.directory / "log").read_text()
                time.sleep(0.05)
            else:
                return

    def _connect(self, database: str) -> psycopg.Connection[Any]:
        return psycopg.connect(host="127.0.0.1", port=self.port, user=USER, password=PASSWORD, dbname=database, autocommit=True)

    def database(self) -> Database:
        name = f"hearth_{next(self._names)}"
        with self._connect("postgres") as connection:
            connection.execute(f"CREATE DATABASE {name}")  # our own name, no input
        return Database(self, name)

    def crash(self) -> None:
        """Every connection breaks at once, and nobody listens any more."""
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(30)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)  # SIGTERM would wait for clients to leave
        self.process.wait(30)
        shutil.rmtree(self.directory)


class Database:
    """One empty database. ``url`` is over TCP, ``socket_url`` over the Unix socket; both need ``PASSWORD``."""

    def __init__(self, server: Server, name: str) -> None:
        self.server, self.name = server, name
        self.url = f"postgresql://{USER}@{server.address}:{server.port}/{name}"
        self.socket_url = f"postgresql://{USER}@/{name}?host={server.directory}&port={server.port}"

    def connect(self) -> psycopg.Connection[Any]:
        """A connection of the test's own, each statement its own transaction."""
        return self.server._connect(self.name)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """The part of a gateway's configuration that says where the ledger is, on one and on the other."""
    if request.param == "sqlite":
        return {}
    server: Server = request.getfixturevalue("postgresql")
    return on(server.database(), tmp_path)


def on(database: Database, directory: Path) -> dict[str, Any]:
    password = directory / "database-password"
    password.write_text(PASSWORD)
    return {"database_url": database.url, "database_password_file": str(password)}
