#!/usr/bin/env python3
"""A stand-in for Anthropic's Messages API. Standard library only; not the real thing.

It is strict where the vendor is strict: the key, the header anthropic-version, and a body in
which every key must be known. What it does not implement it refuses with 400, so a gateway that
sends something new fails a test here and not at the vendor.

    python3 anthropic_server.py --bind 127.0.0.1:8444 --api-key KEY [--cert F --key F] [--record FILE]

The answer is an echo, so a test can foretell it: "You said: <last user text>". One token per word.
Faults are chosen by the model, as `<any name>+<scenario>`, or by the header `x-mock-scenario`:

    slow            a word every 0.2 s                 slow-headers    10 s before anything
    silent          200, headers, then nothing         silent-after    two words, then nothing
    pings           pings for 3 s, then the answer     cut             the connection breaks after two words
    error-before    error event before any content     error-after     error event after two words
    overloaded      overloaded_error before content    eof             a clean end without message_stop
    garbage         neither SSE nor JSON               garbage-after   two words, then broken JSON
    big-event       one event of 5 MB                  close           closes without a word
    html            502 with an HTML page              quote           400 that quotes the prompt
    json            a JSON document, not a stream      gzip            compressed although nobody asked
    odd-sse         CR LF, comments, multi-line data, bytes split at odd places, no final blank line
    tool            calls the request's first tool     tool-empty      the same, without arguments
    thinking        a thinking block before the text   cache           usage with cached tokens
    max-tokens, refusal, unknown-stop                  stop reasons
    401 403 404 413 429 429-bare 500 503 529           error responses; 429 has Retry-After: 7

`--record` appends one JSON line per request: what was sent, never what was said (lengths only).
"""

from __future__ import annotations

import argparse
import gzip
import json
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

# The newer version refuses sampling parameters (platform.claude.com, "Versions").
API_VERSIONS = {"2023-06-01": set(), "2026-10-21": {"temperature", "top_p"}}
MAX_BODY_BYTES = 32 * 1024 * 1024

Block = dict[str, Any]
Json = dict[str, Any]


class BadRequestError(Exception):
    """What the vendor would answer with 400."""


# --- the request, checked key by key -----------------------------------------------------------

REQUEST_KEYS = {
    "model": str, "max_tokens": int, "messages": list, "system": (list, str), "stream": bool,
    "temperature": (int, float), "top_p": (int, float), "stop_sequences": list, "tools": list,
    "tool_choice": dict,
}  # fmt: skip
BLOCK_KEYS = {
    "text": {"type", "text", "cache_control"},
    "image": {"type", "source", "cache_control"},
    "document": {"type", "source", "title", "cache_control"},
    "tool_use": {"type", "id", "name", "input", "cache_control"},
    "tool_result": {"type", "tool_use_id", "content", "is_error", "cache_control"},
}
ROLE_BLOCKS = {"user": {"text", "image", "document", "tool_result"}, "assistant": {"text", "tool_use"}}
IMAGE_TYPES = {"image/png", "image/jpeg", "image/gif", "image/webp"}


def need(condition: object, message: str) -> None:
    if not condition:
        raise BadRequestError(message)


def check_request(body: Any, version: str) -> None:
    """Raises ``BadRequestError`` for anything that version of the API does not take, or that we do not know."""
    need(isinstance(body, dict), "the body must be an object")
    for key, value in body.items():
        need(
            key in REQUEST_KEYS and key not in API_VERSIONS[version],
            f"{key}: Extra inputs are not permitted",
        )
        kinds = REQUEST_KEYS[key]
        need(isinstance(value, kinds), f"{key}: wrong type")  # type: ignore[arg-type]
    for key in ("model", "max_tokens", "messages"):
        need(key in body, f"{key}: Field required")
    need(body["max_tokens"] >= 1, "max_tokens: must be at least 1")
    need(0 <= body.get("temperature", 1) <= 1, "temperature: range: 0..1")
    need(not ("temperature" in body and "top_p" in body), "temperature and top_p cannot both be specified")
    need(
        all(item.strip() for item in body.get("stop_sequences", [])),
        "stop_sequences: must contain non-whitespace",
    )
    if isinstance(body.get("system"), list):
        for block in body["system"]:
            check_block(block, {"text"})
    tools = check_tools(body)
    check_messages(body["messages"], tools)
    need(count_cache_control(body) <= 4, "A maximum of 4 blocks with cache_control may be provided")


def check_messages(messages: list[Any], tools: set[str]) -> None:
    need(messages, "messages: at least one message is required")
    previous_role = None
    open_calls: set[str] = set()
    for index, message in enumerate(messages):
        need(isinstance(message, dict) and set(message) == {"role", "content"}, f"messages.{index}: bad keys")
        role = message["role"]
        need(role in ROLE_BLOCKS, f"messages.{index}.role: must be user or assistant")
        # The vendor would join neighbours; Bedrock, which gets the same history, refuses them.
        need(role != previous_role, f"messages.{index}: roles must alternate")
        need(index or role == "user", "messages: first message must use the user role")
        content = message["content"]
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        need(isinstance(content, list) and content, f"messages.{index}.content: must not be empty")
        for block in content:
            check_block(block, ROLE_BLOCKS[role])
        results = [block["tool_use_id"] for block in content if block["type"] == "tool_result"]
        need(
            set(results) == open_calls,
            f"messages.{index}: tool_use ids without tool_result blocks, or the reverse",
        )
        need(
            all(block["type"] == "tool_result" for block in content[: len(results)]),
            f"messages.{index}: tool_result blocks must come first",
        )
        calls = [block for block in content if block["type"] == "tool_use"]
        need(all(call["name"] in tools for call in calls), f"messages.{index}: tool_use of an unknown tool")
        open_calls = {call["id"] for call in calls}
        previous_role = role
    need(not open_calls, "messages: tool_use ids were found without tool_result blocks")
    last = messages[-1]
    if (
        last["role"] == "assistant"
        and isinstance(last["content"], list)
        and last["content"][-1]["type"] == "text"
    ):
        text = last["content"][-1]["text"]
        need(text == text.rstrip(), "messages: final assistant content cannot end with trailing whitespace")


def check_block(block: Any, allowed: set[str]) -> None:
    need(isinstance(block, dict) and block.get("type") in allowed, "content: block type not allowed here")
    need(set(block) <= BLOCK_KEYS[block["type"]], f"content.{block['type']}: Extra inputs are not permitted")
    if "cache_control" in block:
        need(block["cache_control"].get("type") == "ephemeral", "cache_control: type must be ephemeral")
    kind = block["type"]
    if kind == "text":
        need(
            isinstance(block["text"], str) and block["text"].strip(),
            "messages: text content blocks must be non-empty",
        )
    elif kind == "image":
        check_source(block["source"], IMAGE_TYPES)
    elif kind == "document":
        check_source(block["source"], {"application/pdf"})
    elif kind == "tool_use":
        need(isinstance(block["input"], dict), "tool_use.input: Input should be an object")
        check_name(block["id"], 1000)
    elif kind == "tool_result":
        check_name(block["tool_use_id"], 1000)
        content = block.get("content", [])
        for inner in content if isinstance(content, list) else []:
            check_block(inner, {"text", "image"})


def check_source(source: Json, types: set[str]) -> None:
    if source.get("type") == "base64":
        need(set(source) == {"type", "media_type", "data"}, "source: bad keys")
        need(source["media_type"] in types, "source.media_type: not supported")
    else:
        need(set(source) == {"type", "url"} and source["type"] == "url", "source: bad keys")
        need(source["url"].startswith("https://"), "source.url: must be https")


def check_name(value: Any, length: int) -> None:
    good = isinstance(value, str) and 0 < len(value) <= length
    need(
        good and all(c.isascii() and (c.isalnum() or c in "_-") for c in value),
        "String should match pattern '^[a-zA-Z0-9_-]+$'",
    )


def check_tools(body: Json) -> set[str]:
    names = set()
    for tool in body.get("tools", []):
        need(
            set(tool) <= {"name", "description", "input_schema", "strict", "cache_control"},
            "tools: Extra inputs are not permitted",
        )
        check_name(tool["name"], 128)
        need(tool["name"] not in names, "tools: Tool names must be unique")
        need(tool["input_schema"].get("type") == "object", "tools: input_schema.type: must be object")
        names.add(tool["name"])
    choice = body.get("tool_choice")
    if choice is not None:
        need(names, "tool_choice may only be specified while providing tools")
        need(
            set(choice) <= {"type", "name", "disable_parallel_tool_use"},
            "tool_choice: Extra inputs are not permitted",
        )
        need(choice["type"] in ("auto", "any", "none", "tool"), "tool_choice.type: unknown")
        need((choice["type"] == "tool") == ("name" in choice), "tool_choice.name: only with type tool")
        need(
            choice["type"] != "none" or "disable_parallel_tool_use" not in choice,
            "tool_choice.none: Extra inputs",
        )
    return names


def count_cache_control(value: Any) -> int:
    if isinstance(value, dict):
        return ("cache_control" in value) + sum(count_cache_control(item) for item in value.values())
    return sum(count_cache_control(item) for item in value) if isinstance(value, list) else 0


def last_user_text(body: Json) -> str:
    for message in reversed(body["messages"]):
        if message["role"] == "user":
            content = message["content"]
            if isinstance(content, str):
                return content
            texts = [block["text"] for block in content if block["type"] == "text"]
            return texts[-1] if texts else "(no text)"
    return "(no text)"


def count_words(value: Any) -> int:
    if isinstance(value, str):
        return len(value.split())
    if isinstance(value, dict):
        return sum(count_words(item) for key, item in value.items() if key not in ("type", "role", "data"))
    return sum(count_words(item) for item in value) if isinstance(value, list) else 0


# --- the answer ---------------------------------------------------------------------------------

ERRORS = {
    "401": (401, "authentication_error", "invalid x-api-key"),
    "403": (403, "permission_error", "Your API key does not have permission to use the specified resource."),
    "404": (404, "not_found_error", "model: not found"),
    "413": (413, "request_too_large", "Request exceeds the maximum size"),
    "429": (429, "rate_limit_error", "This request would exceed your rate limit"),
    "429-bare": (429, "rate_limit_error", "This request would exceed your rate limit"),
    "500": (500, "api_error", "Internal server error"),
    "503": (503, "api_error", "Service unavailable"),
    "529": (529, "overloaded_error", "Overloaded"),
}
STOP_REASONS = {"max-tokens": "max_tokens", "refusal": "refusal", "unknown-stop": "something_new"}


class Answer:
    """The content blocks, stop reason and usage for one request."""

    def __init__(self, body: Json, scenario: str) -> None:
        self.model = body["model"]
        self.stop_reason = STOP_REASONS.get(scenario, "end_turn")
        text = f"You said: {last_user_text(body)}"
        self.blocks: list[Block] = []
        if scenario == "thinking":
            self.blocks.append({"type": "thinking", "thinking": "Let me think. ", "signature": "c2lnbmVk"})
        if scenario.startswith("tool"):
            need(body.get("tools"), "the scenario needs tools")
            arguments = {} if scenario == "tool-empty" else {"place": "Zürich", "days": 3}
            self.blocks.append(
                {"type": "tool_use", "id": "toolu_01", "name": body["tools"][0]["name"], "input": arguments}
            )
            self.stop_reason = "tool_use"
        else:
            words = text.split(" ")
            if scenario not in STOP_REASONS and len(words) > body["max_tokens"]:
                words, self.stop_reason = words[: body["max_tokens"]], "max_tokens"
            for sequence in body.get("stop_sequences", []):
                joined = " ".join(words)
                if sequence in joined:
                    words, self.stop_reason = joined[: joined.index(sequence)].split(" "), "stop_sequence"
            self.blocks.append({"type": "text", "text": " ".join(words)})
        self.usage: Json = {
            "input_tokens": count_words(body["messages"]) + count_words(body.get("system", "")),
            "output_tokens": sum(count_words(block) for block in self.blocks),
        }
        if scenario == "cache":
            self.usage |= {
                "cache_read_input_tokens": 1000,
                "cache_creation_input_tokens": 200,
                "cache_creation": {"ephemeral_5m_input_tokens": 150, "ephemeral_1h_input_tokens": 50},
            }

    def message(self) -> Json:
        return {
            "id": "msg_mock", "type": "message", "role": "assistant", "model": self.model,
            "content": self.blocks, "stop_reason": self.stop_reason, "stop_sequence": None,
            "usage": self.usage,
        }  # fmt: skip

    def events(self) -> Iterator[Json]:
        start = self.message() | {"content": [], "stop_reason": None}
        start["usage"] = self.usage | {"output_tokens": 1}
        yield {"type": "message_start", "message": start}
        for index, block in enumerate(self.blocks):
            yield from self._block(index, block)
        yield {
            "type": "message_delta",
            "delta": {"stop_reason": self.stop_reason, "stop_sequence": None},
            # As the vendor does it: cumulative, and without the input tokens.
            "usage": {"output_tokens": self.usage["output_tokens"]},
        }
        yield {"type": "message_stop"}

    def _block(self, index: int, block: Block) -> Iterator[Json]:
        def delta(**fields: Any) -> Json:
            return {"type": "content_block_delta", "index": index, "delta": fields}

        if block["type"] == "text":
            yield {
                "type": "content_block_start",
                "index": index,
                "content_block": {"type": "text", "text": ""},
            }
            if index == 0:
                yield {"type": "ping"}
            for number, word in enumerate(block["text"].split(" ")):
                yield delta(type="text_delta", text=word if number == 0 else f" {word}")
        elif block["type"] == "thinking":
            yield {
                "type": "content_block_start", "index": index,
                "content_block": {"type": "thinking", "thinking": "", "signature": ""},
            }  # fmt: skip
            yield delta(type="thinking_delta", thinking=block["thinking"])
            yield delta(type="signature_delta", signature=block["signature"])
        else:
            yield {"type": "content_block_start", "index": index, "content_block": block | {"input": {}}}
            yield delta(type="input_json_delta", partial_json="")
            if block["input"]:
                text = json.dumps(block["input"], ensure_ascii=False)
                for start in range(0, len(text), 7):
                    yield delta(type="input_json_delta", partial_json=text[start : start + 7])
        yield {"type": "content_block_stop", "index": index}


def sse(event: Json) -> bytes:
    return f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n".encode()


def odd_sse(events: Iterator[Json]) -> Iterator[bytes]:
    """Legal SSE as nobody expects it, cut every 7 bytes (which splits characters too)."""
    data = b"\xef\xbb\xbf: a comment\r\n\r\n"
    for event in events:
        lines = json.dumps(event, ensure_ascii=False, indent=1).split("\n")
        data += f"event:{event['type']}\r\n".encode() + b"id: 7\r\nretry: 10\r\n"
        data += b"".join(
            b"data:" + (b" " if number % 2 else b"") + line.encode() + b"\r\n"
            for number, line in enumerate(lines)
        )
        data += b"\r\n"
    data = data.removesuffix(b"\r\n\r\n")
    for start in range(0, len(data), 7):
        yield data[start : start + 7]


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def __init__(
        self, address: tuple[str, int], api_key: str, record: Path | None, tls: ssl.SSLContext | None
    ) -> None:
        super().__init__(address, Handler)
        self.api_key = api_key
        self.tls = tls
        self._record_file = record
        self._lock = threading.Lock()
        self.pace_s = 0.0  # seconds after each piece of text

    def finish_request(self, request: Any, client_address: Any) -> None:
        # In the connection's own thread: a client that stalls in the handshake holds up nobody else.
        if self.tls is not None:
            request.settimeout(10)
            request = self.tls.wrap_socket(request, server_side=True)
        request.settimeout(120)
        super().finish_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave are part of the tests; anything else is a fault of this mock."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            print(f"mock: {type(error).__name__}: {error}", file=sys.stderr, flush=True)

    def record(self, **fields: Any) -> None:
        if self._record_file is None:
            return
        with self._lock, self._record_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(fields) + "\n")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each small event waits 40 ms for the acknowledgement of the last
    server: Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        self._json(200 if self.path == "/healthz" else 404, {"mock": True})

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        if length > MAX_BODY_BYTES:
            self._error(413, "request_too_large", "Request exceeds the maximum size")
            return
        raw = self.rfile.read(length)
        body: Any = None
        problem = ""
        status, kind = 400, "invalid_request_error"
        try:
            if self.path != "/v1/messages":
                status, kind = 404, "not_found_error"
                raise BadRequestError("no such path")
            need(
                self.headers.get("content-type") == "application/json",
                "content-type: must be application/json",
            )
            version = self.headers.get("anthropic-version", "")
            need(version in API_VERSIONS, "anthropic-version: header is required")
            # The vendor's own SDKs send the key as a bearer token since October 2026.
            key = self.headers.get("x-api-key") or self.headers.get("authorization", "").removeprefix("Bearer ")
            if key != self.server.api_key:
                status, kind = 401, "authentication_error"
                raise BadRequestError("invalid x-api-key")
            body = json.loads(raw)
            check_request(body, version)
        except BadRequestError as error:
            problem = str(error)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"malformed request: {type(error).__name__}"
        scenario = "normal"
        if isinstance(body, dict) and isinstance(body.get("model"), str):
            scenario = self.headers.get("x-mock-scenario") or body["model"].partition("+")[2] or "normal"
        self._started = time.monotonic()
        self._outcome, self._sent = problem or "complete", 0
        try:
            if problem:
                self._error(status, kind, problem)
            else:
                self._answer(body, scenario)
        except BadRequestError as error:
            self._outcome = str(error)
            self._error(400, "invalid_request_error", str(error))
        except OSError:
            self._outcome = "client-left"
            self.close_connection = True
        finally:
            self.server.record(**self._metadata(body, scenario, len(raw)))

    def _metadata(self, body: Any, scenario: str, size: int) -> Json:
        known = body if isinstance(body, dict) else {}
        messages = known.get("messages")
        if not isinstance(messages, list):
            messages = []
        return {
            "scenario": scenario,
            "outcome": self._outcome,
            "seconds": round(time.monotonic() - self._started, 3),
            "events_sent": self._sent,
            "body_bytes": size,
            "keys": sorted(known),
            "model": known.get("model"),
            "stream": known.get("stream"),
            "max_tokens": known.get("max_tokens"),
            "roles": [message.get("role") for message in messages if isinstance(message, dict)],
            "blocks": [
                [block.get("type") for block in message["content"]]
                for message in messages
                if isinstance(message, dict) and isinstance(message.get("content"), list)
            ],
            "tools": len(known.get("tools") or []),
            "headers": sorted(name.lower() for name in self.headers),
            "finished_at": time.time(),
        }

    # --- answers

    def _answer(self, body: Json, scenario: str) -> None:
        if scenario == "close":
            self.close_connection = True
            return
        if scenario == "slow-headers":
            self._sleep_while_connected(10)
        if scenario in ERRORS:
            status, kind, message = ERRORS[scenario]
            headers = {"retry-after": "7"} if scenario == "429" else {}
            self._error(status, kind, message, headers)
            return
        if scenario == "quote":
            self._error(400, "invalid_request_error", f"messages.0: cannot use {last_user_text(body)!r} here")
            return
        if scenario == "html":
            self._send(502, "text/html", b"<html><body>Bad gateway</body></html>")
            return
        answer = Answer(body, scenario)
        if not body.get("stream") or scenario == "json":
            self._json(200, answer.message())
            return
        self._stream(answer, scenario)

    def _stream(self, answer: Answer, scenario: str) -> None:
        compress = scenario == "gzip"
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.send_header("request-id", "req_mock")
        if compress:
            self.send_header("content-encoding", "gzip")
        self.end_headers()
        if compress:
            self._chunk(gzip.compress(b"".join(sse(event) for event in answer.events())))
            self._chunk(b"")
            return
        if scenario == "garbage":
            self._chunk(b"\x00\xffthis is not an event stream\ndata: neither is this\n\n")
            self._chunk(b"")
            return
        if scenario == "odd-sse":
            for piece in odd_sse(answer.events()):
                self._chunk(piece)
            self._chunk(b"")
            return
        texts = 0
        for event in answer.events():
            is_text = event["type"] == "content_block_delta"
            if is_text and texts in (0, 2) and self._fault(scenario, texts):
                return
            texts += is_text
            self._chunk(sse(event))
            self._sent += 1
            if is_text and (scenario == "slow" or self.server.pace_s):
                self._sleep_while_connected(self.server.pace_s or 0.2)
            if scenario == "eof" and texts == 2:
                break
        self._chunk(b"")

    def _fault(self, scenario: str, texts: int) -> bool:
        """The fault of ``scenario`` that is due before text number ``texts``; True if the stream is over."""
        if texts == 0:
            if scenario in ("error-before", "overloaded"):
                kind = "overloaded_error" if scenario == "overloaded" else "api_error"
                self._chunk(sse({"type": "error", "error": {"type": kind, "message": "Mock failure"}}))
                self._chunk(b"")
                return True
            if scenario == "silent":
                self._sleep_while_connected(60)
                return True
            if scenario == "pings":
                for _ in range(6):
                    self._chunk(sse({"type": "ping"}))
                    self._sleep_while_connected(0.5)
            if scenario == "big-event":
                self._chunk(b"data: " + b"x" * 5_000_000 + b"\n\n")
            return False
        if scenario == "error-after":
            self._chunk(sse({"type": "error", "error": {"type": "api_error", "message": "Mock failure"}}))
            self._chunk(b"")
        elif scenario == "cut":
            self.close_connection = True  # without the last chunk: the body is visibly incomplete
        elif scenario == "silent-after":
            self._sleep_while_connected(60)
        elif scenario == "garbage-after":
            self._chunk(b'data: {"type": "content_block_delta", "delta": {"ty\n\n')
            self._chunk(b"")
        else:
            return False
        return True

    def _sleep_while_connected(self, seconds: float) -> None:
        """Sleep, but notice within 50 ms that the client has gone: the record has to say when."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.connection.settimeout(min(left, 0.05))
            try:
                if not self.connection.recv(1):
                    raise ConnectionResetError("the client left")
            except (TimeoutError, ssl.SSLWantReadError):
                continue
            finally:
                self.connection.settimeout(120)

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _json(self, status: int, value: Json, headers: dict[str, str] | None = None) -> None:
        self._send(status, "application/json", json.dumps(value).encode(), headers)

    def _error(self, status: int, kind: str, message: str, headers: dict[str, str] | None = None) -> None:
        if self._is_new():
            self._outcome = (
                f"{status} {kind}: {message}" if kind != "invalid_request_error" else self._outcome
            )
        error = {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_mock"}
        self._json(status, error, headers)

    def _is_new(self) -> bool:
        return getattr(self, "_outcome", "") == "complete"

    def _send(
        self, status: int, content_type: str, body: bytes, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    parser = argparse.ArgumentParser(description="A stand-in for Anthropic's Messages API.")
    parser.add_argument("--bind", required=True, metavar="ADDRESS:PORT", help="port 0 chooses one")
    parser.add_argument("--api-key", required=True)
    parser.add_argument("--cert", help="PEM certificate chain; with --key the mock speaks HTTPS")
    parser.add_argument("--key", help="PEM private key")
    parser.add_argument("--record", type=Path, metavar="FILE")
    parser.add_argument("--pace-s", type=float, default=0.0, help="pause after each piece of text, as a vendor has")
    arguments = parser.parse_args()
    if bool(arguments.cert) != bool(arguments.key):
        parser.error("--cert and --key go together")
    tls = None
    if arguments.cert:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(arguments.cert, arguments.key)
    host, _, port = arguments.bind.rpartition(":")
    server = Server((host.strip("[]"), int(port)), arguments.api_key, arguments.record, tls)
    server.pace_s = arguments.pace_s
    scheme = "https" if tls else "http"
    print(f"mock Anthropic (a stand-in) on {scheme}://{host}:{server.server_address[1]}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
