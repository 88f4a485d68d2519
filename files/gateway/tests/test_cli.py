"""The command when the world around it is not as it should be: a full disk, closed streams, a stranger on the port."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hearth_gateway import __main__, cli_status
from hearth_gateway.cli import main
from hearth_gateway.telemetry.log import Log

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__main__.__file__).parents[1])}
COMMAND = [sys.executable, "-m", "hearth_gateway"]
UNPRINTED = "hearth-gateway: what was asked is done, but the answer could not be printed: "


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "tokens").mkdir()
    file = tmp_path / "config.yaml"
    file.write_text(f"""
        database_url: sqlite:///{tmp_path}/hearth.db
        tokens: {{dir: {tmp_path}/tokens}}
        providers: [{{name: demo, kind: demo}}]
        models: {{demo: [{{provider: demo, model: demo}}]}}
    """)
    return str(file)


# --- standard output and standard input --------------------------------------------------------


def full() -> io.TextIOWrapper:
    return open("/dev/full", "w")


def left() -> io.TextIOWrapper:
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w")


def ascii_only() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="ascii")


@pytest.mark.parametrize(
    ("output", "reason"),
    [(full, "No space left on device"), (left, "Broken pipe"), (ascii_only, "standard output is ascii and not UTF-8")],
)
def test_an_answer_that_cannot_be_printed_is_one_sentence(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: Any, output: Any, reason: str
) -> None:
    with monkeypatch.context() as patched, output() as stream:
        patched.setattr(sys, "stdout", stream)
        assert main(["person", "set", "zoë@example.org", "--config", config]) == 1
    assert capsys.readouterr() == ("", f"{UNPRINTED}{reason}\n")
    assert main(["person", "list", "--json", "--config", config]) == 0
    assert [person["email"] for person in json.loads(capsys.readouterr().out)["people"]] == ["zoë@example.org"]


def test_python_does_not_print_it_once_more_when_it_ends() -> None:
    with full() as stream:
        done = subprocess.run([*COMMAND, "code-hash"], stdout=stream, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, timeout=60)
    assert (done.returncode, done.stderr) == (1, f"{UNPRINTED}No space left on device\n")


@pytest.mark.parametrize(
    ("stdin", "sentence"),
    [
        (None, "standard input must have 1 address in one line"),
        (io.TextIOWrapper(io.BytesIO(b"\xff@example.org\n"), encoding="utf-8"), "standard input cannot be read as UTF-8 text"),
    ],
)
def test_an_address_that_cannot_be_read(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: Any, stdin: io.TextIOWrapper | None, sentence: str
) -> None:
    monkeypatch.setattr(sys, "stdin", stdin)
    assert main(["person", "set", "-", "--config", config]) == 2
    assert capsys.readouterr() == ("", f"hearth-gateway: {sentence}\n")


@pytest.mark.parametrize("action", [["list"], ["disable", "ann@example.org"], ["delete-data", "ann@example.org"]])
def test_a_database_that_is_not_there_is_not_made(config: str, tmp_path: Path, capsys: Any, action: list[str]) -> None:
    """It would be root's, say, and the service could not write it. And nobody is disabled in it."""
    assert main(["person", *action, "--config", config]) == 1
    assert capsys.readouterr().err == (
        f"hearth-gateway: there is no database {tmp_path}/hearth.db yet; the service makes it when it starts, and so does `person set`\n"
    )
    assert not (tmp_path / "hearth.db").exists()


def test_ctrl_c_while_another_has_its_turn(config: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def ctrl_c(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["hearth-gateway", "person", "list", "--config", config])
    with __main__.turn(Path(__main__.__file__), 60):
        monkeypatch.setattr(time, "sleep", ctrl_c)
        try:
            assert __main__.main() == 1
        except KeyboardInterrupt:
            pytest.fail("a traceback")  # and not the end of all tests
    assert capsys.readouterr() == ("", "")


def test_a_log_without_standard_error_goes_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    Log().event("started")


# --- status ------------------------------------------------------------------------------------


def http(body: bytes, more: int = 0, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body) + more}\r\n\r\n".encode() + body


@pytest.fixture
def stranger() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.mark.parametrize("options", [[], ["--json"]])
@pytest.mark.parametrize(
    "said",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"",
        http(b"{}", more=10),
        http(b"not found", status="404 Not Found"),
        http(b"<html>"),
        http(b"[]"),
        http(b"7"),
        http(b"\xff\xfe\x00"),
        http(b"[" * 100_000),
        http(b'{"providers": []}'),
        http(b'{"status": "ok", "version": "1", "checks": [], "providers": 7}'),
    ],
)
def test_status_of_another_service(
    tmp_path: Path, config: str, capsys: Any, stranger: socket.socket, said: bytes, options: list[str]
) -> None:
    def speak() -> None:
        connection, _ = stranger.accept()
        with connection:
            connection.recv(65_536)
            connection.sendall(said)

    port = stranger.getsockname()[1]
    with open(config, "a") as file:
        file.write(f"\n        server: {{metrics_bind: '127.0.0.1:{port}'}}\n")
    thread = threading.Thread(target=speak)
    thread.start()
    assert main(["status", "--config", config, *options]) == cli_status.EXIT_UNREACHABLE
    thread.join()
    url = f"http://127.0.0.1:{port}/debug/status"
    sentence = f"what listens at {url} does not answer as this version of the service does; is metrics_bind right?"
    assert capsys.readouterr() == ("", f"hearth-gateway: {sentence}\n")


# --- demo --------------------------------------------------------------------------------------

DEMO = ["demo", "--bind", "127.0.0.1:0", "--metrics-bind", "127.0.0.1:0"]


@pytest.fixture
def own_signals() -> Iterator[None]:
    """The command runs in this process, and sets handlers."""
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("own_signals")
def test_a_demo_with_nowhere_to_write(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nonexistent"])
    assert main(DEMO) == 1
    out, told = capsys.readouterr()
    assert out == "" and re.fullmatch("hearth-gateway: no temporary directory .*TMPDIR.*\n", told)


@pytest.mark.parametrize("name", ["SIGHUP", "SIGTERM"])
def test_a_demo_that_is_ended_before_it_runs_leaves_no_token(tmp_path: Path, name: str) -> None:
    early = f"""
import os, signal, sys, time
from hearth_gateway import cli
signal.signal(signal.{name}, signal.SIG_DFL)  # the tests may run under nohup
def run(config, greeting):
    print(os.listdir(config.tokens.dir), flush=True)
    os.kill(os.getpid(), signal.{name})
    time.sleep(30)
cli._run = run
sys.exit(cli.main(["demo"]))
"""
    environment = {**ENVIRONMENT, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", early], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (1, "['demo']\n", "")
    assert list(tmp_path.iterdir()) == []


def test_a_demo_without_standard_error_runs(tmp_path: Path) -> None:
    process = subprocess.Popen(
        ["sh", "-c", 'exec "$@" 2>&-', "sh", *COMMAND, *DEMO],
        stdout=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, "TMPDIR": str(tmp_path)},
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Open http://127.0.0.1:")
        process.terminate()
        assert process.wait(30) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_demo_whose_address_nobody_gets_ends(tmp_path: Path) -> None:
    environment = {**ENVIRONMENT, "TMPDIR": str(tmp_path)}
    with full() as stream:
        done = subprocess.run([*COMMAND, *DEMO], stdout=stream, stderr=subprocess.PIPE, text=True, env=environment, timeout=60)
    assert done.returncode == 1 and "the address could not be printed, so it ends: No space left on device\n" in done.stderr
    assert "Traceback" not in done.stderr and list(tmp_path.iterdir()) == []
