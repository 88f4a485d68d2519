"""The neutral form, built into a body for Anthropic's Messages API.

Source: platform.claude.com, "Messages" API reference, version header 2023-06-01.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hearth_gateway.translate.fields import exact
from hearth_gateway.translate.history import (
    ToolNames,
    answers_unsigned_calls,
    regular_turns,
    safe_id,
    used_tool_names,
    wrapped_system,
)
from hearth_gateway.translate.model import (
    ChatRequest,
    Effort,
    ImagePart,
    Json,
    Part,
    PdfPart,
    RedactedThinkingPart,
    SystemPart,
    TextPart,
    ThinkingConfig,
    ThinkingPart,
    ToolUse,
    Turn,
)
from hearth_gateway.translate.traits import UNKNOWN_ANTHROPIC, ModelTraits, effort_of

_LONGEST_TOOL_NAME = 128
_MIN_BUDGET = 1024
# Tokens for reasoning by what OpenAI's clients call it. There is no official table; each step doubles.
_BUDGETS: dict[Effort, int] = {"minimal": 1024, "low": 2048, "medium": 4096, "high": 8192, "xhigh": 16_384, "max": 32_768}

JSON_INSTRUCTION = "Answer with one JSON object and nothing else: no explanation, no code fence."


@dataclass(frozen=True, slots=True)
class AnthropicRequest:
    """``names`` maps the tool names the vendor sees back to the caller's. ``adjusted`` lists the
    caller's fields whose value was changed to one the vendor accepts, or that it cannot take."""

    body: dict[str, Any]
    names: dict[str, str]
    adjusted: tuple[str, ...]


def build_messages_request(
    request: ChatRequest, model: str, max_output_tokens: int, *, traits: ModelTraits = UNKNOWN_ANTHROPIC, user: str | None = None
) -> AnthropicRequest:
    """Build the body for ``model``, whose answers hold at most ``max_output_tokens`` tokens.

    The vendor is always asked to stream, also for a caller who waits for the whole answer: that way
    a silent vendor is noticed after the first-token limit, and what was used before a fault is known.
    ``user`` is a pseudonym. Raises ``InvalidRequestError`` where the conversation cannot be expressed.
    """
    adjusted: list[str] = []
    names = ToolNames(request, _LONGEST_TOOL_NAME)
    turns = regular_turns(request)
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": max_output_tokens,
        "messages": [message for turn in turns for message in _messages(turn, names, traits)],
        "stream": True,
    }
    if request.max_tokens is not None:
        body["max_tokens"] = min(request.max_tokens, max_output_tokens)
        if request.max_tokens > max_output_tokens:
            adjusted.append("max_tokens")
    system = [_text(part) for part in request.system]
    if request.output is not None and request.output.schema is None:
        # The vendor has no JSON mode without a schema.
        system.append({"type": "text", "text": JSON_INSTRUCTION})
        adjusted.append("response_format")
    if system:
        body["system"] = system
    body.update(_tools(request, names))
    _add_reasoning(body, request, turns, traits, adjusted)
    if request.output is not None and request.output.schema is not None:
        body.setdefault("output_config", {})["format"] = {"type": "json_schema", "schema": dict(request.output.schema)}
    _add_sampling(body, request, traits, adjusted)
    if request.stop:
        body["stop_sequences"] = list(request.stop)
    if user is not None:
        body["metadata"] = {"user_id": user}
    return AnthropicRequest(body, names.reverse, tuple(adjusted))


def _add_reasoning(body: dict[str, Any], request: ChatRequest, turns: list[Turn], traits: ModelTraits, adjusted: list[str]) -> None:
    """What the caller said in the vendor's own terms goes through. An OpenAI effort is put into them."""
    if request.thinking is not None:
        _add_thinking(body, request, request.thinking, turns, traits, adjusted)
        return
    effort = request.effort
    if effort in (None, "none"):
        return
    if traits.reasoning == "adaptive":
        level = {"minimal": "low", "xhigh": "xhigh" if traits.xhigh else "high"}.get(effort, effort)
        body["output_config"] = {"effort": level}
        if level != effort:
            adjusted.append("reasoning_effort")
        if not _is_forced(body):  # a forced call leaves no room for reasoning
            # Since Opus 4.7 the vendor shows no reasoning by itself, and OpenAI's clients cannot ask for it otherwise.
            body["thinking"] = {"type": "adaptive", "display": "summarized"}
        return
    budget = _budget_for(effort, body, turns) if traits.reasoning == "budget" else None
    if budget is None:
        adjusted.append("reasoning_effort")
        return
    body["thinking"] = {"type": "enabled", "budget_tokens": budget}


def _is_forced(body: dict[str, Any]) -> bool:
    return (body.get("tool_choice") or {}).get("type") in ("any", "tool")


def _budget_for(effort: Effort, body: dict[str, Any], turns: list[Turn]) -> int | None:
    """Tokens for reasoning; None where there can be none in this request."""
    # Half of the answer at most: reasoning counts as output, and something has to be said as well.
    budget: int = min(_BUDGETS[effort], body["max_tokens"] // 2)
    if budget < _MIN_BUDGET or _is_forced(body) or turns[-1].role == "assistant" or answers_unsigned_calls(turns):
        return None
    return budget


def _add_thinking(
    body: dict[str, Any], request: ChatRequest, thinking: ThinkingConfig, turns: list[Turn], traits: ModelTraits, adjusted: list[str]
) -> None:
    """The alias hides which model serves, so what is right for one is put into the terms of another."""
    effort = request.effort
    if thinking.mode == "adaptive" and traits.reasoning == "budget":
        adjusted.append("thinking")
        budget = _budget_for(effort or "high", body, turns)  # high is the vendor's default
        if budget is not None:
            body["thinking"] = {"type": "enabled", "budget_tokens": budget, **_shown(thinking.display)}
        if effort is not None:
            adjusted.append("output_config.effort")  # nearly none of these models knows it; it is in the budget
        return
    if thinking.mode == "enabled" and traits.reasoning == "adaptive" and not traits.budget_too:
        adjusted.append("thinking")
        effort = effort or effort_of(thinking.budget_tokens)
        # Models that take a budget show their reasoning by themselves.
        body["thinking"] = {"type": "adaptive", **_shown(thinking.display or "summarized")}
    elif thinking.mode != "default":
        _add_own_thinking(body, thinking, turns, adjusted)
    if effort is not None:
        body["output_config"] = {"effort": effort}


def _shown(display: str | None) -> dict[str, Any]:
    return {} if display is None else {"display": display}


def _add_own_thinking(body: dict[str, Any], thinking: ThinkingConfig, turns: list[Turn], adjusted: list[str]) -> None:
    built: dict[str, Any] = {"type": thinking.mode}
    if thinking.mode == "enabled":
        # The served model's ceiling may be lower than what the caller counted with.
        budget = min(thinking.budget_tokens or _MIN_BUDGET, body["max_tokens"] - 1)
        if budget < _MIN_BUDGET or answers_unsigned_calls(turns):
            adjusted.append("thinking")
            return
        if budget != thinking.budget_tokens:
            adjusted.append("thinking")
        built["budget_tokens"] = budget
    body["thinking"] = built | _shown(thinking.display)


def _add_sampling(body: dict[str, Any], request: ChatRequest, traits: ModelTraits, adjusted: list[str]) -> None:
    wanted = {"temperature": request.temperature, "top_p": request.top_p, "top_k": request.top_k}
    given = {name: value for name, value in wanted.items() if value is not None}
    # A model that reasons by a budget refuses them for this request, a newer model refuses them always.
    if not traits.sampling or body.get("thinking", {}).get("type") == "enabled":
        adjusted.extend(given)
        return
    if "temperature" in given:
        if given["temperature"] > 1.0:
            given["temperature"] = 1.0
            adjusted.append("temperature")
        if given.pop("top_p", None) is not None:
            adjusted.append("top_p")  # both at once are refused
    body.update(given)


def _messages(turn: Turn, names: ToolNames, traits: ModelTraits) -> list[dict[str, Any]]:
    """One message; two where the turn ends in a system message and the model takes those."""
    parts = turn.parts
    later: tuple[Part, ...] = ()
    if traits.later_system:
        # The vendor wants it directly after what the user said, and then the assistant's turn.
        end = len(parts)
        while end and isinstance(parts[end - 1], SystemPart):
            end -= 1
        if end:
            parts, later = parts[:end], parts[end:]
    messages: list[dict[str, Any]] = [{"role": turn.role, "content": [_block(part, names) for part in parts]}]
    if later:
        messages.append({"role": "system", "content": [_text(part) for part in later if isinstance(part, SystemPart)]})
    return messages


def _cached(block: dict[str, Any], cache_control: Json | None) -> dict[str, Any]:
    if cache_control is not None:
        block["cache_control"] = cache_control
    return block


def _text(part: TextPart | SystemPart) -> dict[str, Any]:
    return _cached({"type": "text", "text": part.text}, part.cache_control)


def _image(part: ImagePart) -> dict[str, Any]:
    source: dict[str, Any]
    if part.url is not None:
        source = {"type": "url", "url": part.url}
    else:
        source = {"type": "base64", "media_type": part.media_type, "data": part.data}
    return _cached({"type": "image", "source": source}, part.cache_control)


def _block(part: Part, names: ToolNames) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return _text(part)
    if isinstance(part, SystemPart):
        return _text(wrapped_system(part))
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
        block = {"type": "tool_use", "id": safe_id(part.id), "name": names[part.name], "input": exact(part.arguments, part.text)}
        return _cached(block, part.cache_control)
    block = {"type": "tool_result", "tool_use_id": safe_id(part.id)}
    if part.is_error:
        block["is_error"] = True
    if part.parts:
        block["content"] = [_text(inner) if isinstance(inner, TextPart) else _image(inner) for inner in part.parts]
    return _cached(block, part.cache_control)


def _tools(request: ChatRequest, names: ToolNames) -> dict[str, Any]:
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
        tools = [
            {"name": names[name], "description": "No longer available.", "input_schema": {"type": "object"}}
            for name in used_tool_names(request)
        ]
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
