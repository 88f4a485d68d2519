# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A process under a `supervisord` of its own: start, bring to a changed configuration, stop, explain.

Standard library only. supervisord answers XML-RPC on a Unix socket in the process's directory.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import socket
import subprocess
import time
import xmlrpc.client
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

# sun_path holds 108 bytes on Linux, the last one zero.
SOCKET_PATH_LIMIT = 107
LOG_LINES = 15
# States of supervisord's process model in which it has given up or not begun.
DOWN = ("STOPPED", "EXITED", "FATAL", "UNKNOWN")


class ProcessError(Exception):
    """Why the process does not run, in one sentence, with its last log lines where they help."""


# ---------------------------------------------------------------------------------------------- XML-RPC


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class _UnixTransport(xmlrpc.client.Transport):
    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        return _UnixConnection(self._path)


class Supervisor:
    """Calls to one supervisord. Every call raises ProcessError when it does not answer."""

    def __init__(self, socket_path: Path) -> None:
        if len(os.fsencode(socket_path)) > SOCKET_PATH_LIMIT:
            raise ProcessError(
                f"the path {socket_path} is too long for a Unix socket ({SOCKET_PATH_LIMIT} bytes): choose a shorter directory"
            )
        self.socket_path = socket_path
        self._proxy = xmlrpc.client.ServerProxy("http://localhost", transport=_UnixTransport(str(socket_path)))

    def call(self, method: str, *arguments: Any) -> Any:
        try:
            return getattr(self._proxy.supervisor, method)(*arguments)
        except xmlrpc.client.Fault as fault:
            raise ProcessError(f"supervisord refused {method}: {fault.faultString}") from None
        except (OSError, http.client.HTTPException, xmlrpc.client.Error) as error:
            raise ProcessError(f"supervisord does not answer on {self.socket_path}: {error}") from None

    def identity(self) -> str | None:
        """The identifier of the running supervisord, or None when none runs."""
        try:
            return str(self._proxy.supervisor.getIdentification())
        except (OSError, http.client.HTTPException, xmlrpc.client.Error):
            return None

    def process(self, name: str) -> dict[str, Any] | None:
        """State of one process (`statename`, `pid`, `spawnerr`, …), or None when the name is unknown."""
        for info in cast(list[dict[str, Any]], self.call("getAllProcessInfo")):
            if info["name"] == name:
                return info
        return None

    def update(self) -> bool:
        """Bring the running programs to the configuration on disk; True when anything was restarted."""
        added, changed, removed = self.call("reloadConfig")[0]
        for group in [*changed, *removed]:
            self.call("stopProcessGroup", group, True)
            self.call("removeProcessGroup", group)
        for group in [*added, *changed]:
            self.call("addProcessGroup", group)
        return bool(added or changed or removed)

    def shut_down(self, timeout_s: float) -> None:
        """Stop the programs, then supervisord itself, and wait until its process is gone."""
        pid = int(self.call("getPID"))
        self.call("shutdown")
        deadline = time.monotonic() + timeout_s
        while _alive(pid):
            if time.monotonic() > deadline:
                raise ProcessError(f"supervisord (process {pid}) still runs {timeout_s:g} s after it was told to stop")
            time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    # A zombie has ended; who started it has not yet asked.
    return state != "Z"


# ---------------------------------------------------------------------------------------------- ports


@dataclass(frozen=True)
class Owner:
    """Who listens on a port. `pid` is None when the process belongs to another user."""

    pid: int | None
    name: str | None

    def __str__(self) -> str:
        if self.pid is None:
            return "a process of another user"
        return f"{self.name or 'a process'} (process {self.pid})"


def listening_inodes(tables: list[str], port: int) -> set[str]:
    """Socket inodes that listen on `port`, from the text of /proc/net/tcp and tcp6."""
    found = set()
    for table in tables:
        for line in table.splitlines()[1:]:
            fields = line.split()
            # Field 1: local address as HEX:PORT; field 3: state, 0A = LISTEN; field 9: inode.
            if len(fields) > 9 and fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                found.add(fields[9])
    return found


def port_owner(port: int) -> Owner | None:
    """Who listens on a TCP port of this machine, or None when nobody does."""
    tables = []
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            tables.append(Path(f"/proc/net/{name}").read_text())
    inodes = listening_inodes(tables, port)
    if not inodes:
        return None
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        try:
            if any(str(fd.readlink()) in wanted for fd in (directory / "fd").iterdir()):
                return Owner(int(directory.name), (directory / "comm").read_text().strip())
        except OSError:
            # Another user's process, or one that just ended.
            continue
    return Owner(None, None)


def _bindable(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise ProcessError(f"{host}:{port} cannot be used: {error.strerror}") from None
    return True


def require_free(addresses: list[str], own: set[int]) -> None:
    """Refuse a taken address, naming who holds it.

    :param addresses: `host:port`.
    :param own: process ids that may hold them: what is running of ours already.
    """
    for address in addresses:
        host, _colon, port = address.rpartition(":")
        if _bindable(host.strip("[]"), int(port)):
            continue
        owner = port_owner(int(port))
        if owner is not None and owner.pid in own:
            continue
        raise ProcessError(f"port {port} is taken by {owner or 'another process'}: stop it, or choose another port")


# ---------------------------------------------------------------------------------------------- start


# What the programs get of the caller's environment. Not passed: everything else, first of all API keys.
PASSED_ON = (
    "HOME", "LANG", "LC_ALL", "PATH", "TZ", "USER",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
    "SSL_CERT_DIR", "SSL_CERT_FILE",
)  # fmt: skip


def environment() -> dict[str, str]:
    return {name: os.environ[name] for name in PASSED_ON if name in os.environ}


def launch(supervisord: Path, configuration: Path) -> None:
    """Start supervisord; it puts itself into the background.

    :raises ProcessError: it is missing, or refuses its configuration.
    """
    try:
        done = subprocess.run(
            [str(supervisord), "-c", str(configuration)],
            env=environment(), cwd="/", stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=30, check=False, start_new_session=True,
        )  # fmt: skip
    except FileNotFoundError:
        raise ProcessError(f"{supervisord} is missing") from None
    except subprocess.TimeoutExpired:
        raise ProcessError("supervisord did not go into the background within 30 s") from None
    if done.returncode:
        raise ProcessError(f"supervisord refused to start: {(done.stderr or done.stdout).strip()}")


def tail(log: Path, start: int) -> str:
    """The last lines of a log behind byte `start`, each indented; a sentence when there are none."""
    try:
        with log.open("rb") as stream:
            stream.seek(start)
            lines = stream.read().decode(errors="replace").splitlines()
    except OSError as error:
        return f"its log {log} cannot be read: {error.strerror}"
    if not lines:
        return f"its log {log} is empty"
    return "its last log lines:\n" + "\n".join(f"  {line}" for line in lines[-LOG_LINES:])


def size(log: Path) -> int:
    try:
        return log.stat().st_size
    except OSError:
        return 0


def _ready(url: str) -> bool:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=2)
    try:
        connection.request("GET", parts.path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _ticks(deadline: float, every_s: float) -> Iterator[None]:
    while time.monotonic() < deadline:
        yield
        time.sleep(every_s)


def wait_ready(supervisor: Supervisor, name: str, url: str, log: Path, log_start: int, timeout_s: float) -> dict[str, Any]:
    """Wait until the process runs and its readiness address answers 200.

    :raises ProcessError: it ended (with its last log lines), or was not ready in time.
    """
    for _tick in _ticks(time.monotonic() + timeout_s, 0.1):
        info = supervisor.process(name)
        if info is None:
            raise ProcessError(f"supervisord knows no program {name!r}")
        if info["statename"] in ("BACKOFF", *DOWN):
            why = info.get("spawnerr") or f"exit status {info.get('exitstatus')}"
            raise ProcessError(f"the {name} ended right after its start ({why}); {tail(log, log_start)}")
        if info["statename"] == "RUNNING" and _ready(url):
            return info
    raise ProcessError(f"the {name} runs but was not ready after {timeout_s:g} s; {tail(log, log_start)}")
