"""Reading the fields of a request body: what the parsers of both client formats share.

Each function raises ``InvalidRequestError`` with ``param``, the path of the field in the body.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, TypeVar

import orjson

from hearth_gateway.errors import InvalidRequestError
from hearth_gateway.translate.model import ChatRequest, Json, SystemPart, TextPart, ToolResult, may_lose_digits

_T = TypeVar("_T")

MAX_CACHE_BREAKPOINTS = 4  # Anthropic's limit
# Levels of objects and arrays in what a caller sends. The parser takes 1024 but the writer 254, and what a vendor
# gets has a few more around them.
MAX_DEPTH = 200
_JSON_NAMES: dict[type, str] = {bool: "true or false", int: "a whole number", str: "a string", dict: "an object", list: "an array"}
_CONTAINERS = frozenset({dict, list})


def model_name(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidRequestError("`model` must be the name of a model; GET /v1/models lists them.", "model")
    return value


def optional(body: dict[str, Any], name: str, kind: type[_T], param: str | None = None) -> _T | None:
    """The field ``name``, None when it is absent or null. ``param`` is its path, where that is more than its name."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InvalidRequestError(f"`{name}` must be {_JSON_NAMES[kind]}.", param or name)
    return value


def number(body: dict[str, Any], name: str, low: float, high: float) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InvalidRequestError(f"`{name}` must be a number from {low:g} to {high:g}.", name)
    return float(value)


def positive(body: dict[str, Any], name: str) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidRequestError(f"`{name}` must be a whole number of at least 1.", name)
    return value


def string(value: Any, param: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequestError("This must be a string.", param)
    return value


def identifier(value: Any, param: str) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidRequestError("This must be a non-empty string.", param)
    return value


def part_list(content: Any, param: str) -> list[dict[str, Any]]:
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise InvalidRequestError("`content` must be a string or an array of parts.", param)
    return content


def parsed_json(text: bytes | str) -> Any:
    """The value of JSON from outside. Raises ``orjson.JSONDecodeError``, ``TooDeepError``."""
    value = orjson.loads(text)
    # A short text has no room for that many brackets.
    if len(text) > 2 * MAX_DEPTH and _is_too_deep(value):
        raise TooDeepError
    return value


class TooDeepError(Exception):
    """JSON of more than ``MAX_DEPTH`` levels."""


def _is_too_deep(value: Any) -> bool:
    """Level by level: this looks at containers only, which costs less than counting brackets, and needs no recursion."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for node in level for inner in (node.values() if type(node) is dict else node) if type(inner) in _CONTAINERS]
        if not level:
            return False
    return True


def json_bytes(body: Any) -> bytes:
    """The JSON of a vendor's request. Raises ``InvalidRequestError``."""
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError:
        # What we add can be written: so it is the caller's part. `from None`: the exception may hold some of it.
        raise InvalidRequestError("The request holds JSON that no provider can be given, such as one nested too deeply.") from None


def arguments_object(text: str) -> tuple[dict[str, Any], str | None]:
    """The JSON arguments of a tool call, and ``text`` itself if it is them: JSON of an object.

    A model may have produced broken JSON: that must not end the conversation.
    """
    if not text.strip():
        return {}, None
    try:
        parsed = parsed_json(text)
    except (orjson.JSONDecodeError, TooDeepError):
        return {"invalid_json": text}, None
    return (parsed, text) if isinstance(parsed, dict) else ({"value": parsed}, None)


def exact(arguments: Json, text: str | None) -> dict[str, Any] | orjson.Fragment:
    """The arguments for a body in which they are an object: the ``text`` they came from, where a number in it is
    longer than a parsed one may be."""
    return orjson.Fragment(text) if text is not None and may_lose_digits(text) else dict(arguments)


def system_in_place(parts: tuple[TextPart, ...]) -> tuple[SystemPart, ...]:
    """A system message that is not at the beginning stays where it was said (T2)."""
    return tuple(SystemPart(part.text, part.cache_control) for part in parts)


def cache_control(part: dict[str, Any], param: str) -> dict[str, Any] | None:
    """Carried verbatim: the vendor defines what is in it."""
    value = part.get("cache_control")
    if value is None:
        return None
    if not isinstance(value, dict):
        raise InvalidRequestError("`cache_control` must be an object.", f"{param}.cache_control")
    return value


def check_cache_breakpoints(request: ChatRequest) -> None:
    marked: list[Any] = [*request.system, *request.tools]
    for turn in request.turns:
        for part in turn.parts:
            marked.append(part)
            if isinstance(part, ToolResult):
                marked.extend(part.parts)
    count = sum(1 for item in marked if getattr(item, "cache_control", None) is not None)
    if count > MAX_CACHE_BREAKPOINTS:
        raise InvalidRequestError(
            f"At most {MAX_CACHE_BREAKPOINTS} parts may have `cache_control`, this request has {count}.",
            "messages",
        )


def media_type_of(data: str, param: str) -> str:
    """The type of base64 data: one of the images and documents that vendors take."""
    try:
        # Sniffing needs the head only, but all of it is checked: a vendor's error about broken
        # base64 would not say which message it meant.
        raw = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequestError("The base64 data is broken.", param) from None
    media_type = sniff_media_type(raw)
    if media_type is None:
        raise InvalidRequestError("Only PNG, JPEG, GIF, WebP and PDF data are supported.", param)
    return media_type


def sniff_media_type(raw: bytes) -> str | None:
    """The type the bytes say they are. The declared one is often wrong, and vendors refuse a mismatch."""
    if raw.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if raw.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if raw.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if raw[:4] == b"RIFF" and raw[8:12] == b"WEBP":
        return "image/webp"
    if raw.startswith(b"%PDF-"):
        return "application/pdf"
    return None
