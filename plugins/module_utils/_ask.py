# Copyright (c) The Hearth developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ask an OpenAI-compatible chat API one question and watch the answer arrive.

Standard library only: the import costs 50 ms where the Kubernetes client costs 400. The way to the
gateway is either a plain URL, or the API server's service proxy with the credentials of a kubeconfig.
"""

from __future__ import annotations

import base64
import http.client
import json
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.homelab.hearth.plugins.module_utils._kubeconfig import ApiServer

# How much of a body that is not an answer goes into a message.
EXCERPT_CHARS = 300


class AskError(Exception):
    """Why there is no answer, in one sentence that names the fix where there is one. Never holds a credential."""


@dataclass(frozen=True)
class Target:
    """Where the API is: `base` without a trailing slash, and how to prove who asks on the way there."""

    base: str
    context: ssl.SSLContext | None = None
    # Credentials for the hop in between (the API server), not for the gateway itself.
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def via_api_server(self) -> bool:
        return "/api/v1/namespaces/" in self.base


def through(api: ApiServer, namespace: str, service: str, port: int) -> Target:
    """The service proxy: the API server opens the connection to the service and passes the stream on."""
    return Target(f"{api.url}/api/v1/namespaces/{namespace}/services/{service}:{port}/proxy", api.context, api.headers)


@dataclass(frozen=True)
class Answer:
    """One streamed answer. Times are milliseconds since the request was sent."""

    text: str
    model: str
    provider: str
    first_token_ms: int
    total_ms: int
    # Events that carried words.
    chunks: int
    # Separate arrivals on the wire that carried words: a buffer in between turns many chunks into one arrival.
    arrivals: int


# ---------------------------------------------------------------------------------------------- HTTP


def _connect(target: str, context: ssl.SSLContext | None, timeout_s: float) -> http.client.HTTPConnection:
    parts = urlsplit(target)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise AskError(f"{target} is not an http or https address")
    if parts.scheme == "https":
        return http.client.HTTPSConnection(parts.hostname, parts.port, timeout=timeout_s, context=context or ssl.create_default_context())
    return http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_s)


def _send(
    target: Target, method: str, path: str, body: dict[str, Any] | None, headers: dict[str, str], timeout_s: float
) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    """Send one request; network and TLS failures become sentences."""
    parts = urlsplit(target.base)
    where = parts.netloc
    connection = _connect(target.base, target.context, timeout_s)
    payload = None if body is None else json.dumps(body).encode()
    sent = {**target.headers, **headers, "Accept": "application/json"}
    if payload is not None:
        sent["Content-Type"] = "application/json"
    try:
        connection.request(method, parts.path + path, payload, sent)
        return connection, connection.getresponse()
    except TimeoutError:
        raise AskError(f"{where} did not answer within {timeout_s:g} s") from None
    except ssl.SSLCertVerificationError as error:
        raise AskError(f"the certificate of {where} is not trusted: {error.verify_message}") from None
    except (ConnectionRefusedError, socket.gaierror) as error:
        raise AskError(f"{where} cannot be reached: {error.strerror or error}") from None
    except (OSError, http.client.HTTPException) as error:
        raise AskError(f"the connection to {where} failed: {error}") from None


def read_secret(api: ApiServer, namespace: str, name: str, key: str, timeout_s: float = 10) -> str:
    """One value of a Secret as text.

    :raises AskError: no such Secret or key, or the API server refuses.
    """
    target = Target(api.url, api.context, api.headers)
    connection, response = _send(target, "GET", f"/api/v1/namespaces/{namespace}/secrets/{name}", None, {}, timeout_s)
    try:
        status, body = response.status, response.read()
    finally:
        connection.close()
    if status != http.HTTPStatus.OK:
        raise AskError(f"the Secret {namespace}/{name} cannot be read: {_explain(status, body)}")
    value = (json.loads(body).get("data") or {}).get(key)
    if value is None:
        raise AskError(f"the Secret {namespace}/{name} has no key {key!r}")
    return base64.b64decode(value).decode().strip()


def _message_of(body: bytes) -> str:
    """The human part of an error body: OpenAI error object, Kubernetes Status, or the first line of text."""
    try:
        parsed = json.loads(body)
    except ValueError:
        return body.decode(errors="replace").strip().split("\n")[0][:EXCERPT_CHARS]
    if isinstance(parsed, dict):
        error = parsed.get("error")
        if isinstance(error, dict) and error.get("message"):
            return str(error["message"])[:EXCERPT_CHARS]
        if parsed.get("message"):
            return str(parsed["message"])[:EXCERPT_CHARS]
    return str(parsed)[:EXCERPT_CHARS]


def _explain(status: int, body: bytes) -> str:
    return f"HTTP {status}: {_message_of(body) or 'no text'}"


def _refusal(target: Target, status: int, body: bytes) -> AskError:
    """What a status other than 200 means for the person who runs the playbook."""
    said = _explain(status, body)
    try:
        parsed = json.loads(body)
    except ValueError:
        parsed = None
    # The API server answers with a Status object, the gateway with an OpenAI error object.
    from_api_server = isinstance(parsed, dict) and parsed.get("kind") == "Status"
    if from_api_server:
        if status == http.HTTPStatus.UNAUTHORIZED:
            return AskError(f"the API server refused the kubeconfig's credentials ({said}): fetch the kubeconfig anew")
        if status == http.HTTPStatus.SERVICE_UNAVAILABLE:
            return AskError(f"no pod of the gateway is ready behind its Service ({said})")
        return AskError(f"the API server did not pass the question on ({said})")
    if status == http.HTTPStatus.UNAUTHORIZED:
        return AskError(f"the gateway refused the token ({said})")
    error = parsed.get("error") if isinstance(parsed, dict) else None
    if isinstance(error, dict) and error.get("code") == "upstream_auth":
        return AskError(
            "the model provider refused the API key: put a valid key into ANTHROPIC_API_KEY (trial) "
            "or gateway_anthropic_api_key (cluster) and run again"
        )
    return AskError(f"the gateway gave no answer ({said})")


# ---------------------------------------------------------------------------------------------- stream


def events(pieces: Iterator[bytes]) -> Iterator[tuple[str, str]]:
    """Server-sent events as (event name, data) from pieces of bytes cut anywhere.

    Lines end in LF, CRLF or CR; several `data:` lines join with a newline; comment lines are dropped.
    """
    buffer = b""
    name = "message"
    data: list[str] = []

    def lines(final: bool) -> Iterator[str]:
        nonlocal buffer
        while True:
            cut = min((i for i in (buffer.find(b"\n"), buffer.find(b"\r")) if i >= 0), default=-1)
            # A lone CR at the end may be the first half of CRLF.
            if cut < 0 or (buffer[cut : cut + 1] == b"\r" and cut == len(buffer) - 1 and not final):
                return
            width = 2 if buffer[cut : cut + 2] == b"\r\n" else 1
            line, buffer = buffer[:cut], buffer[cut + width :]
            yield line.decode(errors="replace")

    def feed(line: str) -> tuple[str, str] | None:
        nonlocal name, data
        if not line:
            done = (name, "\n".join(data)) if data else None
            name, data = "message", []
            return done
        if line.startswith(":"):
            return None
        key, _colon, value = line.partition(":")
        value = value.removeprefix(" ")
        if key == "event":
            name = value
        elif key == "data":
            data.append(value)
        return None

    for piece in pieces:
        buffer += piece
        for line in lines(final=False):
            if (event := feed(line)) is not None:
                yield event
    for line in lines(final=True):
        if (event := feed(line)) is not None:
            yield event


def _delta(chunk: dict[str, Any]) -> str:
    choices = chunk.get("choices") or []
    if not choices:
        return ""
    return str((choices[0].get("delta") or {}).get("content") or "")


def first_model(target: Target, token: str, timeout_s: float) -> str:
    """The first model that the gateway offers.

    :raises AskError: refused, or no model configured.
    """
    connection, response = _send(target, "GET", "/v1/models", None, {"x-api-key": token}, timeout_s)
    try:
        status, body = response.status, response.read()
    finally:
        connection.close()
    if status != http.HTTPStatus.OK:
        raise _refusal(target, status, body)
    try:
        models = json.loads(body)["data"]
        return str(models[0]["id"])
    except (ValueError, KeyError, IndexError, TypeError):
        raise AskError("the gateway offers no model: its configuration maps no alias to a provider") from None


def ask(target: Target, token: str, question: str, model: str, min_arrivals: int, timeout_s: float) -> Answer:
    """Ask one question, streaming.

    :param token: goes out as `x-api-key`, because the API server's proxy deletes `Authorization`.
    :param min_arrivals: the fewest separate arrivals that count as streamed.
    :param timeout_s: the longest silence on the connection, and the limit for the whole answer.
    :raises AskError: refused, failed half-way, cut, empty, or not streamed.
    """
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": question}]}
    started = time.monotonic()
    connection, response = _send(target, "POST", "/v1/chat/completions", body, {"x-api-key": token}, timeout_s)
    try:
        if response.status != http.HTTPStatus.OK:
            raise _refusal(target, response.status, response.read())
        kind = response.headers.get_content_type()
        if kind != "text/event-stream":
            raise AskError(f"the answer is {kind}, not an event stream: something on the way does not stream")
        return _read_answer(response, started, model, min_arrivals, timeout_s)
    finally:
        connection.close()


def _read_answer(response: http.client.HTTPResponse, started: float, model: str, min_arrivals: int, timeout_s: float) -> Answer:
    arrived = 0  # pieces read so far
    words: list[str] = []
    carriers: set[int] = set()  # pieces that carried words
    first_ms = 0
    finished = False
    reason = None

    def pieces() -> Iterator[bytes]:
        nonlocal arrived
        while True:
            if time.monotonic() - started > timeout_s:
                raise AskError(f"the answer was not complete after {timeout_s:g} s ({len(words)} chunks so far)")
            try:
                piece = response.read1(65536)
            except TimeoutError:
                raise AskError(f"the stream fell silent for {timeout_s:g} s after {len(words)} chunks") from None
            except (OSError, http.client.HTTPException) as error:
                raise AskError(f"the stream broke after {len(words)} chunks: {error or type(error).__name__}") from None
            if not piece:
                return
            arrived += 1
            yield piece

    for name, data in events(pieces()):
        if data == "[DONE]":
            finished = True
            break
        try:
            chunk = json.loads(data)
        except ValueError:
            raise AskError(f"the stream holds an event that is not JSON after {len(words)} chunks") from None
        if name == "error" or not isinstance(chunk, dict) or chunk.get("error"):
            raise AskError(f"the gateway ended the stream with an error after {len(words)} chunks: {_message_of(data.encode())}")
        model = str(chunk.get("model") or model)
        for choice in chunk.get("choices") or []:
            reason = choice.get("finish_reason") or reason
        if text := _delta(chunk):
            if not words:
                first_ms = round((time.monotonic() - started) * 1000)
            words.append(text)
            carriers.add(arrived)
    if not finished:
        raise AskError(f"the stream ended without [DONE] after {len(words)} chunks: it was cut on the way")
    if not words:
        raise AskError(f"the gateway answered without a word (finish reason: {reason})")
    if len(carriers) < min_arrivals:
        raise AskError(
            f"the answer of {len(words)} chunks came in {len(carriers)} piece(s), "
            f"at least {min_arrivals} are expected: something between here and the gateway buffers it"
        )
    return Answer(
        text="".join(words),
        model=model,
        provider=response.headers.get("x-hearth-provider") or "unknown",
        first_token_ms=first_ms,
        total_ms=round((time.monotonic() - started) * 1000),
        chunks=len(words),
        arrivals=len(carriers),
    )
