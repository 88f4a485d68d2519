"""The command `hearth-gateway person`, and people who ask through the sign-in proxy."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import httpx2 as httpx
from gateway_support import SOURCE, Gateway, wait_for

PROXY = "proxy-token-0123456789abcdef"
HOUSE = "house-token-0123456789abcdef"
ANN, BOB = "ann@example.org", "bob@example.org"
# What an operator does counts within 5 s: the promise. An answer that nobody cuts goes on for 30 s.
NOTICED_S = 5
# The mock says a word every 0.2 s: long enough to see that an answer was cut and did not just end.
LONG = " ".join(f"word{number}" for number in range(150))


def auth(email: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{email}:{PROXY}".encode()).decode(), "Sec-Fetch-Site": "same-origin"}


def person(gateway: Gateway, *arguments: str, stdin: str | None = None, status: int = 0) -> Any:
    """Run the command as the playbooks do. Returns what it printed: JSON, or the sentence of a failure."""
    run = start_person(*arguments, "--config", str(gateway.config_file), "--json")
    output, errors = run.communicate(stdin)
    assert run.returncode == status, errors
    return json.loads(output) if status == 0 else errors


def start_person(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "hearth_gateway", "person", *arguments], env={**os.environ, "PYTHONPATH": str(SOURCE)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def me(gateway: Gateway, email: str) -> tuple[int, dict[str, Any]]:
    response = httpx.get(f"{gateway.url}/api/me", headers=auth(email))
    return response.status_code, response.json()


class Answer(threading.Thread):
    """A long answer, read in the background. ``text`` grows; ``over`` is when it ended."""

    def __init__(self, gateway: Gateway, headers: dict[str, str], model: str = "x-slow") -> None:
        super().__init__(daemon=True)
        self.text = ""
        self.over: float | None = None
        self._url, self._headers, self._model = gateway.url, headers, model
        self.start()

    def run(self) -> None:
        body = {"model": self._model, "messages": [{"role": "user", "content": LONG}], "stream": True}
        url = f"{self._url}/v1/chat/completions"
        # A gateway that is killed at the end of a test breaks what is still open.
        with suppress(httpx.TransportError), httpx.stream("POST", url, headers=self._headers, json=body, timeout=60) as response:
            for piece in response.iter_text():
                self.text += piece
        self.over = time.monotonic()

    def begun(self) -> Answer:
        wait_for(lambda: "content" in self.text, "the answer to begin")
        return self

    def cut(self, since: float, code: str) -> None:
        wait_for(lambda: self.over, "the answer to be cut", NOTICED_S)
        assert self.over is not None and self.over - since <= NOTICED_S
        last = [line for line in self.text.splitlines() if line.startswith("data: ")][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == code
        assert "[DONE]" not in self.text
