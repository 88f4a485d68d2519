"""A host of the house that has been taken over: `evil.` beside `chat.`, the same site for a browser, with a certificate of its own.

It serves whatever a test puts into `pages`, sets the cookies in `cookies`, and remembers what browsers tell it.
"""

from __future__ import annotations

import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from chain import DOMAIN, Certificate

HOST = f"evil.{DOMAIN}"
URL = f"https://{HOST}"


class Handler(BaseHTTPRequestHandler):
    server: Evil

    def do_GET(self) -> None:
        self.server.told.append(dict(self.headers.items()))
        body = self.server.pages.get(self.path, "<!doctype html><title>Evil</title>").encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        for cookie in self.server.cookies:
            self.send_header("Set-Cookie", cookie)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the name is the parent's)
        """Quiet: `told` has it."""


class Evil(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, certificate: Certificate) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages: dict[str, str] = {}
        self.cookies: list[str] = []
        self.told: list[dict[str, str]] = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.certificate, certificate.key)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Browsers open connections that they do not use."""
