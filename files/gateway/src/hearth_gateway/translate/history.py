"""The conversation so far, in the one shape that every vendor accepts, and its rules.

Strictest wins: the same history must do after a failover, so what one vendor merely tolerates (two turns
of one role, an assistant's greeting first) is made regular for all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from hashlib import sha256

from hearth_gateway.errors import InvalidRequestError
from hearth_gateway.translate.model import ChatRequest, Part, SystemPart, TextPart, ThinkingPart, ToolResult, ToolUse, Turn

_TOOL_ID = re.compile(r"[A-Za-z0-9_-]+\Z")
_NOT_IN_TOOL_NAME = re.compile(r"[^A-Za-z0-9_-]")

# The first turn must be the user's. Clients with a greeting start differently.
START_OF_CONVERSATION = "(start of the conversation)"


def regular_turns(request: ChatRequest) -> list[Turn]:
    """Turns that alternate and begin with the user; tool results come first in theirs.

    Raises ``InvalidRequestError`` where calls and results of tools do not match.
    """
    turns = _merge(request.turns)
    if any(isinstance(part, ToolUse | ToolResult) for turn in turns for part in turn.parts):
        turns = [_results_first(turn) for turn in turns]
        _check_tool_pairs(turns)
    last = turns[-1]
    if last.role == "assistant" and isinstance(last.parts[-1], TextPart):
        # The answer continues this text, and vendors refuse it with white space at its end.
        text = last.parts[-1]
        turns[-1] = Turn("assistant", (*last.parts[:-1], TextPart(text.text.rstrip(), text.cache_control)), last.param)
    return turns


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


def _results_first(turn: Turn) -> Turn:
    if turn.role != "user":
        return turn
    return Turn("user", tuple(sorted(turn.parts, key=lambda part: not isinstance(part, ToolResult))), turn.param)


def _check_tool_pairs(turns: list[Turn]) -> None:
    """Every tool call must be answered in the turn after it; a vendor's own error names no message."""
    for index, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        asked = [part.id for part in turn.parts if isinstance(part, ToolUse)]
        following = turns[index + 1] if index + 1 < len(turns) else None
        answered = set(_result_ids(following.parts)) if following else set()
        for call_id in asked:
            if call_id not in answered:
                raise InvalidRequestError(f"The tool call `{_show(call_id)}` has no result.", turn.param)
        if len(set(asked)) != len(asked):
            raise InvalidRequestError("Two tool calls have the same id.", turn.param)
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


def wrapped_system(part: SystemPart) -> TextPart:
    """A later system message, for a model that takes those at the beginning only.

    It stays where it is. Moving it to the front would rewrite the beginning of the prompt: the
    vendor's cache misses and the whole conversation is billed again.
    """
    return TextPart(f"<system-message>\n{part.text}\n</system-message>", part.cache_control)


def safe_id(call_id: str) -> str:
    """Ids made by other vendors may hold characters this one refuses. The same id maps to the same."""
    if _TOOL_ID.match(call_id):
        return call_id
    return f"call_{sha256(call_id.encode()).hexdigest()[:24]}"


def answers_unsigned_calls(turns: list[Turn]) -> bool:
    """Whether the last turn answers tool calls whose turn holds no signed reasoning.

    Manual reasoning cannot be switched on in the middle of such an exchange: vendors then ask for the
    reasoning that led to the calls.
    """
    if len(turns) < 2 or not any(isinstance(part, ToolResult) for part in turns[-1].parts):
        return False
    return not any(isinstance(part, ThinkingPart) for part in turns[-2].parts)


def used_tool_names(request: ChatRequest) -> list[str]:
    """Names of the tools called in the history, each once."""
    return list(dict.fromkeys(part.name for turn in request.turns for part in turn.parts if isinstance(part, ToolUse)))


def _is_good(name: str, longest: int) -> bool:
    return len(name) <= longest and _TOOL_ID.match(name) is not None


class ToolNames:
    """Caller's tool names → names of at most ``longest`` characters that vendors accept, without
    collisions, and back (``reverse``). ``used`` are those of the calls in the history."""

    def __init__(self, request: ChatRequest, longest: int) -> None:
        self.reverse: dict[str, str] = {}
        self._safe: dict[str, str] = {}
        self.used = used_tool_names(request)
        if not request.tools and not self.used:
            return  # as nearly always
        wanted = dict.fromkeys([*(tool.name for tool in request.tools), *self.used])
        # Names that are fine keep theirs, whatever the order: only the others may be renamed.
        for name in sorted(wanted, key=lambda name: not _is_good(name, longest)):
            safe = name
            if not _is_good(name, longest):
                safe = _NOT_IN_TOOL_NAME.sub("_", name)[:longest]
                if safe in self.reverse:
                    safe = f"{safe[: longest - 9]}_{sha256(name.encode()).hexdigest()[:8]}"
            self._safe[name] = safe
            self.reverse[safe] = name

    def __getitem__(self, name: str) -> str:
        return self._safe[name]
