"""Runs on a host of the bed: long answers held open, and short requests beside them, through the Service.

Standard library only. Standard input is one JSON object:

    {"address": "10.43.0.7:8080", "headers": {…}, "streams": 30, "model": "slow", "words": 900, "quick_model": "sonnet"}

Prints `open` in a line of its own once every stream has said its first words, and when all have ended one JSON object:

    {"streams": [{"error", "words", "done", "ended_at"}], "probes": {"fresh": …, "kept": …, "chat": …, "kept-chat": …}}

where a probe is {"sent", "slowest_ms", "failures": [what went wrong]}. Times are seconds of the epoch.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from typing import Any

JOB: dict[str, Any] = {}


def connection() -> http.client.HTTPConnection:
    host, _, port = JOB["address"].rpartition(":")
    return http.client.HTTPConnection(host, int(port), timeout=30)


class Stream(threading.Thread):
    """One long answer, read to its end."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()
        self.result: dict[str, Any] = {"error": "", "words": 0, "done": False, "ended_at": 0.0}

    def run(self) -> None:
        try:
            self._read()
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            self.result["error"] = f"{type(error).__name__}: {error}"
        self.result["ended_at"] = time.time()
        self.begun.set()

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
    print(json.dumps({"streams": [s.result for s in streams], "probes": {name: p.result for name, p in probes.items()}}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
