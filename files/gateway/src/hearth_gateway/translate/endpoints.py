"""Embeddings and images: requests parsed, the vendor's body built, its document read.

Both follow OpenAI's API on both sides, so there is one field list for each and nothing to convert: what is
on the list goes through as it is, anything else stays here. Source: platform.openai.com, "Embeddings" and
"Images" API reference, and the types of the `openai` package 3.52, read 2026-11-21.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import orjson

from hearth_gateway.errors import InvalidRequestError
from hearth_gateway.translate.events import Document, End, Event, Usage
from hearth_gateway.translate.fields import model_name, optional, positive, string
from hearth_gateway.translate.model import EndpointRequest
from hearth_gateway.translate.vendor_errors import protocol_error
from hearth_gateway.translate.vendor_fields import count as token_count

MAX_INPUTS = 2048  # OpenAI's own limits, both
MAX_IMAGES = 10

EMBEDDINGS = "/v1/embeddings"
IMAGES = "/v1/images/generations"

# Identity is the gateway's to tell; the rest has no meaning for one person's request.
_HINTS = frozenset({"user", "metadata", "safety_identifier"})


def parse_embeddings(body: Any) -> EndpointRequest:
    """Parse a decoded JSON body. Raises ``InvalidRequestError`` with the path of the field at fault."""
    fields = _object(body)
    encoding = optional(fields, "encoding_format", str)
    if encoding not in (None, "float", "base64"):
        raise InvalidRequestError("`encoding_format` must be float or base64.", "encoding_format")
    kept = {"input": _input(fields.get("input")), "encoding_format": encoding, "dimensions": positive(fields, "dimensions")}
    return replace(_request(fields, EMBEDDINGS, kept), tokens=_tokens(kept["input"]))


def parse_images(body: Any) -> EndpointRequest:
    """Like ``parse_embeddings``."""
    fields = _object(body)
    if not string(fields.get("prompt"), "prompt").strip():
        raise InvalidRequestError("`prompt` must not be empty.", "prompt")
    if fields.get("stream") or fields.get("partial_images"):
        raise InvalidRequestError("Images are not streamed here.", "stream")
    count = positive(fields, "n")
    if count is not None and count > MAX_IMAGES:
        raise InvalidRequestError(f"`n` must be at most {MAX_IMAGES}.", "n")
    kept: dict[str, Any] = {"prompt": fields["prompt"], "n": count, "output_compression": optional(fields, "output_compression", int)}
    for name in ("size", "quality", "style", "response_format", "background", "output_format", "moderation"):
        kept[name] = optional(fields, name, str)
    return _request(fields, IMAGES, kept, images=count or 1)


def _object(body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise InvalidRequestError("The request body must be a JSON object.")
    return body


def _request(body: dict[str, Any], path: str, kept: dict[str, Any], images: int = 0) -> EndpointRequest:
    present = {name: value for name, value in kept.items() if value is not None}
    ignored = sorted(name for name in body if name in _HINTS and body[name] is not None)
    known = {"model", "stream", "partial_images", *kept}
    if any(name not in _HINTS and name not in known for name in body):
        ignored.append("unknown-fields")  # the caller chose their names: they are not repeated
    return EndpointRequest(model_name(body.get("model")), (), (), ignored=tuple(ignored), path=path, fields=present, images=images)


def _input(value: Any) -> Any:
    """Text, texts, tokens or lists of tokens; none of them empty."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not items:
        raise InvalidRequestError("`input` must be text, or an array of texts or of tokens.", "input")
    if all(_is_token(item) for item in items):
        return value
    if len(items) > MAX_INPUTS:
        raise InvalidRequestError(f"`input` may hold at most {MAX_INPUTS} texts.", "input")
    for index, item in enumerate(items):
        tokens = isinstance(item, list) and item and all(_is_token(token) for token in item)
        if not tokens and not (isinstance(item, str) and item):
            raise InvalidRequestError("This must be text that is not empty, or tokens.", f"input[{index}]")
    return value


def _tokens(value: Any) -> int:
    if isinstance(value, int):
        return 1
    return sum(map(_tokens, value)) if isinstance(value, list) else 0


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def build_body(request: EndpointRequest, model: str, user: str | None) -> dict[str, Any]:
    """``user`` is a pseudonym."""
    body: dict[str, Any] = {"model": model, **request.fields}
    return body if user is None else {**body, "user": user}


def read_document(request: EndpointRequest, body: bytes) -> list[Event]:
    """The vendor's answer as events; the document names the model as the caller did. Raises ``GatewayError``."""
    try:
        document = orjson.loads(body)
        data = document["data"]
        shaped, usage = _SHAPES[request.path](document)
        if not isinstance(data, list) or not data:
            raise TypeError
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        # `from None`: the exception's text holds the data that could not be parsed.
        raise protocol_error() from None
    if request.path == EMBEDDINGS:
        return [usage, Document({**shaped, "model": request.alias}), End("stop")]
    return [usage, Document(shaped, images=len(data)), End("stop")]


def _embeddings(document: dict[str, Any]) -> tuple[dict[str, Any], Usage]:
    vectors = [{"object": "embedding", "index": item["index"], "embedding": item["embedding"]} for item in document["data"]]
    counts = document.get("usage") or {}
    usage = Usage(input=_count(counts.get("prompt_tokens")))
    told = {"prompt_tokens": usage.input, "total_tokens": usage.input}
    return {"object": "list", "data": vectors, "usage": told}, usage


_IMAGE_FIELDS = ("background", "output_format", "quality", "size")


def _images(document: dict[str, Any]) -> tuple[dict[str, Any], Usage]:
    pictures = [{name: item[name] for name in ("b64_json", "url", "revised_prompt") if item.get(name)} for item in document["data"]]
    if not all("b64_json" in picture or "url" in picture for picture in pictures):
        raise KeyError
    counts = document.get("usage") or {}
    usage = Usage(input=_count(counts.get("input_tokens")), output=_count(counts.get("output_tokens")))
    shaped = {"created": _seconds(document.get("created")), "data": pictures}
    shaped |= {name: document[name] for name in _IMAGE_FIELDS if isinstance(document.get(name), str)}
    if counts:
        shaped["usage"] = {
            "input_tokens": usage.input,
            "output_tokens": usage.output,
            "total_tokens": usage.input + usage.output,
            "input_tokens_details": _details(counts.get("input_tokens_details"), usage.input),
        }
    return shaped, usage


_SHAPES: Mapping[str, Callable[[dict[str, Any]], tuple[dict[str, Any], Usage]]] = {EMBEDDINGS: _embeddings, IMAGES: _images}


def _details(value: Any, total: int) -> dict[str, int]:
    """OpenAI's clients expect both counts; a server that does not tell them apart got text."""
    if not isinstance(value, dict):
        return {"text_tokens": total, "image_tokens": 0}
    return {name: _count(value.get(name)) for name in ("text_tokens", "image_tokens")}


def _count(value: Any) -> int:
    return token_count(value) or 0


def _seconds(value: Any) -> int:
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TypeError
    return value
