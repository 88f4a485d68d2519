"""Load for many minutes, and a bound on what it may cost: `python tests/gateway/soak.py --minutes 20`.

A real gateway and a mock vendor over sockets. Clients mix what happens in a house: short questions, streams,
tools, both formats, people and programs, wrong requests, vendors that fail, clients that leave. Every few
seconds the process is measured; after a warm-up a straight line is laid through its memory, and the run fails
when the line rises faster than `--mib-per-hour`, when file descriptors or threads grow, when a request gets a
5xx that no vendor caused, or when an answer is still open at the end.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import random
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "files" / "gateway" / "src")]

from gateway_support import TOKEN, Gateway, Mock, wait_for  # noqa: E402

PROXY = "proxy-token-0123456789abcdef"
WARM_UP = 0.25  # share of the run in which pools, caches and arenas fill
SAMPLE_S = 2.0
# Faults that come at once; those that wait for a time limit would leave the clients idle.
FAULTS = ("cut", "error-before", "error-after", "eof", "garbage", "garbage-after", "html", "401", "429", "500", "529")


@dataclass(frozen=True)
class Sample:
    """Of the gateway's process: seconds since the start, resident memory, open files, threads, requests so far."""

    at_s: float
    rss_kib: int
    files: int
    threads: int
    requests: int


class Client(threading.Thread):
    """One keep-alive connection after another, with a pause between requests."""

    def __init__(self, gateway: Gateway, seed: int, pause_s: float, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.statuses: Counter[int] = Counter()
        self.broken = 0
        self._gateway = gateway
        self._chance = random.Random(seed)
        self._pause_s = pause_s
        self._stopping = stop

    def run(self) -> None:
        while not self._stopping.wait(self._pause_s * self._chance.random() * 2):
            try:
                self._ask()
            except (OSError, http.client.HTTPException):
                self.broken += 1

    def _ask(self) -> None:
        chance = self._chance
        draw = chance.random()
        model = "sonnet" if draw < 0.8 else f"x-{chance.choice(FAULTS)}"
        words = " ".join(f"word{chance.randrange(10**6)}" for _ in range(chance.choice((3, 30, 2000))))
        stream = chance.random() < 0.5
        body: dict[str, object] = {"model": model, "messages": [{"role": "user", "content": words}], "stream": stream, "max_tokens": 200}
        if draw > 0.95:
            body["messages"] = "not a list"
        path = chance.choice(("/v1/chat/completions", "/v1/messages"))
        headers = {"Content-Type": "application/json", **self._credential()}
        host, port = self._gateway.address
        connection = http.client.HTTPConnection(host, port, timeout=60)
        try:
            connection.request("POST", path, json.dumps(body), headers)
            response = connection.getresponse()
            if chance.random() < 0.05 and connection.sock is not None:
                connection.sock.shutdown(socket.SHUT_RDWR)  # a client that leaves
                return
            response.read()
            self.statuses[response.status] += 1
        finally:
            connection.close()

    def _credential(self) -> dict[str, str]:
        if self._chance.random() < 0.5:
            return {"x-api-key": TOKEN}
        # New people come all the time: what is kept for each must be bounded too.
        credential = base64.b64encode(f"person{self._chance.randrange(200)}@example.org:{PROXY}".encode()).decode()
        return {"Authorization": f"Basic {credential}", "Sec-Fetch-Site": "same-origin"}


def measure(gateway: Gateway, clients: list[Client], started: float) -> Sample:
    process = Path(f"/proc/{gateway.process.pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    return Sample(
        at_s=round(time.monotonic() - started, 1),
        rss_kib=int(status["VmRSS"].split()[0]),
        files=len(list((process / "fd").iterdir())),
        threads=int(status["Threads"]),
        requests=sum(sum(client.statuses.values()) for client in clients),
    )


def slope_kib_per_s(samples: list[Sample]) -> float:
    """Of the least-squares line through the memory."""
    mean_x = sum(sample.at_s for sample in samples) / len(samples)
    mean_y = sum(sample.rss_kib for sample in samples) / len(samples)
    rise = sum((sample.at_s - mean_x) * (sample.rss_kib - mean_y) for sample in samples)
    return rise / sum((sample.at_s - mean_x) ** 2 for sample in samples)


@contextmanager
def house(directory: Path) -> Iterator[Gateway]:
    vendor = Mock(directory)
    gateway = Gateway(directory, vendor.url, start=False, tokens={"proxy": ["proxy"]})
    (gateway.tokens / "proxy").write_text(PROXY)
    try:
        gateway.start()
        yield gateway
    finally:
        gateway.stop()
        vendor.stop()


def soak(gateway: Gateway, minutes: float, number: int, pause_s: float) -> tuple[list[Sample], list[Client]]:
    stop = threading.Event()
    clients = [Client(gateway, seed, pause_s, stop) for seed in range(number)]
    for client in clients:
        client.start()
    started = time.monotonic()
    samples = []
    while time.monotonic() - started < minutes * 60:
        time.sleep(SAMPLE_S)
        samples.append(measure(gateway, clients, started))
        if len(samples) % 30 == 0:
            print(json.dumps(asdict(samples[-1])), flush=True)
    stop.set()
    for client in clients:
        client.join(60)
    return samples, clients


def verdict(gateway: Gateway, samples: list[Sample], clients: list[Client], mib_per_hour: float) -> dict[str, object]:
    """The numbers of the run, with `problems` in words."""
    steady = samples[int(len(samples) * WARM_UP) :]
    slope = slope_kib_per_s(steady) * 3600 / 1024
    statuses = sum((client.statuses for client in clients), Counter[int]())
    wait_for(lambda: gateway.metric("hearth_open_requests") == 0, "open requests to end")
    problems = []
    if slope > mib_per_hour:
        problems.append(f"memory rises by {slope:.1f} MiB an hour, more than {mib_per_hour}")
    half = len(steady) // 2
    for what in ("files", "threads"):
        before, after = (max(getattr(sample, what) for sample in part) for part in (steady[:half], steady[half:]))
        if after > before * 1.2 + 10:
            problems.append(f"{what} grow: at most {before} in the first half, {after} in the second")
    if statuses[500]:
        problems.append(f"{statuses[500]} answers with status 500")
    if sum(client.broken for client in clients):
        problems.append(f"{sum(client.broken for client in clients)} requests got no answer")
    if gateway.events("unexpected-error"):
        problems.append(f"{len(gateway.events('unexpected-error'))} unexpected errors in the log")
    if gateway.terminate() != 0:
        problems.append("the gateway did not stop in order")
    return {
        "seconds": samples[-1].at_s,
        "requests": sum(statuses.values()),
        "statuses": dict(sorted(statuses.items())),
        "first": asdict(samples[0]),
        "after_warm_up": asdict(steady[0]),
        "last": asdict(samples[-1]),
        "mib_per_hour": round(slope, 2),
        "kib_per_1000_requests": round(slope_kib_per_s(steady) * 1000 * samples[-1].at_s / max(1, samples[-1].requests), 2),
        "problems": problems,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--pause", type=float, default=0.1, metavar="S", help="mean pause of each client between two requests")
    parser.add_argument("--mib-per-hour", type=float, default=24, help="most that memory may rise once warm")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the numbers here as JSON, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hearth-soak-") as directory, house(Path(directory)) as gateway:
        samples, clients = soak(gateway, arguments.minutes, arguments.clients, arguments.pause)
        result = verdict(gateway, samples, clients, arguments.mib_per_hour)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.report:
        arguments.report.parent.mkdir(parents=True, exist_ok=True)
        arguments.report.write_text(text + "\n")
    return 1 if result["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
