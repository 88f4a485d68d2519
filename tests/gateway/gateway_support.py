"""A real `hearth-gateway serve` process and a mock vendor, both over real sockets: fixtures and helpers."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import openai
import psycopg
import psycopg.rows
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "files" / "gateway" / "src"
MOCK = ROOT / "tests" / "mocks" / "anthropic_server.py"
SECOND_MOCK = ROOT / "tests" / "mocks" / "openai_server.py"

API_KEY = "sk-ant-test-0123456789"
SECOND_API_KEY = "sk-litellm-test-0123456789"
TOKEN = "operator-token-0123456789"
BREAKER_PAUSE_S = 0.01  # of the test gateways: who wants the same fault twice waits longer than this between
# Of the mock; each is the model `x-<scenario>` of every test gateway.
# fmt: off
SCENARIOS = [
    "normal", "slow", "silent", "slow-headers", "silent-after", "pings", "cut", "error-before",
    "error-after", "overloaded", "eof", "garbage", "garbage-after", "big-event", "close", "html",
    "quote", "json", "gzip", "odd-sse", "tool", "tool-empty", "thinking", "cache", "max-tokens",
    "refusal", "unknown-stop", "400", "401", "402", "403", "404", "408", "413", "429", "429-bare",
    "500", "502", "503", "529",
]
# Of the second mock; each is the model `y-<scenario>` of a test gateway that has a second provider.
SECOND_SCENARIOS = [
    *(name for name in SCENARIOS if name != "refusal"),
    "no-done", "tools", "content-filter", "no-usage", "usage-on-finish",
]
# fmt: on

T = TypeVar("T")


def wait_for(probe: Callable[[], T], what: str, timeout_s: float = 20) -> T:
    """Poll ``probe`` until it returns something true."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = probe()
        if found:
            return found
        assert time.monotonic() < deadline, f"timed out: {what}"
        time.sleep(0.02)


class Mock:
    """The mock vendor as a process; ``records`` is what it noted about each request."""

    def __init__(self, directory: Path, *options: str, program: Path = MOCK, api_key: str = API_KEY) -> None:
        self.record = directory / "mock-records.jsonl"
        command = [sys.executable, str(program), "--bind", "127.0.0.1:0", "--api-key", api_key]
        self.process = subprocess.Popen([*command, "--record", str(self.record), *options], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        found = re.search(r"https?://\S+", self.process.stdout.readline())
        assert found, "the mock vendor did not start"
        self.url = found[0]

    def records(self) -> list[dict[str, Any]]:
        if not self.record.exists():
            return []
        whole, _, _ = self.record.read_text().rpartition("\n")  # the last line may be on its way
        return [json.loads(line) for line in whole.splitlines()]

    def asked(self) -> int:
        """How many requests have begun here. A record is written after the answer, so records must not be counted."""
        with urllib.request.urlopen(f"{self.url}/healthz", timeout=20) as answer:
            return int(json.load(answer)["asked"])

    def next_record(self, before: int) -> dict[str, Any]:
        """The record of the request that began after the ``before`` others; waits for it."""
        found = wait_for(lambda: [record for record in self.records() if record["number"] == before], "a request at the mock vendor")
        return found[0]

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


class Gateway:
    """One gateway process. ``changes`` are merged into its configuration.

    With ``second_url`` there is a second provider, `litellm`: the models `y-<scenario>` are served by it
    alone, and `f-<scenario>` by the first vendor with that scenario and, should that fail, by the second.
    """

    def __init__(self, directory: Path, vendor_url: str, start: bool = True, second_url: str | None = None, **changes: Any) -> None:
        self.directory = directory
        self.database = directory / "hearth.db"
        self.temp = directory / "tmp"
        self.tokens = directory / "tokens"
        for path in (self.temp, self.tokens):
            path.mkdir(exist_ok=True)
        (self.tokens / "operator").write_text(TOKEN)
        (directory / "key").write_text(API_KEY + "\n")
        self.config: dict[str, Any] = {
            "server": {"bind": "127.0.0.1:0", "metrics_bind": "127.0.0.1:0", "headers_after_s": 3},
            "database_url": f"sqlite:///{self.database}",
            "tokens": {"dir": str(self.tokens)},
            "providers": [
                {
                    "name": "anthropic",
                    "kind": "anthropic",
                    "base_url": vendor_url,
                    "api_key_file": str(directory / "key"),
                },
                {"name": "demo", "kind": "demo"},
            ],
            "models": {
                "sonnet": [{"provider": "anthropic", "model": "claude-sonnet-4-5-20250929"}],
                "demo": [{"provider": "demo", "model": "demo"}],
                **{f"x-{name}": [{"provider": "anthropic", "model": f"mock+{name}", "max_output_tokens": 1000}] for name in SCENARIOS},
            },
            # Many tests let the same vendor fail on purpose: a breaker must not stay open into the next one.
            "breaker": {"failures": 100, "open_s": BREAKER_PAUSE_S, "max_open_s": BREAKER_PAUSE_S},
            "timeouts": {"connect_s": 2, "first_token_s": 5, "idle_s": 1.5, "total_s": 30},
        }
        if second_url is not None:
            self._add_second(second_url)
        for key, value in changes.items():
            merged = self.config.get(key)
            self.config[key] = {**merged, **value} if isinstance(merged, dict) else value
        self.config_file = directory / "gateway.yaml"
        self.save()
        self.log_lines: list[str] = []
        self._log_reader: threading.Thread | None = None
        self.url = self.metrics_url = ""
        if start:
            self.start()

    def save(self) -> None:
        """Write the configuration, also after a test has changed ``config``."""
        self.config_file.write_text(yaml.safe_dump(self.config))

    def _add_second(self, url: str) -> None:
        key = self.directory / "second-key"
        key.write_text(SECOND_API_KEY + "\n")
        self.config["providers"].append({"name": "litellm", "kind": "openai", "base_url": url, "api_key_file": str(key)})

        def second(scenario: str) -> dict[str, Any]:
            return {"provider": "litellm", "model": f"mock+{scenario}", "max_output_tokens": 1000}

        models = self.config["models"]
        models |= {f"f-{name}": [*models[f"x-{name}"], second("normal")] for name in SCENARIOS}
        models |= {f"y-{name}": [second(name)] for name in SECOND_SCENARIOS}
        for section, name in (("embedding_models", "embed"), ("image_models", "draw")):
            endpoints = {name: [{"provider": "litellm", "model": f"mock-{name}"}]}
            endpoints |= {f"{name}-{fault}": [{"provider": "litellm", "model": f"{name}+{fault}"}] for fault in SECOND_SCENARIOS}
            self.config[section] = endpoints

    def spawn(self) -> subprocess.Popen[str]:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hearth_gateway", "serve", "--config", str(self.config_file)],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(SOURCE), "TMPDIR": str(self.temp)},
        )
        return self.process

    def start(self) -> None:
        self.spawn()
        # Through a pipe and not into a file: a test that fills the "disk" must not lose the log.
        self._log_reader = threading.Thread(target=self._read_log, args=(self.process.stderr,), daemon=True)
        self._log_reader.start()
        started = wait_for(lambda: self.events("started")[-1:], f"the gateway to start; it said {self.log_lines}")
        self.url = f"http://{started[0]['bind']}"
        self.metrics_url = f"http://{started[0]['metrics_bind']}/metrics"

    def _read_log(self, stream: Any) -> None:
        for line in stream:
            self.log_lines.append(line)

    def restart(self) -> None:
        self.wait()
        self.log_lines.clear()
        self.start()

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log_lines if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return host, int(port)

    def client(self, **options: Any) -> openai.OpenAI:
        """The real SDK. Retries are off: a test must see what the gateway answered."""
        return openai.OpenAI(base_url=f"{self.url}/v1", **{"api_key": TOKEN, "max_retries": 0, "timeout": 40, **options})

    def metrics(self) -> str:
        with urllib.request.urlopen(self.metrics_url, timeout=10) as response:
            return str(response.read().decode())

    def metric(self, name: str) -> float:
        """The sum over all series that begin with ``name``."""
        lines = [line for line in self.metrics().splitlines() if line.startswith(name)]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def query(self, statement: str) -> list[dict[str, Any]]:
        """What the store holds, read past the gateway."""
        url = self.config["database_url"]
        if url.startswith("postgresql"):
            password = Path(self.config["database_password_file"]).read_text()
            with psycopg.connect(url, password=password, row_factory=psycopg.rows.dict_row) as server:
                return list(server.execute(statement))
        with sqlite3.connect(self.database) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(statement)]

    def rows(self) -> list[dict[str, Any]]:
        """The ledger, without legs that are not over."""
        return self.query("SELECT * FROM ledger WHERE state <> 'intent' ORDER BY id")

    def settled_rows(self) -> int:
        """How many rows there are once all answers so far are written down."""
        wait_for(lambda: self.metric("hearth_open_requests") == 0, "open requests to end")
        wait_for(lambda: self.metric("hearth_ledger_queued_rows") == 0, "queued rows to be written")
        return len(self.rows())

    def wait_row(self, before: int) -> dict[str, Any]:
        """The first ledger row after the ``before`` ones there were."""
        return wait_for(lambda: self.rows()[before:], "a ledger row")[0]

    def breakers_over(self) -> None:
        """Wait until no breaker is open and no probe is on its way: what is asked next reaches its provider."""
        wait_for(lambda: self.metric("hearth_open_requests") == 0, "open requests to end")
        wait_for(lambda: 2 not in self._breaker_states(), "the breakers' pauses to be over")

    def _breaker_states(self) -> set[float]:
        lines = [line for line in self.metrics().splitlines() if line.startswith("hearth_breaker_state{")]
        return {float(line.rpartition(" ")[2]) for line in lines}

    def wait(self, timeout_s: float = 20) -> int:
        """Wait for the end of the process and of its log: the last lines come through the pipe after it is gone."""
        code = self.process.wait(timeout_s)
        if self._log_reader is not None:
            self._log_reader.join(timeout_s)
        return code

    def terminate(self, timeout_s: float = 20) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@pytest.fixture(scope="session")
def vendor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mock]:
    mock = Mock(tmp_path_factory.mktemp("vendor"))
    yield mock
    mock.stop()


@pytest.fixture(scope="session")
def second_vendor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mock]:
    """An OpenAI-compatible vendor, with a key of its own."""
    mock = Mock(tmp_path_factory.mktemp("second-vendor"), program=SECOND_MOCK, api_key=SECOND_API_KEY)
    yield mock
    mock.stop()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, vendor: Mock, second_vendor: Mock) -> Iterator[Gateway]:
    """One gateway for all tests that leave it as it was."""
    gateway = Gateway(tmp_path_factory.mktemp("gateway"), vendor.url, second_url=second_vendor.url)
    yield gateway
    assert gateway.terminate() == 0
    assert gateway.events("unexpected-error") == []


@pytest.fixture
def own(tmp_path: Path, vendor: Mock) -> Iterator[Callable[..., Gateway]]:
    """Makes gateways of the test's own, with changes to the configuration."""
    made: list[Gateway] = []

    def make(**changes: Any) -> Gateway:
        directory = tmp_path / f"gateway-{len(made)}"
        directory.mkdir()
        gateway = Gateway(directory, **{"vendor_url": vendor.url, **changes})
        made.append(gateway)
        return gateway

    yield make
    for gateway in made:
        if hasattr(gateway, "process"):
            gateway.stop()
