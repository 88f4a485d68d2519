"""Random and mutated requests, and a vendor inside the process that may answer anything. All from one seed."""

from __future__ import annotations

import base64
import copy
import io
import json
import random
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

from hearth_gateway.clock import Clock, SystemClock

TOKEN = "fuzz-token-0123456789abcdef"
HOUSE = "house-token-0123456789abcdef"
PROXY = "proxy-token-0123456789abcdef"

_TOOL = {"name": "weather", "description": "d", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}


def _call(arguments: str) -> dict[str, Any]:
    return {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}


_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQABpfZFQAAAAABJRU5ErkJggg=="
_TURNS: list[Any] = [
    {"role": "system", "content": "Be brief."},
    {
        "role": "user",
        "content": [{"type": "text", "text": "Hi"}, {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_PNG}"}}],
    },
    {"role": "assistant", "content": "Hello", "tool_calls": [_call('{"city": "Ulm"}')]},
    {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    {"role": "user", "content": "And now?"},
]
_BLOCKS: list[Any] = [
    {"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral", "ttl": "1h"}}]},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": "abc"},
            {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Ulm"}},
        ],
    },
    {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "rain"}], "is_error": False}],
    },
    {"role": "user", "content": [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": _PNG}}]},
]


def _nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


# In the place of this text comes JSON of some hundred levels, once the request is bytes: Python's own recursion
# would not let the mutator handle it.
_DEEP = "(deep)"
_DEPTHS = (150, 200, 201, 254, 255, 260, 500, 1000, 1024, 1025)
# (path, body): requests that are right, as the starting point of those that are not.
CORPUS: list[tuple[str, Any]] = [
    ("/v1/chat/completions", {"model": "sonnet", "messages": [{"role": "user", "content": "Hi"}]}),
    ("/v1/chat/completions", {"model": "other", "messages": [{"role": "user", "content": "Hi"}], "stream": True, "max_tokens": 9}),
    (
        "/v1/chat/completions",
        {
            "model": "sonnet",
            "messages": _TURNS,
            "tools": [{"type": "function", "function": _TOOL}],
            "tool_choice": "auto",
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0.5,
            "top_p": 0.9,
            "stop": ["x"],
            "user": "u",
            "seed": 1,
            "n": 1,
            "reasoning_effort": "low",
            "parallel_tool_calls": False,
            "logprobs": False,
            "metadata": {"a": "b"},
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}, "strict": True}},
        },
    ),
    ("/v1/chat/completions", {"model": "other", "messages": _TURNS, "tools": [{"type": "function", "function": _TOOL}]}),
    ("/v1/messages", {"model": "sonnet", "max_tokens": 50, "messages": [{"role": "user", "content": "Hi"}]}),
    (
        "/v1/messages",
        {
            "model": "sonnet",
            "max_tokens": 2000,
            "messages": _BLOCKS,
            "system": [{"type": "text", "text": "s"}],
            "stream": True,
            "tools": [{"name": "weather", "input_schema": {"type": "object"}}],
            "tool_choice": {"type": "any"},
            "stop_sequences": ["x"],
            "thinking": {"type": "enabled", "budget_tokens": 1024},
            "metadata": {"user_id": "u"},
            "top_k": 3,
            "temperature": 1,
        },
    ),
    ("/v1/messages", {"model": "other", "max_tokens": 5, "messages": _BLOCKS}),
    (
        "/v1/chat/completions",
        {
            "model": "sonnet",
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral", "x": _nested(50)}}]},
                {"role": "assistant", "content": None, "tool_calls": [_call(json.dumps(_nested(190)))]},
                {"role": "tool", "tool_call_id": "c1", "content": "rain"},
            ],
            "tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "default": _nested(190)}}}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"default": _nested(190)}}},
        },
    ),
    (
        "/v1/messages",
        {
            "model": "other",
            "max_tokens": 5,
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "weather", "input": _nested(190)}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "rain"}]},
            ],
            "tools": [{"name": "weather", "input_schema": {"type": "object", "default": _nested(190)}}],
        },
    ),
    ("/v1/embeddings", {"model": "embed", "input": ["a", "b"], "encoding_format": "float", "dimensions": 3}),
    ("/v1/images/generations", {"model": "draw", "prompt": "a cat", "n": 1, "size": "1024x1024"}),
    ("/v1/images/generations", {"model": "draw", "prompt": "a cat", "output_compression": 50}),
    ("/v1/models", None),
    ("/v1/models/sonnet", None),
    ("/api/me", None),
    ("/api/usage?days=3", None),
    ("/api/transparency", None),
    ("/openapi.json", None),
    ("/readyz", None),
    ("/healthz", None),
    ("/", None),
    ("/static/app.js", None),
]
_STRANGE: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    2**64,
    -(2**63) - 1,
    1e308,
    -0.0,
    1e-320,
    0.1,
    "",
    " ",
    "\0",
    "a" * 5000,
    "\U0001f600",
    "\u202e",
    "\ud800",
    "sonnet",
    "other",
    "user",
    "assistant",
    "tool",
    "system",
    "developer",
    "text",
    "image_url",
    "tool_use",
    "tool_result",
    "thinking",
    "data:image/png;base64,",
    "data:,",
    "http://127.0.0.1/x",
    "file:///etc/passwd",
    "https://[::1",
    "//",
    "{",
    "[]",
    "null",
    [],
    {},
    [[]],
    [{}],
    {"": ""},
    {"type": "text"},
    {"type": None},
    {"role": "user"},
    ["x"] * 300,
    {"type": "function"},
    {"$ref": "#"},
    "[" * 260 + "]" * 260,
    '{"a":' * 260 + "1" + "}" * 260,
    *[_DEEP] * 4,
]


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes


class Mutator:
    """Makes requests. The same ``random`` gives the same requests."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance

    def request(self) -> Request:
        chance = self.chance
        path, value = chance.choice(CORPUS)
        method = "GET" if value is None else "POST"
        body = b""
        if value is not None:
            value = copy.deepcopy(value)
            for _ in range(chance.choice((0, 1, 1, 1, 2, 3, 8))):
                value = self._mutated(value)
            body = json.dumps(value).encode().replace(json.dumps(_DEEP).encode(), self._deep())
            if chance.random() < 0.15:
                body = self._broken(body)
            if chance.random() < 0.002:
                body += b" " * 250_000  # more than the gateway of the test takes, and JSON all the same
        if chance.random() < 0.05:
            path = self._path(path)
        if chance.random() < 0.03:
            method = chance.choice(("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "BREW"))
        return Request(method, path, tuple(self._headers(method)), body)

    def _mutated(self, value: Any) -> Any:
        """One random place of a JSON value replaced, removed, repeated, renamed or nested."""
        places: list[tuple[Any, Any]] = []

        def collect(node: Any) -> None:
            if isinstance(node, dict | list):
                for key in list(node) if isinstance(node, dict) else range(len(node)):
                    places.append((node, key))
                    collect(node[key])

        collect(value)
        chance = self.chance
        if not places or chance.random() < 0.01:
            return copy.deepcopy(chance.choice(_STRANGE))
        # Long lists of the strange values would otherwise get all the mutations.
        node, key = places[min(int(len(places) * chance.random() ** 2), len(places) - 1)]
        action = chance.randrange(8)
        if action <= 3:
            node[key] = copy.deepcopy(chance.choice(_STRANGE))
        elif action == 4:
            del node[key]
        elif action == 5 and isinstance(node, list):
            node.insert(key, copy.deepcopy(node[key]))
        elif action == 6 and isinstance(node, dict):
            node[self._text()] = node.pop(key)
        else:
            for _ in range(chance.choice((1, 1, 2, 30))):
                node[key] = [node[key]] if chance.random() < 0.5 else {self._text(): node[key]}
        return value

    def _broken(self, body: bytes) -> bytes:
        chance = self.chance
        data = bytearray(body)
        for _ in range(chance.randrange(1, 6)):
            place = chance.randrange(len(data) + 1)
            action = chance.randrange(5)
            if action == 0:
                del data[place : place + chance.randrange(40)]
            elif action == 1:
                data[place:place] = chance.randbytes(chance.randrange(1, 9))
            elif action == 2:
                data[place:place] = chance.choice((b"[" * 2000, b"{" * 50, b'"', b"\\ud800", b"\xff\xfe", b"\0", b"1" * 400, b"NaN", b"-"))
            elif action == 3 and place < len(data):
                data[place] = chance.randrange(256)
            else:
                del data[place:]
        return bytes(data)

    def _deep(self) -> bytes:
        levels = self.chance.choice(_DEPTHS)
        head, tail = self.chance.choice(((b"[", b"]"), (b'{"a":', b"}")))
        return head * levels + b"1" + tail * levels

    def _path(self, path: str) -> str:
        chance = self.chance
        extra = chance.choice(
            ("/", "//", "/..", "/%2e%2e/", "%00", "%ff", "?", "?a=b&a=", "/x" * 200, ";", "?days=-1", "?days=9999999999", "?%80=%80")
        )
        return path + extra if chance.random() < 0.7 else "/" + extra + self._text()

    def _headers(self, method: str) -> list[tuple[str, str]]:
        chance = self.chance
        headers = [
            chance.choices(
                (
                    ("x-api-key", TOKEN),
                    ("Authorization", f"Bearer {TOKEN}"),
                    ("x-api-key", HOUSE),
                    ("Authorization", _basic("ann@example.org")),
                    ("Authorization", self._text()),
                    ("x-api-key", ""),
                    ("X-Nothing", ""),
                ),
                (50, 15, 10, 20, 2, 1, 2),
            )[0]
        ]
        headers.append(
            ("Content-Type", chance.choices(("application/json", "application/json; charset=utf-8", "text/plain", ""), (90, 6, 2, 2))[0])
        )
        if method != "GET" and chance.random() < 0.9:
            headers.append(("Sec-Fetch-Site", "same-origin"))
        for _ in range(chance.choice((0, 0, 0, 1, 3))):
            name = chance.choice(
                (
                    "x-hearth-end-user",
                    "Authorization",
                    "x-api-key",
                    "Origin",
                    "Accept",
                    "If-None-Match",
                    "Range",
                    "Cookie",
                    "Expect",
                    "anthropic-version",
                    "anthropic-beta",
                    "Accept-Encoding",
                    "X-Forwarded-Email",
                    "Content-Encoding",
                    "X-HTTP-Method-Override",
                )
            )
            known = ("ann@example.org", "*", "bytes=0-", "null", "2023-06-01", '""', "gzip")
            headers.append((name, chance.choice(known) if chance.random() < 0.6 else self._text()))
        return headers

    def _text(self) -> str:
        """Up to 30 characters of a header: no control characters, for those end a header line."""
        chance = self.chance
        return "".join(chance.choices(string.printable[:94] + " \xe4\xff", k=chance.randrange(30)))


def _basic(address: str) -> str:
    return "Basic " + base64.b64encode(f"{address}:{PROXY}".encode()).decode()


def environ(request: Request) -> dict[str, Any]:
    """As a WSGI server would hand it over. Headers of one name are joined, as granian does."""
    path, _, query = request.path.partition("?")
    made: dict[str, Any] = {
        "REQUEST_METHOD": request.method,
        "SCRIPT_NAME": "",
        "QUERY_STRING": query,
        "SERVER_NAME": "fuzz",
        "SERVER_PORT": "80",
        "PATH_INFO": _unquoted(path),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": "fuzz",
        "CONTENT_LENGTH": str(len(request.body)),
        "wsgi.input": io.BytesIO(request.body),
        "wsgi.input_terminated": True,
        "wsgi.errors": io.StringIO(),
        "wsgi.version": (1, 0),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "wsgi.url_scheme": "http",
    }
    for name, value in request.headers:
        key = "CONTENT_TYPE" if name == "Content-Type" else "HTTP_" + name.upper().replace("-", "_")
        given = value if value.isascii() else ""
        made[key] = f"{made[key]},{given}" if key in made else given
    return made


def _unquoted(path: str) -> str:
    return unquote_to_bytes(path.encode("latin-1", "replace")).decode("latin-1")


# --- the vendor -------------------------------------------------------------------------------------


def _sse(*events: tuple[str, Any]) -> bytes:
    return b"".join(
        (f"event: {name}\n" if name else "").encode() + b"data: " + json.dumps(data).encode() + b"\n\n" for name, data in events
    )


_ANTHROPIC = _sse(
    (
        "message_start",
        {
            "type": "message_start",
            "message": {
                "id": "m",
                "type": "message",
                "role": "assistant",
                "content": [],
                "model": "v",
                "stop_reason": None,
                "stop_sequence": None,
                "usage": {"input_tokens": 9, "output_tokens": 1, "cache_read_input_tokens": 2, "cache_creation_input_tokens": 1},
            },
        },
    ),
    ("content_block_start", {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
    ("content_block_delta", {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}}),
    ("content_block_stop", {"type": "content_block_stop", "index": 0}),
    (
        "content_block_start",
        {"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "id": "t", "name": "weather", "input": {}}},
    ),
    ("content_block_delta", {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": "{}"}}),
    ("content_block_stop", {"type": "content_block_stop", "index": 1}),
    (
        "message_delta",
        {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": {"output_tokens": 7}},
    ),
    ("message_stop", {"type": "message_stop"}),
)


def _chunk(delta: Any, reason: str | None = None, **extra: Any) -> tuple[str, Any]:
    choices = [{"index": 0, "delta": delta, "finish_reason": reason}]
    return "", {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "v", "choices": choices, **extra}


_USAGE = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14, "prompt_tokens_details": {"cached_tokens": 3}}
_OPENAI = (
    _sse(
        _chunk({"role": "assistant", "content": "Hel"}),
        _chunk({"content": "lo"}),
        _chunk({"tool_calls": [{"index": 0, "id": "t", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]}),
        _chunk({}, "stop"),
        ("", {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "v", "choices": [], "usage": _USAGE}),
    )
    + b"data: [DONE]\n\n"
)
_VECTORS = json.dumps(
    {
        "object": "list",
        "model": "v",
        "data": [{"object": "embedding", "index": index, "embedding": [0.1, 0.2, 0.3]} for index in range(2)],
        "usage": {"prompt_tokens": 2, "total_tokens": 2},
    }
).encode()
_PICTURES = json.dumps({"created": 1, "data": [{"b64_json": _PNG}]}).encode()


class FuzzVendor:
    """In place of a connection to a vendor. ``chance`` None: every answer is right; else some are broken."""

    chance: random.Random | None = None

    def __init__(self, base_url: str, _ca_file: str | None, _clock: Clock) -> None:
        self._openai = "openai" in base_url

    def post(self, path: str, headers: dict[str, str], body: bytes, connect_s: float) -> Answer:
        json.loads(body)  # what reaches a vendor is JSON, whatever came in
        kind = "application/json"
        if path == "/v1/embeddings":
            data = _VECTORS
        elif path == "/v1/images/generations":
            data = _PICTURES
        else:
            data, kind = (_OPENAI if self._openai else _ANTHROPIC), "text/event-stream"
        chance = FuzzVendor.chance
        if chance is None or chance.random() < 0.4:
            return Answer(200, {"content-type": kind}, data)
        status = chance.choice((200, 200, 200, 200, 400, 401, 403, 404, 413, 418, 429, 500, 503, 529))
        if status != 200:
            data = json.dumps({"type": "error", "error": {"type": "x", "message": "no", "code": None}}).encode()
        mutator = Mutator(chance)
        answer_headers = {"content-type": chance.choice((kind, kind, kind, "application/json", "text/html", ""))}
        if chance.random() < 0.3:
            answer_headers["retry-after"] = chance.choice(("1", "0", "-1", "x", "99999999999", "Wed, 21 Oct 2015 07:28:00 GMT", ""))
        return Answer(status, answer_headers, mutator._broken(data) if chance.random() < 0.8 else data)

    def close(self) -> None:
        pass


class Answer:
    """The head at once, the body in a few pieces."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self._pieces = [body[start : start + 700] for start in range(0, len(body), 700)]

    def wait(self, wait_s: float) -> Answer:
        return self

    def read(self, wait_s: float) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""

    def close(self) -> None:
        pass


class HastyClock(SystemClock):
    """Pauses between two tries are not what is tested."""

    def sleep(self, seconds: float) -> None:
        pass


def run(app: Callable[..., Any], request: Request) -> tuple[int, bytes]:
    """Status and body, the way a server would get them, the stream to its end."""
    statuses: list[int] = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], object]:
        statuses.append(int(status[:3]))
        return lambda data: None

    result = app(environ(request), start_response)
    try:
        body = b"".join(result)
    finally:
        close = getattr(result, "close", None)
        if close is not None:
            close()
    assert len(statuses) == 1
    return statuses[0], body
