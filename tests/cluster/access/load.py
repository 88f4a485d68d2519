"""What listed people do while something changes: short requests all the time, and long answers."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from browser import Browser
from chain import CHAT_URL

from tests.cluster.access.deployed import Deployed, until

JSON = (("Content-Type", "application/json"), ("Sec-Fetch-Site", "same-origin"))
CHAT = f"{CHAT_URL}/v1/chat/completions"
WORD_S = 0.2  # of the model `slow`
# The vendor's stand-in says two words of its own before it echoes.
PREFIX = 2


def question(model: str, words: int, stream: bool = True) -> bytes:
    text = " ".join(f"word{number}" for number in range(words))
    return json.dumps({"model": model, "stream": stream, "messages": [{"role": "user", "content": text}]}).encode()


class Answer(threading.Thread):
    """One long answer, read as it comes. `done`: it said that it is complete."""

    def __init__(self, browser: Browser, words: int) -> None:
        super().__init__()
        self.browser, self.words = browser, words
        self.begun = threading.Event()
        self.status, self.said, self.done, self.ended_at = 0, "", False, 0.0
        self.start()
        assert self.begun.wait(30), "no word of the answer came"
        assert self.status == http.client.OK, self.status

    def run(self) -> None:
        # That is how a cut answer looks; `done` stays false.
        with suppress(OSError, http.client.HTTPException):
            self._read()
        self.ended_at = time.monotonic()
        self.begun.set()

    def _read(self) -> None:
        connection, response = self.browser.open(CHAT, *JSON, method="POST", body=question("slow", self.words))
        self.status = response.status
        while line := response.readline().decode():
            self.done = self.done or line.strip() == "data: [DONE]"
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            self.said += "".join(choice["delta"].get("content") or "" for choice in event.get("choices", []))
            if self.said:
                self.begun.set()
        connection.close()

    @property
    def whole(self) -> bool:
        return self.done and len(self.said.split()) == self.words + PREFIX

    def cut_after(self, since: float, within_s: float) -> float:
        """Seconds from a moment to the end of an answer that has to be cut; negative when it was cut before."""
        until(lambda: not self.is_alive(), "the answer to be cut", within_s)
        self.join()
        assert not self.done, "a cut answer must not look like a finished one"
        return self.ended_at - since


class Asking(threading.Thread):
    """One person's short requests, each over a connection of its own: questions, and in between a look at who they are."""

    def __init__(self, browser: Browser, every_s: float) -> None:
        super().__init__()
        self.browser, self.every_s = browser, every_s
        self.stop = threading.Event()
        self.sent, self.slowest_s = 0, 0.0
        self.failures: list[str] = []

    def run(self) -> None:
        body = question("sonnet", 2, stream=False)
        while not self.stop.wait(self.every_s):
            began = time.monotonic()
            try:
                if self.sent % 4:
                    reply = self.browser.send(f"{CHAT_URL}/api/me")
                else:
                    reply = self.browser.send(CHAT, *JSON, method="POST", body=body)
                if reply.status != http.client.OK:
                    self.failures.append(f"{reply.url}: HTTP {reply.status} {reply.body[:200]!r}")
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(f"{type(error).__name__}: {error}")
            self.sent += 1
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)


@contextmanager
def load(deployed: Deployed, *people: str, every_s: float = 0.05) -> Iterator[list[Asking]]:
    """These people are signed in and ask all the time. What went wrong stands in `failures` afterwards."""
    asking = [Asking(deployed.signed_in(person), every_s) for person in people]
    for one in asking:
        one.start()
    try:
        yield asking
    finally:
        for one in asking:
            one.stop.set()
        for one in asking:
            one.join()
