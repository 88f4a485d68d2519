"""Events, encoded as an OpenAI chat completion: as chunks, or collected into one object."""

from __future__ import annotations

from typing import Any

import orjson

from hearth_gateway.errors import GatewayError
from hearth_gateway.translate.events import (
    End,
    Event,
    FinishReason,
    RedactedThinking,
    Text,
    Thinking,
    ThinkingEnd,
    ToolArguments,
    ToolStart,
    Usage,
)

DONE = b"data: [DONE]\n\n"
HEARTBEAT = b":\n\n"


def usage_object(usage: Usage) -> dict[str, Any]:
    """OpenAI counts cached tokens as part of the prompt, Anthropic beside it."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.output,
        "total_tokens": usage.prompt + usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.cache_read},
    }


class ChunkEncoder:
    """One streamed answer. ``created`` is Unix seconds, ``model`` the name the caller asked for."""

    heartbeat = HEARTBEAT

    def __init__(self, completion_id: str, created: int, model: str, include_usage: bool) -> None:
        self._head = {
            "id": completion_id,
            "object": "chat.completion.chunk",
            "created": created,
            "model": model,
        }
        self._include_usage = include_usage
        self._usage = Usage()
        self._started = False
        self._reasoning = _Reasoning()
        # Most chunks differ in their text only. Building the rest once saves half of the encoding.
        tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"
        self._text_head = b"data: " + orjson.dumps(self._head)[:-1] + b',"choices":[{"index":0,"delta":{"content":'
        self._text_tail = b'},"finish_reason":null}]' + tail

    def encode(self, event: Event) -> bytes:
        """Bytes for one event; empty for those a client does not see."""
        if isinstance(event, Text):
            return self._role() + self._text_head + orjson.dumps(event.text) + self._text_tail
        if isinstance(event, Usage):
            self._usage = event
            return b""
        if isinstance(event, Thinking):
            self._reasoning.add(event)
            return self._role() + self._chunk({"reasoning_content": event.text})
        if isinstance(event, ThinkingEnd | RedactedThinking):
            blocks = self._reasoning.add(event)
            return self._role() + self._chunk({"thinking_blocks": blocks}) if blocks else b""
        if isinstance(event, ToolStart):
            call = {"index": event.index, "id": event.id, "type": "function"}
            return self._role() + self._chunk({"tool_calls": [{**call, "function": {"name": event.name, "arguments": ""}}]})
        if isinstance(event, ToolArguments):
            return self._chunk({"tool_calls": [{"index": event.index, "function": {"arguments": event.fragment}}]})
        if isinstance(event, End):
            last = self._role() + self._chunk({}, event.reason)
            if self._include_usage:
                last += _sse({**self._head, "choices": [], "usage": usage_object(self._usage)})
            return last + DONE
        return b""

    def _role(self) -> bytes:
        if self._started:
            return b""
        self._started = True
        return self._chunk({"role": "assistant", "content": ""})

    def _chunk(self, delta: dict[str, Any], reason: FinishReason | None = None) -> bytes:
        chunk: dict[str, Any] = {
            **self._head,
            "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
        }
        if self._include_usage:
            chunk["usage"] = None
        return _sse(chunk)


class _Reasoning:
    """Signed reasoning as `thinking_blocks`, as LiteLLM's clients know it: sent back with the history,
    it lets the model go on with its thoughts. Without the signature no vendor takes it."""

    def __init__(self) -> None:
        self._text: list[str] = []

    def add(self, event: Thinking | ThinkingEnd | RedactedThinking) -> list[dict[str, str]]:
        """Blocks that are complete with ``event``: one or none."""
        if isinstance(event, Thinking):
            self._text.append(event.text)
            return []
        if isinstance(event, RedactedThinking):
            return [{"type": "redacted_thinking", "data": event.data}]
        text, self._text = "".join(self._text), []
        return [{"type": "thinking", "thinking": text, "signature": event.signature}] if event.signature else []


def encode_error(error: GatewayError, _request_id: str = "") -> bytes:
    """An error after the first content. No ``[DONE]`` may follow: the answer is not complete."""
    return _sse(error.body())


def _sse(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


class Collector:
    """Collects all events of an answer for a caller who did not ask for a stream."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._blocks: list[dict[str, str]] = []
        self._reasoning = _Reasoning()
        self._calls: list[tuple[ToolStart, list[str]]] = []
        self._usage = Usage()
        self._reason: FinishReason = "stop"

    def add(self, event: Event) -> None:
        if isinstance(event, Text):
            self._text.append(event.text)
        elif isinstance(event, Thinking | ThinkingEnd | RedactedThinking):
            if isinstance(event, Thinking):
                self._thinking.append(event.text)
            self._blocks += self._reasoning.add(event)
        elif isinstance(event, ToolStart):
            self._calls.append((event, []))
        elif isinstance(event, ToolArguments):
            self._calls[event.index][1].append(event.fragment)
        elif isinstance(event, Usage):
            self._usage = event
        elif isinstance(event, End):
            self._reason = event.reason

    def completion(self, completion_id: str, created: int, model: str) -> dict[str, Any]:
        text = "".join(self._text)
        message: dict[str, Any] = {
            "role": "assistant",
            # null, and not "", when there are only tool calls: that is how clients tell.
            "content": text if text or not self._calls else None,
            "refusal": None,
        }
        if self._thinking:
            message["reasoning_content"] = "".join(self._thinking)
        if self._blocks:
            message["thinking_blocks"] = self._blocks
        if self._calls:
            message["tool_calls"] = [
                {
                    "id": start.id,
                    "type": "function",
                    "function": {"name": start.name, "arguments": "".join(fragments)},
                }
                for start, fragments in self._calls
            ]
        return {
            "id": completion_id,
            "object": "chat.completion",
            "created": created,
            "model": model,
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": self._reason}],
            "usage": usage_object(self._usage),
        }
