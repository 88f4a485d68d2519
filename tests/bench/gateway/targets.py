"""What is compared: the mock vendor itself ("direct"), nginx, LiteLLM and the gateway, each a process on the measured core."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from tests.testbed.bedlib.common import cache_dir

ROOT = Path(__file__).resolve().parents[3]
GO = Path(__file__).resolve().parent / "go"
GATEWAY_CORE, LOAD_CORE = 0, 1

PROGRAM_TOKEN = "bench-program-token-0123456789"
PEOPLE = 2000
LITELLM_KEY = "sk-bench-0123456789"
VENDOR_KEY = "sk-vendor-0123456789"
# Every ceiling there is, counted for each request and out of reach of one person of so many. Requests per minute are
# for people only: a program that asks 4000 times a second has no sensible number of them.
LIMITS = {"tokens_per_day": 10**15, "money_per_day_usd": 999_999, "money_per_month_usd": 999_999}
PERSON_LIMITS = {"requests_per_minute": 3000, **LIMITS}


class BenchError(Exception):
    """Why nothing can be measured, as a sentence."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """``vendor_model`` tells the mock vendor what to answer; ``upstream`` is the format it answers in."""

    name: str
    vendor_model: str
    upstream: str = "openai"


@dataclass(slots=True)
class Target:
    """A running peer. ``urls`` is by upstream format; ``named_models`` means that it routes by our scenario names."""

    name: str
    process: subprocess.Popen[bytes]
    urls: Mapping[str, str]
    version: str
    headers: tuple[str, ...] = ()
    people: int = 0  # the driver speaks for so many in turn
    named_models: bool = True
    measured: bool = True
    idle_pss_mib: float = 0.0
    peak_pss_mib: float = 0.0
    log: Path | None = field(default=None)

    def url(self, scenario: Scenario) -> str:
        return self.urls[scenario.upstream]

    def model(self, scenario: Scenario) -> str:
        return scenario.name if self.named_models else scenario.vendor_model

    def pids(self) -> list[int]:
        """The process and all below it."""
        parents: dict[int, int] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                except OSError:
                    continue  # ended meanwhile
        found = [self.process.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def pss_mib(self) -> float:
        total = 0
        for pid in self.pids():
            match = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
            total += int(match[1]) if match else 0
        return total / 1024

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass(slots=True)
class Tools:
    """Programs that are needed, as ``scripts/setup.sh bench`` and the Go compiler leave them."""

    nginx: Path
    litellm: Path
    litellm_extras: Path
    mock: Path
    load: Path
    go_version: str


def prepare() -> Tools:
    """Install and build what is missing."""
    cache = cache_dir()
    done = subprocess.run([ROOT / "scripts" / "setup.sh", "bench"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"scripts/setup.sh bench failed: {done.stderr.strip()[-2000:]}")
    places = dict(line.split("=", 1) for line in done.stdout.splitlines()[-3:])
    binaries = cache / "bench-gateway" / "bin"
    binaries.mkdir(parents=True, exist_ok=True)
    go = shutil.which("go") or str(ROOT / ".venv" / "bin" / "go")
    built = subprocess.run([go, "build", "-o", f"{binaries}/", "./cmd/..."], cwd=GO, capture_output=True, text=True, check=False)
    if built.returncode:
        raise BenchError(f"go build failed: {built.stderr.strip()[-2000:]}")
    version = subprocess.run([go, "env", "GOVERSION"], cwd=GO, capture_output=True, text=True, check=True).stdout.strip()
    return Tools(
        Path(places["nginx"]),
        Path(places["litellm"]),
        Path(places["litellm_extras"]),
        binaries / "mockvendor",
        binaries / "load",
        version,
    )


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def pinned(core: int, *command: str | Path) -> list[str]:
    return ["taskset", "-c", str(core), *map(str, command)]


def python_environment(path: Path) -> dict[str, str]:
    """With compiled modules kept, whatever the caller's environment says: LiteLLM imports while it answers."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {**kept, "PYTHONPATH": str(path), "PYTHONPYCACHEPREFIX": str(cache_dir() / "bench-gateway" / "pycache")}


def wait_ready(url: str, process: subprocess.Popen[bytes], log: Path, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise BenchError(f"it ended with {process.returncode}: {log.read_text()[-3000:]}")
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except urllib.error.HTTPError:
            return  # it answers; what, does not matter here
        except OSError:
            time.sleep(0.1)
    raise BenchError(f"{url} did not come up in {timeout_s} s: {log.read_text()[-3000:]}")


def start_direct(tools: Tools) -> Target:
    """The mock vendor, on the core of the load driver; reaching it without anything between is "direct"."""
    process = subprocess.Popen(pinned(LOAD_CORE, tools.mock), stdout=subprocess.PIPE, env={**os.environ, "GOMAXPROCS": "1"})
    address = _printed_address(process)
    if not address:
        raise BenchError("the mock vendor did not start")
    return Target("direct", process, _urls(address), tools.go_version, named_models=False, measured=False)


def _printed_address(process: subprocess.Popen[bytes]) -> str:
    """Where it says that it listens; "" if it ended without a word."""
    assert process.stdout is not None
    found = re.search(rb"http://\S+", process.stdout.readline())
    return found[0].decode() if found else ""


def _urls(base: str) -> dict[str, str]:
    """By upstream format. A gateway gets OpenAI's client format on both; these are for what passes bytes through."""
    return {"openai": f"{base}/v1/chat/completions", "anthropic": f"{base}/v1/messages"}


_NGINX = """\
daemon off; master_process off; pid {work}/nginx.pid; error_log {work}/nginx.log warn;
events {{ worker_connections 8192; }}
http {{
  access_log off; client_body_temp_path {work}/body; proxy_temp_path {work}/proxy;
  fastcgi_temp_path {work}/f; uwsgi_temp_path {work}/u; scgi_temp_path {work}/s;
  keepalive_requests 1000000000; tcp_nodelay on;
  upstream vendor {{ server {vendor}; keepalive 256; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{ proxy_pass http://vendor; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }}
  }}
}}
"""


def start_nginx(tools: Tools, vendor: str, work: Path) -> Target:
    work.mkdir()
    port = free_port()
    config = work / "nginx.conf"
    config.write_text(_NGINX.format(work=work, vendor=vendor.removeprefix("http://"), port=port))
    log = work / "out.log"
    command = pinned(GATEWAY_CORE, tools.nginx, "-p", work, "-e", work / "nginx.log", "-c", config)
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    wait_ready(f"http://127.0.0.1:{port}/healthz", process, log)
    said = subprocess.run([tools.nginx, "-v"], capture_output=True, text=True, check=True).stderr
    return Target("nginx", process, _urls(f"http://127.0.0.1:{port}"), said.strip().rpartition("/")[2], named_models=False, log=log)


def start_litellm(tools: Tools, vendor: str, scenarios: list[Scenario], work: Path, prometheus: bool) -> Target:
    work.mkdir()
    port = free_port()
    models = []
    for scenario in scenarios:
        base = f"{vendor}/v1" if scenario.upstream == "openai" else vendor
        params = {"model": f"{scenario.upstream}/{scenario.vendor_model}", "api_base": base, "api_key": VENDOR_KEY}
        models.append({"model_name": scenario.name, "litellm_params": params})
    config: dict[str, object] = {"model_list": models, "general_settings": {"master_key": LITELLM_KEY}}
    if prometheus:
        config["litellm_settings"] = {"callbacks": ["prometheus"]}
    (work / "config.yaml").write_text(yaml.safe_dump(config))
    log = work / "litellm.log"
    environment = {
        **python_environment(tools.litellm_extras),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # or it asks the internet, and waits
        "LITELLM_LOG": "ERROR",
    }
    options = ["--config", str(work / "config.yaml"), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    command = pinned(GATEWAY_CORE, tools.litellm / "bin" / "litellm", *options)
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=work, stdout=out, stderr=out, env=environment)
    base = f"http://127.0.0.1:{port}"
    wait_ready(f"{base}/health/liveliness", process, log)
    version = subprocess.run(
        [tools.litellm / "bin" / "python", "-c", "import importlib.metadata as m; print(m.version('litellm'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    name = "LiteLLM + Prometheus" if prometheus else "LiteLLM"
    chat = f"{base}/v1/chat/completions"
    return Target(name, process, {"openai": chat, "anthropic": chat}, version, (f"authorization: Bearer {LITELLM_KEY}",), log=log)


def gateway_config(vendor: str, scenarios: list[Scenario], work: Path) -> dict[str, object]:
    """Everything a household would switch on: named people, limits for them, prices, the ledger on SQLite, metrics."""
    models = {s.name: [{"provider": s.upstream, "model": s.vendor_model, "max_output_tokens": 1000}] for s in scenarios}
    return {
        "server": {"bind": "127.0.0.1:0", "metrics_bind": "127.0.0.1:0", "max_open_requests": 1200},
        "database_url": f"sqlite:///{work}/hearth.db",
        "tokens": {"dir": str(work / "tokens"), "end_users": ["bench"]},
        "providers": [
            {"name": "openai", "kind": "openai", "base_url": vendor, "api_key_file": str(work / "key")},
            {"name": "anthropic", "kind": "anthropic", "base_url": vendor, "api_key_file": str(work / "key")},
        ],
        "models": models,
        "limits": {"person": PERSON_LIMITS, "program": LIMITS, "house": {"money_per_month_usd": 999_999}},
        "prices": [
            {"provider": s.upstream, "model": s.vendor_model, "input_usd": 3, "output_usd": 15, "source": "bench", "date": "2026-11-21"}
            for s in scenarios
        ],
    }


def start_gateway(config: dict[str, object], source: Path, work: Path, name: str = "hearth-gateway") -> Target:
    """``source`` is the directory that holds the package, so that another version can run beside this one."""
    (work / "tokens").mkdir(parents=True)
    (work / "tokens" / "bench").write_text(PROGRAM_TOKEN)
    (work / "key").write_text(VENDOR_KEY)
    (work / "config.yaml").write_text(yaml.safe_dump(config))
    log = work / "gateway.log"
    command = pinned(GATEWAY_CORE, sys.executable, "-m", "hearth_gateway", "serve", "--config", work / "config.yaml")
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=python_environment(source))
    base = f"http://{_started(process, log)['bind']}"
    wait_ready(f"{base}/healthz", process, log)
    headers = (f"authorization: Bearer {PROGRAM_TOKEN}",)
    chat = f"{base}/v1/chat/completions"
    return Target(name, process, {"openai": chat, "anthropic": chat}, _revision(source), headers, people=PEOPLE, log=log)


def start_floor(vendor: str, source: Path, work: Path) -> Target:
    """See floor.py. ``source`` is the gateway's package, whose server it uses."""
    work.mkdir()
    program = Path(__file__).with_name("floor.py")
    command = pinned(GATEWAY_CORE, sys.executable, program, f"{vendor}/v1/chat/completions", work / "floor.db")
    log = work / "floor.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=python_environment(source))
    address = _printed_address(process)
    if not address:
        raise BenchError(f"the floor did not start: {log.read_text()[-3000:]}")
    chat = f"{address}/v1/chat/completions"
    return Target("floor", process, {"openai": chat, "anthropic": chat}, _revision(source), log=log)


def _started(process: subprocess.Popen[bytes], log: Path) -> dict[str, str]:
    for _ in range(300):
        for line in log.read_text().splitlines():
            if line.startswith("{") and '"started"' in line:
                found: dict[str, str] = json.loads(line)
                return found
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise BenchError(f"the gateway did not start: {log.read_text()[-3000:]}")


def _revision(source: Path) -> str:
    if not source.is_relative_to(ROOT):
        return source.parents[2].name  # taken out of git under the name of its revision
    described = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False)
    return described.stdout.strip() or "no git"


def unpack_revision(revision: str, work: Path) -> Path:
    """The package as it was at a revision of git; a measured change is compared with it."""
    home = work / revision.replace("/", "-")
    home.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", revision, "files/gateway/src"], cwd=ROOT, capture_output=True, check=False)
    if archive.returncode:
        raise BenchError(f"git has no revision {revision}")
    subprocess.run(["tar", "-x", "-C", home], input=archive.stdout, check=True)
    return home / "files" / "gateway" / "src"
