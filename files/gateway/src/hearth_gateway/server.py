"""The process: sockets, threads, signals.

granian serves the API. It is driven through its worker class and not through its command, because
the command starts a supervisor with a child process: twice the memory, and SIGTERM would close the
listening socket before the open answers are done, so that clients see refused connections where they
should see "restarting, try again". All knowledge of granian is in this file, and `pyproject.toml`
allows only the minor version it was tried with.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson
from granian import _futures, _granian
from granian._loops import loops
from granian.http import HTTP1Settings

from hearth_gateway import __version__
from hearth_gateway.app import Gateway
from hearth_gateway.config import ServerConfig, parse_bind
from hearth_gateway.telemetry.log import Log
from hearth_gateway.telemetry.metrics import CONTENT_TYPE

# granian's own type stubs lag behind its code.
_native: Any = _granian
_new_scheduler: Any = _futures._new_cbscheduler

_BACKLOG = 1024
# Threads beside those that write answers and those that wait for slow uploads (core/lifecycle.py): health checks and the
# page must get one when all are busy.
_SPARE_THREADS = 32
_HEADER_TIMEOUT_MS = 15_000
# After `drain_s`, open answers get an error event; they notice within one heartbeat.
_CUT_S = 5.0
# A client that takes nothing for so long is cut: its answer holds a thread and a connection to the vendor.
_STALLED_MS = 60_000
_M_MMAP_THRESHOLD = -3  # malloc.h
# For bytes that a slow client has not taken yet. Not longer: a browser may keep a connection open on which
# it never sent anything, and that would hold up every stop.
_FLUSH_S = 2.0


class BindError(Exception):
    """Why an address cannot be listened on, as a sentence."""


def listen(bind: str, what: str) -> socket.socket:
    """A listening socket. Raises ``BindError``."""
    host, port = parse_bind(bind)
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = infos[0]
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Handed on to each connection. Without it the kernel asks a client that has stopped reading for ever.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _STALLED_MS)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError as error:
        reason = "the port is taken" if error.errno == 98 else (error.strerror or "unknown")
        raise BindError(f"cannot listen on {bind} ({what}): {reason}") from None
    return sock


def address_of(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def serve(
    gateway: Gateway,
    config: ServerConfig,
    api_socket: socket.socket,
    metrics_socket: socket.socket,
    on_start: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP, then drain. Must run in the main thread."""
    log = gateway.log
    log.install_hooks()
    _forbid_core_dumps()
    _take_turns()
    _give_memory_back()
    stop = _stop_on_signals(gateway.lifecycle.cut)
    # What there is now stays to the end. The collector need not look at it again and again, and has little to find:
    # what a request leaves behind goes with its last reference.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    metrics_server = _start_debug(metrics_socket, gateway)
    gateway.clients.come_to(api_socket)
    shutdown = _native.WorkerSignal()
    _start_worker(gateway, config, api_socket, shutdown)
    log.event("started", version=__version__, bind=address_of(api_socket), metrics_bind=address_of(metrics_socket))
    on_start()
    stop.wait()

    gateway.lifecycle.hand_over(config.handover_s)
    gateway.lifecycle.drain()
    log.event("stopping", open=gateway.lifecycle.open)
    finished = threading.Event()
    shutdown.add_cb(finished.set)
    if config.handover_s:
        # Nobody is sent here any more. Idle connections are closed now, and not when the last answer is done: on one
        # that a client keeps, its next request would be refused, on a new one it reaches another process.
        shutdown.set()
    if not gateway.lifecycle.wait_until_empty(config.drain_s):
        log.event("cutting", open=gateway.lifecycle.open)
        gateway.lifecycle.cut()
        gateway.lifecycle.wait_until_cut(_CUT_S)
    # "Empty" means that our code is done; the last bytes may still be on their way out. The worker
    # calls back once its connections are closed, which idle keep-alive ones are at once.
    if not config.handover_s:
        shutdown.set()
    finished.wait(_FLUSH_S)
    lost = gateway.close()
    metrics_server.shutdown()
    log.event("stopped", open=gateway.lifecycle.open, queued=lost)


def _forbid_core_dumps() -> None:
    """A core dump would hold the words of every open conversation.

    1 and not 0: Linux ignores the limit when dumps go to a program (Ubuntu's apport, systemd), except for this value
    (fs/coredump.c). Too small for a file, too. Where the machine allows 0 at most, nobody may raise that:
    `/api/transparency` says what it comes to.
    """
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    limit = 1 if hard == resource.RLIM_INFINITY else min(1, hard)
    resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))


def _take_turns() -> None:
    """Let a thread that is at work go on until it waits, if others have only been woken.

    With hundreds of open streams many threads want the interpreter, and one can have it. A thread that a piece of an answer
    has woken would push the one at work off its core, find the interpreter taken and go back to sleep.
    """
    with suppress(OSError):  # a sandbox may forbid it; it goes without
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))  # of this thread, and so of all that it starts


def _give_memory_back() -> None:
    """Let what a large request took go back to the machine with it.

    glibc learns from the first large block that is freed to keep such blocks, up to 32 MiB each: after a few photos
    the process held 360 MB where it needs 120.
    """
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1024 * 1024)


def _stop_on_signals(cut: Callable[[], None]) -> threading.Event:
    """An event that SIGTERM, SIGINT or SIGHUP (a terminal that is closed) sets. SIGINT after that calls ``cut``: who presses
    Ctrl-C twice does not want to wait.

    The kernel gives a signal to any thread it likes, and Python runs handlers in the main thread only, once it executes
    something. A main thread that waits for a lock would never hear of a signal that another thread took: under load
    one stop in three was lost so. Python's C code writes each signal into the wake-up socket whichever thread took
    it, and a thread of its own reads there.
    """
    stop = threading.Event()
    reader, writer = socket.socketpair()
    writer.setblocking(False)  # `set_wakeup_fd` asks for that

    def read() -> None:
        with reader, writer:
            while received := reader.recv(1):
                if stop.is_set() and received[0] == signal.SIGINT:
                    cut()
                stop.set()

    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
        numbers.append(signal.SIGHUP)
    for number in numbers:
        signal.signal(number, lambda _number, _frame: None)  # without a handler of Python's nothing is written
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=read, name="signals", daemon=True).start()
    return stop


def _start_worker(gateway: Gateway, config: ServerConfig, api_socket: socket.socket, shutdown: Any) -> None:
    threads = config.max_open_requests + config.max_open_requests // 2 + _SPARE_THREADS
    worker = _native.WSGIWorker(
        worker_id=1,
        sock=(None, _native.SocketHolder(api_socket.fileno(), False, _BACKLOG)),
        ipc=None,  # no supervisor to talk to
        threads=1,  # of the runtime: they move bytes, Python's threads do the work
        py_threads=threads,
        py_threads_idle_timeout=30,
        backpressure=threads + _BACKLOG,
        http_mode="1",  # HTTP/2 in clear text is of no use behind a proxy
        http1_opts=HTTP1Settings(header_read_timeout=_HEADER_TIMEOUT_MS),
        ssl_enabled=False,  # TLS ends at the ingress
        ssl_crl=[],
        metrics=(None, None),
    )
    scheduler = _new_scheduler(loops.get("asyncio"), _wsgi_callback(gateway), impl_asyncio=True)
    worker.serve_mtr(scheduler, None, shutdown)


class _Response:
    """What an application tells ``start_response``."""

    __slots__ = ("headers", "status")

    def __init__(self) -> None:
        self.status = 500
        self.headers: list[tuple[str, str]] = []

    def __call__(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Callable[[bytes], object]:
        self.status = int(status[:3])
        self.headers = headers
        return _refuse_write


def _refuse_write(_data: bytes) -> object:
    raise NotImplementedError("WSGI's write() is not supported")


class _Body:
    """granian pulls the pieces of a streamed body from here and closes it when the client leaves.

    An exception that got past here would be printed with its message, so none does.
    """

    __slots__ = ("_iterable", "_iterator", "_log")

    def __init__(self, iterable: Any, log: Log) -> None:
        self._iterable = iterable
        self._iterator = iter(iterable)
        self._log = log

    def __next__(self) -> bytes:
        try:
            return next(self._iterator)  # type: ignore[no-any-return]
        except StopIteration:
            raise
        except Exception as error:
            self._log.unexpected(error)
            self.close()
            raise StopIteration from None

    def close(self) -> None:
        try:
            self._iterable.close()
        except Exception as error:
            self._log.unexpected(error)


def _wsgi_callback(gateway: Gateway) -> Callable[[Any, dict[str, Any]], int]:
    """granian's own adapter puts the process environment into every request; this one does not."""
    app, log = gateway.app, gateway.log
    base = {
        "SCRIPT_NAME": "",
        "GATEWAY_INTERFACE": "CGI/1.1",
        "SERVER_SOFTWARE": "hearth-gateway",
        "wsgi.errors": _NoErrors(),
        "wsgi.input_terminated": True,
        "wsgi.multiprocess": False,
        "wsgi.multithread": True,
        "wsgi.run_once": False,
        "wsgi.version": (1, 0),
    }

    def callback(protocol: Any, scope: dict[str, Any]) -> int:
        response = _Response()
        try:
            result = app(base | scope, response)
        except Exception as error:
            log.unexpected(error)
            protocol.response_bytes(500, [("content-type", "application/json")], b"{}")
            return 500
        if isinstance(result, list):
            protocol.response_bytes(response.status, response.headers, b"".join(result))
        else:
            protocol.response_iter(response.status, response.headers, _Body(result, log))
        return response.status

    return callback


class _NoErrors:
    """``wsgi.errors`` takes free text. Ours goes through the log or nowhere."""

    def write(self, text: str) -> int:
        return len(text)

    def writelines(self, lines: Any) -> None:
        pass

    def flush(self) -> None:
        pass


def _start_debug(sock: socket.socket, gateway: Gateway) -> ThreadingHTTPServer:
    """GET /metrics and /debug/status on a socket of its own, so that no route of users can ever reach them."""
    pages: dict[str, tuple[str, Callable[[], bytes]]] = {
        "/metrics": (CONTENT_TYPE, gateway.metrics.exposition),
        "/debug/status": ("application/json", lambda: orjson.dumps(gateway.status.report())),
    }

    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # a scraper that stalls must not hold a thread for ever
        server_version = "hearth-gateway"
        sys_version = ""

        def do_GET(self) -> None:
            found = pages.get(self.path.partition("?")[0])
            content_type, read = found or ("text/plain; charset=utf-8", lambda: b"only /metrics and /debug/status are here\n")
            body = read()
            self.send_response(HTTPStatus.OK if found else HTTPStatus.NOT_FOUND)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815  (the name that http.server looks for)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Silent: the default prints every request line to standard error."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A scraper that left early is no event; the default prints a traceback."""

    server = Server(("", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = sock
    server.server_address = sock.getsockname()
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server
