"""A browser as far as the access chain can tell: cookies by host, redirects, and headers exactly as a test spells them."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

TIMEOUT_S = 20
Header = tuple[str, str]


class Address(NamedTuple):
    """Where the connections for a host name really go."""

    host: str
    port: int
    tls: bool = False


@dataclass
class Cookie:
    name: str
    value: str
    domain: str  # with a leading dot: for the hosts below it too
    attributes: dict[str, str]


@dataclass
class Reply:
    """One answer. Names of headers are compared without case."""

    url: str
    status: int
    headers: list[Header]
    body: bytes

    def all(self, name: str) -> list[str]:
        return [value for found, value in self.headers if found.lower() == name.lower()]

    def header(self, name: str) -> str:
        return ", ".join(self.all(name))

    @property
    def location(self) -> str:
        return urljoin(self.url, self.header("Location"))

    def json(self) -> Any:
        return json.loads(self.body)

    def cookies(self) -> list[Cookie]:
        return [parse_cookie(line, urlsplit(self.url).hostname or "") for line in self.all("Set-Cookie")]


def parse_cookie(line: str, host: str) -> Cookie:
    first, *rest = [part.strip() for part in line.split(";")]
    name, _, value = first.partition("=")
    attributes = {key.strip().lower(): content.strip() for key, _, content in (part.partition("=") for part in rest)}
    domain = attributes.get("domain", "").lstrip(".")
    return Cookie(name, value, f".{domain}" if domain else host, attributes)


class _Connection(http.client.HTTPConnection):
    def __init__(self, address: Address, server_name: str, source: str) -> None:
        super().__init__(address.host, address.port, timeout=TIMEOUT_S, source_address=(source, 0) if source else None)
        self._address, self._server_name = address, server_name

    def connect(self) -> None:
        super().connect()
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._address.tls:
            # Whose certificate it is, is not what these tests are about.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            self.sock = context.wrap_socket(self.sock, server_hostname=self._server_name)


class Browser:
    """`routes` says where a host name leads; others are dialled as they are. `source`: the address to come from."""

    def __init__(self, routes: dict[str, Address], source: str = "") -> None:
        self.routes, self.source = routes, source
        self.jar: dict[tuple[str, str], Cookie] = {}
        self._lock = threading.Lock()

    def cookie_header(self, url: str) -> str:
        host = urlsplit(url).hostname or ""
        sent = [c for c in self.jar.values() if host == c.domain.lstrip(".") or (c.domain[0] == "." and host.endswith(c.domain))]
        if urlsplit(url).scheme != "https":
            sent = [c for c in sent if "secure" not in c.attributes]
        return "; ".join(f"{c.name}={c.value}" for c in sent)

    def open(
        self, url: str, *headers: Header, method: str = "GET", body: bytes = b"", cookies: bool = True
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """Send and return with the headers of the answer; the caller reads the body."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        address = self.routes.get(host) or Address(host, parts.port or 80)
        connection = _Connection(address, host, self.source)
        # As the test wrote it: no cleaning of dots and slashes.
        target = url.split(parts.netloc, 1)[1] or "/"
        connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        connection.putheader("Host", parts.netloc)
        if cookies and (line := self.cookie_header(url)):
            connection.putheader("Cookie", line)
        for name, value in headers:
            connection.putheader(name, value)
        if body or method in ("POST", "PUT"):
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body or None)
        return connection, connection.getresponse()

    def send(self, url: str, *headers: Header, method: str = "GET", body: bytes = b"", cookies: bool = True) -> Reply:
        connection, response = self.open(url, *headers, method=method, body=body, cookies=cookies)
        try:
            reply = Reply(url, response.status, response.getheaders(), response.read())
        finally:
            connection.close()
        if cookies:
            self.keep(reply.cookies())
        return reply

    def keep(self, cookies: Iterable[Cookie]) -> None:
        with self._lock:
            for cookie in cookies:
                if int(cookie.attributes.get("max-age", 1)) > 0:
                    self.jar[cookie.domain, cookie.name] = cookie
                else:
                    self.jar.pop((cookie.domain, cookie.name), None)

    def follow(self, reply: Reply, until: Sequence[int] = (200,), hops: int = 10) -> Reply:
        """Go where redirects lead."""
        for _ in range(hops):
            if reply.status not in (301, 302, 303, 307, 308) or reply.status in until:
                return reply
            reply = self.send(reply.location)
        raise AssertionError(f"redirected {hops} times, last to {reply.url}")

    def session(self, name: str) -> str:
        """The value of the cookie of that name, empty without one."""
        return next((cookie.value for cookie in self.jar.values() if cookie.name == name), "")

    def clone(self) -> Browser:
        """Another browser with a copy of the cookies."""
        other = Browser(self.routes, self.source)
        other.jar = dict(self.jar)
        return other
