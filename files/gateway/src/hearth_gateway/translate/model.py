"""The neutral form between the client formats and the vendor formats.

Each client format is parsed into these types, each vendor format is built from them, so N clients
and M vendors need N + M translators and not N x M.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import field
from typing import Any, Literal

from hearth_gateway.records import record

Json = Mapping[str, Any]

_LONG_NUMBER = re.compile(r"[0-9][0-9.]{15}")


def may_lose_digits(text: str) -> bool:
    """Whether JSON holds a number with more digits than a parsed one may keep: an id, an amount."""
    return _LONG_NUMBER.search(text) is not None


@record
class TextPart:
    text: str
    cache_control: Json | None = None


@record
class ImagePart:
    """Exactly one of ``data`` (base64, with ``media_type``) and ``url`` (https) is set."""

    media_type: str | None = None
    data: str | None = None
    url: str | None = None
    cache_control: Json | None = None


@record
class PdfPart:
    """A PDF as base64."""

    data: str
    title: str | None = None
    cache_control: Json | None = None


@record
class SystemPart:
    """A system message in the middle of the conversation, where it was said. Part of a user's turn."""

    text: str
    cache_control: Json | None = None


@record
class ToolUse:
    """A call the assistant made earlier in the conversation.

    ``text`` is the caller's own JSON of the ``arguments``, if that is what they were parsed from.
    """

    id: str
    name: str
    arguments: Json
    cache_control: Json | None = None
    text: str | None = None


@record
class ToolResult:
    """The caller's answer to the tool call ``id``. ``is_error``: the tool failed, ``parts`` say how."""

    id: str
    parts: tuple[TextPart | ImagePart, ...]
    cache_control: Json | None = None
    is_error: bool = False


@record
class ThinkingPart:
    """The model's reasoning of an earlier turn. Only the vendor that signed it takes it back."""

    text: str
    signature: str


@record
class RedactedThinkingPart:
    """Reasoning that the vendor encrypted; nobody else can read ``data``."""

    data: str


Part = TextPart | ImagePart | PdfPart | SystemPart | ToolUse | ToolResult | ThinkingPart | RedactedThinkingPart


@record
class Turn:
    """``param`` is where the turn came from in the caller's body, for error messages."""

    role: Literal["user", "assistant"]
    parts: tuple[Part, ...]
    param: str


@record
class Tool:
    """``schema`` is the whole JSON Schema of the arguments, untouched."""

    name: str
    description: str | None
    schema: Json
    strict: bool | None = None
    cache_control: Json | None = None


@record
class ToolChoice:
    """``name`` only with mode ``tool``."""

    mode: Literal["auto", "any", "none", "tool"]
    name: str | None = None


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


@record
class ThinkingConfig:
    """Whether the model is to reason before it answers, as the Messages API puts it.

    ``budget_tokens`` only with mode ``enabled``. ``default``: the caller leaves it to the model.
    """

    mode: Literal["enabled", "adaptive", "disabled", "between_tools", "default"]
    budget_tokens: int | None = None
    display: Literal["summarized", "omitted"] | None = None


@record
class JsonOutput:
    """The answer is to be JSON: an instance of ``schema``, or any object when that is None."""

    schema: Json | None = None
    name: str | None = None
    strict: bool | None = None


@record
class ChatRequest:
    """One request, independent of who asked in which format and of who will answer.

    ``alias`` is the model name the caller used. ``ignored`` lists fields we understood and left out.
    ``images`` is how many images are to be made; a chat makes none. ``tokens`` counts what the caller sent
    as tokens and not as text; a chat has none of that either.
    """

    alias: str
    system: tuple[TextPart, ...]
    turns: tuple[Turn, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice | None = None
    parallel_tools: bool | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    top_k: int | None = None
    thinking: ThinkingConfig | None = None
    effort: Effort | None = None
    output: JsonOutput | None = None
    ignored: tuple[str, ...] = field(default=())
    images: int = 0
    tokens: int = 0

    def texts(self) -> list[str]:
        """Every piece of text the caller sent. For redaction and the demo's count, never for a log."""
        found = [part.text for part in self.system]
        for turn in self.turns:
            for part in turn.parts:
                if isinstance(part, TextPart | SystemPart | ThinkingPart):
                    found.append(part.text)
                elif isinstance(part, ToolResult):
                    found.extend(inner.text for inner in part.parts if isinstance(inner, TextPart))
                elif isinstance(part, ToolUse):
                    found.extend(str(value) for value in part.arguments.values())
                    if part.text is not None and may_lose_digits(part.text):
                        found.append(part.text)
        return found


@record
class EndpointRequest(ChatRequest):
    """A request to an endpoint that is no chat, such as embeddings. It goes the same way through the gateway:
    admitted, failed over, metered. It has no turns; ``fields`` go to the vendor's ``path`` as they are.
    """

    path: str = ""
    fields: Json = field(default_factory=dict)

    def texts(self) -> list[str]:
        found: list[str] = []
        for value in (self.fields.get("input"), self.fields.get("prompt")):
            found += [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]
        return found
