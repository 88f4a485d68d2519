"""T22 to T46: what a vendor sends, byte for byte, and what comes of it (tests/fixtures/README.md)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gateway_fakes import FakeTransport

from hearth_gateway.errors import GatewayError
from hearth_gateway.providers.anthropic import AnthropicProvider
from hearth_gateway.providers.base import Call, Provider
from hearth_gateway.providers.openai_compatible import OpenAICompatibleProvider, Options
from hearth_gateway.translate.events import (
    End,
    Event,
    RedactedThinking,
    Text,
    Thinking,
    ThinkingEnd,
    ToolArguments,
    ToolStart,
    Usage,
)
from hearth_gateway.translate.openai_request import parse_chat_request
from hearth_gateway.translate.openai_response import ChunkEncoder, Collector, encode_error

FOLDER = Path(__file__).parent / "fixtures" / "responses"
RAW = sorted(path.name for pattern in ("*.anthropic.*", "*.openai.*") for path in FOLDER.glob(pattern) if ".events." not in path.name)
ASKED = {
    "model": "sonnet",
    "messages": [{"role": "user", "content": "Hi"}],
    "tools": [{"type": "function", "function": {"name": name}} for name in ("get.weather", "now")],
}


def provider_for(name: str, transport: FakeTransport) -> Provider:
    if ".anthropic." in name:
        return AnthropicProvider("a", lambda: "key", transport)
    return OpenAICompatibleProvider("o", lambda: "key", transport, Options(usage_includes_cache=not name.startswith("T34")))


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def answered(name: str, size: int = 1 << 20, stream: bool = True) -> list[Event | GatewayError]:
    """The events of the raw answer ``name``, received ``size`` bytes at a time; the fault is the last one."""
    content_type = "application/json" if name.endswith(".json") else "text/event-stream; charset=utf-8"
    transport = FakeTransport(200, {"content-type": content_type}, list(pieces((FOLDER / name).read_bytes(), size)))
    call = Call(parse_chat_request({**ASKED, "stream": stream}), "m", 1000, 1.0, lambda: 0.1, lambda _fields: None)
    found: list[Event | GatewayError] = []
    try:
        found.extend(provider_for(name, transport).stream(call))
    except GatewayError as error:
        found.append(error)
    assert transport.closed == 1, "the connection is given back or cut"
    return found


def shown(events: list[Event | GatewayError]) -> list[Any]:
    """Events as in the goldens. Of the usage only the last count, before the end: vendors tell it at different times."""
    found: list[Any] = []
    usage: Usage | None = None
    for event in events:
        match event:
            case Text(text):
                found.append(["text", text])
            case Thinking(text):
                found.append(["thinking", text])
            case ThinkingEnd(signature):
                found.append(["thinking_end", signature])
            case RedactedThinking(data):
                found.append(["redacted", data])
            case ToolStart(index, call_id, name):
                found.append(["tool", index, call_id, name])
            case ToolArguments(index, fragment):
                found.append(["arguments", index, fragment])
            case Usage():
                usage = event
    if usage is not None:
        counts = {name: getattr(usage, name) for name in ("input", "cache_read", "cache_write", "cache_write_1h", "output")}
        found.append(["usage", {name: count for name, count in counts.items() if count}])
    last = events[-1]
    if isinstance(last, GatewayError):
        found.append(["error", last.kind.value])
    elif isinstance(last, End):
        found.append(["end", last.reason])
    return found


def golden_of(name: str) -> Any:
    case, provider = name.split(".")[:2]
    own = FOLDER / f"{case}.{provider}.events.json"
    return json.loads((own if own.exists() else FOLDER / f"{case}.events.json").read_text())


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize("name", RAW)
def test_the_events_are_these(name: str, size: int) -> None:
    assert shown(answered(name, size)) == golden_of(name)


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize("name", RAW)
def test_a_whole_answer_is_the_same_with_its_text_in_fewer_pieces(name: str, size: int) -> None:
    assert joined(shown(answered(name, size, stream=False))) == joined(golden_of(name))


def joined(found: list[Any]) -> list[Any]:
    """Neighbouring pieces of text as one."""
    together: list[Any] = []
    for item in found:
        if item[0] == "text" and together and together[-1][0] == "text":
            together[-1] = ["text", together[-1][1] + item[1]]
        else:
            together.append(item)
    return together


@pytest.mark.parametrize("name", [name for name in RAW if (FOLDER / f"{name.split('.')[0]}.client.sse").exists()])
def test_a_streaming_client_gets_these_bytes(name: str) -> None:
    encoder = ChunkEncoder("chatcmpl-1", 5, "sonnet", include_usage=True)
    sent = b""
    for event in answered(name):
        sent += encode_error(event) if isinstance(event, GatewayError) else encoder.encode(event)
    assert sent.decode() == (FOLDER / f"{name.split('.')[0]}.client.sse").read_text()


@pytest.mark.parametrize("name", [name for name in RAW if (FOLDER / f"{name.split('.')[0]}.client.json").exists()])
def test_a_waiting_client_gets_this_document(name: str) -> None:
    collector = Collector()
    for event in answered(name):
        assert not isinstance(event, GatewayError)
        collector.add(event)
    expected = json.loads((FOLDER / f"{name.split('.')[0]}.client.json").read_text())
    assert collector.completion("chatcmpl-1", 5, "sonnet") == expected


def test_every_golden_belongs_to_an_answer() -> None:
    cases = {name.split(".")[0] for name in RAW}
    assert {path.name.split(".")[0] for path in FOLDER.iterdir()} == cases
    for case in cases:
        # A case of one vendor's dialect alone says so by its number.
        if case[:3] not in ("T34", "T39"):
            assert {name.split(".")[1] for name in RAW if name.startswith(f"{case}.")} == {"anthropic", "openai"}, case
