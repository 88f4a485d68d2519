#!/usr/bin/env python3
"""A small OpenID Connect provider for tests: it signs in whoever the test says, without a question.

Real where a relying party looks: discovery, RS256 id tokens from a fresh key, authorization code with PKCE (S256),
codes that are good once and bound to redirect address, nonce and challenge, userinfo. Not real: no password, no
consent page, no storage, one client.

Who signs in, first match wins: query `login_as`, cookie `oidc_user`, option `--user`; `nobody` means `access_denied`.
`GET /as?user=ann@home.test` sets the cookie. Further parameters there set faults for that address until the next `/as`:

    email_verified=false   the id token says that the address is not verified
    broken=true            it is signed by a key that the provider does not publish
    nonce=wrong            it answers another sign-in's nonce
    audience=wrong, issuer=wrong, expired=true
    redeem=refused         the token endpoint answers invalid_grant
    state=none             the browser comes back without state
    wait_s=1               the person takes so long

`also=bob@home.test,eve@home.test` is no fault: further accounts of this browser, which a page offers to choose from when the
request says `prompt=select_account`.

    oidc_provider.py --bind 127.0.0.1:0 --client-id hearth --client-secret-file client-secret
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import secrets
import ssl
import threading
import time
from dataclasses import dataclass, field
from html import escape
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256

CODE_LIFETIME_S = 60
TOKEN_LIFETIME_S = 3600
Json = dict[str, Any]


@dataclass
class Grant:
    """What an authorization code stands for."""

    user: str
    nonce: str | None
    redirect_uri: str
    challenge: str | None
    born_s: float = field(default_factory=time.monotonic)


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Provider:
    """State and tokens; knows nothing of HTTP."""

    def __init__(self, issuer: str, client_id: str, client_secret: str, user: str) -> None:
        self.issuer, self.client, self.user = issuer, (client_id, client_secret), user
        self.key, self.foreign_key = (rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2))
        self.key_id = secrets.token_hex(4)
        self.lock = threading.Lock()
        self.codes: dict[str, Grant] = {}
        self.access_tokens: dict[str, str] = {}
        self.faults: dict[str, dict[str, str]] = {}

    def fault(self, user: str, name: str) -> str | None:
        return self.faults.get(user, {}).get(name)

    def discovery(self) -> Json:
        return {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/jwks",
            "userinfo_endpoint": f"{self.issuer}/userinfo",
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "code_challenge_methods_supported": ["S256"],
        }

    def key_set(self) -> Json:
        numbers = self.key.public_key().public_numbers()
        n, e = (b64(value.to_bytes((value.bit_length() + 7) // 8, "big")) for value in (numbers.n, numbers.e))
        return {"keys": [{"kty": "RSA", "use": "sig", "alg": "RS256", "kid": self.key_id, "n": n, "e": e}]}

    def grant(self, user: str, query: dict[str, str]) -> str:
        code = secrets.token_urlsafe(24)
        with self.lock:
            self.codes[code] = Grant(user, query.get("nonce"), query["redirect_uri"], query.get("code_challenge"))
        return code

    def redeem(self, form: dict[str, str]) -> Json | None:
        """The answer of the token endpoint; None means `invalid_grant`."""
        with self.lock:
            grant = self.codes.pop(form.get("code", ""), None)
        if grant is None or time.monotonic() - grant.born_s > CODE_LIFETIME_S or self.fault(grant.user, "redeem"):
            return None
        challenge = b64(hashlib.sha256(form.get("code_verifier", "").encode()).digest())
        if grant.redirect_uri != form.get("redirect_uri") or (grant.challenge and grant.challenge != challenge):
            return None
        access = secrets.token_urlsafe(24)
        self.access_tokens[access] = grant.user
        return {"access_token": access, "token_type": "Bearer", "expires_in": TOKEN_LIFETIME_S, "id_token": self.id_token(grant)}

    def claims(self, user: str) -> Json:
        subject = hashlib.sha256(user.lower().encode()).hexdigest()[:21]
        verified = self.fault(user, "email_verified") != "false"
        return {"sub": subject, "email": user, "email_verified": verified, "name": user.split("@")[0].title()}

    def id_token(self, grant: Grant) -> str:
        now_s = int(time.time()) - (2 * TOKEN_LIFETIME_S if self.fault(grant.user, "expired") else 0)
        payload = {
            "iss": "https://elsewhere.test" if self.fault(grant.user, "issuer") else self.issuer,
            "aud": "somebody-else" if self.fault(grant.user, "audience") else self.client[0],
            "iat": now_s,
            "exp": now_s + TOKEN_LIFETIME_S,
            **self.claims(grant.user),
        }
        if grant.nonce:
            payload["nonce"] = b64(b"another sign-in") if self.fault(grant.user, "nonce") else grant.nonce
        header = {"alg": "RS256", "typ": "JWT", "kid": self.key_id}
        signed = ".".join(b64(json.dumps(part).encode()) for part in (header, payload))
        signer = self.foreign_key if self.fault(grant.user, "broken") else self.key
        return f"{signed}.{b64(signer.sign(signed.encode(), padding.PKCS1v15(), SHA256()))}"


class Handler(BaseHTTPRequestHandler):
    """HTTP around the provider."""

    protocol_version = "HTTP/1.1"
    provider: Provider

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        match url.path:
            case "/.well-known/openid-configuration":
                self._json(200, self.provider.discovery())
            case "/jwks":
                self._json(200, self.provider.key_set())
            case "/as" if "user" in query:
                self._as(query.pop("user"), query)
            case "/authorize":
                self._authorize(query)
            case "/userinfo":
                user = self.provider.access_tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer "))
                self._json(*((200, self.provider.claims(user)) if user else (401, {"error": "invalid_token"})))
            case _:
                self._json(404, {"error": "not_found"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        form = {name: values[0] for name, values in parse_qs(body).items()}
        if urlsplit(self.path).path != "/token":
            self._json(404, {"error": "not_found"})
        elif self._client(form) != self.provider.client:
            self._json(401, {"error": "invalid_client"})
        else:
            answer = self.provider.redeem(form)
            self._json(200 if answer else 400, answer or {"error": "invalid_grant"})

    def _client(self, form: dict[str, str]) -> tuple[str, str]:
        """Both ways a client may say who it is: HTTP Basic (each half is form-encoded), or in the form."""
        scheme, _, rest = self.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "basic":
            return form.get("client_id", ""), form.get("client_secret", "")
        name, _, secret = base64.b64decode(rest).decode().partition(":")
        return unquote(name), unquote(secret)

    def _as(self, user: str, faults: dict[str, str]) -> None:
        self.provider.faults[user] = faults
        self._json(200, {"user": user, "faults": faults}, ("Set-Cookie", f"oidc_user={user}; Path=/; HttpOnly"))

    def _authorize(self, query: dict[str, str]) -> None:
        if query.get("client_id") != self.provider.client[0] or "redirect_uri" not in query:
            self._json(400, {"error": "unknown client_id, or no redirect_uri"})
            return
        cookie = SimpleCookie(self.headers.get("Cookie", "")).get("oidc_user")
        user = query.get("login_as") or (cookie.value if cookie else "") or self.provider.user
        also = self.provider.fault(user, "also")
        if also and query.get("prompt") == "select_account" and "login_as" not in query:
            self._choice([user, *also.split(",")], query)
            return
        time.sleep(float(self.provider.fault(user, "wait_s") or 0))
        answer = {} if self.provider.fault(user, "state") else {"state": query.get("state", "")}
        if user == "nobody":
            answer["error"] = "access_denied"
        else:
            answer["code"] = self.provider.grant(user, query)
        self._json(302, {}, ("Location", f"{query['redirect_uri']}?{urlencode(answer)}"))

    def _choice(self, users: list[str], query: dict[str, str]) -> None:
        links = [f'<p><a href="?{escape(urlencode({**query, "login_as": user}))}">{escape(user)}</a></p>' for user in users]
        page = f"<!doctype html><title>Choose</title><h1>Choose an account</h1>{''.join(links)}"
        self._send(200, page.encode(), "text/html; charset=utf-8")

    def _json(self, status: int, body: Json, *headers: tuple[str, str]) -> None:
        self._send(status, json.dumps(body).encode(), "application/json", *headers)

    def _send(self, status: int, data: bytes, content_type: str, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (*headers, ("Content-Type", content_type), ("Content-Length", str(len(data)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the name is the parent's)
        """Quiet: a test that fails says what it saw."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bind", default="127.0.0.1:0", help="ADDRESS:PORT, port 0: any")
    parser.add_argument("--issuer", help="public address; default: where it listens")
    parser.add_argument("--client-id", default="hearth")
    parser.add_argument("--client-secret-file", type=Path, required=True)
    parser.add_argument("--user", default="ann@home.test", help="who signs in when the test does not say")
    parser.add_argument("--cert", type=Path, help="PEM; with --key: HTTPS")
    parser.add_argument("--key", type=Path)
    options = parser.parse_args()
    host, _, port = options.bind.rpartition(":")
    server = ThreadingHTTPServer((host, int(port)), Handler)
    scheme = "http"
    if options.cert:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.cert, options.key)
        # The handshake happens in the request's own thread: a client that connects and says nothing blocks nobody else.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        scheme = "https"
    issuer = options.issuer or f"{scheme}://{host}:{server.server_address[1]}"
    Handler.provider = Provider(issuer, options.client_id, options.client_secret_file.read_text(), options.user)
    print(f"{issuer} is a stand-in for an OpenID Connect provider", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
