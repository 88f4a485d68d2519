"""Anthropic's answer, streamed or whole, read into events."""

from __future__ import annotations

from typing import Any

import orjson

from hearth_gateway.errors import GatewayError, Kind
from hearth_gateway.translate.events import (
    ALIVE,
    BEGUN,
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
from hearth_gateway.translate.vendor_errors import Now, interrupted, kind_of_status, protocol_error, retry_after_seconds, vendor_error
from hearth_gateway.translate.vendor_fields import call_id, count, string

_STOP_REASONS: dict[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
    # The vendor paused a long turn. We run no server tools, so for our callers the turn is over.
    "pause_turn": "stop",
}

# The vendor's own error types; the HTTP status says less, and inside a stream there is none.
_ERROR_KINDS: dict[str, Kind] = {
    "invalid_request_error": Kind.UPSTREAM_INVALID_REQUEST,
    "request_too_large": Kind.UPSTREAM_TOO_LARGE,
    "authentication_error": Kind.UPSTREAM_AUTH,
    "permission_error": Kind.UPSTREAM_AUTH,
    "billing_error": Kind.UPSTREAM_AUTH,
    "not_found_error": Kind.UPSTREAM_MODEL_UNAVAILABLE,
    "rate_limit_error": Kind.UPSTREAM_RATE_LIMITED,
    "overloaded_error": Kind.UPSTREAM_OVERLOADED,
    "timeout_error": Kind.UPSTREAM_TIMEOUT,
    "api_error": Kind.UPSTREAM_ERROR,
}
# Our account's prepaid money is used up, or the limit that its owner set: every request gets the same answer, which is
# a 400 of the type for broken requests. Only the words tell it. Seen in anthropics/claude-code issues 66314 and 38035.
_OUT_OF_MONEY = ("Your credit balance is too low", "You have reached your specified API usage limits")


def _kind_of(error: dict[str, Any]) -> Kind | None:
    """The kind of an error object; None for a type that nobody here has heard of."""
    kind, message = _ERROR_KINDS.get(error["type"]), error.get("message")
    # At its beginning: further on, a message may quote the request, and nobody's words may close this account for all.
    if kind is Kind.UPSTREAM_INVALID_REQUEST and isinstance(message, str) and message.startswith(_OUT_OF_MONEY):
        return Kind.UPSTREAM_AUTH
    return kind


def error_from_status(status: int, body: bytes, retry_after: str | None, now: Now | None = None) -> GatewayError:
    """The error for a response that is not 200. ``body`` is what arrived of it, parseable or not. Without
    ``now`` a Retry-After that is a date says nothing."""
    kind, detail = None, None
    try:
        error = orjson.loads(body)["error"]
        kind, detail = _kind_of(error), error.get("message")
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        pass  # a proxy's HTML page, or nothing: the status has to do
    return vendor_error(kind or kind_of_status(status), detail, retry_after_seconds(retry_after, now))


class MessageReader:
    """Reads one streamed answer, event by event.

    ``names`` maps the tool names the vendor saw back to the caller's.
    """

    def __init__(self, names: dict[str, str]) -> None:
        self._names = names
        self._usage = Usage()
        self._stop_reason: str | None = None
        self._stop_sequence: str | None = None
        self._tools = -1  # index of the last tool call
        self._block_type = ""
        self._block_had_arguments = False
        self._signature = ""

    def read(self, data: bytes) -> list[Event]:
        """Events of one SSE event. Raises ``GatewayError`` for an error event or what is no event."""
        try:
            message = orjson.loads(data)
            kind = message["type"]
            if kind == "content_block_delta":
                return self._delta(message["delta"])
            if kind == "content_block_start":
                return self._start(message["content_block"])
            if kind == "content_block_stop":
                return self._stop()
            if kind == "message_start":
                return self._take_usage(message["message"].get("usage"))
            if kind == "message_delta":
                self._take_stop(message["delta"])
                return self._take_usage(message.get("usage"))
            if kind == "message_stop":
                return [self._end()]
            if kind == "error":
                error = message["error"]
                raise vendor_error(_kind_of(error) or Kind.UPSTREAM_ERROR, error.get("message"))
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            # `from None`: the exception's text holds the data that could not be parsed.
            raise protocol_error() from None
        return [ALIVE]  # ping, and whatever the vendor adds later

    def plain(self, data: bytes) -> str | None:
        try:
            message = orjson.loads(data)
            delta = message["delta"]
            is_text = message["type"] == "content_block_delta" and delta["type"] == "text_delta"
            return string(delta["text"]) or None if is_text else None
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            return None

    def end(self) -> list[Event]:
        """The connection ended in order. Only the event message_stop ends an answer."""
        raise interrupted()

    def read_whole(self, body: bytes) -> list[Event]:
        """Events of an answer that came as one JSON document although a stream was asked for."""
        try:
            message = orjson.loads(body)
            if message["type"] == "error":
                return self.read(body)
            events = self._take_usage(message.get("usage"))
            for block in message["content"]:
                events += self._start(block)
                if block["type"] == "tool_use" and block["input"]:
                    self._block_had_arguments = True
                    events.append(ToolArguments(self._tools, orjson.dumps(block["input"]).decode()))
                events += self._stop()
            self._take_stop(message)
            return [*events, self._end()]
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            raise protocol_error() from None

    def _take_stop(self, fields: dict[str, Any]) -> None:
        self._stop_reason = fields.get("stop_reason") or self._stop_reason
        sequence = fields.get("stop_sequence")
        if isinstance(sequence, str):
            self._stop_sequence = sequence

    def _end(self) -> End:
        unknown = self._stop_reason is not None and self._stop_reason not in _STOP_REASONS
        return End(finish_reason(self._stop_reason), self._stop_sequence, unknown)

    def _take_usage(self, usage: Any) -> list[Event]:
        if usage is None:
            return [ALIVE]
        detail = usage.get("cache_creation") or {}
        self._usage = self._usage.with_present(
            input=count(usage.get("input_tokens")),
            cache_read=count(usage.get("cache_read_input_tokens")),
            cache_write=count(usage.get("cache_creation_input_tokens")),
            cache_write_1h=count(detail.get("ephemeral_1h_input_tokens")),
            output=count(usage.get("output_tokens")),
        )
        return [self._usage]

    def _start(self, block: dict[str, Any]) -> list[Event]:
        self._block_type = block["type"]
        if self._block_type == "tool_use":
            self._tools += 1
            self._block_had_arguments = False
            # `input` is always {} here; the arguments follow as deltas.
            name = string(block["name"])
            return [ToolStart(self._tools, call_id(block.get("id")), self._names.get(name, name))]
        if self._block_type == "text" and block.get("text"):
            return [Text(string(block["text"]))]
        if self._block_type == "thinking":
            self._signature = string(block.get("signature") or "")
            return [Thinking(string(block["thinking"]))] if block.get("thinking") else [BEGUN]
        if self._block_type == "redacted_thinking":
            return [RedactedThinking(string(block["data"]))]
        return [ALIVE]

    def _delta(self, delta: dict[str, Any]) -> list[Event]:
        kind = delta["type"]
        if kind == "text_delta":
            text = string(delta["text"])
            return [Text(text)] if text else [ALIVE]
        # Server-side tools stream their results through the same delta: those are no calls for the caller.
        if kind == "input_json_delta" and self._block_type == "tool_use":
            fragment = string(delta["partial_json"])
            if not fragment:
                return [ALIVE]
            self._block_had_arguments = True
            return [ToolArguments(self._tools, fragment)]
        if kind == "thinking_delta":
            text = string(delta["thinking"])
            return [Thinking(text)] if text else [ALIVE]
        if kind == "signature_delta":
            self._signature = string(delta["signature"])
        return [ALIVE]

    def _stop(self) -> list[Event]:
        kind, self._block_type = self._block_type, ""
        if kind == "tool_use" and not self._block_had_arguments:
            # A call without arguments streams no delta, and "" is not JSON for the client.
            return [ToolArguments(self._tools, "{}")]
        if kind == "thinking":
            return [ThinkingEnd(self._signature)]
        return [ALIVE]


def finish_reason(stop_reason: str | None) -> FinishReason:
    """A reason we have never heard of ends the answer normally: it is the vendor's addition, no fault."""
    return _STOP_REASONS.get(stop_reason or "", "stop")
