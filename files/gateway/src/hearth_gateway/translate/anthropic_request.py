"""The neutral form, built into a body for Anthropic's Messages API.

Source: platform.claude.com, "Messages" API reference, version header 2023-06-01.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from hearth_gateway.errors import InvalidRequestError
from hearth_gateway.translate.model import (
    ChatRequest,
    ImagePart,
    Json,
    Part,
    PdfPart,
    RedactedThinkingPart,
    TextPart,
    ThinkingPart,
    ToolResult,
    ToolUse,
    Turn,
)

_TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,128}\Z")
_NOT_IN_TOOL_NAME = re.compile(r"[^A-Za-z0-9_-]")
_TOOL_ID = re.compile(r"[A-Za-z0-9_-]+\Z")

# The Messages API wants the first turn to be the user's. Clients with a greeting start differently.
START_OF_CONVERSATION = "(start of the conversation)"


@dataclass(frozen=True, slots=True)
class AnthropicRequest:
    """``names`` maps the tool names the vendor sees back to the caller's. ``adjusted`` lists the
    caller's fields whose value was changed to one the vendor accepts."""

    body: dict[str, Any]
    names: dict[str, str]
    adjusted: tuple[str, ...]


def build_messages_request(request: ChatRequest, model: str, max_output_tokens: int) -> AnthropicRequest:
    """Build the body for ``model``, whose answers hold at most ``max_output_tokens`` tokens.

    The vendor is always asked to stream, also for a caller who waits for the whole answer: that way
    a silent vendor is noticed after the first-token limit, and what was used before a fault is known.
    Raises ``InvalidRequestError`` where the conversation cannot be expressed.
    """
    adjusted: list[str] = []
    names = _ToolNames(request)
    turns = _merge(request.turns)
    _check_tool_pairs(turns)
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": max_output_tokens,
        "messages": [_message(turn, names, last=turn is turns[-1]) for turn in turns],
        "stream": True,
    }
    if request.max_tokens is not None:
        body["max_tokens"] = min(request.max_tokens, max_output_tokens)
        if request.max_tokens > max_output_tokens:
            adjusted.append("max_tokens")
    if request.system:
        body["system"] = [_text(part) for part in request.system]
    if request.temperature is not None:
        body["temperature"] = min(request.temperature, 1.0)
        if request.temperature > 1.0:
            adjusted.append("temperature")
    if request.top_p is not None:
        # Anthropic's newer models refuse both at once.
        if request.temperature is None:
            body["top_p"] = request.top_p
        else:
            adjusted.append("top_p")
    if request.top_k is not None:
        body["top_k"] = request.top_k
    if request.stop:
        body["stop_sequences"] = list(request.stop)
    body.update(_tools(request, names))
    return AnthropicRequest(body, names.reverse, tuple(adjusted))


class _ToolNames:
    """Caller's tool names → names the vendor accepts, without collisions, and back."""

    def __init__(self, request: ChatRequest) -> None:
        self.reverse: dict[str, str] = {}
        self._safe: dict[str, str] = {}
        history = [part.name for turn in request.turns for part in turn.parts if isinstance(part, ToolUse)]
        wanted = dict.fromkeys([*(tool.name for tool in request.tools), *history])
        # Names that are fine keep theirs, whatever the order: only the others may be renamed.
        for name in sorted(wanted, key=lambda name: not _TOOL_NAME.match(name)):
            safe = name
            if not _TOOL_NAME.match(name):
                safe = _NOT_IN_TOOL_NAME.sub("_", name)[:128]
                if safe in self.reverse:
                    safe = f"{safe[:119]}_{sha256(name.encode()).hexdigest()[:8]}"
            self._safe[name] = safe
            self.reverse[safe] = name

    def __getitem__(self, name: str) -> str:
        return self._safe[name]


def _merge(turns: tuple[Turn, ...]) -> list[Turn]:
    """Join neighbours of one role, drop empty turns, start with the user."""
    merged: list[Turn] = []
    for turn in turns:
        if not turn.parts:
            continue
        if merged and merged[-1].role == turn.role:
            previous = merged[-1]
            merged[-1] = Turn(turn.role, previous.parts + turn.parts, previous.param)
        else:
            merged.append(turn)
    if not merged:
        raise InvalidRequestError("`messages` must hold at least one message that is not empty.", "messages")
    if merged[0].role == "assistant":
        merged.insert(0, Turn("user", (TextPart(START_OF_CONVERSATION),), "messages"))
    return merged


def _check_tool_pairs(turns: list[Turn]) -> None:
    """Every tool call must be answered in the turn after it; the vendor's own error names no message."""
    for index, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        asked = [part.id for part in turn.parts if isinstance(part, ToolUse)]
        following = turns[index + 1] if index + 1 < len(turns) else None
        answered = set(_result_ids(following.parts)) if following else set()
        for call_id in asked:
            if call_id not in answered:
                raise InvalidRequestError(f"The tool call `{_show(call_id)}` has no result.", turn.param)
    for index, turn in enumerate(turns):
        results = list(_result_ids(turn.parts))
        before = turns[index - 1] if index else None
        asked = [part.id for part in before.parts if isinstance(part, ToolUse)] if before else []
        for call_id in results:
            if call_id not in asked:
                raise InvalidRequestError(f"The tool result `{_show(call_id)}` answers no call of the turn before it.", turn.param)
        if len(set(results)) != len(results):
            raise InvalidRequestError("A tool call has two results.", turn.param)


def _result_ids(parts: Iterable[Part]) -> Iterable[str]:
    return (part.id for part in parts if isinstance(part, ToolResult))


def _show(call_id: str) -> str:
    """An id is the caller's own text: show it only in the form that ids have."""
    return call_id if _TOOL_ID.match(call_id) and len(call_id) <= 64 else "(unprintable id)"


def _message(turn: Turn, names: _ToolNames, last: bool) -> dict[str, Any]:
    parts = turn.parts
    if turn.role == "user":
        # The vendor wants tool results before anything else in the turn.
        parts = tuple(sorted(parts, key=lambda part: not isinstance(part, ToolResult)))
    elif last and isinstance(parts[-1], TextPart):
        # The answer continues this text, and the vendor refuses it with white space at its end.
        parts = (*parts[:-1], TextPart(parts[-1].text.rstrip(), parts[-1].cache_control))
    return {"role": turn.role, "content": [_block(part, names) for part in parts]}


def _cached(block: dict[str, Any], cache_control: Json | None) -> dict[str, Any]:
    if cache_control is not None:
        block["cache_control"] = cache_control
    return block


def _text(part: TextPart) -> dict[str, Any]:
    return _cached({"type": "text", "text": part.text}, part.cache_control)


def _image(part: ImagePart) -> dict[str, Any]:
    source: dict[str, Any]
    if part.url is not None:
        source = {"type": "url", "url": part.url}
    else:
        source = {"type": "base64", "media_type": part.media_type, "data": part.data}
    return _cached({"type": "image", "source": source}, part.cache_control)


def _block(part: Part, names: _ToolNames) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return _text(part)
    if isinstance(part, ImagePart):
        return _image(part)
    if isinstance(part, PdfPart):
        source = {"type": "base64", "media_type": "application/pdf", "data": part.data}
        block: dict[str, Any] = {"type": "document", "source": source}
        if part.title:
            block["title"] = part.title
        return _cached(block, part.cache_control)
    if isinstance(part, ThinkingPart):
        return {"type": "thinking", "thinking": part.text, "signature": part.signature}
    if isinstance(part, RedactedThinkingPart):
        return {"type": "redacted_thinking", "data": part.data}
    if isinstance(part, ToolUse):
        block = {"type": "tool_use", "id": _safe_id(part.id), "name": names[part.name], "input": dict(part.arguments)}
        return _cached(block, part.cache_control)
    block = {"type": "tool_result", "tool_use_id": _safe_id(part.id)}
    if part.is_error:
        block["is_error"] = True
    if part.parts:
        block["content"] = [_text(inner) if isinstance(inner, TextPart) else _image(inner) for inner in part.parts]
    return _cached(block, part.cache_control)


def _safe_id(call_id: str) -> str:
    """Ids made by other vendors may hold characters this one refuses. The same id maps to the same."""
    if _TOOL_ID.match(call_id):
        return call_id
    return f"call_{sha256(call_id.encode()).hexdigest()[:24]}"


def _tools(request: ChatRequest, names: _ToolNames) -> dict[str, Any]:
    tools = []
    for tool in request.tools:
        built: dict[str, Any] = {"name": names[tool.name], "input_schema": dict(tool.schema)}
        if tool.description is not None:
            built["description"] = tool.description
        if tool.strict is not None:
            built["strict"] = tool.strict
        tools.append(_cached(built, tool.cache_control))
    if not tools:
        # The vendor refuses tool calls in the history of a request without tools.
        used = dict.fromkeys(part.name for turn in request.turns for part in turn.parts if isinstance(part, ToolUse))
        tools = [{"name": names[name], "description": "No longer available.", "input_schema": {"type": "object"}} for name in used]
        return {"tools": tools, "tool_choice": {"type": "none"}} if tools else {}
    choice: dict[str, Any] | None = None
    if request.tool_choice is not None:
        choice = {"type": request.tool_choice.mode}
        if request.tool_choice.name is not None:
            choice["name"] = names[request.tool_choice.name]
    if request.parallel_tools is not None and (choice is None or choice["type"] != "none"):
        choice = choice or {"type": "auto"}
        choice["disable_parallel_tool_use"] = not request.parallel_tools
    return {"tools": tools, "tool_choice": choice} if choice else {"tools": tools}
