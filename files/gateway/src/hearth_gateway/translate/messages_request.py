"""An Anthropic Messages request, parsed into the neutral form.

Source: platform.claude.com, "Messages" API reference, and the types of the `anthropic` package 2.11.

As with chat completions, nothing of the conversation is dropped in silence: what no provider of ours
can be given is an error that names its place. Known hints that only tune are left out and listed in
the response header x-hearth-ignored.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from hearth_gateway.errors import InvalidRequestError
from hearth_gateway.translate.fields import (
    cache_control,
    check_cache_breakpoints,
    identifier,
    media_type_of,
    model_name,
    number,
    optional,
    part_list,
    positive,
    string,
    system_in_place,
)
from hearth_gateway.translate.model import (
    ChatRequest,
    Effort,
    ImagePart,
    JsonOutput,
    Part,
    PdfPart,
    RedactedThinkingPart,
    TextPart,
    ThinkingConfig,
    ThinkingPart,
    Tool,
    ToolChoice,
    ToolResult,
    ToolUse,
    Turn,
)

MAX_MESSAGES = 100_000  # Anthropic's own limit
MIN_THINKING_TOKENS = 1024  # Anthropic's own limit

# Left out and listed. `metadata` too: its user_id is chosen by the caller and could name a person;
# providers get a pseudonym of our own instead.
_HINTS = frozenset({"metadata", "service_tier", "speed", "diagnostics", "user_profile_id", "context_management"})
# Fields that change what happens to the words, or what comes back.
_REFUSED = {
    "container": "Code execution in containers is not supported.",
    "mcp_servers": "MCP servers are not supported.",
    "inference_geo": "The place where a model runs cannot be chosen here.",
    "output_format": "Use `output_config.format` instead of `output_format`.",
}
_KNOWN = frozenset(
    {
        "model",
        "messages",
        "max_tokens",
        "system",
        "stream",
        "temperature",
        "top_p",
        "top_k",
        "stop_sequences",
        "tools",
        "tool_choice",
        "thinking",
        "output_config",
        "cache_control",
    }
)
# They tune how a tool is offered to the model; without them it is offered in the plain way.
_TOOL_HINTS = ("allowed_callers", "defer_loading", "eager_input_streaming", "input_examples")


def parse_messages_request(body: Any) -> ChatRequest:
    """Parse a decoded JSON body. Raises ``InvalidRequestError`` with the path of the field at fault."""
    if not isinstance(body, dict):
        raise InvalidRequestError("The request body must be a JSON object.")
    for name, reason in _REFUSED.items():
        if body.get(name) is not None:
            raise InvalidRequestError(reason, name)
    leading, turns = _messages(body.get("messages"))
    tools = _tools(body.get("tools"))
    choice, parallel = _tool_choice(optional(body, "tool_choice", dict), tools)
    max_tokens = positive(body, "max_tokens")
    if max_tokens is None:
        raise InvalidRequestError("`max_tokens` is required.", "max_tokens")
    effort, output = _output_config(optional(body, "output_config", dict))
    thinking = _thinking(optional(body, "thinking", dict), max_tokens)
    if thinking is None and effort is not None:
        # Effort without a word about thinking is not a wish for thinking, as it is in OpenAI's API.
        thinking = ThinkingConfig("default")
    request = ChatRequest(
        alias=model_name(body.get("model")),
        system=(*_texts(body.get("system"), "system"), *leading),
        turns=_with_cache_control(turns, optional(body, "cache_control", dict)),
        tools=tools,
        tool_choice=choice,
        parallel_tools=parallel,
        max_tokens=max_tokens,
        temperature=number(body, "temperature", 0.0, 1.0),
        top_p=number(body, "top_p", 0.0, 1.0),
        top_k=_top_k(body),
        stop=_stop(body.get("stop_sequences")),
        stream=optional(body, "stream", bool) or False,
        include_usage=True,
        thinking=thinking,
        effort=effort,
        output=output,
        ignored=_ignored(body),
    )
    check_cache_breakpoints(request)
    return request


def _ignored(body: dict[str, Any]) -> tuple[str, ...]:
    """Known hints by name; unknown fields as one word, because the caller chose their names."""
    hints = sorted(name for name in body if name in _HINTS and body[name] is not None)
    tools = body.get("tools") or ()
    hints += [f"tools.{name}" for name in _TOOL_HINTS if any(tool.get(name) is not None for tool in tools)]
    if any(name not in _HINTS and name not in _KNOWN and name not in _REFUSED for name in body):
        hints.append("unknown-fields")
    return tuple(hints)


def _top_k(body: dict[str, Any]) -> int | None:
    value = body.get("top_k")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise InvalidRequestError("`top_k` must be a whole number of at least 0.", "top_k")
    return value


def _stop(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InvalidRequestError("`stop_sequences` must be an array of strings.", "stop_sequences")
    # Vendors refuse a stop sequence of white space only.
    return tuple(item for item in value if item.strip())


def _thinking(value: dict[str, Any] | None, max_tokens: int) -> ThinkingConfig | None:
    if value is None:
        return None
    mode, display = value.get("type"), value.get("display")
    if mode not in ("enabled", "adaptive", "disabled", "between_tools"):
        raise InvalidRequestError("`type` must be one of enabled, adaptive, disabled, between_tools.", "thinking.type")
    if display not in (None, "summarized", "omitted"):
        raise InvalidRequestError("`display` must be summarized or omitted.", "thinking.display")
    if mode != "enabled":
        return ThinkingConfig(mode, display=display)
    budget = value.get("budget_tokens")
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < MIN_THINKING_TOKENS:
        raise InvalidRequestError(f"`budget_tokens` must be a whole number of at least {MIN_THINKING_TOKENS}.", "thinking.budget_tokens")
    if budget >= max_tokens:
        raise InvalidRequestError("`budget_tokens` must be less than `max_tokens`.", "thinking.budget_tokens")
    return ThinkingConfig(mode, budget, display)


_EFFORTS: dict[str, Effort] = {"low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh", "max": "max"}


def _output_config(value: dict[str, Any] | None) -> tuple[Effort | None, JsonOutput | None]:
    if value is None:
        return None, None
    effort = value.get("effort")
    if effort is not None and (not isinstance(effort, str) or effort not in _EFFORTS):
        raise InvalidRequestError("`effort` must be one of low, medium, high, xhigh, max.", "output_config.effort")
    wanted = value.get("format")
    output = None
    if wanted is not None:
        schema = wanted.get("schema") if isinstance(wanted, dict) and wanted.get("type") == "json_schema" else None
        if not isinstance(schema, dict):
            raise InvalidRequestError("`format` must be {type: json_schema, schema: {…}}.", "output_config.format")
        output = JsonOutput(schema, strict=True)
    return _EFFORTS[effort] if effort is not None else None, output


# --- messages ---------------------------------------------------------------------------------


def _messages(value: Any) -> tuple[tuple[TextPart, ...], tuple[Turn, ...]]:
    """System messages before the first turn, and the turns."""
    if not isinstance(value, list) or not value:
        raise InvalidRequestError("`messages` must be an array with at least one message.", "messages")
    if len(value) > MAX_MESSAGES:
        raise InvalidRequestError(f"`messages` may hold at most {MAX_MESSAGES} messages.", "messages")
    leading: list[TextPart] = []
    turns: list[Turn] = []
    for index, message in enumerate(value):
        param = f"messages[{index}]"
        if not isinstance(message, dict):
            raise InvalidRequestError("A message must be an object.", param)
        role, content, where = message.get("role"), message.get("content"), f"{param}.content"
        if role == "user":
            turns.append(Turn("user", _user_parts(content, where), param))
        elif role == "assistant":
            turns.append(Turn("assistant", _assistant_parts(content, where), param))
        elif role == "system":
            parts = _texts(content, where)
            if turns:
                turns.append(Turn("user", system_in_place(parts), param))
            else:
                leading.extend(parts)
        else:
            raise InvalidRequestError("`role` must be one of user, assistant, system.", f"{param}.role")
    if not turns:
        raise InvalidRequestError("`messages` must hold at least one user message.", "messages")
    return tuple(leading), tuple(turns)


def _with_cache_control(turns: tuple[Turn, ...], marker: dict[str, Any] | None) -> tuple[Turn, ...]:
    """Cache control of the whole request goes to the last block that can carry it."""
    if marker is None:
        return turns
    for at in range(len(turns) - 1, -1, -1):
        parts = turns[at].parts
        for index in range(len(parts) - 1, -1, -1):
            part = parts[index]
            if isinstance(part, ThinkingPart | RedactedThinkingPart):
                continue
            if part.cache_control is not None:
                return turns
            marked = (*parts[:index], replace(part, cache_control=marker), *parts[index + 1 :])
            return (*turns[:at], replace(turns[at], parts=marked), *turns[at + 1 :])
    return turns


def _texts(content: Any, param: str) -> tuple[TextPart, ...]:
    """Text-only content; empty pieces are left out, because vendors refuse empty text blocks."""
    if content is None:
        return ()
    if isinstance(content, str):
        return (TextPart(content),) if content.strip() else ()
    parts: list[TextPart] = []
    for index, block in enumerate(part_list(content, param)):
        where = f"{param}[{index}]"
        if block.get("type") != "text":
            raise InvalidRequestError("Only text is allowed here.", f"{where}.type")
        parts.extend(_text(block, where))
    return tuple(parts)


def _text(block: dict[str, Any], param: str) -> tuple[TextPart, ...]:
    if block.get("citations"):
        raise InvalidRequestError("Citations are not supported.", f"{param}.citations")
    text = string(block.get("text"), f"{param}.text")
    return (TextPart(text, cache_control(block, param)),) if text.strip() else ()


def _user_parts(content: Any, param: str) -> tuple[Part, ...]:
    parts: list[Part] = []
    if isinstance(content, str) or content is None:
        parts.extend(_texts(content, param))
    else:
        for index, block in enumerate(part_list(content, param)):
            parts.extend(_user_block(block, f"{param}[{index}]"))
    if not parts:
        raise InvalidRequestError("A user message must not be empty.", param)
    return tuple(parts)


def _user_block(block: dict[str, Any], param: str) -> tuple[Part, ...]:
    kind = block.get("type")
    if kind == "text":
        return _text(block, param)
    if kind == "image":
        return (_image(block, param),)
    if kind == "document":
        return _document(block, param)
    if kind == "tool_result":
        return (_tool_result(block, param),)
    raise InvalidRequestError("Only blocks of type text, image, document and tool_result are supported.", f"{param}.type")


def _source(block: dict[str, Any], param: str) -> dict[str, Any]:
    source = block.get("source")
    if not isinstance(source, dict):
        raise InvalidRequestError("`source` must be an object.", f"{param}.source")
    return source


def _image(block: dict[str, Any], param: str) -> ImagePart:
    source, cache = _source(block, param), cache_control(block, param)
    if source.get("type") == "base64":
        data = string(source.get("data"), f"{param}.source.data")
        media_type = media_type_of(data, f"{param}.source.data")
        if media_type == "application/pdf":
            raise InvalidRequestError("A PDF goes into a block of type document.", f"{param}.source.data")
        return ImagePart(media_type, data, cache_control=cache)
    if source.get("type") == "url":
        url = string(source.get("url"), f"{param}.source.url")
        if not url.startswith("https://"):
            raise InvalidRequestError("Only https addresses are supported.", f"{param}.source.url")
        return ImagePart(url=url, cache_control=cache)
    raise InvalidRequestError("Only sources of type base64 and url are supported.", f"{param}.source.type")


def _document(block: dict[str, Any], param: str) -> tuple[Part, ...]:
    """A PDF, or text. Text becomes a text part with a title line: no two vendors agree on more."""
    citations = block.get("citations")
    if citations is not None and not (isinstance(citations, dict) and not citations.get("enabled")):
        raise InvalidRequestError("Citations are not supported.", f"{param}.citations")
    source, cache = _source(block, param), cache_control(block, param)
    title = optional(block, "title", str)
    context = optional(block, "context", str)
    about = (TextPart(f"About the following document: {context}"),) if context and context.strip() else ()
    kind = source.get("type")
    if kind == "base64":
        data = string(source.get("data"), f"{param}.source.data")
        if media_type_of(data, f"{param}.source.data") != "application/pdf":
            raise InvalidRequestError("A document of type base64 must be a PDF.", f"{param}.source.data")
        return (*about, PdfPart(data, title, cache))
    if kind == "text":
        text = string(source.get("data"), f"{param}.source.data")
        head = f"Document: {title}\n\n" if title else ""
        return (*about, TextPart(head + text, cache)) if text.strip() else about
    raise InvalidRequestError("Only sources of type base64 (PDF) and text are supported.", f"{param}.source.type")


def _tool_result(block: dict[str, Any], param: str) -> ToolResult:
    content, where = block.get("content"), f"{param}.content"
    parts: list[TextPart | ImagePart] = []
    if isinstance(content, str) or content is None:
        parts.extend(_texts(content, where))
    else:
        for index, inner in enumerate(part_list(content, where)):
            if inner.get("type") == "text":
                parts.extend(_text(inner, f"{where}[{index}]"))
            elif inner.get("type") == "image":
                parts.append(_image(inner, f"{where}[{index}]"))
            else:
                raise InvalidRequestError("A tool result may hold text and images only.", f"{where}[{index}].type")
    is_error = block.get("is_error")
    if not isinstance(is_error, bool | None):
        raise InvalidRequestError("`is_error` must be true or false.", f"{param}.is_error")
    call_id = identifier(block.get("tool_use_id"), f"{param}.tool_use_id")
    return ToolResult(call_id, tuple(parts), cache_control(block, param), bool(is_error))


def _assistant_parts(content: Any, param: str) -> tuple[Part, ...]:
    if isinstance(content, str) or content is None:
        return _texts(content, param)
    parts: list[Part] = []
    for index, block in enumerate(part_list(content, param)):
        parts.extend(_assistant_block(block, f"{param}[{index}]"))
    return tuple(parts)


def _assistant_block(block: dict[str, Any], param: str) -> tuple[Part, ...]:
    kind = block.get("type")
    if kind == "text":
        return _text(block, param)
    if kind == "tool_use":
        arguments = block.get("input")
        if not isinstance(arguments, dict):
            raise InvalidRequestError("`input` must be an object.", f"{param}.input")
        call_id, name = identifier(block.get("id"), f"{param}.id"), identifier(block.get("name"), f"{param}.name")
        return (ToolUse(call_id, name, arguments, cache_control(block, param)),)
    if kind == "thinking":
        text = string(block.get("thinking"), f"{param}.thinking")
        signature = string(block.get("signature"), f"{param}.signature")
        # Reasoning of a vendor that signs nothing: no vendor takes it back.
        return (ThinkingPart(text, signature),) if signature else ()
    if kind == "redacted_thinking":
        return (RedactedThinkingPart(identifier(block.get("data"), f"{param}.data")),)
    raise InvalidRequestError("Only blocks of type text, tool_use, thinking and redacted_thinking are supported.", f"{param}.type")


# --- tools ------------------------------------------------------------------------------------


def _tools(value: Any) -> tuple[Tool, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise InvalidRequestError("`tools` must be an array.", "tools")
    tools: list[Tool] = []
    names: set[str] = set()
    for index, item in enumerate(value):
        tool = _tool(item, f"tools[{index}]")
        if tool.name in names:
            raise InvalidRequestError("Two tools have the same name.", f"tools[{index}].name")
        names.add(tool.name)
        tools.append(tool)
    return tuple(tools)


def _tool(item: Any, param: str) -> Tool:
    if not isinstance(item, dict) or item.get("type") not in (None, "custom"):
        raise InvalidRequestError("Only tools of your own (type `custom`) are supported.", param)
    name = identifier(item.get("name"), f"{param}.name")
    schema = item.get("input_schema")
    if not isinstance(schema, dict):
        raise InvalidRequestError("`input_schema` must be a JSON Schema object.", f"{param}.input_schema")
    description, strict = item.get("description"), item.get("strict")
    if not isinstance(description, str | None):
        raise InvalidRequestError("`description` must be a string.", f"{param}.description")
    if not isinstance(strict, bool | None):
        raise InvalidRequestError("`strict` must be true or false.", f"{param}.strict")
    return Tool(name, description or None, schema, strict, cache_control(item, param))


_MODES: dict[str, Literal["auto", "any", "none", "tool"]] = {"auto": "auto", "any": "any", "none": "none", "tool": "tool"}


def _tool_choice(value: dict[str, Any] | None, tools: tuple[Tool, ...]) -> tuple[ToolChoice | None, bool | None]:
    """The choice, and whether several calls at once are allowed (None: the caller did not say)."""
    if value is None:
        return None, None
    kind, name = value.get("type"), value.get("name")
    mode = _MODES.get(kind) if isinstance(kind, str) else None
    if mode is None:
        raise InvalidRequestError("`type` must be one of auto, any, tool, none.", "tool_choice.type")
    if mode != "none" and not tools:
        raise InvalidRequestError("`tool_choice` needs `tools`.", "tool_choice")
    if mode == "tool" and name not in [tool.name for tool in tools]:
        raise InvalidRequestError("`tool_choice` names a tool that is not in `tools`.", "tool_choice.name")
    disable = value.get("disable_parallel_tool_use")
    if not isinstance(disable, bool | None):
        raise InvalidRequestError("This must be true or false.", "tool_choice.disable_parallel_tool_use")
    parallel = None if disable is None else not disable
    return ToolChoice(mode, name if mode == "tool" else None), parallel
