#!/usr/bin/env python3
"""A stand-in for a server with OpenAI's API: chat completions, embeddings, images. Standard library only; not the real thing.

It is strict where such servers are: the key, and a body in which every key must be known. What it does not
implement it refuses with 400, so a gateway that sends something new fails a test here and not at the vendor.

    python3 openai_server.py --bind 127.0.0.1:8445 --api-key KEY [--cert F --key F] [--record FILE]

An empty --api-key asks for no key, as a model server in one's own house may. The answer to a chat is an echo,
so a test can foretell it: "You said: <last user text>", or, when JSON is asked for, an object with that text in
every property of the schema. One token per word. Faults are chosen by the model, as
`<any name>+<scenario>`, or by the header `x-mock-scenario`:

    slow            a word every 0.2 s                 slow-headers    10 s before anything
    silent          200, headers, then nothing         silent-after    two words, then nothing
    pings           comments for 3 s, then the answer  cut             the connection breaks after two words
    error-before    error object before any content    error-after     error object after two words
    overloaded      an error 529 before any content    eof             a clean end after two words
    no-done         all of it, but no [DONE]           close           closes without a word
    garbage         neither SSE nor JSON               garbage-after   two words, then broken JSON
    big-event       one event of 5 MB                  gzip            compressed although nobody asked
    html            502 with an HTML page              quote           400 that quotes the prompt
    json            a JSON document, not a stream
    odd-sse         CR LF, comments, multi-line data, bytes split at odd places, no final blank line
    tool            calls the request's first tool     tool-empty      the same, without arguments
    tools           two calls of it, side by side      thinking        reasoning_content before the text
    cache           usage with cached tokens           max-tokens      finish reason length
    content-filter  finish reason content_filter       unknown-stop    a finish reason nobody knows
    no-usage        no usage at all                    usage-on-finish usage on the chunk with the finish reason
    tokens-<number> as many prompt_tokens
    400 401 402 403 404 408 413 429 429-bare 500 502 503 529   error responses; 429 has Retry-After: 7

`--record` appends one JSON line per request: what was sent, never what was said (lengths only).
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from typing import Any

from vendor_server import Frame, Json, RefusedError, need, serve, words_in

# --- the request, checked key by key -----------------------------------------------------------

CHAT_KEYS = {
    "model": str, "messages": list, "max_tokens": int, "max_completion_tokens": int, "stream": bool,
    "stream_options": dict, "temperature": (int, float), "top_p": (int, float), "stop": (list, str),
    "tools": list, "tool_choice": (str, dict), "parallel_tool_calls": bool, "response_format": dict,
    "reasoning_effort": str, "user": str, "seed": int, "presence_penalty": (int, float),
    "frequency_penalty": (int, float), "logit_bias": dict, "thinking": dict,
}  # fmt: skip
EMBEDDING_KEYS = {"model": str, "input": (list, str), "encoding_format": str, "dimensions": int, "user": str}
IMAGE_KEYS = {
    "model": str, "prompt": str, "n": int, "size": str, "quality": str, "response_format": str, "user": str,
    "background": str, "output_format": str, "output_compression": int, "style": str, "moderation": str,
}  # fmt: skip
MESSAGE_KEYS = {
    "system": {"role", "content"},
    "developer": {"role", "content"},
    "user": {"role", "content", "name"},
    # `thinking_blocks` (how signed reasoning goes back to the model) and `cache_control` are LiteLLM's.
    "assistant": {"role", "content", "tool_calls", "reasoning_content", "thinking_blocks"},
    "tool": {"role", "content", "tool_call_id", "cache_control"},
}
PARTS = {
    "system": {"text"},
    "developer": {"text"},
    "user": {"text", "image_url", "file"},
    "assistant": {"text"},
    "tool": {"text", "image_url"},
}


def check_keys(body: Any, known: dict[str, Any], needed: tuple[str, ...]) -> None:
    need(isinstance(body, dict), "the body must be an object")
    for key, value in body.items():
        need(key in known, f"Unrecognized request argument supplied: {key}")
        need(isinstance(value, known[key]), f"Invalid type for '{key}'")
    for key in needed:
        need(key in body, f"Missing required parameter: '{key}'.")


def check_chat(body: Json) -> None:
    check_keys(body, CHAT_KEYS, ("model", "messages"))
    need(body.get("stream") or "stream_options" not in body, "'stream_options' is only allowed when 'stream' is enabled.")
    need(0 <= body.get("temperature", 1) <= 2, "Invalid 'temperature'")
    need(len(body.get("stop", [])) <= 4 or isinstance(body["stop"], str), "Invalid 'stop': at most 4")
    for key in ("max_tokens", "max_completion_tokens"):
        need(body.get(key, 1) >= 1, f"Invalid '{key}': integer below minimum value")
    tools = check_tools(body)
    need(tools or "tool_choice" not in body, "'tool_choice' is only allowed when 'tools' are specified.")
    need(tools or "parallel_tool_calls" not in body, "'parallel_tool_calls' is only allowed when 'tools' are specified.")
    if "response_format" in body:
        need(body["response_format"]["type"] in ("text", "json_object", "json_schema"), "Invalid 'response_format.type'")
    check_messages(body["messages"])


def check_tools(body: Json) -> set[str]:
    names = set()
    for tool in body.get("tools", []):
        need(set(tool) <= {"type", "function", "cache_control"} and tool["type"] == "function", "Invalid 'tools'")
        need(set(tool["function"]) <= {"name", "description", "parameters", "strict"}, "Invalid 'tools[].function'")
        name = tool["function"]["name"]
        need(0 < len(name) <= 64 and all(c.isascii() and (c.isalnum() or c in "_-") for c in name), "Invalid 'tools[].function.name'")
        need(name not in names, "Tool names must be unique")
        names.add(name)
    return names


def check_messages(messages: list[Any]) -> None:
    need(messages, "Invalid 'messages': empty array")
    waiting: list[str] = []
    for index, message in enumerate(messages):
        role = message.get("role")
        need(role in MESSAGE_KEYS, f"Invalid 'messages[{index}].role'")
        need(set(message) <= MESSAGE_KEYS[role], f"Unrecognized key in 'messages[{index}]'")
        if role == "tool":
            need(message["tool_call_id"] in waiting, f"messages[{index}]: 'tool' must be a response to preceding 'tool_calls'")
            waiting.remove(message["tool_call_id"])
        else:
            need(not waiting, f"messages[{index}]: 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'")
        calls = message.get("tool_calls", [])
        need("tool_calls" not in message or calls, f"Invalid 'messages[{index}].tool_calls': empty array")
        waiting += [check_call(call) for call in calls]
        need(message.get("content") is not None or calls, f"Invalid value for 'content': expected a string, got null ({index})")
        check_content(message.get("content"), PARTS[role])
    need(not waiting, "'tool_calls' must be followed by tool messages")


def check_call(call: Json) -> str:
    need(set(call) == {"id", "type", "function"} and set(call["function"]) == {"name", "arguments"}, "Invalid 'tool_calls'")
    need(isinstance(json.loads(call["function"]["arguments"]), dict), "Invalid 'tool_calls[].function.arguments'")
    return str(call["id"])


def check_content(content: Any, allowed: set[str]) -> None:
    for part in content if isinstance(content, list) else []:
        need(part["type"] in allowed, f"Invalid content part: {part['type']}")
        need(set(part) <= {"type", part["type"], "cache_control"}, "Unrecognized key in a content part")
        if part["type"] == "image_url":
            need(part["image_url"]["url"].startswith(("https://", "data:image/")), "Invalid 'image_url.url'")
        elif part["type"] == "file":
            need(part["file"]["file_data"].startswith("data:application/pdf;base64,"), "Invalid 'file.file_data'")


def last_user_text(body: Json) -> str:
    for message in reversed(body.get("messages", [])):
        if message["role"] == "user":
            content = message["content"]
            if isinstance(content, str):
                return content
            texts = [part["text"] for part in content if part["type"] == "text"]
            return texts[-1] if texts else "(no text)"
    return str(body.get("prompt") or body.get("input") or "(no text)")


# --- the answer ---------------------------------------------------------------------------------

ERRORS = {
    "400": (400, "invalid_request_error", "Mock refusal"),
    "401": (401, "invalid_api_key", "Incorrect API key provided"),
    "402": (402, "insufficient_quota", "You exceeded your current quota"),
    "403": (403, "permission_denied", "Project does not have access to this model"),
    "404": (404, "model_not_found", "The model does not exist"),
    "408": (408, "timeout", "Request timed out"),
    "413": (413, "request_too_large", "Request too large"),
    "429": (429, "rate_limit_exceeded", "Rate limit reached"),
    "429-bare": (429, "rate_limit_exceeded", "Rate limit reached"),
    "500": (500, "server_error", "The server had an error while processing your request"),
    "502": (502, "server_error", "Bad gateway"),
    "503": (503, "server_error", "The engine is currently overloaded"),
    "529": (529, "overloaded_error", "Overloaded"),
}
FINISH_REASONS = {"max-tokens": "length", "content-filter": "content_filter", "unknown-stop": "something_new"}
# OpenAI's own words for the `type` of an error, by what this mock calls it.
TYPES = {
    "rate_limit_exceeded": "requests",
    "server_error": "server_error",
    "insufficient_quota": "insufficient_quota",
    "timeout": "timeout_error",
}


class Answer:
    """Text, tool calls, finish reason and usage for one chat request."""

    def __init__(self, body: Json, scenario: str) -> None:
        self.scenario = scenario
        self.head = {"id": "chatcmpl-mock", "created": 1700000000, "model": body["model"]}
        self.include_usage = (body.get("stream_options") or {}).get("include_usage", False)
        self.reasoning = "Let me think. " if scenario == "thinking" else ""
        self.words: list[str] = []
        self.calls: list[Json] = []
        if scenario in ("tool", "tool-empty", "tools"):
            need(body.get("tools"), "the scenario needs tools")
            arguments = {} if scenario == "tool-empty" else {"place": "Zürich", "days": 3}
            self.calls = [
                {
                    "id": f"call_{number:02}", "type": "function",
                    "function": {"name": body["tools"][0]["function"]["name"], "arguments": json.dumps(arguments, ensure_ascii=False)},
                }
                for number in range(1, 3 if scenario == "tools" else 2)
            ]  # fmt: skip
            self.finish = "tool_calls"
        else:
            self._say(body)
        self.usage: Json = {
            "prompt_tokens": words_in(body["messages"]),
            "completion_tokens": len(self.words) + words_in(self.reasoning) + words_in(self.calls, ("id", "type")),
        }
        if scenario == "cache":
            # As OpenAI and LiteLLM count: the cached tokens are part of prompt_tokens.
            self.usage["prompt_tokens"] += 1200
            self.usage["prompt_tokens_details"] = {"cached_tokens": 1000, "cache_creation_tokens": 200}
            self.usage["cache_read_input_tokens"], self.usage["cache_creation_input_tokens"] = 1000, 200
        if scenario.startswith("tokens-"):
            self.usage["prompt_tokens"] = int(scenario.removeprefix("tokens-"))
        self.usage["total_tokens"] = self.usage["prompt_tokens"] + self.usage["completion_tokens"]

    def _say(self, body: Json) -> None:
        said = f"You said: {last_user_text(body)}"
        wanted = body.get("response_format", {})
        if wanted.get("type") == "json_schema":
            said = json.dumps(dict.fromkeys(wanted["json_schema"]["schema"]["properties"], last_user_text(body)), ensure_ascii=False)
        words = said.split(" ")
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or len(words)
        self.finish = FINISH_REASONS.get(self.scenario, "stop" if limit >= len(words) else "length")
        text = " ".join(words[:limit])
        stops = body.get("stop", [])
        for sequence in [stops] if isinstance(stops, str) else stops:
            text = text.partition(sequence)[0]
        self.words = text.split(" ")

    def document(self) -> Json:
        message: Json = {"role": "assistant", "content": " ".join(self.words) if self.words else None, "refusal": None}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.calls:
            message["tool_calls"] = self.calls
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self.finish}
        usage = {} if self.scenario == "no-usage" else {"usage": self.usage}
        return {**self.head, "object": "chat.completion", "choices": [choice], **usage}

    def frames(self) -> Iterator[Frame]:
        yield self._chunk({"role": "assistant", "content": ""})
        if self.reasoning:
            yield self._chunk({"reasoning_content": self.reasoning})
        for number, word in enumerate(self.words):
            yield self._chunk({"content": word if number == 0 else f" {word}"}, is_text=True)
        for index, call in enumerate(self.calls):
            start = {**call, "index": index, "function": {"name": call["function"]["name"], "arguments": ""}}
            yield self._chunk({"tool_calls": [start]})
        longest = max((len(call["function"]["arguments"]) for call in self.calls), default=0)
        for begin in range(0, longest if self.scenario != "tool-empty" else 0, 7):
            # Side by side: pieces of several calls may alternate.
            for index, call in enumerate(self.calls):
                piece = call["function"]["arguments"][begin : begin + 7]
                yield self._chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
        yield self._chunk({}, finish=self.finish, usage=self.usage if self.scenario == "usage-on-finish" else None)
        if self.include_usage and self.scenario not in ("no-usage", "usage-on-finish"):
            yield Frame("", json.dumps({**self.head, "object": "chat.completion.chunk", "choices": [], "usage": self.usage}))
        if self.scenario != "no-done":
            yield Frame("", "[DONE]")

    def _chunk(self, delta: Json, finish: str | None = None, is_text: bool = False, usage: Json | None = None) -> Frame:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        chunk = {**self.head, "object": "chat.completion.chunk", "choices": [choice], "usage": usage}
        return Frame("", json.dumps(chunk, ensure_ascii=False), is_text)


def embeddings(body: Json, scenario: str) -> Json:
    """Three numbers an input: how many words, how many characters, and its place."""
    inputs = [body["input"]] if isinstance(body["input"], str) else body["input"]
    need(inputs and all(isinstance(item, str) and item for item in inputs), "'$.input' is invalid")
    data = []
    for index, text in enumerate(inputs):
        vector: Any = [float(len(text.split())), float(len(text)), float(index)][: body.get("dimensions", 3)]
        if body.get("encoding_format") == "base64":
            vector = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": vector})
    tokens = words_in(inputs)
    usage = {} if scenario == "no-usage" else {"usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
    return {"object": "list", "data": data, "model": body["model"], **usage}


# The smallest PNG: one transparent pixel.
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)


def images(body: Json, scenario: str) -> Json:
    tokens = words_in(body["prompt"])
    usage = {"input_tokens": tokens, "output_tokens": 100, "total_tokens": tokens + 100}
    answer = {"created": 1700000000, "data": [{"b64_json": PIXEL} for _ in range(body.get("n", 1))]}
    return answer if scenario == "no-usage" else {**answer, "usage": usage}


class OpenAI:
    """The API under /v1."""

    name = "OpenAI"
    errors = ERRORS
    heartbeat = b": ping\n\n"

    def check(self, path: str, headers: Any, raw: bytes, api_key: str) -> Json:
        if path not in ("/v1/chat/completions", "/v1/embeddings", "/v1/images/generations"):
            raise RefusedError("Invalid URL", 404, "invalid_request_error")
        need(headers.get("content-type") == "application/json", "you must provide a JSON body")
        if api_key and headers.get("authorization") != f"Bearer {api_key}":
            raise RefusedError("Incorrect API key provided", 401, "invalid_api_key")
        if not api_key:
            need(headers.get("authorization") is None, "this server has no keys, and was sent one")
        body = json.loads(raw)
        if path == "/v1/embeddings":
            check_keys(body, EMBEDDING_KEYS, ("model", "input"))
        elif path == "/v1/images/generations":
            check_keys(body, IMAGE_KEYS, ("model", "prompt"))
        else:
            check_chat(body)
        return dict(body)

    def answer(self, path: str, body: Json, scenario: str) -> Answer | Json:
        if path == "/v1/embeddings":
            return embeddings(body, scenario)
        if path == "/v1/images/generations":
            return images(body, scenario)
        return Answer(body, scenario)

    def error(self, status: int, kind: str, message: str) -> Json:
        return {"error": {"message": message, "type": TYPES.get(kind, "invalid_request_error"), "param": None, "code": kind}}

    def error_frame(self, kind: str, message: str) -> Frame:
        # As LiteLLM sends it: the status as text, and no type.
        code = "529" if kind == "overloaded_error" else "500"
        return Frame("", json.dumps({"error": {"message": message, "type": None, "param": None, "code": code}}))

    def last_user_text(self, body: Json) -> str:
        return last_user_text(body)


if __name__ == "__main__":
    serve(OpenAI(), "A stand-in for a server with OpenAI's API.")
