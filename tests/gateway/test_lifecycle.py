"""Starting, stopping, dying, and a disk that is full."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml
from gateway_support import SOURCE, TOKEN, Gateway, Mock, wait_for

HELLO: Any = [{"role": "user", "content": "one two three four five six seven eight"}]
# A word takes 0.2 s: still being written when the test, on a busy machine, gets to what it does in the middle of it.
LONG: Any = [{"role": "user", "content": " ".join(f"word{number}" for number in range(40))}]
ECHO = f"You said: {LONG[0]['content']}"
Make = Callable[..., Gateway]


def status(gateway: Gateway, path: str) -> int:
    try:
        with urllib.request.urlopen(gateway.url + path, timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


class Stream(threading.Thread):
    """Reads a slow stream in the background; ``text`` grows, ``error`` is how it broke."""

    def __init__(self, gateway: Gateway, model: str = "x-slow") -> None:
        super().__init__()
        self.text = ""
        self.error: Exception | None = None
        self.chunks = gateway.client().chat.completions.create(model=model, messages=LONG, stream=True)
        self.start()

    def run(self) -> None:
        try:
            for chunk in self.chunks:
                self.text += chunk.choices[0].delta.content or ""
        except Exception as error:
            self.error = error


# --- stopping ----------------------------------------------------------------------------------


def test_sigterm_finishes_open_streams_and_refuses_new_ones(own: Make, second_vendor: Mock) -> None:
    gateway = own(second_url=second_vendor.url)
    streams = [Stream(gateway, model) for model in ("x-slow", "x-slow", "x-slow", "y-slow", "y-slow")]
    wait_for(lambda: all(stream.text for stream in streams), "the first words")
    assert status(gateway, "/readyz") == 200
    gateway.process.send_signal(signal.SIGTERM)
    wait_for(lambda: status(gateway, "/readyz") == 503, "readiness to drop")
    assert status(gateway, "/healthz") == 200
    with pytest.raises(openai.InternalServerError) as refused:
        gateway.client().chat.completions.create(model="sonnet", messages=HELLO)
    assert (refused.value.status_code, refused.value.code) == (503, "shutting_down")
    assert refused.value.response.headers["retry-after"] == "2"
    assert gateway.metric("hearth_draining") == 1
    for stream in streams:
        stream.join()
        assert (stream.text, stream.error) == (ECHO, None)
    assert gateway.wait() == 0
    assert [row["outcome"] for row in gateway.rows()] == ["ok"] * 5
    assert sorted(row["provider"] for row in gateway.rows()) == ["anthropic"] * 3 + ["litellm"] * 2
    assert gateway.events("stopped")[0]["queued"] == 0


def started_with(own: Make, number: signal.Signals, handler: signal.Handlers) -> Gateway:
    """A process takes over what its parent ignores: tests may run under nohup, too."""
    before = signal.signal(number, handler)
    try:
        gateway = own()
    finally:
        signal.signal(number, before)
    gateway.client().models.list()
    return gateway


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_counts_whichever_thread_takes_it(own: Make, number: signal.Signals) -> None:
    """The kernel chooses the thread. Python's handlers run in the main one only, and that one waits for a lock."""
    gateway = started_with(own, number, signal.SIG_DFL)
    threads = sorted(int(thread.name) for thread in Path(f"/proc/{gateway.process.pid}/task").iterdir())
    assert threads[0] == gateway.process.pid and len(threads) > 5
    os.kill(threads[-1], number)  # kill(2) with a thread's number: the process is meant, that thread is asked first
    assert gateway.process.wait(10) == 0


def test_under_nohup_it_stays_when_the_terminal_is_closed(own: Make) -> None:
    gateway = started_with(own, signal.SIGHUP, signal.SIG_IGN)
    gateway.process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        gateway.process.wait(1)
    assert status(gateway, "/readyz") == 200


@pytest.mark.parametrize("model", ["x-slow", "y-slow", "f-slow"])
def test_what_cannot_wait_is_cut_visibly(own: Make, second_vendor: Mock, model: str) -> None:
    gateway = own(second_url=second_vendor.url, server={"drain_s": 0.3})
    stream = Stream(gateway, model)
    wait_for(lambda: stream.text, "the first word")
    assert gateway.terminate() == 0
    stream.join()
    assert isinstance(stream.error, openai.APIError) and "restart" in stream.error.message
    assert stream.text != ECHO
    assert [row["outcome"] for row in gateway.rows()] == ["shutting_down"]


def test_ctrl_c_twice_does_not_wait(own: Make) -> None:
    gateway = own()
    stream = Stream(gateway)
    wait_for(lambda: stream.text, "the first word")
    gateway.process.send_signal(signal.SIGINT)
    wait_for(lambda: gateway.events("stopping"), "the first signal to count")
    gateway.process.send_signal(signal.SIGINT)
    assert gateway.wait() == 0
    stream.join()
    assert stream.error is not None


def test_stopping_without_work_is_quick(own: Make) -> None:
    gateway = own()
    gateway.client().models.list()
    started = time.monotonic()
    assert gateway.terminate() == 0
    # Idle connections are not waited for, as open answers are: that would be 120 s.
    assert time.monotonic() - started < 15


def test_killed_and_started_again(own: Make) -> None:
    gateway = own()
    gateway.client().chat.completions.create(model="sonnet", messages=HELLO)
    gateway.wait_row(0)
    stream = Stream(gateway)
    wait_for(lambda: stream.text, "the first word")
    gateway.process.kill()
    gateway.process.wait()
    stream.join()
    assert stream.error is not None, "a killed gateway must not look like a finished answer"
    gateway.restart()
    assert status(gateway, "/readyz") == 200
    gateway.client().chat.completions.create(model="sonnet", messages=HELLO)
    wait_for(lambda: len(gateway.rows()) >= 2, "a row after the restart")
    assert gateway.terminate() == 0


# --- the disk ----------------------------------------------------------------------------------


def test_a_full_disk_is_told_and_nothing_is_lost(own: Make, vendor: Mock) -> None:
    gateway = own()
    client = gateway.client()
    client.chat.completions.create(model="sonnet", messages=HELLO)
    gateway.wait_row(0)
    stream = Stream(gateway)
    wait_for(lambda: stream.text, "the first word")
    unlimited = resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE)
    # Not one byte more may be written to any file: what a full disk looks like to a process.
    resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE, (0, unlimited[1]))
    before = vendor.asked()
    for _ in range(3):
        with pytest.raises(openai.InternalServerError) as refused:
            client.chat.completions.create(model="sonnet", messages=HELLO)
        assert (refused.value.status_code, refused.value.code) == (503, "ledger_unavailable")
        assert refused.value.response.headers["retry-after"].isdigit()
    stream.join()
    assert (stream.text, stream.error) == (ECHO, None), "what was begun is finished"
    assert vendor.asked() == before, "what cannot be counted is not asked for: only the open one was served"
    wait_for(lambda: gateway.metric("hearth_ledger_failing") == 1, "the fault to be seen")
    assert status(gateway, "/readyz") == 503
    problems = wait_for(lambda: gateway.events("store-problem"), "the fault to be told")
    assert "cannot be written" in problems[0]["problem"]
    resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE, unlimited)
    wait_for(lambda: [row["outcome"] for row in gateway.rows()] == ["ok", "ok"], "the waiting row")
    wait_for(lambda: status(gateway, "/readyz") == 200, "readiness")
    assert client.chat.completions.create(model="sonnet", messages=HELLO).choices
    assert gateway.terminate() == 0


def test_a_database_that_is_replaced_under_the_service_is_told(own: Make, vendor: Mock) -> None:
    gateway = own()
    assert status(gateway, "/readyz") == 200
    file = gateway.database
    shutil.copy(file, file.with_name("restored"))
    file.with_name("restored").rename(file)
    wait_for(lambda: status(gateway, "/readyz") == 503, "readiness to drop")
    told = [event["problem"] for event in wait_for(lambda: gateway.events("store-problem"), "the fault to be told")]
    assert told == ["the database's file was taken away or replaced while it was in use: start the service again"]
    assert gateway.metric("hearth_ledger_failing") == 1
    # Who does not ask for readiness is refused too: what is used now would be counted nowhere.
    before = vendor.asked()
    for _ in range(2):
        with pytest.raises(openai.InternalServerError) as refused:
            gateway.client().chat.completions.create(model="sonnet", messages=HELLO)
        assert (refused.value.status_code, refused.value.code) == (503, "ledger_unavailable")
        file.unlink(missing_ok=True)
    assert vendor.asked() == before


def test_a_machine_that_forbids_core_dumps_altogether_is_no_obstacle() -> None:
    """Nobody but root with all capabilities may raise the limit from 0 again."""
    code = (
        "import resource, os; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); import hearth_gateway.server as server;"
        "server._forbid_core_dumps(); print(resource.getrlimit(resource.RLIMIT_CORE))"
    )
    powerless = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*powerless, sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(SOURCE)}, capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.returncode) == ("(0, 0)", 0), done.stderr


# --- tokens ------------------------------------------------------------------------------------


def test_tokens_come_and_go_without_a_restart(own: Make) -> None:
    gateway = own()
    new = "kitchen-token-0123456789"
    (gateway.tokens / "kitchen").write_text(new)
    # 5 s is the promise. A busy machine takes its own time; who never looks again takes for ever.
    wait_for(lambda: accepted(gateway, new), "the new token", 15)
    (gateway.tokens / "operator").unlink()
    wait_for(lambda: not accepted(gateway, TOKEN), "the old token to be refused", 15)
    gateway.client(api_key=new).chat.completions.create(model="sonnet", messages=HELLO)
    assert gateway.wait_row(0)["caller"] == "kitchen"


def accepted(gateway: Gateway, token: str) -> bool:
    try:
        return bool(gateway.client(api_key=token).models.list().data)
    except openai.AuthenticationError:
        return False


def test_a_process_without_file_descriptors_revokes_nobody(own: Make) -> None:
    gateway = own()
    stream = Stream(gateway)
    wait_for(lambda: stream.text, "the first word")
    unlimited = resource.prlimit(gateway.process.pid, resource.RLIMIT_NOFILE)
    # What many idle connections lead to, whoever opened them: nothing more can be opened, the tokens' directory neither.
    resource.prlimit(gateway.process.pid, resource.RLIMIT_NOFILE, (3, unlimited[1]))
    told = wait_for(lambda: gateway.events("token-ignored"), "a look at the tokens that failed")
    time.sleep(2.5)  # two more looks
    resource.prlimit(gateway.process.pid, resource.RLIMIT_NOFILE, unlimited)
    assert accepted(gateway, TOKEN)
    stream.join()
    assert (stream.text, stream.error) == (ECHO, None)
    assert [event["token"] for event in told] == ["tokens"] and len(gateway.events("token-ignored")) == 1
    assert told[0]["problem"] == "cannot be read: Too many open files; what was read before stays valid"
    (gateway.tokens / "operator").unlink()
    wait_for(lambda: not accepted(gateway, TOKEN), "the token to be refused", 15)


# --- it does not start -------------------------------------------------------------------------


def refusal(gateway: Gateway) -> tuple[int, list[str]]:
    process = gateway.spawn()
    _, said = process.communicate(timeout=20)
    assert "Traceback" not in said
    return process.returncode, [line for line in said.splitlines() if not line.startswith("{")]


def edit(gateway: Gateway, change: Callable[[dict[str, Any]], None]) -> None:
    config = yaml.safe_load(gateway.config_file.read_text())
    change(config)
    gateway.config_file.write_text(yaml.safe_dump(config))


def test_a_taken_port(own: Make) -> None:
    gateway = own(start=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        for field in ("bind", "metrics_bind"):
            edit(gateway, lambda config, field=field: config["server"].update({field: bind}))  # type: ignore[misc]
            assert refusal(gateway) == (
                1,
                [f"hearth-gateway: cannot listen on {bind} (server.{field}): the port is taken"],
            )
            edit(gateway, lambda config, field=field: config["server"].update({field: "127.0.0.1:0"}))  # type: ignore[misc]


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "does not exist"), ("", "is empty"), ("not a key at all\n", "holds spaces")],
    ids=["missing", "empty", "wrong"],
)
def test_a_bad_key_file(own: Make, content: str | None, words: str) -> None:
    gateway = own(start=False)
    key = gateway.directory / "key"
    key.unlink()
    if content is not None:
        key.write_text(content)
    code, said = refusal(gateway)
    assert code == 2 and len(said) == 1
    assert f"providers[0].api_key_file: {key} {words}" in said[0]


@pytest.mark.parametrize("path", ["/proc/hearth.db", "/none/hearth.db", "."], ids=["proc", "missing", "directory"])
def test_a_database_that_cannot_be_written(own: Make, path: str) -> None:
    gateway = own(start=False)
    where = str(gateway.directory) if path == "." else path
    edit(gateway, lambda config: config.update({"database_url": f"sqlite:///{where}"}))
    code, said = refusal(gateway)
    assert code == 1 and len(said) == 1
    assert said[0].startswith(f"hearth-gateway: the database {where} cannot be used: ")


def test_a_database_of_something_else(own: Make) -> None:
    gateway = own(start=False)
    gateway.database.write_bytes(b"something else entirely" * 1000)
    code, said = refusal(gateway)
    assert code == 1 and "file is not a database" in said[0]


def test_every_problem_of_the_configuration_at_once(own: Make) -> None:
    gateway = own(start=False)

    def spoil(config: dict[str, Any]) -> None:
        config["server"]["metric_bind"] = "x"
        config["timeouts"]["idle_s"] = "long"
        del config["tokens"]

    edit(gateway, spoil)
    code, said = refusal(gateway)
    assert code == 2 and len(said) == 3


def test_version_and_help() -> None:
    command = [sys.executable, "-m", "hearth_gateway"]
    options: Any = {"capture_output": True, "text": True, "env": {"PYTHONPATH": str(SOURCE)}}
    version = subprocess.run([*command, "--version"], check=True, **options)
    assert version.stdout.startswith("hearth-gateway ")
    assert subprocess.run(command, check=False, **options).returncode == 2


def test_threads_do_not_push_each_other_off_the_core(own: Make) -> None:
    gateway = own()
    gateway.client().chat.completions.create(model="sonnet", messages=HELLO)
    policies = [os.sched_getscheduler(int(task.name)) for task in Path(f"/proc/{gateway.process.pid}/task").iterdir()]
    assert os.SCHED_BATCH in policies, "those that answer"
    assert set(policies) <= {os.SCHED_BATCH, os.SCHED_OTHER}


def test_the_process_is_one_and_small(own: Make, vendor: Mock) -> None:
    gateway = own()
    gateway.client().chat.completions.create(model="sonnet", messages=HELLO)
    children = Path(f"/proc/{gateway.process.pid}/task/{gateway.process.pid}/children").read_text()
    assert children.split() == []
    rollup = Path(f"/proc/{gateway.process.pid}/smaps_rollup").read_text()
    pss = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    assert pss < 90 * 1024, f"{pss} KiB resident at rest"
    limits = Path(f"/proc/{gateway.process.pid}/limits").read_text()
    assert limits.split("Max core file size")[1].split()[:2] == ["1", "1"], "1 is the limit that no dump gets around"
