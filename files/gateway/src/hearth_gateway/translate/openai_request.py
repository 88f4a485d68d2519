"""An OpenAI chat completion request, parsed into the neutral form.

The gateway types the fields it touches and refuses what it cannot honour. It never drops a piece
of the conversation in silence: an unsupported part is an error that names its place.
"""

from __future__ import annotations

from typing import Any, Literal

from hearth_gateway.errors import InvalidRequestError
from hearth_gateway.translate.fields import (
    arguments_object,
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
    ThinkingPart,
    Tool,
    ToolChoice,
    ToolResult,
    ToolUse,
    Turn,
)

MAX_STOP_SEQUENCES = 4  # OpenAI's own limit
MAX_MESSAGES = 10_000

# Tuning hints that only another vendor understands. Dropping them changes style, not meaning, so
# they are dropped and listed in the response header x-hearth-ignored.
_HINTS = frozenset(
    {
        "seed",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
        "user",
        "metadata",
        "store",
        "service_tier",
        "prediction",
        "verbosity",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "top_k",
    }
)
# Fields that change what comes back. We cannot honour them yet, and pretending would be a lie.
_REFUSED = {
    "functions": "Use `tools` instead of the deprecated `functions`.",
    "function_call": "Use `tool_choice` instead of the deprecated `function_call`.",
    "audio": "Audio output is not supported.",
    "web_search_options": "Web search is not supported.",
}
_KNOWN = frozenset(
    {
        "model",
        "messages",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "stop",
        "stream",
        "stream_options",
        "n",
        "logprobs",
        "top_logprobs",
        "response_format",
        "reasoning_effort",
        "modalities",
    }
)


def parse_chat_request(body: Any) -> ChatRequest:
    """Parse a decoded JSON body. Raises ``InvalidRequestError`` with the path of the field at fault."""
    if not isinstance(body, dict):
        raise InvalidRequestError("The request body must be a JSON object.")
    _refuse_unsupported(body)
    system, turns = _messages(body.get("messages"))
    tools = _tools(body.get("tools"))
    stream = optional(body, "stream", bool) or False
    request = ChatRequest(
        alias=model_name(body.get("model")),
        system=system,
        turns=turns,
        tools=tools,
        tool_choice=_tool_choice(body.get("tool_choice"), tools),
        parallel_tools=optional(body, "parallel_tool_calls", bool),
        max_tokens=_max_tokens(body),
        temperature=number(body, "temperature", 0.0, 2.0),
        top_p=number(body, "top_p", 0.0, 1.0),
        stop=_stop(body.get("stop")),
        stream=stream,
        include_usage=_include_usage(body, stream),
        effort=_effort(body.get("reasoning_effort")),
        output=_output(optional(body, "response_format", dict)),
        ignored=_ignored(body),
    )
    check_cache_breakpoints(request)
    return request


def _refuse_unsupported(body: dict[str, Any]) -> None:
    for name in body:
        if name in _REFUSED and body[name] is not None:
            raise InvalidRequestError(_REFUSED[name], name)
    if body.get("n") not in (None, 1) or body.get("n") is True:
        raise InvalidRequestError("Only `n` = 1 is supported: one answer per request.", "n")
    if body.get("logprobs") or body.get("top_logprobs"):
        raise InvalidRequestError("Log probabilities are not supported.", "logprobs")
    if body.get("modalities") not in (None, ["text"]):
        raise InvalidRequestError("Only the modality `text` is supported.", "modalities")


def _ignored(body: dict[str, Any]) -> tuple[str, ...]:
    """Known hints by name; unknown fields as one word, because the caller chose their names."""
    hints = _hints_of(body["messages"])
    if body.keys() <= _KNOWN:
        return tuple(hints)
    hints = sorted([*hints, *(name for name in body if name in _HINTS and body[name] is not None)])
    if any(name not in _HINTS and name not in _KNOWN and name not in _REFUSED for name in body):
        hints.append("unknown-fields")
    return tuple(hints)


def _hints_of(messages: list[dict[str, Any]]) -> list[str]:
    """What is left out of the messages, which are right: who of several speaks, and how closely an image is looked at."""
    hints = []
    # A result's name is that of the call it names.
    if any("name" in message and message["name"] is not None and message["role"] != "tool" for message in messages):
        hints.append("messages.name")
    contents = [message["content"] for message in messages if isinstance(message.get("content"), list)]
    if contents and any(_has_detail(part.get("image_url")) for content in contents for part in content):
        hints.append("messages.image_url.detail")
    return hints


def _has_detail(image: Any) -> bool:
    return isinstance(image, dict) and image.get("detail") not in (None, "auto")


def _max_tokens(body: dict[str, Any]) -> int | None:
    """``max_completion_tokens`` is the newer name and wins."""
    for name in ("max_completion_tokens", "max_tokens"):
        value = positive(body, name)
        if value is not None:
            return value
    return None


def _stop(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise InvalidRequestError("`stop` must be a string or an array of strings.", "stop")
    if len(items) > MAX_STOP_SEQUENCES:
        raise InvalidRequestError(f"`stop` may hold at most {MAX_STOP_SEQUENCES} strings.", "stop")
    # Vendors refuse a stop sequence of white space only.
    return tuple(item for item in items if item.strip())


def _include_usage(body: dict[str, Any], stream: bool) -> bool:
    options = optional(body, "stream_options", dict)
    if options is None:
        return False
    if not stream:
        raise InvalidRequestError("`stream_options` is only allowed when `stream` is true.", "stream_options")
    value = options.get("include_usage", False)
    if not isinstance(value, bool | None):
        raise InvalidRequestError("`include_usage` must be true or false.", "stream_options.include_usage")
    return bool(value)


_EFFORTS: dict[str, Effort] = {
    "none": "none",
    "minimal": "minimal",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "xhigh",
}


def _effort(value: Any) -> Effort | None:
    if value is None:
        return None
    if not isinstance(value, str) or value not in _EFFORTS:
        raise InvalidRequestError(f"`reasoning_effort` must be one of {', '.join(_EFFORTS)}.", "reasoning_effort")
    return _EFFORTS[value]


def _output(value: dict[str, Any] | None) -> JsonOutput | None:
    """The `response_format`; None for plain text."""
    if value is None or value.get("type") == "text":
        return None
    if value.get("type") == "json_object":
        return JsonOutput()
    if value.get("type") != "json_schema":
        raise InvalidRequestError("`type` must be one of text, json_object, json_schema.", "response_format.type")
    where = "response_format.json_schema"
    wanted = value.get("json_schema")
    if not isinstance(wanted, dict) or not isinstance(wanted.get("schema"), dict):
        raise InvalidRequestError("`json_schema` must be an object with a `schema`.", where)
    name = identifier(wanted.get("name"), f"{where}.name")
    strict = wanted.get("strict")
    if not isinstance(strict, bool | None):
        raise InvalidRequestError("`strict` must be true or false.", f"{where}.strict")
    return JsonOutput(wanted["schema"], name, strict)


# --- messages ---------------------------------------------------------------------------------


def _messages(value: Any) -> tuple[tuple[TextPart, ...], tuple[Turn, ...]]:
    if not isinstance(value, list) or not value:
        raise InvalidRequestError("`messages` must be an array with at least one message.", "messages")
    if len(value) > MAX_MESSAGES:
        raise InvalidRequestError(f"`messages` may hold at most {MAX_MESSAGES} messages.", "messages")
    system: list[TextPart] = []
    turns: list[Turn] = []
    leading = True
    for index, message in enumerate(value):
        param = f"messages[{index}]"
        if not isinstance(message, dict):
            raise InvalidRequestError("A message must be an object.", param)
        role = message.get("role")
        if role in ("system", "developer"):
            parts = _text_parts(message.get("content"), f"{param}.content")
            if leading:
                system.extend(parts)
            else:
                turns.append(Turn("user", system_in_place(parts), param))
            continue
        leading = False
        if role == "user":
            turns.append(Turn("user", _user_parts(message.get("content"), f"{param}.content"), param))
        elif role == "assistant":
            turns.append(Turn("assistant", _assistant_parts(message, param), param))
        elif role == "tool":
            turns.append(Turn("user", (_tool_result(message, param),), param))
        else:
            raise InvalidRequestError("`role` must be one of system, developer, user, assistant, tool.", f"{param}.role")
    if not turns:
        raise InvalidRequestError("`messages` must hold at least one user message.", "messages")
    return tuple(system), tuple(turns)


def _text_parts(content: Any, param: str) -> tuple[TextPart, ...]:
    """Text-only content; empty pieces are left out, because vendors refuse empty text blocks."""
    if content is None:
        return ()
    if isinstance(content, str):
        return (TextPart(content),) if content.strip() else ()
    parts = []
    for index, part in enumerate(part_list(content, param)):
        where = f"{param}[{index}]"
        if part.get("type") != "text":
            raise InvalidRequestError("Only text is allowed here.", where)
        text = string(part.get("text"), f"{where}.text")
        if text.strip():
            parts.append(TextPart(text, cache_control(part, where)))
    return tuple(parts)


def _user_parts(content: Any, param: str) -> tuple[Part, ...]:
    if isinstance(content, str) or content is None:
        parts: tuple[Part, ...] = _text_parts(content, param)
    else:
        found: list[Part] = []
        for index, part in enumerate(part_list(content, param)):
            parsed = _user_part(part, f"{param}[{index}]")
            if parsed is not None:
                found.append(parsed)
        parts = tuple(found)
    if not parts:
        raise InvalidRequestError("A user message must not be empty.", param)
    return parts


def _user_part(part: dict[str, Any], param: str) -> Part | None:
    kind = part.get("type")
    cache = cache_control(part, param)
    if kind == "text":
        text = string(part.get("text"), f"{param}.text")
        return TextPart(text, cache) if text.strip() else None
    if kind == "image_url":
        image = part.get("image_url")
        url = image.get("url") if isinstance(image, dict) else image
        return _media(string(url, f"{param}.image_url.url"), f"{param}.image_url.url", None, cache)
    if kind == "file":
        file = part.get("file")
        if not isinstance(file, dict) or not isinstance(file.get("file_data"), str):
            raise InvalidRequestError("Only files with inline `file_data` are supported.", f"{param}.file")
        if not file["file_data"].startswith("data:"):
            # An address would go on as that of an image.
            raise InvalidRequestError("`file_data` must be a data: address; files are not fetched.", f"{param}.file.file_data")
        title = file.get("filename")
        return _media(file["file_data"], f"{param}.file.file_data", title if isinstance(title, str) else None, cache)
    raise InvalidRequestError("Only parts of type text, image_url and file are supported.", f"{param}.type")


def _media(url: str, param: str, title: str | None, cache: dict[str, Any] | None) -> ImagePart | PdfPart:
    if url.startswith("https://"):
        return ImagePart(url=url, cache_control=cache)
    if not url.startswith("data:"):
        raise InvalidRequestError("Only https: and data: addresses are supported.", param)
    header, comma, data = url.partition(",")
    if not comma or not header.endswith(";base64"):
        raise InvalidRequestError("A data: address must hold base64.", param)
    media_type = media_type_of(data, param)
    if media_type == "application/pdf":
        return PdfPart(data, title, cache)
    return ImagePart(media_type, data, cache_control=cache)


def _assistant_parts(message: dict[str, Any], param: str) -> tuple[Part, ...]:
    content = message.get("content")
    if isinstance(content, list):
        # A refusal the assistant gave earlier is text to the next turn.
        content = [
            {"type": "text", "text": part.get("refusal")} if isinstance(part, dict) and part.get("type") == "refusal" else part
            for part in content
        ]
    parts: list[Part] = [*_thinking_parts(message, param), *_text_parts(content, f"{param}.content")]
    parts += _text_parts(optional(message, "refusal", str, f"{param}.refusal"), f"{param}.refusal")
    calls = message.get("tool_calls")
    if calls is None:
        return tuple(parts)
    if not isinstance(calls, list):
        raise InvalidRequestError("`tool_calls` must be an array.", f"{param}.tool_calls")
    for index, call in enumerate(calls):
        where = f"{param}.tool_calls[{index}]"
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or call.get("type", "function") != "function":
            raise InvalidRequestError("Only tool calls of type `function` are supported.", where)
        parts.append(
            _tool_use(
                identifier(call.get("id"), f"{where}.id"),
                identifier(function.get("name"), f"{where}.function.name"),
                function.get("arguments"),
                f"{where}.function.arguments",
            )
        )
    return tuple(parts)


def _thinking_parts(message: dict[str, Any], param: str) -> list[Part]:
    """Signed reasoning in the form that LiteLLM's clients know; ours come from our own answers.

    `reasoning_content` alone is left out: without its signature no vendor takes it back.
    """
    blocks = message.get("thinking_blocks")
    parts: list[Part] = []
    for index, block in enumerate(part_list(blocks, f"{param}.thinking_blocks") if blocks is not None else ()):
        where = f"{param}.thinking_blocks[{index}]"
        if block.get("type") == "redacted_thinking":
            parts.append(RedactedThinkingPart(identifier(block.get("data"), f"{where}.data")))
        elif block.get("type") != "thinking":
            raise InvalidRequestError("Only blocks of type thinking and redacted_thinking are supported.", f"{where}.type")
        elif block.get("signature"):
            text = string(block.get("thinking"), f"{where}.thinking")
            parts.append(ThinkingPart(text, string(block["signature"], f"{where}.signature")))
    return parts


def _tool_use(call_id: str, name: str, arguments: Any, param: str) -> ToolUse:
    parsed, text = arguments_object("" if arguments is None else string(arguments, param))
    return ToolUse(call_id, name, parsed, text=text)


def _tool_result(message: dict[str, Any], param: str) -> ToolResult:
    content = message.get("content")
    cache = None
    parts: tuple[TextPart | ImagePart, ...]
    if isinstance(content, list):
        found: list[TextPart | ImagePart] = []
        for index, part in enumerate(part_list(content, f"{param}.content")):
            where = f"{param}.content[{index}]"
            parsed = _user_part(part, where)
            if parsed is None:
                continue
            if not isinstance(parsed, TextPart | ImagePart):
                raise InvalidRequestError("A tool result may hold text and images only.", where)
            found.append(parsed)
        parts = tuple(found)
    else:
        parts = _text_parts(content, f"{param}.content")
    if message.get("cache_control") is not None:
        cache = cache_control(message, param)
    return ToolResult(identifier(message.get("tool_call_id"), f"{param}.tool_call_id"), parts, cache)


# --- tools ------------------------------------------------------------------------------------


def _tools(value: Any) -> tuple[Tool, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise InvalidRequestError("`tools` must be an array.", "tools")
    tools = []
    names = set()
    for index, item in enumerate(value):
        param = f"tools[{index}]"
        function = item.get("function") if isinstance(item, dict) else None
        if not isinstance(function, dict) or item.get("type") != "function":
            raise InvalidRequestError("Only tools of type `function` are supported.", param)
        name = identifier(function.get("name"), f"{param}.function.name")
        if name in names:
            raise InvalidRequestError("Two tools have the same name.", f"{param}.function.name")
        names.add(name)
        schema = function.get("parameters")
        if schema is None:
            schema = {"type": "object", "properties": {}}
        if not isinstance(schema, dict):
            raise InvalidRequestError("`parameters` must be a JSON Schema object.", f"{param}.function.parameters")
        description = function.get("description")
        if not isinstance(description, str | None):
            raise InvalidRequestError("`description` must be a string.", f"{param}.function.description")
        strict = function.get("strict")
        if not isinstance(strict, bool | None):
            raise InvalidRequestError("`strict` must be true or false.", f"{param}.function.strict")
        tools.append(Tool(name, description or None, schema, strict, cache_control(item, param)))
    return tuple(tools)


_MODES: dict[str, Literal["auto", "any", "none"]] = {"auto": "auto", "required": "any", "none": "none"}


def _tool_choice(value: Any, tools: tuple[Tool, ...]) -> ToolChoice | None:
    if value is None:
        return None
    if isinstance(value, str) and value in _MODES:
        mode = _MODES[value]
        if mode == "any" and not tools:
            raise InvalidRequestError("`tool_choice` needs `tools`.", "tool_choice")
        return ToolChoice(mode)
    function = value.get("function") if isinstance(value, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise InvalidRequestError("`tool_choice` must be auto, required, none or {type: function, function: {name}}.", "tool_choice")
    if name not in {tool.name for tool in tools}:
        raise InvalidRequestError("`tool_choice` names a tool that is not in `tools`.", "tool_choice")
    return ToolChoice("tool", name)
