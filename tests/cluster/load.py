"""Runs on a host of the bed: long answers held open, and short requests beside them, through the Service.

Standard library only. Standard input is one JSON object:

    {"address": "10.43.0.7:8080", "headers": {…}, "streams": 30, "model": "slow", "words": 900, "quick_model": "sonnet"}

With `"again_until": "/run/file"` whoever has an answer asks again until that file is there; `streams` then has an entry an answer.

Prints `open` in a line of its own once every stream has said its first words, and when all have ended one JSON object:

    {"streams": [{"error", "words", "done", "begun_at", "ended_at"}], "probes": {"fresh": …, "kept": …, "chat": …, "kept-chat": …}}

where a probe is {"sent", "slowest_ms", "failures": [what went wrong]}. Times are seconds of the epoch.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

JOB: dict[str, Any] = {}


def connection() -> http.client.HTTPConnection:
    host, _, port = JOB["address"].rpartition(":")
    return http.client.HTTPConnection(host, int(port), timeout=30)


class Stream(threading.Thread):
    """Long answers, one after another, each read to its end."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()
        self.results: list[dict[str, Any]] = []

    def run(self) -> None:
        again_until = JOB.get("again_until")
        while not self.results or (again_until and not Path(again_until).exists()):
            self.result: dict[str, Any] = {"error": "", "words": 0, "done": False, "begun_at": time.time(), "ended_at": 0.0}
            self.results.append(self.result)
            try:
                self._read()
            except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
                self.result["error"] = f"{type(error).__name__}: {error}"
            self.result["ended_at"] = time.time()
            self.begun.set()
            if self.result["error"]:
                time.sleep(1)

    def _read(self) -> None:
        text = " ".join(f"word{number}" for number in range(JOB["words"]))
        body = {"model": JOB["model"], "stream": True, "messages": [{"role": "user", "content": text}]}
        http_connection = connection()
        http_connection.request("POST", "/v1/chat/completions", json.dumps(body), JOB["headers"])
        response = http_connection.getresponse()
        if response.status != http.client.OK:
            raise ValueError(f"HTTP {response.status}: {response.read()[:200]!r}")
        said = ""
        for raw in response:
            line = raw.decode().strip()
            if line == "data: [DONE]":
                self.result["done"] = True
            elif line.startswith("data: "):
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    raise ValueError(str(event["error"]))
                said += "".join(choice["delta"].get("content") or "" for choice in event["choices"])
                if said:
                    self.begun.set()
        # The vendor echoes; its own two words come before.
        self.result["words"] = len(said.split()) - 2


class Probe(threading.Thread):
    """A request every so often until told to stop; remembers each that was not answered with 200."""

    def __init__(self, every_s: float, kept: bool, body: Any = None) -> None:
        super().__init__()
        self.every_s, self.kept, self.body = every_s, kept, body
        self.stop = threading.Event()
        self.result: dict[str, Any] = {"sent": 0, "slowest_ms": 0, "failures": []}

    def run(self) -> None:
        current = connection()
        while not self.stop.wait(self.every_s):
            if not self.kept:
                current.close()
                current = connection()
            began = time.time()
            try:
                self._ask(current)
            except (OSError, http.client.HTTPException) as error:
                self.result["failures"].append(f"{began:.3f} {type(error).__name__}: {error}")
                current.close()
            self.result["sent"] += 1
            self.result["slowest_ms"] = max(self.result["slowest_ms"], round((time.time() - began) * 1000))

    def _ask(self, current: http.client.HTTPConnection) -> None:
        method, path = ("GET", "/v1/models") if self.body is None else ("POST", "/v1/chat/completions")
        current.request(method, path, None if self.body is None else json.dumps(self.body), JOB["headers"])
        response = current.getresponse()
        content = response.read()
        if response.status != http.client.OK:
            self.result["failures"].append(f"{time.time():.3f} HTTP {response.status}: {content[:200].decode(errors='replace')}")


def main() -> int:
    JOB.update(json.load(sys.stdin))
    streams = [Stream() for _ in range(JOB["streams"])]
    question = {"model": JOB["quick_model"], "messages": [{"role": "user", "content": "one two"}]}
    # Often, because a gap between two pods is short; and questions, because a pod that leaves refuses these alone.
    probes = {
        "fresh": Probe(0.1, kept=False), "kept": Probe(0.1, kept=True),
        "chat": Probe(0.1, kept=False, body=question), "kept-chat": Probe(0.1, kept=True, body=question),
    }  # fmt: skip
    for thread in streams:
        thread.start()
    for stream in streams:
        stream.begun.wait()
    for probe in probes.values():
        probe.start()
    print("open", flush=True)
    for stream in streams:
        stream.join()
    for probe in probes.values():
        probe.stop.set()
        probe.join()
    ended = [result for stream in streams for result in stream.results]
    print(json.dumps({"streams": ended, "probes": {name: probe.result for name, probe in probes.items()}}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
