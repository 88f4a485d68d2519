"""The neutral form, built into a body for an OpenAI-compatible server.

Source: platform.openai.com, "Chat" API reference, and the types of the `openai` package 3.52; what is
LiteLLM's own (`cache_control`, `thinking_blocks`), docs.litellm.ai, read 2026-11-21.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from hearth_gateway.records import record
from hearth_gateway.translate.fields import json_bytes
from hearth_gateway.translate.history import (
    ToolNames,
    answers_unsigned_calls,
    regular_turns,
    safe_id,
    wrapped_system,
)
from hearth_gateway.translate.model import (
    ChatRequest,
    ImagePart,
    Json,
    Part,
    PdfPart,
    RedactedThinkingPart,
    SystemPart,
    TextPart,
    ThinkingPart,
    ToolResult,
    ToolUse,
    Turn,
)
from hearth_gateway.translate.traits import OPENAI, ModelTraits, effort_of

_LONGEST_TOOL_NAME = 64
_DEFAULT_SCHEMA_NAME = "answer"
_MAX_STOP_SEQUENCES = 4


@dataclass(frozen=True, slots=True)
class Dialect:
    """Where servers of this API differ.

    ``max_tokens_field``: OpenAI's newer models know only `max_completion_tokens`, older servers only
    `max_tokens`. ``extensions``: the server takes LiteLLM's `cache_control` and `thinking_blocks`.
    """

    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    extensions: bool = True


@record
class OpenAIRequest:
    """``names`` maps the tool names the vendor sees back to the caller's. ``adjusted`` lists the
    caller's fields whose value was changed to one the vendor accepts, or that it cannot take."""

    body: dict[str, Any]
    names: dict[str, str]
    adjusted: tuple[str, ...]


def build_chat_request(
    request: ChatRequest,
    model: str,
    max_output_tokens: int,
    *,
    traits: ModelTraits = OPENAI,
    dialect: Dialect | None = None,
    user: str | None = None,
) -> OpenAIRequest:
    """Build the body for ``model``, whose answers hold at most ``max_output_tokens`` tokens.

    The vendor is always asked to stream, and for the usage, as at Anthropic: also an answer that breaks
    has to be counted. ``user`` is a pseudonym. Raises ``InvalidRequestError`` where the conversation
    cannot be expressed.
    """
    return _Builder(request, traits, dialect or Dialect()).build(model, max_output_tokens, user)


class _Builder:
    """Builds one body; collects what had to be changed."""

    def __init__(self, request: ChatRequest, traits: ModelTraits, dialect: Dialect) -> None:
        self._request = request
        self._traits = traits
        self._dialect = dialect
        self._names = ToolNames(request, _LONGEST_TOOL_NAME)
        self._adjusted: list[str] = []

    def build(self, model: str, max_output_tokens: int, user: str | None) -> OpenAIRequest:
        request = self._request
        turns = regular_turns(request)
        messages = [self._text_message("system", list(request.system))] if request.system else []
        for turn in turns:
            messages += self._turn(turn)
        limit = min(request.max_tokens or max_output_tokens, max_output_tokens)
        if request.max_tokens is not None and request.max_tokens > max_output_tokens:
            self._adjust("max_tokens")
        body: dict[str, Any] = {
            "model": model,
            "messages": messages,
            self._dialect.max_tokens_field: limit,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        self._add_sampling(body)
        self._add_reasoning(body, turns)
        if request.stop:
            body["stop"] = list(request.stop[:_MAX_STOP_SEQUENCES])
            if len(request.stop) > _MAX_STOP_SEQUENCES:
                self._adjust("stop")
        if request.output is not None:
            body["response_format"] = self._response_format()
        body.update(self._tools())
        if user is not None:
            body["user"] = user
        return OpenAIRequest(body, self._names.reverse, tuple(self._adjusted))

    def _adjust(self, field: str) -> None:
        if field not in self._adjusted:
            self._adjusted.append(field)

    # --- options

    def _add_sampling(self, body: dict[str, Any]) -> None:
        request = self._request
        for name, value in (("temperature", request.temperature), ("top_p", request.top_p)):
            if value is None:
                continue
            if self._traits.sampling:
                body[name] = value
            else:
                self._adjust(name)
        if request.top_k is not None:
            self._adjust("top_k")  # the API has no such field

    def _add_reasoning(self, body: dict[str, Any], turns: list[Turn]) -> None:
        request = self._request
        effort = request.effort
        if effort is None and request.thinking is not None and request.thinking.mode != "disabled":
            effort = effort_of(request.thinking.budget_tokens)
            self._adjust("thinking")
        if effort is None:
            return
        unsigned = answers_unsigned_calls(turns) or not self._dialect.extensions
        in_tool_loop = any(isinstance(part, ToolResult) for part in turns[-1].parts)
        if self._traits.reasoning == "none" or (in_tool_loop and unsigned and effort != "none"):
            # LiteLLM passes reasoning on as a budget, and a model then wants the signed reasoning
            # that led to the calls.
            self._adjust("reasoning_effort")
            return
        body["reasoning_effort"] = effort

    def _response_format(self) -> dict[str, Any]:
        output = self._request.output
        if output is None or output.schema is None:
            return {"type": "json_object"}
        schema: dict[str, Any] = {"name": output.name or _DEFAULT_SCHEMA_NAME, "schema": dict(output.schema)}
        if output.strict is not None:
            schema["strict"] = output.strict
        return {"type": "json_schema", "json_schema": schema}

    def _tools(self) -> dict[str, Any]:
        request = self._request
        tools = []
        for tool in request.tools:
            function: dict[str, Any] = {"name": self._names[tool.name], "parameters": dict(tool.schema)}
            if tool.description is not None:
                function["description"] = tool.description
            if tool.strict is not None:
                function["strict"] = tool.strict
            tools.append(self._cached({"type": "function", "function": function}, tool.cache_control))
        if not tools:
            # Bedrock refuses tool calls in the history of a request without tools.
            tools = [
                {
                    "type": "function",
                    "function": {"name": self._names[name], "description": "No longer available.", "parameters": _NO_ARGUMENTS},
                }
                for name in self._names.used
            ]
            return {"tools": tools, "tool_choice": "none"} if tools else {}
        built: dict[str, Any] = {"tools": tools}
        choice = request.tool_choice
        if choice is not None:
            built["tool_choice"] = _MODES.get(choice.mode) or {"type": "function", "function": {"name": self._names[choice.name or ""]}}
        if request.parallel_tools is not None and (choice is None or choice.mode != "none"):
            built["parallel_tool_calls"] = request.parallel_tools
        return built

    def _cached(self, built: dict[str, Any], cache_control: Json | None) -> dict[str, Any]:
        if cache_control is not None:
            if self._dialect.extensions:
                built["cache_control"] = cache_control
            else:
                self._adjust("cache_control")
        return built

    # --- messages

    def _turn(self, turn: Turn) -> list[dict[str, Any]]:
        if turn.role == "assistant":
            return [self._assistant(turn)]
        messages: list[dict[str, Any]] = []
        run: list[dict[str, Any]] = []  # of parts that share one user message
        for part in turn.parts:
            if isinstance(part, ToolResult):
                messages.append(self._tool_message(part))
                run += self._images_of(part)
            elif isinstance(part, SystemPart) and self._traits.later_system:
                messages += _user_message(run)
                run = []
                messages.append(self._text_message("system", [part]))
            else:
                run.append(self._part(part))
        return messages + _user_message(run)

    def _assistant(self, turn: Turn) -> dict[str, Any]:
        texts = [part for part in turn.parts if isinstance(part, TextPart)]
        calls = [
            {
                "id": safe_id(part.id),
                "type": "function",
                "function": {
                    "name": self._names[part.name],
                    "arguments": json_bytes(part.arguments).decode() if part.text is None else part.text,
                },
            }
            for part in turn.parts
            if isinstance(part, ToolUse)
        ]
        message: dict[str, Any] = self._text_message("assistant", list(texts)) if texts else {"role": "assistant", "content": None}
        if calls:
            message["tool_calls"] = calls
        elif not texts:
            message["content"] = ""  # a turn of reasoning only; null is for calls
        blocks = [_thinking_block(part) for part in turn.parts if isinstance(part, ThinkingPart | RedactedThinkingPart)]
        if blocks and self._dialect.extensions:
            message["thinking_blocks"] = blocks
        return message

    def _tool_message(self, result: ToolResult) -> dict[str, Any]:
        texts: list[TextPart | SystemPart] = [part for part in result.parts if isinstance(part, TextPart)]
        if result.is_error:
            # The API has no flag for it, and a failure must not read like a result.
            texts = [TextPart("The tool failed:"), *texts]
        if any(isinstance(part, ImagePart) for part in result.parts):
            texts.append(TextPart("(The images this tool returned follow in the next message.)"))
        message = self._text_message("tool", texts)
        message["tool_call_id"] = safe_id(result.id)
        return self._cached(message, result.cache_control)

    def _images_of(self, result: ToolResult) -> list[dict[str, Any]]:
        """A tool message holds text only; the images go into the user's message after it."""
        return [self._part(part) for part in result.parts if isinstance(part, ImagePart)]

    def _text_message(self, role: str, parts: list[TextPart] | list[SystemPart] | list[TextPart | SystemPart]) -> dict[str, Any]:
        """Plain text where one part says it all: not every server takes lists everywhere."""
        if not parts:
            return {"role": role, "content": ""}
        if len(parts) == 1 and parts[0].cache_control is None:
            return {"role": role, "content": parts[0].text}
        return {"role": role, "content": [self._text(part) for part in parts]}

    def _text(self, part: TextPart | SystemPart) -> dict[str, Any]:
        return self._cached({"type": "text", "text": part.text}, part.cache_control)

    def _part(self, part: Part) -> dict[str, Any]:
        """A part of a user's message."""
        if isinstance(part, SystemPart):
            return self._text(wrapped_system(part))
        if isinstance(part, ImagePart):
            url = part.url or f"data:{part.media_type};base64,{part.data}"
            return self._cached({"type": "image_url", "image_url": {"url": url}}, part.cache_control)
        if isinstance(part, PdfPart):
            file = {"filename": part.title or "document.pdf", "file_data": f"data:application/pdf;base64,{part.data}"}
            return self._cached({"type": "file", "file": file}, part.cache_control)
        if isinstance(part, TextPart):
            return self._text(part)
        raise TypeError(type(part).__name__)  # the parsers put no other part into a user's turn


_MODES = {"auto": "auto", "any": "required", "none": "none"}
_NO_ARGUMENTS = {"type": "object", "properties": {}}


def _user_message(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not parts:
        return []
    if len(parts) == 1 and set(parts[0]) == {"type", "text"}:
        return [{"role": "user", "content": parts[0]["text"]}]
    return [{"role": "user", "content": parts}]


def _thinking_block(part: ThinkingPart | RedactedThinkingPart) -> dict[str, Any]:
    if isinstance(part, RedactedThinkingPart):
        return {"type": "redacted_thinking", "data": part.data}
    return {"type": "thinking", "thinking": part.text, "signature": part.signature}
