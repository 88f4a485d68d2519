"""Our HTTP client against a socket that answers in every legal and illegal way."""

from __future__ import annotations

import gzip
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from gateway_fakes import FakeTransport

from hearth_gateway.clock import SystemClock
from hearth_gateway.errors import GatewayError, Kind
from hearth_gateway.providers import http, streaming
from hearth_gateway.providers.base import Call
from hearth_gateway.providers.http import HttpClient, Response, Transport
from hearth_gateway.providers.streaming import answer, document
from hearth_gateway.translate.events import End, Event, Idle
from hearth_gateway.translate.model import ChatRequest
from hearth_gateway.translate.openai_upstream_response import ChatReader, error_from_status

Handler = Callable[[socket.socket], None]


class Server:
    """Accepts connections, reads one request after the other and lets ``handler`` answer."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.handler: Handler = lambda connection: None
        self.connections = 0
        self.requests: list[bytes] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.socket.getsockname()[1]}/base/"

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            while True:
                data = b""
                try:
                    while b"\r\n\r\n{}" not in data:
                        received = connection.recv(65536)
                        if not received:
                            return
                        data += received
                    self.requests.append(data)
                    before = connection.fileno()
                    self.handler(connection)
                    if connection.fileno() != before:
                        return
                except OSError:
                    return


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.socket.close()


@pytest.fixture
def client(server: Server) -> Iterator[HttpClient]:
    client = HttpClient(server.url, None, SystemClock())
    yield client
    client.close()


def post(client: HttpClient) -> Response:
    pending = client.post("/v1/x", {"x-test": "1"}, b"{}", 20)
    while (response := pending.wait(0.2)) is None:
        pass
    return response


def body(response: Response) -> bytes:
    data = b""
    while (piece := response.read(20)) != b"":
        assert piece is not None, "nothing came"
        data += piece
    response.close()
    return data


def reply(raw: bytes, cut: int = 0, close: bool = False) -> Handler:
    def handler(connection: socket.socket) -> None:
        step = cut or len(raw) or 1
        for start in range(0, len(raw), step):
            connection.sendall(raw[start : start + step])
            if cut:
                time.sleep(0.001)
        if close:
            connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    return handler


LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: 1\r\nx-a: 2\r\n\r\nhello"
PLAIN_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nh\r\n2\r\nel\r\n1\r\nl\r\n1\r\no\r\n0\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nh\r\n3;ext=1\r\nell\r\n0001\r\no\r\n0\r\nTrailer: x\r\n\r\n"


def packed(data: bytes, encoding: bytes = b"gzip") -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Encoding: %s\r\nContent-Length: %d\r\n\r\n%s" % (encoding, len(data), data)


HELLO = gzip.compress(b"hello", mtime=0)
FRAMINGS = {
    "length": LENGTH,
    "chunked": CHUNKED,
    "plain chunks": PLAIN_CHUNKED,
    "gzip": packed(HELLO),
    "x-gzip": packed(HELLO, b"x-gzip"),
    "a member an event": packed(b"".join(gzip.compress(piece, mtime=0) for piece in (b"he", b"", b"l", b"lo"))),
    "deflate": packed(zlib.compress(b"hello"), b"deflate"),
    "bare deflate": packed(zlib.compress(b"hello")[2:-4], b"deflate"),
}


@pytest.mark.parametrize("cut", [0, 1, 3])
@pytest.mark.parametrize("raw", FRAMINGS.values(), ids=FRAMINGS)
def test_framings_in_any_pieces_and_reuse(server: Server, client: HttpClient, raw: bytes, cut: int) -> None:
    server.handler = reply(raw, cut)
    for _ in range(3):
        assert body(post(client)) == b"hello"
    assert server.connections == 1, "a connection that was read to its end is used again"
    head = server.requests[0].split(b"\r\n")
    assert head[0] == b"POST /base/v1/x HTTP/1.1"
    assert b"x-test: 1" in head and b"content-length: 2" in head and b"accept-encoding: identity" in head


def test_a_body_that_ends_with_the_connection(server: Server, client: HttpClient) -> None:
    server.handler = reply(b"HTTP/1.0 200 OK\r\n\r\nhello", close=True)
    assert body(post(client)) == b"hello"
    assert body(post(client)) == b"hello"
    assert server.connections == 2


def test_headers_and_interim_responses(server: Server, client: HttpClient) -> None:
    server.handler = reply(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nA: b\r\n\r\n" + LENGTH)
    response = post(client)
    assert response.status == 200 and response.headers["x-a"] == "1, 2"
    assert body(response) == b"hello"


def test_connection_close_is_honoured(server: Server, client: HttpClient) -> None:
    server.handler = reply(LENGTH.replace(b"X-A: 1", b"Connection: close"))
    assert body(post(client)) == body(post(client)) == b"hello"
    assert server.connections == 2


def test_a_body_left_unread_is_cut(server: Server, client: HttpClient) -> None:
    gone = threading.Event()

    def handler(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nh\r\n")
        if connection.recv(1) == b"":
            gone.set()

    server.handler = handler
    response = post(client)
    assert response.read(20) == b"h"
    assert response.read(0.01) is None, "silence is not the end"
    response.close()
    assert gone.wait(20), "closing early must end the connection"


@pytest.mark.parametrize("slice_s", [0.02, 5.0])
def test_silence_is_told_in_time_and_nothing_is_lost(
    server: Server, client: HttpClient, monkeypatch: pytest.MonkeyPatch, slice_s: float
) -> None:
    """Also where the kernel is asked more than once."""
    monkeypatch.setattr(http, "_SLICE_S", slice_s)
    go_on = threading.Event()

    def handler(connection: socket.socket) -> None:
        connection.sendall(LENGTH[:-4])
        go_on.wait(20)
        connection.sendall(LENGTH[-4:])

    server.handler = handler
    for _ in range(2):
        response = post(client)
        assert response.read(20) == b"h"
        for wait_s in (0.15, 0.05, 0.0):
            began = time.monotonic()
            assert response.read(wait_s) is None
            assert wait_s <= time.monotonic() - began < wait_s + 5
        go_on.set()
        assert body(response) == b"ello"
        go_on.clear()
    assert server.connections == 1


def test_a_request_that_is_taken_slowly_arrives_whole(server: Server, client: HttpClient) -> None:
    """More than the kernel keeps; and the wait for the answer is limited as before."""
    wanted = b"{}" + b" " * 8_000_000

    taken: list[int] = []

    def handler(connection: socket.socket) -> None:
        received = len(server.requests[-1].partition(b"\r\n\r\n")[2])
        while received < len(wanted):
            time.sleep(0.0005)
            received += len(connection.recv(65536))
        taken.append(received)
        connection.sendall(LENGTH)

    server.handler = handler
    for _ in range(2):
        pending = client.post("/v1/x", {}, wanted, 20)
        while (response := pending.wait(0.01)) is None:
            pass
        assert body(response) == b"hello"
    assert taken == [len(wanted)] * 2
    assert server.connections == 1


BIG = b"{}" + b" " * 8_000_000  # more than the kernel keeps


def take(connection: socket.socket, size: int) -> None:
    while size > 0:
        size -= len(connection.recv(min(size, 65536)))


def test_a_vendor_that_does_not_take_the_request_is_waited_for_as_for_a_silent_one(server: Server, client: HttpClient) -> None:
    over = threading.Event()

    def handler(connection: socket.socket) -> None:
        over.wait(40)

    server.handler = handler
    began = time.monotonic()
    pending = client.post("/v1/x", {}, BIG, 20)
    for _ in range(2):
        assert pending.wait(0.2) is None
    assert 0.4 <= time.monotonic() - began < 10
    pending.close()
    over.set()


def test_a_refusal_is_read_while_the_request_is_not_taken(server: Server, client: HttpClient) -> None:
    over = threading.Event()

    def handler(connection: socket.socket) -> None:
        connection.sendall(LENGTH.replace(b"200 OK", b"413 Too Large"))
        over.wait(40)

    server.handler = handler
    for _ in range(2):
        began = time.monotonic()
        response = client.post("/v1/x", {}, BIG, 20).wait(20)
        assert response is not None and (response.status, body(response)) == (413, b"hello")
        assert time.monotonic() - began < 10
    assert server.connections == 2, "the rest of the first request would be taken for the second"
    over.set()


def test_an_answer_that_begins_early_gets_the_rest_of_the_request(server: Server, client: HttpClient) -> None:
    def handler(connection: socket.socket) -> None:
        connection.sendall(LENGTH[:-5])
        time.sleep(0.1)
        take(connection, len(BIG) - len(server.requests[-1].partition(b"\r\n\r\n")[2]))
        connection.sendall(b"hello")

    server.handler = handler
    for _ in range(2):
        pending = client.post("/v1/x", {}, BIG, 20)
        while (response := pending.wait(0.05)) is None:
            pass
        assert body(response) == b"hello"
    assert server.connections == 1


def test_a_pooled_connection_that_dies_while_it_takes_the_request(server: Server, client: HttpClient) -> None:
    """The request goes out once more, from its first byte; but not a second time."""
    whole = threading.Event()

    def handler(connection: socket.socket) -> None:
        if server.requests[-1].endswith(b"\r\n\r\n{}"):
            connection.sendall(LENGTH)
        elif server.connections == 1 or not whole.is_set():
            take(connection, 1_000_000)
            connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        else:
            take(connection, len(BIG) - len(server.requests[-1].partition(b"\r\n\r\n")[2]))
            connection.sendall(LENGTH)

    server.handler = handler
    assert body(post(client)) == b"hello"
    whole.set()
    response = client.post("/v1/x", {}, BIG, 20).wait(20)
    assert response is not None and body(response) == b"hello"
    assert server.connections == 2
    whole.clear()
    with pytest.raises(GatewayError, match="upstream_unreachable"):
        client.post("/v1/x", {}, BIG, 20).wait(20)
    assert server.connections == 3


def test_a_connection_that_went_stale_is_replaced(server: Server, client: HttpClient) -> None:
    server.handler = reply(LENGTH, close=True)  # keep-alive by its headers, but the server hangs up
    for _ in range(3):
        assert body(post(client)) == b"hello"
    assert server.connections == 3


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (b"", Kind.UPSTREAM_UNREACHABLE),
        (b"HTTP/1.1 200 OK\r\nContent-", Kind.UPSTREAM_UNREACHABLE),
        (b"SSH-2.0-OpenSSH\r\n\r\n", Kind.UPSTREAM_PROTOCOL),
        (b"HTTP/1.1 abc\r\n\r\n", Kind.UPSTREAM_PROTOCOL),
        (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", Kind.UPSTREAM_PROTOCOL),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", Kind.UPSTREAM_PROTOCOL),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\n\r\n", Kind.UPSTREAM_PROTOCOL),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", Kind.UPSTREAM_INTERRUPTED),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", Kind.UPSTREAM_INTERRUPTED),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", Kind.UPSTREAM_PROTOCOL),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", Kind.UPSTREAM_PROTOCOL),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhello\r\n", Kind.UPSTREAM_PROTOCOL),
        (packed(b"hello"), Kind.UPSTREAM_PROTOCOL),
        (packed(HELLO + b"hello"), Kind.UPSTREAM_PROTOCOL),
        (packed(HELLO[:-4]), Kind.UPSTREAM_INTERRUPTED),
        (packed(HELLO[:-4] + b"1234"), Kind.UPSTREAM_PROTOCOL),
        (packed(HELLO + HELLO[:-4]), Kind.UPSTREAM_INTERRUPTED),
        (b"HTTP/1.0 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + HELLO[:-4], Kind.UPSTREAM_INTERRUPTED),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000, Kind.UPSTREAM_PROTOCOL),
    ],
)
def test_what_is_no_http_is_a_fault_of_the_provider(server: Server, client: HttpClient, raw: bytes, kind: Kind) -> None:
    server.handler = reply(raw, close=True)
    with pytest.raises(GatewayError) as caught:
        body(post(client))
    assert caught.value.kind is kind


def test_what_unpacks_to_a_thousand_times_as_much_comes_in_pieces(server: Server, client: HttpClient) -> None:
    """The readers have limits. They can only keep them if not everything is unpacked before they see it."""
    size = 200_000_001
    server.handler = reply(packed(gzip.compress(bytes(size), 1)))
    response = post(client)
    tracemalloc.start()
    try:
        pieces = [len(piece) for piece in iter(lambda: response.read(20) or b"", b"")]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(pieces) == size
    assert max(pieces) <= 1024 * 1024 and peak < 16_000_000


def test_unreachable_in_each_way() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = taken.getsockname()[1]
    client = HttpClient(f"http://127.0.0.1:{free}", None, SystemClock())
    with pytest.raises(GatewayError, match="upstream_unreachable") as caught:
        client.post("/", {}, b"", 20)
    assert "refused" in caught.value.message
    client = HttpClient("http://no-such-name.invalid", None, SystemClock())
    with pytest.raises(GatewayError) as caught:
        client.post("/", {}, b"", 60)  # how long a resolver takes to say no is the machine's business
    assert "name" in caught.value.message


class NameServer:
    """Stands in for the resolver: ``dead.test`` is not answered while ``answering`` is not set, then with ``outcome``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answering = threading.Event()
        self.asked = 0
        self.outcome: OSError | None = None
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._getaddrinfo)

    def _getaddrinfo(self, host: str, *args: Any, **options: Any) -> Any:
        if host == "dead.test":
            self.asked += 1
            self.answering.wait(60)
            if self.outcome is not None:
                raise self.outcome
        return self._real("127.0.0.1", *args, **options)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    names = NameServer(monkeypatch)
    yield names
    names.answering.set()


def named(server: Server, name: str) -> HttpClient:
    return HttpClient(server.url.replace("127.0.0.1", name), None, SystemClock())


def in_threads(count: int, job: Callable[[], str]) -> list[str]:
    """What each of so many at once returns, or the message of its fault."""
    found: list[str] = []

    def run() -> None:
        try:
            found.append(job())
        except GatewayError as error:
            found.append(error.message)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_a_name_nobody_answers_for_keeps_nobody_from_another_vendor(server: Server, names: NameServer) -> None:
    server.handler = reply(LENGTH)
    dead, healthy = named(server, "dead.test"), named(server, "healthy.test")
    for _ in range(2):
        found = in_threads(6, lambda: str(dead.post("/", {}, b"{}", 0.1)))
        assert found == ["The provider cannot be reached: looking up its name took too long."] * 6
    assert names.asked == 1, "however many wait, and however often"
    assert body(post(healthy)) == b"hello"
    names.outcome = socket.gaierror(socket.EAI_NONAME, "no such name")
    waiting = threading.Timer(0.2, names.answering.set)
    waiting.start()
    assert set(in_threads(6, lambda: str(dead.post("/", {}, b"{}", 20)))) == {"The provider cannot be reached: its name is not known."}
    names.outcome = None
    assert body(post(dead)) == b"hello", "a failure is not kept"


def test_while_no_name_server_answers_the_last_addresses_are_used(server: Server, names: NameServer) -> None:
    server.handler = reply(LENGTH, close=True)  # each request needs a connection
    client = named(server, "dead.test")
    names.answering.set()
    assert body(post(client)) == b"hello"
    names.outcome = socket.gaierror(socket.EAI_AGAIN, "no answer")
    assert body(post(client)) == b"hello"
    names.answering.clear()
    asked = names.asked
    for least_s, most_s in ((2, 20), (0, 2), (0, 2)):
        began = time.monotonic()
        response = client.post("/v1/x", {}, b"{}", 4).wait(20)
        assert response is not None and body(response) == b"hello"
        assert least_s <= time.monotonic() - began < most_s, "the first gives it time; the others know"
    assert names.asked == asked + 1
    names.outcome = socket.gaierror(socket.EAI_NONAME, "no such name")
    names.answering.set()
    with pytest.raises(GatewayError):
        for _ in range(1000):  # the first share the look-up that hung, until its thread gets to its end
            post(client)


def test_a_look_up_that_hangs_does_not_keep_the_process() -> None:
    program = (
        "import socket, time\n"
        "from hearth_gateway.clock import SystemClock\n"
        "from hearth_gateway.providers.http import HttpClient\n"
        "socket.getaddrinfo = lambda *_, **__: time.sleep(60)\n"
        "try:\n    HttpClient('http://dead.test', None, SystemClock()).post('/', {}, b'', 0.1)\n"
        "except Exception as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert done.stdout == "upstream_unreachable\n", done.stderr


def test_connecting_has_a_time_limit() -> None:
    # A socket whose queue is full does not answer: the third connection waits for ever.
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(3)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
        client = HttpClient(f"http://127.0.0.1:{full.getsockname()[1]}", None, SystemClock())
        started = time.monotonic()
        with pytest.raises(GatewayError) as caught:
            client.post("/", {}, b"", 0.3)
        assert "too long" in caught.value.message
        assert time.monotonic() - started < 20, "the system itself gives up after two minutes"
        for sock in waiting:
            sock.close()


# --- read as an answer


CALL = Call(ChatRequest("sonnet", (), (), stream=True), "any", 100, 20, lambda: 20, lambda _: None)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


LAST_EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def ask(client: Transport) -> list[Event]:
    """The events of an answer, without the signs of life."""
    events = answer(client.post("/v1/x", {}, b"{}", 20), CALL, ChatReader({}), error_from_status)
    return [event for event in events if not isinstance(event, Idle)]


def ask_document(client: Transport) -> list[Event]:
    return list(document(client.post("/v1/x", {}, b"{}", 20), CALL, error_from_status))


# What follows the last event: at once, and a moment later.
ENDINGS = {
    "with it": (b"0\r\n\r\n", b""),
    "after it": (b"", b"0\r\n\r\n"),
    "half of it": (b"0\r\n", b"\r\n"),
    "a word before": (b"", chunk(b": bye\n\n") + b"0\r\n\r\n"),
}


@pytest.mark.parametrize(("at_once", "later"), ENDINGS.values(), ids=ENDINGS)
def test_after_a_streamed_answer_the_connection_is_used_again(
    server: Server, client: HttpClient, monkeypatch: pytest.MonkeyPatch, at_once: bytes, later: bytes
) -> None:
    monkeypatch.setattr(streaming, "_AFTER_END_S", 5.0)  # a busy machine's moment is longer

    def handler(connection: socket.socket) -> None:
        connection.sendall(STREAM + chunk(LAST_EVENT) + at_once)
        time.sleep(0.005)
        connection.sendall(later)

    server.handler = handler
    for _ in range(3):
        assert isinstance(ask(client)[-1], End)
    assert server.connections == 1


def test_who_goes_on_talking_after_the_end_holds_nothing_back() -> None:
    talk = [b": still here\n\n"] * 1000
    pieces = [LAST_EVENT, *talk]
    transport = FakeTransport(200, {"content-type": "text/event-stream"}, pieces)
    assert isinstance(ask(transport)[-1], End)
    assert len(talk) - len(pieces) < 5 and transport.closed == 1


REFUSAL = b"HTTP/1.1 429 Too Many\r\nRetry-After: 7\r\nContent-Length: 100\r\n\r\n{"


@pytest.mark.parametrize("how", ["hangs", "drips", "breaks"])
def test_a_refusal_is_told_without_its_words(server: Server, client: HttpClient, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(streaming, "_ERROR_BODY_S", 0.5)
    over = threading.Event()

    def handler(connection: socket.socket) -> None:
        connection.sendall(REFUSAL)
        if how == "drips":
            for _ in range(90):
                time.sleep(0.3)
                connection.sendall(b" ")
        if how != "breaks":
            over.wait(20)
        connection.shutdown(socket.SHUT_RDWR)

    server.handler = handler
    try:
        for read in (ask, ask_document):
            began = time.monotonic()
            with pytest.raises(GatewayError) as caught:
                read(client)
            assert (caught.value.kind, caught.value.retry_after_s) == (Kind.UPSTREAM_RATE_LIMITED, 7)
            assert time.monotonic() - began < 10, "its body takes 20 s or more"
    finally:
        over.set()
