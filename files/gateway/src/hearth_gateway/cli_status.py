"""``hearth-gateway status``: how the running service is, for a person or (``--json``) for a program.

Exit codes: 0 all is well, 1 the service cannot be reached, 2 the configuration is wrong, 3 it runs but
something is not as it should be: a provider is left alone, the store fails, it is shutting down.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hearth_gateway.cli_answer import answer
from hearth_gateway.config import Config, parse_bind

EXIT_UNREACHABLE = 1
EXIT_BAD_CONFIG = 2
EXIT_DEGRADED = 3
_TIMEOUT_S = 5.0
_MAX_BYTES = 16 * 1024 * 1024  # whoever listens may never end
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  (compared, not listened on)


def add_parser(commands: Any, load: Callable[[Path], Config | None]) -> None:
    """Add ``status``. ``load`` reads a configuration file; None: it has said what is wrong."""
    parser = commands.add_parser("status", help="how the running service is: providers, breakers, queue")
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="the file the service was started with")
    parser.add_argument("--json", action="store_true", help="print the JSON that the service answers")
    parser.set_defaults(run=lambda arguments: _status(arguments, load))


def _status(arguments: argparse.Namespace, load: Callable[[Path], Config | None]) -> int:
    config = load(arguments.config)
    if config is None:
        return EXIT_BAD_CONFIG
    url = status_url(config.server.metrics_bind)
    try:
        report = _fetch(url)
        lines = "\n".join(_lines(report))  # with --json too: it finds what is missing
    except (urllib.error.HTTPError, http.client.HTTPException, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        print(
            f"hearth-gateway: what listens at {url} does not answer as this version of the service does; is metrics_bind right?",
            file=sys.stderr,
        )
        return EXIT_UNREACHABLE
    except OSError:  # also: not in time
        print(f"hearth-gateway: nobody answers at {url}; is the service running with this configuration?", file=sys.stderr)
        return EXIT_UNREACHABLE
    answer(json.dumps(report, indent=2) if arguments.json else lines)
    return 0 if report["status"] == "ok" else EXIT_DEGRADED


def status_url(metrics_bind: str) -> str:
    """Where a service that listens on ``metrics_bind`` can be asked from the same machine."""
    host, port = parse_bind(metrics_bind)
    host = _ANY_ADDRESS.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/debug/status"


def _fetch(url: str) -> dict[str, Any]:
    # Without the proxies of the environment: this never leaves the machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=_TIMEOUT_S) as response:
        report: dict[str, Any] = json.loads(response.read(_MAX_BYTES))
    return report


def _lines(report: dict[str, Any]) -> Iterator[str]:
    yield f"hearth-gateway {report['version']}: {report['status']}, up {duration(report['uptime_s'])}"
    yield f"  open requests  {report['open_requests']} of {report['max_open_requests']}"
    yield f"  ledger         {report['ledger_queued_rows']} rows waiting"
    for name, value in report["checks"].items():
        if value != "ok":
            yield f"  {name:<13}  {value}"
    for provider in report["providers"]:
        yield f"  {provider['name']} ({provider['kind']})"
        width = max((len(model["model"]) for model in provider["models"]), default=0)
        for model in provider["models"]:
            yield f"    {model['model']:<{width}}  {_breaker(model)}"


def _breaker(model: dict[str, Any]) -> str:
    if model["breaker"] == "open":
        return f"open: {model['reason']}, tried again in {duration(round(model['wait_s']))}"
    if model["breaker"] == "half-open":
        return f"half-open: {model['reason']}, the next request tries it"
    return "ok" if not model["failures"] else f"ok, {model['failures']} faults in a row: {model['reason']}"


def duration(seconds: int) -> str:
    """Such as `42 s`, `5 min` or `3 h 2 min`."""
    hours, minutes = seconds // 3600, seconds % 3600 // 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{seconds} s"
