#!/usr/bin/env python3
"""A stand-in for Anthropic's Messages API. Standard library only; not the real thing.

It is strict where the vendor is strict: the key, the header anthropic-version, and a body in
which every key must be known. What it does not implement it refuses with 400, so a gateway that
sends something new fails a test here and not at the vendor.

    python3 anthropic_server.py --bind 127.0.0.1:8444 --api-key KEY [--cert F --key F] [--record FILE]

The answer is an echo, so a test can foretell it: "You said: <last user text>", or, when JSON is asked for,
an object with that text in every property of the schema. One token per word.
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
    thinking-pings  a thinking block that shows nothing but pings for 3 s, before the text
    max-tokens, refusal, unknown-stop                  stop reasons
    400 401 402 403 404 408 413 429 429-bare 500 502 503 529   error responses; 429 has Retry-After: 7

`--record` appends one JSON line per request: what was sent, never what was said (lengths only).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from vendor_server import Frame, Json, RefusedError, need, serve, words_in

# The newer version refuses sampling parameters (platform.claude.com, "Versions").
API_VERSIONS = {"2023-06-01": set(), "2026-10-21": {"temperature", "top_p"}}

Block = dict[str, Any]


# --- the request, checked key by key -----------------------------------------------------------

REQUEST_KEYS = {
    "model": str, "max_tokens": int, "messages": list, "system": (list, str), "stream": bool,
    "temperature": (int, float), "top_p": (int, float), "stop_sequences": list, "tools": list,
    "tool_choice": dict, "top_k": int, "thinking": dict, "output_config": dict, "metadata": dict,
}  # fmt: skip
BLOCK_KEYS = {
    "text": {"type", "text", "cache_control"},
    "image": {"type", "source", "cache_control"},
    "document": {"type", "source", "title", "cache_control"},
    "tool_use": {"type", "id", "name", "input", "cache_control"},
    "tool_result": {"type", "tool_use_id", "content", "is_error", "cache_control"},
    "thinking": {"type", "thinking", "signature"},
    "redacted_thinking": {"type", "data"},
}
ROLE_BLOCKS = {
    "user": {"text", "image", "document", "tool_result"},
    "assistant": {"text", "tool_use", "thinking", "redacted_thinking"},
    "system": {"text"},
}
# The models that take system messages in the middle of a conversation; others answer 400.
LATER_SYSTEM = ("claude-opus-4-8",)
SIGNATURE = "c2lnbmVk"
IMAGE_TYPES = {"image/png", "image/jpeg", "image/gif", "image/webp"}


def check_request(body: Any, version: str) -> None:
    """Raises ``RefusedError`` for anything that version of the API does not take, or that we do not know."""
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
    check_thinking(body)
    output = body.get("output_config", {})
    need(set(output) <= {"effort", "format"}, "output_config: Extra inputs are not permitted")
    need(output.get("effort", "high") in ("low", "medium", "high", "xhigh", "max"), "output_config.effort: Input should be one of")
    need(output.get("format", {"type": "json_schema"})["type"] == "json_schema", "output_config.format.type: must be json_schema")
    need(set(body.get("metadata", {})) <= {"user_id"}, "metadata: Extra inputs are not permitted")
    tools = check_tools(body)
    check_messages(body["messages"], tools, body["model"].startswith(LATER_SYSTEM))
    need(count_cache_control(body) <= 4, "A maximum of 4 blocks with cache_control may be provided")


def check_thinking(body: Json) -> None:
    thinking = body.get("thinking")
    if thinking is None:
        return
    kind = thinking.get("type")
    need(kind in ("enabled", "adaptive", "disabled", "between_tools"), "thinking.type: unknown")
    need(set(thinking) <= {"type", "display", "budget_tokens"}, "thinking: Extra inputs are not permitted")
    need((kind == "enabled") == ("budget_tokens" in thinking), "thinking.budget_tokens: only with type enabled")
    if kind == "enabled":
        need(1024 <= thinking["budget_tokens"] < body["max_tokens"], "thinking.budget_tokens: must be >= 1024 and < max_tokens")
        need(body.get("temperature", 1) == 1 and "top_k" not in body, "temperature, top_k: not together with thinking")


def check_messages(messages: list[Any], tools: set[str], later_system: bool) -> None:
    need(messages, "messages: at least one message is required")
    previous_role = None
    open_calls: set[str] = set()
    for index, message in enumerate(messages):
        need(isinstance(message, dict) and set(message) == {"role", "content"}, f"messages.{index}: bad keys")
        role = message["role"]
        need(role in ROLE_BLOCKS, f"messages.{index}.role: must be user or assistant")
        if role == "system":
            need(later_system, "role 'system' is not supported on this model")
            following = messages[index + 1]["role"] if index + 1 < len(messages) else "assistant"
            need(previous_role == "user" and following == "assistant", f"messages.{index}: system must stand between user and assistant")
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
    elif kind == "thinking":
        need(block["signature"] == SIGNATURE, "thinking: Invalid `signature` in `thinking` block")
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
            set(tool) <= {"type", "name", "description", "input_schema", "strict", "cache_control"},
            "tools: Extra inputs are not permitted",
        )
        need(tool.get("type", "custom") == "custom", "tools: type: only custom tools are known here")
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


# --- the answer ---------------------------------------------------------------------------------

ERRORS = {
    "400": (400, "invalid_request_error", "Mock refusal"),
    "401": (401, "authentication_error", "invalid x-api-key"),
    "402": (402, "billing_error", "Your credit balance is too low"),
    "403": (403, "permission_error", "Your API key does not have permission to use the specified resource."),
    "404": (404, "not_found_error", "model: not found"),
    "408": (408, "timeout_error", "Request timed out"),
    "413": (413, "request_too_large", "Request exceeds the maximum size"),
    "429": (429, "rate_limit_error", "This request would exceed your rate limit"),
    "429-bare": (429, "rate_limit_error", "This request would exceed your rate limit"),
    "500": (500, "api_error", "Internal server error"),
    "502": (502, "api_error", "Bad gateway"),
    "503": (503, "api_error", "Service unavailable"),
    "529": (529, "overloaded_error", "Overloaded"),
}
STOP_REASONS = {"max-tokens": "max_tokens", "refusal": "refusal", "unknown-stop": "something_new"}


class Answer:
    """The content blocks, stop reason and usage for one request."""

    def __init__(self, body: Json, scenario: str) -> None:
        self.model = body["model"]
        self.stop_reason = STOP_REASONS.get(scenario, "end_turn")
        self.stop_sequence: str | None = None
        text = f"You said: {last_user_text(body)}"
        wanted = body.get("output_config", {}).get("format")
        if wanted is not None:
            text = json.dumps(dict.fromkeys(wanted["schema"]["properties"], last_user_text(body)), ensure_ascii=False)
        self.blocks: list[Block] = []
        if scenario in ("thinking", "thinking-pings"):
            shown = "Let me think. " if scenario == "thinking" else ""  # `display: omitted`
            self.blocks.append({"type": "thinking", "thinking": shown, "signature": SIGNATURE})
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
                    self.stop_sequence = sequence
            self.blocks.append({"type": "text", "text": " ".join(words)})
        self.usage: Json = {
            "input_tokens": words_in(body["messages"]) + words_in(body.get("system", "")),
            "output_tokens": sum(words_in(block) for block in self.blocks),
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
            "content": self.blocks, "stop_reason": self.stop_reason, "stop_sequence": self.stop_sequence,
            "usage": self.usage,
        }  # fmt: skip

    def frames(self) -> Iterator[Frame]:
        for event in self.events():
            yield Frame(event["type"], json.dumps(event, ensure_ascii=False), event["type"] == "content_block_delta")

    def document(self) -> Json:
        return self.message()

    def events(self) -> Iterator[Json]:
        start = self.message() | {"content": [], "stop_reason": None, "stop_sequence": None}
        start["usage"] = self.usage | {"output_tokens": 1}
        yield {"type": "message_start", "message": start}
        for index, block in enumerate(self.blocks):
            yield from self._block(index, block)
        yield {
            "type": "message_delta",
            "delta": {"stop_reason": self.stop_reason, "stop_sequence": self.stop_sequence},
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
            if block["thinking"]:
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


class Anthropic:
    """The Messages API."""

    name = "Anthropic"
    errors = ERRORS
    heartbeat = b'event: ping\ndata: {"type": "ping"}\n\n'

    def check(self, path: str, headers: Any, raw: bytes, api_key: str) -> Json:
        if path != "/v1/messages":
            raise RefusedError("no such path", 404, "not_found_error")
        need(headers.get("content-type") == "application/json", "content-type: must be application/json")
        version = headers.get("anthropic-version", "")
        need(version in API_VERSIONS, "anthropic-version: header is required")
        # The vendor's own SDKs send the key as a bearer token since October 2026.
        key = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")
        if key != api_key:
            raise RefusedError("invalid x-api-key", 401, "authentication_error")
        body = json.loads(raw)
        check_request(body, version)
        return dict(body)

    def answer(self, path: str, body: Json, scenario: str) -> Answer:
        return Answer(body, scenario)

    def error(self, status: int, kind: str, message: str) -> Json:
        return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_mock"}

    def error_frame(self, kind: str, message: str) -> Frame:
        return Frame("error", json.dumps({"type": "error", "error": {"type": kind, "message": message}}))

    def last_user_text(self, body: Json) -> str:
        return last_user_text(body)


if __name__ == "__main__":
    serve(Anthropic(), "A stand-in for Anthropic's Messages API.")
