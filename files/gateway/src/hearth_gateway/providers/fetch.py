"""Fetching images that a caller names by address, for models that take bytes only.

Whoever may chat chooses these addresses, so this must not become a way into the house's network (SSRF).
Not a list of what is forbidden decides, which always misses one (CVE-2026-55245 missed CGNAT, 6to4 and
NAT64), but: https on port 443, every address of the name is public unicast, the connection goes to the
address that was checked, and a redirect is an error.
"""

from __future__ import annotations

import base64
import http.client
import ipaddress
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from hearth_gateway.clock import Clock
from hearth_gateway.errors import InvalidRequestError
from hearth_gateway.providers.base import Call
from hearth_gateway.providers.http import tls_context
from hearth_gateway.translate.events import IDLE, Event
from hearth_gateway.translate.fields import sniff_media_type
from hearth_gateway.translate.model import ChatRequest, ImagePart, TextPart, ToolResult, Turn

MAX_IMAGES = 20  # what Bedrock takes in one request
MAX_IMAGE_BYTES = 5 * 1024 * 1024
FETCH_S = 10.0  # for all images of a request together
_READ_BYTES = 64 * 1024
# At a time: of one request, and from all servers together, which is what they take of our memory.
_AT_A_TIME = 4
_MAX_TRANSFERS = 8

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# IANA, "IPv6 Global Unicast Address Assignments": all that is assigned lies in here …
_IPV6_UNICAST = ipaddress.IPv6Network("2000::/3")
# … and of it, and of IPv4, these lead elsewhere than they look.
_DETOURS = [
    ipaddress.ip_network(network)
    for network in (
        "2001::/23",  # IETF protocols; Teredo hides an IPv4 address
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4 hides an IPv4 address
        "3fff::/20",  # documentation
        "192.0.0.0/24",  # IETF protocols; a cloud's metadata is at .192
        "192.88.99.0/24",  # 6to4 relays
        "168.63.129.16/32",  # Azure's metadata, at an address that looks public
    )
]


def is_public(address: Address) -> bool:
    """Whether the address is public unicast: no loopback, private, link-local, shared (CGNAT), multicast,
    reserved or tunnelled one."""
    if isinstance(address, ipaddress.IPv6Address) and address not in _IPV6_UNICAST:
        return False  # also NAT64 (64:ff9b::/96), mapped IPv4 (::ffff:0:0/96), ULA, link-local
    if any(network.version == address.version and address in network for network in _DETOURS):
        return False
    return address.is_global and not address.is_multicast


@dataclass(frozen=True, slots=True)
class _Target:
    """Where one image is: the checked ``address``, and what the server has to hear and prove."""

    host: str
    address: Address
    path: str


def _refusal(message: str) -> InvalidRequestError:
    # The address is the caller's own text, and what happened there is not theirs to probe: neither is told.
    return InvalidRequestError(message, "messages")


_NOT_PUBLIC = "An image must have a public https address."
_NOT_FETCHED = "An image could not be fetched. Send it inline, as a data: address."


class ImageFetcher:
    """Fetches images. Safe to use from many threads.

    ``allowed`` and ``port`` exist for tests, which have only addresses that are not public.
    """

    def __init__(self, clock: Clock, ca_file: str | None = None, allowed: Callable[[Address], bool] = is_public, port: int = 443) -> None:
        self._clock = clock
        self._tls = tls_context(ca_file)
        self._allowed = allowed
        self._port = port
        self._transfers = threading.BoundedSemaphore(_MAX_TRANSFERS)

    def inline(self, request: ChatRequest, call: Call) -> Generator[Event, None, ChatRequest]:
        """The request with bytes in place of addresses (the generator's return value), yielding ``Idle``
        meanwhile. Raises ``InvalidRequestError`` for an image that is not to be had."""
        urls = list(dict.fromkeys(part.url for part in _images(request) if part.url is not None))
        if not urls:
            return request
        if len(urls) > MAX_IMAGES:
            raise _refusal(f"At most {MAX_IMAGES} images may be given by address.")
        fetches = [_Fetch(url, self._allowed, self._port, self._tls, self._transfers) for url in urls]
        jobs: list[Future[ImagePart]] = [Future() for _ in fetches]
        deadline = self._clock.monotonic() + FETCH_S
        waiting = deque(zip(fetches, jobs, strict=True))
        for _ in range(min(_AT_A_TIME, len(urls))):
            # Of this request alone: a name server that is silent, which may be the caller's own, keeps nobody else's images.
            # Daemons: `getaddrinfo` cannot be interrupted, and must not keep the process from its end.
            threading.Thread(target=_work, args=(waiting,), name="fetch", daemon=True).start()
        try:
            for job in jobs:
                yield from self._wait(job, call, deadline)
            found = {url: job.result() for url, job in zip(urls, jobs, strict=True)}
        finally:
            for fetch, job in zip(fetches, jobs, strict=True):
                job.cancel()
                fetch.cancel()
        return _replaced(request, found)

    def _wait(self, job: Future[ImagePart], call: Call, deadline: float) -> Generator[Event, None, None]:
        while True:
            left = deadline - self._clock.monotonic()
            try:
                job.result(max(0.0, min(left, call.patience_s())))
                return
            except FutureTimeoutError:
                if left <= 0:
                    raise _refusal(_NOT_FETCHED) from None
                yield IDLE


def _work(waiting: deque[tuple[_Fetch, Future[ImagePart]]]) -> None:
    while True:
        try:
            fetch, job = waiting.popleft()
        except IndexError:
            return
        if not job.set_running_or_notify_cancel():
            continue  # nobody waits for it any more
        try:
            image = fetch.run()
        except BaseException as error:
            job.set_exception(error)
        else:
            job.set_result(image)


class _Fetch:
    """One image on its way. ``run`` in a thread that may be left behind; ``cancel`` ends it from another."""

    def __init__(
        self, url: str, allowed: Callable[[Address], bool], port: int, tls: ssl.SSLContext, transfers: threading.BoundedSemaphore
    ) -> None:
        self._url = url
        self._allowed = allowed
        self._port = port
        self._tls = tls
        self._transfers = transfers
        self._lock = threading.Lock()
        self._sock: socket.socket | None = None
        self._cancelled = False

    def run(self) -> ImagePart:
        try:
            target = self._target()
            if not self._transfers.acquire(timeout=FETCH_S):
                raise _refusal(_NOT_FETCHED)
            try:
                data = self._get(target)
            finally:
                self._transfers.release()
        except (OSError, http.client.HTTPException, ValueError):
            # `from None`: such errors quote addresses.
            raise _refusal(_NOT_FETCHED) from None
        media_type = sniff_media_type(data)
        if media_type is None or media_type == "application/pdf":
            raise _refusal("Only PNG, JPEG, GIF and WebP images are supported.")
        return ImagePart(media_type, base64.b64encode(data).decode())

    def cancel(self) -> None:
        """Harmless when all is over. A server that trickles bytes would hold the thread for hours."""
        with self._lock:
            self._cancelled = True
            sock, self._sock = self._sock, None
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _target(self) -> _Target:
        parts = urlsplit(self._url)
        if parts.scheme != "https" or not parts.hostname or parts.username or parts.password or (parts.port or self._port) != self._port:
            raise _refusal(_NOT_PUBLIC)
        host = parts.hostname.encode("idna").decode() if not parts.hostname.isascii() else parts.hostname
        found = socket.getaddrinfo(host, self._port, type=socket.SOCK_STREAM)
        addresses = [ipaddress.ip_address(str(entry[4][0])) for entry in found]
        # All of them: a name that is public and private at once is there to be tried until it fits.
        if not addresses or not all(self._allowed(address) for address in addresses):
            raise _refusal(_NOT_PUBLIC)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return _Target(host, addresses[0], path)

    def _get(self, target: _Target) -> bytes:
        connection = _PinnedConnection(target, self._port, self._tls)
        if self._cancelled:
            raise OSError
        try:
            connection.connect()
            self._hold(connection.sock)
            connection.request("GET", target.path, headers={"Accept": "image/*", "User-Agent": "hearth-gateway"})
            response = connection.getresponse()
            if response.status != 200 or response.headers.get("Content-Encoding", "identity") != "identity":
                raise _refusal(_NOT_FETCHED)
            data = bytearray()
            while piece := response.read(_READ_BYTES):
                data += piece
                if len(data) > MAX_IMAGE_BYTES:
                    raise _refusal(f"An image may have at most {MAX_IMAGE_BYTES // (1024 * 1024)} MB.")
            return bytes(data)
        finally:
            connection.close()

    def _hold(self, sock: socket.socket) -> None:
        with self._lock:
            if self._cancelled:
                raise OSError
            self._sock = sock


class _PinnedConnection(http.client.HTTPSConnection):
    """Connects to the address that was checked. Looking the name up again might give another one."""

    def __init__(self, target: _Target, port: int, tls: ssl.SSLContext) -> None:
        super().__init__(target.host, port, context=tls, timeout=FETCH_S)
        self._target = target
        self._pinned_tls = tls

    def connect(self) -> None:
        plain = socket.create_connection((str(self._target.address), self.port), FETCH_S)
        try:
            self.sock = self._pinned_tls.wrap_socket(plain, server_hostname=self._target.host)
        except BaseException:
            plain.close()
            raise


def _images(request: ChatRequest) -> list[ImagePart]:
    found: list[ImagePart] = []
    for turn in request.turns:
        for part in turn.parts:
            inner = part.parts if isinstance(part, ToolResult) else (part,)
            found += [item for item in inner if isinstance(item, ImagePart)]
    return found


def _replaced(request: ChatRequest, found: dict[str, ImagePart]) -> ChatRequest:
    def image(part: ImagePart) -> ImagePart:
        return replace(found[part.url], cache_control=part.cache_control) if part.url is not None else part

    def inner(part: TextPart | ImagePart) -> TextPart | ImagePart:
        return image(part) if isinstance(part, ImagePart) else part

    def turn(old: Turn) -> Turn:
        parts = tuple(
            image(part)
            if isinstance(part, ImagePart)
            else replace(part, parts=tuple(map(inner, part.parts)))
            if isinstance(part, ToolResult)
            else part
            for part in old.parts
        )
        return replace(old, parts=parts)

    return replace(request, turns=tuple(map(turn, request.turns)))
