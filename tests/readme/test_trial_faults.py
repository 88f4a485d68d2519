"""The trial when something is in the way: a key that is refused, a taken port, no interpreter. One clear sentence each.

Runs the playbook of this checkout with a data directory and ports of its own, and a mock vendor over real HTTPS.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.support import ROOT, Run

pytestmark = pytest.mark.timeout(600)
GOOD, BAD = "sk-ant-trial-good", "sk-ant-trial-refused"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def certificate(directory: Path) -> tuple[Path, Path]:
    key, pem = directory / "mock.key", directory / "mock.crt"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
               "-subj", "/CN=mock vendor", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(pem)]
    subprocess.run(command, check=True, capture_output=True)
    return pem, key


class Trial:
    """One trial: its directory, its ports, the mock vendor's address, and how to run the playbook."""

    def __init__(self, directory: Path, vendor: str, ca: Path) -> None:
        self.directory = directory / "hearth-trial"
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("ANSIBLE_", "MOLECULE_", "ANTHROPIC_"))}
        self.environment |= {"XDG_DATA_HOME": str(directory), "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
        self.port = free_port()
        self.variables: dict[str, Any] = {
            "gateway_process_port": self.port,
            "gateway_process_metrics_port": free_port(),
            "gateway_anthropic_base_url": vendor,
            "gateway_ca_pem": ca.read_text(),
        }

    def play(self, playbook: str = "site.yml", *arguments: str, key: str = GOOD, **variables: Any) -> Run:
        command = [str(Path(sys.executable).parent / "ansible-playbook"), playbook, "-i", "inventories/trial",
                   "-e", json.dumps({**self.variables, **variables}), *arguments]
        done = subprocess.run(command, cwd=ROOT, env={**self.environment, "ANTHROPIC_API_KEY": key}, capture_output=True,
                              text=True, check=False, timeout=300)
        return Run(done.returncode, done.stdout + done.stderr)

    @property
    def pid(self) -> int:
        command = ["pgrep", "-f", f"{self.directory}/venv-.*hearth-gateway.* serve"]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        return int(found.stdout.split()[0])


@pytest.fixture(scope="module")
def trial() -> Iterator[Trial]:
    # Not pytest's own directory: a Unix socket's path holds 107 bytes.
    with tempfile.TemporaryDirectory(prefix="hearth-") as name:
        directory, port = Path(name), free_port()
        pem, key = certificate(directory)
        command = [sys.executable, str(ROOT / "tests" / "mocks" / "anthropic_server.py"), "--bind", f"127.0.0.1:{port}",
                   "--cert", str(pem), "--key", str(key), "--api-key", GOOD]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as vendor:
            try:
                wait_for_listener(port)
                made = Trial(directory, f"https://127.0.0.1:{port}", pem)
                yield made
                made.play("playbooks/trial_stop.yml", trial_delete_data=True)
            finally:
                vendor.terminate()


def wait_for_listener(port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise AssertionError(f"nobody listens on {port}")


def sentence(run: Run) -> str:
    """The message of the task that failed, on one line."""
    assert run.rc != 0, run.output[-2000:]
    # The last one: a failure that a rescue turns into a sentence comes first.
    found = re.search(r"\n\s+msg: (?:\|-)?(.*?)(\n\nPLAY RECAP|\Z)", run.output[run.output.rindex("\nfatal: "):], re.S)
    assert found, run.output[-3000:]
    return " ".join(found.group(1).replace("''", "'").split())


def test_with_a_key_the_vendor_answers_and_the_key_is_nowhere_but_in_its_file(trial: Trial) -> None:
    run = trial.play("site.yml", "--diff", "-vvv")
    assert run.rc == 0, run.output[-4000:]
    assert "Answered by sonnet of anthropic" in run.output
    assert GOOD not in run.output
    search = ["grep", "-rlF", "--exclude-dir=venv-*", GOOD, str(trial.directory)]
    holders = subprocess.run(search, capture_output=True, text=True, check=True)
    assert holders.stdout.split() == [f"{trial.directory}/keys/anthropic"]
    assert (trial.directory / "keys" / "anthropic").stat().st_mode & 0o777 == 0o600
    for name in ("cmdline", "environ"):
        assert GOOD.encode() not in Path(f"/proc/{trial.pid}/{name}").read_bytes()


def test_the_token_is_printed_nowhere(trial: Trial) -> None:
    run = trial.play("site.yml", "--diff", "-vvv")
    token = (trial.directory / "tokens" / "operator").read_text()
    assert run.rc == 0
    assert run.count("changed") == 0
    assert token not in run.output
    assert (trial.directory / "chat-link").read_text().strip() == f"http://127.0.0.1:{trial.port}/#token={token}"
    for file in ("tokens/operator", "chat-link", "gateway.yaml", "supervisord.conf"):
        assert (trial.directory / file).stat().st_mode & 0o777 == 0o600, file


def test_a_refused_key_is_said_in_one_sentence_and_a_good_one_repairs_it(trial: Trial) -> None:
    before = trial.pid
    said = sentence(trial.play(key=BAD))
    assert said.strip("'") == ("The model provider refused the API key: put a valid key into ANTHROPIC_API_KEY (trial) or "
                               "gateway_anthropic_api_key (cluster) and run again.")
    assert trial.pid != before, "a changed key starts the process anew"
    run = trial.play()
    assert run.rc == 0, run.output[-3000:]


def test_check_mode_tells_of_a_changed_configuration_and_touches_nothing(trial: Trial) -> None:
    before = trial.pid, (trial.directory / "gateway.yaml").read_text()
    changed = {"connect_s": 7, "first_token_s": 30, "idle_s": 60, "total_s": 600}
    run = trial.play("site.yml", "--check", "--diff", gateway_timeouts=changed)
    assert run.rc == 0, run.output[-3000:]
    assert "+  connect_s: 7" in run.output
    assert (trial.pid, (trial.directory / "gateway.yaml").read_text()) == before


def test_a_configuration_that_cannot_work_is_refused_and_the_process_runs_on(trial: Trial) -> None:
    before = trial.pid
    said = sentence(trial.play(gateway_models={"sonnet": [{"provider": "bedrock", "model": "x"}]}))
    assert "gateway_models.sonnet[0].provider: no provider is called 'bedrock'" in said
    assert trial.pid == before


def test_a_taken_port_is_named_with_its_holder(trial: Trial) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        said = sentence(trial.play(gateway_process_port=port))
        assert re.search(rf"Port {port}\b.* (held|taken) by ", said), said


def test_a_missing_interpreter_is_named_with_the_package(trial: Trial) -> None:
    said = sentence(trial.play("site.yml", "--skip-tags", "always", gateway_process_python="/usr/bin/python-of-nowhere"))
    assert "There is no Python interpreter at /usr/bin/python-of-nowhere" in said
    assert "apt install python3 python3-venv" in said


def test_a_killed_process_comes_back(trial: Trial) -> None:
    before = trial.pid
    os.kill(before, 9)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            if trial.pid != before:
                wait_for_listener(trial.port)
                return
        time.sleep(0.2)
    raise AssertionError("the supervisor did not start it again")


def test_stopping_keeps_the_data_unless_told(trial: Trial) -> None:
    token = (trial.directory / "tokens" / "operator").read_text()
    assert trial.play("playbooks/trial_stop.yml").rc == 0
    assert subprocess.run(["pgrep", "-f", str(trial.directory)], capture_output=True, check=False).stdout == b""
    assert (trial.directory / "tokens" / "operator").read_text() == token
    again = trial.play("playbooks/trial_stop.yml")
    assert (again.rc, again.count("changed")) == (0, 0)
    assert trial.play("playbooks/trial_stop.yml", trial_delete_data=True).rc == 0
    assert not trial.directory.exists()


def test_deleting_the_data_deletes_no_directory_that_is_not_a_trials(trial: Trial, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_text("irreplaceable")
    run = trial.play("playbooks/trial_stop.yml", trial_delete_data=True, gateway_process_dir=str(tmp_path))
    assert run.rc == 0, run.output[-2000:]
    assert (tmp_path / "photo.jpg").exists()
