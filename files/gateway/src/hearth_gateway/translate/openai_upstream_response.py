"""The answer of an OpenAI-compatible server, streamed or whole, read into events.

Source: platform.openai.com, "Chat" API reference, and the types of the `openai` package 3.52; for what
LiteLLM adds (`reasoning_content`, `thinking_blocks`, cache counts), docs.litellm.ai, read 2026-11-21.
"""

from __future__ import annotations

from typing import Any

import orjson

from hearth_gateway.errors import GatewayError, Kind
from hearth_gateway.translate.events import (
    ALIVE,
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

_FINISH_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}
# Names that servers use as an error's `code` or `type`. The status comes first where there is one:
# OpenAI's own 401 has the type invalid_request_error.
_ERROR_KINDS: dict[str, Kind] = {
    "invalid_request_error": Kind.UPSTREAM_INVALID_REQUEST,
    "context_length_exceeded": Kind.UPSTREAM_INVALID_REQUEST,
    "authentication_error": Kind.UPSTREAM_AUTH,
    "invalid_api_key": Kind.UPSTREAM_AUTH,
    "permission_error": Kind.UPSTREAM_AUTH,
    "model_not_found": Kind.UPSTREAM_MODEL_UNAVAILABLE,
    "rate_limit_error": Kind.UPSTREAM_RATE_LIMITED,
    "rate_limit_exceeded": Kind.UPSTREAM_RATE_LIMITED,
    "overloaded_error": Kind.UPSTREAM_OVERLOADED,
    "timeout_error": Kind.UPSTREAM_TIMEOUT,
    "server_error": Kind.UPSTREAM_ERROR,
}
# Our account has no money left. Servers say so with 429 or 400, and waiting does not help.
_OUT_OF_MONEY = frozenset({"insufficient_quota", "billing_hard_limit_reached", "budget_exceeded"})

_MALFORMED = (orjson.JSONDecodeError, KeyError, TypeError, AttributeError, IndexError)


def error_from_status(status: int, body: bytes, retry_after: str | None, now: Now | None = None) -> GatewayError:
    """The error for a response that is not 200. ``body`` is what arrived of it, parseable or not. Without
    ``now`` a Retry-After that is a date says nothing."""
    detail = None
    kind = kind_of_status(status)
    try:
        error = orjson.loads(body)["error"]
        detail = error.get("message")
        if not _OUT_OF_MONEY.isdisjoint((error.get("code"), error.get("type"))):
            kind = Kind.UPSTREAM_AUTH
    except _MALFORMED:
        pass  # a proxy's HTML page, or nothing: the status has to do
    return vendor_error(kind, detail, retry_after_seconds(retry_after, now))


def _stream_error(error: Any) -> GatewayError:
    """An error inside a stream. LiteLLM puts the status into `code`, as text."""
    code, kind = error.get("code"), error.get("type")
    if not _OUT_OF_MONEY.isdisjoint((code, kind)):
        return vendor_error(Kind.UPSTREAM_AUTH)
    found = _ERROR_KINDS.get(code) if isinstance(code, str) else None
    if found is None and str(code).isdecimal() and int(code) >= 400:
        found = kind_of_status(int(code))
    if found is None and isinstance(kind, str):
        found = _ERROR_KINDS.get(kind)
    return vendor_error(found or Kind.UPSTREAM_ERROR, error.get("message"))


class ChatReader:
    """Reads one streamed answer, chunk by chunk.

    ``names`` maps the tool names the vendor saw back to the caller's. ``usage_includes_cache``: whether
    the vendor's prompt_tokens counts cached tokens too.

    Of several tool calls, the first streams as it comes; the others follow one after another at the end.
    Servers may send their pieces alternately, and no client format but this one could say that.
    """

    def __init__(self, names: dict[str, str], usage_includes_cache: bool = True) -> None:
        self._names = names
        self._usage = _UsageReader(usage_includes_cache)
        self._finish: str | None = None
        self._thinking = False  # a run of reasoning is open
        self._calls: list[_Call] = []

    def read(self, data: bytes) -> list[Event]:
        """Events of one SSE event. Raises ``GatewayError`` for an error object or what is no chunk."""
        if data == b"[DONE]":
            return self._end()
        try:
            chunk = orjson.loads(data)
            text = None if self._thinking else _plain_text(chunk)
            if text is not None:
                return [Text(text)]
            if chunk.get("error") is not None:
                raise _stream_error(chunk["error"])
            events = self._usage.take(chunk.get("usage"))
            for choice in chunk.get("choices") or ():
                if choice.get("index", 0) == 0:
                    events += self._message(choice.get("delta") or {})
                    self._finish = string(choice.get("finish_reason") or self._finish or "") or None
            return events or [ALIVE]
        except _MALFORMED:
            # `from None`: the exception's text holds the data that could not be parsed.
            raise protocol_error() from None

    def plain(self, data: bytes) -> str | None:
        try:
            return None if self._thinking else _plain_text(orjson.loads(data))
        except _MALFORMED:
            return None

    def read_whole(self, body: bytes) -> list[Event]:
        """Events of an answer that came as one JSON document although a stream was asked for."""
        try:
            document = orjson.loads(body)
            if document.get("error") is not None:
                raise _stream_error(document["error"])
            choice = document["choices"][0]
            events = self._usage.take(document.get("usage")) + self._message(choice["message"])
            # A document is complete by itself, also without a reason.
            self._finish = string(choice.get("finish_reason") or "stop")
            return events + self._end()
        except _MALFORMED:
            raise protocol_error() from None

    def end(self) -> list[Event]:
        """The connection ended in order. Some servers send no [DONE]; the finish reason tells as well."""
        return self._end()

    def _end(self) -> list[Event]:
        if self._finish is None:
            # Proxies have been seen to close broken streams with [DONE].
            raise interrupted()
        events = self._close_thinking("")
        for call in self._calls[:1]:
            if not call.fragments:
                events.append(ToolArguments(0, "{}"))  # "" is not JSON for the client
        for index, call in enumerate(self._calls[1:], 1):
            events.append(self._start_of(index, call))
            events.append(ToolArguments(index, "".join(call.fragments) or "{}"))
        reason = _FINISH_REASONS.get(self._finish, "stop")
        # A forced call ends with "stop" at OpenAI and with "tool_calls" elsewhere.
        unknown = self._finish not in _FINISH_REASONS
        return [*events, End("tool_calls" if self._calls and reason == "stop" else reason, unknown=unknown)]

    def _message(self, message: dict[str, Any]) -> list[Event]:
        """Events of a delta, or of a whole message: they have the same fields."""
        events = self._reasoning(message)
        # A refusal is what the model says to the person.
        for text in (message.get("content"), message.get("refusal")):
            if text:
                events += [*self._close_thinking(""), Text(string(text))]
        for position, piece in enumerate(message.get("tool_calls") or ()):
            events += self._tool_piece(piece, position)
        return events

    def _reasoning(self, message: dict[str, Any]) -> list[Event]:
        events: list[Event] = []
        blocks = message.get("thinking_blocks") or ()
        # The same words come twice: as text, and in the blocks that carry the signature.
        text = message.get("reasoning_content") or message.get("reasoning")
        if not text:
            text = "".join(block.get("thinking") or "" for block in blocks)
        if text:
            self._thinking = True
            events.append(Thinking(string(text)))
        for block in blocks:
            if block.get("type") == "redacted_thinking":
                events += [*self._close_thinking(""), RedactedThinking(string(block["data"]))]
            elif block.get("signature"):
                self._thinking = True
                events += self._close_thinking(string(block["signature"]))
        return events

    def _close_thinking(self, signature: str) -> list[Event]:
        if not self._thinking:
            return []
        self._thinking = False
        return [ThinkingEnd(signature)]

    def _tool_piece(self, piece: dict[str, Any], position: int) -> list[Event]:
        function = piece.get("function") or {}
        call = self._find_call(piece, position)
        events: list[Event] = []
        if call is None:
            name = string(function["name"])
            call = _Call(_index_of(piece, position), piece.get("id") or "", call_id(piece.get("id")), name)
            self._calls.append(call)
            if len(self._calls) == 1:
                events += [*self._close_thinking(""), self._start_of(0, call)]
        fragment = function.get("arguments")
        if fragment:
            call.fragments.append(string(fragment))
            if call is self._calls[0]:
                events.append(ToolArguments(0, fragment))
        return events

    def _start_of(self, index: int, call: _Call) -> ToolStart:
        return ToolStart(index, call.id, self._names.get(call.name, call.name))

    def _find_call(self, piece: dict[str, Any], position: int) -> _Call | None:
        """The call that ``piece`` continues, or None if it begins one. Some servers give all calls the
        same index and tell them apart by id; some give no ids either; some repeat id or name with every piece."""
        index, given_id = _index_of(piece, position), piece.get("id") or ""
        name = (piece.get("function") or {}).get("name")
        for call in reversed(self._calls):
            if call.index != index:
                continue
            if given_id and given_id == call.given_id:
                return call
            if not (given_id and call.given_id):
                return None if name and call.is_over_before(name) else call
        return None


def _index_of(piece: dict[str, Any], position: int) -> Any:
    index = piece.get("index")
    return position if index is None else index


_PLAIN_DELTA = {"content", "role"}


def _plain_text(chunk: dict[str, Any]) -> str | None:
    """The text of a chunk that holds nothing else, as nearly all do; None for any other, which is read with care."""
    try:
        [choice] = chunk["choices"]
        delta = choice["delta"]
        text = delta["content"]
    except (LookupError, TypeError, ValueError):
        return None
    if choice.get("finish_reason") is not None or choice.get("index", 0) != 0 or not delta.keys() <= _PLAIN_DELTA:
        return None
    if chunk.get("usage") is not None or chunk.get("error") is not None:
        return None
    return text if text and isinstance(text, str) else None


class _Call:
    """A tool call as it arrives. ``given_id`` is the server's id, if it gave one; ``name`` as the server sees it."""

    def __init__(self, index: Any, given_id: str, call_id: str, name: str) -> None:
        self.index = index
        self.given_id = given_id
        self.id = call_id
        self.name = name
        self.fragments: list[str] = []

    def is_over_before(self, name: str) -> bool:
        """Whether a piece with this name, and no id to tell, begins another call."""
        if name != self.name:
            return True
        if not self.fragments or not self.fragments[-1].rstrip().endswith("}"):
            return False  # the name is only repeated
        try:
            orjson.loads("".join(self.fragments))
        except orjson.JSONDecodeError:
            return False
        return True


class _UsageReader:
    """Merges counts by presence: servers send them once, or cumulatively with every chunk."""

    def __init__(self, includes_cache: bool) -> None:
        self._includes_cache = includes_cache
        self._usage = Usage()
        self._prompt = 0

    def take(self, usage: Any) -> list[Event]:
        if usage is None:
            return []
        details = usage.get("prompt_tokens_details") or {}
        lifetimes = details.get("cache_creation_token_details") or {}
        prompt = count(usage.get("prompt_tokens"))
        if prompt is not None:
            self._prompt = prompt
        merged = self._usage.with_present(
            cache_read=_first_count(details.get("cached_tokens"), usage.get("cache_read_input_tokens")),
            cache_write=_first_count(
                # OpenAI's name, and two of LiteLLM's.
                details.get("cache_write_tokens"),
                details.get("cache_creation_tokens"),
                usage.get("cache_creation_input_tokens"),
            ),
            cache_write_1h=count(lifetimes.get("ephemeral_1h_input_tokens")),
            output=count(usage.get("completion_tokens")),
        )
        cached = merged.cache_read + merged.cache_write if self._includes_cache else 0
        self._usage = merged.with_present(input=max(0, self._prompt - cached))
        return [self._usage]


def _first_count(*values: Any) -> int | None:
    return next((found for found in map(count, values) if found is not None), None)
