"""What somebody who is not signed in can have read of a large body: next to nothing, with nothing that bounds its size.

Traefik's one middleware for that (buffering) also holds back answers, and so would break every stream. It is not needed:
both ways in answer from the headers alone.
"""

from __future__ import annotations

import contextlib
import socket
import ssl

import pytest
from chain import APP, CHAT
from conftest import House

MIB = 1024 * 1024
PROMISED = 512 * MIB
# What fits into buffers of sockets and of both programs on the way; measured: 1 to 4 MiB.
MOST = 16 * MIB


def received(connection: ssl.SSLSocket) -> bytes:
    """What is there of an answer, without waiting. Not by select: TLS itself sends something first."""
    connection.settimeout(0)
    try:
        return connection.recv(4096)
    except (ssl.SSLWantReadError, BlockingIOError):
        return b""
    finally:
        connection.settimeout(10)


def upload(port: int, host: str, path: str) -> tuple[int, bytes]:
    """Send half a gigabyte until there is an answer; how much was taken by then, and how the answer begins."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    taken, answer, block = 0, b"", b"x" * 65536
    with socket.create_connection(("127.0.0.1", port), 10) as plain, context.wrap_socket(plain, server_hostname=host) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {PROMISED}\r\n\r\n"
        connection.sendall(head.encode())
        # The answer may be lost with a connection that is closed while we send: then too nothing more was read.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
            while taken < PROMISED and not (answer := received(connection)):
                connection.sendall(block)
                taken += len(block)
    return taken, answer


@pytest.mark.parametrize(("host", "path", "status"), [
    (CHAT, "/v1/chat/completions", b"401"), (CHAT, "/page", b"302"), (APP, "/api/upload", b"401"), (APP, "/page", b"302"),
])
def test_a_large_body_of_a_stranger_is_not_read(house: House, host: str, path: str, status: bytes) -> None:
    taken, answer = upload(house.traefik.port, host, path)
    assert taken < MOST, f"{taken // MIB} MiB were taken from somebody who is not signed in"
    assert answer == b"" or answer.split(b" ")[1] == status
