"""Events as Anthropic's client gets them: the order of the stream, and the folded message."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from hearth_gateway.errors import GatewayError, Kind
from hearth_gateway.translate.events import (
    ALIVE,
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
from hearth_gateway.translate.messages_response import (
    EARLY_HEARTBEAT,
    HEARTBEAT,
    MessageCollector,
    MessageEncoder,
    encode_error,
)

Json = dict[str, Any]


def decode(data: bytes) -> list[Json]:
    """The events of a stream; the SSE name and the type inside must agree."""
    found = []
    for piece in data.decode().split("\n\n"):
        if piece:
            name, payload = piece.split("\n")
            event: Json = json.loads(payload.removeprefix("data: "))
            assert name == f"event: {event['type']}"
            found.append(event)
    return found


def stream(*events: Event) -> list[Json]:
    encoder = MessageEncoder("msg_1", "sonnet")
    return decode(b"".join(encoder.encode(event) for event in events))


def fold(events: Sequence[Json]) -> Json:
    """What a client makes of a stream. Fails where the vendor's order is not kept."""
    assert events[0]["type"] == "message_start" and events[-1]["type"] == "message_stop"
    message: Json = json.loads(json.dumps(events[0]["message"]))
    assert message["content"] == [] and message["stop_reason"] is None
    arguments = ""
    is_open = False
    for event in events[1:-2]:
        kind, blocks = event["type"], message["content"]
        if kind == "content_block_start":
            assert not is_open and event["index"] == len(blocks), "blocks follow each other and are counted from 0"
            blocks.append(dict(event["content_block"]))
            is_open, arguments = True, ""
        elif kind == "content_block_delta":
            assert is_open and event["index"] == len(blocks) - 1
            delta = event["delta"]
            if delta["type"] == "input_json_delta":
                arguments += delta["partial_json"]
            elif delta["type"] == "signature_delta":
                blocks[-1]["signature"] = delta["signature"]
            else:
                name = delta["type"].removesuffix("_delta")
                blocks[-1][name] += delta[name]
        else:
            assert kind == "content_block_stop" and is_open and event["index"] == len(blocks) - 1
            is_open = False
            if arguments:
                blocks[-1]["input"] = json.loads(arguments)
    assert not is_open
    last = events[-2]
    assert last["type"] == "message_delta"
    message.update(last["delta"])
    message["usage"].update(last["usage"])
    return message


def collected(*events: Event) -> Json:
    collector = MessageCollector()
    for event in events:
        collector.add(event)
    return collector.message("msg_1", "sonnet")


USAGE = Usage(input=10, cache_read=5, cache_write=4, cache_write_1h=1, output=7)
PLAIN: list[Event] = [Usage(input=10), Text("Hel"), ALIVE, Text("lo"), USAGE, End("stop")]
RICH: list[Event] = [
    Usage(input=10, cache_read=5, cache_write=4, cache_write_1h=1),
    Thinking("Let me "),
    Thinking("think."),
    ThinkingEnd("c2ln"),
    Thinking("Again."),
    ThinkingEnd("c2lnMg=="),
    RedactedThinking("ZW5j"),
    ThinkingEnd("b25seQ=="),
    Text("So:"),
    ToolStart(0, "t1", "weather"),
    ToolArguments(0, '{"place": "Zü'),
    ToolArguments(0, 'rich"}'),
    ToolStart(1, "t2", "now"),
    ToolArguments(1, "{}"),
    Text("Done."),
    USAGE,
    End("tool_calls"),
]


def test_a_plain_answer() -> None:
    assert [event["type"] for event in stream(*PLAIN)] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    message = collected(*PLAIN)
    assert message == {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "sonnet",
        "content": [{"type": "text", "text": "Hello"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 10,
            "cache_creation_input_tokens": 4,
            "cache_read_input_tokens": 5,
            "cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 1},
            "output_tokens": 7,
        },
    }


def test_every_kind_of_block() -> None:
    message = fold(stream(*RICH))
    assert message["content"] == [
        {"type": "thinking", "thinking": "Let me think.", "signature": "c2ln"},
        {"type": "thinking", "thinking": "Again.", "signature": "c2lnMg=="},
        {"type": "redacted_thinking", "data": "ZW5j"},
        {"type": "thinking", "thinking": "", "signature": "b25seQ=="},
        {"type": "text", "text": "So:"},
        {"type": "tool_use", "id": "t1", "name": "weather", "input": {"place": "Zürich"}},
        {"type": "tool_use", "id": "t2", "name": "now", "input": {}},
        {"type": "text", "text": "Done."},
    ]
    assert message["stop_reason"] == "tool_use"
    assert message == collected(*RICH)


def test_t47_the_start_carries_usage() -> None:
    assert stream(*PLAIN)[0]["message"]["usage"]["input_tokens"] == 10
    # A vendor that counts at the end only: the fields are there all the same, SDKs crash without.
    late = stream(Text("Hi"), Usage(input=10, output=2), End("stop"))
    assert {"input_tokens", "output_tokens"} <= set(late[0]["message"]["usage"])


def test_t48_the_final_usage_holds_the_tokens_of_the_prompt() -> None:
    for events in ([Usage(input=10), Text("Hi"), End("stop")], [Text("Hi"), Usage(input=10, output=2), End("stop")]):
        last = stream(*events)[-2]
        assert last["type"] == "message_delta" and last["usage"]["input_tokens"] == 10
        assert fold(stream(*events))["usage"]["input_tokens"] == 10
        assert collected(*events)["usage"]["input_tokens"] == 10


def test_usage_of_a_provider_that_failed_is_not_shown() -> None:
    """Until the first content another provider may take over. Then its usage is what counts."""
    events = stream(Usage(input=999), Usage(input=10), Text("Hi"), End("stop"))
    assert events[0]["message"]["usage"]["input_tokens"] == 10


def test_t50_arguments_come_as_fragments_of_json() -> None:
    deltas = [event["delta"] for event in stream(*RICH) if event["type"] == "content_block_delta"]
    fragments = [delta["partial_json"] for delta in deltas if delta["type"] == "input_json_delta"]
    assert fragments == ['{"place": "Zü', 'rich"}', "{}"]


def test_t51_blocks_start_and_stop_in_pairs_and_are_counted_from_0() -> None:
    events = [event for event in stream(*RICH) if "index" in event]
    starts = [event["index"] for event in events if event["type"] == "content_block_start"]
    stops = [event["index"] for event in events if event["type"] == "content_block_stop"]
    assert starts == stops == list(range(8))
    fold(stream(*RICH))  # checks that no two are open at a time
    calls = [event["content_block"] for event in events if event.get("content_block", {}).get("type") == "tool_use"]
    assert calls == [
        {"type": "tool_use", "id": "t1", "name": "weather", "input": {}},
        {"type": "tool_use", "id": "t2", "name": "now", "input": {}},
    ]


def test_arguments_after_the_end_of_a_call_are_a_fault_and_not_lost() -> None:
    encoder = MessageEncoder("msg_1", "sonnet")
    for event in (ToolStart(0, "t0", "a"), ToolArguments(0, "{}"), Text("So")):
        encoder.encode(event)
    assert encoder.encode(ToolArguments(0, " ")) == b""
    with pytest.raises(GatewayError) as caught:
        encoder.encode(ToolArguments(0, '{"more": 1}'))
    assert caught.value.kind is Kind.UPSTREAM_PROTOCOL


def test_an_answer_without_a_word_is_a_message_too() -> None:
    assert fold(stream(Usage(input=3), End("content_filter"))) == collected(Usage(input=3), End("content_filter"))


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (End("stop"), "end_turn"),
        (End("stop", "END"), "stop_sequence"),
        (End("length"), "max_tokens"),
        (End("tool_calls"), "tool_use"),
        (End("content_filter"), "refusal"),
    ],
)
def test_stop_reasons(end: End, reason: str) -> None:
    for message in (fold(stream(Text("x"), end)), collected(Text("x"), end)):
        assert (message["stop_reason"], message["stop_sequence"]) == (reason, end.stop_sequence)


def test_broken_arguments_do_not_lose_the_answer() -> None:
    content = collected(ToolStart(0, "t", "a"), ToolArguments(0, '{"x"'), End("tool_calls"))["content"]
    assert content[0]["input"] == {"invalid_json": '{"x"'}


def test_numbers_of_any_length_keep_their_digits() -> None:
    long = '{"id": 123456789012345678901234567890}'
    message = collected(ToolStart(0, "c1", "weather"), ToolArguments(0, long[:9]), ToolArguments(0, long[9:]), End("tool_calls"))
    assert f'"input":{long}' in orjson.dumps(message).decode()


def test_arguments_too_deep_to_be_written_do_not_lose_the_answer() -> None:
    deep = '{"a":' * 260 + "1" + "}" * 260
    message = collected(ToolStart(0, "c1", "weather"), ToolArguments(0, deep), End("tool_calls"))
    assert json.loads(orjson.dumps(message))["content"][0]["input"] == {"invalid_json": deep}


def test_heartbeats_are_pings_only_once_the_message_has_begun() -> None:
    encoder = MessageEncoder("msg_1", "sonnet")
    assert encoder.heartbeat == EARLY_HEARTBEAT
    assert encoder.encode(Usage(input=1)) == b""
    assert encoder.heartbeat == EARLY_HEARTBEAT
    encoder.encode(Text("x"))
    assert encoder.heartbeat == HEARTBEAT
    assert decode(HEARTBEAT) == [{"type": "ping"}]


def test_an_error_in_the_stream() -> None:
    events = decode(encode_error(GatewayError(Kind.UPSTREAM_OVERLOADED, "Busy."), "abc"))
    assert events == [{"type": "error", "error": {"type": "overloaded_error", "message": "Busy."}, "request_id": "abc"}]


@pytest.mark.parametrize("kind", list(Kind))
def test_every_kind_of_error_has_one_of_anthropics_types(kind: Kind) -> None:
    expected = {
        400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
        405: "invalid_request_error", 413: "request_too_large", 415: "invalid_request_error", 429: "rate_limit_error",
        500: "api_error", 502: "api_error", 503: "api_error", 504: "timeout_error",
    }  # fmt: skip
    got = GatewayError(kind, "Words.", param="field").anthropic_body("abc")["error"]
    overloaded = kind in (Kind.UPSTREAM_OVERLOADED, Kind.PROVIDERS_UNAVAILABLE, Kind.GATEWAY_BUSY)
    assert got["type"] == ("overloaded_error" if overloaded else expected.get(kind.spec.status, "invalid_request_error"))
    assert got["message"] == "field: Words."
