"""The guard around images that the gateway fetches itself. A real HTTPS server stands for the one on the net."""

from __future__ import annotations

import base64
import ipaddress
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from hearth_gateway.clock import SystemClock
from hearth_gateway.errors import InvalidRequestError
from hearth_gateway.providers import fetch
from hearth_gateway.providers.base import Call
from hearth_gateway.providers.fetch import MAX_IMAGE_BYTES, ImageFetcher, is_public
from hearth_gateway.translate.events import Idle
from hearth_gateway.translate.model import ChatRequest, ImagePart, TextPart, ToolResult, Turn

PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 100


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1",  # this machine, this house
        "169.254.169.254", "169.254.0.1",  # link-local: where clouds keep their metadata
        "100.64.0.1", "100.100.100.200", "100.127.255.255",  # shared (CGNAT)
        "224.0.0.1", "239.1.1.1", "255.255.255.255", "240.0.0.1",  # multicast, reserved
        "192.0.0.192", "192.0.2.1", "198.51.100.1", "203.0.113.1", "198.18.0.1", "192.88.99.1",
        "168.63.129.16",  # Azure's metadata
        "::", "::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1",
        "fe80::1", "fec0::1", "fc00::1", "fd00:ec2::254",  # link-local, site-local, ULA (AWS' metadata)
        "64:ff9b::7f00:1", "64:ff9b:1::1",  # NAT64
        "2002:7f00:1::", "2001::1", "2001:0:53aa:64c:0:0:80ff:fffe",  # 6to4, Teredo
        "2001:db8::1", "3fff::1", "ff02::1", "100::1", "5f00::1",
    ],
)  # fmt: skip
def test_addresses_that_lead_inside_are_refused(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["1.1.1.1", "8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "2a00:1450:4001:80b::200e"])
def test_public_addresses_pass(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


class Handler(BaseHTTPRequestHandler):
    seen: ClassVar[list[dict[str, str]]] = []

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.seen.append({"path": self.path, **{name.lower(): value for name, value in self.headers.items()}})
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("location", f"https://localhost:{self.server.server_address[1]}/png")
            self.end_headers()
        elif self.path == "/endless":
            self._bytes(PNG + b"0" * (MAX_IMAGE_BYTES + 1))
        elif self.path == "/trickle":
            self.send_response(200)
            self.end_headers()
            for _ in range(300):
                self.wfile.write(b"0")
                time.sleep(0.1)
        elif self.path == "/text":
            self._bytes(b"<html>secrets of the house</html>")
        elif self.path == "/pdf":
            self._bytes(b"%PDF-1.7")
        elif self.path == "/404":
            self.send_error(404)
        else:
            self._bytes(PNG)

    def _bytes(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/plain")  # servers lie; the bytes do not
        self.end_headers()
        try:
            self.wfile.write(data)
        except OSError:
            self.close_connection = True


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert shutil.which("openssl"), "openssl is missing: run `make setup`"
    directory = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -keyout key.pem -out cert.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command.split(), *subject], cwd=directory, check=True, capture_output=True)
    return directory


@pytest.fixture(scope="module")
def port(certificate: Path) -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()


@pytest.fixture
def make(certificate: Path, port: int) -> Callable[..., ImageFetcher]:
    def fetcher(**changes: Any) -> ImageFetcher:
        options = {"ca_file": str(certificate / "cert.pem"), "allowed": lambda address: address.is_loopback, "port": port}
        return ImageFetcher(SystemClock(), **{**options, **changes})

    return fetcher


def run(fetcher: ImageFetcher, *parts: Any) -> ChatRequest:
    request = ChatRequest("m", (), (Turn("user", parts, "messages[0]"),))
    call = Call(request, "m", 10, 1.0, lambda: 0.05, lambda _fields: None)
    steps = fetcher.inline(request, call)
    while True:
        try:
            assert isinstance(next(steps), Idle)
        except StopIteration as done:
            result: ChatRequest = done.value
            return result


def test_an_image_comes_as_bytes_of_the_type_they_are(make: Callable[..., ImageFetcher], port: int) -> None:
    image = ImagePart(url=f"https://localhost:{port}/png?size=1", cache_control={"type": "ephemeral"})
    got = run(make(), TextPart("What is it?"), image, ToolResult("t1", (ImagePart(url=f"https://localhost:{port}/png?size=1"),)))
    data = base64.b64encode(PNG).decode()
    assert got.turns[0].parts == (
        TextPart("What is it?"),
        ImagePart("image/png", data, cache_control={"type": "ephemeral"}),
        ToolResult("t1", (ImagePart("image/png", data),)),
    )
    asked = [seen for seen in Handler.seen if seen["path"] == "/png?size=1"]
    assert len(asked) == 1, "the same address once"
    assert asked[0]["host"] == f"localhost:{port}"
    assert set(asked[0]) == {"path", "host", "accept", "accept-encoding", "user-agent"}, "nothing of the caller goes along"


def test_without_addresses_nothing_happens(make: Callable[..., ImageFetcher]) -> None:
    image = ImagePart("image/png", "AAAA")
    assert run(make(), image).turns[0].parts == (image,)


@pytest.mark.parametrize("path", ["/redirect", "/endless", "/text", "/pdf", "/404"])
def test_what_is_no_image_is_refused(make: Callable[..., ImageFetcher], port: int, path: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        run(make(), ImagePart(url=f"https://localhost:{port}{path}"))
    assert "localhost" not in caught.value.message and "secrets" not in caught.value.message
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert not [seen for seen in Handler.seen if seen["path"] == "/png"], "no redirect was followed"


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost/png",
        "https://user:password@localhost/png",
        "https://localhost:22/png",
        "https://[::1]/png",
        "https:///png",
        "file:///etc/passwd",
    ],
)
def test_addresses_that_are_not_plain_https(make: Callable[..., ImageFetcher], url: str) -> None:
    with pytest.raises(InvalidRequestError):
        run(make(allowed=is_public), ImagePart(url=url))


def test_the_guard_is_asked_for_every_address_of_a_name(
    make: Callable[..., ImageFetcher], port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(host: str, port: int, **_options: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in ("93.184.216.34", "127.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(InvalidRequestError, match="invalid_request") as caught:
        run(make(allowed=is_public), ImagePart(url=f"https://both.example:{port}/png"))
    assert "public" in caught.value.message


def test_the_checked_address_is_the_one_that_is_used(make: Callable[..., ImageFetcher], port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: the second look-up would give another address. There is none."""
    looked_up: list[str] = []
    real = socket.getaddrinfo

    def resolve(host: Any, *args: Any, **options: Any) -> list[Any]:
        looked_up.append(str(host))
        return real("127.0.0.1" if host == "localhost" else host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert run(make(), ImagePart(url=f"https://localhost:{port}/png")).turns
    assert looked_up.count("localhost") == 1


def test_a_certificate_is_needed(make: Callable[..., ImageFetcher], port: int) -> None:
    with pytest.raises(InvalidRequestError):
        run(make(ca_file=None), ImagePart(url=f"https://localhost:{port}/png"))


def test_a_server_that_trickles_is_left_in_time(make: Callable[..., ImageFetcher], port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "FETCH_S", 0.5)
    started = time.monotonic()
    with pytest.raises(InvalidRequestError):
        run(make(), ImagePart(url=f"https://localhost:{port}/trickle"))
    assert time.monotonic() - started < 15, "the server goes on for 30 s"


def test_names_that_nobody_answers_for_keep_no_other_request(
    make: Callable[..., ImageFetcher], port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "FETCH_S", 2.0)
    answered = threading.Event()
    real = socket.getaddrinfo

    def resolve(host: Any, *args: Any, **options: Any) -> list[Any]:
        if str(host).endswith(".silent.example"):
            answered.wait(30)
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return real(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    fetcher = make()
    images = [ImagePart(url=f"https://{number}.silent.example:{port}/png") for number in range(20)]

    def ask_for_silent_ones() -> None:
        with pytest.raises(InvalidRequestError):
            run(fetcher, *images)

    stuck = threading.Thread(target=ask_for_silent_ones)
    stuck.start()
    try:
        assert run(fetcher, ImagePart(url=f"https://localhost:{port}/png?other")).turns
        stuck.join(10)
        assert not stuck.is_alive(), "and who asked for them is told in time"
        left = [thread for thread in threading.enumerate() if thread.name == "fetch"]
        assert left and all(thread.daemon for thread in left), "a look-up that hangs must not keep the process from its end"
    finally:
        answered.set()


def test_there_is_a_limit_to_how_many(make: Callable[..., ImageFetcher], port: int) -> None:
    images = [ImagePart(url=f"https://localhost:{port}/png?{number}") for number in range(21)]
    with pytest.raises(InvalidRequestError, match="invalid_request"):
        run(make(), *images)
