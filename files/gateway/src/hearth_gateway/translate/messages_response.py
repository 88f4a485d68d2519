"""Events, encoded as an Anthropic message: as a stream of events, or collected into one object.

The order is the vendor's: ``message_start``, then content blocks one after the other, each with a
start, deltas and a stop, then ``message_delta`` with the reason and the final usage, ``message_stop``.
"""

from __future__ import annotations

from typing import Any

import orjson

from hearth_gateway.errors import GatewayError, Kind
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
from hearth_gateway.translate.fields import arguments_object, exact

# Before message_start nothing but a comment may come; strict clients fail on a ping there.
EARLY_HEARTBEAT = b":\n\n"
HEARTBEAT = b'event: ping\ndata: {"type":"ping"}\n\n'

_STOP_REASONS: dict[FinishReason, str] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}


def usage_object(usage: Usage) -> dict[str, Any]:
    """Anthropic counts cached tokens beside ``input_tokens``, not as a part of them."""
    return {
        "input_tokens": usage.input,
        "cache_creation_input_tokens": usage.cache_write,
        "cache_read_input_tokens": usage.cache_read,
        "cache_creation": {
            "ephemeral_5m_input_tokens": usage.cache_write - usage.cache_write_1h,
            "ephemeral_1h_input_tokens": usage.cache_write_1h,
        },
        "output_tokens": usage.output,
    }


def stop_reason(end: End) -> str:
    return "stop_sequence" if end.stop_sequence is not None else _STOP_REASONS[end.reason]


def encode_error(error: GatewayError, request_id: str) -> bytes:
    """An error after the stream has begun. No ``message_stop`` may follow: the answer is not complete."""
    return _sse(error.anthropic_body(request_id))


class MessageEncoder:
    """One streamed answer. ``model`` is the name the caller asked for."""

    def __init__(self, message_id: str, model: str) -> None:
        self._id = message_id
        self._model = model
        self._usage = Usage()
        self._started = False
        self._index = -1  # of the content block that was started last
        self._open = ""  # its type, "" once it is stopped
        self._text_head = b""  # of a text delta in this block: most deltas differ in their text only
        self._tool = -1  # the tool call whose block is open

    @property
    def heartbeat(self) -> bytes:
        return HEARTBEAT if self._started else EARLY_HEARTBEAT

    def encode(self, event: Event) -> bytes:
        """Bytes for one event; empty for those a client does not see."""
        if isinstance(event, Text):
            return self._block_for("text") + self._text_head + orjson.dumps(event.text) + b"}}\n\n"
        if isinstance(event, Usage):
            self._usage = event
            return b""
        if isinstance(event, Thinking):
            return self._block_for("thinking") + self._delta({"type": "thinking_delta", "thinking": event.text})
        if isinstance(event, ThinkingEnd):
            return self._end_thinking(event)
        if isinstance(event, RedactedThinking):
            return self._stop() + self._start({"type": "redacted_thinking", "data": event.data}) + self._stop()
        if isinstance(event, ToolStart):
            return self._start_tool(event)
        if isinstance(event, ToolArguments):
            return self._continue_tool(event)
        if isinstance(event, End):
            return self._end(event)
        return b""

    # --- content blocks

    def _block_for(self, kind: str) -> bytes:
        """Make sure that the open block is one of text or thinking."""
        if self._open == kind:
            return b""
        block = {"type": "text", "text": ""} if kind == "text" else {"type": "thinking", "thinking": "", "signature": ""}
        begun = self._stop() + self._start(block)
        if kind == "text":
            head = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":"text_delta","text":'
            self._text_head = head % self._index
        return begun

    def _end_thinking(self, event: ThinkingEnd) -> bytes:
        # A vendor that hides its reasoning sends a signature without any text before it.
        signature = self._delta_signature(event.signature) if event.signature else b""
        return signature + self._stop() if self._open == "thinking" or signature else b""

    def _delta_signature(self, signature: str) -> bytes:
        return self._block_for("thinking") + self._delta({"type": "signature_delta", "signature": signature})

    def _start(self, block: dict[str, Any]) -> bytes:
        self._index += 1
        self._open = block["type"]
        event = {"type": "content_block_start", "index": self._index, "content_block": block}
        return self._message_start() + _sse(event)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _sse({"type": "content_block_delta", "index": self._index, "delta": delta})

    def _stop(self) -> bytes:
        if not self._open:
            return b""
        self._open = ""
        return _sse({"type": "content_block_stop", "index": self._index})

    def _start_tool(self, event: ToolStart) -> bytes:
        self._tool = event.index
        return self._stop() + self._start({"type": "tool_use", "id": event.id, "name": event.name, "input": {}})

    def _continue_tool(self, event: ToolArguments) -> bytes:
        if event.index == self._tool and self._open == "tool_use":
            return self._delta({"type": "input_json_delta", "partial_json": event.fragment})
        if event.fragment.strip():
            # A block that is stopped stays so in this format. Better a visible fault than a call with half its arguments.
            raise GatewayError(Kind.UPSTREAM_PROTOCOL, "The provider added to a tool call after something else.")
        return b""

    # --- the message

    def _message_start(self) -> bytes:
        """Sent with the first content: only then it is settled whose usage this is."""
        if self._started:
            return b""
        self._started = True
        message: dict[str, Any] = {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            # A vendor that reports usage at the end only gets zeros here, and the true numbers below.
            "usage": usage_object(self._usage),
        }
        return _sse({"type": "message_start", "message": message})

    def _end(self, end: End) -> bytes:
        stopped = self._message_start() + self._stop()
        usage = usage_object(self._usage)
        del usage["cache_creation"]  # not a field of this event
        delta = {"stop_reason": stop_reason(end), "stop_sequence": end.stop_sequence}
        return stopped + _sse({"type": "message_delta", "delta": delta, "usage": usage}) + _sse({"type": "message_stop"})


def _sse(event: dict[str, Any]) -> bytes:
    return b"event: " + str(event["type"]).encode() + b"\ndata: " + orjson.dumps(event) + b"\n\n"


class MessageCollector:
    """Collects all events of an answer for a caller who did not ask for a stream."""

    def __init__(self) -> None:
        self._blocks: list[dict[str, Any]] = []
        self._pieces: list[list[str]] = []  # of each block: its text, reasoning or arguments
        self._tools: dict[int, int] = {}  # index of a tool call -> index of its block
        self._usage = Usage()
        self._end = End("stop")

    def add(self, event: Event) -> None:
        if isinstance(event, Text):
            self._append("text", {}, event.text)
        elif isinstance(event, Thinking):
            self._append("thinking", {}, event.text)
        elif isinstance(event, ThinkingEnd):
            self._end_thinking(event.signature)
        elif isinstance(event, RedactedThinking):
            self._new({"type": "redacted_thinking", "data": event.data})
        elif isinstance(event, ToolStart):
            self._tools[event.index] = len(self._blocks)
            self._new({"type": "tool_use", "id": event.id, "name": event.name})
        elif isinstance(event, ToolArguments):
            self._pieces[self._tools[event.index]].append(event.fragment)
        elif isinstance(event, Usage):
            self._usage = event
        elif isinstance(event, End):
            self._end = event

    def _new(self, block: dict[str, Any]) -> None:
        self._blocks.append(block)
        self._pieces.append([])

    def _append(self, kind: str, extra: dict[str, Any], text: str) -> None:
        last = self._blocks[-1] if self._blocks else {}
        if last.get("type") != kind or "signature" in last:
            self._new({"type": kind, **extra})
        self._pieces[-1].append(text)

    def _end_thinking(self, signature: str) -> None:
        last = self._blocks[-1] if self._blocks else {}
        if last.get("type") != "thinking" or "signature" in last:
            if not signature:
                return
            self._new({"type": "thinking"})
        self._blocks[-1]["signature"] = signature

    def message(self, message_id: str, model: str) -> dict[str, Any]:
        return {
            "id": message_id,
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [_whole(block, "".join(pieces)) for block, pieces in zip(self._blocks, self._pieces, strict=True)],
            "stop_reason": stop_reason(self._end),
            "stop_sequence": self._end.stop_sequence,
            "usage": usage_object(self._usage),
        }


def _whole(block: dict[str, Any], text: str) -> dict[str, Any]:
    kind = block["type"]
    if kind == "text":
        return {**block, "text": text}
    if kind == "thinking":
        return {"type": kind, "thinking": text, "signature": block.get("signature", "")}
    if kind == "tool_use":
        return {**block, "input": exact(*arguments_object(text))}
    return block
