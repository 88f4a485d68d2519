"""The ``hearth-gateway`` command.

Exit codes: 0 done, 1 the service cannot start, 2 the configuration is wrong.
"""

from __future__ import annotations

import argparse
import datetime
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from hearth_gateway import __version__, cli_person, cli_status
from hearth_gateway.cli_answer import UnprintedError, answer
from hearth_gateway.config import (
    Config,
    ConfigError,
    DemoProviderConfig,
    Problem,
    ServerConfig,
    TargetConfig,
    TokensConfig,
    load_config,
    load_with_files,
    parse_bind,
    warnings,
)
from hearth_gateway.core.identity import token_warnings
from hearth_gateway.core.prices import price_warnings

EXIT_FAILED = 1
EXIT_BAD_CONFIG = 2


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except KeyboardInterrupt:
        return EXIT_FAILED
    except UnprintedError as problem:
        _say(f"what was asked is done, but the answer could not be printed: {problem}")
        return EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hearth-gateway", description="One private door to the model providers.")
    parser.add_argument("--version", action="version", version=f"hearth-gateway {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="run the service")
    serve.add_argument("--config", required=True, type=Path, metavar="FILE")
    serve.set_defaults(run=_serve)

    check = commands.add_parser("check-config", help="check a configuration file, print every problem")
    check.add_argument("file", type=Path, metavar="FILE")
    check.add_argument("--files", action="store_true", help="also look at the key, token and certificate files it names")
    check.set_defaults(run=_check_config)

    demo = commands.add_parser("demo", help="run with the built-in demo provider: no key, nothing kept")
    demo.add_argument("--bind", default="127.0.0.1:8080", metavar="HOST:PORT")
    demo.add_argument("--metrics-bind", default="127.0.0.1:9090", metavar="HOST:PORT")
    demo.set_defaults(run=_demo)

    cli_status.add_parser(commands, _loaded)
    cli_person.add_parser(commands, _loaded)

    code = commands.add_parser("code-hash", help="print the hash of this installation, as GET /api/transparency shows it")
    code.set_defaults(run=_code_hash)

    contract = commands.add_parser("write-contract", help="write the files other parts read: configuration schema, metrics, API")
    contract.add_argument("directory", type=Path, metavar="DIR")
    contract.set_defaults(run=_write_contract)
    return parser


def _say(text: str) -> None:
    print(f"hearth-gateway: {text}", file=sys.stderr)


def _loaded(path: Path, load: Callable[[Path], Config] = load_config) -> Config | None:
    """The configuration, or None once its problems are printed."""
    try:
        return load(path)
    except ConfigError as found:
        for problem in found.problems:
            _say(f"{path}: {problem}")
        return None


def _check_config(arguments: argparse.Namespace) -> int:
    problems: list[Problem] = []
    config: Config | None
    try:
        config = (load_with_files if arguments.files else load_config)(arguments.file)
    except ConfigError as found:
        problems, config = found.problems, None if found.doubtful else found.rest
    for problem in problems:
        _say(f"{arguments.file}: {problem}")
    today = datetime.datetime.now(datetime.UTC).date()
    told = [] if config is None else [*warnings(config, today), *price_warnings(config, today)]
    if config is not None and arguments.files and not any(problem.path == "tokens.dir" for problem in problems):
        told += token_warnings(config)
    for warning in told:
        _say(f"{arguments.file}: warning: {warning}")
    return EXIT_BAD_CONFIG if problems else 0


def _serve(arguments: argparse.Namespace) -> int:
    config = _loaded(arguments.config, load_with_files)
    return EXIT_BAD_CONFIG if config is None else _run(config)


def _run(config: Config, greeting: str = "") -> int:
    # Here and not at the top: check-config and --version should not wait for the whole service.
    from hearth_gateway.app import create_app
    from hearth_gateway.secrets import SecretError
    from hearth_gateway.server import BindError, address_of, listen, serve
    from hearth_gateway.store.database import DatabaseError

    try:
        api_socket = listen(config.server.bind, "server.bind")
        metrics_socket = listen(config.server.metrics_bind, "server.metrics_bind")
        gateway = create_app(config)
    except (BindError, DatabaseError, SecretError) as problem:
        _say(str(problem))
        return EXIT_FAILED

    failed = False

    def greet() -> None:
        nonlocal failed
        if not greeting:
            return
        try:
            answer(greeting.format(address=address_of(api_socket)))
        except UnprintedError as problem:
            # Nobody could use it, and raised from here it would leave the listening threads behind.
            _say(f"the address could not be printed, so it ends: {problem}")
            failed = True
            os.kill(os.getpid(), signal.SIGTERM)

    serve(gateway, config.server, api_socket, metrics_socket, greet)
    return EXIT_FAILED if failed else 0


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _demo(arguments: argparse.Namespace) -> int:
    for option in (arguments.bind, arguments.metrics_bind):
        try:
            parse_bind(option)
        except ValueError as problem:
            _say(f"{option}: {problem}")
            return EXIT_BAD_CONFIG
    # A terminal that is closed ends it like Ctrl-C: the directory, which holds a token, goes with it. `nohup` keeps its word.
    for number in (signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    try:
        temporary = tempfile.TemporaryDirectory(prefix="hearth-demo-")
    except OSError as error:
        _say(f"no temporary directory can be written to; set TMPDIR to one that can: {error.strerror}")
        return EXIT_FAILED
    token = secrets.token_urlsafe(24)
    with temporary as directory:
        token_file = Path(directory, "tokens", "demo")
        token_file.parent.mkdir(mode=0o700)
        token_file.touch(mode=0o600)
        token_file.write_text(token, encoding="ascii")
        config = Config(
            server=ServerConfig(bind=arguments.bind, metrics_bind=arguments.metrics_bind, drain_s=5),
            database_url=f"sqlite:///{directory}/hearth.db",
            tokens=TokensConfig(dir=str(token_file.parent)),
            providers=[DemoProviderConfig(name="demo", kind="demo")],
            models={"demo": [TargetConfig(provider="demo", model="demo")]},
        )
        return _run(
            config,
            f"Open http://{{address}}/#token={token}\nThe answers are fixed sentences. Nothing is kept: Ctrl-C ends it all.",
        )


def _code_hash(_arguments: argparse.Namespace) -> int:
    from hearth_gateway.telemetry.process import code_hash

    answer(code_hash())
    return 0


def _write_contract(arguments: argparse.Namespace) -> int:
    from hearth_gateway.contract import contract_files

    for name, text in contract_files().items():
        try:
            Path(arguments.directory, name).write_text(text, encoding="utf-8")
        except OSError as error:
            _say(f"{arguments.directory}/{name} cannot be written: {error.strerror}")
            return EXIT_FAILED
    return 0
