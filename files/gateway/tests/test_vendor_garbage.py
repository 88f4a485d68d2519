"""Any field of any event with a value of any type: an answer, or a fault of the vendor, and never a fault of ours."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hearth_gateway.errors import GatewayError
from hearth_gateway.providers.streaming import Reader
from hearth_gateway.translate import anthropic_response, openai_upstream_response
from hearth_gateway.translate.events import content_bytes
from hearth_gateway.translate.openai_response import ChunkEncoder, Collector, encode_error

VALUES: list[Any] = [None, 5, -1, True, 1.5, "x", "", [], {}, ["x"], {"a": 1}]
ANTHROPIC: list[dict[str, Any]] = [
    {"type": "message_start", "message": {"usage": {"input_tokens": 1, "cache_creation": {"ephemeral_1h_input_tokens": 1}}}},
    {"type": "content_block_start", "content_block": {"type": "thinking", "thinking": "", "signature": ""}},
    {"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "t"}},
    {"type": "content_block_delta", "delta": {"type": "signature_delta", "signature": "t"}},
    {"type": "content_block_stop"},
    {"type": "content_block_start", "content_block": {"type": "redacted_thinking", "data": "d"}},
    {"type": "content_block_start", "content_block": {"type": "text", "text": "t"}},
    {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "t"}},
    {"type": "content_block_start", "content_block": {"type": "tool_use", "id": "a", "name": "n", "input": {}}},
    {"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": "{}"}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": "x"}, "usage": {"output_tokens": 3}},
    {"type": "message_stop"},
    {"type": "error", "error": {"type": "x", "message": "m"}},
]


def _chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


OPENAI: list[dict[str, Any]] = [
    _chunk({"reasoning_content": "r"}),
    _chunk({"thinking_blocks": [{"type": "thinking", "thinking": "t", "signature": "s"}, {"type": "redacted_thinking", "data": "d"}]}),
    _chunk({"content": "x"}),
    _chunk({"refusal": "x"}),
    _chunk({"tool_calls": [{"index": 0, "id": "a", "function": {"name": "n", "arguments": "{}"}}]}),
    _chunk({}, "stop"),
    {
        "choices": [],
        "usage": {
            "prompt_tokens": 1,
            "completion_tokens": 2,
            "prompt_tokens_details": {"cached_tokens": 1, "cache_creation_token_details": {"ephemeral_1h_input_tokens": 1}},
        },
    },
    {"error": {"message": "m", "code": "c", "type": "t"}},
]
VENDORS: dict[str, tuple[Callable[[], Reader], list[dict[str, Any]]]] = {
    "anthropic": (lambda: anthropic_response.MessageReader({}), ANTHROPIC),
    "openai": (lambda: openai_upstream_response.ChatReader({}), OPENAI),
}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def with_value(event: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = json.loads(json.dumps(event))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return copy


def answer(reader: Reader, stream: list[Any]) -> None:
    """Read all of it, and show it in both ways, as the gateway would. ``GatewayError`` is an answer, too."""
    chunks, whole = ChunkEncoder("id", 1, "model", include_usage=True), Collector()
    try:
        for events in (*(reader.read(json.dumps(item).encode()) for item in stream), reader.end()):
            for event in events:
                chunks.encode(event)
                whole.add(event)
                content_bytes(event)
        json.dumps(whole.completion("id", 1, "model"))
    except GatewayError as error:
        encode_error(error)


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_field_of_the_wrong_type_is_a_fault_of_the_vendor(vendor: str) -> None:
    make_reader, events = VENDORS[vendor]
    chance = random.Random(20261121)
    for number, event in enumerate(events):
        for path in places(event):
            for value in VALUES:
                before, after = events[max(0, number - 4) : number], chance.sample(events, 3)
                answer(make_reader(), [*before, with_value(event, path, value), *after])


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("module", [anthropic_response, openai_upstream_response])
def test_a_refusal_of_any_shape(module: Any, value: Any) -> None:
    for document in (value, {"error": value}, {"error": {"message": value, "code": value, "type": value}}):
        assert isinstance(module.error_from_status(400, json.dumps(document).encode(), None), GatewayError)
