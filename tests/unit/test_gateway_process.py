"""Module gateway_process with a real supervisord and a small web server in the gateway's place."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.homelab.hearth.plugins.module_utils import _supervised
from ansible_collections.homelab.hearth.plugins.modules import gateway_process

Run = Callable[..., dict[str, Any]]
SUPERVISORD = Path(sys.executable).parent / "supervisord"

PROGRAM = """
import http.server, os, sys
print("starting with", os.environ.get("HEARTH_CONFIG_CHECKSUM"), flush=True)
mode, port = open(sys.argv[1]).read().split()
if mode == "crash":
    print("hearth-gateway: models: at least one is needed", flush=True)
    sys.exit(2)
class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args): pass
    def do_GET(self):
        self.send_response(503 if mode == "unready" else 200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
"""

CONFIGURATION = """
[unix_http_server]
file=%(here)s/supervisor.sock
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[supervisord]
identifier={identity}
pidfile=%(here)s/supervisord.pid
logfile=%(here)s/log/supervisord.log
childlogdir=%(here)s/log
[program:gateway]
command={python} "%(here)s/program.py" "%(here)s/mode"
environment=HEARTH_CONFIG_CHECKSUM="{checksum}"
autorestart=true
startsecs=1
startretries=0
redirect_stderr=true
stdout_logfile=%(here)s/log/gateway.log
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Trial:
    """A directory as the role lays it out, and the module's arguments for it."""

    def __init__(self, directory: Path, run_module: Run) -> None:
        self.directory, self.run_module = directory, run_module
        self.port = free_port()
        (directory / "program.py").write_text(PROGRAM)
        self.configure()

    def configure(self, mode: str = "serve", checksum: str = "one", identity: str = "hearth-1") -> None:
        self.identity = identity
        (self.directory / "mode").write_text(f"{mode} {self.port}")
        text = CONFIGURATION.format(identity=identity, checksum=checksum, python=sys.executable)
        (self.directory / "supervisord.conf").write_text(text)

    def run(self, state: str = "started", **more: Any) -> dict[str, Any]:
        arguments = {
            "state": state,
            "directory": str(self.directory),
            "supervisord": str(SUPERVISORD),
            "identity": self.identity,
            "addresses": [f"127.0.0.1:{self.port}"],
            "url": f"http://127.0.0.1:{self.port}/readyz",
            "timeout_s": 60,
        }
        return self.run_module(gateway_process.main, **{**arguments, **more})

    def log(self) -> str:
        return (self.directory / "log" / "gateway.log").read_text()


@pytest.fixture
def trial(run_module: Run) -> Iterator[Trial]:
    # Not tmp_path: a Unix socket's path holds 107 bytes.
    with tempfile.TemporaryDirectory(prefix="hearth-") as directory:
        made = Trial(Path(directory), run_module)
        yield made
        made.run("stopped")


def alive(pid: int) -> bool:
    return bool(_supervised._alive(pid))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_it_starts_once_and_a_rerun_leaves_it_alone(trial: Trial) -> None:
    first = trial.run()
    assert (first["changed"], first["was_running"]) == (True, False)
    again = trial.run()
    assert (again["changed"], again["was_running"], again["pid"]) == (False, True, first["pid"])


def test_a_changed_section_restarts_the_program_and_nothing_else(trial: Trial) -> None:
    first = trial.run()
    supervisor = int((trial.directory / "supervisord.pid").read_text())
    trial.configure(checksum="two")
    second = trial.run()
    assert second["changed"]
    assert second["pid"] != first["pid"]
    assert not alive(first["pid"])
    assert int((trial.directory / "supervisord.pid").read_text()) == supervisor
    assert "starting with two" in trial.log()


def test_another_environment_replaces_the_supervisor_too(trial: Trial) -> None:
    trial.run()
    supervisor = int((trial.directory / "supervisord.pid").read_text())
    trial.configure(identity="hearth-2")
    assert trial.run()["changed"]
    assert not alive(supervisor)


def test_a_killed_program_comes_back_by_itself(trial: Trial) -> None:
    first = trial.run()
    os.kill(first["pid"], signal.SIGKILL)
    wait_for(lambda: trial.log().count("starting with") == 2)
    again = trial.run()
    assert again["pid"] != first["pid"]


def test_a_program_that_was_given_up_is_started_again(trial: Trial) -> None:
    trial.configure("crash")
    assert trial.run()["failed"]
    trial.configure("serve")
    assert trial.run()["changed"]


def test_a_crash_shows_the_last_log_lines_of_this_start_only(trial: Trial) -> None:
    (trial.directory / "log").mkdir()
    (trial.directory / "log" / "gateway.log").write_text("an old story\n")
    trial.configure("crash")
    result = trial.run()
    assert result["failed"]
    assert result["msg"].startswith("The gateway ended right after its start")
    assert "hearth-gateway: models: at least one is needed" in result["msg"]
    assert "an old story" not in result["msg"]


def test_what_never_becomes_ready_is_an_error_in_the_time_given(trial: Trial) -> None:
    trial.configure("unready")
    started = time.monotonic()
    result = trial.run(timeout_s=2)
    assert result["failed"]
    assert "was not ready after 2 s" in result["msg"]
    assert time.monotonic() - started < 30


def test_a_taken_port_is_refused_with_the_name_of_who_holds_it(trial: Trial) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", trial.port))
        holder.listen()
        for check in (True, False):
            result = trial.run(check=check)
            assert result["failed"]
            assert f"Port {trial.port} is taken by " in result["msg"]
            assert f"(process {os.getpid()})" in result["msg"]
    assert not (trial.directory / "supervisord.pid").exists(), "nothing was started"


def test_the_api_key_is_in_nobodys_environment(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-fixture")
    pid = trial.run()["pid"]
    supervisor = int((trial.directory / "supervisord.pid").read_text())
    for process in (pid, supervisor):
        assert b"sk-ant-fixture" not in Path(f"/proc/{process}/environ").read_bytes()


def test_check_mode_starts_and_stops_nothing(trial: Trial) -> None:
    assert trial.run(check=True)["changed"]
    assert not (trial.directory / "supervisord.pid").exists()
    pid = trial.run()["pid"]
    assert not trial.run(check=True)["changed"]
    assert trial.run("stopped", check=True)["changed"]
    assert alive(pid)


def test_stopping_ends_both_processes_and_a_second_time_does_nothing(trial: Trial) -> None:
    pid = trial.run()["pid"]
    supervisor = int((trial.directory / "supervisord.pid").read_text())
    assert trial.run("stopped")["changed"]
    assert not alive(pid)
    assert not alive(supervisor)
    assert not trial.run("stopped")["changed"]


def test_after_a_killed_supervisor_the_one_left_over_is_named(trial: Trial) -> None:
    pid = trial.run()["pid"]
    os.kill(int((trial.directory / "supervisord.pid").read_text()), signal.SIGKILL)
    try:
        wait_for(lambda: trial.run()["failed"])
        assert f"(process {pid})" in trial.run()["msg"]
    finally:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(("broken", "message"), [("supervisord", "is missing"), ("configuration", "refused to start")])
def test_a_supervisor_that_cannot_start_is_named(trial: Trial, broken: str, message: str) -> None:
    if broken == "configuration":
        (trial.directory / "supervisord.conf").write_text("[supervisord]\nnodaemon=perhaps\n")
        result = trial.run()
    else:
        result = trial.run(supervisord=str(trial.directory / "none"))
    assert result["failed"]
    assert message in result["msg"]


def test_a_directory_too_deep_for_a_socket_is_named(run_module: Run, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    result = run_module(gateway_process.main, state="stopped", directory=str(deep))
    assert "too long for a Unix socket" in result["msg"]


def test_listeners_are_found_in_the_kernels_table() -> None:
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    row = "   0: 0100007F:{port} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000     0        0 {inode} 1 0\n"
    table = head + row.format(port="1F90", state="0A", inode="11") + row.format(port="1F90", state="01", inode="12")
    table += row.format(port="1F91", state="0A", inode="13")
    assert _supervised.listening_inodes([table, ""], 8080) == {"11"}


def test_the_supervisor_of_the_tests_is_the_one_of_the_lock() -> None:
    lock = (Path(__file__).resolve().parents[2] / "roles" / "gateway" / "files" / "supervisor.lock").read_text()
    assert shutil.which("supervisord", path=str(SUPERVISORD.parent)), "run make setup"
    from importlib.metadata import version

    assert f"supervisor=={version('supervisor')} " in lock
