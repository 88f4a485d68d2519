"""Every place where a word of a conversation could be left, and the search of all of them.

A sink that cannot be read is an error and not "nothing found". Each sink can also *plant* a leak in itself,
the way a fault of the gateway would, so that a test can show that the search finds it there.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import socketserver
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from gateway_support import SOURCE, Gateway, wait_for

# --- forms ---------------------------------------------------------------------------------------


def forms(phrase: str) -> dict[str, bytes]:
    """The ways in which a phrase could have been written down, by name. ``gzip`` is looked for otherwise."""
    raw = phrase.encode()
    found = {
        "plain": raw,
        "latin-1": phrase.encode("latin-1"),
        "json": json.dumps(phrase)[1:-1].encode(),
        "repr": ascii(phrase)[1:-1].encode(),
        "utf-16-le": phrase.encode("utf-16-le"),
        "utf-16-be": phrase.encode("utf-16-be"),
        "url": urllib.parse.quote(phrase, safe="").encode(),
        "url-plus": urllib.parse.quote_plus(phrase).encode(),
        "hex": raw.hex().encode(),
    }
    for shift in range(3):  # base64 depends on where in the text the phrase begins
        padded = b"\0" * shift + raw
        whole = len(padded) // 3 * 3  # what follows the phrase changes the last group
        for name, encode in (("base64", base64.b64encode), ("base64url", base64.urlsafe_b64encode)):
            found[f"{name}-{shift}"] = encode(padded[:whole])[4 if shift else 0 :]
    return found


def written(phrase: str) -> dict[str, bytes]:
    """A text with the phrase in it, in each form, as a leak would be."""
    text = f"before {phrase} after"
    raw = text.encode()
    leaks = {name: b"before " + form + b" after" for name, form in forms(phrase).items() if not name.startswith("base64")}
    for shift in range(3):
        padding = b"x" * ((shift - len(b"before ")) % 3)  # so that the phrase begins at this offset
        leaks[f"base64-{shift}"] = base64.b64encode(padding + raw)
        leaks[f"base64url-{shift}"] = base64.urlsafe_b64encode(padding + raw)
    leaks["gzip"] = gzip.compress(raw * 3, mtime=0)
    leaks["zlib"] = zlib.compress(raw * 3)
    return leaks


def search(data: bytes, phrases: Sequence[str]) -> list[str]:
    """What was found, as ``phrase: form``."""
    hits = []
    for name, text in (("", data), *_unpacked(data)):
        for phrase in phrases:
            hits += [f"{phrase}: {name}{form}" for form, value in forms(phrase).items() if value in text]
    return hits


_PACKED = re.compile(rb"\x1f\x8b\x08|\x78[\x01\x5e\x9c\xda]")


def _unpacked(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Everything in the data that is compressed, wherever it begins."""
    for match in _PACKED.finditer(data):
        packed = data[match.start() : match.start() + 1_000_000]
        try:
            # 32: either header. Bytes that only look like a header fail at once.
            text = zlib.decompressobj(32 + zlib.MAX_WBITS).decompress(packed, 10_000_000)
        except zlib.error:
            continue
        if text:
            yield "packed ", text


# --- the gateway under watch ----------------------------------------------------------------------


class Watched(Gateway):
    """A gateway whose output is kept byte by byte, in a working directory of its own."""

    def __init__(self, directory: Path, vendor_url: str, **options: Any) -> None:
        self.raw = {"stdout": b"", "stderr": b""}
        self.bodies: list[bytes] = []
        self.headers: list[bytes] = []
        self.work = directory / "work"
        self.work.mkdir()
        self.core_pattern = Path("/proc/sys/kernel/core_pattern")
        super().__init__(directory, vendor_url, **options)

    def spawn(self) -> subprocess.Popen[str]:
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCE), "TMPDIR": str(self.temp)}
        process: Any = subprocess.Popen(
            [sys.executable, "-m", "hearth_gateway", "serve", "--config", str(self.config_file)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=self.work, bufsize=0,
        )  # fmt: skip
        self.process = process
        self._stdout_reader = threading.Thread(target=self._keep, args=("stdout", process.stdout), daemon=True)
        self._stdout_reader.start()
        return self.process

    def wait(self, timeout_s: float = 20) -> int:
        code = super().wait(timeout_s)
        self._stdout_reader.join(timeout_s)
        return code

    def _read_log(self, stream: Any) -> None:
        self._keep("stderr", stream)

    def _keep(self, name: str, stream: Any) -> None:
        while piece := os.read(stream.fileno(), 65536):
            self.raw[name] += piece
            if name == "stderr":
                self.log_lines[:] = self.raw["stderr"].decode(errors="replace").splitlines(keepends=True)

    @property
    def status_url(self) -> str:
        return self.metrics_url.removesuffix("/metrics") + "/debug/status"

    def send(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        """Status and body. Headers of every answer and bodies of errors become part of what is searched."""
        request = urllib.request.Request(self.url + path, body or None, {"Content-Type": "application/json", **headers})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                status, content, given = response.status, response.read(), response.headers
        except urllib.error.HTTPError as error:
            status, content, given = error.code, error.read(), error.headers
        self.headers.append(b"\n".join(f"{name}: {value}".encode("latin-1") for name, value in given.items()))
        if status != 200:
            self.bodies.append(content)
        return status, content


# --- sinks ----------------------------------------------------------------------------------------

Plant = Callable[[Watched, bytes], AbstractContextManager[None]]


@dataclass(frozen=True)
class Sink:
    """``binary``: it can hold any bytes; else none that end a line, an argument or a header."""

    read: Callable[[Watched], bytes]
    plant: Plant
    binary: bool = True

    def carries(self, leak: bytes) -> bool:
        return self.binary or not re.search(rb"[\x00-\x1f\x7f-\xff]", leak)


def _fetched(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as response:
        return bytes(response.read()) + str(response.headers).encode()


@contextmanager
def _served(leak: bytes, as_header: bool = False) -> Iterator[str]:
    """The address of a server that answers with the leak."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404 if as_header else 200)
            self.send_header("X-Leak", leak.decode("latin-1") if as_header else "")
            self.end_headers()
            if not as_header:
                self.wfile.write(leak)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@contextmanager
def _at_output(number: int, watched: Watched, leak: bytes) -> Iterator[None]:
    """Through the gateway's own file descriptor, as a stray print would."""
    name = {1: "stdout", 2: "stderr"}[number]
    before = len(watched.raw[name])
    with open(f"/proc/{watched.process.pid}/fd/{number}", "wb", buffering=0) as pipe:
        pipe.write(leak + b"\n")
    wait_for(lambda: len(watched.raw[name]) > before + len(leak), "the planted line")
    yield
    watched.raw[name] = watched.raw[name].replace(leak + b"\n", b"")


def _at_url(attribute: str) -> Plant:
    @contextmanager
    def plant(watched: Watched, leak: bytes) -> Iterator[None]:
        own = watched.metrics_url
        with _served(leak) as url:
            watched.metrics_url = url + "/metrics"
            yield
        watched.metrics_url = own

    return plant


@contextmanager
def _in_answer(watched: Watched, leak: bytes) -> Iterator[None]:
    own, watched.url = watched.url, ""
    with _served(leak) as url:
        request = urllib.request.urlopen(url, timeout=30)
        watched.bodies.append(request.read())
    watched.url = own
    yield
    watched.bodies.pop()


@contextmanager
def _in_header(watched: Watched, leak: bytes) -> Iterator[None]:
    own = watched.url
    with _served(leak, as_header=True) as watched.url:
        watched.send("/", b"", {})
    watched.url = own
    yield
    watched.headers.pop()
    watched.bodies.pop()


def _as_file(directory: Callable[[Watched], Path], name: str) -> Plant:
    @contextmanager
    def plant(watched: Watched, leak: bytes) -> Iterator[None]:
        path = directory(watched) / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(leak)
        yield
        path.unlink()

    return plant


@contextmanager
def _in_database(watched: Watched, leak: bytes) -> Iterator[None]:
    """A row in the write-ahead log; deleted again it may stay in the file, so each planting has its own copy."""
    connection = sqlite3.connect(watched.database)
    try:
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute("CREATE TABLE planted (leak BLOB)")
        connection.execute("INSERT INTO planted VALUES (?)", (leak,))
        connection.commit()
        yield
        connection.execute("DELETE FROM planted")
        connection.execute("DROP TABLE planted")
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.close()


# Keeps what it is given in a file without a name.
_HOLDER = """
import os, tempfile
file = tempfile.TemporaryFile()
file.write(os.read(0, 100000))
file.flush()
print(flush=True)
os.read(0, 1)
"""


def _in_process(how: str) -> Plant:
    """A child that has the leak where the gateway must not have it, in the gateway's place for the moment."""

    @contextmanager
    def plant(watched: Watched, leak: bytes) -> Iterator[None]:
        arguments = [sys.executable, "-c", _HOLDER] + ([leak.decode()] if how == "argv" else [])
        environment = {"LEAK": leak.decode()} if how == "environ" else {}
        child = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(leak if how == "file" else b"nothing")
        child.stdin.flush()
        child.stdout.readline()
        own, process = watched.process, child
        watched.process = process  # type: ignore[assignment]
        try:
            yield
        finally:
            watched.process = own
            child.kill()
            child.communicate()

    return plant


def _rows(watched: Watched) -> bytes:
    """Every value of every table: in the raw file a long one is spread over pages."""
    with sqlite3.connect(f"file:{watched.database}?mode=ro", uri=True) as connection:
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        values = [value for name in names for row in connection.execute(f'SELECT * FROM "{name}"') for value in row]  # noqa: S608
    assert "ledger" in names
    return b"\n".join(value if isinstance(value, bytes) else str(value).encode() for value in values)


def _tree(directory: Path) -> bytes:
    """Names and contents of all files below a directory."""
    if not directory.is_dir():
        raise FileNotFoundError(directory)
    return b"".join(str(path).encode() + b"\n" + path.read_bytes() + b"\n" for path in sorted(directory.rglob("*")) if path.is_file())


def _open_files(watched: Watched) -> bytes:
    """Regular files that the process has open, also those without a name."""
    data = b""
    for entry in list(Path(f"/proc/{watched.process.pid}/fd").iterdir()):
        try:
            target = str(entry.readlink())
            if target.startswith("/") and not target.startswith(("/dev/", "/proc/")):
                data += entry.read_bytes()
        except FileNotFoundError:
            continue  # closed since it was listed
    return data


def _of_process(name: str) -> Callable[[Watched], bytes]:
    return lambda watched: Path(f"/proc/{watched.process.pid}/{name}").read_bytes()


def _core_directory(watched: Watched) -> Path:
    pattern = watched.core_pattern.read_text().strip()
    if pattern.startswith("|"):
        # To a program: nothing to search, so it must be off (see server.py).
        limits = Path(f"/proc/{watched.process.pid}/limits").read_text()
        assert re.search(r"Max core file size +1 +1 ", limits), limits
        return watched.work
    return watched.work / Path(pattern).parent  # an absolute pattern wins over the left side


def _cores(watched: Watched) -> bytes:
    name = watched.core_pattern.read_text().strip().rpartition("/")[2].partition("%")[0] or "core"
    files = [path for path in _core_directory(watched).iterdir() if path.name.startswith(name) and path.is_file()]
    return b"".join(path.read_bytes() for path in files if path.stat().st_mtime > _STARTED)


_STARTED = time.time()

SINKS: dict[str, Sink] = {
    "standard error": Sink(lambda watched: watched.raw["stderr"], lambda watched, leak: _at_output(2, watched, leak)),
    "standard output": Sink(lambda watched: watched.raw["stdout"], lambda watched, leak: _at_output(1, watched, leak)),
    "metrics": Sink(lambda watched: _fetched(watched.metrics_url), _at_url("metrics_url")),
    "debug status": Sink(lambda watched: _fetched(watched.status_url), _at_url("status_url")),
    "error bodies": Sink(lambda watched: b"\n".join(watched.bodies), _in_answer),
    "response headers": Sink(lambda watched: b"\n".join(watched.headers), _in_header, binary=False),
    "rows": Sink(_rows, _in_database),
    "database files": Sink(lambda watched: _tree(watched.directory), _in_database),
    "temporary files": Sink(lambda watched: _tree(watched.temp), _as_file(lambda watched: watched.temp, "spool")),
    "working directory": Sink(lambda watched: _tree(watched.work), _as_file(lambda watched: watched.work, "left.txt")),
    "open files": Sink(_open_files, _in_process("file")),
    "arguments": Sink(_of_process("cmdline"), _in_process("argv"), binary=False),
    "environment": Sink(_of_process("environ"), _in_process("environ"), binary=False),
    "core dumps": Sink(_cores, _as_file(_core_directory, "core.4711")),
}
# In a gateway that is at work these hold something; finding nothing in nothing would prove nothing.
NEVER_EMPTY = ("standard error", "metrics", "debug status", "error bodies", "response headers", "rows", "database files", "open files")


def search_all(watched: Watched, phrases: Sequence[str]) -> list[str]:
    """Each hit as ``sink: phrase: form``. Raises when a sink cannot be read."""
    return [f"{name}: {hit}" for name, sink in SINKS.items() for hit in search(sink.read(watched), phrases)]
