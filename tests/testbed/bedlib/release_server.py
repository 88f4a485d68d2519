"""A mirror of the k3s release downloads over HTTPS, with faults that a test asks for by the address.

    /k3s/download/<version>/<file>          the file; `+` in the version may be written as %2B
    /faults/wrong-checksum/k3s/download/…   the checksum file names another checksum for every file
    /faults/cut/k3s/download/…              the connection closes after half of a binary
    /faults/slow/k3s/download/…             a binary comes at 2 MB a second: time to act in the middle
    anything else                           404

Run: python3 release_server.py --bind 10.77.0.1:8443 --cert FILE --key FILE --root DIR, where DIR has a folder
a version.
"""

from __future__ import annotations

import argparse
import http.server
import re
import shutil
import ssl
import time
import urllib.parse
from pathlib import Path

ADDRESS = re.compile(r"(?:/faults/(?P<fault>[a-z-]+))?/k3s/download/(?P<version>[^/]+)/(?P<file>[^/]+)")
FAULTS = {None, "wrong-checksum", "cut", "slow"}
CHUNK = 1 << 16
SLOW_BYTES_PER_S = 2_000_000


def wrong(checksums: bytes) -> bytes:
    """The same checksum file with the first digit of every checksum changed."""
    return re.sub(rb"(?m)^[0-9a-f]", lambda digit: b"1" if digit[0] == b"0" else b"0", checksums)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves the files below `root`; keeps no connection open, so that a cut is a cut."""

    root: Path

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        found = ADDRESS.fullmatch(path)
        file = self.root / found["version"] / found["file"] if found else self.root
        # A version or file named `..` would leave the folder.
        inside = found is not None and ".." not in (found["version"], found["file"]) and file.is_file()
        if found is None or not inside or found["fault"] not in FAULTS:
            self.send_error(404)
            return
        fault = found["fault"]
        checksums = found["file"].startswith("sha256sum-")
        body = wrong(file.read_bytes()) if checksums and fault == "wrong-checksum" else None
        size = file.stat().st_size if body is None else len(body)
        self.send_response(200)
        self.send_header("Content-Type", "text/plain" if checksums else "application/octet-stream")
        self.send_header("Content-Length", str(size))
        self.send_header("Last-Modified", self.date_time_string(file.stat().st_mtime))
        self.end_headers()
        if not with_body:
            return
        if body is not None:
            self.wfile.write(body)
        elif checksums or fault not in ("cut", "slow"):
            with file.open("rb") as content:
                shutil.copyfileobj(content, self.wfile, CHUNK)
        else:
            self._send_badly(file, size // 2 if fault == "cut" else size, pause=fault == "slow")

    def _send_badly(self, file: Path, size: int, pause: bool) -> None:
        with file.open("rb") as content:
            while size > 0 and (chunk := content.read(min(CHUNK, size))):
                self.wfile.write(chunk)
                size -= len(chunk)
                if pause:
                    time.sleep(len(chunk) / SLOW_BYTES_PER_S)

    def handle(self) -> None:
        try:
            super().handle()
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError) as error:
            self.log_message("client went away: %s", error)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--bind", "--cert", "--key", "--root"):
        parser.add_argument(name, required=True)
    options = parser.parse_args()
    host, port = options.bind.rsplit(":", 1)
    Handler.root = Path(options.root)
    server = http.server.ThreadingHTTPServer((host, int(port)), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(options.cert, options.key)
    # The handshake happens in the request's own thread: a client that connects and says nothing blocks nobody
    # else.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.serve_forever()


if __name__ == "__main__":
    main()
