"""T47 to T51: the Messages API in front of both vendors (tests/fixtures/README.md, `messages/`).

The goldens are written by hand from the vendors' documentation.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from anthropic.types import Message, RawMessageStreamEvent
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming
from anthropic.types.message_create_params import MessageCreateParamsStreaming as AnthropicBody
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming as OpenAIBody
from pydantic import TypeAdapter
from sdk_types import fault

from hearth_gateway.translate.anthropic_request import build_messages_request
from hearth_gateway.translate.anthropic_response import MessageReader
from hearth_gateway.translate.events import Event
from hearth_gateway.translate.messages_request import parse_messages_request
from hearth_gateway.translate.messages_response import MessageCollector, MessageEncoder
from hearth_gateway.translate.openai_upstream_request import build_chat_request
from hearth_gateway.translate.openai_upstream_response import ChatReader
from hearth_gateway.translate.sse import SseParser

FOLDER = Path(__file__).parent / "fixtures" / "messages"
VENDORS = ("anthropic", "openai")
ANSWERS = ("T47-usage", "T50-tools")

Json = dict[str, Any]


def load(name: str) -> Json:
    loaded: Json = json.loads((FOLDER / name).read_text())
    return loaded


def sse_events(data: bytes) -> list[tuple[str, Json]]:
    parser = SseParser(1_000_000)
    return [(name, json.loads(item)) for name, item in [*parser.feed(data), *parser.end()]]


def read(name: str, vendor: str) -> list[Event]:
    """What the vendor sent, as events."""
    reader = MessageReader({}) if vendor == "anthropic" else ChatReader({})
    parser = SseParser(1_000_000)
    return [event for _, data in parser.feed((FOLDER / f"{name}.{vendor}.sse").read_bytes()) for event in reader.read(data)]


def test_t49_the_vendor_gets_exactly_this_and_is_asked_for_usage() -> None:
    asked = load("T49-conversation.json")
    assert fault(asked, MessageCreateParamsNonStreaming) is None
    for vendor, kind in (("anthropic", AnthropicBody), ("openai", OpenAIBody)):
        golden = load(f"T49-conversation.{vendor}.json")
        request = parse_messages_request(asked)
        if vendor == "anthropic":
            body = build_messages_request(request, "claude-sonnet-4-5-20250929", 1000, user=golden["user"]).body
        else:
            body = build_chat_request(request, "bedrock-sonnet", 1000, user=golden["user"]).body
            # LiteLLM's addition, which OpenAI's types do not know.
            body["messages"][0]["content"][1].pop("cache_control")
            golden["body"]["messages"][0]["content"][1].pop("cache_control")
        assert json.loads(json.dumps(body)) == golden["body"]
        assert fault(golden["body"], kind) is None
        assert list(request.ignored) == golden["ignored"]


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("name", ANSWERS)
def test_t47_t48_t50_t51_the_client_gets_exactly_this_stream(name: str, vendor: str) -> None:
    encoder = MessageEncoder("msg_1", "sonnet")
    sent = b"".join(encoder.encode(event) for event in read(name, vendor))
    golden = (FOLDER / f"{name}.{vendor}.client.sse").read_bytes()
    assert sse_events(sent) == sse_events(golden)
    kind: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
    for event_name, event in sse_events(golden):
        assert event_name == event["type"]
        kind.validate_python(event)


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("name", ANSWERS)
def test_the_client_gets_the_same_message_from_both_vendors(name: str, vendor: str) -> None:
    collector = MessageCollector()
    for event in read(name, vendor):
        collector.add(event)
    golden = load(f"{name}.client.json")
    assert collector.message("msg_1", "sonnet") == golden
    Message.model_validate(golden)
